"""Rows of different tasks and methods that share a pass through the blocks: `viapt.multitask` says which and why."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from viapt.backbones.base import Tokens
from viapt.methods.base import PromptMethod
from viapt.model import PromptedClassifier


class Row(NamedTuple):
    """One pass of one question: which question, its task's model, its image, and (seed, index) of its noise."""

    question: int
    model: PromptedClassifier
    image: int
    draw: tuple[int, int] | None


def kind(model: PromptedClassifier) -> Hashable:
    """Rows of models of one kind may share a pass."""
    method = model.method
    return id(model) if method.inside else (method.num_prompts, method.carries and method.num_prompts > 0)


def units(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Of rows of one kind, those that go through the blocks as one: without prompts, all about an image."""
    method = rows[0].model.method
    if method.inside or method.num_prompts:
        yield from ([row] for row in rows)
        return
    by_image: dict[int, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    yield from by_image.values()


def size(rows: Sequence[Row]) -> int:
    """How many of one kind there are for the blocks."""
    return sum(1 for _ in units(rows))


def passes(rows: Sequence[Row], limit: int) -> Iterator[list[Row]]:
    """Rows that can go through the blocks together, at most `limit` at a time."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(kind(row.model), []).append(row)
    for group in groups.values():
        found = list(units(group))
        for start in range(0, len(found), limit):
            yield list(chain.from_iterable(found[start : start + limit]))


def consecutive(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each task."""
    return (list(group) for _, group in groupby(rows, key=lambda row: id(row.model)))


def used(images: Float[Tensor, "batch 3 height width"], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The images that these rows need, each once; and for each row, which of them."""
    needed = {image: place for place, image in enumerate(sorted({row.image for row in rows}))}
    places = torch.tensor([needed[row.image] for row in rows], device=images.device)
    return images if len(needed) == images.shape[0] else images[list(needed)], places


def noise(rows: Sequence[Row]) -> Float[Tensor, "rows sampled dim"] | None:
    """For rows of one task; 0, which is the mean, where nothing is drawn."""
    draws = {row.draw for row in rows}
    if draws == {None}:
        return None
    model = rows[0].model
    known = {draw: model.draw_noise(1, seed=draw[0], index=draw[1]) for draw in draws if draw is not None}
    silent = torch.zeros_like(next(iter(known.values())))
    return torch.cat([silent if row.draw is None else known[row.draw] for row in rows])


class Part(NamedTuple):
    """Rows that a method gives prompts to: how many, one after the other, and their noise."""

    method: PromptMethod
    rows: int
    noise: Float[Tensor, "rows sampled dim"] | None


def part_of(model: PromptedClassifier, rows: int, noise: Float[Tensor, "rows sampled dim"] | None) -> Part:
    """Of a pass of its own: a method's tensors are shared with other passes, what it remembers of a pass is not."""
    return Part(copy(model.method), rows, noise)


class Mixture(PromptMethod):
    """Several methods with equally many prompts, each for some rows of a batch: told anew before every pass."""

    staged = True  # as the methods that it is made of

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone.widths, backbone.depth, backbone.patch_size)
        self.parts: list[Part] = []

    def take(self, parts: list[Part]) -> None:
        """What the next pass is made of; all of one number of prompts, and all or none of them carry."""
        self.parts = parts
        for part in parts[:1]:
            self.num_prompts, self.carries = part.method.num_prompts, part.method.carries

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        pieces = patches.split([part.rows for part in self.parts])
        return joined(
            [part.method.start(piece, grid, part.noise) for part, piece in zip(self.parts, pieces, strict=True)]
        )

    def carry(self, layer: int, prompts: Float[Tensor, "rows p _"]) -> Float[Tensor, "rows p dim"]:
        pieces = prompts.split([part.rows for part in self.parts])
        return joined([part.method.carry(layer, piece) for part, piece in zip(self.parts, pieces, strict=True)])


def joined(prompts: list[Float[Tensor, "_ p dim"]]) -> Float[Tensor, "rows p dim"]:
    """Of all rows; those of one method alone stay as they are, which may be one in memory for all."""
    return prompts[0] if len(prompts) == 1 else torch.cat(prompts)


def running(loop: PromptedClassifier, parts: list[Part], tokens: Tokens) -> Float[Tensor, "rows features"]:
    """The features of these parts, which the loop then forgets: a task that is removed is not kept."""
    assert isinstance(loop.method, Mixture)
    loop.method.take(parts)
    try:
        return loop.run(tokens, None)
    finally:
        loop.method.take([])


def rows_on_cpu(logits: Sequence[Float[Tensor, "_ _"]]) -> list[Float[Tensor, " _"]]:
    """The rows of all of them, in one copy: there may be hundreds of tasks."""
    values = torch.cat([some.flatten() for some in logits]).cpu().split([some.numel() for some in logits])
    return [row for some, found in zip(logits, values, strict=True) for row in found.view(some.shape)]

"""Where rows are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from viapt.batch.rows import Job, Model, Step, predict_rows
from viapt.data.streams import Reference


class Part(NamedTuple):
    """Some images in a row, and their place among all."""

    number: int
    images: list[Reference]


@runtime_checkable
class Engine(Protocol):
    """Makes the rows of parts."""

    def run(self, job: Job, parts: Iterable[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        """Number and rows of each part, in any order; `step` is called with numbers of images that were done."""
        ...


class LocalEngine:
    """Here, one part after the other.

    Args:
        model, options: what `Job.open` gave, which is not opened again.
    """

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self.model, self.options = model, options

    def run(self, job: Job, parts: Iterable[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        for number, images in parts:
            yield number, predict_rows(job, self.model, self.options, images, step)

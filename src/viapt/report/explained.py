"""The page of an explanation: what a model looks at, how its prompts differ, where its features lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from viapt.checkpoint import replace_file
from viapt.errors import ConfigError
from viapt.report import explained_plots, plots
from viapt.report.explained_plots import Dots
from viapt.report.rendering import Plot, check_libraries, render, write_pictures

PAGE = "explanation.html"


@dataclass(frozen=True)
class Neighbour:
    """A training picture that is like an explained one: by its cosine similarity, in [-1, 1]."""

    name: str
    label: str
    similarity: float
    image: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Explained:
    """One picture.

    Attributes:
        name: of the file.
        image: RGB, as the model sees it.
        predicted: class name.
        probability: of what was predicted, in [0, 1].
        attention: who looks -> where, layer by layer; empty where the backbone hides it.
        neighbours: "before tuning" and "after tuning" -> training pictures, the most similar first; empty without any.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    predicted: str
    probability: float
    attention: Mapping[str, Float[np.ndarray, "layers h w"]] = field(default_factory=dict)
    neighbours: Mapping[str, Sequence[Neighbour]] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureMap:
    """Features in two dimensions.

    Attributes:
        name: for the file.
        caption: what it shows.
        axes: names of its two axes.
        dots: where features lie.
    """

    name: str
    caption: str
    axes: tuple[str, str]
    dots: Dots


@dataclass(frozen=True)
class Explanation:
    """All that is rendered.

    Attributes:
        title, summary: heading, and one paragraph under it.
        pictures: at least one.
        on_prompts: layer -> share of the class token's attention on prompts; None without.
        no_attention: why there is no attention; empty if there is.
        cosines: kind of prompts -> similarity between pictures, by layer; empty without prompts, or for one picture.
        varying: kind of prompts -> layer -> share in [0, 1] of the squared length that differs between pictures.
        maps: of features.
        no_maps: why there are none; empty if there are.
        notes: how to read what is shown.
        facts: name -> value: what was run on what, and the command.
    """

    title: str
    summary: str
    pictures: Sequence[Explained]
    on_prompts: Sequence[float] | None = None
    no_attention: str = ""
    cosines: Mapping[str, Float[np.ndarray, "layers n n"]] = field(default_factory=dict)
    varying: Mapping[str, Sequence[float]] = field(default_factory=dict)
    maps: Sequence[FeatureMap] = ()
    no_maps: str = ""
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_explanation(explanation: Explanation, folder: Path) -> Path:
    """Render `explanation.html`, which needs no other file and no script, and the same pictures in `pictures`.

    Pictures of an earlier explanation in this folder are removed.

    Returns:
        The path of the page.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed; the folder holds something else.
    """
    check_libraries("explain")
    check_folder(folder)
    sections = draw(explanation)
    for old in (folder / "pictures").glob("*.png"):
        old.unlink()
    write_pictures([plot for plots_of_section in sections.values() for plot in plots_of_section], folder)
    values: dict[str, Any] = {"explanation": explanation, "sections": sections}
    replace_file(folder / PAGE, render("viapt.report", PAGE, values).encode())
    return folder / PAGE


def check_folder(folder: Path) -> None:
    """Refuse a folder with anything in it but an earlier explanation.

    Raises:
        ConfigError: naming it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", expected="a folder for the explanation")
    if folder.exists() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise ConfigError(f"{folder} is no explanation, and not empty", expected="a new folder, or one that viapt made")


def draw(explanation: Explanation) -> dict[str, list[Plot]]:
    """The pictures by section, in the order in which they appear."""
    return {
        "attention": [attention_plot(k, one) for k, one in enumerate(explanation.pictures, start=1) if one.attention],
        "prompts": prompt_plots(explanation),
        "maps": [map_plot(one) for one in explanation.maps],
        "neighbours": [neighbour_plot(k, one) for k, one in enumerate(explanation.pictures, start=1) if one.neighbours],
    }


def attention_plot(number: int, one: Explained) -> Plot:
    """Where everybody looks in one picture."""
    words = "; ".join(
        f"{who}: {100 * maps[0].sum():.0f} % on the picture in the first layer, {100 * maps[-1].sum():.0f} % in the "
        f"last, there most of all {place(maps[-1])}"
        for who, maps in one.attention.items()
    )
    caption = f"{number}. {one.name}: {one.predicted} ({one.probability:.2f})"
    sheet = explained_plots.attention_sheet(one.image, one.attention)
    return Plot(f"attention-{number}", caption, sheet, f"Attention over {one.name}. {words}")


def place(attention: Float[np.ndarray, "h w"]) -> str:
    """Where the brightest cell of a map is, in words."""
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    h, w = attention.shape
    vertical = ("at the top", "in the middle", "at the bottom")[min(2, int(3 * (row + 0.5) / h))]
    return f"{vertical} {('on the left', 'of the width', 'on the right')[min(2, int(3 * (column + 0.5) / w))]}"


def prompt_plots(explanation: Explanation) -> list[Plot]:
    """How much is looked at the prompts, and how they differ between pictures."""
    found = []
    if explanation.on_prompts is not None:
        shares = explanation.on_prompts
        drawn = plots.lines({"mean of the pictures": shares}, x="layer", y="attention on prompts (%)", percent=True)
        words = "By layer, in per cent: " + ", ".join(f"{100 * share:.1f}" for share in shares)
        found.append(Plot("on-prompts", "How much of its attention the class token spends on prompts", drawn, words))
    if explanation.varying:
        y = "differs between pictures (%)"
        drawn = plots.lines(explanation.varying, x="layer", y=y, percent=True)
        words = "; ".join(
            f"{kind}, by layer, in per cent: " + ", ".join(f"{100 * share:.2g}" for share in shares)
            for kind, shares in explanation.varying.items()
        )
        caption = "Share of the squared length of the prompts that enter a layer which differs between pictures"
        found.append(Plot("prompts-differ", caption, drawn, words))
    if explanation.cosines:
        words = "; ".join(
            f"{kind}, mean cosine of two pictures by layer: "
            + ", ".join(f"{explained_plots.off_diagonal(matrix):.4f}" for matrix in matrices)
            for kind, matrices in explanation.cosines.items()
        )
        caption = "Cosine between the prompts that enter each layer for two pictures, and its mean over pairs"
        drawn = explained_plots.similarities(explanation.cosines)
        found.append(Plot("prompt-similarity", caption, drawn, words))
    return found


def map_plot(one: FeatureMap) -> Plot:
    """Features in two dimensions."""
    classes = len(set(one.dots.classes))
    words = f"{one.caption}: {len(one.dots.points)} dots of {classes} classes, {len(one.dots.marked)} of them numbered"
    return Plot(one.name, one.caption, explained_plots.scatter(one.dots, x=one.axes[0], y=one.axes[1]), words)


def neighbour_plot(number: int, one: Explained) -> Plot:
    """Training pictures that are like one."""
    rows = {name: [(n.image, n.label, n.similarity) for n in found] for name, found in one.neighbours.items()}
    words = "; ".join(
        f"{name}: " + ", ".join(f"{n.label} {n.similarity:.3f}" for n in found)
        for name, found in one.neighbours.items()
    )
    caption = f"{number}. {one.name}: {one.predicted} ({one.probability:.2f})"
    return Plot(
        f"neighbours-{number}", caption, explained_plots.neighbour_rows(one.image, rows),
        f"Training pictures most like {one.name}. {words}",
    )  # fmt: skip

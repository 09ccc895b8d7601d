"""The pictures of an explanation: attention sheets, similarity of prompts, maps of features, rows of neighbours.

Heat maps are in "magma" and "cividis", which keep their order without colours; dots have a marker for each class, too.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from viapt.report.plots import INK, look, panel, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6  # layers side by side
CELL = 1.5  # inches
NAMED_CLASSES = 12  # with a colour and a marker of their own
OTHERS = "other classes"

Picture = UInt8[np.ndarray, "height width 3"]


def attention_sheet(image: Picture, maps: Mapping[str, Float[np.ndarray, "layers h w"]]) -> bytes:
    """Where each of several lookers looks in each layer, over a grey picture; each map on a scale of its own.

    Args:
        image: RGB, as the model sees it.
        maps: heading -> attention on the grid of patches, >= 0; its sum is the share on the picture, shown above it.
    """
    from matplotlib.figure import Figure

    rows = {name: math.ceil(len(layers) / COLUMNS) for name, layers in maps.items()}
    columns = 1 + min(COLUMNS, max(map(len, maps.values())))
    heights = [(CELL + 0.2) * count + 0.45 for count in rows.values()]
    figure = Figure(figsize=(CELL * columns + 0.2, sum(heights)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(maps), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (name, layers) in zip(parts, maps.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        cells = part.subplots(rows[name], columns, squeeze=False)
        for axes in cells.flat:
            axes.set_axis_off()
        cells[0, 0].imshow(image)
        cells[0, 0].set_title("the picture", fontsize=10, color=INK)
        for number, layer in enumerate(layers):
            axes = cells[number // (columns - 1), 1 + number % (columns - 1)]
            over(axes, image, layer)
            axes.set_title(f"layer {number + 1}: {100 * layer.sum():.0f} %", fontsize=10, color=INK)
    return png(figure)


def over(axes: Axes, image: Picture, attention: Float[np.ndarray, "h w"]) -> None:
    """A grey picture, and the attention on it."""
    height, width = image.shape[:2]
    axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(
        attention, cmap="magma", vmin=0, vmax=attention.max() or 1, alpha=0.65, interpolation="bilinear",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )  # fmt: skip


def similarities(matrices: Mapping[str, Float[np.ndarray, "layers n n"]]) -> bytes:
    """Cosines between the prompts of pictures 1, 2, ..., layer by layer; one scale for all."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = len(next(iter(matrices.values())))
    columns = min(COLUMNS, layers)
    rows = math.ceil(layers / columns)
    lowest = min(float(matrix.min()) for matrix in matrices.values())
    lowest = min(lowest, 0.999)  # where all are alike, the scale still has a length
    height = (CELL + 0.35) * rows + 0.4
    figure = Figure(
        figsize=(CELL * columns + 2.0, (height + 0.2) * len(matrices)), layout="constrained", facecolor="white"
    )
    parts = figure.subfigures(len(matrices), 1, squeeze=False)[:, 0]
    for part, (name, matrix) in zip(parts, matrices.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        cells = part.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        n, shown = matrix.shape[1], None
        for axes in cells.flat[layers:]:
            axes.set_axis_off()
        for number, (axes, values) in enumerate(zip(cells.flat, matrix, strict=False)):
            extent = (0.5, n + 0.5, n + 0.5, 0.5)
            shown = axes.imshow(values, cmap="cividis", vmin=lowest, vmax=1, extent=extent)
            axes.set_title(f"layer {number + 1}: {off_diagonal(values):.4f}", fontsize=10, color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.tick_params(colors=INK, labelsize=8, length=2)
        part.supxlabel("number of the picture", color=INK, fontsize=9)
        part.supylabel("number of the picture", color=INK, fontsize=9)
        bar = part.colorbar(shown, ax=cells, shrink=0.8)
        bar.set_label("cosine", color=INK)
        bar.ax.tick_params(colors=INK, labelsize=8)
    return png(figure)


def off_diagonal(matrix: Float[np.ndarray, "n n"]) -> float:
    """Mean over pairs of different pictures."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


class Dots(NamedTuple):
    """Features in two dimensions: where each lies, its class, and which are the explained pictures."""

    points: Float[np.ndarray, "n 2"]
    classes: Sequence[str]
    marked: Sequence[int]


def scatter(dots: Dots, *, x: str, y: str) -> bytes:
    """A map of features: a colour and a marker for each of up to 12 classes; explained pictures have numbers.

    Of more classes, those of the explained pictures come first, then the largest; the others are grey.
    """
    names = named_classes(dots)
    labels = [name if name in names else OTHERS for name in dots.classes]
    figure, axes = panel(x, y, size=(5.4, 4.4 + 0.22 * math.ceil(len({*labels}) / 2)))
    marked = set(dots.marked)
    for name in ([OTHERS] if OTHERS in labels else []) + names:
        colour, marker = ("#aaaaaa", "o") if name == OTHERS else look(names.index(name))
        at = dots.points[[k for k, label in enumerate(labels) if label == name and k not in marked]]
        style: dict[str, Any] = {"s": 22, "color": colour, "marker": marker, "alpha": 0.7, "linewidths": 0}
        axes.scatter(at[:, 0], at[:, 1], label=textwrap.shorten(name, 28, placeholder="…"), **style)
    for number, k in enumerate(dots.marked, start=1):
        axes.annotate(
            str(number), dots.points[k], ha="center", va="center", fontsize=9, fontweight="bold", color="black",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "linewidth": 1.2},
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    return png(figure)


def named_classes(dots: Dots) -> list[str]:
    """The classes that get a colour, in order of name."""
    counts = Counter(dots.classes)
    wanted = list(dict.fromkeys([dots.classes[k] for k in dots.marked] + [name for name, _ in counts.most_common()]))
    return sorted(wanted[:NAMED_CLASSES])


def neighbour_rows(image: Picture, rows: Mapping[str, Sequence[tuple[Picture, str, float]]]) -> bytes:
    """A picture, and rows of others that are like it: each with its class and its similarity."""
    from matplotlib.figure import Figure

    columns = 1 + max(map(len, rows.values()))
    figure = Figure(figsize=(CELL * columns + 0.2, 2.5 * len(rows)), layout="constrained", facecolor="white")
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (name, found) in zip(parts, rows.items(), strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        cells = part.subplots(1, columns, squeeze=False)[0]
        for axes in cells:
            axes.set_axis_off()
        cells[0].imshow(image)
        cells[0].set_title("the picture", fontsize=10, color=INK)
        for axes, (other, label, similarity) in zip(cells[1:], found, strict=False):
            axes.imshow(other)
            axes.set_title(f"{textwrap.shorten(label, 18, placeholder='…')}\n{similarity:.3f}", fontsize=10, color=INK)
    return png(figure)

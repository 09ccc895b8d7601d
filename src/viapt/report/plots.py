"""The pictures of a report, each one PNG of one panel, legible on a phone and without telling colours apart.

Colours are Okabe and Ito's; every series also has a marker of its own. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#d8d8d8"
SIZE, DPI = (5.2, 3.9), 150  # inches, and dots per inch


def lines(series: Mapping[str, Sequence[float] | None], *, x: str, y: str, percent: bool = False) -> bytes:
    """Curves over 1, 2, ..., such as epochs or layers.

    Args:
        series: up to seven, by the name that the legend shows; None keeps a place: a colour means the same everywhere.
        x, y: labels of the axes.
        percent: values are shares in [0, 1], shown in per cent.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel(x, y)
    for k, (name, values) in enumerate(series.items()):
        if values is None:
            continue
        shown = [100 * value for value in values] if percent else list(values)
        steps = range(1, len(shown) + 1)
        axes.plot(steps, shown, color=COLOURS[k], marker=MARKERS[k], markersize=5, linewidth=1.8, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, labelcolor=INK)
    return png(figure)


class Point(NamedTuple):
    """A method in a plane of cost and accuracy: parameters, and shares in [0, 1], NaN where there is no interval."""

    parameters: float
    value: float
    low: float
    high: float


def accuracy_against_parameters(
    points: Mapping[str, Point], *, x: str, y: str = "test accuracy (%)", frontier: bool = False
) -> bytes:
    """Accuracy with its interval over the number of learnable parameters, on a logarithmic axis that begins at zero.

    Methods with nearly as many parameters are drawn side by side, so that they do not hide one another: half a
    marker from one to the next, which is little beside the axis.

    Args:
        points: by the name that the legend shows; up to 49.
        x, y: labels of the axes.
        frontier: draw, too, the best accuracy with at most so many parameters.
    """
    from matplotlib.transforms import ScaledTranslation

    names = {name: textwrap.fill(name, 44) for name in points}
    columns = 1 if max(map(len, points)) > 20 else 3
    rows = math.ceil((sum(name.count("\n") + 1 for name in names.values()) + frontier) / columns)
    width, height = SIZE
    figure, axes = panel(x, y, size=(width, height + 0.2 * max(0, rows - 3)))
    scale_from_zero(axes, [float(point.parameters) for point in points.values()])
    edges = [100 * edge for point in points.values() for edge in point[1:] if not math.isnan(edge)]
    axes.set_ylim(min(edges) - 2, max(edges) + 2)
    if frontier:
        best = running_best(points.values())
        counts, values = [point.parameters for point in best], [100 * point.value for point in best]
        right = axes.get_xlim()[1]
        drawn = [*counts, right], [*values, values[-1]]
        axes.plot(*drawn, drawstyle="steps-post", color="#888888", linestyle="--", label="best with at most so many")
    aside = side_by_side(axes, points)
    for k, (name, point) in enumerate(points.items()):
        colour, marker = look(k)
        axes.errorbar(
            point.parameters,
            100 * point.value,
            [[100 * (point.value - point.low)], [100 * (point.high - point.value)]],
            color=colour,
            marker=marker,
            markersize=8,
            capsize=4,
            linestyle="none",
            label=names[name],
            transform=axes.transData + ScaledTranslation(aside[name], 0, figure.dpi_scale_trans),
        )
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK)
    return png(figure)


def look(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th series: 49 pairs."""
    return COLOURS[k % 7], MARKERS[(k + k // 7) % 7]


def scale_from_zero(axes: Axes, counts: Sequence[float]) -> None:
    """A logarithmic axis for counts; where one is zero, a short linear piece leads to it."""
    from matplotlib.ticker import NullFormatter

    positive = [count for count in counts if count > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive) / 1.5)), math.ceil(math.log10(max(positive) * 1.5))
    if min(counts) > 0:
        axes.set_xscale("log")
        axes.set_xlim(10.0**first, 10.0**last)
    else:
        axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.6)
        axes.set_xlim(-(10.0**first) / 3, 10.0**last)
        axes.set_xticks([0, *(10.0**power for power in range(first, last + 1))])
    axes.xaxis.set_minor_formatter(NullFormatter())


def side_by_side(axes: Axes, points: Mapping[str, Point], apart: float = 0.07) -> dict[str, float]:
    """Inches by which to move points to the side, so that none hides another's marker or interval."""
    x, y = (edges_to_inches(axis) for axis in (axes.get_xaxis(), axes.get_yaxis()))
    at = {name: x(float(point.parameters)) for name, point in points.items()}
    spans = {name: marked(point, y) for name, point in points.items()}
    crowds: list[list[str]] = []
    for name in sorted(points, key=at.__getitem__):
        near = (c for c in crowds if at[name] - at[c[-1]] < 2 * apart and any(meet(spans[name], spans[m]) for m in c))
        crowd = next(near, None)
        if crowd is None:
            crowds.append(crowd := [])
        crowd.append(name)
    moved = {}
    for crowd in crowds:
        moved |= {name: apart * (k - (len(crowd) - 1) / 2) for k, name in enumerate(crowd)}
    return moved


def edges_to_inches(axis: Axis, length: float = 4.0) -> Callable[[float], float]:
    """From values to inches along an axis of about that length."""
    transform = axis.get_transform()
    low, high = transform.transform(np.array(axis.get_view_interval()))
    return lambda value: length * float((transform.transform(np.array([value]))[0] - low) / (high - low))


def marked(point: Point, y: Callable[[float], float]) -> tuple[float, float]:
    """Lowest and highest inch that a point and its interval take."""
    edges = [100 * edge for edge in point[1:] if not math.isnan(edge)]
    return y(min(edges)) - 0.08, y(max(edges)) + 0.08


def meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two intervals have a point in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def running_best(points: Iterable[Point]) -> list[Point]:
    """Points that no other equals or beats with as many parameters or fewer, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.parameters, -point.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def confusion(matrix: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> bytes:
    """Counts, rows the truth, columns the answer; shades are shares of the row."""
    n = len(classes)
    side = max(3.9, 0.42 * n + 1.6)
    figure, axes = panel("predicted", "true", size=(side + 0.3, side))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    for row, column in np.ndindex(n, n):
        if matrix[row, column]:
            ink = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink, fontsize=9)
    names = [textwrap.fill(name, 13, max_lines=2, placeholder="…") for name in classes]
    axes.set_xticks(range(n), names, rotation=30 if n <= 6 else 90, ha="right" if n <= 6 else "center")
    axes.set_yticks(range(n), names)
    return png(figure)


def photo(
    image: UInt8[np.ndarray, "height width 3"], attention: Float[np.ndarray, "h w"] | None, highest: float | None = None
) -> bytes:
    """A picture, and beside it what the prompts look at.

    Args:
        image: RGB.
        attention: non-negative, on the grid of patches; None: the picture alone.
        highest: the attention that gets the brightest colour; None: the largest of this map.
    """
    figure, panels = blank(1 if attention is None else 2)
    height, width = image.shape[:2]
    for axes in panels:
        axes.imshow(image)
    if attention is not None:
        grey = image.mean(2)
        panels[1].imshow(grey, cmap="gray", vmin=0, vmax=255)
        panels[1].imshow(
            attention, cmap="magma", vmin=0, vmax=highest or attention.max() or 1, alpha=0.6, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
    return png(figure)


def panel(x: str, y: str, *, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """An empty plot with labelled axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK, length=3)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def blank(columns: int) -> tuple[Figure, list[Axes]]:
    """Square places for pictures, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * columns, 2.2), layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without a date in it: equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()

"""Pictures of many methods: who differs from whom in rank, and who does well where.

Sizes follow the names that have to be written, so that labels never meet.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from viapt.bench.statistics import half_width
from viapt.report.plots import FAINT, INK, look, panel, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

POINTS, LINE = 9, 0.17  # of text, and inches from line to line
AXIS = 4.6  # inches, of the axis of ranks
ACCENT = "#0072B2"
MOST = 10.0  # points of per cent that get the strongest colour


def critical_difference(
    ranks: Mapping[str, float], distance: float, groups: Sequence[Sequence[str]], differ: bool = True
) -> bytes:
    """The diagram of Demšar (2006): methods on an axis of average ranks, bars over those that are not told apart.

    Args:
        ranks: method -> average rank, 1 the best; best first.
        distance: the critical difference.
        groups: methods under one bar.
        differ: False leaves out bars and ruler, and says that Friedman's test finds no difference.
    """
    from matplotlib.figure import Figure

    k = len(ranks)
    names = {name: textwrap.fill(name, 30) for name in ranks}
    left, right = list(ranks)[: math.ceil(k / 2)], list(ranks)[math.ceil(k / 2) :][::-1]
    margins = [0.7 + max((inches(names[name]) for name in side), default=0.0) for side in (left, right)]
    lanes = bars_in_lanes(ranks, groups) if differ else []
    top = 0.95
    below = top + 0.12 + 0.11 * len(lanes)
    heights = [sum(height(names[name]) for name in side) for side in (left, right)]
    size = (margins[0] + AXIS + margins[1], below + max(heights) + 0.1)
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    at = {name: margins[0] + AXIS * (value - 1) / (k - 1) for name, value in ranks.items()}
    draw_axis_of_ranks(axes, margins[0], top, k)
    draw_distance(axes, margins[0], distance, k, differ)
    for lane, bars in enumerate(lanes):
        for first, last in bars:
            y = top + 0.13 + 0.11 * lane
            axes.plot((at[first] - 0.04, at[last] + 0.04), (y, y), color=INK, linewidth=3.2, solid_capstyle="butt")
    for side, edge, outwards in ((left, margins[0], -1), (right, margins[0] + AXIS, 1)):
        y = below
        for name in side:
            middle = y + height(names[name]) / 2
            end = edge + 0.08 * outwards
            axes.plot((at[name], at[name], end), (top, middle, middle), color=ACCENT, linewidth=1)
            ha = "right" if outwards < 0 else "left"
            label = {"va": "center", "ha": ha, "fontsize": POINTS, "color": INK}
            axes.text(end + 0.05 * outwards, middle, f"{ranks[name]:.2f}", **{**label, "color": ACCENT})
            axes.text(end + 0.48 * outwards, middle, names[name], **label)
            y += height(names[name])
    return png(figure)


def draw_axis_of_ranks(axes: Axes, start: float, y: float, k: int) -> None:
    """From 1 to k; every rank has a tick, and as many a number as there is room for."""
    axes.plot((start, start + AXIS), (y, y), color=INK, linewidth=1.2)
    every = math.ceil(k / 15)
    for value in range(1, k + 1):
        x = start + AXIS * (value - 1) / (k - 1)
        axes.plot((x, x), (y - 0.07, y), color=INK, linewidth=1.2)
        if (value - 1) % every == 0:
            axes.text(x, y - 0.1, str(value), ha="center", va="bottom", fontsize=POINTS, color=INK)
    axes.text(start + AXIS / 2, y - 0.3, "average rank (1 is the best)", ha="center", fontsize=POINTS, color=INK)


def draw_distance(axes: Axes, start: float, distance: float, k: int, differ: bool) -> None:
    """A ruler as long as the critical difference, or what to know in its place."""
    text = f"critical difference {distance:.2f}"
    if not differ:
        text = "Friedman's test finds no difference: ranks are not told apart"
    elif distance > k - 1:
        text += ": longer than this axis, no ranks can be told apart"
    else:
        end = start + AXIS * distance / (k - 1)
        axes.plot((start, end), (0.32, 0.32), color=INK, linewidth=1.6, marker="|", markersize=8)
    axes.text(start, 0.2, text, ha="left", fontsize=POINTS, color=INK)


def bars_in_lanes(ranks: Mapping[str, float], groups: Sequence[Sequence[str]]) -> list[list[tuple[str, str]]]:
    """First and last of each group; bars that would touch are in different lanes."""
    clear = (len(ranks) - 1) * 0.15 / AXIS
    lanes: list[list[tuple[str, str]]] = []
    for group in groups:
        free = (lane for lane in lanes if ranks[lane[-1][1]] + clear < ranks[group[0]])
        lane = next(free, None)
        if lane is None:
            lanes.append(lane := [])
        lane.append((group[0], group[-1]))
    return lanes


def heat_map(values: Float[np.ndarray, "methods tasks"], methods: Sequence[str], tasks: Sequence[str]) -> bytes:
    """Accuracy of each method on each task; the colour is its distance to the task's median method.

    Args:
        values: in [0, 1]; NaN where nothing was measured: hatched.
        methods, tasks: names of rows and columns.
    """
    rows, columns = [textwrap.fill(name, 44) for name in methods], [textwrap.fill(name, 22) for name in tasks]
    line = 0.1 + max(height(name) for name in rows)
    upright = max(map(inches, columns)) < 0.62
    heading = max(map(height, columns)) if upright else max(map(inches, columns))
    size = (max(map(inches, rows)) + 0.68 * len(tasks) + 1.4, line * len(methods) + heading + 0.5)
    figure, axes = panel("", "", size=(max(size[0], 4.2), max(size[1], 2.2)))
    away = 100 * (values - medians(values))
    finite = np.abs(away[~np.isnan(away)])
    limit = min(MOST, max(1.0, float(finite.max(initial=0.0))))
    image = axes.imshow(away, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axes.grid(False)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        if math.isnan(value):
            axes.add_patch(hatched(column, row))
            continue
        ink = ink_on(*image.to_rgba(np.array([away[row, column]]))[0, :3])
        axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=ink, fontsize=POINTS)
    axes.set_xticks(range(len(tasks)), columns, rotation=0 if upright else 90, fontsize=POINTS)
    axes.set_yticks(range(len(methods)), rows, fontsize=POINTS)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    figure.set_layout_engine("constrained", h_pad=0.08)
    beyond = "both" if len(finite) and finite.max() > limit else "neither"
    bar = figure.colorbar(image, ax=axes, extend=beyond, aspect=12 if len(methods) < 8 else 24)
    bar.set_label("points above the\ntask's median", color=INK, fontsize=POINTS)
    bar.ax.tick_params(labelsize=POINTS, colors=INK)
    return png(figure)


def profile(
    shown: Sequence[str], values: Float[np.ndarray, "points tasks seeds"], tasks: Sequence[str], x: str
) -> bytes:
    """How accuracy changes along a setting: each task less its mean over the setting, and the mean of all tasks.

    Args:
        shown: the setting's values, evenly spaced.
        values: in [0, 1]; each task has a value somewhere at every point; NaN where a seed is missing.
        tasks: names.
        x: label of the axis.
    """
    by_task = 100 * np.nanmean(values, axis=2)
    away = by_task - by_task.mean(0)
    level = 100 * values.mean(1) - by_task.mean()
    figure, axes = panel(x, "points above the mean of the axis")
    places = range(len(shown))
    for k, task in enumerate(tasks):
        colour, marker = look(k)
        axes.plot(places, away[:, k], color=colour, marker=marker, markersize=5, linewidth=1, label=task)
    halves = [half_width(seeds[~np.isnan(seeds)]) or 0.0 for seeds in level]
    axes.errorbar(places, away.mean(1), halves, color=INK, linewidth=2.6, capsize=4, label="mean of tasks")
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    axes.set_xticks(places, shown)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
    return png(figure)


def medians(values: Float[np.ndarray, "methods tasks"]) -> Float[np.ndarray, " tasks"]:
    """Of the methods that have a value; a task has at least one."""
    return np.array([np.median(column[~np.isnan(column)]) for column in values.T])


def ink_on(red: float, green: float, blue: float) -> str:
    """The ink that is legible there."""
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45 else INK


def hatched(column: int, row: int) -> Rectangle:
    """A cell without a value."""
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor=FAINT, linewidth=0)


def inches(text: str) -> float:
    """Width of the longest line."""
    from matplotlib.textpath import TextPath

    return max(float(TextPath((0, 0), line, size=POINTS).get_extents().width) / 72 for line in text.split("\n"))


def height(text: str) -> float:
    """Inches that a label takes, with a gap to the next."""
    return LINE * (text.count("\n") + 1) + 0.05

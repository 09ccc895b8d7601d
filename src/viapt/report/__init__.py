"""A report of fitted methods: one Markdown file with its pictures beside it, one HTML file that carries them inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from viapt.report import plots
from viapt.report.rendering import Plot, check_libraries, render, write_pictures


@dataclass(frozen=True)
class Measured:
    """A share in [0, 1] with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In per cent, as tables show it: "74.3 [70.1, 78.2]"."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class FittedMethod:
    """What a report tells of one method.

    Attributes:
        name: of the method.
        accuracy: on the test split.
        class_accuracy: mean over classes of the accuracy within a class, in [0, 1]; NaN if unknown.
        learnable: parameters that were trained, head included.
        stored: bytes of the saved adapter's tensors.
        seconds: wall-clock time of fitting.
        losses: training loss, one per epoch.
        val_accuracies: shares in [0, 1], one per epoch.
        confusion: counts on the test split, rows the truth.
        prompt_attention: layer -> share of the class token's attention on prompts; None without prompts.
    """

    name: str
    accuracy: Measured
    class_accuracy: float
    learnable: int
    stored: int
    seconds: float
    losses: Sequence[float]
    val_accuracies: Sequence[float]
    confusion: Int[np.ndarray, "classes classes"]
    prompt_attention: Sequence[float] | None = None


@dataclass(frozen=True)
class Photo:
    """A test photo with what was predicted.

    Attributes:
        name: of the file.
        image: RGB.
        truth: class name.
        predicted: class name.
        probability: of what was predicted, in [0, 1].
        attention: what the prompts look at, on the grid of patches; None for a method without prompts.
    """

    name: str
    image: UInt8[np.ndarray, "height width 3"]
    truth: str
    predicted: str
    probability: float
    attention: Float[np.ndarray, "h w"] | None = None

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.predicted == self.truth


@dataclass(frozen=True)
class Report:
    """All that is rendered.

    Attributes:
        title: heading.
        summary: one paragraph under it.
        classes: names, in the order of the confusion matrices.
        methods: in the order of tables and legends; up to seven.
        notes: paragraphs on how to read the numbers.
        facts: name -> value: what was run on what, with which seed, and the command.
        photos: some photos of the test split.
        photos_by: the method that predicted them.
    """

    title: str
    summary: str
    classes: Sequence[str]
    methods: Sequence[FittedMethod]
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    photos: Sequence[Photo] = ()
    photos_by: str = ""


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Render `report.md`, with its pictures in a folder `pictures`, and `report.html`, which needs no other file.

    Returns:
        The paths of the two, Markdown first.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    check_libraries()
    figures, photos = draw(report), draw_photos(report)
    write_pictures([*figures, *photos], folder)
    values: dict[str, Any] = {
        "report": report,
        "figures": figures,
        "photos": list(zip(report.photos, photos, strict=True)),
    }
    paths = folder / "report.md", folder / "report.html"
    for path in paths:
        path.write_text(render(__name__, path.name, values), encoding="utf-8")
    return paths


def draw(report: Report) -> list[Plot]:
    """The figures, in the order in which they appear."""
    methods = report.methods
    losses = {m.name: m.losses for m in methods}
    validation = {m.name: m.val_accuracies or None for m in methods}
    shares = {m.name: m.prompt_attention or None for m in methods}
    points = {
        f"{m.name}: {m.learnable:,}": plots.Point(m.learnable, m.accuracy.value, m.accuracy.low, m.accuracy.high)
        for m in methods
    }
    parameters = plots.accuracy_against_parameters(points, x="learnable parameters, head included")
    figures = [
        Plot("parameters", "Test accuracy with its 95 % interval", parameters),
        Plot("loss", "Training loss", plots.lines(losses, x="epoch", y="training loss")),
    ]
    if any(validation.values()):
        drawn = plots.lines(validation, x="epoch", y="validation accuracy (%)", percent=True)
        figures.append(Plot("validation", "Validation accuracy", drawn))
    if any(shares.values()):
        drawn = plots.lines(shares, x="layer", y="attention on prompts (%)", percent=True)
        figures.append(Plot("prompt-attention", "How much of its attention the class token spends on prompts", drawn))
    for method in methods:
        drawn = plots.confusion(method.confusion, report.classes)
        figures.append(Plot(f"confusion-{method.name}", f"{method.name}: true and predicted classes", drawn))
    return figures


def draw_photos(report: Report) -> list[Plot]:
    """The photos, attention beside them, on one scale for all."""
    maps = [photo.attention for photo in report.photos if photo.attention is not None]
    highest = float(max(map(np.max, maps))) if maps else None
    return [
        Plot(f"photo-{number}", photo.name, plots.photo(photo.image, photo.attention, highest))
        for number, photo in enumerate(report.photos, start=1)
    ]

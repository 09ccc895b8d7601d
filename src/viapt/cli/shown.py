"""What evaluation, prediction and inspection say on a terminal, or print as JSON and CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.comparison import Comparison
    from viapt.evaluation import Evaluation
    from viapt.inference import Prediction
    from viapt.inspection import Inspection

FAILED_IMAGES = 3  # the exit code


def show_evaluation(found: Evaluation) -> None:
    """The numbers, then a table of classes."""
    from rich.table import Table

    from viapt.tables import show

    summary = Table("", "value", f"{100 * found.confidence:g} % interval", box=None, pad_edge=False)
    estimates = {"accuracy": found.accuracy, "top-5 accuracy": found.top5, "calibration error": found.calibration_error}
    for name, estimate in estimates.items():
        if estimate is not None:
            summary.add_row(name, f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}")
    summary.add_row("loss", f"{found.loss:.4f}")
    if found.rounds > 1:
        summary.add_row("passes for each image", f"{found.rounds:.2f}")
    small = len(found.classes) <= 12
    classes = Table("class", "images", "accuracy", "interval", box=None, pad_edge=False)
    for name in found.classes if small else ():
        classes.add_column(f"-> {name}", justify="right")
    for name, row in zip(found.classes, found.confusion, strict=True):
        estimate = found.per_class[name]
        value = "-" if estimate is None else f"{estimate.value:.4f}"
        interval = "-" if estimate is None else f"{estimate.low:.4f} to {estimate.high:.4f}"
        classes.add_row(name, str(sum(row)), value, interval, *(map(str, row) if small else ()))
    show(f"{found.count} images, policy {found.policy}", summary, "", classes)


def show_comparison(found: Comparison) -> None:
    """What the change to the model did."""
    from rich.table import Table

    from viapt.tables import show

    change, agreement = found.accuracy_change, found.agreement
    before, after = found.images_per_second
    table = Table("int8", "value", f"{100 * found.after.confidence:g} % interval", box=None, pad_edge=False)
    table.add_row("accuracy before", f"{found.before.accuracy.value:.4f}")
    table.add_row("change of accuracy", f"{change.value:+.4f}", f"{change.low:+.4f} to {change.high:+.4f}")
    table.add_row("same class as before", f"{agreement.value:.4f}", f"{agreement.low:.4f} to {agreement.high:.4f}")
    table.add_row("images lost, gained", f"{found.lost}, {found.gained}")
    table.add_row("images per second", f"{before:.1f} -> {after:.1f}", f"x {after / before:.2f}")
    show("", table)


def show_prediction(
    classes: list[str], files: list[str], result: Prediction, form: str, *, passes: bool = False
) -> None:
    """One row for each image; with `passes`, how many it took."""
    from rich.table import Table

    from viapt.tables import show

    rows = list(rows_of(classes, files, result, passes))
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if form == "csv":
        spread = [f"spread:{name}" for name in classes] if result.spread is not None else []
        writer = csv.writer(sys.stdout, lineterminator="\n")
        taken = ["passes"] if passes else []
        header = ["path", "label", "probability", *(f"probability:{name}" for name in classes), *spread, *taken]
        writer.writerow(header)
        for row in rows:
            numbers = [*row["probabilities"].values(), *row.get("spread", {}).values(), *(row[name] for name in taken)]
            writer.writerow([row["path"], row["label"], row["probability"], *numbers])
        return
    table = Table("image", "label", "probability", box=None, pad_edge=False)
    if result.spread is not None:
        table.add_column("spread")
    if passes:
        table.add_column("passes")
    for row in rows:
        spread = [f"{row['spread'][row['label']]:.4f}"] if "spread" in row else []
        taken = [str(row["passes"])] if passes else []
        table.add_row(row["path"], row["label"], f"{row['probability']:.4f}", *spread, *taken)
    show(table)


def rows_of(classes: list[str], files: list[str], result: Prediction, passes: bool) -> Iterator[dict[str, Any]]:
    """What is known of each image, in plain JSON types."""
    for k, file in enumerate(files):
        probabilities = dict(zip(classes, result.probabilities[k].tolist(), strict=True))
        label = result.labels[k]
        row = {"path": file, "label": label, "probability": probabilities[label], "probabilities": probabilities}
        if result.spread is not None:
            row["spread"] = dict(zip(classes, result.spread[k].tolist(), strict=True))
        if passes and result.rounds is not None:
            row["passes"] = int(result.rounds[k])
        yield row


def show_inspection(adapter: Path, config: dict[str, Any], found: Inspection) -> None:
    """The artefact, its parts, its layers."""
    from rich.table import Table

    from viapt.tables import show

    backbone = config["backbone"]
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_row("adapter", str(adapter))
    facts.add_row("classes", f"{len(config['classes'])}: {', '.join(config['classes'])}")
    facts.add_row("backbone", f"{backbone['name']}, {backbone['precision']}, {backbone['fingerprint']}")
    facts.add_row("images", in_words(backbone["preprocessing"]))
    facts.add_row("method", f"{config['method']}: {in_words(config['method_arguments'])}")
    facts.add_row("training", in_words(config["training"] or {}) or "not told")
    facts.add_row("versions", in_words(config["versions"]))
    parts = Table("part", "numbers", box=None, pad_edge=False)
    for name, count in found.parameters.items():
        parts.add_row(name, f"{count:,}")
    parts.add_row("learnable", f"{found.learnable:,}")
    shares = {
        "variance kept, in training": found.explained,
        "variance kept, here": found.kept_variance,
        "energy kept, here": found.kept_energy,
        "attention on prompts": found.prompt_attention,
    }
    known = {name: values for name, values in shares.items() if values is not None}
    layers = Table("layer", *known, box=None, pad_edge=False)
    for number, row in enumerate(zip(*known.values(), strict=True), start=1):
        layers.add_row(str(number), *("-" if share is None else f"{100 * share:.2f} %" for share in row))
    show(facts, "", parts, *(["", layers] if known else []))


def in_words(values: dict[str, Any]) -> str:
    """Names and values, one after the other."""
    shown = {key: in_words(value) if isinstance(value, dict) else value for key, value in values.items()}
    return ", ".join(
        f"{key} ({value})" if isinstance(values[key], dict) else f"{key} {value}" for key, value in shown.items()
    )


def none_readable(bad: list[str]) -> DataError:
    """What to raise if all images are bad ones."""
    return DataError(f"none of {len(bad)} images can be read: {'; '.join(bad[:5])}")


def report_bad(count: int, bad: list[str]) -> None:
    """Name the images that cannot be read, if there are any, and exit with the code for that."""
    from viapt.tables import say

    if bad:
        say(f"{len(bad)} of {count} images cannot be read:", *bad)
        raise typer.Exit(FAILED_IMAGES)

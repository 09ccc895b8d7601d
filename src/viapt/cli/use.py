"""`viapt evaluate`, `viapt predict`, `viapt inspect`: what is done with an adapter."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from viapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from viapt.evaluation import Evaluation
    from viapt.inference import Prediction
    from viapt.inspection import Inspection
    from viapt.model import PromptedClassifier

Adapter = Annotated[Path, typer.Argument(help="Folder of a run, or of a saved adapter.")]
Policy = Annotated[
    Literal["mean", "fixed", "multi"],
    typer.Option(help="Instance prompts: their mean, one sample, or several samples and their spread."),
]
Rounds = Annotated[int | None, typer.Option(help="Samples of --policy multi (default: 5).")]
Seed = Annotated[int | None, typer.Option(help="Of the samples of --policy fixed and multi (default: 0).")]
Weights = Annotated[
    Path | None, typer.Option(help="Weights of the backbone, where the file is not where it was in training.")
]
BatchSize = Annotated[int, typer.Option(help="Images in one pass.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IMAGE_BATCH = 64

FAILED_IMAGES = 3


def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Argument(help="Labelled images, as for viapt fit.")],
    part: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Of data that are split, or that the adapter's run split (default: test)."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All images, those included that the adapter's run trained on.")
    ] = False,
    policy: Policy = "mean",
    rounds: Rounds = None,
    seed: Seed = None,
    batch_size: BatchSize = 32,
    weights: Weights = None,
    on_bad_image: Annotated[Literal["error", "skip"], typer.Option(help="Images that cannot be read.")] = "error",
    as_json: AsJson = False,
) -> None:
    """Measure an adapter on labelled images.

    Of data that the adapter's run split by itself, the test split is taken: nobody tests on what was trained on.
    """
    from viapt import evaluation
    from viapt.artifact import load
    from viapt.data import load_evaluation
    from viapt.runs import split_of
    from viapt.tables import say

    if part and everything:
        raise ConfigError("--all and --part", expected="one of them")
    rounds, seed = sampled(policy, rounds, seed)
    model = load(adapter, weights=weights)
    check_policy(model, policy)
    split = None if everything else split_of(adapter, data, model.classes)
    dataset = load_evaluation(
        data, model.backbone.preprocessing, model.classes, part=part, split=split, on_bad_image=on_bad_image
    )
    if split is not None:
        say(
            f"{data} is what this adapter was fitted to: evaluating its {part or 'test'} split (--all takes everything)"
        )
    if dataset.skipped:
        say(f"skipped: {len(dataset.skipped)} images that cannot be read")
    found = evaluation.evaluate(model, dataset, policy=policy, rounds=rounds, seed=seed, batch_size=batch_size)
    if as_json:
        result = found.to_dict() | {"data_hash": dataset.content_hash, "skipped_images": len(dataset.skipped)}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_evaluation(found)


def predict(
    adapter: Adapter,
    paths: Annotated[list[str], typer.Argument(help="Image files, folders of them, or patterns such as '*.jpg'.")],
    policy: Policy = "mean",
    rounds: Rounds = None,
    seed: Seed = None,
    batch_size: BatchSize = 32,
    weights: Weights = None,
    form: Annotated[Literal["table", "json", "csv"], typer.Option("--format", help="What is printed.")] = "table",
) -> None:
    """Classify images; with --policy multi, say how far the samples spread.

    An image that cannot be read is reported by name and does not stop the others; the exit code is then 3.
    """
    from viapt.artifact import load
    from viapt.cli.paths import image_files
    from viapt.data import read_image
    from viapt.tables import say

    rounds, seed = sampled(policy, rounds, seed)
    files, good, bad = image_files(paths), [], []

    def readable() -> Iterator[Image.Image]:
        for file in files:
            try:
                image = read_image(file)
            except DataError as error:
                bad.append(error.found)
                continue
            good.append(file)
            yield image

    model = load(adapter, weights=weights)
    check_policy(model, policy)
    try:
        result = model.predict(readable(), policy=policy, rounds=rounds, seed=seed, batch_size=batch_size)
    except DataError:
        if good or not bad:
            raise
        raise DataError(f"none of {len(bad)} images can be read: {'; '.join(bad[:5])}") from None
    show_prediction(model.classes, good, result, form)
    if bad:
        say(f"{len(bad)} of {len(files)} images cannot be read:", *bad)
        raise typer.Exit(FAILED_IMAGES)


def inspect(
    adapter: Adapter,
    images: Annotated[
        list[str] | None, typer.Option(help="Images to measure attention and kept subspaces on. May be repeated.")
    ] = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter is made of: its parts, what each layer keeps, and with --images who looks at the prompts."""
    import torch

    from viapt.adapter_files import read_config
    from viapt.artifact import load
    from viapt.cli.paths import image_files
    from viapt.data import eval_transform, read_image
    from viapt.inspection import inspect_model

    config = read_config(adapter)
    files = image_files(images) if images else []
    if len(files) > IMAGE_BATCH:
        raise ConfigError(
            f"{len(files)} images to inspect", expected=f"at most {IMAGE_BATCH}: they are looked at together"
        )
    model = load(adapter, weights=weights)
    transform = eval_transform(model.backbone.preprocessing)
    batch = torch.stack([transform(read_image(file)) for file in files]) if files else None
    found = inspect_model(model, batch)
    if as_json:
        print(json.dumps({"config": config, "inspection": found.to_dict()}, indent=2, ensure_ascii=False))
    else:
        show_inspection(adapter, config, found)


def sampled(policy: str, rounds: int | None, seed: int | None) -> tuple[int, int]:
    """Rounds and seed of a policy.

    Raises:
        ConfigError: one without effect is given.
    """
    if rounds is not None and policy != "multi":
        raise ConfigError(f"--rounds has no effect on --policy {policy}", expected="--policy multi")
    if seed is not None and policy == "mean":
        raise ConfigError("--seed has no effect on --policy mean", expected="--policy fixed or multi")
    return 5 if rounds is None else rounds, 0 if seed is None else seed


def check_policy(model: PromptedClassifier, policy: str) -> None:
    """Refuse to sample where nothing can be sampled.

    Raises:
        ConfigError: the method has no instance prompts.
    """
    if policy != "mean" and model.method.num_instance_prompts == 0:
        raise ConfigError(
            f"--policy {policy} has no effect on {model.method.name} without instance prompts", expected="--policy mean"
        )


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


def show_prediction(classes: list[str], files: list[Path], result: Prediction, form: str) -> None:
    """One row for each image."""
    from rich.table import Table

    from viapt.tables import show

    rows = list(rows_of(classes, files, result))
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if form == "csv":
        spread = [f"spread:{name}" for name in classes] if result.spread is not None else []
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "label", "probability", *(f"probability:{name}" for name in classes), *spread])
        for row in rows:
            numbers = [*row["probabilities"].values(), *row.get("spread", {}).values()]
            writer.writerow([row["path"], row["label"], row["probability"], *numbers])
        return
    table = Table("image", "label", "probability", box=None, pad_edge=False)
    if result.spread is not None:
        table.add_column("spread")
    for row in rows:
        spread = [f"{row['spread'][row['label']]:.4f}"] if "spread" in row else []
        table.add_row(row["path"], row["label"], f"{row['probability']:.4f}", *spread)
    show(table)


def rows_of(classes: list[str], files: list[Path], result: Prediction) -> Iterator[dict[str, Any]]:
    """What is known of each image, in plain JSON types."""
    for k, file in enumerate(files):
        probabilities = dict(zip(classes, result.probabilities[k].tolist(), strict=True))
        label = result.labels[k]
        row = {"path": str(file), "label": label, "probability": probabilities[label], "probabilities": probabilities}
        if result.spread is not None:
            row["spread"] = dict(zip(classes, result.spread[k].tolist(), strict=True))
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

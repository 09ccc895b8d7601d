"""`viapt evaluate`, `viapt predict`, `viapt inspect`: what is done with an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from viapt.cli.batch import Address, BatchOptions, EngineName, Gpus, Out, Overwrite, Part, Workers
from viapt.cli.remote import check_remote, predict_elsewhere
from viapt.cli.shown import (
    FAILED_IMAGES,
    none_readable,
    report_bad,
    show_comparison,
    show_evaluation,
    show_inspection,
    show_prediction,
)
from viapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from viapt.comparison import Comparison
    from viapt.evaluation import LabelledImages
    from viapt.exported import ExportedModel
    from viapt.model import PromptedClassifier

Adapter = Annotated[Path, typer.Argument(help="Folder of a run, or of a saved adapter; or hf://user/name.")]
Policy = Annotated[
    Literal["mean", "fixed", "multi"],
    typer.Option(help="Instance prompts: their mean, one sample, or several samples and their spread."),
]
Rounds = Annotated[int | None, typer.Option(help="Samples of --policy multi (default: 5).")]
Adaptive = Annotated[
    bool, typer.Option("--adaptive", help="Of --policy multi: stop an image's samples when its label is settled.")
]
MaxDisagreement = Annotated[
    float | None,
    typer.Option(help="How often --adaptive may change the label of all samples, at most (default: 0.01)."),
]
Seed = Annotated[int | None, typer.Option(help="Of the samples of --policy fixed and multi (default: 0).")]
Weights = Annotated[
    Path | None, typer.Option(help="Weights of the backbone, where the file is not where it was in training.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the token of the server (default: the environment variable VIAPT_TOKEN)."),
]
BatchSize = Annotated[int, typer.Option(help="Images in one pass.")]
Quantise = Annotated[
    Literal["int8"] | None,
    typer.Option(
        help="Compute the backbone's linear layers in int8: faster on CPUs, at a cost that evaluate measures."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the blocks by torch.compile: slow to start, then perhaps faster.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IMAGE_BATCH = 64


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
    adaptive: Adaptive = False,
    max_disagreement: MaxDisagreement = None,
    seed: Seed = None,
    batch_size: BatchSize = 32,
    weights: Weights = None,
    quantise: Quantise = None,
    compile: Compile = False,
    on_bad_image: Annotated[Literal["error", "skip"], typer.Option(help="Images that cannot be read.")] = "error",
    as_json: AsJson = False,
) -> None:
    """Measure an adapter on labelled images.

    Of data that the adapter's run split by itself, the test split is taken: nobody tests on what was trained on. With
    --quantise the model is measured before and after, and compared image by image.
    """
    from viapt import evaluation
    from viapt.data import load_evaluation
    from viapt.runs import split_of
    from viapt.tables import say

    if part and everything:
        raise ConfigError("--all and --part", expected="one of them")
    rounds, seed = sampled(policy, rounds, seed)
    model = load_on_device(adapter, weights, quantise, compile)
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
    how = {"policy": policy, "rounds": rounds, "seed": seed, "batch_size": batch_size}
    if quantise and adaptive:
        raise ConfigError("--quantise with --adaptive", expected="one of the two: rounds are compared one by one")
    compared = compare_quantised(model, dataset, **how) if quantise else None
    how |= adapted(adaptive, max_disagreement)
    found = compared.after if compared else evaluation.evaluate(model, dataset, **how)
    if as_json:
        result = found.to_dict() | {"data_hash": dataset.content_hash, "skipped_images": len(dataset.skipped)}
        if compared:
            result |= {"quantised": quantise, "compared": compared.to_dict()}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show_evaluation(found)
        if compared:
            show_comparison(compared)


def predict(
    adapter: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, or of a saved adapter; hf://user/name; an exported file; or the name of a task of "
            "--server."
        ),
    ],
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders of them, patterns such as '*.jpg', lists (*.txt), WebDataset shards (*.tar; "
            "'s-{000..146}.tar')."
        ),
    ],
    policy: Annotated[
        Literal["mean", "fixed", "multi"] | None,
        typer.Option(
            help="Instance prompts: their mean (default), one sample, or several samples and their spread."
            " An exported file has its own."
        ),
    ] = None,
    rounds: Rounds = None,
    adaptive: Adaptive = False,
    max_disagreement: MaxDisagreement = None,
    seed: Seed = None,
    batch_size: BatchSize = 32,
    weights: Weights = None,
    quantise: Quantise = None,
    compile: Compile = False,
    server: Annotated[str | None, typer.Option(help="Address of a viapt serve that is to do it: http://...")] = None,
    token_file: TokenFile = None,
    form: Annotated[
        Literal["table", "json", "csv"] | None, typer.Option("--format", help="What is printed (default: table).")
    ] = None,
    out: Out = None,
    part: Part = None,
    overwrite: Overwrite = False,
    engine: EngineName = None,
    address: Address = None,
    workers: Workers = None,
    gpus: Gpus = None,
) -> None:
    """Classify images; with --policy multi, say how far the samples spread.

    An image that cannot be read is reported by name and does not stop the others; the exit code is then 3.
    """
    from viapt.cli.batch import Opened, predict_in_batches
    from viapt.data.streams import references

    if token_file and not server:
        raise ConfigError("--token-file has no effect without --server", expected="--server URL")
    chosen = BatchOptions(part, overwrite, engine, address, workers, gpus)
    chosen.check(out, form)
    local = {"weights": weights, "quantise": quantise, "compile": compile, "adaptive": adaptive, "out": out}
    if server is not None:
        check_remote(local | {"max-disagreement": max_disagreement})
    files = [] if out else list(dict.fromkeys(references(paths)))
    if server is not None:
        rounds, seed = sampled(policy or "mean", rounds, seed)
        ask = {"policy": policy or "mean", "rounds": rounds, "seed": seed, "batch_size": batch_size}
        predict_elsewhere(server, token_file, str(adapter), files, form or "table", ask)
        return
    opening = partial(open_model, adapter, policy, rounds, seed, weights, quantise, compile)
    good, bad = [], []

    def readable() -> Iterator[Image.Image]:
        for file in files:
            try:
                image = file.read()
            except DataError as error:
                bad.append(error.found)
                continue
            good.append(file.name)
            yield image

    model, options = opening()
    rule: dict[str, Any] = {}
    if hasattr(model, "round_noise"):
        rule = adapted(adaptive, max_disagreement)
    elif adaptive or max_disagreement is not None:
        raise ConfigError("--adaptive and --max-disagreement have no effect on an exported file", expected="an adapter")
    if out is not None:
        if predict_in_batches(Opened(model, options, opening, rule), paths, out, batch_size, chosen):
            raise typer.Exit(FAILED_IMAGES)
        return
    try:
        result = model.predict(readable(), batch_size=batch_size, **options, **rule)
    except DataError:
        if good or not bad:
            raise
        raise none_readable(bad) from None
    show_prediction(model.classes, good, result, form or "table", passes=adaptive)
    report_bad(len(files), bad)


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
    from viapt.hub import adapter_folder
    from viapt.inspection import inspect_model

    adapter = adapter_folder(adapter)
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


def load_on_device(adapter: Path, weights: Path | None, quantise: str | None, compile: bool) -> PromptedClassifier:
    """An adapter's model, where it computes fastest; compiled if wanted, not yet quantised.

    Raises:
        ConfigError: both are wanted.
    """
    from viapt.artifact import load
    from viapt.device import default_device

    if quantise and compile:
        raise ConfigError("--quantise with --compile", expected="one of the two: layers in int8 are not compiled")
    model = load(adapter, weights=weights).to(default_device())
    model.backbone.compile_blocks(compile)
    return model


def compare_quantised(model: PromptedClassifier, dataset: LabelledImages, **how: Any) -> Comparison:
    """A model and what quantisation makes of it, on the same images."""
    from viapt.comparison import compare
    from viapt.quantisation import quantise

    return compare(model, quantise(model), dataset, **how)


def open_model(
    path: Path,
    policy: str | None,
    rounds: int | None,
    seed: int | None,
    weights: Path | None,
    quantise: str | None,
    compile: bool,
) -> tuple[PromptedClassifier | ExportedModel, dict[str, Any]]:
    """An adapter or an exported file; and policy, rounds and seed for its `predict`.

    Raises:
        ConfigError: an option that has no effect, or a policy that an exported file does not have.
    """
    from viapt.exported import load_exported
    from viapt.quantisation import quantise as quantised
    from viapt.runtimes import is_exported

    if is_exported(path):
        for name, given in (("weights", weights), ("quantise", quantise), ("compile", compile)):
            if given:
                raise ConfigError(
                    f"--{name} has no effect on an exported file, which holds its own weights", expected=f"no --{name}"
                )
        model = load_exported(path)
        model.check(policy, seed)
        return model, {"rounds": sampled(model.policy, rounds, seed)[0], "seed": seed}
    policy = policy or "mean"
    rounds, seed = sampled(policy, rounds, seed)
    model = load_on_device(path, weights, quantise, compile)
    check_policy(model, policy)
    return quantised(model) if quantise else model, {"policy": policy, "rounds": rounds, "seed": seed}


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


def adapted(adaptive: bool, max_disagreement: float | None) -> dict[str, Any]:
    """Arguments of adaptive rounds; those that were not given keep their defaults."""
    given = {} if max_disagreement is None else {"max_disagreement": max_disagreement}
    return {"adaptive": adaptive} | given


def check_policy(model: PromptedClassifier, policy: str) -> None:
    """Refuse to sample where nothing can be sampled.

    Raises:
        ConfigError: the method samples no prompts.
    """
    if policy != "mean" and model.method.sampled_prompts == 0:
        raise ConfigError(
            f"--policy {policy} has no effect on {model.method.name} without sampled prompts", expected="--policy mean"
        )

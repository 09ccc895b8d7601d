"""`viapt fit`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

model_option = partial(typer.Option, rich_help_panel="Model")
data_option = partial(typer.Option, rich_help_panel="Data")
training_option = partial(typer.Option, rich_help_panel="Training")
run_option = partial(typer.Option, rich_help_panel="Run")

Data = Annotated[str, typer.Argument(help="Folder of images (a folder per class, or train/val/test), .csv or .jsonl.")]
Backbone = Annotated[
    str, model_option(help="A timm transformer, packaged:vits14, local-dir:PATH or transformers:PATH.")
]
Out = Annotated[Path, run_option(help="Folder of the run: adapter and result.")]
Weights = Annotated[Path | None, model_option(help="Weights of the backbone, a .safetensors file.")]
ImageSize = Annotated[int | None, model_option(help="Side of the images in pixels (default: the weights' own).")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    model_option(help="Of the frozen backbone; auto: bfloat16 where it is fast."),
]
Method = Annotated[str, model_option(help="viapt, vpt-deep, lora, linear ...: see docs/methods.md.")]
Set = Annotated[
    list[str] | None,
    model_option("--set", metavar="KEY=VALUE", help="An argument of the method: num_prompts=5. May be repeated."),
]
Augmentation = Annotated[str, data_option(help="none, light, standard or strong.")]
OnBadImage = Annotated[Literal["error", "skip"], data_option(help="What to do about images that cannot be read.")]
ValFraction = Annotated[
    float | None, data_option(help="Share of each class that validates, if the data are not split (default: 0.15).")
]
TestFraction = Annotated[float | None, data_option(help="Share of each class that tests, likewise (default: 0.15).")]
Workers = Annotated[int, data_option(help="Processes that load images.")]
Epochs = Annotated[int, training_option(help="Passes over the training images.")]
BatchSize = Annotated[int, training_option(help="Images in an optimizer step, over all processes.")]
Accumulate = Annotated[int, training_option(help="Parts in which a batch is computed: less memory.")]
LearningRate = Annotated[float | None, training_option("--lr", help="The highest (default: the method's own).")]
Optimizer = Annotated[Literal["adamw", "sgd"], training_option(help="sgd has a momentum of 0.9 and needs --lr.")]
WeightDecay = Annotated[float, training_option(help="Of matrices: prompts, generator, head.")]
WarmupEpochs = Annotated[float | None, training_option(help="Of linear warm-up (default: a tenth of all epochs).")]
Clip = Annotated[float | None, training_option(help="Largest norm of the gradient (default: none).")]
Selection = Annotated[
    Literal["last", "best-val"], training_option(help="Which weights to keep: the last, or the best in validation.")
]
Checkpointing = Annotated[
    bool, training_option("--checkpointing", help="Recompute activations: less memory, more time.")
]
Compile = Annotated[
    bool, training_option("--compile", help="Compile the blocks by torch.compile: slow to start, then perhaps faster.")
]
Cache = Annotated[
    Literal["auto", "memory", "disk", "none"],
    training_option(help="Embed each image once, for --augmentation none (auto: in memory, for linear)."),
]
Seed = Annotated[int, training_option(help="Of split, initial values, order, augmentation and noise.")]
LogWith = Annotated[
    list[str] | None,
    run_option(metavar="NAME", help="Log to wandb or mlflow, too. May be repeated."),
]
TensorBoard = Annotated[bool, run_option("--tensorboard", help="Write TensorBoard files, too.")]
Overwrite = Annotated[bool, run_option("--overwrite", help="Forget the run that --out holds.")]


def fit(
    data: Data,
    backbone: Backbone,
    out: Out,
    method: Method = "viapt",
    settings: Set = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    precision: Precision = "auto",
    augmentation: Augmentation = "standard",
    on_bad_image: OnBadImage = "error",
    val_fraction: ValFraction = None,
    test_fraction: TestFraction = None,
    workers: Workers = 0,
    epochs: Epochs = 10,
    batch_size: BatchSize = 32,
    accumulate: Accumulate = 1,
    lr: LearningRate = None,
    optimizer: Optimizer = "adamw",
    weight_decay: WeightDecay = 0.01,
    warmup_epochs: WarmupEpochs = None,
    clip: Clip = None,
    selection: Selection = "last",
    checkpointing: Checkpointing = False,
    compile: Compile = False,
    cache: Cache = "auto",
    seed: Seed = 0,
    tensorboard: TensorBoard = False,
    log_with: LogWith = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit prompts and a classifier to your images; the backbone stays frozen.

    The same command resumes a run that was interrupted. The test split is read once, at the end. On several devices:
    accelerate launch --multi_gpu --num_processes N -m viapt fit ...
    """
    from rich.console import Console

    from viapt.cli.settings import parse_settings
    from viapt.runs import Settings, run

    asked = Settings(
        backbone=backbone,
        weights=str(weights) if weights else None,
        image_size=image_size,
        precision=precision,
        method=method,
        options=parse_settings(settings or [], method),
        augmentation=augmentation,
        on_bad_image=on_bad_image,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        clip=clip,
        selection=selection,
        seed=seed,
    )
    _, record = run(
        data,
        out,
        asked,
        overwrite=overwrite,
        workers=workers,
        checkpointing=checkpointing,
        compile=compile,
        cache=None if cache == "none" else cache,
        tensorboard=tensorboard,
        log_with=log_with or (),
        console=Console(stderr=True, highlight=False),
    )
    print(f"{record['learnable_parameters']:,} learnable parameters, {record['seconds']:.0f} s")
    if record["val_accuracy"] is not None:
        print(f"validation accuracy {record['val_accuracy']:.4f}")
    if record["test"]:
        accuracy = record["test"]["accuracy"]
        print(f"test accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}]")
    print(f"adapter and result: {out}")

"""A run is a folder: what was asked for, how the data were split, the training as far as it is, and what came of it.

    run.json                what was asked for (`Settings`), and the precision that this meant on the first day
    splits.json             which image trains, validates, tests; hashes of the contents; images that were left out
    history.jsonl           a line per epoch
    checkpoints/            until the run is finished
    adapter_*, README.md    what was learned
    result.json             one result record; its presence says that the run is finished

The same call resumes a run that was interrupted, whenever that was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from viapt.acceleration import accelerated
from viapt.backbones import create_backbone
from viapt.caching import Cache
from viapt.checkpoint import numbers, replace_file
from viapt.create import create_model
from viapt.data import DataSplits, Split, load_data, read_source
from viapt.device import default_device, describe_device
from viapt.distributed import agree, broadcast, is_main
from viapt.errors import ArtifactError, ConfigError
from viapt.model import PromptedClassifier
from viapt.precision import DTYPES, Choice, choose_precision
from viapt.training import CHECKPOINTS, HISTORY, discard_checkpoints, fit

RUN, SPLITS, RESULT = "run.json", "splits.json", "result.json"
CHOSEN = "chosen"  # beside the settings in run.json


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, the data aside: see `create_model`, `load_data` and `fit`.

    Attributes:
        options: keyword arguments of the method.
        val_fraction, test_fraction: of data that do not come split.
        seed: of the split, the initial values, augmentation, order and noise.
    """

    backbone: str
    weights: str | None = None
    image_size: int | None = None
    precision: str = "auto"
    method: str = "viapt"
    options: dict[str, Any] = field(default_factory=dict)
    augmentation: str = "standard"
    on_bad_image: str = "error"
    val_fraction: float | None = None
    test_fraction: float | None = None
    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    lr: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup_epochs: float | None = None
    clip: float | None = None
    selection: str = "last"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def training(self) -> dict[str, Any]:
        """The arguments that `fit` takes."""
        names = "epochs", "batch_size", "accumulate", "lr", "optimizer", "weight_decay", "warmup_epochs", "clip"
        return {name: getattr(self, name) for name in (*names, "selection", "seed")}


def run(
    data: str | Path,
    out: Path,
    settings: Settings,
    *,
    task: str | None = None,
    overwrite: bool = False,
    workers: int = 0,
    checkpointing: bool = False,
    compile: bool = False,
    cache: Cache | None = "auto",
    tensorboard: bool = False,
    log_with: Sequence[str] = (),
    console: Console | None = None,
) -> tuple[PromptedClassifier, dict[str, Any]]:
    """Fit a method to data, test it once, save it; or go on with a run that was interrupted.

    Args:
        data: a folder, or a .csv or .jsonl file; see `read_source`.
        out: the run's folder: new, empty, or that of the same run.
        settings: what decides the outcome.
        task: what the result record calls the data; by default the name of the folder or file.
        overwrite: forget the run that `out` holds.
        workers, checkpointing, compile, cache, tensorboard, log_with: see `fit`.
        console: where progress is shown; None for silence.

    Launched in several processes, all fit together (see `fit`), and the main one writes.

    Returns:
        The fitted model, and the result record.

    Raises:
        ConfigError: `out` holds a finished run, another run, or other files; a setting without effect.
        ViaptError: see `create_model`, `load_data`, `fit`.
        KeyboardInterrupt: after Ctrl-C; what was trained is saved.
    """
    accelerated()  # joins the other processes, if several were launched
    console = console if is_main() else None
    with agree():
        precision = claim(out, settings, overwrite) if is_main() else None
        stored = stored_split(out) if is_main() else None
    stored, precision = the_same(stored), the_same_choice(precision)
    with agree():
        backbone = create_backbone(settings.backbone, weights=settings.weights, image_size=settings.image_size)
        splits = load(data, settings, stored, backbone.preprocessing, console)
        if stored is None and is_main():
            write_json(out / SPLITS, splits.to_dict())
        model = create_model(
            backbone,
            settings.method,
            classes=splits.classes,
            precision=precision.name,
            seed=settings.seed,
            **settings.options,
        )
        if checkpointing and model.method.same_for_ever == "features":
            raise ConfigError(
                f"checkpointing has no effect on {settings.method}", expected="a method that learns more than the head"
            )
    device = describe_device(default_device())
    if console is not None:
        console.print(f"backbone in {precision}; {device}", markup=False, highlight=False, soft_wrap=True)
    history = fit(
        model,
        splits.train,
        splits.val,
        test=splits.test,
        **settings.training,
        workers=workers,
        checkpointing=checkpointing,
        compile=compile,
        cache=cache,
        out=out,
        overwrite=overwrite,
        config={"augmentation": settings.augmentation},
        tensorboard=tensorboard,
        log_with=log_with,
        progress=console is not None,
    )
    record = history.record(task=task or Path(data).resolve().stem, method=settings.method)
    record["protocol"] = record["protocol"] | {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "image_size": list(backbone.preprocessing.image_size),
        "options": model.method.config(),
        "augmentation": settings.augmentation,
        "policy": "mean",
        "precision_reason": precision.reason,
        "device": device,
    }
    record["data_hash"] = splits.content_hash
    record["images"] = {part: len(dataset) for part, dataset in splits.parts.items()}
    record["skipped_images"] = len(splits.skipped)
    record["test"] = history.test.to_dict() if history.test else None
    with agree():
        if is_main():
            model.save_pretrained(out, training=history.protocol | {"augmentation": settings.augmentation})
            write_json(out / RESULT, record)
            discard_checkpoints(out)
    return model, record


def claim(out: Path, settings: Settings, overwrite: bool) -> Choice:
    """Make `out` the folder of this run, or make sure that it is; the precision that the run has.

    That is decided once: a run that is resumed goes on as it began, even if the machine now seems faster or slower.

    Raises:
        ConfigError: it holds something else.
    """
    mine = settings.to_dict()
    begun = (out / HISTORY).exists() or bool(numbers(out / CHECKPOINTS)) or (out / RESULT).exists()
    if (out / RUN).exists() and begun and not overwrite:
        theirs = read_json(out / RUN)
        changed = [
            f"{key} {theirs.get(key)!r} there, {value!r} here"
            for key, value in mine.items()
            if theirs.get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"{out} holds a run with other settings: {'; '.join(changed)}",
                remedy="choose another folder, or overwrite it with --overwrite",
            )
        if (out / RESULT).exists():
            raise ConfigError(
                f"{out} holds this run, finished", remedy="use it as it is, or do it again with --overwrite"
            )
        return chosen_before(out, theirs) or choose_precision(settings.precision)
    if (out / RUN).exists():
        for name in (RESULT, SPLITS, RUN):
            (out / name).unlink(missing_ok=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no run", expected="a folder that is new or empty")
    choice = choose_precision(settings.precision)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RUN, mine | {CHOSEN: {"precision": choice.name, "reason": choice.reason}})
    return choice


def chosen_before(out: Path, recorded: dict[str, Any]) -> Choice | None:
    """The precision that a run began with; None if it was begun by a version that did not write it down.

    Raises:
        ArtifactError: it is damaged.
    """
    chosen = recorded.get(CHOSEN)
    if chosen is None:
        return None
    if not isinstance(chosen, dict) or chosen.get("precision") not in DTYPES or not chosen.get("reason"):
        raise ArtifactError(f"{out / RUN} has {CHOSEN} = {chosen!r}", remedy="--overwrite the run")
    return Choice(DTYPES[chosen["precision"]], str(chosen["reason"]))


def finished(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The result record of a run, if it is finished and had these settings."""
    if not (out / RESULT).exists() or settings.to_dict() != without(CHOSEN, read_json(out / RUN)):
        return None
    return read_json(out / RESULT)


def without(key: str, content: dict[str, Any]) -> dict[str, Any]:
    """The same, one key left out."""
    return {name: value for name, value in content.items() if name != key}


def load(
    data: str | Path, settings: Settings, stored: Split | None, preprocessing: Any, console: Console | None
) -> DataSplits:
    """The data, split as this run split them before, or split now."""
    with reading(console) as progress:
        splits = load_data(
            data,
            preprocessing,
            augmentation=settings.augmentation,
            seed=settings.seed,
            val_fraction=settings.val_fraction if stored is None else None,
            test_fraction=settings.test_fraction if stored is None else None,
            split=stored,
            on_bad_image=settings.on_bad_image,
            progress=progress,
        )
    if console is not None:
        tell(splits, console)
    return splits


def tell(splits: DataSplits, console: Console) -> None:
    """What was read, and what was not."""
    sizes = ", ".join(f"{len(dataset)} to {verb(part)}" for part, dataset in splits.parts.items())
    console.print(f"{splits.description}: {len(splits.classes)} classes, {sizes}", markup=False, soft_wrap=True)
    for reason, count in splits.ignored.items():
        console.print(f"ignored: {count} {reason}", markup=False, soft_wrap=True)
    if splits.skipped:
        console.print(f"skipped: {len(splits.skipped)} images that cannot be read", markup=False)
        for name in splits.skipped[:10]:
            console.print(f"  {name}", markup=False, soft_wrap=True)
    if splits.repeated:
        console.print(f"{splits.repeated} validation or test images are copies of training images", markup=False)


def verb(part: str) -> str:
    """What a part is for."""
    return {"train": "train on", "val": "validate", "test": "test"}[part]


def stored_split(folder: Path) -> Split | None:
    """The split that a run's folder keeps; None if it keeps none.

    Raises:
        ArtifactError, DataError: it is damaged.
    """
    if not (folder / SPLITS).exists():
        return None
    content = read_json(folder / SPLITS)
    return Split.from_dict(content.get("split", {}))


def the_same(split: Split | None) -> Split | None:
    """The split that the main process read, in all of them."""
    told = json.loads(broadcast(json.dumps(None if split is None else split.to_dict()).encode()))
    return None if told is None else Split.from_dict(told)


def the_same_choice(precision: Choice | None) -> Choice:
    """The precision that the main process chose, in all of them: they may have measured differently."""
    said = [] if precision is None else [precision.name, precision.reason]
    name, reason = json.loads(broadcast(json.dumps(said).encode()))
    return Choice(DTYPES[name], reason)


def split_of(folder: Path, data: str | Path, classes: list[str]) -> Split | None:
    """The split that a run made of exactly these data, if it drew one: so that nobody tests on what was trained on."""
    split = stored_split(folder)
    if split is None or not split.drawn:
        return None
    keys = {item.key for item in read_source(data, classes=classes).items}
    return split if keys >= {*split.train, *split.val, *split.test} else None


@contextmanager
def reading(console: Console | None) -> Iterator[Callable[[int, int], None]]:
    """A bar while images are decoded."""
    columns = TextColumn("reading images"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file at once."""
    replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__})", remedy="--overwrite the run") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds no JSON object", remedy="--overwrite the run")
    return content

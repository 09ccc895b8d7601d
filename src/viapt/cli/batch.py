"""`viapt predict --out FILE.parquet`: options, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from viapt.errors import ConfigError

if TYPE_CHECKING:
    from viapt.batch.engines import Engine
    from viapt.batch.rows import Model

batch_option = partial(typer.Option, rich_help_panel="To a Parquet file (extra: batch)")
Out = Annotated[
    Path | None,
    batch_option(help="Write a Parquet file, for as many images as there are; the same command resumes."),
]
Part = Annotated[int | None, batch_option(help="Images that are kept together on the way (default: 1024).")]
Overwrite = Annotated[bool, batch_option("--overwrite", help="Replace the file, and what was begun.")]
EngineName = Annotated[
    Literal["local", "ray"] | None, batch_option("--engine", help="This process (default), or a Ray cluster.")
]
Address = Annotated[str | None, batch_option(help="Of a Ray cluster (default: one on this machine).")]
Workers = Annotated[int | None, batch_option(help="Processes on Ray (default: 1).")]
Gpus = Annotated[float | None, batch_option(help="GPUs of each of them (default: none).")]


@dataclass(frozen=True)
class BatchOptions:
    """Options that have an effect with --out only."""

    part: int | None
    overwrite: bool
    engine: str | None
    address: str | None
    workers: int | None
    gpus: float | None

    def check(self, out: Path | None, form: str | None) -> None:
        """Refuse what has no effect, or is out of range.

        Raises:
            ConfigError: naming the option.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = [name for name, value in values.items() if value is not None and value is not False]
        if out is None:
            if given:
                raise ConfigError(f"--{given[0]} has no effect without --out", expected="--out FILE.parquet")
            return
        if form is not None:
            raise ConfigError("--format has no effect with --out, which writes Parquet", expected="one of them")
        if self.engine != "ray":
            for name in ("address", "workers", "gpus"):
                if name in given:
                    raise ConfigError(f"--{name} has no effect with --engine local", expected="--engine ray")
        for name, least in (("part", 1), ("workers", 1), ("gpus", 0)):
            value = values[name]
            if value is not None and value < least:
                raise ConfigError(f"--{name} {value}", expected=f"{least} or more")

    def make_engine(self, model: Model, options: dict[str, Any]) -> Engine:
        """Where the work is done.

        Raises:
            ConfigError: Ray is not installed.
        """
        from viapt.batch.engines import LocalEngine, RayEngine

        if self.engine == "ray":
            return RayEngine(self.address, self.workers or 1, self.gpus or 0.0)
        return LocalEngine(model, options)


@dataclass(frozen=True)
class Opened:
    """A model that was opened, and how to open it again elsewhere.

    Attributes:
        model: itself.
        options: arguments of its `predict`.
        opening: gives model and options again.
        rule: further arguments of its `predict`: of adaptive rounds.
    """

    model: Model
    options: dict[str, Any]
    opening: partial[tuple[Model, dict[str, Any]]]
    rule: dict[str, Any]


def predict_in_batches(given: Opened, paths: list[str], out: Path, batch_size: int, chosen: BatchOptions) -> int:
    """Write the file; how many images could not be read.

    Raises:
        ConfigError: pyarrow is not installed; see `viapt.batch.predict_to_file`.
    """
    try:
        import pyarrow  # noqa: F401 - to say now that it is missing
    except ImportError as error:
        raise ConfigError("--out needs pyarrow, which is not installed", remedy="pip install 'viapt[batch]'") from error
    from rich.console import Console

    from viapt.batch import PART_IMAGES, predict_to_file, showing
    from viapt.batch.rows import Job
    from viapt.data.streams import references, text
    from viapt.hub import adapter_folder
    from viapt.tables import say, show

    policy = given.options.get("policy") or given.model.policy
    passes, part = bool(given.rule.get("adaptive")), chosen.part or PART_IMAGES
    place, policy_given, rounds, seed, weights, quantise, compiled = given.opening.args
    adapter = adapter_folder(place)
    places = adapter.absolute(), policy_given, rounds, seed, weights and weights.absolute(), quantise, compiled
    sources = [text(Path(path).absolute()) for path in paths]  # the same words mean other images in another folder
    key = {"adapter": identity(adapter), "paths": list(map(text, paths)), "sources": sources}
    key |= {"batch_size": batch_size, "part": part, "policy": policy}
    key |= {"quantise": quantise, "compile": compiled} | given.options | given.rule
    job = Job(
        open=partial(open_again, partial(given.opening.func, *places), given.rule),
        classes=given.model.classes,
        batch_size=batch_size,
        spread=policy == "multi" and not passes,
        passes=passes,
        key=key,
    )
    engine = chosen.make_engine(given.model, given.options | given.rule)
    how: dict[str, Any] = {"part_images": part, "overwrite": chosen.overwrite}
    try:
        with showing(Console(stderr=True, highlight=False)) as step:
            written = predict_to_file(job, partial(references, paths), out, engine, step=step, **how)
    except KeyboardInterrupt:
        say("Parts that were finished are kept; run the same command (without --overwrite) to resume.")
        raise
    if written.before:
        say(f"{written.before:,} images were done before")
    if written.again:
        say(f"{written.again:,} images were done again: a file has changed since, or what was kept is damaged")
    show(f"{out}  {written.images:,} images, {written.unreadable:,} of them cannot be read (column error)")
    return written.unreadable


def open_again(
    opening: Callable[[], tuple[Model, dict[str, Any]]], rule: dict[str, Any]
) -> tuple[Model, dict[str, Any]]:
    """A model, and all arguments of its `predict`."""
    model, options = opening()
    return model, options | rule


def identity(model: Path) -> str:
    """SHA-256 of what is in an adapter or exported file: by its configuration, which has that of the tensors."""
    from viapt.adapter_files import read_config
    from viapt.exported import sha256

    return read_config(model)["config_sha256"] if model.is_dir() else sha256(model)

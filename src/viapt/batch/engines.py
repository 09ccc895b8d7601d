"""Where rows are made: in this process, or by the processes of a Ray cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from viapt import errors
from viapt.batch.rows import Job, Model, Step, predict_rows
from viapt.data.streams import Reference
from viapt.errors import ConfigError
from viapt.ray_cluster import connect, import_ray

AHEAD = 32  # parts for each process that Ray is given at once: so many names are in memory


class Part(NamedTuple):
    """Some images in a row, and their place among all."""

    number: int
    images: list[Reference]


@runtime_checkable
class Engine(Protocol):
    """Makes the rows of parts."""

    def run(self, job: Job, parts: Iterable[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        """Number and rows of each part, in any order; `step` is called with numbers of images that were done."""
        ...


class LocalEngine:
    """Here, one part after the other.

    Args:
        model, options: what `Job.open` gave, which is not opened again.
    """

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self.model, self.options = model, options

    def run(self, job: Job, parts: Iterable[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        for number, images in parts:
            yield number, predict_rows(job, self.model, self.options, images, step)


class RayEngine:
    """By Ray Data, in `workers` processes that open the model for `AHEAD` parts each; one that dies is replaced.

    Adapter, weights and images must have the same paths on every node.

    Args:
        address: of a cluster, as `ray.init` takes it; None: one on this machine.
        workers: processes at a time.
        gpus: GPUs of each, for instance 0.5.

    Raises:
        ConfigError: Ray is not installed, or while it runs, Ray fails.
    """

    def __init__(self, address: str | None, workers: int, gpus: float = 0.0) -> None:
        import_ray("ray.data")
        self.address, self.workers, self.gpus = address, workers, gpus

    def run(self, job: Job, parts: Iterable[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        waiting = iter(parts)
        wave = list(islice(waiting, AHEAD * self.workers))
        if not wave:
            return
        ray = connect(self.address, self.workers)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told by what is raised
            while wave:
                yield from self.mapped(ray, job, wave, step)
                wave = list(islice(waiting, AHEAD * self.workers))
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"The Ray cluster fails: {in_short(error)}", remedy="the same command goes on where it ended"
            ) from error
        finally:
            ray.shutdown()

    def mapped(self, ray: Any, job: Job, wave: list[Part], step: Step) -> Iterator[tuple[int, bytes]]:
        """Some parts, spread over the processes."""
        rows = [{"number": part.number, "images": json.dumps(list(map(absolute, part.images)))} for part in wave]
        sizes = {part.number: len(part.images) for part in wave}
        pool = ray.data.ActorPoolStrategy(size=min(self.workers, len(wave)))
        room = {"num_cpus": 1} | ({"num_gpus": self.gpus} if self.gpus else {})
        mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Worker, fn_constructor_args=(job,), compute=pool, **room
        )
        for row in mapped.iter_rows():
            made = taken(row)
            step(sizes[row["number"]])
            yield row["number"], made


class Worker:
    """A process of the cluster, and its model.

    Errors of ours come back as values, since Ray wraps exceptions as it likes.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def opened(self) -> tuple[Model, dict[str, Any]]:
        """The model, and arguments of its `predict`."""
        return self.job.open()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The rows of a part, or an error in JSON: its class, and what it says."""
        images = [Reference(*image) for image in json.loads(row["images"])]
        try:
            made, error = predict_rows(self.job, *self.opened, images), ""
        except errors.ViaptError as found:
            made = b""
            error = json.dumps([type(found).__name__, found.found, found.expected, found.remedy])
        return {"number": row["number"], "rows": made, "error": error}


def taken(made: dict[str, Any]) -> bytes:
    """The rows that a worker made.

    Raises:
        ViaptError: the one that it met.
    """
    if made["error"]:
        kind, found, expected, remedy = json.loads(made["error"])
        raise getattr(errors, kind, errors.ViaptError)(found, expected=expected, remedy=remedy)
    return made["rows"]


def absolute(image: Reference) -> Reference:
    """The same for processes with another working directory."""
    return image._replace(path=str(Path(image.path).absolute()))


def in_short(error: BaseException) -> str:
    """The first and the last line of an error of Ray's: what failed, and why; between them are tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ": ".join(dict.fromkeys((lines[0], lines[-1])))

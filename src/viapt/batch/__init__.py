"""Predictions of as many images as there are, in one Parquet file: resumable, in bounded memory, on any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pyarrow import parquet
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from viapt.batch.engines import Engine, Part
from viapt.batch.parts import Parts, finished
from viapt.batch.rows import Job, Step
from viapt.data.streams import Reference, fingerprint
from viapt.errors import ConfigError, DataError
from viapt.progress import Throughput

PART_IMAGES = 1024


@dataclass(frozen=True)
class Written:
    """What became of a job.

    Attributes:
        images: rows of the file.
        unreadable: how many of them have an error.
        before: how many images earlier calls had done.
        again: how many were done again, since their files have changed, or what was kept of them is damaged.
    """

    images: int
    unreadable: int
    before: int
    again: int = 0


def predict_to_file(
    job: Job,
    images: Callable[[], Iterable[Reference]],
    out: Path,
    engine: Engine,
    *,
    part_images: int = PART_IMAGES,
    overwrite: bool = False,
    step: Step = lambda _: None,
) -> Written:
    """Classify images into a Parquet file, a row for each, in their order; what earlier calls did is kept.

    Args:
        job: what is done with every image.
        images: gives them, the same ones in the same order at every call. They are gone through lazily.
        out: the file; it is there when it is complete.
        engine: where the work is done.
        part_images: images whose rows are kept together, and done again when the process dies before.
        overwrite: replace what is there, finished or not.
        step: called with numbers of images that were done, by this call or before.

    Raises:
        ConfigError: the file is there and of another job, or of images that have changed since; another process is at
            work on it; a number out of range.
        DataError: no images; they are not those of an earlier call; probabilities that are not finite.
        ArtifactError: the disk refuses, or damages what was written.
    """
    if part_images < 1:
        raise ConfigError(f"part_images = {part_images}", expected="at least 1")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", expected="a file, for instance predictions.parquet")
    if not overwrite and finished(out, job, (fingerprint(part.images) for part in divided(images(), part_images))):
        images_before, unreadable = counted(out)
        return Written(images_before, unreadable, images_before)
    parts, seen, before, again = Parts(out, job), 0, 0, 0
    fingerprints: dict[int, bytes] = {}  # of parts that are being made, taken before anything of them is read

    def open_parts() -> Iterator[Part]:
        nonlocal seen, before, again
        for part in divided(images(), part_images):
            seen += 1
            taken = fingerprint(part.images)
            if parts.has(part.number, part.images, taken):
                before += len(part.images)
                step(len(part.images))
                continue
            if parts.path(part.number).exists():
                again += len(part.images)
            fingerprints[part.number] = taken
            yield part

    with parts.locked(overwrite):
        for number, rows in engine.run(job, open_parts(), step):
            parts.write(number, fingerprints.pop(number), rows)
        if not seen:
            raise DataError("There are no images to predict", expected="at least one")
        parts.join(seen)
    return Written(*counted(out), before, again)


def divided(images: Iterable[Reference], size: int) -> Iterator[Part]:
    """Images in parts of one size, but for the last."""
    waiting, number = iter(images), 0
    while part := list(islice(waiting, size)):
        yield Part(number, part)
        number += 1


def counted(out: Path) -> tuple[int, int]:
    """Rows of a file, and how many of them have an error."""
    with parquet.ParquetFile(out) as file:
        errors = (file.read_row_group(k, columns=["error"])["error"] for k in range(file.num_row_groups))
        return file.metadata.num_rows, sum(len(column) - column.null_count for column in errors)


@contextmanager
def showing(console: Console) -> Iterator[Step]:
    """A live count of images on a terminal: nobody knows how many there will be."""
    columns = SpinnerColumn(), TextColumn("{task.completed:,.0f} images"), Throughput(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.advance(task, count)

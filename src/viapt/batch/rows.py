"""Some images to some rows: the one function that every engine calls, and what its rows are.

path            string          as it was found; "shard.tar::member" in a shard
label           string          the most probable class
probability     float           of it
probabilities   list of float   of every class, in the order of the file's metadata ("classes")
spread          list of float   with the policy `multi`: their standard deviation over the rounds
passes          int32           with adaptive rounds: how many the image took
error           string          why the image cannot be read; everything above but the path is then null
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow
from jaxtyping import Float
from pyarrow import parquet
from torch import Tensor

from viapt.backbones.base import Preprocessing
from viapt.data.dataset import AHEAD, THREADS
from viapt.data.streams import Reference
from viapt.data.transforms import eval_transform
from viapt.errors import DataError
from viapt.exported import ExportedModel
from viapt.inference import Prediction
from viapt.model import PromptedClassifier

Model = PromptedClassifier | ExportedModel
Step = Callable[[int], None]
METADATA = b"viapt"  # the name under which a Parquet file says what it holds


@dataclass(frozen=True)
class Job:
    """What is done with every image. It can be pickled.

    Attributes:
        open: opens the model where the work is done; it returns the model, and arguments of its `predict`.
        classes: names, in the order of `probabilities`.
        batch_size: images in one pass.
        spread, passes: whether there are these columns.
        key: all that the rows depend on, in plain JSON types.
    """

    open: Callable[[], tuple[Model, dict[str, Any]]]
    classes: list[str]
    batch_size: int
    spread: bool
    passes: bool
    key: dict[str, Any]

    @property
    def schema(self) -> pyarrow.Schema:
        """The columns, and the job in the metadata."""
        numbers = pyarrow.list_(pyarrow.float32())
        columns = {"path": pyarrow.string(), "label": pyarrow.string(), "probability": pyarrow.float32()}
        columns |= {"probabilities": numbers} | ({"spread": numbers} if self.spread else {})
        columns |= ({"passes": pyarrow.int32()} if self.passes else {}) | {"error": pyarrow.string()}
        described = json.dumps({"classes": self.classes, "job": self.key}, ensure_ascii=False)
        return pyarrow.schema(list(columns.items()), metadata={METADATA: described.encode()})


def predict_rows(
    job: Job, model: Model, options: dict[str, Any], images: Sequence[Reference], step: Step = lambda _: None
) -> bytes:
    """Classify some images: a Parquet file with a row for each, in their order.

    Args:
        options: arguments of the model's `predict`.
        step: called with 1 after each image is decoded, or is found not to be one.

    Raises:
        DataError: probabilities that are not finite.
    """
    good: list[int] = []
    errors: dict[int, str] = {}

    def readable() -> Iterator[Tensor]:
        for index, found in enumerate(decoded(preprocessing_of(model), images)):
            step(1)
            if isinstance(found, str):
                errors[index] = found
            else:
                good.append(index)
                yield found

    try:
        result = model.predict(readable(), batch_size=job.batch_size, **options)
    except DataError:
        if good or len(errors) < len(images):
            raise
        result = None
    columns = as_columns(job, images, good, errors, result)
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=job.schema), buffer, compression="zstd")
    return buffer.getvalue()


def as_columns(
    job: Job, images: Sequence[Reference], good: list[int], errors: dict[int, str], result: Prediction | None
) -> dict[str, list[Any]]:
    """The rows, column by column."""
    columns: dict[str, list[Any]] = {name: [None] * len(images) for name in job.schema.names}
    columns["path"] = [image.name for image in images]
    for index, error in errors.items():
        columns["error"][index] = error.encode("utf-8", "backslashreplace").decode()
    if result is None:
        return columns
    answers: dict[str, Any] = {
        "label": result.labels,
        "probability": result.probabilities.amax(1).tolist(),
        "probabilities": result.probabilities.tolist(),
    }
    if job.spread:
        assert result.spread is not None
        answers["spread"] = result.spread.tolist()
    if job.passes:
        assert result.rounds is not None
        answers["passes"] = result.rounds.tolist()
    for name, values in answers.items():
        for index, value in zip(good, values, strict=True):
            columns[name][index] = value
    return columns


def preprocessing_of(model: Model) -> Preprocessing:
    """What becomes of an image before it enters."""
    return model.preprocessing if isinstance(model, ExportedModel) else model.backbone.preprocessing


def decoded(
    preprocessing: Preprocessing, images: Sequence[Reference]
) -> Iterator[Float[Tensor, "3 height width"] | str]:
    """Each image preprocessed, or why it cannot be read, in order; some are decoded ahead, in threads."""
    transform = eval_transform(preprocessing)

    def decode(image: Reference) -> Tensor | str:
        try:
            return transform(image.read())
        except DataError as error:
            return error.found
        except OSError as error:
            return f"{image.name}: {error}"

    waiting = iter(images)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        while ahead := list(islice(waiting, AHEAD)):
            yield from pool.map(decode, ahead)

"""Several processes that work on one model: what each takes of a batch, and what they tell each other beside gradients.

A batch is that of all processes. Each takes a contiguous share of it, so what is put together in the order of the
processes is in the order of the batch, and statistics of it are those that one process would have taken. Nothing is
pickled: tensors travel, and bytes that hold JSON or safetensors. With one process every function is the identity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Sampler

from viapt import errors
from viapt.errors import TrainingError, ViaptError

_alone = False
_counts: Sequence[int] | None = None  # of the batch that is being shared, by process


def process_count() -> int:
    """How many processes there are."""
    return 1 if _alone or not (dist.is_available() and dist.is_initialized()) else dist.get_world_size()


def process_index() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return process_index() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works by itself, whatever others there are."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# Shares


@dataclass(frozen=True)
class Share:
    """What one process takes of a batch, or of a part of one.

    Attributes:
        rows: positions in the batch. A process for which none is left computes the first as a stand-in, which counts
            for nothing: all must take part in what they exchange.
        counts: how many images each process has, stand-ins left out.
    """

    rows: range
    counts: list[int]

    @property
    def count(self) -> int:
        """How many of `rows` count: all of them, or none."""
        return self.counts[process_index()]


def shares(size: int, parts: int = 1) -> list[Share]:
    """What this process takes of a batch of `size` images, computed in `parts` of (nearly) equal size."""
    step = math.ceil(size / parts)
    return [share(range(start, min(start + step, size))) for start in range(0, size, step)]


def share(rows: range) -> Share:
    """What this process takes of some rows; the shares of two processes differ by one row at most."""
    index, count = process_index(), process_count()
    ends = [len(rows) * k // count for k in range(count + 1)]
    counts = [stop - start for start, stop in pairwise(ends)]
    return Share(rows[ends[index] : ends[index + 1]] or rows[:1], counts)


class SharedBatches(Sampler[list[int]]):
    """Of each batch of indices, computed in so many parts, those that this process takes: all, if it is alone."""

    def __init__(self, batches: Iterable[list[int]], parts: int = 1) -> None:
        self.batches, self.parts = batches, parts

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [batch[row] for part in shares(len(batch), self.parts) for row in part.rows]


@contextmanager
def sharing(counts: Sequence[int]) -> Iterator[None]:
    """Inside, the model sees this process's share of a batch, and `whole` knows how to put the batch together."""
    global _counts
    before, _counts = _counts, counts
    try:
        yield
    finally:
        _counts = before


def whole(rows: Shaped[Tensor, "share ..."]) -> Shaped[Tensor, "batch ..."]:
    """A tensor for the share of this process -> that for the whole batch, in its order; without gradient.

    The identity where no batch is shared. All processes must call it equally often, with tensors of the same kind.
    """
    return rows if _counts is None else gather(rows, _counts)


# What is exchanged


def gather(rows: Shaped[Tensor, "share ..."], counts: Sequence[int]) -> Shaped[Tensor, "batch ..."]:
    """The first `counts[i]` rows of each process i, one process after the other."""
    if len(counts) == 1:
        return rows
    mine = counts[process_index()]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[:mine] = rows[:mine].detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def total(*values: float | int) -> list[float]:
    """Sums over the processes."""
    return reduced(values, dist.ReduceOp.SUM)


def maximum(*values: float | int) -> list[float]:
    """Largest values over the processes."""
    return reduced(values, dist.ReduceOp.MAX)


def reduced(values: Sequence[float | int], operation: dist.ReduceOp.RedOpType) -> list[float]:
    """Values that are put together in float64."""
    if process_count() == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def exchange(data: bytes) -> list[bytes]:
    """What each process says, by process."""
    if process_count() == 1:
        return [data]
    sizes = gather(torch.tensor([len(data)], device=device()), [1] * process_count()).tolist()
    if not any(sizes):
        return [b"" for _ in sizes]
    return [bytes(part.tolist()) for part in gather(as_tensor(data), sizes).cpu().split(sizes)]


def broadcast(data: bytes) -> bytes:
    """What the main process says."""
    if process_count() == 1:
        return data
    size = torch.tensor([len(data)], device=device())
    dist.broadcast(size, 0)
    told = as_tensor(data) if is_main() else torch.empty(int(size), dtype=torch.uint8, device=device())
    if told.numel():
        dist.broadcast(told, 0)
    return told.cpu().numpy().tobytes()


def as_tensor(data: bytes) -> Tensor:
    """Bytes where the processes exchange tensors."""
    return torch.tensor(bytearray(data), dtype=torch.uint8, device=device())


def device() -> torch.device:
    """Where tensors must be to be exchanged."""
    from accelerate.state import PartialState

    return torch.device(PartialState().device or "cpu")


# Errors


@contextmanager
def agree() -> Iterator[None]:
    """What fails in one process fails in all of them: the same error is raised in each, instead of a wait without end.

    Nothing may be exchanged inside. An error so raised has the attribute `everywhere`: one process is enough to tell.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if process_count() == 1:
            raise
        error = caught
    if process_count() == 1:
        return
    for index, text in enumerate(exchange(b"" if error is None else describe(error))):
        if text:
            failure = error if error is not None and index == process_index() else described(text, index)
            failure.__dict__["everywhere"] = True
            raise failure


def describe(error: Exception) -> bytes:
    """What is sent of an error: its kind, and with what to make it again."""
    if isinstance(error, ViaptError):
        kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        values = [error.found, error.expected, error.remedy]
    elif isinstance(error, OSError) and error.strerror:
        kind, values = "OSError", [error.errno, error.strerror, str(error.filename or "")]
    else:
        kind, values = type(error).__name__, [str(error)]
    return json.dumps([kind, *values]).encode()


def described(text: bytes, index: int) -> Exception:
    """Inverse of `describe`, for an error in process `index`; kinds that nobody knows here become a RuntimeError."""
    kind, *values = json.loads(text)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, ViaptError):
        found, expected, remedy = values
        return known(found, expected=expected, remedy=remedy)
    if kind == "OSError" and len(values) == 3:
        return OSError(*values)
    if kind in ("MemoryError", "OutOfMemoryError"):
        return MemoryError(*values)
    return RuntimeError(f"{kind} in process {index}: {values[0]}")


@contextmanager
def companions() -> Iterator[None]:
    """Say it plainly when another process ended while this one waited for it.

    Raises:
        TrainingError: likewise.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            "Another process of this training has ended, or cannot be reached",
            remedy="see what it said; the same call resumes",
        ) from error

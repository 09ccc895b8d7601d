"""What viapt asks of a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from viapt.errors import ArtifactError

NOTE = "viapt"  # the name under which a file keeps what viapt wrote about it
Shape = tuple[int | None, ...]


class Session(ABC):
    """A file, opened: named float32 arrays in, logits out.

    Attributes:
        runtime: name and version of what executes it.
        note: what viapt wrote about it, or None.
        inputs: name -> shape; None stands for any size.
    """

    runtime: str
    note: str | None
    inputs: dict[str, Shape]

    @abstractmethod
    def run(self, inputs: dict[str, Float32[np.ndarray, "..."]]) -> Float32[np.ndarray, "batch classes"]:
        """The first output."""


@contextmanager
def refusing(path: Path, runtime: str, verb: str = "opened") -> Iterator[None]:
    """Whatever a runtime says of a file that it cannot read, as an error that names the file.

    Raises:
        ArtifactError: for any exception.
    """
    try:
        yield
    except ArtifactError:
        raise
    except Exception as reason:
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        raise ArtifactError(
            f"{path} cannot be {verb} by {runtime} ({lines[0][:200]})",
            expected="a whole, unaltered file that `viapt export` wrote",
            remedy="copy it again with the files beside it, or export again",
        ) from reason

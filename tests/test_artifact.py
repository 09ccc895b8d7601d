"""Adapters: the same bits in another process, small, and described."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from artifact_cases import CLASSES, IMAGES, SMALL, fitted, logits, tiny
from viapt.artifact import CARD, CONFIG, TENSORS, compact, load, read_config
from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone, Preprocessing, Tokens
from viapt.create import create_model
from viapt.errors import ArtifactError, ConfigError
from viapt.methods import METHODS
from viapt.reduction import REDUCTIONS
from viapt.testing.subject import train

# The same model again


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction_comes_back_bit_for_bit(tmp_path: Path, reduction: str) -> None:
    model = fitted(reduction=reduction, learn_carry_scale=True)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, tiny())
    assert torch.equal(logits(again), logits(model))
    assert again.method.config() == model.method.config()
    assert again.classes == CLASSES
    assert not any(module.training for module in again.modules())
    assert all(parameter.requires_grad for parameter in again.learnable().values())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_bit_for_bit(tmp_path: Path, method: str) -> None:
    model = fitted(method=method)
    model.save_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(logits(load(tmp_path / "new" / "folder", tiny())), logits(model))


ELSEWHERE = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
import viapt

torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = load_file(folder / "images.safetensors")
answers = {}
for name in images:
    model = viapt.load(folder / name)
    assert not model.training
    with torch.no_grad():
        answers[name] = model(images[name])
    result = model.predict(images[name])
    assert result.labels == [model.classes[i] for i in answers[name].argmax(1).tolist()], result
save_file(answers, folder / "answers.safetensors")
"""


def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    """From every source of weights, with nothing but the name of the adapter's folder."""
    timm.models.save_for_hf(tiny(), str(tmp_path / "vit"), model_args=SMALL, safe_serialization=True)
    other = timm.create_model("test_vit4", pretrained=False)
    save_file(other.state_dict(), tmp_path / "vit.safetensors")
    sources: dict[str, dict[str, Any]] = {
        "folder": {"backbone": f"local-dir:{tmp_path / 'vit'}", "image_size": (32, 16)},
        "file": {"backbone": "test_vit4", "weights": tmp_path / "vit.safetensors", "image_size": 48},
        "random": {"backbone": "test_vit4", "pretrained": False, "image_size": 32},
        "rounded": {"backbone": "test_vit4", "pretrained": False, "image_size": 32, "precision": "bfloat16"},
    }
    images, expected = {}, {}
    for name, source in sources.items():
        model = fitted(**source)
        model.save_pretrained(tmp_path / name)
        images[name] = torch.randn(2, 3, *model.backbone.preprocessing.image_size)
        with torch.no_grad():
            expected[name] = model(images[name])
    save_file(images, tmp_path / "images.safetensors")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    answers = load_file(tmp_path / "answers.safetensors")
    for name in sources:
        assert torch.equal(answers[name], expected[name]), name


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    model = load(tmp_path, tiny())
    before = {name: parameter.detach().clone() for name, parameter in model.learnable().items()}
    train(model, IMAGES, torch.arange(6) % 4, 2)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.learnable().items())


def test_the_precision_is_the_saved_ones_unless_another_is_asked_for(tmp_path: Path) -> None:
    model = fitted(precision="bfloat16")
    model.save_pretrained(tmp_path)
    again = load(tmp_path, tiny())
    assert again.backbone.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))
    assert load(tmp_path, tiny(), precision="float32").backbone.dtype == torch.float32


def test_preprocessing_is_the_recorded_one(tmp_path: Path) -> None:
    """Another version of timm may know other statistics for a name; the adapter was trained with these."""
    model = fitted(image_size=16)
    model.backbone.preprocessing = Preprocessing(image_size=(16, 16), mean=(0.1, 0.2, 0.3), crop_pct=0.8)
    model.save_pretrained(tmp_path)
    assert load(tmp_path, tiny()).backbone.preprocessing == model.backbone.preprocessing


def test_saving_is_repeatable_and_changes_nothing(tmp_path: Path) -> None:
    model = fitted()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.save_pretrained(tmp_path / "one")
    load(tmp_path / "one", tiny()).save_pretrained(tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    for name in (CONFIG, TENSORS, CARD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted([CONFIG, TENSORS, CARD])


# What is written


def test_the_files_are_what_the_format_says(tmp_path: Path) -> None:
    model, training = fitted(), {"epochs": 3, "lr": 1e-3, "augmentation": "none"}
    model.save_pretrained(tmp_path, training=training)
    text = (tmp_path / CONFIG).read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert config == read_config(tmp_path)
    assert config["training"] == training
    assert config["classes"] == CLASSES
    assert config["method"] == "viapt" and config["method_arguments"]["kept_dim"] == 8
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    with safe_open(tmp_path / TENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    learnable = model.learnable()
    assert learnable.keys() <= stored.keys()
    assert all(torch.equal(stored[name].to(tensor.dtype), tensor) for name, tensor in learnable.items())
    transient = {f"method.{name}" for name in model.method.transient_state()}
    assert transient and not transient & stored.keys()
    assert stored["method.kept.basis"].dtype == torch.float16
    assert stored["method.fresh"].dtype == torch.float32
    card = (tmp_path / CARD).read_text()
    for word in ("library_name: viapt", "solar cell", r"cœur \| x", "| lr | 0.001 |", "backbone=module"):
        assert word in card


@given(
    arrays(
        np.float32,
        st.integers(0, 5),
        elements=st.one_of(
            st.floats(width=16, allow_nan=False),
            st.floats(width=32, allow_nan=False),
            st.sampled_from([-0.0, 2.0**-24, 2.0**-25, 65504.0, 65520.0]),
        ),
    )
)
def test_compaction_loses_no_bit(values: np.ndarray) -> None:
    stored = compact(torch.from_numpy(values))
    with np.errstate(over="ignore"):
        exact = values.astype(np.float16).astype(np.float32).tobytes() == values.tobytes()
    assert stored.dtype == (torch.float16 if exact else torch.float32)
    assert stored.float().numpy().tobytes() == values.tobytes()


class Sized(Backbone):
    """As wide and deep as another, without its weights."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.dim, self.depth, self.patch_size, self.preprocessing = dim, depth, (16, 16), Preprocessing()
        self.fingerprint = "sha256:none"
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return images.new_zeros(len(images), self.dim)

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        return Tokens(images.new_zeros(len(images), 1, self.dim), images.new_zeros(len(images), 4, self.dim), (2, 2))

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        return tokens

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        return tokens[:, 0]

    @property
    def feature_dim(self) -> int:
        return self.dim


@pytest.mark.parametrize(("options", "megabytes"), [({}, 3.2), ({"kept_dim": 128, "shared_basis": True}, 1.0)])
def test_the_adapter_of_a_vit_base_is_small(tmp_path: Path, options: dict[str, Any], megabytes: float) -> None:
    model = create_model(Sized(768, 12), classes=100, num_prompts=10, **options)
    train(model, torch.randn(12, 3, 8, 8), torch.arange(12), 1)  # a basis of ones and zeros would fit in anything
    assert int(model.method.kept.basis.count_nonzero()) > 10_000
    model.save_pretrained(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < megabytes * 1e6
    assert torch.equal(logits(load(tmp_path, model.backbone)), logits(model.eval()))


def test_the_model_card_names_at_most_fifty_classes(tmp_path: Path) -> None:
    create_model(tiny(), "linear", classes=60).save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert "- 49\n- and 10 more\n" in card and "- 50\n" not in card


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    """Such are the names of folders whose bytes are no UTF-8."""
    model = create_model(tiny(), "linear", classes=[os.fsdecode(b"caf\xe9"), "tea"])
    model.save_pretrained(tmp_path)
    assert load(tmp_path, tiny()).classes == model.classes


# What is not saved


@pytest.mark.parametrize("training", [{"lr": float("nan")}, {"out": Path("x")}, {"model": object()}])
def test_a_protocol_that_is_no_json_is_refused(tmp_path: Path, training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="training is not plain JSON"):
        fitted().save_pretrained(tmp_path / "out", training=training)
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    good, out = fitted(), tmp_path / "out"
    good.save_pretrained(out)
    for spoil, message in (
        (lambda model: model.head.weight.data.fill_(float("nan")), "head.weight has 128 of 128 values"),
        (lambda model: model.method.fresh.data.view(-1)[3].fill_(float("inf")), "method.fresh has 1 of"),
        (lambda model: model.head.double(), "head.weight is torch.float64"),
        (lambda model: model.backbone.half(), "computes in float16"),
    ):
        model = copy.deepcopy(good)
        spoil(model)
        with pytest.raises(ArtifactError, match=message):
            model.save_pretrained(out)
    assert torch.equal(logits(load(out, tiny())), logits(good))


# The backbone


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="has weights sha256") as error:
        load(tmp_path, tiny(seed=1))
    recorded = read_config(tmp_path)["backbone"]["fingerprint"]
    assert create_backbone(tiny(1)).fingerprint in error.value.found
    assert recorded in error.value.expected
    assert error.value.remedy
    with pytest.raises(ArtifactError, match="has weights sha256"):
        load(tmp_path, fitted(tiny(1), "linear").backbone)


def test_a_module_of_the_users_own_must_be_given_again(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="backbone=module"):
        load(tmp_path)


def test_a_backbone_that_is_given_must_fit(tmp_path: Path) -> None:
    model = fitted(image_size=16)
    model.save_pretrained(tmp_path)
    backbone = create_backbone(tiny(), image_size=16)
    again = load(tmp_path, backbone)
    assert again.backbone is backbone
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(ArtifactError, match=r"image_size=\(32, 32\)"):
        load(tmp_path, create_backbone(tiny()))
    backbone.bfloat16()
    with pytest.raises(ConfigError, match="rounded to bfloat16"):
        load(tmp_path, backbone)


def test_weights_that_moved_can_be_named(tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    save_file(timm.create_model("test_vit4", pretrained=False).state_dict(), here)
    model = fitted("test_vit4", weights=here, image_size=32)
    model.save_pretrained(tmp_path / "out")
    here.rename(there)
    with pytest.raises(ArtifactError, match="which is not there") as error:
        load(tmp_path / "out")
    assert "weights=FILE" in error.value.remedy
    assert torch.equal(logits(load(tmp_path / "out", weights=there)), logits(model))
    assert torch.equal(logits(load(tmp_path / "out", "test_vit4", weights=there)), logits(model))


# Older releases


def test_adapters_of_format_1_are_still_read() -> None:
    """To the order of sums, which differs between processors; see tests/artifacts/README.md."""
    folder = Path(__file__).parent / "artifacts" / "format-1"
    expected = load_file(folder / "expected.safetensors")
    model = load(folder / "adapter", f"local-dir:{folder / 'vit'}")
    assert read_config(folder / "adapter")["format_version"] == 1
    assert model.classes == ["left", "right", "neither"]
    with torch.no_grad():
        torch.testing.assert_close(model(expected["images"]), expected["logits"], rtol=1e-4, atol=1e-5)

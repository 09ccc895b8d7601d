"""create_model: names, seeds, precision."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from viapt.backbones import create_backbone
from viapt.create import create_model
from viapt.errors import ConfigError

OPTIONS: dict[str, Any] = {"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 8}


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def test_the_model_is_what_was_asked_for(vit: nn.Module) -> None:
    model = create_model(vit, "viapt", classes=["cat", "dog"], image_size=(32, 16), **OPTIONS)
    assert model.classes == ["cat", "dog"]
    assert model.method.config() | OPTIONS == model.method.config()
    assert model(torch.zeros(3, 3, 32, 16)).shape == (3, 2)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.learnable().values())
    assert {parameter.dtype for parameter in model.learnable().values()} == {torch.float32}


def test_a_number_of_classes_names_them(vit: nn.Module) -> None:
    assert create_model(vit, "linear", classes=3).classes == ["0", "1", "2"]


@pytest.mark.parametrize("classes", [1, 0, -2, True, "cats", [], ["a"], ["a", "a"]])
def test_unusable_classes_are_refused(vit: nn.Module, classes: Any) -> None:
    with pytest.raises(ConfigError):
        create_model(vit, "linear", classes=classes)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("viappt", {}, "did you mean 'viapt'"),
        ("viapt", {"num_promts": 3}, "did you mean 'num_prompts'"),
        ("viapt", {"num_prompts": "3"}, "num_prompts = '3' is not possible. Expected: int"),
        ("viapt", {"num_prompts": True}, "num_prompts = True"),
        ("viapt", {"reduction": "pca"}, "one of running, batch"),
        ("viapt", {"generator_kernels": [1, 3, 5]}, r"tuple\[int, int\]"),
        ("viapt", {"carry_scale": "1"}, "carry_scale"),
        ("linear", {"num_prompts": 3}, "no arguments"),
    ],
)
def test_wrong_arguments_are_refused(vit: nn.Module, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model(vit, method, classes=2, **options)


def test_arguments_without_effect_are_refused(vit: nn.Module) -> None:
    with pytest.raises(ConfigError, match="basis_seed = 3 has no effect"):
        create_model(vit, "viapt", classes=2, basis_seed=3, reduction="running")


def test_the_seed_alone_decides_what_is_drawn(vit: nn.Module) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return {name: t.detach() for name, t in create_model(vit, classes=2, seed=seed, **OPTIONS).learnable().items()}

    before = torch.get_rng_state()
    first = drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = drawn(1), drawn(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["method.fresh"], other["method.fresh"])
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_precision_is_of_the_backbone_alone(vit: nn.Module) -> None:
    model = create_model(vit, classes=2, precision="bfloat16", **OPTIONS)
    assert model.backbone.dtype == torch.bfloat16
    assert model.head.weight.dtype == model.method.fresh.dtype == torch.float32
    assert model(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_what_was_rounded_cannot_be_had_back(vit: nn.Module) -> None:
    backbone = create_model(vit, "linear", classes=2, precision="bfloat16").backbone
    assert create_model(backbone, "linear", classes=2).backbone.dtype == torch.bfloat16  # "auto" leaves it
    with pytest.raises(ConfigError, match="rounded to bfloat16"):
        create_model(backbone, "linear", classes=2, precision="float32")
    assert create_model(create_backbone(vit), "linear", classes=2, precision="float32").backbone.dtype == torch.float32

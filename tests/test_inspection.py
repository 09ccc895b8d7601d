from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock, VisionTransformer

from viapt.backbones.timm_vit import TimmViT
from viapt.errors import BackboneError
from viapt.inspection import inspect_model, prompt_attention
from viapt.methods import create_method
from viapt.model import PromptedClassifier

PROMPTS = 6


def classifier(method: str = "viapt", vit: dict | None = None, **options) -> PromptedClassifier:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
    backbone = TimmViT(VisionTransformer(**sizes | (vit or {})))
    if method != "linear":
        options = {"num_prompts": PROMPTS} | options
    if method == "viapt":
        options = {"num_instance_prompts": 3} | options
    return PromptedClassifier(backbone, create_method(method, 24, 3, (8, 8), **options), ["a", "b"]).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attention_of_timm(model: PromptedClassifier, images: torch.Tensor) -> list[torch.Tensor]:
    """The oracle: timm's own unfused attention, caught where it applies dropout to the weights."""
    caught: list[torch.Tensor] = []
    for block in model.backbone.vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, output: caught.append(output))
    with torch.no_grad():
        model(images)
    return caught


@pytest.mark.parametrize(
    "vit",
    [
        {},
        {"init_values": 0.5, "qk_norm": True, "qkv_bias": False},
        {"block_fn": ResPostBlock},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
    ],
    ids=["plain", "layer scale, q and k normalised", "norm after", "no class token", "registers"],
)
@pytest.mark.parametrize("method", ["viapt", "vpt-deep"])
def test_attention_is_what_timm_computes(method, vit, images):
    model = classifier(method, vit)
    found = prompt_attention(model, images)
    oracle = attention_of_timm(model, images)
    k = model.backbone.vit.num_prefix_tokens
    rows = slice(0, 1) if k else slice(None, -PROMPTS)
    for layer, weights in enumerate(oracle):
        expected = weights[:, :, rows, -PROMPTS:].sum(-1).mean((1, 2))
        torch.testing.assert_close(found.share[:, layer], expected)
    looks = torch.stack([weights[:, :, -PROMPTS:, k:-PROMPTS].mean(1) for weights in oracle]).mean(0)
    torch.testing.assert_close(found.maps.flatten(2), looks)
    assert found.maps.shape == (5, PROMPTS, 4, 4)


def test_a_map_lies_as_the_image_does():
    """On a grid that is not square, rows are rows."""
    model = classifier(vit={"img_size": (16, 32)})
    images = torch.zeros(1, 3, 16, 32)
    assert prompt_attention(model, images).maps.shape == (1, PROMPTS, 2, 4)


def test_blocks_without_visible_attention_are_named(images):
    model = classifier(vit={"block_fn": ParallelThingsBlock})
    with pytest.raises(BackboneError, match="2 times instead of once"):
        prompt_attention(model, images)
    assert inspect_model(model, images).prompt_attention is None


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(training, images):
    model = classifier().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backbone, calls = model.backbone, model.noise_calls
    inspect_model(model, images)
    assert model.training is training and model.backbone is backbone and model.noise_calls == calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_kept_shares_of_selected_coordinates(images):
    """`select` keeps coordinates: before block 0 their share can be counted by hand."""
    model = classifier(reduction="select", kept_dim=6)
    found = inspect_model(model, images)
    with torch.no_grad():
        _, patches, grid, _ = model.backbone.embed(images, PROMPTS)
        fused = model.method.fuse(patches, grid, None)
    mask = model.method.kept.mask[0]
    assert found.kept_energy[0] == pytest.approx(
        float(fused[..., mask].square().sum() / fused.square().sum()), rel=1e-4
    )
    variance = fused.var(0)
    assert found.kept_variance[0] == pytest.approx(float(variance[:, mask].sum() / variance.sum()), rel=1e-4)
    assert len(found.kept_energy) == len(found.kept_variance) == 3
    assert all(0 < share < 1 for share in found.kept_energy + found.kept_variance)


def test_kept_shares_when_everything_is_kept(images):
    found = inspect_model(classifier(kept_dim=24, reduction="random"), images)
    assert found.kept_energy == pytest.approx([1, 1, 1], rel=1e-5)
    assert found.kept_variance == pytest.approx([1, 1, 1], rel=1e-4)


def test_nothing_differs_before_the_first_block_without_instance_prompts(images):
    found = inspect_model(classifier(num_instance_prompts=0, kept_dim=6, reduction="random"), images)
    assert found.kept_variance[0] is None and 0 < found.kept_variance[1] < 1


@pytest.mark.parametrize("options", [{"kept_dim": 0}, {"reduction": "linear"}], ids=["nothing kept", "no subspace"])
def test_no_share_without_a_kept_subspace(options, images):
    found = inspect_model(classifier(**options), images)
    assert found.kept_energy is None and found.kept_variance is None


@pytest.mark.parametrize("shared", [False, True])
def test_estimated_share_after_training_steps(shared, images):
    model = classifier(kept_dim=6, shared_basis=shared)
    assert inspect_model(model).explained is None
    model.train()(images)
    found = inspect_model(model)
    assert found.explained is not None and len(found.explained) == 3
    assert found.explained == [float(model.method.kept.explained[0 if shared else layer]) for layer in range(3)]
    assert all(0 < share <= 1 for share in found.explained)


def test_parameters_by_part(images):
    model = classifier(kept_dim=6)
    found = inspect_model(model)
    parts = dict(found.parameters)
    assert parts.pop("backbone") == sum(p.numel() for p in model.backbone.parameters())
    assert parts.pop("method.kept (fixed)") >= 3 * 24 * 6  # the basis
    assert parts["method.fresh"] == 3 * PROMPTS * 18 and parts["head"] == 2 * 25
    learned = [count for part, count in parts.items() if not part.endswith("(fixed)")]
    assert sum(learned) == found.learnable == sum(p.numel() for p in model.learnable().values())


def test_a_method_without_prompts(images):
    found = inspect_model(classifier("linear"), images)
    assert found.prompt_attention is None and found.kept_energy is None and found.learnable == 50

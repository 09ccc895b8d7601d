"""timm's transformers with positions in their attention: rotations and biases, of which prompts have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone
from viapt.backbones.timm_base import fingerprint
from viapt.backbones.timm_beit import TimmBeit
from viapt.backbones.timm_rope import TimmRope
from viapt.errors import BackboneError
from viapt.methods.linear import Linear
from viapt.model import PromptedClassifier

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")  # resizing tables of biases
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
ROPES = (
    "eva_giant_patch14_224",  # no rotation
    "eva02_tiny_patch14_224",  # biases of query and value apart
    "eva02_base_patch14_224",  # query, key and value apart
    "vit_small_patch16_dinov3",  # registers, no absolute positions
    "vit_small_patch16_rope_mixed_224",  # learned rotations, others in each block
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_pe_core_tiny_patch16_384",  # attention pooling
)
SHARED = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
BEITS: list[tuple[str, dict[str, Any]]] = [
    ("beit_base_patch16_224", {}),
    ("beitv2_base_patch16_224", {"init_values": None}),
    ("beit_base_patch16_224", SHARED | {"global_pool": "token"}),
    ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}),
]
ALL = [(name, {}) for name in ROPES] + BEITS


def tiny(name: str, **options: Any) -> Any:
    """A random model in evaluation mode whose every parameter matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model(name, **(SMALL | {"num_classes": 5} | options))
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vit.eval()


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def timm_features(vit: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(x), pre_logits=True)


def loop_features(backbone: Backbone, x: Tensor) -> Tensor:
    model = PromptedClassifier(backbone, Linear(backbone.dim, backbone.depth, backbone.patch_size), ["a", "b"])
    with torch.no_grad():
        return model.run(model.embed(x), None)


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_the_loop_gives_timms_own_features(name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    vit, x = tiny(name, **options), images(size)
    backbone = create_backbone(vit, image_size=size)
    expected = tiny(name, **options)
    expected.set_input_size(img_size=size)
    features = timm_features(expected, x)
    assert isinstance(backbone, TimmBeit if "beit" in name else TimmRope)
    torch.testing.assert_close(backbone(x), features)
    torch.testing.assert_close(loop_features(backbone, x), features, rtol=1e-5, atol=1e-5)
    assert features.shape == (2, backbone.feature_dim) and features.std() > 0
    assert backbone.preprocessing.image_size == size
    assert backbone.fingerprint == fingerprint(vit) == create_backbone(vit).fingerprint


@pytest.mark.parametrize(("name", "options"), ALL)
def test_prompts_have_no_position(name: str, options: dict[str, Any]) -> None:
    """Their order means nothing; and one that nobody looks at changes nothing for the others."""
    backbone = create_backbone(tiny(name, **options)).double()
    tokens = backbone.embed(images().double(), 3)
    prompts = torch.randn(2, 3, backbone.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    for layer in range(backbone.depth):
        one, left = backbone.advance(layer, x, prompts, tokens.context)
        other, reversed_left = backbone.advance(layer, x, prompts.flip(1), tokens.context)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(left, reversed_left.flip(1))
        assert not torch.allclose(one, backbone.block(layer, x, backbone.embed(images().double(), 0).context))
        x, prompts = one, left


@pytest.mark.parametrize(("name", "options"), [(ROPES[1], {}), (ROPES[4], {}), BEITS[0], BEITS[2]])
def test_positions_of_the_others_stay(name: str, options: dict[str, Any]) -> None:
    """A prompt whose key is far from every query is not seen: the block gives what it gives without prompts."""
    backbone = create_backbone(tiny(name, **options)).double()
    attn = backbone.blocks[0].attn
    alone, tokens = backbone.embed(images().double(), 0), backbone.embed(images().double(), 1)
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    weights: list[Tensor] = []
    genuine = nn.functional.scaled_dot_product_attention

    def unseen(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        mask = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
        mask[:, -1] = -torch.inf
        weights.append(mask)
        return genuine(q, k, v, attn_mask=mask if attn_mask is None else attn_mask + mask)

    expected = backbone.block(0, x, alone.context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", unseen)
        seen, _ = backbone.advance(0, x, torch.ones_like(x[:, :1]), tokens.context)
    assert weights and attn.fused_attn
    torch.testing.assert_close(seen, expected)


def test_rotary_models_with_patches_of_their_own_size_need_no_grid() -> None:
    vit = tiny("vit_small_patch16_dinov3", dynamic_img_size=True)
    backbone, x = create_backbone(vit), images((24, 40))
    assert backbone.embed(x, 0).grid == (3, 5)
    torch.testing.assert_close(loop_features(backbone, x), timm_features(vit, x))


@pytest.mark.parametrize(("name", "options"), [(ROPES[1], {}), (ROPES[3], {}), (ROPES[4], {}), BEITS[0], BEITS[2]])
def test_weights_come_from_a_file(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What a file does not hold (indices, rotations) is computed, not left empty."""
    vit = tiny(name, **options)
    timm.models.save_for_hf(vit, str(tmp_path), model_args=SMALL | options, safe_serialization=True)
    backbone = create_backbone(f"local-dir:{tmp_path}")
    assert not any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))
    assert backbone.fingerprint == create_backbone(vit).fingerprint
    torch.testing.assert_close(backbone(images()), timm_features(vit, images()))


def test_names_and_files_of_other_kinds(tmp_path: Path) -> None:
    first, second = (create_backbone("eva02_tiny_patch14_224", pretrained=False) for _ in range(2))
    assert isinstance(first, TimmRope) and first.fingerprint == second.fingerprint
    save_file({"a": torch.zeros(1)}, tmp_path / "beit.safetensors")
    with pytest.raises(BackboneError, match="do not fit the architecture"):
        create_backbone("beit_base_patch16_224", weights=tmp_path / "beit.safetensors")
    with pytest.raises(BackboneError, match="returns tokens"):
        create_backbone(tiny("beit_base_patch16_224", global_pool=""))


def test_a_method_that_would_be_passed_by_is_refused() -> None:
    from viapt.create import create_model

    for method in ("lora", "ssf"):
        with pytest.raises(BackboneError, match="qkv"):
            create_model(tiny("eva02_tiny_patch14_224"), method, classes=2)
        create_model(tiny("vit_small_patch16_rope_mixed_224"), method, classes=2)


def test_biases_that_attention_keeps_apart_are_biases() -> None:
    from viapt.create import create_model

    learned = create_model(tiny("beit_base_patch16_224"), "bitfit", classes=2).learnable()
    assert {name.rpartition("/")[2] for name in learned if "attn" in name} == {"q_bias", "v_bias", "bias"}

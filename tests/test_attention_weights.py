"""Attention weights of every kind of backbone, against the libraries' own attention where it is written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import test_backbones_huggingface as hf
import test_backbones_timm as timms
from test_inspection import classifier
from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone
from viapt.errors import BackboneError
from viapt.explanation import layer_attention
from viapt.methods import create_method
from viapt.model import PromptedClassifier
from viapt.testing import tiny_backbones

PROMPTS = 3
TINY = tiny_backbones()


def entering(backbone: Backbone, x: Tensor, prompts: int = PROMPTS) -> list[tuple[Tensor, Any]]:
    """Tokens and context that enter each block; the prompts go through all of them."""
    with torch.no_grad():
        tokens = backbone.embed(x, prompts)
        more = torch.randn(len(x), prompts, backbone.dim, generator=torch.Generator().manual_seed(2))
        left, found = torch.cat([tokens.prefix, tokens.patches, more], dim=1), []
        for layer in range(backbone.depth):
            found.append((left, tokens.context))
            left = backbone.block(layer, left, tokens.context)
        return found


def caught(backbone: Backbone, layer: int, tokens: Tensor, context: Any, modules: list[nn.Module]) -> list[Any]:
    """What these modules give while the block runs."""
    outputs: list[Any] = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: outputs.append(output)) for module in modules]
    with torch.no_grad():
        backbone.block(layer, tokens, context)
    for hook in hooks:
        hook.remove()
    return outputs


def pictures(backbone: Backbone) -> Tensor:
    return torch.randn(2, *backbone.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TINY)
def test_each_token_shares_out_one(name: str) -> None:
    backbone = TINY[name]()
    for layer, (tokens, context) in enumerate(entering(backbone, pictures(backbone))):
        if name == "swin":
            with pytest.raises(BackboneError, match="inside windows"):
                backbone.attention(layer, tokens, context)
            continue
        weights = backbone.attention(layer, tokens, context)
        assert weights.shape == (2, 2, tokens.shape[1], tokens.shape[1]) and float(weights.min()) >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert float(weights.std(-1).min()) > 0


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith(("hf-", "beit", "swin"))])
def test_tiny_ones_attend_as_timm_writes_it(name: str) -> None:
    check_against_timm(TINY[name]())


@pytest.mark.parametrize("name", timms.ROPES)
def test_rotary_ones_attend_as_timm_writes_it(name: str) -> None:
    check_against_timm(create_backbone(timms.tiny(name)))


def check_against_timm(backbone: Any) -> None:
    """timm applies dropout to the weights where it does not call PyTorch's attention."""
    for layer, (tokens, context) in enumerate(entering(backbone, pictures(backbone))):
        found = backbone.attention(layer, tokens, context)
        attn = backbone.blocks[layer].attn
        attn.fused_attn = False
        (expected,) = caught(backbone, layer, tokens, context, [attn.attn_drop])
        torch.testing.assert_close(found, expected)
        with pytest.raises(BackboneError, match="0 times instead of once"):
            backbone.attention(layer, tokens, context)


@pytest.mark.parametrize(("name", "options"), timms.BEITS)
def test_beit_attends_as_timm_writes_it(name: str, options: dict[str, Any]) -> None:
    """timm's own takes no prompts: with them, other pairs keep their proportions, and the values give the answer."""
    backbone: Any = create_backbone(timms.tiny(name, **options))
    for layer, (tokens, context) in enumerate(entering(backbone, pictures(backbone))):
        block, own = backbone.blocks[layer], tokens[:, :-PROMPTS]
        weights = backbone.attention(layer, tokens, context)
        among = weights[..., :-PROMPTS, :-PROMPTS]
        block.attn.fused_attn = False
        written: list[Tensor] = []
        hook = block.attn.attn_drop.register_forward_hook(lambda _, inputs, output, kept=written: kept.append(output))
        with torch.no_grad():
            block(own, shared_rel_pos_bias=context)
        hook.remove()
        torch.testing.assert_close(among / among.sum(-1, keepdim=True), written[0])
        torch.testing.assert_close(backbone.attention(layer, own, context), written[0])

        (out,) = caught(backbone, layer, tokens, context, [block.attn.proj])
        value = nn.functional.linear(block.norm1(tokens), block.attn.qkv.weight.chunk(3)[2], block.attn.v_bias)
        seen = weights @ value.unflatten(-1, (2, -1)).transpose(1, 2)
        torch.testing.assert_close(block.attn.proj(seen.transpose(1, 2).flatten(2)), out)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("kind", hf.MODELS)
def test_transformers_attend_as_their_eager_attention_says(kind: str, size: tuple[int, int]) -> None:
    """The same weights in a model that is told to write attention out: what is of that shape."""
    model, config, options, others = hf.MODELS[kind]
    settings = getattr(transformers, config)(**options, attn_implementation="eager")
    eager = hf.random(lambda: getattr(transformers, model)(settings, **others))
    backbone, written = (create_backbone(one, image_size=size) for one in (hf.tiny(kind), eager))
    entered = entering(backbone, hf.images(size))
    for layer, (tokens, context) in enumerate(entered):
        outputs = caught(written, layer, tokens, context, list(written.blocks[layer].modules()))
        parts = [part for output in outputs for part in (output if isinstance(output, tuple) else (output,))]
        kept = [part for part in parts if part is not None and part.shape == (2, 2, *2 * tokens.shape[1:2])]
        torch.testing.assert_close(backbone.attention(layer, tokens, context), kept[0])
        with pytest.raises(BackboneError, match=r"0 times instead of once.*attn_implementation") as refused:
            written.attention(layer, tokens, context)
        assert "HuggingFaceViT" in str(refused.value)


@pytest.mark.parametrize("name", [name for name in TINY if name != "swin"])
def test_a_map_and_what_goes_elsewhere_sum_to_one(name: str) -> None:
    backbone = TINY[name]()
    method = create_method("vpt-deep", backbone.widths, backbone.depth, backbone.patch_size, num_prompts=PROMPTS)
    x = pictures(backbone)
    found = layer_attention(PromptedClassifier(backbone, method, ["a", "b"]).eval(), x)
    total = found.maps.sum((-1, -2)) + found.on_prompts + found.on_prefix
    torch.testing.assert_close(total, torch.ones(2, backbone.depth))
    assert found.maps.shape[2:] == backbone.embed(x, 0).grid


def test_attention_to_keys_beyond_the_tokens_is_refused() -> None:
    model = classifier("e2vpt", key_value_prompts=2)
    with pytest.raises(BackboneError, match="for 23 tokens"):
        layer_attention(model, torch.zeros(1, 3, 32, 32))

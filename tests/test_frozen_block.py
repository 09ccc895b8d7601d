"""The blocks' shortcuts: whose work is left out, and that numbers stay what timm's own forward gives."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from viapt.backbones import frozen_block, frozen_linear, timm_vit
from viapt.backbones.timm_vit import TimmViT
from viapt.errors import BackboneError
from viapt.methods.linear import Linear
from viapt.methods.viapt import ViaPT
from viapt.methods.vpt import VPTDeep
from viapt.testing.subject import Subject, tiny_vit

D, T, P, N = 24, 17, 5, 3  # dimensions, class token and patches, prompts, blocks


def tokens(rows: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, count, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def backbone(**options: Any) -> TimmViT:
    built = tiny_vit(**options)
    built.double()
    return built


@pytest.mark.parametrize("needed", ["all", "image", "pooled"])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.5, "qk_norm": True, "qkv_bias": False},
        {"class_token": False, "global_pool": "avg"},
        {"scale_attn_norm": True, "scale_mlp_norm": True},
        {"block_fn": ResPostBlock},
    ],
    ids=["plain", "normalised", "average", "inner norms", "norm after"],
)
def test_what_is_needed_is_what_timms_block_gives(needed: Any, draws: int, expanded: bool, options: Any) -> None:
    model = backbone(**options)
    t = T if options.get("class_token", True) else T - 1
    x, prompts = tokens(2, t), tokens(1 if expanded else 2 * draws, P, seed=1)
    x.requires_grad_(), prompts.requires_grad_()
    entering = prompts.expand(2 * draws, -1, -1) if expanded else prompts
    expected = model.vit.blocks[1](torch.cat([x.repeat(draws, 1, 1), entering], dim=1))
    left, left_prompts = model.advance(1, x, entering, None, needed)
    torch.testing.assert_close(left, expected[:, : left.shape[1]], rtol=0, atol=1e-12)
    torch.testing.assert_close(left_prompts, expected[:, t : t + left_prompts.shape[1]], rtol=0, atol=1e-12)

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = torch.cat([left, left_prompts], dim=1)
    reading = torch.cat([weights[:, : left.shape[1]], weights[:, t : t + left_prompts.shape[1]]], dim=1)
    found = torch.autograd.grad((kept * reading).sum(), [x, prompts])
    chosen = torch.cat([expected[:, : left.shape[1]], expected[:, t : t + left_prompts.shape[1]]], dim=1)
    for one, other in zip(found, torch.autograd.grad((chosen * reading).sum(), [x, prompts]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def sizes(needed: Any, **options: Any) -> tuple[int, int]:
    left, prompts = backbone(**options).advance(1, tokens(2, T), tokens(2, P), None, needed)
    return left.shape[1], prompts.shape[1]


def test_what_nobody_reads_is_left_out() -> None:
    assert sizes("all") == (T, P)
    assert sizes("image") == (T, 0)
    assert sizes("pooled") == (1, 0)
    assert sizes("pooled", global_pool="avg") == (T, 0)
    assert sizes("image", block_fn=ParallelScalingBlock) == (T, P)


def flops(method: type, shortcuts: bool, *, training: bool, **options: Any) -> int:
    """Multiplications and additions for two images: forward, and backward when training."""
    model = Subject(method, tiny_vit(), **options).model().train(training)
    model.backbone.shortcuts = shortcuts
    for block in model.backbone.vit.blocks:
        block.attn.fused_attn = False
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    math = sdpa_kernel(SDPBackend.MATH)  # the counter ignores the fused attention of CPUs
    with pytest.MonkeyPatch.context() as patch, math, FlopCounterMode(display=False) as counter:
        patch.setattr(frozen_linear, "onednn_serves", lambda x, weight: False)  # and oneDNN's operator
        if training:
            model(images, labels)[0].backward()
        else:
            model.requires_grad_(False)(images)
    return counter.get_total_flops()


def test_the_work_is_what_can_be_counted_by_hand() -> None:
    """VPT-Deep on 3 blocks, two images."""
    query = output = 2 * D * D  # what one token costs
    both = 2 * query  # its key and its value
    mlp = 2 * 2 * D * 4 * D
    pair = 2 * 2 * D  # one token looking at another: Q K^T, and A V
    full = 2 * T * (query + both + output + mlp) + P * both + 2 * T * (T + P) * pair
    last = 2 * (query + output + mlp) + 2 * T * both + P * both + 2 * (T + P) * pair
    patches, head = 2 * 16 * 2 * 3 * 64 * D, 2 * 2 * 3 * D
    assert flops(VPTDeep, True, training=False, num_prompts=P) == patches + 2 * full + last + head


@pytest.mark.parametrize(
    ("method", "options"), [(VPTDeep, {"num_prompts": P}), (ViaPT, {"num_prompts": 8}), (Linear, {})]
)
def test_shortcuts_save_work(method: type, options: Any) -> None:
    assert flops(method, True, training=True, **options) < 0.85 * flops(method, False, training=True, **options)


def test_only_blocks_known_to_be_exact_are_cut_short() -> None:
    def plain(**options: Any) -> nn.Module:
        return tiny_vit(**options).vit.blocks[0]

    class Louder(Block):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().forward(x)

    hooked, watched, changed = plain(), plain(), plain()
    hooked.mlp.act.register_forward_hook(lambda *_: None)
    watched.attn.register_forward_pre_hook(lambda *_: None)
    parametrize.register_parametrization(changed.attn.qkv, "weight", nn.Identity())
    assert frozen_block.is_plain(plain())
    for block in (hooked, watched, changed, plain(block_fn=Louder), plain(block_fn=ResPostBlock), nn.Identity()):
        assert not frozen_block.is_plain(block)


def test_the_attention_of_bfloat16_is_attention() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(frozen_block.attend(q, k, v).double(), exact, rtol=0, atol=0.02)
    plain = frozen_block.attend(q.requires_grad_(), k, v)
    assert "ScaledDot" not in str(plain.grad_fn)
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU()])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_an_activation_in_the_same_pass(dtype: torch.dtype, atol: float, activation: nn.Module) -> None:
    layer = nn.Linear(40, 24).to(dtype).requires_grad_(False)
    x = torch.randn(6, 40, dtype=dtype)
    exact = activation(nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()))
    for wanted in (False, True):
        found = frozen_linear.activated(layer, activation, x.clone().requires_grad_(wanted))
        assert found.requires_grad == wanted
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40), (0, 40)])
def test_frozen_products_are_products(dtype: torch.dtype, atol: float, bias: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(shape, generator=generator).to(dtype), torch.randn(30, 40, generator=generator).to(dtype)
    b = torch.randn(30, generator=generator).to(dtype) if bias else None
    x.requires_grad_()
    y = frozen_linear.linear(x, w, b)
    gradient = torch.randn(*shape[:-1], 60, generator=generator).to(dtype)[..., ::2]  # as a slice of another tensor
    y.backward(gradient)
    assert y.dtype == x.grad.dtype == dtype
    exact = x.detach().double() @ w.double().T + (b.double() if bias else 0)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=atol)
    torch.testing.assert_close(x.grad.double(), gradient.double() @ w.double(), rtol=0, atol=atol)


def test_a_weight_that_learns_gets_its_gradient() -> None:
    layer, x = nn.Linear(8, 5), torch.randn(3, 8)
    frozen_linear.apply(layer, x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(5, 8))
    copied = copy.deepcopy(layer).requires_grad_(False)
    assert not frozen_linear.apply(copied, x).requires_grad


def test_a_bias_that_learns_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the frozen weight beside it would let oneDNN serve."""
    monkeypatch.setattr(frozen_linear, "onednn_serves", lambda x, weight: True)
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8)
    bias = torch.zeros(5, requires_grad=True)
    frozen_linear.linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((5,), 3.0))


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's, while it traces
def test_compiled_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, logits and gradients, of batches of several sizes; one kernel for all blocks."""
    timm_vit.compiled_block.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(timm_vit, "check_compiler", lambda device: None)
    plain = Subject(ViaPT, tiny_vit(), num_prompts=8, num_instance_prompts=4).trained().train()
    compiled = copy.deepcopy(plain)
    compiled.backbone.compile_blocks()
    assert copy.deepcopy(compiled).backbone.compiled
    for batch in (4, 5, 7):
        images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 3
        results = []
        for model in (plain, compiled):
            model.zero_grad()
            loss, logits = model(images, labels)
            loss.backward()
            results.append([loss, logits, *(p.grad for p in model.learnable().values())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    timm_vit.compiled_block.cache_clear()


def test_blocks_that_cannot_be_compiled_are_named() -> None:
    with pytest.raises(BackboneError, match="ResPostBlock"):
        tiny_vit(block_fn=ResPostBlock).compile_blocks()
    whole = tiny_vit()
    whole.shortcuts = False
    with pytest.raises(BackboneError, match="no shortcuts"):
        whole.compile_blocks()

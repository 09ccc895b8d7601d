"""ViaPT: its corners are VPT exactly; between them it equals the computation written out in plain tensor code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F  # noqa: N812

from plain_vit import deep, embed, feature, shallow
from viapt.errors import ConfigError
from viapt.methods.base import init_bound
from viapt.methods.viapt import InstanceGenerator, ViaPT
from viapt.methods.vpt import VPTDeep
from viapt.model import PromptedClassifier
from viapt.reduction import REDUCTIONS
from viapt.testing.subject import Subject, tiny_vit

D, N, P = 24, 3, 4
PAPER: dict[str, Any] = {"carry_scale": 1.0, "calibrate_carry": False}
IN_PLACE = [name for name in REDUCTIONS if name != "batch"]  # `batch` rotates what it keeps: the literal reading


def build(**options: Any) -> tuple[PromptedClassifier, Tensor, dict[str, Tensor]]:
    """A model in float64, images, and plain weights."""
    subject = Subject(ViaPT, tiny_vit(), **({"num_prompts": P, "num_instance_prompts": 2} | options))
    model = subject.model().double()
    weights = {name: tensor.detach() for name, tensor in model.backbone.vit.state_dict().items()}
    return model, subject.task(5)[0].double(), weights


def compare(
    model: PromptedClassifier,
    images: Tensor,
    plain: Tensor,
    leaves: dict[str, Tensor],
    noise: Tensor | None = None,
) -> None:
    """Equal features, and equal gradients of a weighted sum of them at `leaves` (by the method's parameter names)."""
    found = model.run(model.embed(images), noise)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
    model.zero_grad()
    (found * weights).sum().backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-11)
    for name, leaf in leaves.items():
        gradient = model.method.get_parameter(name).grad
        assert leaf.grad is not None and leaf.grad.abs().max() > 1e-4, f"the oracle does not use {name}"
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def leaf(model: PromptedClassifier, name: str) -> Tensor:
    return model.method.get_parameter(name).detach().clone().requires_grad_()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_keeping_nothing_is_vpt_deep(reduction: str, training: bool) -> None:
    model, images, weights = build(reduction=reduction, kept_dim=0, **PAPER)
    prompts = leaf(model, "fresh")
    plain = feature(weights, images, 2, deep(prompts, len(images)))
    compare(model.train(training), images, plain, {"fresh": prompts})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reduction", IN_PLACE)
def test_keeping_everything_is_vpt_shallow(reduction: str, training: bool) -> None:
    model, images, weights = build(reduction=reduction, kept_dim=D, num_instance_prompts=0, **PAPER)
    prompts = leaf(model, "dataset_prompts")
    plain = feature(weights, images, 2, shallow(prompts, len(images)))
    compare(model.train(training), images, plain, {"dataset_prompts": prompts})


def test_keeping_everything_in_the_literal_reading_is_not_vpt_shallow() -> None:
    model, images, weights = build(reduction="batch", kept_dim=D, num_instance_prompts=0, **PAPER)
    plain = feature(weights, images, 2, shallow(leaf(model, "dataset_prompts"), len(images)))
    found = model.run(model.embed(images), None)
    assert (found - plain).abs().max() > 1e-3


def complement(v: Tensor) -> Tensor:
    """The last d - m columns of the reflection that maps [-P; 0] to V, P the polar factor of V's top; (d, d - m)."""
    d, m = v.shape
    left, _, right = torch.linalg.svd(v[:m])
    y = v + torch.cat([left @ right, torch.zeros(d - m, m, dtype=v.dtype)])
    return (torch.eye(d, dtype=v.dtype) - 2 * y @ torch.linalg.solve(y.T @ y, y.T))[:, m:]


def plain_generator(g: dict[str, Tensor], patches: Tensor, initial_std: float) -> tuple[Tensor, Tensor]:
    """Mean and std by shifted sums instead of convolutions, for a 1 x 1 and a 3 x 3 kernel on a 4 x 4 grid."""
    x = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = F.gelu(x @ g["encoder.0.weight"].flatten(1).T + g["encoder.0.bias"])
    padded = F.pad(x.reshape(len(x), 4, 4, -1), (0, 0, 1, 1, 1, 1))
    kernel = g["encoder.2.weight"]
    shifted = [padded[:, i : i + 4, j : j + 4] @ kernel[:, :, i, j].T for i in range(3) for j in range(3)]
    x = F.gelu(torch.stack(shifted).sum(0) + g["encoder.2.bias"]).mean((1, 2))
    x = x @ g["project.weight"].T
    mean, log_std = x[:, None, :D], x[:, None, D:]
    return mean, initial_std * log_std.exp()


def plain_viapt(model: PromptedClassifier, weights: dict[str, Tensor], images: Tensor, noise: Tensor | None) -> Any:
    """The paper's five steps for a fixed basis; what enters each block, and the leaves."""
    method = model.method
    generator = {name: p.detach().clone().requires_grad_() for name, p in method.generator.named_parameters()}
    leaves = {f"generator.{name}": p for name, p in generator.items()}
    leaves |= {"fresh": leaf(model, "fresh"), "dataset_prompts": leaf(model, "dataset_prompts")}
    mean, std = plain_generator(generator, embed(weights, images)[1], method.initial_std)
    instance = mean.expand(-1, 2, -1) if noise is None else mean + std * noise
    fused = torch.cat([instance, leaves["dataset_prompts"].expand(len(images), -1, -1)], dim=1)

    def enter(i: int, left: Tensor | None) -> Tensor:
        z = fused if left is None else method.carry_scale * left
        if method.reduction == "select":
            kept = method.kept.mask[i]
            laid = torch.zeros(P, D, dtype=z.dtype).index_copy(1, (~kept).nonzero()[:, 0], leaves["fresh"][i])
            return torch.where(kept, z, laid)
        v = method.kept.v[i]
        return z @ v @ v.T + leaves["fresh"][i] @ complement(v).T

    return enter, leaves


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("reduction", ["random", "select"])
def test_between_the_corners_it_is_the_computation_of_the_paper(reduction: str, sampled: bool) -> None:
    model, images, weights = build(
        reduction=reduction,
        kept_dim=7,
        num_instance_prompts=2,
        carry_scale=0.75,
        calibrate_carry=False,
        initial_std=0.3,
    )
    noise = model.draw_noise(len(images), seed=1) if sampled else None
    enter, leaves = plain_viapt(model, weights, images, noise)
    plain = feature(weights, images, 2, enter)
    if not sampled:  # half of `project` makes the std, which is not used
        leaves.pop("generator.project.weight")
    compare(model, images, plain, leaves, noise)


def test_each_image_has_prompts_of_its_own() -> None:
    model, images, _ = build(num_instance_prompts=2)
    _, patches, grid, _ = model.backbone.embed(images, P)
    fused = model.method.fuse(patches, grid, None)
    instance, dataset = fused[:, :2], fused[:, 2:]
    assert (instance[0] - instance[1]).abs().max() > 1e-4
    torch.testing.assert_close(dataset, model.method.dataset_prompts.expand(5, -1, -1), rtol=0, atol=0)


# --- the generator ---


def generator(**options: Any) -> InstanceGenerator:
    known = {"num_prompts": 1, "width": 4, "kernels": (1, 3), "depthwise": False, "bound": 0.1, "initial_std": 0.05}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InstanceGenerator(D, **(known | options))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, (D * 4 + 4) + (4 * 4 * 9 + 4) + 4 * 2 * D),
        ({"depthwise": True}, (D * 4 + 4) + (4 * 9 + 4) + 4 * 2 * D),
        ({"kernels": (3, 5)}, (D * 4 * 9 + 4) + (4 * 4 * 25 + 4) + 4 * 2 * D),
        ({"num_prompts": 3}, (D * 4 + 4) + (4 * 4 * 9 + 4) + 4 * 2 * 3 * D),
        ({"width": 1}, (D + 1) + (9 + 1) + 2 * D),
    ],
    ids=["default", "depthwise", "kernels", "per prompt", "narrow"],
)
def test_generator_variants(options: dict[str, Any], count: int) -> None:
    g, patches = generator(**options), torch.randn(2, 4 * 6, D)
    mean, std = g(patches, (4, 6))
    assert mean.shape == std.shape == (2, g.num_prompts, D)
    assert sum(p.numel() for p in g.parameters()) == count
    (mean.square().sum() + std.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in g.parameters())


def test_generator_sees_the_grid() -> None:
    g, patches = generator(), torch.randn(1, 24, D)
    wide, narrow = g(patches, (4, 6))[0], g(patches, (6, 4))[0]
    assert (wide - narrow).abs().max() > 1e-6


@given(seed=st.integers(0, 2**16), k=st.integers(1, 5), per_prompt=st.booleans())
def test_reparameterisation(seed: int, k: int, per_prompt: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    method = ViaPT(D, N, (8, 8), num_prompts=5, num_instance_prompts=k, per_prompt=per_prompt, initial_std=0.5)
    patches, noise = torch.randn(3, 16, D, generator=random), torch.randn(3, k, D, generator=random)
    mean, std = method.generator(patches, (4, 4))
    assert mean.shape == (3, k if per_prompt else 1, D)
    sampled = method.sample(patches, (4, 4), noise)
    torch.testing.assert_close(sampled, mean.expand(3, k, D) + std.expand(3, k, D) * noise, rtol=0, atol=0)
    torch.testing.assert_close(method.sample(patches, (4, 4), None), mean.expand(3, k, D), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_std_stays_within_bounds(size: float) -> None:
    g = generator()
    with torch.no_grad():
        g.project.weight.fill_(size)
    _, std = g(torch.randn(8, 16, D), (4, 4))
    low, high = g.log_std_range
    assert std.isfinite().all() and (std > 0).all()
    assert std.min() >= torch.tensor(low).exp() * 0.999 and std.max() <= torch.tensor(high).exp() * 1.001


def test_std_starts_small_and_the_mean_as_small_as_prompts() -> None:
    g = generator(initial_std=0.01, bound=init_bound(D, (8, 8)))
    mean, std = g(torch.randn(8, 16, D), (4, 4))
    assert std.min() > 0.005 and std.max() < 0.02
    assert mean.abs().max() <= 2 * init_bound(D, (8, 8))


@pytest.mark.parametrize("per_prompt", [False, True])
def test_penalty_is_the_kl_divergence_to_the_standard_normal(per_prompt: bool) -> None:
    method = ViaPT(D, N, (8, 8), num_instance_prompts=3, kl_weight=0.25, initial_std=0.3, per_prompt=per_prompt)
    patches = torch.randn(3, 16, D)
    mean, std = method.generator(patches, (4, 4))
    expected = 0.25 * kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(method.penalty(patches, (4, 4)), expected)


@pytest.mark.parametrize("options", [{"kl_weight": 0.0}, {"kl_weight": 1.0, "num_instance_prompts": 0}])
def test_no_penalty_where_there_is_nothing_to_penalise(options: dict[str, Any]) -> None:
    assert ViaPT(D, N, (8, 8), **options).penalty(torch.randn(2, 16, D), (4, 4)) is None


# --- sizes ---


@pytest.mark.parametrize(
    ("dim", "depth"), [(192, 12), (384, 12), (768, 12), (1024, 24)], ids=["ViT-Ti", "ViT-S", "ViT-B", "ViT-L"]
)
def test_the_default_has_fewer_learnable_parameters_than_vpt_deep(dim: int, depth: int) -> None:
    method = ViaPT(dim, depth, (16, 16))
    ours, theirs = size(method), size(VPTDeep(dim, depth, (16, 16), num_prompts=method.num_prompts))
    assert theirs == depth * method.num_prompts * dim
    assert ours < theirs


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_golden_parameter_count() -> None:
    options = {"num_prompts": 10, "num_instance_prompts": 5, "kept_dim": 128, "generator_width": 4}
    parts = {
        "fresh": 12 * 10 * (768 - 128),
        "dataset_prompts": 5 * 768,
        "generator": (768 * 4 + 4) + (4 * 4 * 9 + 4) + 4 * 2 * 768,
    }
    assert size(ViaPT(768, 12, (16, 16), **options)) == sum(parts.values())
    assert size(ViaPT(768, 12, (16, 16), **options, learn_carry_scale=True)) == sum(parts.values()) + 11
    assert size(ViaPT(768, 12, (16, 16), **options, reduction="linear")) == sum(parts.values()) + 12 * 768 * 128


def test_fresh_and_dataset_prompts_start_as_vpt_does() -> None:
    method = ViaPT(768, 12, (16, 16), num_instance_prompts=2)
    for prompts in (method.fresh, method.dataset_prompts):
        assert 0.062 < prompts.detach().abs().max() <= 0.0625


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_prompts": 0, "num_instance_prompts": 0}, "num_prompts"),
        ({"num_prompts": 3, "num_instance_prompts": 4}, "num_instance_prompts"),
        ({"num_instance_prompts": -1}, "num_instance_prompts"),
        ({"kept_dim": D + 1}, "kept_dim"),
        ({"kept_dim": -1}, "kept_dim"),
        ({"calibration_steps": 0}, "calibration_steps"),
        ({"carry_scale": float("nan")}, "carry_scale"),
        ({"generator_width": 0}, "generator_width"),
        ({"generator_kernels": (2, 3)}, "generator_kernels"),
        ({"initial_std": 0.0}, "initial_std"),
        ({"kl_weight": -1.0}, "kl_weight"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{word} = .* is not possible\. Expected: "):
        ViaPT(D, N, (8, 8), **options)


def test_all_impossible_arguments_are_said() -> None:
    with pytest.raises(ConfigError) as caught:
        ViaPT(D, N, (8, 8), kept_dim=D + 1, num_instance_prompts=99, kl_weight=-1.0)
    assert str(caught.value) == (
        f"Not possible: num_instance_prompts = 99, kept_dim = {D + 1}, kl_weight = -1.0. Expected: "
        "num_instance_prompts: 0 to num_prompts = 10; "
        f"kept_dim: 0 to the embedding dimension {D}, or adaptive; kl_weight: 0 or above."
    )


@pytest.mark.parametrize(
    "options",
    [{"num_prompts": 0}, {"num_instance_prompts": -1, "kept_dim": 5, "fresh_dim": "full"}, {"num_prompts": 3}],
)
def test_what_only_follows_from_another_argument_is_no_problem_of_its_own(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^num_\w+ = -?\d is not possible"):
        ViaPT(D, N, (8, 8), **options)

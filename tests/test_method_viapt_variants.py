"""Variants of ViaPT: their corners, and the computation written out in plain tensor code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plain_vit import deep, embed, feature, shallow
from test_method_viapt import PAPER, D, N, P, build, compare, complement, leaf, plain_generator
from training_cases import tiny_data, tiny_model
from viapt.errors import ConfigError
from viapt.inference import predict
from viapt.inspection import inspect_model
from viapt.methods import check_effect
from viapt.methods.viapt import ViaPT
from viapt.methods.vpt import VPTDeep
from viapt.recipe import parameter_groups
from viapt.testing.subject import train
from viapt.training import fit

# name -> arguments under which no more is learned than by VPT-Deep, from ViT-Ti to ViT-L
WITHIN_BUDGET: dict[str, dict[str, Any]] = {
    "spatial": {"spatial": True},
    "adaptive": {"kept_dim": "adaptive"},
    "adaptive for each image": {"kept_dim": "adaptive", "image_gate": True},
    "full": {"fresh_dim": "full"},
    "few fresh rows": {"fresh_rows": 5},
    "variation": {"carried": "variation", "carry_norm": True},
    "every block": {"instance_every": True, "fresh_dim": "full"},
    "mean alone": {"instance_noise": False},
    "slow": {"generator_lr": 0.3, "instance_warmup": 50},
}


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("options", WITHIN_BUDGET.values(), ids=WITHIN_BUDGET)
@pytest.mark.parametrize(
    ("dim", "depth"), [(192, 12), (384, 12), (768, 12), (1024, 24)], ids=["ViT-Ti", "ViT-S", "ViT-B", "ViT-L"]
)
def test_every_variant_has_fewer_learnable_parameters_than_vpt_deep(
    dim: int, depth: int, options: dict[str, Any]
) -> None:
    assert size(ViaPT(dim, depth, (16, 16), **options)) < size(VPTDeep(dim, depth, (16, 16)))


def test_golden_parameter_counts_for_vit_s() -> None:
    def count(**options: Any) -> int:
        return size(ViaPT(384, 12, (14, 14), **options))

    generator = (384 * 2 + 2) + (2 * 2 * 9 + 2) + 2 * 2 * 384
    assert count() == 12 * 10 * 352 + 3 * 384 + generator == 45_736
    assert count(spatial=True) == count() + 2 * 2
    assert count(fresh_dim="full") == 12 * 9 * 384 + generator
    assert count(fresh_dim="full", num_instance_prompts=0) == 12 * 10 * 384
    assert count(fresh_dim="full", fresh_rows=6) == 12 * 6 * 384 + generator
    assert count(fresh_rows=6) == count() - 12 * 4 * 352
    assert count(kept_dim="adaptive") == 12 * 9 * 384 + generator
    assert count(kept_dim="adaptive", image_gate=True, max_kept_dim=50) == 12 * 9 * 384 + generator + 11 * 51
    assert count(instance_every=True) == count() + 11
    assert count(instance_noise=False) == count() - 2 * 384


# --- corners ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kept_dim": 0, "fresh_dim": "full", "carried": "variation", "carry_norm": True},
        {"kept_dim": 5, "fresh_dim": "full", "carry_scale": 0.0},
    ],
    ids=["nothing kept", "nothing carried"],
)
def test_full_width_fresh_parameters_alone_are_vpt_deep(options: dict[str, Any], training: bool) -> None:
    model, images, weights = build(num_instance_prompts=0, **options)
    prompts = leaf(model, "fresh")
    plain = feature(weights, images, 2, deep(prompts, len(images)))
    compare(model.train(training), images, plain, {"fresh": prompts})


@pytest.mark.parametrize("fresh_dim", ["complement", "full"])
def test_closed_gates_are_vpt_deep(fresh_dim: str) -> None:
    model, images, weights = build(kept_dim="adaptive", num_instance_prompts=0, fresh_dim=fresh_dim, **PAPER)
    model.method.kept.opened.zero_()
    prompts = leaf(model, "fresh")
    plain = feature(weights, images, 2, deep(prompts, len(images)))
    compare(model, images, plain, {"fresh": prompts})


def test_open_gates_on_all_axes_but_one_are_vpt_shallow_but_for_that_one() -> None:
    model, images, weights = build(kept_dim="adaptive", max_kept_dim=D - 1, num_instance_prompts=0, **PAPER)
    last = torch.eye(D, dtype=torch.float64)[-1]  # the axes are the first coordinates as long as nothing is known
    fresh = leaf(model, "fresh")
    first = shallow(fresh[0], len(images))

    def enter(i: int, left: Tensor | None) -> Tensor:
        return first(i, left) if left is None else left * (1 - last) + fresh[i] * last

    compare(model, images, feature(weights, images, 2, enter), {"fresh": fresh})


# --- between the corners ---


def plain_variant(model: Any, weights: dict[str, Tensor], images: Tensor, noise: Tensor | None) -> Any:
    """What enters each block of ViaPT with the options that its method has; and the leaves."""
    m = model.method
    names = [name for name, _ in m.named_parameters()]
    leaves = {name: leaf(model, name) for name in names}
    g = {name.removeprefix("generator."): p for name, p in leaves.items() if name.startswith("generator.")}
    patches, k = embed(weights, images)[1], m.num_instance_prompts
    if m.instance_noise:
        mean, std = plain_generator(g, patches, m.initial_std)
        instance = mean + 0 * std if noise is None else mean + std * noise
    else:
        half = g | {"project.weight": torch.cat([g["project.weight"], torch.zeros_like(g["project.weight"])])}
        instance = plain_generator(half, patches, 1.0)[0]
    instance = instance.expand(-1, k, -1)
    unit = (6 / (3 * 8 * 8 + D)) ** 0.5 / 3**0.5

    def fresh(i: int) -> Tensor:
        w = leaves["fresh"][i]
        return torch.cat([torch.zeros(P - len(w), w.shape[1], dtype=w.dtype), w])

    def added(i: int, x: Tensor) -> Tensor:
        """Instance prompts on top of the first k."""
        factor = leaves["instance_scale"][i - 1] if i else 1
        return torch.cat([x[:, :k] + factor * instance, x[:, k:]], dim=1)

    def enter(i: int, left: Tensor | None) -> Tensor:
        if left is None:
            return added(0, fresh(0).expand(len(images), -1, -1))
        z = left - m.scale.mean[i - 1] if m.carried == "variation" else left
        if m.carry_norm:
            z = z * unit / (z.square().mean(-1, keepdim=True) + (unit / 1000) ** 2).sqrt()
        z = m.carry_scale * z * (m.scale.gain[i - 1] if m.calibrate_carry else 1)
        v = m.kept.v[i - 1]
        gates = m.kept.opened[i - 1] if m.kept_dim == "adaptive" else torch.ones(v.shape[1], dtype=v.dtype)
        w = fresh(i) - (fresh(i) @ v * gates) @ v.T if m.fresh_dim == "complement" else fresh(i)
        x = (z @ v * gates) @ v.T + w
        return added(i, x) if m.instance_every else x

    return enter, leaves


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"fresh_dim": "full", "kept_dim": 7, "carried": "variation", "fresh_rows": 2},
        {"fresh_dim": "full", "kept_dim": 7, "carry_norm": True, "calibrate_carry": False, "instance_every": True},
        {"kept_dim": "adaptive", "explained": 0.6, "carried": "variation", "carry_norm": True, "carry_scale": 0.5},
        {"kept_dim": "adaptive", "explained": 0.6, "fresh_dim": "full", "instance_every": True},
        {"fresh_dim": "full", "kept_dim": 7, "instance_noise": False, "instance_every": True},
    ],
    ids=["variation", "normalised, every block", "adaptive", "adaptive, full width", "mean alone"],
)
def test_a_calibrated_variant_is_its_computation_written_out(options: dict[str, Any], sampled: bool) -> None:
    model, images, weights = build(**({"initial_std": 0.3, "carry_scale": 0.25} | options))
    labels = torch.arange(len(images)) % 3
    train(model, images, labels, 3)  # measures subspaces, means and gains
    model.eval()
    noise = model.draw_noise(len(images), seed=1) if sampled else None
    if sampled and not options.get("instance_noise", True):
        assert noise is not None and noise.shape == (len(images), 0, D)
    enter, leaves = plain_variant(model, weights, images, noise)
    plain = feature(weights, images, 2, enter)
    compare(model, images, plain, leaves, noise)


def test_fewer_fresh_rows_leave_the_first_prompts_without() -> None:
    model, images, weights = build(reduction="random", kept_dim=7, fresh_rows=2, num_instance_prompts=3, **PAPER)
    m = model.method
    fused = m.fuse(embed(weights, images)[1], (4, 4), None)
    fresh = leaf(model, "fresh")

    def enter(i: int, left: Tensor | None) -> Tensor:
        z, v = fused if left is None else left, m.kept.v[i]
        laid = fresh[i] @ complement(v).T
        return z @ v @ v.T + torch.cat([torch.zeros_like(laid), laid])

    compare(model, images, feature(weights, images, 2, enter), {"fresh": fresh})


# --- instance prompts ---


def test_a_pass_leaves_no_instance_prompts_behind() -> None:
    model, images, _ = build(instance_every=True)
    model.train()(images)
    assert model.method.instance is None


def test_without_noise_all_rounds_are_equal() -> None:
    model, images, _ = build(instance_noise=False)
    model = model.float()
    found = predict(model, images.float(), policy="multi", rounds=3)
    assert torch.equal(
        torch.as_tensor(found.probabilities), torch.as_tensor(predict(model, images.float()).probabilities)
    )
    assert model.method.sampled_prompts == model.method.training_noise == 0


def test_warming_up_scales_what_the_generator_says() -> None:
    model, images, _ = build(instance_warmup=4)
    patches, grid, method = model.embed(images).patches, (4, 4), model.method.train()
    whole = method.generator(patches, grid)[0]
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        torch.testing.assert_close(method.fuse(patches, grid, None)[:, :2], share * whole.expand(-1, 2, -1))


# --- learning rates ---


def test_the_generator_learns_at_its_own_rate() -> None:
    """In plain gradient descent a step is as long as its rate; nothing else learns at another one."""
    steps = {}
    for factor in (1.0, 0.25):
        model = tiny_model(generator_lr=factor)
        before = {name: p.detach().clone() for name, p in model.learnable().items()}
        options: dict[str, Any] = {
            "epochs": 1,
            "batch_size": 20,
            "warmup_epochs": 0.0,
            "weight_decay": 0.0,
            "progress": False,
        }
        fit(model, tiny_data(20), optimizer="sgd", lr=0.5, **options)
        steps[factor] = {name: p.detach() - before[name] for name, p in model.learnable().items()}
    for name, step in steps[1.0].items():
        factor = 0.25 if name.startswith("method.generator.") else 1.0
        assert step.abs().max() > 0, name
        torch.testing.assert_close(steps[0.25][name], factor * step, rtol=1e-3, atol=1e-7)


def test_groups_decay_as_before_whatever_their_rate() -> None:
    model = tiny_model(generator_lr=0.5)
    names = {id(p): name for name, p in model.learnable().items()}
    groups = parameter_groups(model, 0.1)
    found = {names[id(p)]: (group["weight_decay"], group["lr_factor"]) for group in groups for p in group["params"]}
    assert found["method.generator.project.weight"] == (0.1, 0.5)
    assert found["method.generator.encoder.0.bias"] == (0.0, 0.5)
    assert found["method.fresh"] == found["head.weight"] == (0.1, 1.0)
    assert found["head.bias"] == (0.0, 1.0) and set(found) == set(model.learnable())


# --- what makes no sense ---


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"explained": 0.0}, "explained"),
        ({"explained": 1.5}, "explained"),
        ({"kept_dim": "adaptive", "max_kept_dim": D}, "max_kept_dim"),
        ({"kept_dim": "adaptive", "max_kept_dim": 0}, "max_kept_dim"),
        ({"kept_dim": "adaptive", "reduction": "random"}, "reduction"),
        ({"fresh_rows": 2, "num_prompts": 10, "num_instance_prompts": 7}, "fresh_rows"),
        ({"fresh_rows": 0, "num_prompts": 4, "num_instance_prompts": 4}, "fresh_rows"),
        ({"fresh_rows": 11}, "fresh_rows"),
        ({"instance_warmup": -1}, "instance_warmup"),
        ({"generator_lr": 0.0}, "generator_lr"),
        ({"generator_lr": float("inf")}, "generator_lr"),
        ({"kept_dim": 0, "num_instance_prompts": 11}, "num_instance_prompts"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ViaPT(D, N, (8, 8), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kept_dim": 0},
        {"kept_dim": D, "num_instance_prompts": 0},
        {"carry_scale": 0.0, "fresh_dim": "full"},
        *WITHIN_BUDGET.values(),
    ],
)
def test_a_configuration_that_was_read_makes_the_method_again(options: dict[str, Any]) -> None:
    options = options | ({"fresh_rows": 3} if "fresh_rows" in options else {})
    method = ViaPT(D, N, (8, 8), **({"num_prompts": P, "num_instance_prompts": 2} | options))
    again = ViaPT(D, N, (8, 8), **method.config())
    state = torch.get_rng_state()
    check_effect(again, method.config())
    assert again.config() == method.config() and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"explained": 0.5}, "explained"),
        ({"max_kept_dim": 5}, "max_kept_dim"),
        ({"image_gate": True}, "image_gate"),
        ({"spatial": True, "per_prompt": True}, "per_prompt"),
        ({"spatial": True, "num_instance_prompts": 0}, "spatial"),
        ({"instance_every": True, "num_instance_prompts": 0}, "instance_every"),
        ({"instance_warmup": 3, "num_instance_prompts": 0}, "instance_warmup"),
        ({"generator_lr": 0.3, "num_instance_prompts": 0}, "generator_lr"),
        ({"instance_noise": False, "initial_std": 0.1}, "initial_std"),
        ({"instance_noise": False, "kl_weight": 0.1}, "kl_weight"),
        ({"kept_dim": 0, "fresh_dim": "full"}, "fresh_dim"),
        ({"kept_dim": 0, "fresh_rows": 9}, "fresh_rows"),
        ({"kept_dim": D, "fresh_rows": 9}, "fresh_rows"),
        ({"kept_dim": 0, "carried": "variation"}, "carried"),
        ({"kept_dim": 0, "carry_norm": True}, "carry_norm"),
        ({"carry_scale": 0.0, "carry_norm": True}, "carry_norm"),
        ({"carry_scale": 0.0, "fresh_dim": "full", "kept_dim": 5}, "kept_dim"),
    ],
)
def test_arguments_without_effect_are_refused(options: dict[str, Any], word: str) -> None:
    method = ViaPT(D, N, (8, 8), **options)
    with pytest.raises(ConfigError, match=f"^{word} = .* has no effect"):
        check_effect(method, options)


def test_all_arguments_without_effect_are_said() -> None:
    options: dict[str, Any] = {"explained": 0.5, "kept_dim": 5, "basis_seed": 3}
    with pytest.raises(ConfigError, match=r"^explained = 0\.5 .*; basis_seed = 3 .*leave explained, basis_seed out"):
        check_effect(ViaPT(D, N, (8, 8), **options), options)


@pytest.mark.parametrize("options", WITHIN_BUDGET.values(), ids=WITHIN_BUDGET)
def test_every_variant_can_be_asked_for_and_looked_at(options: dict[str, Any]) -> None:
    model, images, _ = build(**(options | ({"fresh_rows": 3} if "fresh_rows" in options else {})))
    check_effect(model.method, options)
    train(model, images, torch.arange(len(images)) % 3, 1)
    found = inspect_model(model.eval(), images)
    assert found.explained is not None and len(found.explained) == N
    assert found.kept_energy is not None and len(found.kept_energy) == N
    wide = options.get("fresh_dim") == "full" or options.get("kept_dim") == "adaptive"
    assert (found.explained[0] is None) == (found.kept_energy[0] is None) == wide

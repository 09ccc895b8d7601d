"""Gradient through a kept subspace, against finite differences, an eigensolver's own, and nothing at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from distributed_cases import Case, assert_same, together, train
from test_reduction import make, normal, orthonormal, same
from training_cases import tiny_data, tiny_model
from viapt.errors import ConfigError
from viapt.methods import check_effect
from viapt.methods.basis_gradient import FollowedPCA, LeadingSubspace, gaps_inverted
from viapt.reduction import RunningPCA, lift, principal_axes
from viapt.training import fit


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    q = orthonormal(len(values), len(values), seed)
    return q @ torch.diag(values) @ q.T


def projector(moment: Tensor, m: int) -> Tensor:
    """The leading one, with the derivative under test."""
    v = LeadingSubspace.apply(moment, principal_axes(moment.detach(), m)[0])
    return v @ v.mT


def checked(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    check: Any = gradcheck  # its annotations leave out what it takes
    assert check(function, tuple(tensor.clone().requires_grad_() for tensor in inputs), atol=1e-6, rtol=1e-5)


# --- the formula ---


@settings(max_examples=25)
@given(st.integers(2, 7).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d - 1))), st.integers(0, 2**16))
def test_the_projector_against_finite_differences(shape: tuple[int, int], seed: int) -> None:
    d, m = shape
    values = torch.arange(1, d + 1, dtype=torch.float64)
    values[d - m :] += 1
    checked(lambda x: projector(x + x.T, m), symmetric(values, seed))


def test_equal_eigenvalues_on_one_side_do_not_matter() -> None:
    """Where an eigensolver's backward pass, which divides by every gap, is not finite."""
    moment = torch.diag(torch.tensor([1.0, 1, 1, 3, 3], dtype=torch.float64))
    checked(lambda x: projector(x + x.T, 2), moment)
    x = moment.clone().requires_grad_()
    v = torch.linalg.eigh(x + x.T).eigenvectors[:, 3:]
    assert not torch.autograd.grad(((v @ v.T) * normal(5, 5)).sum(), x)[0].isfinite().all()


def test_with_a_gap_everywhere_it_is_what_an_eigensolver_says() -> None:
    moment = symmetric(torch.tensor([0.5, 1, 2, 4, 5], dtype=torch.float64)).requires_grad_()
    v = torch.linalg.eigh((moment + moment.T) / 2).eigenvectors[:, 3:]
    weight = normal(5, 5)
    expected = torch.autograd.grad(((v @ v.T) * weight).sum(), moment)[0]
    found = torch.autograd.grad((projector((moment + moment.T) / 2, 2) * weight).sum(), moment)[0]
    same(found, expected, 1e-6)  # gaps are damped a little everywhere


@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-15, 1e-9, 1e-5, 1e-2])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_where_the_gap_vanishes_the_gradient_stays_bounded(gap: float, scale: float) -> None:
    """At most 5,000 over the eigenvalue inside, and none at no gap."""
    moment = (scale * torch.diag(torch.tensor([0.1, 1 - gap, 1.0], dtype=torch.float64))).requires_grad_()
    v = LeadingSubspace.apply(moment, torch.eye(3, dtype=torch.float64)[:, 2:])
    found = torch.autograd.grad((v[1] + v[0]).sum(), moment)[0]
    assert found.isfinite().all() and found.abs().max() <= 5000 / scale
    share = (gap / (gap**2 + 1e-8)) / 2
    assert found[1, 2].item() * scale == pytest.approx(share, rel=1e-3, abs=1e-3)


def test_axes_without_energy_stay() -> None:
    """One axis tells images apart and two are kept: which the second is, rounding decides."""
    inside, outside = torch.tensor([3e-7, 1.0]), torch.tensor([-2e-8, 1e-8])
    found = gaps_inverted(inside, outside)
    assert not found[:, 0].any() and found[:, 1].tolist() == pytest.approx([1, 1])
    assert not gaps_inverted(torch.zeros(2), torch.zeros(3)).any() and gaps_inverted(inside[:0], outside).shape == (
        2,
        0,
    )


# --- the reduction ---


def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is rounded to float16, which finite differences would see and the gradient leaves out."""
    monkeypatch.setattr(Tensor, "half", lambda self: self)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_what_enters_against_finite_differences(
    monkeypatch: pytest.MonkeyPatch, layer: int, center: bool, before: int
) -> None:
    """Z P + U (I - P) with the P that a plain `running` finds and U as it is, after so many batches."""
    unrounded(monkeypatch)
    d, m, p, batch = 8, 2, 2, 5
    plain = make(RunningPCA, d, m, center=center, steps=8).train()
    spread, common = torch.linspace(0.5, 3, d, dtype=torch.float64), 3 * normal(p, d, seed=9)
    for seed in range(before):
        plain(layer, spread * normal(batch, p, d, seed=seed) + common, normal(p, d - m))
    kept = make(FollowedPCA, d, m, center=center, steps=8).train()
    kept.load_state_dict(plain.state_dict())
    z, fresh = (spread * normal(batch, p, d, seed=7) + common).requires_grad_(), normal(p, d - m, seed=8)
    fresh.requires_grad_()
    weight, direction = normal(batch, p, d, seed=3), normal(batch, p, d, seed=4)
    by_prompts, by_fresh = torch.autograd.grad((kept(layer, z, fresh) * weight).sum(), (z, fresh))
    laid = lift(fresh, kept.v[layer], kept.a[layer])

    def entering(step: float) -> Tensor:
        seen, moved = copy.deepcopy(plain), z.detach() + step * direction
        seen(layer, moved, fresh.detach())
        projector = seen.v[layer] @ seen.v[layer].T
        return ((moved @ projector + laid.detach() @ (torch.eye(d, dtype=z.dtype) - projector)) * weight).sum()

    expected = (entering(1e-5) - entering(-1e-5)) / 2e-5
    assert (by_prompts * direction).sum().item() == pytest.approx(expected.item(), rel=1e-5)
    same(by_fresh, torch.autograd.grad((laid * weight).sum(), fresh)[0])
    around = torch.autograd.grad((copy.deepcopy(plain)(layer, z, fresh) * weight).sum(), z)[0]
    assert torch.equal(by_prompts, around) is (before == 2)  # a basis is taken at steps 1 and 2, not at 3


def test_the_basis_is_that_of_running_bit_for_bit() -> None:
    kept, plain = (make(kind, 16, 3, center=True, steps=5).float().train() for kind in (FollowedPCA, RunningPCA))
    for step in range(7):
        for layer in range(2):
            z, fresh = normal(6, 4, 16, seed=10 * step + layer).float().requires_grad_(), normal(4, 13).float()
            assert torch.equal(kept(layer, z, fresh), plain(layer, z, fresh))
    assert not kept.estimating
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in kept.state_dict().items())


@pytest.mark.parametrize("case", ["zeros", "equal rows", "rank one", "equal values"])
def test_degenerate_prompts_stay_finite(case: str) -> None:
    batch, p, d, m = 3, 4, 8, 3
    z = {
        "zeros": torch.zeros(batch, p, d, dtype=torch.float64),
        "equal rows": normal(d).expand(batch, p, d),
        "rank one": normal(batch, p, 1) * normal(d),
        "equal values": torch.eye(d, dtype=torch.float64)[:4].expand(batch, p, d),
    }[case]
    for center in (False, True):
        kept = make(FollowedPCA, d, m, center=center).train()
        leaf, fresh = z.clone().requires_grad_(), normal(p, d - m).requires_grad_()
        for _ in range(3):
            out = kept(1, leaf, fresh)
            for gradient in torch.autograd.grad(out.square().sum() + out.sum(), (leaf, fresh)):
                assert gradient.isfinite().all()


# --- in the model ---


def gradients(**options: Any) -> dict[str, Tensor]:
    """Of the first training step, which takes a basis."""
    images, labels = tiny_data(8).tensors
    model = tiny_model(**options).double().train()
    model(images.double(), labels)[0].backward()
    return {name: p.grad for name, p in model.learnable().items() if p.grad is not None}


def test_gradients_differ_where_they_should_and_nowhere_else() -> None:
    usual = gradients()
    assert all(torch.equal(g, usual[name]) for name, g in gradients(basis_gradient=False).items())
    through, detached = gradients(basis_gradient=True), gradients(detach_carried=True)
    for found in (through, detached):
        assert found.keys() == usual.keys()
        changed = {name for name, g in found.items() if not torch.equal(g, usual[name])}
        assert "method.generator.project.weight" in changed
    depth = len(usual["method.fresh"])
    assert torch.equal(detached["method.fresh"][depth - 1], usual["method.fresh"][depth - 1])  # nothing behind it


def test_nothing_flows_back_through_what_is_detached() -> None:
    method: Any = tiny_model(detach_carried=True, learn_carry_scale=True).method
    left = normal(3, method.num_prompts, method.dim).float().requires_grad_()
    entering = method.carry(1, left)
    assert torch.equal(entering, tiny_model(learn_carry_scale=True).method.carry(1, left))
    found = torch.autograd.grad(entering.square().sum(), (left, method.scale.scales), allow_unused=True)
    assert found[0] is None and found[1].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"reduction": "random"}, "basis_gradient"),
        ({"kept_dim": 0}, "basis_gradient"),
        ({"initial_prompts": "tokens"}, "basis_gradient"),
        ({"fresh_dim": "full", "detach_carried": True}, "basis_gradient"),
        ({"kept_dim": 0}, "detach_carried"),
        ({"carry_scale": 0.0}, "detach_carried"),
    ],
)
def test_where_they_have_no_effect_they_are_refused(options: dict[str, Any], name: str) -> None:
    given = options | {name: True}
    with pytest.raises(ConfigError, match=f"{name} = True has no effect"):
        check_effect(tiny_model(**given).method, given)


@pytest.mark.parametrize("options", [{"kept_dim": "adaptive"}, {"shared_basis": True}])
def test_where_there_is_no_definition_it_is_refused(options: dict[str, Any]) -> None:
    given = options | {"basis_gradient": True}
    with pytest.raises(ConfigError, match="basis_gradient = True is not possible"):
        tiny_model(**given)


def test_an_adapter_without_the_options_is_the_same_with_them(tmp_path: Path) -> None:
    """Once the basis is frozen nothing tells them apart."""
    model = tiny_model(basis_gradient=True, calibration_steps=2)
    data = tiny_data(12)
    fit(model, data, data, epochs=2, batch_size=4, progress=False)
    other = tiny_model(calibration_steps=2)
    other.load_state_dict(model.state_dict())
    images = data.tensors[0]
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_two_processes_are_one(tmp_path: Path) -> None:
    case = {"through": Case({"basis_gradient": True, "learn_carry_scale": True}, {"epochs": 2})}
    alone, two = tmp_path / "one", tmp_path / "two"
    for folder in (alone, two):
        folder.mkdir()
    train(alone, case)
    together(2, train, two, case)
    for process in (0, 1):
        ends = (torch.load(folder / f"through-{n}.pt", weights_only=True) for folder, n in ((alone, 0), (two, process)))
        assert_same(*ends, tolerance=1e-9)

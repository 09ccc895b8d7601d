"""Gates on principal axes, against singular values by numpy and sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from viapt.gated_reduction import GatedPCA

D, M, P = 10, 6, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gated(**options: Any) -> GatedPCA:
    known = {"explained": 0.9, "image_gate": False, "shared": False, "seed": 0, "steps": 1, "center": False}
    return GatedPCA(D, M, 2, **(known | options)).double()


def spread(seed: int = 0) -> Tensor:
    return normal(20, P, D, seed=seed) * torch.linspace(0.2, 3, D, dtype=torch.float64)


@given(explained=st.floats(0.05, 1), seed=st.integers(0, 2**16))
def test_as_many_axes_open_as_explain_the_variance(explained: float, seed: int) -> None:
    z, fresh = spread(seed), normal(P, D)
    kept = gated(explained=explained).train()
    kept(1, z, fresh)
    _, values, axes = np.linalg.svd(z.reshape(-1, D).numpy(), full_matrices=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    number = next((k for k in range(1, M) if shares[k - 1] >= explained), M)
    if abs(shares[:M] - explained).min() > 1e-5:  # the basis is rounded to float16
        assert kept.opened[1].tolist() == [1.0] * number + [0.0] * (M - number)
        assert kept.explained[1].item() == pytest.approx(shares[number - 1], abs=1e-5)
    v = torch.from_numpy(axes[:number].T)
    expected = z @ v @ v.T + fresh - fresh @ v @ v.T  # fresh parameters in the complement of the axes that open
    if abs(shares[:M] - explained).min() > 1e-5 and (values[:-1] / values[1:]).min() > 1.05:
        torch.testing.assert_close(kept.eval()(1, z, fresh), expected, rtol=0, atol=0.05)


def test_a_closed_gate_gives_the_fresh_parameters_and_an_open_one_the_prompts() -> None:
    kept, z, fresh = gated().eval(), normal(4, P, D), normal(P, D, seed=1)
    v = kept.v[0]
    kept.opened = torch.tensor([[1.0, 0, 1, 0.25, 0, 0]] * 2).double()
    out = kept(0, z, fresh)
    for axis, gate in zip(v.T, kept.opened[0], strict=True):
        torch.testing.assert_close(out @ axis, gate * (z @ axis) + (1 - gate) * (fresh @ axis), rtol=0, atol=1e-12)
    rest = torch.eye(D, dtype=torch.float64) - v @ v.T
    torch.testing.assert_close(out @ rest, (fresh @ rest).expand(4, -1, -1), rtol=0, atol=1e-12)
    kept.opened = torch.zeros(2, M).double()
    assert torch.equal(kept(0, z, fresh), fresh.expand(4, -1, -1))


def test_images_open_the_gates_of_axes_along_which_they_stand_out() -> None:
    kept, z, fresh = gated(image_gate=True, explained=0.8).train(), spread(), normal(P, D, seed=1)
    kept(1, z, fresh)
    kept.eval()
    with torch.no_grad():
        kept.openness.add_(normal(2, M, seed=2))
        kept.slope.mul_(1.5)
    v, number = kept.v[1], int(kept.opened[1].sum())
    assert 1 < number < M
    variance = (z.flatten(0, 1) @ v[:, :number]).pow(2).sum(0)
    expected = []
    for image in spread(seed=3):
        energy = (image @ v[:, :number]).pow(2).sum(0)
        own, usual = energy / energy.sum() + 1e-4 / M, variance / variance.sum() + 1e-4 / M
        gate = torch.zeros(M, dtype=torch.float64)
        gate[:number] = 1 / (1 + (-kept.openness[1, :number]).exp() * (usual / own) ** 1.5)
        expected.append(fresh + ((image - fresh) @ v * gate) @ v.T)
    torch.testing.assert_close(kept(1, spread(seed=3), fresh), torch.stack(expected), rtol=0, atol=1e-9)


def test_gates_do_not_depend_on_the_size_of_what_is_carried() -> None:
    kept, z = gated(image_gate=True).train(), spread()
    kept(1, z, normal(P, D))
    coordinates = z @ kept.v[1]
    torch.testing.assert_close(kept.gates(1, 1e-2 * coordinates), kept.gates(1, coordinates), rtol=0, atol=1e-6)


def test_nothing_carried_has_a_finite_gradient() -> None:
    kept, z = gated(image_gate=True).eval(), torch.zeros(2, P, D, dtype=torch.float64, requires_grad=True)
    kept(0, z, normal(P, D)).square().sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    assert kept.openness.grad is not None and kept.openness.grad.isfinite().all()

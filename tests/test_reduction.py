"""Kept subspaces against their algebra, numpy and plain loops."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from viapt.reduction import (
    REDUCTIONS,
    BatchPCA,
    FixedSubspace,
    InstancePCA,
    LinearProjection,
    RandomSubspace,
    Reduction,
    RunningPCA,
    SelectCoordinates,
    leading_row_axes,
    lift,
    orthonormalise,
    principal_axes,
    reflector,
)

SHAPES = st.integers(2, 12).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d)))
SEEDS = st.integers(0, 2**16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(d: int, m: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(d, m, seed=seed)).Q


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def make(kind: type[Reduction], d: int, m: int, layers: int = 2, **options: Any) -> Any:
    known = {"shared": False, "seed": 0, "steps": 4, "center": False}
    return kind(d, m, layers, **(known | options)).double()


def angle(one: Tensor, other: Tensor) -> float:
    """The largest angle between two subspaces, in radians."""
    return float(scipy.linalg.subspace_angles(one.double().numpy(), other.double().numpy()).max())


# --- the complement ---


@given(SHAPES, SEEDS, st.integers(1, 4))
def test_fresh_parameters_go_into_the_complement_and_keep_their_geometry(
    shape: tuple[int, int], seed: int, p: int
) -> None:
    d, m = shape
    v, fresh = orthonormal(d, m, seed), normal(p, d - m, seed=seed + 1)
    laid = lift(fresh, v, reflector(v))
    assert laid.shape == (p, d)
    same(laid @ v, torch.zeros(p, m, dtype=torch.float64))
    same(laid @ laid.T, fresh @ fresh.T)


@given(SHAPES, SEEDS)
def test_the_complement_depends_on_the_subspace_alone(shape: tuple[int, int], seed: int) -> None:
    d, m = shape
    v, fresh = orthonormal(d, m, seed), normal(3, d - m, seed=seed + 1)
    turned = v @ orthonormal(m, m, seed + 2)  # other signs, other order, any rotation
    same(lift(fresh, turned, reflector(turned)), lift(fresh, v, reflector(v)), 1e-8)


@given(SHAPES, SEEDS)
def test_the_reflector_is_one(shape: tuple[int, int], seed: int) -> None:
    """H = I - A (V + [P; 0])^T is symmetric and orthogonal, and maps [-P; 0] to V."""
    d, m = shape
    v = orthonormal(d, m, seed)
    polar = scipy.linalg.polar(v[:m].numpy())[0] if m else np.zeros((0, 0))
    start = torch.cat([torch.from_numpy(polar), torch.zeros(d - m, m, dtype=torch.float64)])
    h = torch.eye(d, dtype=torch.float64) - reflector(v) @ (v + start).T
    same(h, h.T)
    same(h @ h.T, torch.eye(d, dtype=torch.float64))
    same(-h @ start, v)


@given(st.integers(1, 5), SEEDS)
def test_the_complement_moves_smoothly_with_the_subspace(m: int, seed: int) -> None:
    d, fresh = 12, normal(3, 12 - m, seed=seed)
    turn = normal(d, d, seed=seed + 1)
    turn = turn - turn.T
    start = torch.linalg.matrix_exp(0.1 * turn) @ torch.eye(d, m, dtype=torch.float64)

    def at(t: float) -> Tensor:
        v = torch.linalg.matrix_exp(t * turn) @ start
        return lift(fresh, v, reflector(v))

    step = (at(1e-4) - at(0)).norm()
    assert step < 1e-4 * 50 * turn.norm() * fresh.norm()
    same(at(5e-5), (at(0) + at(1e-4)) / 2, 1e-6 * max(1.0, float(turn.norm() ** 2 * fresh.norm())))


@given(SHAPES, SEEDS)
def test_orthonormalising_finds_the_closest_orthonormal_matrix(shape: tuple[int, int], seed: int) -> None:
    d, m = shape
    rough = orthonormal(d, m, seed) + 0.01 * normal(d, m, seed=seed + 1)
    smooth = orthonormalise(rough)
    same(smooth.T @ smooth, torch.eye(m, dtype=torch.float64))
    if m:
        same(smooth, torch.from_numpy(scipy.linalg.polar(rough.numpy())[0]))


# --- kept in place ---


@given(SHAPES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_pythagoras(shape: tuple[int, int], seed: int, p: int, batch: int) -> None:
    """What enters is Z V V^T and the fresh parameters, at right angles."""
    d, m = shape
    kept = make(RandomSubspace, d, m, seed=seed)
    z, fresh = normal(batch, p, d, seed=seed), normal(p, d - m, seed=seed + 1)
    out, v = kept(1, z, fresh), kept.v[1]
    same(v.T @ v, torch.eye(m, dtype=torch.float64))
    same(out @ v, z @ v)
    same(out.square().sum(-1), (z @ v).square().sum(-1) + fresh.square().sum(-1), 1e-9)
    rest = z - z @ v @ v.T
    same(z.square().sum(-1), (z @ v).square().sum(-1) + rest.square().sum(-1), 1e-9)


@given(SHAPES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_select_keeps_coordinates(shape: tuple[int, int], seed: int, p: int, batch: int) -> None:
    d, m = shape
    kept = make(SelectCoordinates, d, m, seed=seed)
    z, fresh = normal(batch, p, d, seed=seed), normal(p, d - m, seed=seed + 1)
    out, mask = kept(1, z, fresh), kept.mask[1]
    assert mask.sum() == m
    for b in range(batch):
        for k in range(p):
            left, new = iter(z[b, k][mask].tolist()), iter(fresh[k].tolist())
            assert out[b, k].tolist() == [next(left) if keep else next(new) for keep in mask.tolist()]


@given(SHAPES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_linear_projects(shape: tuple[int, int], seed: int, p: int, batch: int) -> None:
    d, m = shape
    kept = make(LinearProjection, d, m)
    z, fresh = normal(batch, p, d, seed=seed), normal(p, d - m, seed=seed + 1)
    same(
        kept(0, z, fresh), torch.cat([z[..., :m], fresh.expand(batch, -1, -1)], -1)
    )  # starts as the first m coordinates
    with torch.no_grad():
        kept.projection.copy_(normal(*kept.projection.shape, seed=seed + 2))
    out = kept(1, z, fresh)
    same(out[..., :m], torch.einsum("bpd,dm->bpm", z, kept.projection[1]))
    same(out[..., m:], fresh.expand(batch, -1, -1), 0)


@given(SHAPES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_instance_keeps_each_images_own_leading_axes(shape: tuple[int, int], seed: int, p: int, batch: int) -> None:
    d, m = shape
    z, fresh = normal(batch, p, d, seed=seed), normal(p, d - m, seed=seed + 1)
    out = make(InstancePCA, d, m)(0, z, fresh)
    for b in range(batch):
        axes = np.linalg.svd(z[b].numpy(), full_matrices=False)[2][:m].T
        v = torch.from_numpy(axes)
        same(out[b] @ v @ v.T, z[b] @ v @ v.T, 1e-7)
        laid = out[b] - out[b] @ v @ v.T
        same(laid @ laid.T, fresh @ fresh.T, 1e-7)


@given(SHAPES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_batch_writes_the_coordinates_of_a_centred_pca_first(
    shape: tuple[int, int], seed: int, p: int, batch: int
) -> None:
    d, m = shape
    z, fresh = normal(batch, p, d, seed=seed), normal(p, d - m, seed=seed + 1)
    out = make(BatchPCA, d, m)(0, z, fresh)
    rows = z.reshape(-1, d).numpy()
    k = min(m, len(rows), d)
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    determined = int((values[:k] > 1e-6).sum())  # centring costs one rank; an axis without variance is arbitrary
    for j in range(determined):
        axis = axes[j] * np.sign(axes[j][np.abs(axes[j]).argmax()])
        same(out[..., j], torch.from_numpy(z.numpy() @ axis), 1e-6)
    same(out[..., k:m], torch.zeros(batch, p, m - k, dtype=torch.float64), 0)
    same(out[..., m:], fresh.expand(batch, -1, -1), 0)


# --- principal axes ---


@given(st.integers(1, 30), st.integers(1, 10), st.integers(0, 10), SEEDS)
def test_row_axes_are_those_of_an_svd(n: int, d: int, m: int, seed: int) -> None:
    rows = normal(n, d, seed=seed)
    axes = leading_row_axes(rows, m)
    expected = np.linalg.svd(rows.numpy(), full_matrices=False)[2][:m].T
    assert axes.shape == expected.shape == (d, min(m, n, d))
    same(axes @ axes.T, torch.from_numpy(expected @ expected.T), 1e-6)


@given(st.integers(2, 10), SEEDS)
def test_explained_variance(d: int, seed: int) -> None:
    rows, m = normal(50, d, seed=seed), d // 2
    axes, explained = principal_axes(rows.T @ rows, m)
    values = np.linalg.svd(rows.numpy(), compute_uv=False) ** 2
    assert explained.item() == pytest.approx(values[:m].sum() / values.sum())
    same(axes.T @ axes, torch.eye(m, dtype=torch.float64))


@pytest.mark.parametrize("kind", REDUCTIONS.values(), ids=REDUCTIONS)
@pytest.mark.parametrize("case", ["zeros", "equal rows", "rank one", "equal values", "tiny gaps", "one token"])
def test_degenerate_prompts_stay_finite(kind: type[Reduction], case: str) -> None:
    """No reduction divides by a gap between eigenvalues, forward or backward."""
    batch, p, d, m = 3, 4, 8, 3
    units = torch.eye(d, dtype=torch.float64)[:4]
    z = {
        "zeros": torch.zeros(batch, p, d, dtype=torch.float64),
        "equal rows": normal(d).expand(batch, p, d),
        "rank one": normal(batch, p, 1) * normal(d),
        "equal values": units.expand(batch, p, d),
        "tiny gaps": (units * (1 + 1e-15 * torch.arange(4)[:, None])).expand(batch, p, d),
        "one token": normal(1, 1, d),
    }[case]
    z = z.clone().requires_grad_()
    fresh = normal(z.shape[1], d - m).requires_grad_()
    kept = make(kind, d, m)
    for _ in range(4):
        out = kept(0, z, fresh)
    out.square().sum().backward()
    assert all(t is not None and t.isfinite().all() for t in (out, z.grad, fresh.grad))


# --- the running estimate ---


def drawn(batch: int, p: int, axes: Tensor, seed: int, noise: float = 0.01) -> Tensor:
    """Prompts that lie near the span of `axes` (d, m)."""
    d, m = axes.shape
    return normal(batch, p, m, seed=seed) @ axes.T + noise * normal(batch, p, d, seed=seed + 1)


@pytest.mark.parametrize("shared", [False, True])
def test_running_finds_the_subspace_and_then_stays(shared: bool) -> None:
    d, m, steps = 16, 3, 5
    axes = orthonormal(d, m, seed=7)
    kept = make(RunningPCA, d, m, shared=shared, steps=steps).train()
    assert angle(kept.v[0], axes) > 0.5
    for step in range(steps):
        assert kept.estimating
        for layer in range(2):
            kept(layer, drawn(8, 4, axes, seed=10 * step + layer), torch.zeros(4, d - m, dtype=torch.float64))
    assert not kept.estimating
    assert all(angle(v, axes) < 0.02 for v in kept.v)
    assert all(0.99 < share <= 1 for share in kept.explained)
    frozen = copy.deepcopy(dict(kept.named_buffers()))
    other = orthonormal(d, m, seed=8)
    for _ in range(20):
        kept(0, drawn(8, 4, other, seed=99), torch.zeros(4, d - m, dtype=torch.float64))
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in kept.named_buffers())


def test_running_estimates_what_an_svd_of_the_same_prompts_finds() -> None:
    d, m = 10, 4
    kept = make(RunningPCA, d, m, steps=1).train()
    z = normal(6, 3, d) * torch.linspace(1, 3, d, dtype=torch.float64)
    kept(0, z, torch.zeros(3, d - m, dtype=torch.float64))
    _, values, axes = np.linalg.svd(z.reshape(-1, d).numpy())
    assert angle(kept.v[0], torch.from_numpy(axes[:m].T)) < 2e-3  # the basis is rounded to float16
    assert kept.explained[0].item() == pytest.approx((values[:m] ** 2).sum() / (values**2).sum())


def test_running_uses_the_prompts_since_the_last_estimate() -> None:
    """Estimates at steps 1, 2, 4, ... and the last; what was seen before an estimate is forgotten after it."""
    d, m, steps = 8, 2, 6
    kept = make(RunningPCA, d, m, layers=1, steps=steps).train()
    spans = [orthonormal(d, m, seed=s) for s in range(steps)]
    found = []
    for step in range(steps):
        kept(0, drawn(16, 4, spans[step], seed=step, noise=0), torch.zeros(4, d - m, dtype=torch.float64))
        found.append(kept.v[0].clone())
    assert angle(found[0], spans[0]) < 2e-3 and angle(found[1], spans[1]) < 2e-3
    same(found[2], found[1], 0)  # no estimate at step 3
    assert angle(found[3], spans[3]) > 1e-2  # of steps 3 and 4 together
    same(found[4], found[3], 0)
    assert angle(found[5], found[4]) > 1e-2  # the last


def test_centred_running_looks_at_what_differs_between_images() -> None:
    """A common mean with most of the energy is not kept; the variation within each slot is."""
    d, m = 12, 2
    axes, common = orthonormal(d, m + 1, seed=3)[:, :m], orthonormal(d, m + 1, seed=3)[:, m]
    varying = drawn(32, 4, axes, seed=5)
    z = varying - varying.mean(0) + 20 * common
    fresh = torch.zeros(4, d - m, dtype=torch.float64)
    centred, plain = (make(RunningPCA, d, m, steps=1, center=center).train() for center in (True, False))
    for kept in (centred, plain):
        kept(1, z, fresh)
    assert angle(centred.v[1], axes) < 0.02
    assert (centred.v[1].T @ common).abs().max() < 0.01
    assert (plain.v[1].T @ common).norm() > 0.99
    alone = make(RunningPCA, d, m, steps=1, center=True).train()
    alone(1, z[:1], fresh)  # one image has no variation
    assert alone.estimating and alone.seen[1] == 0


@pytest.mark.parametrize("kind", REDUCTIONS.values(), ids=REDUCTIONS)
def test_evaluation_changes_no_buffer(kind: type[Reduction]) -> None:
    kept = make(kind, 8, 3).eval()
    before = copy.deepcopy(dict(kept.named_buffers()))
    kept(0, normal(4, 3, 8), normal(3, 5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.named_buffers())


def test_a_stored_basis_needs_two_bytes_a_number() -> None:
    """Saved in float16 it loses nothing: V is derived from the rounded basis alone."""
    kept = RunningPCA(16, 5, 2, shared=False, seed=0, steps=1).train()
    kept(0, normal(8, 4, 16).float(), torch.zeros(4, 11))
    assert torch.equal(kept.basis, kept.basis.half().float())
    assert (kept.basis[0].T @ kept.basis[0] - torch.eye(5)).abs().max() > 1e-6  # rounded
    again = RunningPCA(16, 5, 2, shared=False, seed=0, steps=1)
    again.load_state_dict(kept.state_dict() | {"basis": kept.basis.half()})
    assert torch.equal(again.v, kept.v) and torch.equal(again.a, kept.a)


def test_loading_in_the_middle_of_the_estimate_goes_on_with_it() -> None:
    d, m = 8, 2
    fresh = torch.zeros(4, d - m, dtype=torch.float64)
    whole = make(RunningPCA, d, m, layers=1, steps=4).train()
    interrupted = make(RunningPCA, d, m, layers=1, steps=4).train()
    batches = [normal(6, 4, d, seed=s) for s in range(6)]
    for z in batches:
        whole(0, z, fresh)
    for z in batches[:3]:
        interrupted(0, z, fresh)
    resumed = make(RunningPCA, d, m, layers=1, steps=4).train()
    resumed.load_state_dict(interrupted.state_dict())
    assert resumed.estimating
    for z in batches[3:]:
        resumed(0, z, fresh)
    assert not resumed.estimating
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


@pytest.mark.parametrize("kind", REDUCTIONS.values(), ids=REDUCTIONS)
def test_autocast_does_not_reach_in(kind: type[Reduction]) -> None:
    kept = kind(16, 5, 2, shared=False, seed=0, steps=4).train()
    z, fresh = normal(3, 4, 16).float(), normal(4, 11).float()
    expected = copy.deepcopy(kept)(0, z, fresh)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z @ z.mT).dtype == torch.bfloat16  # autocast is at work here
        found = kept(0, z, fresh)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [RunningPCA, RandomSubspace])
@given(shape=SHAPES, seed=SEEDS)
def test_what_is_not_derived_would_come_out_the_same(
    kind: type[FixedSubspace], shape: tuple[int, int], seed: int
) -> None:
    """At the start, and where a move changes nothing: derived again, V and A have the same values."""
    reduction = kind(*shape, layers=2, shared=False, seed=seed, steps=4)
    for moved in (reduction, reduction.to("cpu"), reduction.float()):
        v, a = moved.v, moved.a
        moved.derive()
        same(moved.v, v, 0.0)
        same(moved.a, a, 0.0)


@pytest.mark.parametrize("kind", [RunningPCA, RandomSubspace, SelectCoordinates, LinearProjection])
def test_a_shared_basis_serves_all_layers(kind: type[Reduction]) -> None:
    z, fresh = normal(2, 3, 8), normal(3, 5)
    own, shared = make(kind, 8, 3, layers=4), make(kind, 8, 3, layers=4, shared=True)
    assert {len(tensor) for tensor in shared.state_dict().values()} == {1}
    assert {len(tensor) for tensor in own.state_dict().values()} == {4}
    assert torch.equal(shared.eval()(0, z, fresh), shared(3, z, fresh))


@pytest.mark.parametrize("kind", [RandomSubspace, SelectCoordinates])
def test_what_is_drawn_depends_on_the_seed_alone(kind: type[Reduction]) -> None:
    def state(seed: int) -> list[Tensor]:
        return list(make(kind, 8, 3, seed=seed).state_dict().values())

    numbers = torch.get_rng_state()
    first = state(1)
    assert torch.equal(torch.get_rng_state(), numbers)
    torch.rand(3)
    assert all(map(torch.equal, first, state(1)))
    assert not all(map(torch.equal, first, state(2)))

"""What is carried, against the sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from viapt.methods.carry import CarryScale

N, P, D, UNIT, SCALE = 3, 4, 8, 0.05, 0.25


def batches(count: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    slots = torch.randn(P, D, generator=random, dtype=torch.float64)
    return [3 * slots + torch.randn(6, P, D, generator=random, dtype=torch.float64) for _ in range(count)]


def carry(**options: Any) -> CarryScale:
    known = {"learn": False, "measure": True, "unit": UNIT, "steps": 3, "mean_of": (P, D), "normalise": False}
    return CarryScale(N, SCALE, **(known | options)).double()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_what_is_carried_is_the_prompts_less_their_mean_at_a_size(
    varying: bool, measure: bool, normalise: bool
) -> None:
    found = carry(measure=measure, normalise=normalise, mean_of=(P, D) if varying else None).train()
    mean, gains = torch.zeros(P, D, dtype=torch.float64), []

    def remaining(z: Tensor) -> Tensor:
        z = z - mean if varying else z
        sizes = (z.pow(2).mean(-1, keepdim=True) + (UNIT / 1000) ** 2).sqrt()
        return UNIT * z / sizes if normalise else z

    seen = batches(5)
    for step, z in enumerate(seen):
        if step < 3:
            mean = torch.stack([batch.mean(0) for batch in seen[: step + 1]]).mean(0)
            rest = remaining(z)
            gains.append(UNIT / (rest - rest.mean(0)).pow(2).mean().sqrt())
        gain = torch.stack(gains).mean() if measure else 1
        out = found(2, z)
        found(1, z)
        torch.testing.assert_close(out, SCALE * gain * remaining(z), rtol=1e-9, atol=1e-12)
    assert not found.measuring
    frozen = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    found(1, 7 + seen[0])
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in found.state_dict().items())


def test_evaluation_uses_what_was_measured_and_one_image_measures_nothing() -> None:
    found, (z, other) = carry().train(), batches(2)
    found(1, z[:1])
    assert found.mean.abs().max() == 0 and found.gain.min() == found.gain.max() == 1
    found(1, z)
    before = found.mean.clone()
    found.eval()
    torch.testing.assert_close(found(1, other[:1]), found(1, other)[:1], rtol=0, atol=1e-15)
    assert torch.equal(found.mean, before)


def test_loading_in_the_middle_goes_on_measuring() -> None:
    seen, whole, interrupted, resumed = batches(3), carry().train(), carry().train(), carry().train()
    for z in seen:
        for layer in (1, 2):
            whole(layer, z)
    for layer in (1, 2):
        interrupted(layer, seen[0])
    resumed.load_state_dict(interrupted.state_dict())
    for z in seen[1:]:
        for layer in (1, 2):
            resumed(layer, z)
    assert not resumed.measuring
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_a_token_of_no_size_stays_finite() -> None:
    z = torch.zeros(2, P, D, dtype=torch.float64, requires_grad=True)
    out = carry(mean_of=None, measure=False, normalise=True)(1, z)
    out.sum().backward()
    assert out.abs().max() == 0 and z.grad is not None and z.grad.isfinite().all()

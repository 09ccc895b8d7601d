"""Spatial instance prompts against torch's adaptive pooling and plain convolutions; and prompts that grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from viapt.methods.instance_generator import InstanceGenerator, WarmUp, cell_means, cells, coordinates

D = 12
SIDES = st.integers(1, 9)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(**options: Any) -> InstanceGenerator:
    known = {"num_prompts": 6, "width": 3, "kernels": (1, 3), "depthwise": False, "bound": 0.5, "initial_std": 0.05}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InstanceGenerator(D, spatial=True, **(known | options)).double()


@given(count=st.integers(1, 12), height=SIDES, width=SIDES)
def test_cells_are_averaged_as_torch_pools_adaptively(count: int, height: int, width: int) -> None:
    features = normal(2, 3, height, width)
    expected = F.adaptive_avg_pool2d(features, cells(count, (height, width))).flatten(2).mT
    torch.testing.assert_close(cell_means(features, count), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "grid", "expected"),
    [
        (9, (7, 7), (3, 3)),
        (6, (7, 7), (2, 3)),
        (7, (7, 7), (1, 7)),
        (1, (7, 7), (1, 1)),
        (8, (4, 8), (2, 4)),
        (8, (8, 4), (4, 2)),
        (2, (8, 4), (2, 1)),
        (6, (6, 6), (2, 3)),
    ],
)
def test_cells_are_as_square_as_can_be(count: int, grid: tuple[int, int], expected: tuple[int, int]) -> None:
    assert cells(count, grid) == expected


def test_coordinates_are_those_of_token_centres() -> None:
    found = coordinates((2, 4), torch.zeros(1, dtype=torch.float64))
    assert found[0, 0].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
    assert found[0, 1].tolist() == [[-0.5] * 4, [0.5] * 4]


def test_spatial_prompts_are_convolutions_of_tokens_and_coordinates_averaged_in_cells() -> None:
    g, patches = generator(kernels=(3, 3)), normal(2, 20, D)
    w = dict(g.named_parameters())
    x = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = x.mT.reshape(2, D, 4, 5)
    across = torch.tensor([[-0.8, -0.4, 0, 0.4, 0.8]], dtype=torch.float64)
    down = torch.tensor([[-0.75], [-0.25], [0.25], [0.75]], dtype=torch.float64)
    places = torch.stack([across.expand(4, 5), down.expand(4, 5)]).expand(2, -1, -1, -1)
    x = F.gelu(F.conv2d(torch.cat([x, places], 1), w["encoder.0.weight"], w["encoder.0.bias"], padding=1))
    x = F.gelu(F.conv2d(x, w["encoder.2.weight"], w["encoder.2.bias"], padding=1))
    mean, std = g(patches, (4, 5))
    assert mean.shape == std.shape == (2, 6, D)
    # Six cells of a 4 x 5 grid: two rows of three columns, which overlap, since 5 / 3 is no whole number.
    for k, (rows, columns) in enumerate((r, c) for r in ((0, 2), (2, 4)) for c in ((0, 2), (1, 4), (3, 5))):
        kind = x[:, :, slice(*rows), slice(*columns)].mean((2, 3)) @ w["project.weight"].T
        torch.testing.assert_close(mean[:, k], kind[:, :D], rtol=0, atol=1e-12)
        torch.testing.assert_close(std[:, k], 0.05 * kind[:, D:].exp(), rtol=0, atol=1e-12)


def test_a_spatial_prompt_sees_its_own_cell_alone() -> None:
    g, patches = generator(kernels=(1, 1), num_prompts=4), normal(1, 16, D)
    moved = patches.clone()
    moved[:, 10] += normal(D, seed=1)  # third row, third column: the last of 2 x 2 cells
    difference = (g(moved, (4, 4))[0] - g(patches, (4, 4))[0]).abs().amax(-1)[0]
    assert difference[:3].max() == 0 and difference[3] > 1e-3


def test_the_generator_knows_where() -> None:
    """Equal tokens everywhere give other prompts in other cells; not without the weights of the coordinates."""
    g, patches = generator(kernels=(1, 1), num_prompts=4), normal(1, 1, D).expand(1, 16, D)
    assert (g(patches, (4, 4))[0][0] - g(patches, (4, 4))[0][0, 0]).abs().amax(-1)[1:].min() > 1e-4
    with torch.no_grad():
        g.get_parameter("encoder.0.weight")[:, D:] = 0
    found = g(patches, (4, 4))[0][0]
    torch.testing.assert_close(found, found[:1].expand(4, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spatial", [False, True])
def test_without_a_std_there_is_half_the_projection(spatial: bool) -> None:
    g = generator(initial_std=None)
    assert g.project.weight.shape == (D, 3)
    assert g(normal(2, 16, D), (4, 4))[1] is None


def test_prompts_grow_in_training_alone() -> None:
    warmup, prompts = WarmUp(4), normal(2, 3, D)
    assert warmup.eval()(prompts).abs().max() == 0
    warmup.train()
    for share in (0.25, 0.5, 0.75, 1, 1, 1):
        torch.testing.assert_close(warmup(prompts), share * prompts)
    torch.testing.assert_close(warmup.eval()(prompts), prompts)
    assert not WarmUp(0).state_dict() and WarmUp(0)(prompts) is prompts

"""Prompts that start as tokens: against what timm's own blocks are given, and against algebra."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from training_cases import learned_bits, quiet, tiny_data, tiny_images, tiny_model
from viapt.errors import ConfigError
from viapt.initialisation import begin, drawn_tokens
from viapt.methods import create_method
from viapt.model import PromptedClassifier
from viapt.recipe import Recipe
from viapt.reduction import REDUCTIONS
from viapt.training import fit

RECIPE = Recipe(
    epochs=1,
    lr=0.01,
    batch_size=8,
    accumulate=1,
    optimizer="adamw",
    weight_decay=0.0,
    warmup_epochs=0.0,
    clip=None,
    selection="last",
    seed=0,
)
TOKENS: dict[str, Any] = {"initial_prompts": "tokens"}


def entering(model: PromptedClassifier, images: Tensor) -> list[Float[Tensor, "n d"]]:
    """The patch tokens that timm's forward gives to each block."""
    seen: list[Tensor] = []
    vit: Any = model.backbone.get_submodule("vit")
    hooks = [block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for block in vit.blocks]
    with torch.no_grad():
        vit(images)
    for hook in hooks:
        hook.remove()
    return [x[:, 1:].flatten(0, 1) for x in seen]


def test_each_prompt_is_a_token_that_enters_its_block_in_the_size_of_a_prompt() -> None:
    model, images = tiny_model("vpt-deep", num_prompts=3), tiny_images(4)
    drawn = drawn_tokens(model, images, 5)
    assert torch.equal(drawn, drawn_tokens(model, images, 5))
    assert not torch.equal(drawn, drawn_tokens(model, images, 6))
    unit = math.sqrt(6 / (3 * 16 * 16 + 32)) / math.sqrt(3)
    for prompts, tokens in zip(drawn, entering(model, images), strict=True):
        torch.testing.assert_close(prompts.square().mean(-1).sqrt(), torch.full((3,), unit))
        likeness = torch.nn.functional.cosine_similarity(prompts[:, None], tokens[None], dim=-1)
        assert (likeness.amax(1) > 1 - 1e-5).all()
        assert likeness.argmax(1).unique().numel() == 3  # of different tokens


def test_more_prompts_than_tokens_use_some_twice() -> None:
    drawn = drawn_tokens(tiny_model("vpt-deep", num_prompts=9), tiny_images(1), 0)
    assert drawn.shape == (2, 9, 32)
    assert torch.equal(drawn[:, 4:8], drawn[:, :4])  # a 32-pixel image has four


@pytest.mark.parametrize("reduction", ["running", "random", "select", "linear", "batch"])
@pytest.mark.parametrize("kept_dim", [0, 3, 31])
def test_fresh_coordinates_give_back_what_lies_outside_the_kept_subspace(reduction: str, kept_dim: int) -> None:
    kept = REDUCTIONS[reduction](32, kept_dim, 2, shared=False, seed=3, steps=2, center=True).train()
    if reduction == "running":
        kept(1, torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 32 - kept_dim))
    vectors = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(1, 4, 32)
    lifted = kept.eval()(1, nothing, kept.coordinates(1, vectors))[0]
    # What lies outside is reached by fresh parameters; the closest point is where the rest is orthogonal to all of it.
    directions = torch.stack(
        [kept(1, nothing[:, :1], row[None])[0, 0] for row in torch.eye(32 - kept_dim)]
    )  # an orthonormal basis of it
    torch.testing.assert_close(directions @ directions.mT, torch.eye(32 - kept_dim), atol=1e-5, rtol=0)
    torch.testing.assert_close((vectors - lifted) @ directions.mT, torch.zeros(4, 32 - kept_dim), atol=1e-5, rtol=0)


def test_viapt_starts_in_subspaces_that_stay() -> None:
    data = tiny_data(40)
    model = tiny_model("viapt", calibration_steps=3, **TOKENS)
    begin(model, data, RECIPE)
    method: Any = model.method
    basis, gain = method.kept.basis.clone(), method.scale.gain.clone()
    first = torch.stack([data[i][0] for i in first_order(40, 8, 0)])
    tokens = drawn_tokens(model, first, 0)
    for layer in range(2):
        v = method.kept.v[layer]
        expected = tokens[layer] - tokens[layer] @ v @ v.mT
        entered = method.kept(layer, torch.zeros(1, 4, 32), method.fresh[layer])[0]
        torch.testing.assert_close(entered, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(method.dataset_prompts.detach(), tokens[0, 2:])
    quiet(model, data)  # begins again, with the same images
    assert torch.equal(method.kept.basis, basis) and torch.equal(method.scale.gain, gain)


def first_order(count: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the first batch of a training, by the rule that its documentation states: (seed, epoch)."""
    import numpy as np

    return np.random.Generator(np.random.PCG64([seed, 0])).permutation(count).tolist()[:batch_size]


def test_the_corner_is_vpt_deep_to_the_last_bit() -> None:
    data = tiny_data(20)
    deep = tiny_model("vpt-deep", num_prompts=4, **TOKENS)
    corner = tiny_model("viapt", num_prompts=4, num_instance_prompts=0, kept_dim=0, **TOKENS)
    corner.head.load_state_dict(deep.head.state_dict())
    assert [e.train_loss for e in quiet(deep, data).epochs] == [e.train_loss for e in quiet(corner, data).epochs]
    assert torch.equal(deep.method.get_parameter("prompts"), corner.method.get_parameter("fresh"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fresh_dim": "full"},
        {"kept_dim": "adaptive"},
        {"reduction": "select", "kept_dim": 8},
        {"reduction": "batch", "kept_dim": 8},
        {"kept_dim": 32, "calibrate_carry": False, "carry_scale": 1.0},
        {"instance_warmup": 5, "spatial": True},
    ],
    ids=str,
)
def test_every_form_of_viapt_starts_and_learns(options: dict[str, Any]) -> None:
    model = tiny_model("viapt", **options, **TOKENS)
    before = learned_bits(model)
    history = quiet(model, tiny_data(20), epochs=3)
    assert math.isfinite(history.epochs[-1].train_loss)
    assert learned_bits(model) != before
    if options.get("instance_warmup"):
        assert model.method.get_buffer("warmup.seen") == 9  # steps of the training alone


def test_a_shallow_or_shared_prompt_takes_the_tokens_of_the_first_block() -> None:
    for method, options in (("vpt-shallow", {}), ("vpt-deep", {"shared": True})):
        model = tiny_model(method, **options, **TOKENS)
        begin(model, tiny_data(8), RECIPE)
        images = torch.stack([tiny_data(8)[i][0] for i in first_order(8, 8, 0)])
        assert torch.equal(model.method.get_parameter("prompts"), drawn_tokens(model, images, 0)[0])


def test_a_resumed_training_does_not_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(24)
    whole = tiny_model("viapt", **TOKENS)
    fit(whole, data, epochs=3, batch_size=8, progress=False, out=tmp_path / "whole")

    from viapt.training import Training

    steps = Training.step

    def dying(self: Training, *arguments: Any) -> None:
        if self.standing.step == 5:
            raise KeyboardInterrupt
        steps(self, *arguments)

    monkeypatch.setattr(Training, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model("viapt", **TOKENS), data, epochs=3, batch_size=8, progress=False, out=tmp_path / "cut")
    monkeypatch.undo()
    again = tiny_model("viapt", **TOKENS)
    history = fit(again, data, epochs=3, batch_size=8, progress=False, out=tmp_path / "cut")
    assert history.resumed_step == 3
    assert learned_bits(again) == learned_bits(whole)


def test_uniform_prompts_stay_as_they_are() -> None:
    model = tiny_model("viapt")
    before = learned_bits(model)
    begin(model, tiny_data(8), RECIPE)
    assert learned_bits(model) == before


@pytest.mark.parametrize("method", ["viapt", "vpt-deep", "vpt-shallow"])
def test_blocks_of_several_widths_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match="initial_prompts"):
        create_method(method, (32, 64), 2, (16, 16), **TOKENS)


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("vpt-deep", {"projected_dim": 4}, "projected_dim"),
        ("viapt", {"reduction": "instance"}, "initial_prompts"),
        ("viapt", {"initial_prompts": "zeros"}, "initial_prompts"),
    ],
)
def test_what_is_impossible_is_refused(method: str, options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        create_method(method, 32, 2, (16, 16), **(TOKENS | options))

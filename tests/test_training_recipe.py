"""The recipe against torch's own schedulers and AdamW's algebra; every learnable tensor in one group."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training_cases import quiet, tiny_data, tiny_model
from viapt.errors import ConfigError, TrainingError
from viapt.recipe import EpochBatches, Recipe, check_coverage, parameter_groups


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "epochs": 4,
        "lr": 0.1,
        "batch_size": 8,
        "accumulate": 1,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "warmup_epochs": 1.0,
        "clip": None,
        "selection": "last",
        "seed": 0,
    }
    return Recipe(**values | changes)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 2.0])
def test_learning_rate_is_that_of_torch_schedulers(warmup: float) -> None:
    steps_per_epoch, total, steps = 10, 40, int(10 * warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - steps)
    if steps:
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / steps, 1.0, steps - 1)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, schedule], [steps])
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    actual = [recipe(warmup_epochs=warmup).lr_at(step, steps_per_epoch) for step in range(total)]
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize("method", ["viapt", "vpt-deep", "vpt-shallow", "linear"])
def test_every_learnable_tensor_is_in_one_group(method: str) -> None:
    options = {"learn_carry_scale": True} if method == "viapt" else {}
    model = tiny_model(method, **options)
    groups = parameter_groups(model, 0.5)
    grouped = [id(tensor) for group in groups for tensor in group["params"]]
    assert sorted(grouped) == sorted(id(tensor) for tensor in model.learnable().values())
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    decay = {names[id(tensor)]: group["weight_decay"] for group in groups for tensor in group["params"]}
    assert decay["head.weight"] == 0.5 and decay["head.bias"] == 0
    if method == "viapt":
        assert decay["method.fresh"] == 0.5 and decay["method.scale.scales"] == 0


def test_what_is_in_no_group_or_frozen_or_in_two_is_refused() -> None:
    model = tiny_model()
    model.backbone.vit.cls_token.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"backbone\.vit\.cls_token.*freeze"):
        quiet(model, tiny_data())
    model = tiny_model()
    model.head.bias.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"head\.bias.*requires_grad"):
        quiet(model, tiny_data())
    model = tiny_model("linear")
    with pytest.raises(TrainingError, match=r"head\.weight.*one parameter group"):
        check_coverage(model, [model.head.weight, model.head.weight, model.head.bias])
    with pytest.raises(TrainingError, match=r"head\.bias"):
        check_coverage(model, [model.head.weight])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_is_applied_to_matrices_as_the_algebra_says(optimizer: Any) -> None:
    model = tiny_model("vpt-deep")
    nn.init.ones_(model.head.bias)
    before = {name: tensor.detach().clone() for name, tensor in model.learnable().items()}
    stepper = recipe(optimizer=optimizer, weight_decay=0.5).build_optimizer(model)
    for tensor in model.learnable().values():
        tensor.grad = torch.zeros_like(tensor)
    stepper.step()
    for name, tensor in model.learnable().items():
        shrunk = before[name] * (1 - 0.1 * 0.5)  # lr * decay; alike for SGD's first step
        torch.testing.assert_close(tensor.detach(), shrunk if tensor.ndim >= 2 else before[name])


def test_decay_reaches_the_weights_through_fit() -> None:
    norms = []
    for decay in (0.0, 5.0):
        model = tiny_model("vpt-deep")
        quiet(model, tiny_data(), lr=0.01, weight_decay=decay)
        norms.append(model.method.prompts.norm().item())
    assert norms[1] < 0.9 * norms[0]


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_sees_every_image_once_and_can_be_entered_anywhere(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    batches = EpochBatches(count, batch_size, seed)
    batches.set_epoch(epoch)
    whole = list(batches)
    assert sorted(index for batch in whole for index in batch) == list(range(count))
    assert [len(batch) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    assert len(whole) == len(batches) == batches.steps_per_epoch
    for batches.start in range(len(whole) + 1):
        assert list(batches) == whole[batches.start :]
        assert len(batches) == len(whole) - batches.start


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = EpochBatches(30, 30, seed)
        batches.set_epoch(epoch)
        orders.append(next(iter(batches)))
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_all_impossible_values_are_said() -> None:
    with pytest.raises(ConfigError, match=r"^Not possible: lr = -1\.0, weight_decay = -2\.0\. Expected: lr: a finite"):
        recipe(lr=-1.0, weight_decay=-2.0)
    for name, implied in (("epochs", {"warmup_epochs": 0.1}), ("batch_size", {"accumulate": 1})):
        with pytest.raises(ConfigError, match=rf"^{name} = 0 is not possible"):
            recipe(**{name: 0}, **implied)


@pytest.mark.parametrize("name", ["optimizer", "selection"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = 'best' is not possible.*one of"):
        recipe(**{name: "best"})


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0, "warmup_epochs": 0.0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"batch_size": 0},
        {"accumulate": 0},
        {"accumulate": 9},
        {"weight_decay": -1.0},
        {"warmup_epochs": 3.0},
        {"clip": 0.0},
        {"seed": -1},
        {"selection": "best-val"},  # without validation data
        {"optimizer": "sgd"},  # without a learning rate
        {"overwrite": True},  # without a folder
        {"tensorboard": True},
    ],
)
def test_arguments_out_of_range_or_without_effect_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="lr" if changes == {"optimizer": "sgd"} else next(iter(changes))):
        quiet(tiny_model("linear"), tiny_data(), **changes)

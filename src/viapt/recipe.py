"""How a model is trained: the numbers that decide its weights, and what follows from them step by step.

Everything here is a function of the recipe and of the step, so nothing of it needs to be remembered to resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import nn, optim
from torch.utils.data import Sampler

from viapt.device import adamw
from viapt.errors import TrainingError, check_rules
from viapt.model import PromptedClassifier
from viapt.quantisation import is_quantised

OptimizerName = Literal["adamw", "sgd"]
Selection = Literal["last", "best-val"]


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides model and data; `fit` explains the fields.

    Raises:
        ConfigError: naming every value that is out of range.
    """

    epochs: int
    lr: float
    batch_size: int
    accumulate: int
    optimizer: str
    weight_decay: float
    warmup_epochs: float
    clip: float | None
    selection: str
    seed: int

    def __post_init__(self) -> None:
        # What is bounded by a value that is itself impossible is no problem of its own.
        accumulates = self.accumulate >= 1 and (self.batch_size < 1 or self.accumulate <= self.batch_size)
        warms_up = self.epochs < 1 or 0 <= self.warmup_epochs <= self.epochs
        rules = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", math.isfinite(self.lr) and self.lr > 0, "a finite number above 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("accumulate", accumulates, f"1 to batch_size = {self.batch_size}"),
            ("optimizer", self.optimizer in get_args(OptimizerName), f"one of {', '.join(get_args(OptimizerName))}"),
            ("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "0 or above"),
            ("warmup_epochs", warms_up, f"0 to epochs = {self.epochs}"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or None"),
            ("selection", self.selection in get_args(Selection), f"one of {', '.join(get_args(Selection))}"),
            ("seed", self.seed >= 0, "0 or above"),
        ]
        check_rules(vars(self), rules)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step (from 0): linear warm-up to `lr`, then half a cosine towards 0."""
        warmup, total = round(self.warmup_epochs * steps_per_epoch), self.epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    def build_optimizer(self, model: PromptedClassifier) -> optim.Optimizer:
        """AdamW, or SGD with momentum 0.9, over `parameter_groups`."""
        groups = parameter_groups(model, self.weight_decay)
        if self.optimizer == "adamw":
            return adamw(groups, self.lr)
        return optim.SGD(groups, lr=self.lr, momentum=0.9)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with what is the same in every recipe."""
        return asdict(self) | {"schedule": "linear warm-up, cosine"}


def parameter_groups(model: PromptedClassifier, weight_decay: float) -> list[dict[str, Any]]:
    """Every learnable tensor in one group, and no other: matrices decay, vectors (biases, scales) do not.

    Prompts are matrices (p, dim): they decay, as in VPT. What learns at a rate of its own is in groups of its own,
    whose "lr_factor" is not 1.

    Raises:
        TrainingError: a tensor of method or head is frozen, or one of the backbone is not.
    """
    learnable = model.learnable()
    factors = {f"method.{name}": factor for name, factor in model.method.learning_rates().items()}
    groups: list[dict[str, Any]] = []
    for factor in dict.fromkeys([1.0, *factors.values()]):
        own = [tensor for name, tensor in learnable.items() if factors.get(name, 1.0) == factor]
        decayed = [tensor for tensor in own if tensor.ndim >= 2]
        others = [tensor for tensor in own if tensor.ndim < 2]
        groups.append({"params": decayed, "weight_decay": weight_decay, "lr_factor": factor})
        groups.append({"params": others, "weight_decay": 0.0, "lr_factor": factor})
    check_coverage(model, [tensor for group in groups for tensor in group["params"]])
    return [group for group in groups if group["params"]]


def check_trainable(model: PromptedClassifier) -> None:
    """Refuse a model for inference alone.

    Raises:
        TrainingError: it is quantised.
    """
    if is_quantised(model):
        raise TrainingError(
            "The model is quantised, and int8 weights have no gradients",
            expected="a model in float32 or bfloat16",
            remedy="train the model that it was made from, then quantise that",
        )


def check_coverage(model: PromptedClassifier, grouped: list[nn.Parameter]) -> None:
    """Refuse unless the tensors that want gradients are the grouped ones, each once."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    wanted = {id(tensor) for tensor in model.parameters() if tensor.requires_grad}
    given = {id(tensor) for tensor in grouped}
    ungrouped = sorted(names[key] for key in wanted - given)
    frozen = sorted(names.get(key, "a tensor of another model") for key in given - wanted)
    twice = sorted({names[id(tensor)] for tensor in grouped if sum(tensor is other for other in grouped) > 1})
    for found, remedy in (
        (ungrouped, "the backbone stays frozen: call model.backbone.freeze()"),
        (frozen, "method and head are trained: set requires_grad"),
        (twice, "keep each tensor in one parameter group"),
    ):
        if found:
            raise TrainingError(
                f"The parameter groups do not fit the tensors that want gradients: {', '.join(found[:5])}",
                expected="each learnable tensor of method and head in one group, and no other",
                remedy=remedy,
            )


def enter_epoch(batches: EpochBatches, dataset: Any, epoch: int) -> None:
    """Choose the order of an epoch (from 0), and its augmentation where there is one."""
    batches.set_epoch(epoch)
    if callable(set_epoch := getattr(dataset, "set_epoch", None)):
        set_epoch(epoch)


class EpochBatches(Sampler[list[int]]):
    """Batches of indices: an order for each (seed, epoch), the last batch as long as it comes out.

    Attributes:
        start: batches to leave out at the beginning of the epoch.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose order comes next."""
        self.epoch = epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self.count / self.batch_size)

    def size(self, number: int) -> int:
        """Images of a batch, by its number in the epoch."""
        return min(self.batch_size, self.count - number * self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.Generator(np.random.PCG64([self.seed, self.epoch])).permutation(self.count).tolist()
        for batch in range(self.start, self.steps_per_epoch):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

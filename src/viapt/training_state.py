"""What a training must know to go on: where it stands, its tensors, and which training it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from viapt.distributed import exchange
from viapt.errors import ArtifactError, ConfigError, TrainingError
from viapt.evaluation import LabelledImages
from viapt.history import Epoch
from viapt.model import PromptedClassifier
from viapt.recipe import Recipe


@dataclass
class Standing:
    """Where a training stands, its tensors left out.

    Attributes:
        step: optimizer steps done.
        seen, loss_sum, correct: images of the unfinished epoch, the sum of their losses, how many were classified
            right.
        seconds: of training and validation so far.
        epochs: those that are finished, validation included.
    """

    step: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Standing:
        """Inverse of `dataclasses.asdict`."""
        fields: dict[str, Any] = values | {"epochs": [Epoch(**epoch) for epoch in values["epochs"]]}
        return cls(**fields)


def learned(model: PromptedClassifier) -> dict[str, Tensor]:
    """All state but the backbone's: parameters and buffers.

    Buffers that only training needs are left out when they are zero: they are large, and soon nothing is estimated.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    idle = {name for name in transient(model) if not bool(state[name].any())}
    return {name: tensor for name, tensor in state.items() if name not in idle}


def put(model: PromptedClassifier, state: dict[str, Tensor]) -> None:
    """Inverse of `learned`.

    Raises:
        ArtifactError: names or shapes differ, which means that another version of viapt wrote them.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    state = {name: torch.zeros_like(own[name]) for name in transient(model)} | state
    here = {name: tuple(tensor.shape) for name, tensor in own.items()}
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if here != there:
        odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise ArtifactError(
            f"The checkpoint does not fit the model: {', '.join(odd[:6])}",
            expected="the tensors of this version of viapt",
            remedy="resume with the version that began the training, or start again with overwrite",
        )
    model.load_state_dict(state, strict=False)


def transient(model: PromptedClassifier) -> set[str]:
    """Names of the state that only training needs."""
    return {f"method.{name}" for name in model.method.transient_state()}


def pack(model: PromptedClassifier, optimizer: optim.Optimizer, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a training: "model/<name>", "best/<name>", "optimizer/<name>/<entry>"."""
    tensors = {f"model/{name}": tensor for name, tensor in learned(model).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for name, parameter in model.learnable().items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return tensors


def unpack(tensors: dict[str, Tensor], model: PromptedClassifier, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Inverse of `pack`: fill model and optimizer, return the best weights.

    Raises:
        ArtifactError: as `put`.
    """
    put(model, below("model", tensors))
    names = {id(parameter): name for name, parameter in model.learnable().items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in below("optimizer", tensors).items():
        name, entry = key.rsplit("/", 1)
        state.setdefault(order.index(name), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return below("best", tensors)


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix/`, without it."""
    return {n.removeprefix(f"{prefix}/"): tensor for n, tensor in tensors.items() if n.startswith(f"{prefix}/")}


def identity(
    model: PromptedClassifier,
    recipe: Recipe,
    train: LabelledImages,
    val: LabelledImages | None,
    config: Mapping[str, Any],
    *,
    cached: bool = False,
) -> dict[str, Any]:
    """What must be the same for a training to be resumed, in plain JSON types."""
    values = {
        "recipe": asdict(recipe),
        "method": {"name": model.method.name} | model.method.config(),
        "backbone": {"name": model.backbone.name, "fingerprint": model.backbone.fingerprint},
        "preprocessing": model.backbone.preprocessing.to_dict(),
        "precision": str(next(model.backbone.parameters()).dtype).removeprefix("torch."),
        "classes": model.classes,
        "train": described(train),
        "val": None if val is None else described(val),
        "config": dict(config),
    }
    ways = {"cached": cached, "compiled": model.backbone.compiled}  # each rounds in its own way
    values |= {way: True for way, taken in ways.items() if taken}
    try:
        return json.loads(json.dumps(values))
    except TypeError as error:
        raise ConfigError(f"config is not plain JSON ({error})", expected="numbers, strings, lists ...") from error


def described(dataset: LabelledImages) -> dict[str, Any]:
    """How many images, and their content hash where the data set has one."""
    return {"images": len(dataset), "hash": getattr(dataset, "content_hash", None)}


def check_same(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on in `folder` with another training than was begun there.

    Raises:
        TrainingError: with every difference.
    """
    if found := differences(saved, now, "was", "is"):
        raise TrainingError(
            f"{folder} holds another training: {found}",
            expected="the same arguments, model and data, to go on with it",
            remedy="choose another folder, or overwrite",
        )


def differences(one: dict[str, Any], other: dict[str, Any], first: str, second: str) -> str:
    """Where two identities differ, in words: "lr was 0.1 and is 0.2"; nothing if they do not."""
    a, b = flatten(one), flatten(other)
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return "; ".join(f"{key} {first} {shown(a, key)} and {second} {shown(b, key)}" for key in keys)


def check_everywhere(identity: dict[str, Any]) -> None:
    """Refuse unless all processes train the same.

    Raises:
        TrainingError: in all of them, with every difference of one.
    """
    first, *others = map(json.loads, exchange(json.dumps(identity).encode()))
    for index, other in enumerate(others, start=1):
        if found := differences(first, other, "is, in process 0,", f"in process {index}"):
            raise TrainingError(
                f"The processes train different things: {found}", expected="the same arguments, model and data in each"
            )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def shown(values: dict[str, Any], key: str) -> str:
    """A value for a message, not too long."""
    text = json.dumps(values[key]) if key in values else "absent"
    return text if len(text) <= 80 else f"{text[:77]}..."

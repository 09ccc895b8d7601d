"""What is the same for every method that is compared: backbone, data, budget, selection, search.

A folder of results has one protocol, written down when its first run begins and stored with each number; a run with
another one goes to another folder. Methods, tasks and seeds may be added at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Literal, get_args

from viapt.data.transforms import list_augmentations
from viapt.errors import Rule, check_rules

Metric = Literal["accuracy", "mean_per_class_accuracy"]

TRAINING: dict[str, Any] = {"lr": float, "weight_decay": float, "warmup_epochs": float, "clip": float | None}
"""The settings of `fit` that a method or a point of a search space may have for itself, and their types."""


@dataclass(frozen=True)
class Protocol:
    """The conditions of a comparison.

    Attributes:
        backbone, weights: see `create_backbone`.
        image_size: side in pixels, for every task that `image_sizes` does not name.
        image_sizes: side in pixels, by task.
        precision: of the frozen backbone: "auto", "float32" or "bfloat16"; "auto" is decided once for a folder.
        train, val, test: images of each part, at most.
        split_seed: of the split; seeds of runs do not change it.
        epochs, batch_size: of every training, those of a search included.
        weight_decay, warmup_epochs, clip: see `fit`; a method may have its own.
        selection: "last" or "best-val".
        augmentation: see `train_transform`.
        metric: what is searched for and compared: "accuracy" or "mean_per_class_accuracy".
        read_test: read the test split, once for each method, task and seed; otherwise it is not read.
        rounds: measure the policies of inference that sample, too, with up to so many rounds; 0: the mean alone.
        draws: noise seeds of these policies.
        trials: points that are tried for each method and task, on validation images; 0: the settings as they are.
        space: what is searched: see `viapt.bench.search`.
        search_seed: of the search and of its trainings; 0 without trials.
        suite: the resolved protocol of a suite of benchmark tasks, see `viapt.bench.suites`; None for packaged tasks.

    Raises:
        ConfigError: naming every value that is out of range.
    """

    backbone: str = "packaged:vits14"
    weights: str | None = None
    image_size: int = 98
    image_sizes: dict[str, int] = field(default_factory=dict)
    precision: str = "auto"
    train: int = 800
    val: int = 200
    test: int = 2000
    split_seed: int = 0
    epochs: int = 10
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup_epochs: float | None = None
    clip: float | None = None
    selection: str = "last"
    augmentation: str = "none"
    metric: str = "accuracy"
    read_test: bool = False
    rounds: int = 0
    draws: int = 0
    trials: int = 0
    space: dict[str, Any] = field(default_factory=dict)
    search_seed: int = 0
    suite: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_rules(vars(self), rules_of(vars(self)))

    @classmethod
    def nearest(cls, values: Mapping[str, Any]) -> Protocol:
        """With defaults in place of values that are out of range, and of those that are so without these."""
        while wrong := violations(vars(cls()) | dict(values)):
            values = {name: value for name, value in values.items() if name not in wrong}
        return cls(**values)

    @property
    def part(self) -> str:
        """Which part the comparison is about: "test" if it is read, else "val"."""
        return "test" if self.read_test else "val"

    def suite_of(self, final: bool) -> dict[str, Any] | None:
        """What the suite's protocol decides of a training: of a reported one, or of one within a search."""
        if self.suite is None:
            return None
        decided = {name: self.suite[name] for name in ("name", "normalization", "resize")}
        return decided | {"train_on": self.suite["train_on" if final else "search_on"]}

    def image_size_of(self, task: str) -> int:
        """Side in pixels of a task's images."""
        return self.image_sizes.get(task, self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Inverse of `to_dict`; a setting that is younger than the record has its default.

        So has a `search_seed` that nothing was searched with: older records may have one.
        """
        known = {one.name for one in fields(cls)} - (set() if values.get("trials") else {"search_seed"})
        return cls(**{name: value for name, value in values.items() if name in known})


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two JSON objects differ, in words: "epochs 8 there, 10 here"."""
    names = dict.fromkeys([*one, *other])
    return [f"{n} {one.get(n)!r} there, {other.get(n)!r} here" for n in names if one.get(n) != other.get(n)]


def violations(values: Mapping[str, Any]) -> dict[str, str]:
    """Values of a protocol that are out of range: name -> what is expected."""
    return {name: expected for name, holds, expected in rules_of(values) if not holds}


def rules_of(values: Mapping[str, Any]) -> list[Rule]:
    """What must hold of a protocol's values."""
    one = SimpleNamespace(**values)
    metrics = get_args(Metric)
    searched = one.trials != 0
    return [
        ("train", one.train >= 1, "at least 1"),
        ("val", one.val >= 1, "at least 1"),
        ("test", one.test >= 0, "0 or more"),
        ("split_seed", one.split_seed >= 0, "0 or more"),
        ("epochs", one.epochs >= 1, "at least 1"),
        ("batch_size", one.batch_size >= 1, "at least 1"),
        ("augmentation", one.augmentation in list_augmentations(), f"one of {', '.join(list_augmentations())}"),
        ("metric", one.metric in metrics, f"one of {', '.join(metrics)}"),
        ("read_test", not one.read_test or one.test != 0, "test images, if they are to be read"),
        ("rounds", one.rounds == 0 or one.rounds >= 2, "0, or at least 2"),
        ("draws", (one.draws >= 1) == (one.rounds > 0) and one.draws >= 0, "0 without rounds, else 1 or more"),
        ("trials", one.trials >= 0, "0 or more"),
        ("space", not one.space or searched, "trials, if there is something to search"),
        ("search_seed", one.search_seed == 0 or (searched and one.search_seed > 0), "0 without trials, else 0 or more"),
    ]

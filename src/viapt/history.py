"""What happened during a training, epoch by epoch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viapt.checkpoint import replace_file
from viapt.errors import DataError
from viapt.evaluation import Evaluation


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: from 1.
        step: optimizer steps since the start.
        lr: learning rate of the last of them.
        train_loss: mean over the epoch's images, each as it was trained on (penalty included).
        train_accuracy: likewise, in [0, 1].
        val_loss: mean negative log probability after the epoch, in nats; None without validation data.
        val_accuracy: in [0, 1]; None without validation data.
        seconds: since the start, interruptions left out.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class History:
    """What `fit` returns.

    Attributes:
        epochs: what happened, in order.
        protocol: how it was trained, in plain JSON types; belongs into the saved adapter.
        selected_epoch: the epoch (from 1) whose weights the model has: the last one, or the best.
        learnable_parameters: numbers that were trained, head included.
        seconds: of training and validation, interruptions left out.
        resumed_step: the step where this call took an interrupted training up; 0 if it began itself.
        test: result on the test data, if there were any; they are read once, after training.
        data_hash: of the training data; None for data that have none.
    """

    epochs: list[Epoch]
    protocol: dict[str, Any]
    selected_epoch: int
    learnable_parameters: int
    seconds: float
    resumed_step: int = 0
    test: Evaluation | None = None
    data_hash: str | None = field(default=None)

    @property
    def best_epoch(self) -> int | None:
        """The first epoch (from 1) of the highest validation accuracy; None without validation data."""
        return best_epoch(self.epochs)

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the selected epoch; None without validation data."""
        return self.epochs[self.selected_epoch - 1].val_accuracy

    @property
    def test_accuracy(self) -> float | None:
        """None without test data."""
        return self.test.accuracy.value if self.test else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"val_accuracy": self.val_accuracy, "test_accuracy": self.test_accuracy}

    def record(self, *, task: str, method: str) -> dict[str, Any]:
        """The result record of a run: one JSON object that tables are made of."""
        return {
            "method": method,
            "task": task,
            "seed": self.protocol["seed"],
            "test_accuracy": self.test_accuracy,
            "val_accuracy": self.val_accuracy,
            "learnable_parameters": self.learnable_parameters,
            "protocol": self.protocol,
            "data_hash": self.data_hash,
            "seconds": self.seconds,
            "selected_epoch": self.selected_epoch,
        }


def best_epoch(epochs: list[Epoch]) -> int | None:
    """The first epoch (from 1) of the highest validation accuracy; None without validation data."""
    accuracies = [epoch.val_accuracy for epoch in epochs]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return accuracies.index(max(known)) + 1 if known else None


def write_history(path: Path, epochs: list[Epoch]) -> None:
    """One JSON object a line. The whole file is replaced at once: no reader ever finds half a line."""
    replace_file(path, "".join(json.dumps(asdict(epoch)) + "\n" for epoch in epochs).encode())


def read_history(path: Path) -> list[Epoch]:
    """What `write_history` wrote.

    Raises:
        DataError: the file is missing, or a line is no epoch.
    """
    try:
        return [Epoch(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a training history ({error})") from error

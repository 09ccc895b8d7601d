"""What ends one process ends all: with the same error, at the same step, and within a bounded time."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from distributed_cases import Case, assert_same, exit_codes, launched, rank, together, train, trained
from training_cases import Augmented, tiny_data, tiny_model
from viapt.checkpoint import load_checkpoint
from viapt.errors import ArtifactError, DataError
from viapt.model import PromptedClassifier
from viapt.training import fit


class Failing(Augmented):
    """Something happens when one process reads its third image."""

    def __init__(self, data: TensorDataset, what: Any, process: int = 1) -> None:
        super().__init__(data)
        self.what, self.process, self.read = what, process, 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        self.read += 1
        if rank() != self.process or self.read != 3:
            return image, label
        if isinstance(self.what, Exception):
            raise self.what
        return image * self.what, label


def failures(folder: Path) -> None:
    """One failing training after the other, in the same processes; what each raised is written down."""
    file = OSError(2, "No such file", "photos/1.png")
    file_of = folder / "file"
    file_of.write_text("")
    cases: dict[str, dict[str, Any]] = {
        "image": {"train": DataError("photos/1.png is damaged", expected="an image", remedy="repair it")},
        "of main": {"train": DataError("photos/1.png is damaged"), "process": 0},
        "file": {"train": file},
        "store": {"train": ArtifactError("a store is damaged")},
        "bug": {"train": KeyError("colour")},
        "nan": {"train": math.nan},
        "validation": {"val": DataError("photos/2.png is damaged")},
        "odd validation": {"val": math.nan},
        "folder": {"out": file_of},
        "other arguments": {"seed": rank()},
        "none": {},
    }
    found = {name: failure(**case) for name, case in cases.items()}
    (folder / f"{rank()}.json").write_text(json.dumps(found))


def failure(train: Any = None, val: Any = None, process: int = 1, **arguments: Any) -> list[str]:
    """What a training raises."""
    data = [tiny_data(20, seed=0), tiny_data(20, seed=1)]
    first, second = (
        Augmented(one) if what is None else Failing(one, what, process)
        for one, what in zip(data, (train, val), strict=True)
    )
    second.epochs.append(0)
    try:
        fit(tiny_model("linear"), first, second, epochs=1, batch_size=8, progress=False, **arguments)
    except Exception as error:
        return [type(error).__name__, str(error), str(getattr(error, "everywhere", False))]
    return ["", "", ""]


def test_what_fails_in_one_is_raised_in_all(tmp_path: Path) -> None:
    together(2, failures, tmp_path)
    main, other = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    told = "photos/1.png is damaged. Expected: an image. To do: repair it."
    assert main["image"] == other["image"] == ["DataError", told, "True"]
    assert main["of main"] == other["of main"] == ["DataError", "photos/1.png is damaged.", "True"]
    assert main["file"] == other["file"] == ["FileNotFoundError", "[Errno 2] No such file: 'photos/1.png'", "True"]
    assert main["store"] == other["store"] == ["ArtifactError", "a store is damaged.", "True"]
    assert main["bug"] == ["RuntimeError", "KeyError in process 1: 'colour'", "True"]
    assert other["bug"] == ["KeyError", "'colour'", "True"]
    assert main["nan"] == other["nan"] and main["nan"][0] == "DivergenceError"
    assert "not finite are the images" in main["nan"][1] and "the loss is nan" in main["nan"][1]
    assert main["validation"] == other["validation"] == ["DataError", "photos/2.png is damaged.", "True"]
    assert main["odd validation"] == other["odd validation"]
    assert main["odd validation"][1].startswith("Probabilities of the images 0 to 7 are not finite")
    assert main["folder"] == other["folder"] and "cannot be made" in main["folder"][1]
    assert main["other arguments"] == other["other arguments"]
    assert "recipe.seed is, in process 0, 0 and in process 1 1" in main["other arguments"][1]
    assert main["none"] == other["none"] == ["", "", ""]


# Interrupted, killed, and taken up by another number of processes

CASE = Case({"learn_carry_scale": True}, {"checkpoint_seconds": 1000.0})


class Signalled(Augmented):
    """In its second epoch, one process gets a signal as it reads the fifth of its images."""

    number = signal.SIGTERM
    process = 1

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.read = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        if self.epochs[-1] == 1 and self.read == 5 and rank() == self.process:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


class Killed(Signalled):
    number = signal.SIGKILL


class Alone(Signalled):
    process = 0


def stopped(out: Path, data: type[Signalled]) -> None:
    """A training that somebody stops. How it ends is written down."""
    try:
        trained(CASE, out, data)
    except BaseException as error:
        (out / f"end-{rank()}").write_text(f"{type(error).__name__}: {error}")
        raise


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(CASE)


def step_of(out: Path) -> int:
    checkpoint = load_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["standing"]["step"]


def resumed(count: int, out: Path) -> list[dict[str, Any]]:
    """What processes end with that take a training up."""
    together(count, train, out, {"end": CASE}, out)
    return [torch.load(out / f"end-{process}.pt", weights_only=True) for process in range(count)]


def test_a_signal_to_one_stops_all_at_the_same_step_and_one_goes_on(tmp_path: Path, reference: Any) -> None:
    assert exit_codes(launched(2, stopped, tmp_path, Signalled)) == [-signal.SIGTERM] * 2
    assert step_of(tmp_path) == 4
    (end,) = resumed(1, tmp_path)
    assert_same(reference, end)


def test_two_go_on_where_one_stopped(tmp_path: Path, reference: Any) -> None:
    assert exit_codes(launched(1, stopped, tmp_path, Alone)) == [-signal.SIGTERM]
    assert step_of(tmp_path) == 4
    for end in resumed(2, tmp_path):
        assert_same(reference, end)


def test_one_is_killed_and_the_other_ends(tmp_path: Path, reference: Any) -> None:
    processes = launched(2, stopped, tmp_path, Killed)
    processes[1].join()
    started = time.monotonic()
    assert exit_codes(processes) == [1, -signal.SIGKILL]
    assert time.monotonic() - started < 20  # not timed: it would wait for half an hour
    assert (tmp_path / "end-0").read_text().startswith("TrainingError: Another process of this training has ended")
    assert step_of(tmp_path) == 3
    for end in resumed(2, tmp_path):
        assert_same(reference, end)


def exhausted(out: Path) -> None:
    """A training of which one process runs out of memory, in the midst of what all compute together."""
    run = PromptedClassifier.run

    def failing(self: PromptedClassifier, *arguments: Any) -> Any:
        if rank() == 1:
            raise MemoryError("no more")
        return run(self, *arguments)

    PromptedClassifier.run = failing
    stopped(out, Augmented)


def test_what_fails_amidst_a_step_ends_all(tmp_path: Path) -> None:
    assert exit_codes(launched(2, exhausted, tmp_path)) == [1, 1]
    assert (tmp_path / "end-1").read_text() == "MemoryError: no more"
    assert (tmp_path / "end-0").read_text().startswith("TrainingError: Another process of this training has ended")

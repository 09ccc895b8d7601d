"""Trackers of accelerate besides TensorBoard: what reaches them, and what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import imports

import viapt.acceleration
from cli_cases import write_backbone, write_photos
from training_cases import quiet, tiny_data, tiny_model
from viapt.cli import main
from viapt.errors import ConfigError


class Notebook(GeneralTracker):
    """Writes down what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self.values: dict[tuple[str, int | None], float] = {}
        self.finished = 0

    @property
    def tracker(self) -> dict[str, Any]:
        return self.facts

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.facts |= values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.values |= {(name, step): value for name, value in values.items()}

    def finish(self) -> None:
        self.finished += 1


def test_a_tracker_is_told_every_step_and_what_the_training_is() -> None:
    notebook, model = Notebook(), tiny_model()
    history = quiet(model, tiny_data(), tiny_data(9, seed=1), log_with=notebook, lr=0.01)
    steps = [step for name, step in notebook.values if name == "train/loss"]
    assert steps == list(range(1, 7)) and notebook.finished == 1  # two epochs of three batches
    for epoch in history.epochs:
        assert notebook.values["val/accuracy", epoch.step] == epoch.val_accuracy
        assert notebook.values["val/loss", epoch.step] == epoch.val_loss
    assert notebook.facts["lr"] == 0.01 and notebook.facts["epochs"] == 2


def test_tracking_changes_no_weight() -> None:
    plain, tracked = tiny_model(), tiny_model()
    quiet(plain, tiny_data())
    quiet(tracked, tiny_data(), log_with=[Notebook(), Notebook()])
    for name, tensor in plain.learnable().items():
        assert tensor.equal(tracked.learnable()[name]), name


def test_a_training_that_fails_finishes_its_trackers() -> None:
    notebook = Notebook()
    notebook.log = lambda *_, **__: (_ for _ in ()).throw(OSError("full"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"):
        quiet(tiny_model(), tiny_data(), log_with=notebook)
    assert notebook.finished == 1


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A module in the place of W&B, which writes down its calls."""
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step=None, **_: calls.append(("log", step, values)), finish=lambda: calls.append("finish")
    )
    module: Any = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.init = lambda **options: calls.append(("init", options)) or run
    module.config = types.SimpleNamespace(update=lambda values, **_: calls.append(("config", values)))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_weights_and_biases_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_wandb(monkeypatch)
    quiet(tiny_model(), tiny_data(), log_with="wandb", epochs=1)
    assert calls[0] == ("init", {"project": "viapt"}) and calls[-1] == "finish"
    assert calls[1][0] == "config" and calls[1][1]["epochs"] == 1
    logged = [call for call in calls if call[0] == "log"]
    assert [step for _, step, _ in logged] == [1, 2, 3] and set(logged[0][2]) == {"train/loss", "train/lr"}


def test_mlflow_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra mlflow)")
    store = tmp_path.as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    history = quiet(tiny_model(), tiny_data(), tiny_data(9, seed=1), log_with="mlflow", lr=0.01)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("viapt")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert float(run.data.params["lr"]) == 0.01 and run.data.params["epochs"] == "2"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 7))
    found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val/accuracy")}
    assert found == {epoch.step: epoch.val_accuracy for epoch in history.epochs}


@pytest.mark.skipif(imports.is_mlflow_available(), reason="MLflow is installed")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("mlflow", r"mlflow is not installed.*pip install 'viapt\[mlflow\]'"),
        (["notes"], "no tracker 'notes'.*wandb or mlflow"),
        ("tensorboard", "no tracker 'tensorboard'.*switch of its own"),
    ],
)
def test_other_trackers_are_refused(wanted: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        quiet(tiny_model(), tiny_data(), log_with=wanted)
    assert not viapt.acceleration.accelerated().trackers


def test_the_command_hands_trackers_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "backbone").mkdir()
    backbone = write_backbone(tmp_path / "backbone")
    photos = write_photos(tmp_path / "photos", {"cat": (220, 30, 30), "dog": (30, 30, 220)}, 6, "{}.jpg")
    arguments = "fit", photos, "--backbone", backbone, "--out", tmp_path / "run", "--log-with", "notes"
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2 and "no tracker 'notes'" in " ".join(capsys.readouterr().err.split())

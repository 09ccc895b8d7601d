"""The precision of a run is decided once, told, and written down: a clock does not change it halfway."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import viapt
import viapt.precision
from cli_cases import write_backbone, write_photos
from viapt.errors import ArtifactError, ConfigError
from viapt.runs import Settings, finished, run
from viapt.training import TrainingDisplay

Started = Callable[..., dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Starts or resumes a run on a machine whose bfloat16 is so many times as fast; the record, and what was told."""
    backbone = write_backbone(tmp_path)
    photos = write_photos(tmp_path / "photos", {"red": (220, 30, 30), "blue": (30, 30, 220)}, 8)
    settings = Settings(backbone, method="vpt-deep", options={"num_prompts": 2}, epochs=3, batch_size=4)

    def started(gain: float, out: str = "run", *, stop: bool = False, **changes: Any) -> dict[str, Any]:
        told = io.StringIO()
        asked = Settings(**settings.to_dict() | changes)
        with monkeypatch.context() as patch:
            patch.setattr(viapt.precision, "bfloat16_gain", lambda: gain)
            if stop:
                patch.setattr(TrainingDisplay, "epoch", interrupt)
            _, record = run(photos, tmp_path / out, asked, console=Console(file=told, width=200))
        assert finished(tmp_path / out, asked) == record
        return record | {"told": told.getvalue()}

    return started


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_is_taken_is_told_and_recorded(start: Started, tmp_path: Path) -> None:
    record = start(4.4)
    reason = "measured here: bfloat16 multiplies 4.4 times as fast as float32"
    assert record["protocol"]["precision"] == "bfloat16" and record["protocol"]["precision_reason"] == reason
    assert f"backbone in bfloat16 ({reason}); {record['protocol']['device']}" in record["told"]
    assert viapt.load(tmp_path / "run").backbone.dtype == viapt.precision.DTYPES["bfloat16"]
    explicit = start(4.4, "other", precision="float32")
    assert explicit["protocol"]["precision"] == "float32" and "float32 (as asked for)" in explicit["told"]


@pytest.mark.parametrize(("before", "after", "name"), [(4.4, 0.6, "bfloat16"), (0.6, 4.4, "float32")])
def test_a_resumed_run_keeps_its_precision(
    before: float, after: float, name: str, start: Started, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = start(before, "whole")
    with pytest.raises(KeyboardInterrupt):
        start(before, stop=True)
    resumed = start(after)
    assert resumed["protocol"] == whole["protocol"] and resumed["protocol"]["precision"] == name
    assert "resuming after step 3 of 9" in capfd.readouterr().err
    weights = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("whole", "run")]
    assert weights[0] == weights[1]


def test_a_run_begun_by_an_older_version_goes_on(start: Started, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(0.6, stop=True)
    edit(tmp_path / "run" / "run.json", lambda content: content.pop("chosen"))
    assert start(0.6)["protocol"]["precision"] == "float32"


@pytest.mark.parametrize(
    "chosen", ["bfloat16", {}, {"precision": "float8", "reason": "x"}, {"precision": "float32"}, []]
)
def test_a_damaged_choice_is_refused(chosen: Any, start: Started, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(0.6, stop=True)
    edit(tmp_path / "run" / "run.json", lambda content: content.update(chosen=chosen))
    with pytest.raises(ArtifactError, match=r"chosen = .*overwrite"):
        start(0.6)


def test_another_precision_is_another_run(start: Started) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(0.6, stop=True)
    with pytest.raises(ConfigError, match="precision 'auto' there, 'float32' here"):
        start(0.6, precision="float32")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

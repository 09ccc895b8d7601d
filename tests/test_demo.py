"""The demo's way through all rooms, on a tiny backbone and a small task in place of the packaged ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cli_cases import write_backbone
from viapt import demo
from viapt.cli import main
from viapt.data.packaged import FetchStatus, PackagedTask, load_task


def small_task(name: str, *_told: object) -> PackagedTask:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 17)
    images = (rng.integers(0, 40, (68, 32, 32, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return PackagedTask(name, images, labels, ["a", "b", "c", "d"], "CC-BY-NC-SA-4.0", "drawn", "0" * 64)


@pytest.fixture
def small(monkeypatch, tmp_path, tmp_path_factory):
    """The same code, sized for a test."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TRAIN": 32, "VAL": 12, "TEST": 16, "EPOCHS": 2, "CHECKED": 4, "IMAGE_SIZE": 32}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "BACKBONE", write_backbone(tmp_path_factory.mktemp("tiny")))
    monkeypatch.setattr(demo, "load_task", small_task)
    monkeypatch.setattr(demo, "fetch_all", lambda names, _: dict.fromkeys(names, FetchStatus(True, "there")))
    return tmp_path / "runs" / "demo"


def call(capsys, *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    return out, err


def test_the_demo_fits_saves_reloads_and_reports(small, capsys):
    out, err = call(capsys)
    records = {method: json.loads((small / method / "result.json").read_text()) for method in demo.METHODS}
    learnable = {method: record["learnable_parameters"] for method, record in records.items()}
    assert learnable["linear"] < learnable["viapt"] and learnable["linear"] < learnable["vpt-deep"]
    assert err.count("same outputs for 4 photos, bit for bit") == 3
    budgets = {
        json.dumps([r["protocol"][k] for k in ("epochs", "batch_size", "train")] + [r["seed"]])
        for r in records.values()
    }
    assert len(budgets) == 1 and len({record["data_hash"] for record in records.values()}) == 1
    report = (small / "report.md").read_text()
    for record in records.values():
        assert f"| {100 * record['test_accuracy']:.1f} [" in report and f"{record['learnable_parameters']:,}" in out
    for words in ("viapt demo --out runs/demo --seed 0", "CC-BY-NC-SA-4.0", records["viapt"]["data_hash"]):
        assert words in report
    assert len(list((small / "pictures").glob("photo-*.png"))) == 8
    assert "report.html" in out and "CC-BY-NC-SA-4.0" in out and str(demo.METHODS[0]) in out

    before = [(small / method / "result.json").stat().st_mtime_ns for method in demo.METHODS]
    again, err = call(capsys)
    assert err.count("finished before") == 3 and again == out
    assert before == [(small / method / "result.json").stat().st_mtime_ns for method in demo.METHODS]


def test_the_demo_goes_on_where_it_was_interrupted(small, capsys, monkeypatch):
    """Two methods are finished when the third is interrupted."""
    whole = demo.run

    def interrupted(data, out, settings, **options):
        if settings.method == "viapt":
            raise KeyboardInterrupt
        return whole(data, out, settings, **options)

    monkeypatch.setattr(demo, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 130 and "run the same command to resume" in capsys.readouterr().err
    monkeypatch.setattr(demo, "run", whole)
    _, err = call(capsys)
    assert err.count("finished before") == 2 and (small / "report.html").exists()


def test_a_failed_download_is_told(small, capsys, monkeypatch):
    monkeypatch.setattr(demo, "fetch_all", lambda names, _: dict.fromkeys(names, FetchStatus(False, "no network")))
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 2 and "offline" in capsys.readouterr().err
    assert not small.exists()


@pytest.mark.packaged
def test_the_licence_told_is_that_of_the_photos():
    assert demo.PACKAGES[demo.TASK_PACKAGE].licence == load_task(demo.TASK).licence == "CC-BY-NC-SA-4.0"


def test_a_task_is_written_as_a_folder_that_fit_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("viapt.data.packaged.load_task", small_task)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "fetch", "count", "--to", str(tmp_path / "count"), "--train", "32", "--val", "12"])
    assert stopped.value.code == 0
    assert {p.name for p in (tmp_path / "count").iterdir()} == {"train", "val", "test"}
    assert len(list((tmp_path / "count" / "train").glob("*/*.png"))) == 32
    assert "licence CC-BY-NC-SA-4.0" in capsys.readouterr().out

"""`viapt bench run | show | export` on a terminal that is none."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench_cases import small_world
from viapt.bench.engines import LocalEngine, RayEngine
from viapt.bench.jobs import Outcome
from viapt.bench.plan import Plan
from viapt.bench.protocol import Protocol
from viapt.bench.runner import Progress
from viapt.bench.shown import Display, by_cause, clock, remarks, spread
from viapt.bench.store import Cell, Store
from viapt.cli import main
from viapt.cli.bench_options import make_engine
from viapt.errors import ArtifactError

SIZES = "--image-size 32 --train 40 --val 20 --test 30 --epochs 1 --batch-size 20 --precision float32 --threads 1"


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return small_world(tmp_path)


@pytest.fixture
def bench(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_run_show_export(bench, backbone, tmp_path):
    out, file = tmp_path / "out", tmp_path / "records.json"
    (tmp_path / "cache" / "task-silhouettes.safetensors").unlink()
    asked = ["--methods", "linear", "linear:lr=1e30;weight_decay=1e3", "--seeds", 0, 1, *SIZES.split()]
    code, table, err = bench("run", "--out", out, "--backbone", backbone, "--tasks", "elpv", "silhouettes", *asked)
    assert code == 1 and "Not available: silhouettes" in err and err.count("failed: Training stopped") == 2
    assert "2 done, 2 failed, 4 without a job, 0 open" in table and "on validation images" in table
    rows = {line.split()[0]: line for line in table.splitlines() if line.startswith("linear")}
    with Store(out) as store:
        values = [100 * record["val_accuracy"] for record in store.records()]
    assert f"{sum(values) / 2:.2f} ± {abs(values[0] - values[1]) / 2**0.5:.2f} (2)" in rows["linear"]
    code, shown, err = bench("show", out)
    assert code == 0 and shown.split() == table.split() and "silhouettes" not in shown
    assert err.count("not finite") == 2 and err.count("Failed: linear(lr=1e+30, weight_decay=1000.0), elpv, seed") == 2
    assert err.count("silhouettes") == 1 and "\nNo job: silhouettes: 4 places: " in err
    code, said, _ = bench("export", out, "--json", file)
    assert code == 0 and said == f"{file}: 2 records\n"
    code, said, _ = bench("restore", file, "--out", tmp_path / "there")
    assert code == 0 and said == f"{tmp_path / 'there'}: 2 records\n"
    assert bench("show", tmp_path / "there")[1].split()[-6:] == ["2", "done,", "0", "failed,", "0", "open"]
    code, _, err = bench("restore", file, "--out", tmp_path / "there")
    assert code == 2 and "holds results already" in err
    assert [failure["times"] for failure in json.loads(file.read_text())["failures"]] == [1] * 6


def test_all_problems_in_one_paragraph_and_nothing_started(bench, backbone, tmp_path):
    out = tmp_path / "out"
    methods = ["viapt:kept_dim=25", "viapt:num_prompts=2;num_instance_prompts=3", "vpt-dep", "linear:lr=x"]
    more = ["--tasks", "elpv", "moon", "--image-size", 32, "sun=32", "big", "--trials", 2, "--search", "lr=1..0"]
    code, _, err = bench("run", "--out", out, "--backbone", backbone, "--methods", *methods, *more)
    assert code == 2 and not out.exists() and len(err.splitlines()) == 1
    for words in (
        "m = ",
        "'vpt-dep'",
        "'vpt-deep'",
        "lr=x",
        "'moon'",
        "'sun'",
        "--image-size big",
        "LOW < HIGH",
    ):
        assert words.replace("m = ", "kept_dim = 25") in err, (words, err)
    assert "num_instance_prompts = 3" in err and re.search(r"Error: \d+ problems, and nothing was started: \(1\)", err)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", 0, "--trials", -1], "epochs = 0, trials = -1"),
        (["--search", "lr=0.1..1"], "space"),
        (["--search-seed", 5], "search_seed = 5"),
        (["--workers", 0], "--workers 0"),
        (["--address", "auto"], "--address has no effect"),
        (["--gpus", 1], "--gpus has no effect"),
        (["--engine", "ray", "--gpus", -1], "--gpus -1"),
        (["--engine", "ray", "--gpus", 1.5], "--gpus 1.5"),
        (["--engine", "ray", "--gpus", "nan"], "--gpus nan"),
        (["--engine", "ray", "--address", "head:6379", "--workers", 1], "--workers has no effect with --address"),
        (["--seeds", -1], "seed -1"),
    ],
)
def test_options_that_cannot_be(bench, backbone, tmp_path, more, words):
    given = ["run", "--out", tmp_path / "out", "--backbone", backbone, "--methods", "linear", "--tasks", "elpv"]
    code, _, err = bench(*given, *SIZES.split(), *more)
    assert code == 2 and words in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("more", "device"), [(["--gpus", 0.5], "cuda"), ([], "cpu")])
def test_jobs_are_planned_for_the_devices_of_a_cluster(bench, backbone, tmp_path, monkeypatch, more, device):
    monkeypatch.setattr("viapt.bench.engines.import_ray", lambda: None)
    taken: list[tuple[Plan, RayEngine]] = []

    def take(plan: Plan, out: Path, place: RayEngine) -> int:
        taken.append((plan, place))
        return 1

    for module in ("bench", "bench_experiments"):
        monkeypatch.setattr(f"viapt.cli.{module}.carry_out", take)
    given = ["--backbone", backbone, "--tasks", "elpv", *SIZES.replace("--threads 1", "").split()]
    given += ["--out", tmp_path / "out", "--engine", "ray", "--address", "head:6379", *more]
    for command in (["run", "--methods", "linear"], ["corner-cases", "--results", tmp_path / "results"]):
        bench(*command, *given)
        plan, place = taken.pop()
        assert plan.device == device == place.device and place.threads == 1


def test_threads_are_shared_by_the_workers_of_this_machine(monkeypatch):
    monkeypatch.setattr("viapt.bench.engines.import_ray", lambda: None)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for name, kind in (("local", LocalEngine), ("ray", RayEngine)):
        for given, expected in (((4, None), (4, 4)), ((None, None), (1, 16)), ((2, 3), (2, 3))):
            engine = make_engine(name, *given, None, None)
            assert isinstance(engine, kind) and (engine.workers, engine.threads) == expected
    cluster = make_engine("ray", None, 3, "head:6379", None)
    assert isinstance(cluster, RayEngine) and cluster.threads == 3


def test_what_is_out_of_range_hides_nothing_else(bench, backbone, tmp_path):
    """And makes no problem of what is right: 120 images are too few for the default sizes."""
    given = ["run", "--out", tmp_path / "out", "--backbone", backbone, "--methods", "linear", "--tasks", "elpv"]
    more = ["--trials", 2, "--search", "linear.lr=0..1", "--epochs", 0, "--test", -1, "--image-size", 33]
    code, _, err = bench(*given, *SIZES.split(), *more)
    assert code == 2 and "epochs = 0" in err and "test = -1" in err and "lr = 0" in err and "33" in err, err
    code, _, err = bench(*given, "--image-size", 32, "--epochs", 0, "--trials", -1, "--search", "lr=0.1..1")
    assert code == 2 and err.endswith("epochs: at least 1; trials: 0 or more.\n"), err


def test_a_folder_of_another_protocol_is_said_with_the_rest(bench, backbone, tmp_path, monkeypatch):
    """And before anything is fetched; what is out of range is not compared."""
    sizes: dict[str, Any] = {"image_size": 32, "train": 40, "val": 20, "test": 30, "epochs": 1, "batch_size": 20}
    with Store(tmp_path / "out", create=True) as store:
        store.adopt(Protocol(backbone=backbone, precision="float32", **sizes))
    (tmp_path / "cache" / "task-silhouettes.safetensors").unlink()
    monkeypatch.setattr("viapt.bench.plan.fetch_all", lambda *_: pytest.fail("fetched"))
    given = ["--out", tmp_path / "out", "--backbone", backbone, "--tasks", "silhouettes", *SIZES.split()]
    for command in (["run", "--methods", "linear"], ["kept-dim"]):
        code, _, err = bench(*command, *given, "--train", 39)
        assert code == 2 and "another protocol: train 40 there, 39 here" in err and "looked at: silhouettes" in err, err
        code, _, err = bench(*command, *given, "--train", 39, "--epochs", 0, "--image-size", "big", "--seeds", -1)
        assert code == 2 and "4 problems" in err and "another protocol: train 40 there, 39 here. To do" in err, err
    (tmp_path / "out" / "bench.sqlite").write_bytes(b"no database, " * 1000)
    code, _, err = bench("run", "--methods", "linear", *given, "--seeds", -1)
    assert code == 2 and "2 problems" in err and "is damaged" in err and "seed -1" in err, err


def test_folders_without_results(bench, tmp_path):
    for arguments in (("show", tmp_path), ("export", tmp_path, "--json", tmp_path / "x.json")):
        code, _, err = bench(*arguments)
        assert code == 2 and "holds no bench.sqlite" in err
    Store(tmp_path, create=True).connection.close()
    assert bench("show", tmp_path)[:2] == (0, "nothing was begun\n")
    code, _, err = bench("export", tmp_path, "--json", tmp_path / "x.json")
    assert code == 2 and "no results yet" in err and not (tmp_path / "x.json").exists()


def test_the_live_table_says_how_things_are(tmp_path):
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    cell = Cell("viapt", "elpv", 0)
    record = {
        "job": {}, "val": {"accuracy": 0.5}, "test": None, "learnable_parameters": 7, "seconds": 2.0,
    }  # fmt: skip
    with Store(tmp_path, create=True) as store:
        store.expect({cell: "a", Cell("viapt", "fashion", 0): None})
        with Display(store, Protocol(), console) as display:
            store.settle("a", Outcome(record=record))
            display.observe(Progress(wanted=3, done=1, failed=1), cell, Outcome(record=record))
            console.print(display.render())
    text = console.export_text()
    assert "50.00 (1)" in text and "fashion" in text and "1 done, 0 done before, 1 failed, 1 open" in text


def test_the_live_table_is_made_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    """All records are read for it, so not for each of a thousand jobs that are skipped."""
    monkeypatch.setattr("viapt.bench.shown.PAUSE", 3600.0)
    made: list[int] = []
    monkeypatch.setattr("viapt.bench.shown.summary", lambda *_: f"table {made.append(display.progress.skipped)}")
    console = Console(force_terminal=True, file=io.StringIO())
    with Store(tmp_path, create=True) as store:
        with Display(store, Protocol(), console) as display:
            for skipped in range(100):
                display.observe(Progress(wanted=100, skipped=skipped), None, None)
            assert made == [0]
            display.made -= 3600
            display.observe(Progress(wanted=100, skipped=99), None, None)
        assert made == [0, 99, 99]
        with pytest.raises(ArtifactError), Display(store, Protocol(), console):
            raise ArtifactError("The store is gone")
    assert len(made) == 3


def test_places_of_one_task_and_cause_are_one_line():
    cells = [Cell(method, "elpv", seed) for method in ("a", "b") for seed in (0, 1)]
    assert by_cause((cell, "gone.") for cell in cells) == ["elpv: 4 places: gone."]
    assert by_cause((cell, f"{cell.method} failed") for cell in cells) == [
        "a, elpv, seeds 0, 1: 2 places: a failed",
        "b, elpv, seeds 0, 1: 2 places: b failed",
    ]
    trials = [Cell("a", "elpv", 0, trial) for trial in range(3)]
    assert by_cause((cell, "lost") for cell in trials) == ["a, elpv: 3 places: lost"]
    two = [(Cell("a", "elpv", 0, 1), "lost"), (Cell("a", "fashion", 0), "lost")]
    assert by_cause(two) == ["a, elpv, seed 0, trial 2: lost", "a, fashion, seed 0: lost"]


def test_words():
    assert spread([]) == "-" and spread([0.5]) == "50.00 (1)" and spread([0.5, 0.52]) == "51.00 ± 1.41 (2)"
    assert clock(3723.4) == "1:02:03" and clock(59.6) == "0:01:00"


def test_numbers_that_were_not_made_alike_are_told():
    job: dict[str, Any] = {"code": "a-m", "versions": {"torch": "2"}, "device": "cpu", "split_hash": "s", "method": "m"}
    job["training"] = {"selection": "last"}
    first = {
        "task": "elpv",
        "data_hash": "d",
        "trial": -1,
        "test": None,
        "job": job,
        "method": "m",
        "device": "a, AVX2",
    }
    same = [first, first | {"job": job | {"code": "a-n", "method": "n"}}]
    assert remarks(same) == []
    assert remarks([first, first | {"job": job | {"code": "a-n"}}]) == [
        "The numbers were made with 2 versions of the code of m."
    ]
    lora = first | {"job": job | {"versions": {"torch": "2", "peft": "1"}}}
    assert remarks([*same, lora]) == []
    assert remarks([*same, first | {"job": job | {"versions": {"torch": "3"}}}]) == [
        "The numbers were made with 2 versions of torch."
    ]
    rates = [first | {"job": job | {"training": {"selection": "last", "lr": lr}}} for lr in (0.01, 0.001, 0.01)]
    assert remarks(rates) == ["Runs of m have different learning rates: 0.001, 0.01."]
    assert not any("rates" in remark for remark in remarks([*rates, first | {"trial": 0}]))  # a search found them
    pruned = job | {"training": {"selection": "last", "prune_tokens": 0.0, "prune_segments": 0.5}}
    assert remarks([first | {"method": "e(...)", "job": pruned}]) == [
        "Trained twice, with the epochs of the protocol each time, to be pruned: e(...)."
    ]
    other = first | {"data_hash": "e", "job": job | {"code": "b-m"}, "device": "a, AVX512"}
    assert remarks([*same, other]) == [
        "The numbers were made with 2 versions of the code.",
        "The numbers were made with 2 devices.",
        "The numbers of elpv were made on 2 different data sets or splits.",
    ]


def test_numbers_that_decided_on_what_they_measure_are_told():
    job = {"code": "a-m", "versions": {}, "device": "cpu", "split_hash": "s", "method": "m"}
    record = {"task": "elpv", "data_hash": "d", "trial": -1, "test": None, "method": "m", "device": "cpu"}
    last, best = (record | {"job": job | {"training": {"selection": how}}} for how in ("last", "best-val"))
    assert remarks([last]) == [] and "too high" in remarks([best])[0]
    assert "too high" in remarks([last, last | {"trial": 0}])[0]
    assert remarks([best | {"test": {}}]) == []

"""Published protocols on benchmark tasks, with a suite so small that a job takes a second."""

from __future__ import annotations

import json
import shlex
import statistics

import pytest

from cli_cases import write_backbone
from miniatures.community import write_community
from score_cases import scores_of as made
from viapt.backbones.base import Preprocessing
from viapt.bench import provenance
from viapt.bench.commands import command
from viapt.bench.protocol import Protocol
from viapt.bench.publish import write_report
from viapt.bench.records import load_records, scores_of
from viapt.bench.search import grid, is_grid
from viapt.bench.store import Store
from viapt.bench.suites import averages, suite_protocol, title
from viapt.bench.task_data import preprocessing_under, task_data
from viapt.cli import main
from viapt.cli.bench_suite import suite_first
from viapt.data.benchmarks import SUITES, TASKS, find_task
from viapt.data.benchmarks.protocols import GRIDS, PROTOCOLS, SuiteProtocol
from viapt.data.benchmarks.published import published
from viapt.errors import ConfigError

SETTINGS = {"backbone": "x", "weights": None, "image_size": 224, "precision": "float32", "trials": None}
SMALL = "--image-size 32 --precision float32 --epochs 1 --batch-size 20 --seeds 7 --threads 1"


@pytest.fixture
def viapt(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three tasks of nineteen, one of them cut short, and a backbone."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VIAPT_TASKS", raising=False)
    for name in ("svhn", "patch-camelyon", "kitti-distance"):
        write_community(tmp_path / "data", find_task(f"vtab-1k/{name}"))
    (tmp_path / "data/kitti/val200.txt").unlink()
    (tmp_path / "vit").mkdir()
    return tmp_path, write_backbone(tmp_path / "vit")


def test_vtab_from_the_command_line(viapt, world):
    root, backbone = world
    asked = ["--root", root / "data", "--out", root / "out", "--backbone", backbone, *SMALL.split(), "--trials", 1]
    tasks = ["--tasks", "svhn", "patch-camelyon", "kitti-distance", "dtd"]
    code, table, err = viapt("bench", "--suite", "vtab-1k", *asked, *tasks, "--methods", "linear")
    assert code == 0, err
    assert "Not available: vtab-1k/kitti-distance" in err and "val200.txt missing" in err
    assert "Not available: vtab-1k/dtd" in err and "viapt data show vtab-1k/dtd" in err
    for words in (
        "mean of 2 of 19 tasks",
        "natural mean of 1 of 7 tasks",
        "mean of 2 of 3 group means without 17 tasks",
    ):
        assert words in table
    assert "vtab-1k, changed in batch_size, epochs, seeds, trials, trained on train and val" in table
    assert "vtab-1k/svhn is not as published: Street View House Numbers, cropped, layout community, split as" in table
    assert "Of vtab-1k's 19 tasks 17 are in no mean: vtab-1k/caltech101, " in table
    with Store(root / "out") as store:
        records = store.records()
        protocol = store.protocol()
    assert protocol is not None and protocol.suite is not None
    assert protocol.suite["seeds"] == [7] and protocol.suite["space"] == GRIDS["adamw"].space
    final = [record for record in records if record["trial"] == -1 or record["test"]]
    searched = [record for record in records if not record["test"]]
    assert len(final) == 2 and len(searched) == 2
    for record in final:  # all labelled images train, the test images are read
        assert record["job"]["suite"]["train_on"] == ["train", "val"] and record["val"] is None
        assert record["job"]["read_test"] and set(record["benchmark"]["contents"]) == {"train", "test"}
        assert record["test"]["images"] == record["benchmark"]["images"]["test"]
    for record in searched:  # val200 judges, and no test image is touched
        assert record["job"]["suite"]["train_on"] == ["train"] and record["val"]["images"] in (10, 2)
        assert set(record["benchmark"]["contents"]) == {"train", "val"}
    assert str(root) not in json.dumps([record["job"] for record in records]).replace(backbone, "")
    assert {record["transforms"]["crop_mode"] for record in records} == {"squash"}
    again, _, _ = viapt("bench", "suite", "vtab-1k", *asked, *tasks, "--methods", "linear")
    with Store(root / "out") as store:
        assert again == 0 and len(store.records()) == len(records)
    code, _, _ = viapt("bench", "export", root / "out", "--json", root / "all.json")
    assert code == 0 and len(scores_of(*load_records(root / "all.json"))) == 2
    code, _, err = viapt("bench", "report", root / "out", "--out", root / "report", "--reference", "linear")
    report = (root / "report/report.md").read_text()
    assert code == 0 and "Published for vtab-1k, not run here" in report and "ViaPT" in report, err
    assert "17 are in no mean" in report and "vtab-1k/svhn is not as published" in report
    (row,) = [line for line in (root / "report/tables/data.csv").read_text().splitlines() if "/svhn," in line]
    (read,) = [record for record in final if record["task"] == "vtab-1k/svhn"]
    assert read["benchmark"]["contents"]["test"] in row and row.endswith(read["benchmark"]["listing"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--suite", "hta", "--root", "x"], ["suite", "hta", "--root", "x"]),
        (["--suite=hta", "--seeds", "1", "2"], ["suite", "hta", "--seeds", "1", "2"]),
        (["--root", "x", "--suite", "hta", "--out", "y"], ["suite", "hta", "--root", "x", "--out", "y"]),
        (["--suite"], ["suite"]),
        (["suite", "hta"], ["suite", "hta"]),
        (["run", "--suite", "hta"], ["run", "--suite", "hta"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_a_suite_as_an_option(given, meant):
    assert suite_first(given) == meant


def test_other_data_are_not_taken_for_the_planned_ones(viapt, world, monkeypatch):
    root, _ = world
    monkeypatch.setenv("VIAPT_TASKS", str(root / "data"))
    before = task_data("vtab-1k/svhn", {}, 0)
    assert before.images == {"train": 20, "val": 10, "test": 10}
    assert [item.label for item in before.joined(("train", "val")).items] == [*range(10), *range(10), *range(10)]
    lines = (root / "data/svhn/test.txt").read_text().splitlines()
    (root / "data/svhn/test.txt").write_text("\n".join(lines[:-1]))
    assert task_data("vtab-1k/svhn", {}, 0).data_hash != before.data_hash
    monkeypatch.delenv("VIAPT_TASKS")
    with pytest.raises(ConfigError, match="--root DIR"):
        task_data("vtab-1k/svhn", {}, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vtab-1k", "--tasks", "svhm"], "did you mean 'vtab-1k/svhn'"),
        (["vtab-1k", "--tasks", "hta/svhn"], "vtab-1k has no task 'hta/svhn'"),
        (["hta"], "None of the tasks can be had here"),
        (["vtab-1k", "--root", "/nowhere"], "--root /nowhere does not exist"),
        (["vtab-1k", "--methods", "vpt"], "'vpt'"),
    ],
)
def test_what_is_refused(viapt, world, arguments, words):
    root, backbone = world
    asked = ["--root", root / "data", "--out", root / "out", "--backbone", backbone, "--image-size", 32]
    code, _, err = viapt("bench", "suite", *asked, *arguments)
    assert code == 2 and words in err and len(err.splitlines()) == 1 and not (root / "out").exists()


@pytest.mark.parametrize(
    ("suite", "name", "changes", "settings"),
    [
        ("vtab-1k", "vtab-1k", {}, {}),
        ("hta", "full", {"seeds": (7, 9), "epochs": 3, "normalization": "inception"}, {"weights": "w.safetensors"}),
        ("fgvc", "fgvc", {"batch_size": 32, "grid": "vpt"}, {"trials": 2, "image_size": 32, "precision": "bfloat16"}),
    ],
)
def test_the_command_that_makes_records_of_a_suite_again(viapt, monkeypatch, suite, name, changes, settings):
    protocol = suite_protocol(suite, name, changes, SETTINGS | settings)
    job = {"method": "linear", "training": {"lr": 0.5}}
    methods, tasks = ("linear(lr=0.5)", "viapt(kept_dim=4)"), [f"{suite}/one", f"{suite}/two"]
    records = [
        {"method": method, "task": task, "seed": seed, "trial": -1, "job": job}
        for method in methods
        for task in tasks
        for seed in (7, 9)
    ]
    asked, outs = [], []
    monkeypatch.setattr("viapt.cli.bench_suite.plan_of", lambda *given: asked.append(given))
    monkeypatch.setattr("viapt.cli.bench_jobs.carry_out", lambda _, out, __: outs.append(str(out)))
    program, *arguments = shlex.split(command("table", None, Protocol.from_dict(protocol.to_dict()), records), True)
    code, _, err = viapt(*arguments)
    assert program == "viapt" and code == 0, err
    ((of, root, given, on, found, *_),) = asked
    assert (of, str(root), outs) == (suite, "DIR", ["runs/table"]) and on == tasks
    assert given == ["linear:lr=0.5", "viapt:kept_dim=4;lr=0.5"] and found.to_dict() == protocol.to_dict()


def test_a_suite_is_planned_for_the_devices_of_a_cluster(viapt, world, monkeypatch):
    root, backbone = world
    planned = []
    monkeypatch.setattr("viapt.bench.engines.import_ray", lambda: None)
    monkeypatch.setattr("viapt.cli.bench_jobs.carry_out", lambda plan, *_: planned.append(plan) or 0)
    asked = ["--root", root / "data", "--out", root / "out", "--backbone", backbone, *SMALL.split(), "--tasks", "svhn"]
    cluster = ["--engine", "ray", "--address", "head:6379", "--gpus", 1]
    code, _, err = viapt("bench", "suite", "vtab-1k", *asked, *cluster)
    assert code == 0 and planned[0].device == "cuda", err
    code, _, err = viapt("bench", "suite", "vtab-1k", *asked, *cluster, "--workers", 2)
    assert code == 2 and "--workers has no effect with --address" in err


def test_all_problems_of_a_suite_are_said_at_once(viapt, world):
    """A batch of 0 would make learning rates of 0, which are no problem of their own."""
    root, backbone = world
    asked = ["--root", "/nowhere", "--out", root / "out", "--backbone", backbone, "--image-size", 33, "--workers", 0]
    wrong = ["--epochs", 0, "--batch-size", 0, "--trials", -1, "--tasks", "svhm", "--methods", "linear:lr=0"]
    code, _, err = viapt("bench", "suite", "vtab-1k", *asked, *wrong)
    found = ["--workers 0", "epochs = 0, batch_size = 0, trials = -1", "/nowhere does not exist", "vtab-1k/svhn"]
    assert code == 2 and all(words in err for words in [*found, "33"]), err
    assert err.count("lr = 0") == 0 and "linear(lr=0.0): the search space: lr is both given and searched" in err, err


def test_a_folder_of_another_protocol_is_said_with_the_rest_of_a_suite(viapt, world):
    root, backbone = world
    with Store(root / "out", create=True) as store:
        settings = {"backbone": backbone, "weights": None, "image_size": 32, "precision": "float32", "trials": 0}
        changes = {"epochs": 1, "batch_size": 20, "seeds": (7,)}
        store.adopt(suite_protocol("vtab-1k", "vtab-1k", changes, settings))
    asked = ["--root", root / "data", "--out", root / "out", "--backbone", backbone, *SMALL.split(), "--trials", 0]
    code, _, err = viapt("bench", "suite", "vtab-1k", *asked, "--image-size", 48, "--methods", "vpt")
    assert code == 2 and "2 problems" in err and "another protocol: image_size 32 there, 48 here. To do" in err, err
    code, _, err = viapt("bench", "suite", "vtab-1k", *asked, "--image-size", 48, "--batch-size", 0)
    assert code == 2 and "2 problems" in err and "another protocol: image_size 32 there, 48 here. To do" in err, err


# Protocols


def test_protocols_are_the_published_ones():
    vtab, fgvc = PROTOCOLS["vtab-1k"], PROTOCOLS["fgvc"]
    assert vtab.seeds == fgvc.seeds == (42, 44, 82, 100, 800)
    assert (vtab.search_on, vtab.train_on, vtab.selection) == (("train",), ("train", "val"), "last")
    assert (vtab.augmentation, vtab.resize, vtab.epochs) == ("none", "direct", 100)
    for protocol in (fgvc, PROTOCOLS["hta"]):
        assert (protocol.train_on, protocol.selection) == (("train",), "best-val")
        assert (protocol.augmentation, protocol.resize) == ("standard", "crop")
    assert PROTOCOLS["full"].train_on == ("train", "val") and set(PROTOCOLS) == {"vtab-1k", "fgvc", "hta", "full"}
    with pytest.raises(ConfigError, match="validation images that are trained on"):
        SuiteProtocol("x", "", train_on=("train", "val"), selection="best-val")
    with pytest.raises(ConfigError, match="normalization 'imagenets'"):
        SuiteProtocol("x", "", normalization="imagenets")


def test_grids_are_searched_whole():
    protocol = suite_protocol("vtab-1k", "vtab-1k", {"grid": "vpt", "batch_size": 64}, SETTINGS)
    rates = protocol.space["lr"]["choices"]
    assert protocol.trials == 40 and rates[-1] == 12.5 and rates[0] == 0.0125  # a quarter: 64 of 256
    assert protocol.suite["optimizer"] == "sgd" and protocol.suite["changed"] == ["grid"]
    assert title(protocol.suite) == "vtab-1k, changed in grid"
    unchanged = suite_protocol("fgvc", "full", {"epochs": 100}, SETTINGS)
    assert unchanged.trials == 15 and title(unchanged.suite) == "fgvc, protocol full"
    unsearched = suite_protocol("hta", "hta", {}, SETTINGS | {"trials": 0})
    assert unsearched.space == {} and title(unsearched.suite) == "hta, changed in trials"
    space = {"lr": {"choices": [0.3, 0.1, 0.2]}, "weight_decay": {"choices": [0.0, 1.0]}}
    steps, seen = grid(space), []
    with pytest.raises(StopIteration) as end:
        point = next(steps)
        while True:
            seen.append(point)
            point = steps.send(None if point["lr"] == 0.2 else 0.5)
    assert [point["lr"] for point in seen] == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3] and end.value.value == seen[0]
    assert is_grid(space, 6) and not is_grid(space, 5) and not is_grid({"lr": {"low": 0, "high": 1}}, 1)


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [("weights", 0.3, 0.2), ("imagenet", 0.485, 0.229), ("inception", 0.5, 0.5), ("none", 0.0, 1.0)],
)
def test_how_images_are_prepared(normalization, mean, std):
    own = Preprocessing((224, 224), (0.3,) * 3, (0.2,) * 3, crop_pct=0.9, crop_mode="center")
    suite = {"normalization": normalization, "resize": "direct"}
    direct = preprocessing_under(own, suite)
    assert (direct.mean[0], direct.std[0], direct.crop_pct, direct.crop_mode) == (mean, std, 1.0, "squash")
    crop = preprocessing_under(own, suite | {"resize": "crop"})
    assert (crop.crop_pct, crop.crop_mode) == (0.875, "center")
    assert preprocessing_under(own, None) == own


def test_readers_count_for_benchmark_tasks_alone():
    package = provenance.PACKAGE
    assert not provenance.counts(package / "data/benchmarks/community.py")
    assert provenance.counts(package / "data/sources.py") and provenance.counts(package / "bench/task_data.py")
    plain, benchmark = provenance.code_for("viapt", "elpv"), provenance.code_for("viapt", "hta/svhn")
    assert plain == provenance.CODE["viapt"] and benchmark == f"{plain}-{provenance.BENCHMARK_CODE}"
    assert all((provenance.BENCHMARKS / f"{name}.py").exists() for name in provenance.IDLE_IN_BENCHMARKS)


# Means


def test_both_means_of_vtab_are_named():
    values = {name: float(number) for number, name in enumerate(SUITES["vtab-1k"])}
    found = averages(values, "vtab-1k")
    by_group = {
        group: statistics.mean(value for name, value in values.items() if TASKS[name].group == group)
        for group in ("natural", "specialized", "structured")
    }
    assert found == pytest.approx(
        {
            "mean of 19 tasks": 9.0,
            "natural mean of 7 tasks": by_group["natural"],
            "specialized mean of 4 tasks": by_group["specialized"],
            "structured mean of 8 tasks": by_group["structured"],
            "mean of 3 group means": statistics.mean(by_group.values()),
        }
    )
    del values["vtab-1k/svhn"]
    assert list(averages(values, "vtab-1k")) == [
        "mean of 18 of 19 tasks",
        "natural mean of 6 of 7 tasks",
        "specialized mean of 4 tasks",
        "structured mean of 8 tasks",
        "mean of 3 group means without 1 task",
    ]
    assert averages({"fgvc/dogs": 1.0}, "fgvc") == {"mean of 1 of 5 tasks": 1.0}


def test_published_means_fit_each_other():
    rows = {(row.method, row.mean): row.value for row in published("vtab-1k")}
    sizes = {"natural mean of 7 tasks": 7, "specialized mean of 4 tasks": 4, "structured mean of 8 tasks": 8}
    methods = {method for method, mean in rows if mean in sizes}
    assert len(methods) == 9
    for method in methods:
        groups = {mean: rows[method, mean] for mean in sizes}
        weighted = sum(size * groups[mean] for mean, size in sizes.items()) / 19
        assert rows[method, "mean of 19 tasks"] == pytest.approx(weighted, abs=2.1e-4)
        assert rows[method, "mean of 3 group means"] == pytest.approx(sum(groups.values()) / 3, abs=1.1e-4)
    assert all(row.source and row.caveat and 0 < row.value < 1 for row in published())
    names = {
        "vtab-1k": set(averages(dict.fromkeys(SUITES["vtab-1k"], 0.0), "vtab-1k")),
        "fgvc": {"mean of 5 tasks"},
        "hta": {"mean of 10 tasks"},
    }
    assert all(row.mean in names[row.suite] for row in published())


def test_tables_of_a_suite(tmp_path):
    values = {
        "viapt": {"vtab-1k/svhn": [0.5, 0.7], "vtab-1k/dtd": [0.1, 0.3], "vtab-1k/eurosat": [0.8, 0.8]},
        "linear": {"vtab-1k/svhn": [0.2, 0.2], "vtab-1k/dtd": [0.2, 0.2]},
    }
    protocol = suite_protocol("vtab-1k", "vtab-1k", {}, SETTINGS).to_dict()
    write_report(made(values), tmp_path, "viapt", protocol)
    lines = (tmp_path / "tables/suite.csv").read_text().splitlines()
    assert lines[0].startswith("method,mean of 2 of 19 tasks,") and "eurosat" not in lines[0]
    assert "mean of 1 of 3 group means without 17 tasks" in lines[0]
    assert lines[1].startswith("viapt,0.4,") and lines[2].startswith("linear,0.2,")
    text = (tmp_path / "tables/published.csv").read_text()
    assert "ViaPT" in text and "viapt," not in text

"""The experiments: valid everywhere, run by one command, and pages that say what plain recomputation says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats
from statsmodels.stats.multitest import multipletests

import viapt
from bench_cases import SMALL, small_plan, small_world
from viapt.bench.commands import rows_of
from viapt.bench.engines import LocalEngine
from viapt.bench.experiments import EXPERIMENTS, Axis, Design, Entrant, Experiment, Family
from viapt.bench.findings import findings
from viapt.bench.jobs import measured
from viapt.bench.plan import Problems
from viapt.bench.protocol import Protocol
from viapt.bench.records import export, load_records
from viapt.bench.results import conclusion, hours, publish, write_page
from viapt.bench.runner import run
from viapt.bench.search import space_of
from viapt.bench.store import FINAL, Cell, Failure, Store
from viapt.cli import main
from viapt.cli.bench_experiments import HELP
from viapt.cli.bench_options import Asked
from viapt.data.packaged import list_tasks, load_task, split
from viapt.data.transforms import eval_transform
from viapt.errors import ArtifactError, ConfigError
from viapt.evaluation import evaluate
from viapt.methods import check_effect, create_method, method_class

SIZES = "--image-size 32 --train 40 --val 20 --test 30 --epochs 1 --batch-size 20 --precision float32 --threads 1"
MEASURES = "accuracy", "mean_per_class_accuracy", "loss", "calibration_error"


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


# What is asked


def test_the_command_line_knows_all_experiments():
    assert list(HELP) == list(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_entrant_is_possible_on_the_packaged_backbone(name):
    dim, depth, patch = 384, 12, 14
    experiment = EXPERIMENTS[name]
    entrants = experiment.design(dim).entrants
    Protocol(**experiment.protocol)
    assert set(experiment.tasks) <= set(list_tasks()) and len({e.name for e in entrants}) == len(entrants) > 1
    configurations = []
    for entrant in entrants:
        method = create_method(entrant.method, dim, depth, (patch, patch), **entrant.options)
        check_effect(method, entrant.options)
        configurations.append(json.dumps([entrant.method, method.config()]))
    assert len(set(configurations)) == len(entrants), "two entrants are one"


def test_kept_dimensions_are_those_of_the_question():
    axis = EXPERIMENTS["kept-dim"].design(384).axes[0]
    assert [entrant.options["kept_dim"] for _, entrant in axis.points] == [0, 16, 32, 64, 96, 128, 192, 384]
    corner, whole = EXPERIMENTS["corner-cases"].design(384).twins[1][1], axis.points[-1][1]
    (peeled,) = (one for one in EXPERIMENTS["kept-dim"].design(384).families if "unscaled" in one.title)
    assert peeled.reference == whole and peeled.others[-1] == corner
    changed = [{name: one.options[name] for name in set(one.options) - set(whole.options)} for one in peeled.others]
    assert changed[0] | changed[1] == changed[2] and changed[1] == {"num_instance_prompts": 0}
    (shares,) = (one for one in EXPERIMENTS["generator"].design(384).axes if one.label == "lambda / p")
    assert (shares.points[0][0], shares.points[-1][0]) == ("0/10", "10/10")
    for experiment in EXPERIMENTS.values():
        for one in experiment.design(384).axes:
            values = [float(Fraction(value)) for value, _ in one.points]
            assert all(low < high for low, high in pairwise(values)), one.label


@pytest.mark.parametrize(("dim", "depth"), [(24, 1), (24, 3), (48, 2)])
def test_lora_learns_as_much_as_vpt_deep_or_the_next_smaller_number(dim, depth):
    def learned(entrant: Entrant) -> int:
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=dim, depth=depth, num_heads=3)
        model = viapt.create_model(vit, entrant.method, classes=2, **entrant.options)
        return sum(p.numel() for p in model.method.parameters())

    (lora,) = (e for e in EXPERIMENTS["structured"].design(dim).entrants if e.method == "lora")
    more = Entrant("lora", {"rank": lora.options["rank"] + 1})
    assert learned(lora) <= learned(Entrant("vpt-deep")) < learned(more)


# What is measured


def test_policies_are_those_of_the_library(backbone):
    options = {"num_prompts": 3, "num_instance_prompts": 2, "kept_dim": 4, "calibration_steps": 1, "initial_std": 3.0}
    plan = small_plan(backbone, entrants=[Entrant("viapt", options), Entrant("linear")], rounds=4, draws=2)
    record = measured(plan.job(plan.entrants[0], plan.tasks[0], 1, read_test=False))
    assert measured(plan.job(plan.entrants[1], plan.tasks[0], 1, read_test=False))["policies"] == []
    rows = {(row["policy"], row["rounds"], row["noise_seed"]): row for row in record["policies"]}
    assert len(rows) == 1 + 2 * (4 + 1)

    task = load_task("elpv")
    parts = split(task, 40, 20, 30, seed=0)
    model = viapt.create_model(backbone, "viapt", classes=task.classes, precision="float32", seed=1, **options)
    transform = eval_transform(model.backbone.preprocessing)
    images = torch.stack([transform(Image.fromarray(image)) for image in np.ascontiguousarray(task.images)])
    labels = torch.from_numpy(task.labels)
    train, val = (torch.utils.data.TensorDataset(images[parts[p]], labels[parts[p]]) for p in ("train", "val"))
    viapt.fit(model, train, epochs=1, batch_size=20, seed=1, progress=False)
    asked: dict[Any, Any] = {("mean", 1, None): {}}
    for seed in (0, 1):
        asked[("multi", 1, seed)] = {"policy": "fixed", "seed": seed}
        asked |= {("multi", r, seed): {"policy": "multi", "rounds": r, "seed": seed} for r in (2, 3, 4)}
        asked[("adaptive", 4, seed)] = {"policy": "multi", "rounds": 4, "seed": seed, "adaptive": True}
    for key, options in asked.items():
        found = evaluate(model, val, **options)
        assert rows[key]["accuracy"] == found.accuracy.value, key
        assert rows[key]["loss"] == pytest.approx(found.loss, rel=1e-5)
        assert rows[key]["calibration_error"] == pytest.approx(found.calibration_error.value, abs=1e-5)
        assert rows[key]["passes"] == pytest.approx(found.rounds)
    assert len({row["loss"] for row in rows.values()}) > 8  # noise matters here
    assert rows["mean", 1, None]["loss"] == pytest.approx(record["val"]["loss"], rel=1e-5)


def test_trials_measure_no_policies(backbone, tmp_path):
    from test_bench_runner import InProcess  # an engine that trains nothing

    engine = InProcess()
    run(small_plan(backbone, trials=2, rounds=3, draws=1, seeds=[5]), tmp_path / "out", engine)
    assert {(job.rounds, job.draws) for job in engine.jobs if job.seed == 0} == {(0, 0)}
    assert {(job.rounds, job.draws) for job in engine.jobs if job.seed == 5} == {(3, 1)}


# Options


def test_a_default_that_is_asked_for_is_not_what_is_usual():
    usual = EXPERIMENTS["corner-cases"].protocol
    assert Asked().protocol(Problems(), **usual).precision == "float32"
    assert Asked(named=frozenset({"precision"})).protocol(Problems(), **usual).precision == "auto"


# From one command to a page


def test_one_command_makes_records_page_and_index(bench, backbone, tmp_path):
    out, results = tmp_path / "jobs", tmp_path / "results"
    asked = ["--tasks", "elpv", "silhouettes", "--seeds", 0, 1, "--backbone", backbone, *SIZES.split()]
    code, shown, err = bench("corner-cases", "--out", out, "--results", results, *asked)
    assert code == 0 and "16 done, 0 failed, 0 open" in shown, err
    page = results / "corner-cases.md"
    text = page.read_text()
    assert text.count("identical in all 4 runs, every number to the last bit") == 2 and "NOT" not in text
    _, records = load_records(results / "corner-cases.json")
    for pair in EXPERIMENTS["corner-cases"].design(24).twins:
        one, other = (
            {(r["task"], r["seed"]): [*(r["val"][name] for name in MEASURES), r["train_loss"]] for r in records
             if r["method"] == entrant.name}
            for entrant in pair
        )  # fmt: skip
        assert one == other and len(one) == 4
    for words in (
        "Not written yet.",
        "16, 0.0",
        *{record["data_hash"] for record in records},
        f"viapt bench corner-cases --out runs/corner-cases --tasks elpv silhouettes --seeds 0 1 --backbone {backbone}",
        "--from docs/results/corner-cases.json",
    ):
        assert words.replace("_", "\\_") in text, words
    index = (results / "README.md").read_text()
    spent = sum(record["job_seconds"] for record in records) / 3600
    assert f"| 16 | {spent:.2f} |" in index and "viapt bench corner-cases --out" in index
    assert index.count("not run yet") == len(EXPERIMENTS) - 1 and "viapt bench kept-dim --out runs/kept-dim\n" in index

    # A table without an experiment has a report, which says as much of itself, and the index leads there.
    code, _, err = bench("report", results / "corner-cases.json", "--out", results / "table", "--part", "val")
    assert code == 2 and "reference" in err  # there is no 'viapt' without settings
    (results / "table.json").write_bytes((results / "corner-cases.json").read_bytes())
    code, _, err = bench(
        "report", results / "table.json", "--out", results / "table", "--part", "val", "--reference", "vpt-deep"
    )
    told = (results / "table" / "report.md").read_text()
    split_hashes = {record["job"]["split_hash"] for record in records}
    for words in (
        *{record["data_hash"] for record in records},
        *split_hashes,
        f"16, {spent:.2f} hours",
        "bench run --out runs/table ",
    ):
        assert words in told.replace("\\_", "_"), words
    for name in ("report.md", "report.html"):
        (results / "table" / name).rename(tmp_path / name)
    (results / "table" / "report.md").write_text("measured on the val part. The reference is vpt-deep.")
    (results / "bare.json").write_bytes((results / "table.json").read_bytes())
    code, made, _ = bench("results", results)
    assert code == 0 and str(results / "table" / "report.html") in made and not (results / "bare").exists()
    for name in ("report.md", "report.html"):
        assert (results / "table" / name).read_text() == (tmp_path / name).read_text()
    index = (results / "README.md").read_text()
    assert "viapt bench report table.json --out table --part val --reference vpt-deep  # the" in index
    said = "A table of methods: training images 40, epochs 1, side 32 px."
    assert f"[table](table/report.md) | {said} | 16 |" in index
    assert "viapt bench run --out runs/table --tasks" in index
    assert f"{spent:.2f} hours in all" in index  # each run once

    # The same command does nothing twice, and what a person wrote stays.
    for path in (page, results / "README.md"):
        path.write_text(path.read_text().replace("Not written yet.", "They *are* one\n\nand the same."))
    before = page.read_text()
    code, _, err = bench("corner-cases", "--out", out, "--results", results, *asked)
    assert code == 0 and page.read_text() == before and "1/16" not in err
    assert "They *are* one\n\nand the same." in (results / "README.md").read_text()

    # The page from the records alone, in another folder and in this one.
    elsewhere = tmp_path / "elsewhere"
    assert bench("corner-cases", "--from", results / "corner-cases.json", "--results", elsewhere)[0] == 0
    assert conclusion(elsewhere / "corner-cases.md") == "Not written yet."
    assert (elsewhere / "corner-cases.json").read_bytes() == (results / "corner-cases.json").read_bytes()
    assert (elsewhere / "corner-cases.md").read_text() == text
    page.unlink()
    assert bench("results", results)[0] == 0 and page.read_text() == text
    assert bench("corner-cases", "--from", out, "--results", tmp_path / "third")[0] == 0
    assert (tmp_path / "third" / "corner-cases.md").read_text() == text

    page.write_text(page.read_text().replace("<!-- conclusion -->", ""))
    with pytest.raises(ArtifactError, match="would be lost"):
        write_page(EXPERIMENTS["corner-cases"], results / "corner-cases.json")


def test_all_problems_at_once(bench, backbone, tmp_path):
    more = ["--tasks", "elpv", "moon", "--seeds", -1, "--epochs", 0, "--workers", 0, "--image-size", "big"]
    code, _, err = bench("kept-dim", "--out", tmp_path / "out", "--backbone", "local-dir:/nowhere", *more)
    assert code == 2 and not (tmp_path / "out").exists() and len(err.splitlines()) == 1
    for words in ("problems, and nothing was started", "'moon'", "seed -1", "epochs = 0", "--workers 0", "big"):
        assert words in err, (words, err)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "Neither --out nor --from"),
        (["--out", "a", "--from", "b"], "Both --out and --from"),
        (["--from", "nowhere.json"], "nothing is there"),
        (["--from", ".", "--epochs", "3", "--tasks", "elpv"], "--tasks, --epochs has no effect"),
        (["--from", ".", "--precision", "auto"], "--precision has no effect"),
    ],
)
def test_sources_that_cannot_be(bench, given, words):
    code, _, err = bench("kept-dim", *given)
    assert code == 2 and words in err


def test_records_of_something_else(bench, backbone, tmp_path):
    path = tmp_path / "records.json"
    path.write_text('{"format": 1}')
    assert bench("kept-dim", "--from", path, "--results", tmp_path / "r")[0] == 2
    assert not (tmp_path / "r" / "kept-dim.json").exists()


# What is said


def record(method, task, seed, accuracy, **more):
    found = {"accuracy": accuracy, "mean_per_class_accuracy": accuracy, "loss": 1.0, "calibration_error": 0.1}
    own = {"method": method, "task": task, "seed": seed, "trial": -1, "key": f"{method}{task}{seed}", "val": found}
    cost = {"learnable_parameters": 10, "seconds": 1.0, "peak_memory_mib": 1.0, "train_loss": 0.5, "test": None}
    return own | cost | {"policies": []} | more


A, B, C = ENTRANTS = Entrant("linear"), Entrant("full"), Entrant("bitfit")
TASKS, SEEDS = ("u", "v"), range(5)


def drawn(shift, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.45, 0.5, (2, 5)) + shift


def test_differences_and_p_values_are_those_of_plain_code():
    values = {e.name: v for e, v in zip(ENTRANTS, (drawn(0), drawn(0.1, 1), drawn(0.005, 2)), strict=True)}
    records = [
        record(name, t, s, float(v[i, s])) for name, v in values.items() for i, t in enumerate(TASKS) for s in SEEDS
    ]
    design = Design(families=(Family("Which?", A, (B, C)),), axes=(Axis("x", (("a", A), ("b", B), ("c", C))),))
    found, _ = findings(design, Protocol(), records)
    tests: list[Any] = [stats.wilcoxon((values[e.name] - values[A.name]).ravel(), method="exact") for e in (B, C)]
    adjusted: Any = multipletests([test.pvalue for test in tests], method="holm")[1]
    corrected = {B.name: adjusted[0], C.name: adjusted[1]}
    tests = [stats.wilcoxon((values[e.name] - values[A.name]).mean(1), method="exact") for e in (B, C)]
    over_tasks = dict(zip(corrected, multipletests([test.pvalue for test in tests], method="holm")[1], strict=True))
    sentence = next(s for s in found.sentences if s.startswith("Which?"))
    for entrant, side in ((B, "higher"), (C, "not told apart")):
        gap = values[entrant.name] - values[A.name]
        half = stats.sem(gap.mean(0)) * stats.t.ppf(0.975, 4)
        words = (
            f"{entrant.name} ({100 * gap.mean():+.1f} ± {100 * half:.1f}, p = {corrected[entrant.name]:.2g} over runs"
        )
        words += f", {over_tasks[entrant.name]:.2g} over tasks)"
        assert f"{side}: {words}" in sentence, (words, sentence)
    axis = next(s for s in found.sentences if s.startswith("x: "))
    means = {name: 100 * values[e.name].mean() for name, e in (("a", A), ("b", B), ("c", C))}
    assert f"at b, inside the range: {means['b']:.1f} %" in axis and f"at a {means['a']:.1f} %" in axis
    best = [("a", "b", "c")[int(np.argmax([values[e.name][i].mean() for e in (A, B, C)]))] for i in (0, 1)]
    assert f"u {best[0]}, v {best[1]}" in axis
    turned, _ = findings(replace(design, axes=(Axis("y", (("b", B), ("a", A))),)), Protocol(), records)
    assert any("y: the highest mean is at b, at an end of the range" in s for s in turned.sentences)


def test_numbers_that_are_not_identical_are_told():
    records = [record(e.name, "u", s, 0.5) for e in (A, B) for s in (0, 1)]
    design = Design(twins=((A, B),))
    assert "identical in all 2 runs" in findings(design, Protocol(), records)[0].sentences[1]
    records[-1]["train_loss"] = 0.5 + 2**-53
    sentence = findings(design, Protocol(), records)[0].sentences[1]
    assert "NOT identical. 1 of 2" in sentence and "training loss 1.11e-16 (u, seed 1)" in sentence


def policies(rng, rounds=3, draws=2):
    def row(policy, count, seed):
        numbers = {name: float(rng.uniform(0.1, 0.9)) for name in (*MEASURES, "passes", "seconds")}
        return {"policy": policy, "rounds": count, "noise_seed": seed} | numbers

    kinds = [("multi", r) for r in range(1, rounds + 1)] + [("adaptive", rounds)]
    return [row("mean", 1, None), *(row(kind, r, s) for s in range(draws) for kind, r in kinds)]


def test_policies_are_averaged_as_plain_code_does():
    rng = np.random.default_rng(3)
    records = [record("linear", t, s, 0.5, policies=policies(rng)) for t in TASKS for s in SEEDS]
    found, _ = findings(Design(others=(A,)), Protocol(rounds=3, draws=2), records)
    table = next(t for t in found.tables if t.name == "policies-linear")
    shown: dict[Any, Any] = {row[0]: row for row in table.rows}
    assert list(shown) == ["mean", "fixed", "multi, R = 2", "multi, R = 3", "adaptive, R = 3"]

    def plain(kind, rounds, name):
        return np.array([[[row[name] for row in r["policies"] if (row["policy"], row["rounds"]) == (kind, rounds)]
                          for r in records if r["task"] == t] for t in TASKS])  # fmt: skip

    accuracy = plain("multi", 3, "accuracy")
    assert shown["multi, R = 3"][3].value == pytest.approx(accuracy.mean())
    half = stats.sem(accuracy.mean((0, 2))) * stats.t.ppf(0.975, 4)
    assert shown["multi, R = 3"][3].half == pytest.approx(half)
    assert shown["multi, R = 3"][4] == pytest.approx(accuracy.std(2, ddof=1).mean())
    assert shown["adaptive, R = 3"][1] == pytest.approx(plain("adaptive", 3, "passes").mean())
    assert shown["fixed"][5].value == pytest.approx(plain("multi", 1, "calibration_error").mean())
    gap = accuracy.mean(2) - plain("mean", 1, "accuracy").mean(2)
    sentence = next(s for s in found.sentences if s.startswith("Does sampling change"))
    assert f"multi, R = 3 ({100 * gap.mean():+.1f}" in sentence


def toy_file(
    path: Path,
    experiment: Experiment,
    rates: Mapping[str, float] = MappingProxyType({}),
    failures: Sequence[Failure] = (),
    **changes: Any,
) -> Path:
    """What `export` would write of two tasks and two seeds: random numbers; rates are the defaults, but for some."""
    rng = np.random.default_rng(0)
    few: dict[str, Any] = {"rounds": 3, "draws": 2} if "rounds" in experiment.protocol else {}
    protocol = Protocol(**few | changes)
    common = {"versions": {"torch": "2"}, "code": "a-b", "device": "cpu", "split_hash": "s"}
    more = {"dim": 384, "device": "a CPU", "viapt": "0", "job_seconds": 36.0, "data_hash": "d", "data_source": "toy 1"}
    records = []
    for e in experiment.design(384).entrants:
        rate = rates.get(e.name, method_class(e.method).learning_rate)
        more["job"] = {"method": e.method, "training": {"selection": "last", "lr": rate}}
        for task, seed in product(experiment.tasks[:2], (0, 1)):
            found = policies(rng) if protocol.rounds else []
            records.append(record(e.name, task, seed, float(rng.uniform()), **more, policies=found))
    content = {"format": 1, "protocol": protocol.to_dict(), "common": common, "records": records}
    content["failures"] = [vars(one.cell) | {"cause": one.cause, "times": one.times} for one in failures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# What is there stays


def lacking(source: Path, target: Path) -> Path:
    """A file of records without the last one."""
    content = json.loads(source.read_text())
    target.write_text(json.dumps(content | {"records": content["records"][:-1]}))
    return target


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_records_that_would_be_lost_are_not_replaced_unasked(tmp_path):
    experiment, results = EXPERIMENTS["corner-cases"], tmp_path / "results"
    whole = toy_file(tmp_path / "whole.json", experiment)
    other = toy_file(tmp_path / "other.json", experiment, epochs=3)
    few = lacking(whole, tmp_path / "few.json")
    publish(experiment, few, results)
    publish(experiment, whole, results)  # more records lose none
    before = contents_of(results)
    publish(experiment, results / "corner-cases.json", results)
    for source, words in (
        (few, r"1 of 16 records that .*few.json lacks: .*, seed 1\. To do: .*--results DIR; or --replace"),
        (other, r"another protocol: epochs 10 there, 3 here\. To do: .*--results DIR; or --replace"),
    ):
        with pytest.raises(ConfigError, match=words):
            publish(experiment, source, results)
        assert contents_of(results) == before
        publish(experiment, source, results, overwrite=True)
        assert load_records(results / "corner-cases.json") == load_records(source)
        publish(experiment, whole, results, overwrite=True)
        assert contents_of(results) == before


def test_another_protocol_is_refused_before_jobs_are_done(bench, backbone, tmp_path, monkeypatch):
    experiment, results, out = EXPERIMENTS["corner-cases"], tmp_path / "results", tmp_path / "jobs"
    asked = ["--out", out, "--results", results, "--tasks", "elpv", "--backbone", backbone, *SIZES.split()]
    path = toy_file(results / "corner-cases.json", experiment, precision="float32")
    before, started = contents_of(results), []
    monkeypatch.setattr("viapt.cli.bench_experiments.carry_out", lambda *given: started.append(given) or 1)
    code, _, err = bench("corner-cases", *asked, "--seeds", -1)
    assert code == 2 and "another protocol" in err and "train 800 there, 40 here" in err and "seed -1" in err
    assert not started and not out.exists() and contents_of(results) == before
    code, _, err = bench("corner-cases", *asked, "--replace")
    assert len(started) == 1 and code == 2 and f"{out} holds no bench.sqlite" in err  # since nothing was done
    path.unlink()

    # A precision that is decided only when all is checked.
    small = SMALL | {"backbone": backbone, "precision": "bfloat16"}
    toy_file(path, experiment, **small)
    asked[asked.index("float32")] = "auto"
    monkeypatch.setattr("viapt.bench.plan.choose_precision", lambda *_: SimpleNamespace(name="float32"))
    code, _, err = bench("corner-cases", *asked)
    assert code == 2 and "precision 'bfloat16' there, 'float32' here" in err and len(started) == 1, err


def test_places_that_stay_empty_are_told_on_the_page(tmp_path):
    experiment = EXPERIMENTS["corner-cases"]
    names = [entrant.name for entrant in experiment.design(384).entrants]
    empty = [Failure(Cell(name, "moon", seed), "no pictures of it", "", 1) for name in names for seed in (0, 1)]
    empty.append(Failure(Cell("gone", "sun", 9), "too bright", "", 1))  # of no entrant
    text = write_page(experiment, toy_file(tmp_path / "corner-cases.json", experiment, failures=empty)).read_text()
    assert "- 16 of 24 runs: 4 entrants, 2 tasks, 2 seeds," in text and "Not measured: the task moon." in text
    failed = text.partition("## What failed")[2].partition("## What was run")[0].split("\n")
    assert [line for line in failed if line] == [
        "- moon: 8 places: no pictures of it",
        "- gone, sun, seed 9: too bright",
    ]


@pytest.mark.parametrize("name", ["kept-dim", "inference", "reduction"])
def test_pages_have_their_pictures(name, tmp_path):
    experiment = EXPERIMENTS[name]
    path = toy_file(tmp_path / f"{name}.json", experiment)
    _, records = load_records(path)
    page = write_page(experiment, path)
    text, pictures = page.read_text(), {p.name: p.read_bytes() for p in (tmp_path / "pictures").iterdir()}
    assert {f"pictures/{p}" for p in pictures} == set(re.findall(r"\]\((pictures/[^)]*)\)", text))
    assert all(content.startswith(b"\x89PNG") for content in pictures.values()) and "nan" not in text.lower()
    assert len(pictures) == {"kept-dim": 3, "inference": 2, "reduction": 2}[name]
    assert f"{len(records)}, {len(records) / 100:.2f} hours of compute" in text
    assert "was trained at" not in text


def test_rows_that_their_command_would_train_at_another_rate_are_told(tmp_path):
    experiment, now = EXPERIMENTS["structured"], method_class("lora").learning_rate
    (lora,) = (e.name for e in experiment.design(384).entrants if e.method == "lora")
    path = toy_file(tmp_path / "structured.json", experiment, {lora: 0.125})
    text = write_page(experiment, path).read_text()
    (note,) = [line for line in text.splitlines() if "was trained at" in line]
    assert note.startswith(f"- {lora} was trained at a learning rate of 0.125; its default now is {now}, with which")


def test_gaps_are_told_not_filled():
    records = [record(A.name, "u", s, 0.5) for s in (0, 1)]
    design = Design(families=(Family("Which?", B, (A, C)),), axes=(Axis("x", (("a", A), ("b", B))),))
    sentences = findings(design, Protocol(), records)[0].sentences
    assert not any("ranks" in note for note in findings(design, Protocol(), records)[1])
    assert "2 of 6 runs" in sentences[0] and "Not measured: bitfit, full." in sentences[0]
    empty = [Cell(A.name, "w", 0), Cell(B.name, "u", 7)]
    first = findings(design, Protocol(), records, empty)[0].sentences[0]
    assert "2 of 18 runs" in first and "Not measured: bitfit, full, the task w, the seed 7." in first
    assert "x: fewer than two values" in sentences[1] and "Not answered" in sentences[2]


def test_rows_as_the_command_line_takes_them_keep_the_rates_of_then():
    def row(name: str, method: str, rate: float, trial: int = FINAL) -> dict[str, Any]:
        return {"method": name, "trial": trial, "job": {"method": method, "training": {"lr": rate}}}

    rate, then = method_class("full").learning_rate, 0.125
    rows = [row("full", "full", rate), row("lora(rank=2)", "lora", then), row("linear(lr=0.5)", "linear", 0.5)]
    rows += [row("viapt(kept_dim=4, generator_kernels=(1, 5))", "viapt", then)]
    assert rows_of(rows) == [
        "full",
        "'lora:rank=2;lr=0.125'",
        "'linear:lr=0.5'",
        "'viapt:kept_dim=4;generator_kernels=(1, 5);lr=0.125'",
    ]
    searched = [row("full", "full", then), row("full", "full", 0.25, trial=0)]
    assert rows_of(searched) == ["full"]


def test_a_job_that_rows_share_is_paid_once():
    shared = [{"key": "a", "job_seconds": 3600.0}, {"key": "a", "job_seconds": 3600.0}]
    assert hours([*shared, {"key": "b", "job_seconds": 1800.0}]) == 1.5


def test_the_search_space_and_the_entrants_go_together():
    searched = Protocol(trials=2)
    assert all(space_of(e, searched) for x in EXPERIMENTS.values() for e in x.design(384).entrants)


def test_an_experiment_without_its_runs(tmp_path, backbone):
    other = Experiment("x", "X", "Which?", lambda _: Design(others=(C,)), ("elpv",))

    run(small_plan(backbone, entrants=[A], seeds=[0]), tmp_path / "out", LocalEngine(1, 1))
    with Store(tmp_path / "out") as store:
        export(store, tmp_path / "x.json")
    with pytest.raises(ConfigError, match="no runs of the experiment x"):
        write_page(other, tmp_path / "x.json")

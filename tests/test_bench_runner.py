"""Runs: the numbers of plain code, nothing done twice, and nothing lost by failures, kills and interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import viapt
from bench_cases import METHODS, VIAPT, small_plan, small_run, small_world
from viapt.bench.engines import LocalEngine, RayEngine, work_on_cpu
from viapt.bench.entrants import Entrant
from viapt.bench.jobs import Job, Outcome, measured, work
from viapt.bench.plan import Problems
from viapt.bench.provenance import CODE
from viapt.bench.records import export, load_records, load_scores, restore, stored_scores
from viapt.bench.runner import Cell, Progress, continued, run
from viapt.bench.store import FILE, Failure, Store
from viapt.data.packaged import load_task, split
from viapt.data.transforms import eval_transform
from viapt.device import default_device
from viapt.errors import ArtifactError, ConfigError, DataError
from viapt.pruning import prune


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    return small_world(tmp_path)


LR = {"low": 0.1, "high": 1.0}


class InProcess:
    """Does jobs here and now, and counts them; may be told to fail, or to be interrupted."""

    device = "cpu"

    def __init__(self, limit: int = 1000, fails: str = "", diverges: int = 0) -> None:
        self.jobs: list[Job] = []
        self.limit, self.fails, self.diverges = limit, fails, diverges

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def room(self) -> int:
        return 2

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        if len(self.jobs) == self.limit:
            raise KeyboardInterrupt
        self.jobs.append(job)
        future: Future[dict[str, Any]] = Future()
        if job.method == self.fails:
            future.set_exception(ConnectionError("the node is gone"))
        elif len(self.jobs) <= self.diverges:
            future.set_result({"cause": "the loss is not finite", "diverged": True})
        else:
            accuracy = 1 / (1 + abs(job.training["lr"] - 0.01)) if not job.read_test else 0.5
            found = {"accuracy": accuracy, "mean_per_class_accuracy": accuracy / 2}
            record = {"job": job.to_dict(), "val": found, "test": found if job.read_test else None, "seconds": 1.0}
            record |= {"learnable_parameters": 3, "peak_memory_mib": 1.0, "data_hash": job.data_hash}
            future.set_result({"record": record, "cause": "", "trace": ""})
        return future


def test_a_job_measures_what_plain_code_measures(backbone):
    plan = small_plan(backbone, epochs=2)
    job = replace(plan.job(METHODS[1], plan.tasks[0], 3, read_test=True))
    record = measured(job)

    task = load_task("elpv")
    parts = split(task, 40, 20, 30, seed=0)
    model = viapt.create_model(backbone, "viapt", classes=task.classes, precision="float32", seed=3, **VIAPT)
    transform = eval_transform(model.backbone.preprocessing)
    images = torch.stack([transform(Image.fromarray(image)) for image in np.ascontiguousarray(task.images)])
    labels = torch.from_numpy(task.labels)
    train = torch.utils.data.TensorDataset(images[parts["train"]], labels[parts["train"]])
    history = viapt.fit(model, train, epochs=2, batch_size=20, seed=3, progress=False)
    with torch.inference_mode():
        right = model(images).argmax(1) == labels
    for part in ("val", "test"):
        mine = right[parts[part]].double()
        accuracies = [mine[labels[parts[part]] == label].mean() for label in range(4)]
        assert record[part]["accuracy"] == record[f"{part}_accuracy"] == pytest.approx(float(mine.mean()))
        assert record[part]["mean_per_class_accuracy"] == pytest.approx(float(sum(accuracies) / 4))
    assert record["train_loss"] == history.epochs[-1].train_loss
    assert record["learnable_parameters"] == sum(p.numel() for p in model.method.parameters())
    assert record["head_parameters"] == 24 * 4 + 4
    assert record["data_hash"] == task.content_hash and record["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert record["transforms"]["augmentation"] == "none" and record["job"] == job.to_dict()


def test_a_pruned_job_is_two_trainings_and_a_mask(backbone):
    """The numbers of the library's own steps, and twice the training."""
    options = {"num_prompts": 4, "key_value_prompts": 2, "segments": 4}
    pruned = Entrant("e2vpt", options, {"prune_tokens": 0.5, "prune_segments": 0.25, "lr": 0.05})
    plan = small_plan(backbone, entrants=[Entrant("e2vpt", options, {"lr": 0.05}), pruned], epochs=2)
    whole, record = (measured(plan.job(one, plan.tasks[0], 3, read_test=False)) for one in plan.entrants)

    task = load_task("elpv")
    parts = split(task, 40, 20, 30, seed=0)
    make = partial(viapt.create_model, backbone, "e2vpt", classes=task.classes, precision="float32", seed=3, **options)
    trained, model = make(), make()
    transform = eval_transform(model.backbone.preprocessing)
    pictures = torch.stack([transform(Image.fromarray(image)) for image in np.ascontiguousarray(task.images)])
    labels = torch.from_numpy(task.labels)
    train, val = ((pictures[parts[part]], labels[parts[part]]) for part in ("train", "val"))
    data = torch.utils.data.TensorDataset(*train)
    train_loss = []
    for one in (trained, model):
        history = viapt.fit(one, data, epochs=2, lr=0.05, batch_size=20, seed=3, progress=False)
        train_loss.append(history.epochs[-1].train_loss)
        if one is trained:
            prune(trained, model, data, tokens=0.5, segments=0.25)
    with torch.inference_mode():
        losses = [float(torch.nn.functional.cross_entropy(one(val[0]), val[1])) for one in (trained, model)]
    assert [whole["train_loss"], record["train_loss"]] == pytest.approx(train_loss) and losses[0] != losses[1]
    assert [whole["val"]["loss"], record["val"]["loss"]] == pytest.approx(losses)
    # Of 4 prompts of 24 numbers before each of the blocks 2 stay, each with three of its four segments.
    depth = model.backbone.depth
    assert whole["learnable_parameters"] == depth * 24 * (4 + 2)
    assert record["learnable_parameters"] == depth * (2 * 18 + 24 * 2)


def test_linear_probing_on_cached_features_is_linear_probing(backbone, tmp_path):
    plan = small_plan(backbone)
    job = plan.job(METHODS[0], plan.tasks[0], 0, read_test=True)
    first, again = measured(job), measured(job)
    assert len(list((tmp_path / "cache" / "embedded").iterdir())) >= 3  # train, val, test
    assert first["test"] == again["test"]
    task = load_task("elpv")
    model = viapt.create_model(backbone, "linear", classes=task.classes, precision="float32", seed=0)
    assert first["learnable_parameters"] == 0 and first["head_parameters"] == sum(
        tensor.numel() for tensor in model.learnable().values()
    )


def test_a_job_refuses_other_code_data_and_devices(backbone):
    plan = small_plan(backbone)
    job = plan.job(METHODS[0], plan.tasks[0], 0, read_test=False)
    for changes, words in (
        ({"code": "0-0"}, "code"),
        ({"device": "cuda"}, "planned with cuda"),
        ({"versions": job.versions | {"torch": "1.0"}}, "planned with 1.0"),
        ({"data_hash": "0"}, "The data of 'elpv'"),
        ({"split_hash": "0"}, "The split of 'elpv'"),
    ):
        outcome = work(replace(job, **changes).to_dict(), torch.get_num_threads())
        assert outcome["record"] is None and words in outcome["cause"], outcome["cause"]


def test_processes_do_jobs_once_and_failures_stop_nobody(backbone, tmp_path):
    out = tmp_path / "out"
    bad = Entrant("linear", training={"lr": 1e30, "weight_decay": 1e3})
    entrants = [bad, *METHODS]
    progress = small_run(out, backbone, workers=2, entrants=entrants)
    assert (progress.done, progress.failed, progress.skipped) == (4, 2, 0)
    assert all("not finite" in cause for cause in progress.causes.values())
    with Store(out) as store:
        assert [failure.cell.seed for failure in store.failures()] == [0, 1]
        before = store.records()
        assert "Traceback" in store.failures()[0].trace
        assert len({record["key"] for record in before}) == 4 and all(
            record["peak_memory_mib"] > 50 for record in before
        )
    engine = InProcess()
    progress = run(small_plan(backbone, entrants=entrants), out, engine)
    assert (progress.done, progress.failed, progress.skipped) == (2, 0, 4) and len(engine.jobs) == 2
    with Store(out) as store:
        assert not store.failures() and len(store.records()) == 6
        assert all(record in store.records() for record in before)


def test_an_interrupted_run_goes_on_where_it_stopped(backbone, tmp_path):
    plan = small_plan(backbone, trials=3, entrants=[Entrant("linear"), Entrant("viapt", VIAPT)])
    whole = InProcess()
    run(plan, tmp_path / "whole", whole)
    first, second = InProcess(limit=5), InProcess()
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "out", first)
    progress = run(plan, tmp_path / "out", second)
    stored = 4  # of the five that were submitted, one was on its way
    assert progress.skipped >= stored - 1 and progress.open == 0
    assert {job.key for job in first.jobs + second.jobs} == {job.key for job in whole.jobs}
    third = InProcess()
    assert run(plan, tmp_path / "out", third).skipped == progress.wanted and not third.jobs
    with Store(tmp_path / "out") as one, Store(tmp_path / "whole") as other:
        assert one.records() == other.records() and not one.open_cells()


def test_a_search_is_equal_for_all_reads_no_test_and_decides_the_final_runs(backbone, tmp_path):
    engine = InProcess()
    plan = small_plan(backbone, trials=5, read_test=True)
    assert run(plan, tmp_path, engine).done == 2 * (5 + 2)
    with Store(tmp_path) as store:
        records = store.records()
    for entrant in METHODS:
        mine = [record for record in records if record["method"] == entrant.name]
        trials, final = ([r for r in mine if (r["trial"] >= 0) == wanted] for wanted in (True, False))
        assert len(trials) == 5 and {record["job"]["training"]["epochs"] for record in mine} == {1}
        assert not any(record["test"] or record["job"]["read_test"] for record in trials)
        best = max(trials, key=lambda record: record["val"]["accuracy"])
        for record in final:
            assert record["test"] and record["job"]["training"] == best["job"]["training"]
        assert [record["seed"] for record in final] == [0, 1]


def test_a_test_split_is_read_by_one_job_only(backbone, tmp_path, monkeypatch):
    plan = small_plan(backbone, read_test=True, seeds=[0])
    run(plan, tmp_path, InProcess())
    with Store(tmp_path) as store:
        before = store.records()
    monkeypatch.setitem(CODE, "viapt", "another-code")
    engine = InProcess()
    progress = run(small_plan(backbone, read_test=True, seeds=[0, 1]), tmp_path, engine)
    assert [(job.method, job.seed) for job in engine.jobs] == [("linear", 1), ("viapt", 1)]
    ((cell, cause),) = progress.causes.items()
    assert cell == Cell(METHODS[1].name, "elpv", 0) and "read on" in cause and "another-code" in cause
    with Store(tmp_path) as store:
        assert all(record in store.records() for record in before)


def exams(folder: Path) -> list[tuple[str, int]]:
    """Method and seed of the test splits that count as read."""
    with Store(folder) as store:
        return [(name.partition("(")[0], seed) for name, seed in store.rows("SELECT method, seed FROM exams")]


def stop_at_once(progress: Progress, cell: Cell | None, outcome: Outcome | None) -> None:
    if outcome is not None:
        raise KeyboardInterrupt


def test_what_was_only_queued_has_read_no_test_split(backbone, tmp_path, monkeypatch):
    def plan():
        return small_plan(backbone, read_test=True, entrants=[METHODS[1]], seeds=[*range(8)])

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path, InProcess(), stop_at_once)
    assert exams(tmp_path) == [("viapt", 0), ("viapt", 1)]  # room for two
    monkeypatch.setitem(CODE, "viapt", "another-code")
    progress = run(plan(), tmp_path, InProcess())
    assert (progress.done, sorted(cell.seed for cell in progress.causes)) == (6, [0, 1])
    assert len(exams(tmp_path)) == 8


class Unwilling(InProcess):
    """Refuses all jobs before they read data; or never starts them, where `waits`."""

    def __init__(self, waits: bool = False) -> None:
        super().__init__()
        self.waits, self.futures = waits, list[Future[dict[str, Any]]]()

    def __exit__(self, *_: object) -> None:
        for future in self.futures:
            future.cancel()

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        if self.waits and not self.futures:
            self.futures.append(Future())
            return self.futures[0]
        future: Future[dict[str, Any]] = Future()
        future.set_result({"cause": "other code", "begun": False})
        return future


def test_a_job_that_never_began_has_read_no_test_split(backbone, tmp_path):
    first = small_plan(backbone, read_test=True, seeds=[0])
    run(first, tmp_path, InProcess(fails="viapt"))  # and nobody knows how far it came
    both = small_plan(backbone, read_test=True, seeds=[0, 1])
    progress = run(both, tmp_path, Unwilling())
    assert (progress.skipped, set(progress.causes.values())) == (1, {"other code"})
    assert exams(tmp_path) == [("linear", 0), ("viapt", 0)]
    with pytest.raises(KeyboardInterrupt):
        run(both, tmp_path, Unwilling(waits=True), stop_at_once)
    assert exams(tmp_path) == [("linear", 0), ("viapt", 0)]


def test_a_process_that_refuses_its_job_has_read_no_test_split(backbone, tmp_path):
    plan = replace(small_plan(backbone, read_test=True, seeds=[0], entrants=[METHODS[0]]), device="cuda")
    progress = run(plan, tmp_path, LocalEngine(1, threads=1))
    assert "planned with cuda" in progress.causes[Cell("linear", "elpv", 0)] and not exams(tmp_path)
    with Store(tmp_path) as store:
        assert "check_place" in store.failures()[0].trace


def test_methods_that_are_the_same_share_their_job(backbone, tmp_path):
    same = [Entrant("viapt", {"kept_dim": 0} | more) for more in ({}, {"num_instance_prompts": 0})]
    engine = InProcess()
    progress = run(small_plan(backbone, entrants=same), tmp_path, engine)
    assert progress.done == 4 and len(engine.jobs) == 2
    with Store(tmp_path) as store:
        assert len({record["method"] for record in store.records()}) == 2


def test_lost_jobs_are_failures(backbone, tmp_path):
    progress = run(small_plan(backbone), tmp_path, InProcess(fails="viapt"))
    assert progress.done == 2 and progress.failed == 2 and progress.open == 0
    assert set(progress.causes.values()) == {"ConnectionError: the node is gone"}


def test_a_search_does_not_go_on_without_a_trial_that_was_lost(backbone, tmp_path):
    """The trial may decide what is trained at last; until it is done no test image is read."""
    plan = small_plan(backbone, trials=2, read_test=True)
    progress = run(plan, tmp_path / "lost", InProcess(fails="viapt"))
    assert progress.done == 4 and progress.failed == 1 + 2 and progress.open == 1
    lost = [cause for cell, cause in progress.causes.items() if cell.trial < 0]
    assert len(lost) == 2 and all("Trial 1 of its search was lost" in cause and "gone" in cause for cause in lost)
    assert {method for method, _ in exams(tmp_path / "lost")} == {"linear"}
    again = run(plan, tmp_path / "lost", InProcess())
    assert again.failed == again.open == 0 and again.done == 4
    run(plan, tmp_path / "whole", InProcess())
    with Store(tmp_path / "lost") as mended, Store(tmp_path / "whole") as whole:
        assert [r["key"] for r in mended.records()] == [r["key"] for r in whole.records()]
        assert not mended.failures()


def test_settings_that_diverge_are_a_failed_trial_and_the_search_goes_on(backbone, tmp_path):
    plan = small_plan(backbone, trials=3, entrants=[METHODS[1]], seeds=[5, 6])
    engine = InProcess(diverges=1)
    progress = run(plan, tmp_path, engine)
    assert progress.failed == 1 and progress.done == 2 + 2 and progress.open == 0
    (cause,) = progress.causes.values()
    assert "not finite" in cause
    others = max((job for job in engine.jobs[1:3]), key=lambda job: 1 / (1 + abs(job.training["lr"] - 0.01)))
    assert {job.training["lr"] for job in engine.jobs[3:]} == {others.training["lr"]}


def test_a_job_says_whether_its_settings_diverged(backbone):
    job = small_plan(backbone, entrants=[METHODS[0]], epochs=2)
    job = job.job(replace(METHODS[0], training={"lr": 1e25}), job.tasks[0], 0, read_test=False)
    outcome = Outcome(**work(job.to_dict(), 1))
    assert outcome.diverged and outcome.begun and "not finite" in outcome.cause
    assert not Outcome(**work(replace(job, split_hash="other").to_dict(), 1)).diverged


def test_places_of_tasks_that_cannot_be_had_say_why(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    cached, out = tmp_path / "cache" / "task-silhouettes.safetensors", tmp_path / "out"
    content = cached.read_bytes()
    places = {Cell(entrant.name, "silhouettes", seed) for entrant in METHODS for seed in (0, 1)}

    def again() -> tuple[Progress, list[dict[str, Any]], list[Failure]]:
        progress = run(small_plan(backbone, tasks=["elpv", "silhouettes"]), out, InProcess())
        with Store(out) as store:
            assert not store.open_cells()
            return progress, store.records(), store.failures()

    cached.unlink()
    progress, records, failures = again()
    assert (progress.wanted, progress.done, progress.failed) == (4, 4, 0) and len(records) == 4
    assert {failure.cell for failure in failures} == places and not any(failure.has_job for failure in failures)
    assert len({failure.cause for failure in failures}) == 1 and len(failures) == 4
    assert not failures[0].cause.startswith("silhouettes: ")
    cached.write_bytes(content)
    progress, records, failures = again()
    assert (progress.done, progress.skipped) == (4, 4) and len(records) == 8 and not failures
    cached.unlink()
    assert again()[1:] == (records, [])  # what was measured stays


def test_an_impossible_point_is_a_failed_trial_and_the_search_goes_on(backbone, tmp_path, monkeypatch):
    """Of 24 dimensions, segments are possible that divide it."""
    monkeypatch.setattr("viapt.bench.plan.probes", lambda space: [])
    pair = [Entrant("linear"), Entrant("e2vpt", {"num_prompts": 2})]
    plan = small_plan(backbone, entrants=pair, trials=6, space={"segments": {"low": 4, "high": 11}, "lr": LR})
    engine = InProcess(limit=9)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "out", engine)
    progress = run(plan, tmp_path / "out", InProcess())
    with Store(tmp_path / "out") as store:
        records, failures = store.records(), store.failures()
        assert not store.open_cells()
    assert 0 < len(failures) < 6 and progress.failed == len(failures) and len(records) == 16 - len(failures)
    assert all("segments = " in failure.cause and "a divisor of 24" in failure.cause for failure in failures)
    plan = small_plan(backbone, entrants=pair, trials=3, space={"segments": {"choices": [5, 7]}, "lr": LR})
    assert run(plan, tmp_path / "none", InProcess()).failed == 3 + 2
    with Store(tmp_path / "none") as store:
        assert {record["method"] for record in store.records()} == {"linear"} and not store.open_cells()
        assert sorted(failure.cell.trial for failure in store.failures()) == [-1, -1, 0, 1, 2]


def test_shares_that_are_pruned_can_be_searched(backbone, tmp_path):
    """Of e2vpt alone; nothing pruned is where its search starts."""
    space = {"prune_tokens": {"low": 0.0, "high": 0.9}, "lr": LR}
    entrants = [Entrant("linear"), Entrant("e2vpt", {"num_prompts": 3})]
    plan = small_plan(backbone, entrants=entrants, trials=6, space=space)
    engine = InProcess()
    assert run(plan, tmp_path, engine).failed == 0
    trials = [job.training for job in engine.jobs if job.method == "e2vpt"]
    shares = [training["prune_tokens"] for training in trials]
    assert shares[0] == 0.0 and 1 < len(set(shares)) <= 3 and set(shares) <= {0.0, 1 / 3, 2 / 3}
    assert {training["prune_segments"] for training in trials} == {0.0}
    assert not any("prune_tokens" in job.training for job in engine.jobs if job.method == "linear")


def test_points_that_become_equal_share_their_job(backbone, tmp_path):
    space = {"kept_dim": {"choices": [4, 8]}, "image_gate": {"choices": [True, False]}}
    engine = InProcess()
    plan = small_plan(backbone, entrants=[Entrant("viapt", {"num_prompts": 12})], trials=8, space=space)
    assert run(plan, tmp_path, engine).failed == 0
    trials = [job for job in engine.jobs if job.seed == plan.protocol.search_seed]
    assert {job.options["image_gate"] for job in engine.jobs} == {False} and len(trials) <= 3


def test_one_runner_and_one_protocol_for_a_folder(backbone, tmp_path):
    class Nested(InProcess):
        def submit(self, job: Job) -> Future[dict[str, Any]]:
            with pytest.raises(ConfigError, match="Another process runs jobs"):
                run(plan, tmp_path, InProcess())
            return super().submit(job)

    plan = small_plan(backbone)
    assert run(plan, tmp_path, Nested()).done == 4
    with pytest.raises(ConfigError, match="epochs 1 there, 7 here"):
        run(small_plan(backbone, epochs=7), tmp_path, InProcess())
    asked = replace(plan.protocol, precision="auto")
    assert continued(asked, tmp_path).precision == "float32"
    assert continued(asked, tmp_path / "new").precision == "auto"
    with pytest.raises(ConfigError, match="precision 'float32' there, 'bfloat16' here"):
        continued(replace(asked, precision="bfloat16"), tmp_path)


def test_what_a_folder_cannot_go_on_with_is_noted(backbone, tmp_path, monkeypatch):
    plan = small_plan(backbone, trials=2)
    run(plan, tmp_path, InProcess())
    asked, problems = replace(plan.protocol, precision="auto"), Problems()
    assert continued(asked, tmp_path, problems) == plan.protocol and not problems.found
    other = replace(asked, epochs=7, train=39)
    assert continued(other, tmp_path, problems).precision == "float32"
    (text,) = problems.found
    assert "train 40 there, 39 here; epochs 1 there, 7 here" in text and "precision" not in text
    with pytest.raises(ConfigError, match="epochs 1 there, 7 here"):
        continued(other, tmp_path)
    monkeypatch.setattr("viapt.bench.runner.installed", lambda library: "0.1")
    with pytest.raises(ConfigError, match=r"0\.1 is installed"):
        continued(asked, tmp_path)
    monkeypatch.setattr("viapt.bench.runner.installed", lambda library: "none")
    continued(asked, tmp_path)  # that it is missing is said by the plan
    (tmp_path / FILE).write_bytes(b"no database, " * 1000)
    assert continued(asked, tmp_path, problems) == asked and "damaged" in problems.found[1]
    with pytest.raises(ArtifactError, match="damaged"):
        continued(asked, tmp_path)


def test_exported_records_give_the_same_scores(backbone, tmp_path):
    run(small_plan(backbone, trials=2, read_test=True), tmp_path / "out", InProcess())
    path = tmp_path / "kept" / "records.json"
    with Store(tmp_path / "out") as store:
        assert export(store, path) == 8
        protocol, records = load_records(path)
        assert protocol == store.protocol() and records == store.records()
    scores = load_scores(path)
    assert scores == stored_scores(tmp_path / "out") and len(scores) == 8
    assert {(score.part, score.metric, score.value) for score in scores if score.part == "test"} == {
        ("test", "accuracy", 0.5)
    }
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ArtifactError, match="no exported records"):
        load_scores(path)


def test_a_folder_made_from_records_goes_on_where_they_end(backbone, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path, seed in ((first, 0), (second, 1)):
        out = tmp_path / path.stem
        run(small_plan(backbone, trials=2, read_test=True, seeds=[seed]), out, InProcess())
        with Store(out) as store:
            export(store, path)
    assert restore([first, second], tmp_path / "both") == 8
    found = run(small_plan(backbone, trials=2, read_test=True, seeds=[0, 1]), tmp_path / "both", InProcess(limit=0))
    assert (found.skipped, found.done) == (8, 0)
    with Store(tmp_path / "both") as store:
        export(store, tmp_path / "both.json")
        records = sorted(store.records(), key=lambda record: str(record["key"]))
    parts = [record for path in (first, second) for record in load_records(path)[1]]
    assert records == sorted({record["key"]: record for record in parts}.values(), key=lambda r: str(r["key"]))
    assert restore([tmp_path / "both.json"], tmp_path / "again") == 8
    with pytest.raises(ConfigError, match="holds results already"):
        restore([first], tmp_path / "both")


def test_a_search_under_another_optuna_is_not_continued(backbone, tmp_path, monkeypatch):
    plan = small_plan(backbone, trials=2)
    run(plan, tmp_path / "out", InProcess())
    with Store(tmp_path / "out") as store:
        export(store, tmp_path / "records.json")
    restore([tmp_path / "records.json"], tmp_path / "restored")
    for folder in ("out", "restored"):
        assert run(plan, tmp_path / folder, InProcess()).done == 0
    monkeypatch.setattr("viapt.bench.runner.installed", lambda library: "0.1")
    for folder in ("out", "restored"):
        with pytest.raises(ConfigError, match=r"0\.1 is installed"):
            run(plan, tmp_path / folder, InProcess())


def test_a_restored_folder_remembers_who_read_the_test_split(backbone, tmp_path):
    run(small_plan(backbone, read_test=True, seeds=[0]), tmp_path / "out", InProcess())
    with Store(tmp_path / "out") as store:
        export(store, tmp_path / "records.json")
    restore([tmp_path / "records.json"], tmp_path / "new")
    plan = small_plan(backbone)
    job = plan.job(METHODS[0], plan.tasks[0], 0, read_test=True)
    with Store(tmp_path / "new") as store:
        store.open_exam(Cell("linear", "elpv", 0), job)
        with pytest.raises(DataError, match="test split was read"):
            store.open_exam(Cell("linear", "elpv", 0), replace(job, training=job.training | {"lr": 0.01}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda file: file["records"][0]["job"].update(seed=7), "has the key"),
        (lambda file: file["common"].update(precision="bfloat16"), "has the key"),
        (lambda file: file["records"][0].pop("trial"), "not whole"),
        (lambda file: file["records"][0]["job"].update(more=1), "not whole"),
        (lambda file: file["protocol"].update(epochs=7), "epochs 1 there, 7 here"),
    ],
)
def test_records_that_were_changed_make_no_folder(backbone, tmp_path, change, error):
    run(small_plan(backbone), tmp_path / "out", InProcess())
    with Store(tmp_path / "out") as store:
        export(store, tmp_path / "records.json")
    content = json.loads((tmp_path / "records.json").read_text())
    change(content)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    with pytest.raises((ArtifactError, ConfigError), match=error):
        restore([tmp_path / "records.json", tmp_path / "changed.json"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_records_of_one_place_that_differ_are_refused(backbone, tmp_path):
    for name, images in (("a", 40), ("b", 39)):
        run(small_plan(backbone, train=images, entrants=[Entrant("linear")]), tmp_path / name, InProcess())
        with Store(tmp_path / name) as store:
            export(store, tmp_path / f"{name}.json")
    content = json.loads((tmp_path / "b.json").read_text())
    content["protocol"]["train"] = 40
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"seed 0 is in .*a.json and in .*b.json, and differs"):
        restore([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "new")


# Processes that die


class Deadly(LocalEngine):
    """The first job would go on for hours, and is killed once its process is there."""

    def submit(self, job: Job) -> Future[dict[str, Any]]:
        if not hasattr(self, "killer"):
            job = replace(job, training=job.training | {"epochs": 10**6})
            self.killer = threading.Thread(target=self.kill)
            self.killer.start()
        return super().submit(job)

    def kill(self) -> None:
        while not self.processes:
            time.sleep(0.01)
        (process,) = self.processes
        os.kill(process.pid or 0, signal.SIGKILL)


def test_a_killed_process_takes_its_job_alone(backbone, tmp_path):
    plan = small_plan(backbone, entrants=[METHODS[0]], seeds=[0, 1, 2], read_test=True)
    progress = run(plan, tmp_path, Deadly(1, threads=1))
    assert (progress.done, progress.failed) == (2, 1)
    assert exams(tmp_path) == [("linear", seed) for seed in (0, 1, 2)]  # the one that was killed may have read
    assert "SIGKILL" in progress.causes[Cell("linear", "elpv", 0)]
    engine = InProcess()
    assert run(plan, tmp_path, engine).done == 1 and [job.seed for job in engine.jobs] == [0]


def command(backbone: str, out: Path, *more: str) -> list[str]:
    sizes = "--image-size 32 --train 40 --val 20 --test 30 --epochs 1 --batch-size 20 --precision float32 --threads 1"
    methods = ["--methods", "linear", "viapt:num_prompts=3;num_instance_prompts=1;kept_dim=4;calibration_steps=1"]
    given = ["--backbone", backbone, "--out", str(out), *methods, "--tasks", "elpv", *sizes.split(), *more]
    return [sys.executable, "-m", "viapt", "bench", "run", *given]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_is_resumed_by_the_same_command(backbone, tmp_path, number):
    out, seeds = tmp_path / "out", [str(seed) for seed in range(6)]
    asked = command(backbone, out, "--read-test", "--seeds", *seeds)
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        code, rest = process.wait(), process.stderr.read()
    assert line.startswith("1/12  linear, elpv, seed 0: test 0."), line
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert ("run the same command to resume" in rest) == (number == signal.SIGINT)
    assert not psutil.wait_procs(children, timeout=60)[1]
    with Store(out) as store:
        before = store.records()
        assert 1 <= len(before) < 12 and len(store.open_cells()) == 12 - len(before)
    assert len(before) <= len(exams(out)) <= len(before) + 1
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0 and "12 done, 0 failed, 0 open" in done.stdout, done.stderr
    assert len(done.stderr.splitlines()) == 12 - len(before)
    with Store(out) as store:
        assert all(record in store.records() for record in before)


# Room and devices


def test_room_is_what_the_nodes_have_places_for(monkeypatch):
    monkeypatch.setattr("viapt.bench.engines.import_ray", lambda: None)
    nodes = [{"Alive": True, "Resources": {"CPU": 7.0, "GPU": 1.0}}, {"Alive": True, "Resources": {"CPU": 1.0}}]
    nodes += [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}, {"Alive": True, "Resources": {}}]
    for threads, gpus, room in ((1, 0.0, 8), (2, 0.0, 3), (1, 1.0, 1), (1, 0.2, 5), (1, 0.1, 7), (8, 0.0, 1)):
        engine = RayEngine("head:6379", 1, threads, gpus)
        engine.ray = SimpleNamespace(nodes=lambda: nodes)
        assert engine.room() == room
    assert LocalEngine(3, threads=1).room() == 3


def test_nodes_that_join_get_jobs_before_others_end(backbone, tmp_path, monkeypatch):
    class Growing(InProcess):
        rooms = iter([1, 1, *[3] * 9])

        def room(self) -> int:
            return next(self.rooms)

        def submit(self, job: Job) -> Future[dict[str, Any]]:
            done = super().submit(job)
            if len(self.jobs) > 1:
                return done
            self.first, self.result = Future[dict[str, Any]](), done.result()
            return self.first

    def end(progress: Progress, cell: Cell | None, outcome: Outcome | None) -> None:
        if progress.done == 3:
            engine.first.set_result(engine.result)

    monkeypatch.setattr("viapt.bench.runner.LOOK_AGAIN", 0.01)
    engine = Growing()
    assert run(small_plan(backbone), tmp_path, engine, end).done == 4


def test_how_things_are_is_shown_while_a_job_goes_on(backbone, tmp_path, monkeypatch):
    class Slow(InProcess):
        def submit(self, job: Job) -> Future[dict[str, Any]]:
            self.first, self.result = Future[dict[str, Any]](), super().submit(job).result()
            return self.first

    def end(progress: Progress, cell: Cell | None, outcome: Outcome | None) -> None:
        told.append(outcome)
        if len(told) == 4:
            engine.first.set_result(engine.result)

    monkeypatch.setattr("viapt.bench.runner.LOOK_AGAIN", 0.01)
    told, engine = list[Outcome | None](), Slow()
    patience = threading.Timer(20, lambda: engine.first.set_result(engine.result))
    patience.start()
    assert run(small_plan(backbone, entrants=[METHODS[0]], seeds=[0]), tmp_path, engine, end).done == 1
    patience.cancel()
    assert told[:4] == [None] * 4 and told[4]


def test_jobs_without_gpus_see_none(backbone, monkeypatch):
    """On a node that has some: Ray leaves them visible."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    plan = small_plan(backbone, device="cpu")
    job = plan.job(METHODS[0], plan.tasks[0], 0, read_test=False).to_dict()
    refused = work(job, 1)
    assert not refused["begun"] and "planned with cpu" in refused["cause"]
    monkeypatch.setattr("viapt.bench.jobs.measured", lambda job: {"device": default_device().type})
    assert Outcome(**work_on_cpu(job, 1)) == Outcome({"device": "cpu"})

"""The same jobs on a Ray cluster of two nodes, one of which dies on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench_cases import METHODS, small_plan, small_world
from viapt.bench.engines import RayEngine
from viapt.bench.jobs import Job, measured
from viapt.bench.runner import run
from viapt.bench.store import Store
from viapt.errors import ConfigError

ray = pytest.importorskip("ray", reason="ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's default of 15 lets jobs starve beside other tests
    return small_world(tmp_path)


def test_the_death_of_a_node_loses_nothing_and_repeats_nothing(backbone, tmp_path, monkeypatch):
    log, out = tmp_path / "begun", tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    mortal = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setattr("viapt.bench.engines.work_on_cpu", logged(log, mortal.node_id))
    before, lost = list[str](), list[str]()

    def kill_once(progress, cell, outcome):
        """At the first outcome while a job is under way on the second node: it dies, and the job with it."""
        if outcome is None or before:
            return
        with Store(out) as store:
            done = [record["key"] for record in store.records()]
        there = [key for key, node in begun(log) if node == mortal.node_id and key not in done]
        if there:
            before.extend(done)
            lost.extend(there)
            cluster.remove_node(mortal, allow_graceful=False)

    plan = small_plan(backbone, seeds=[0, 1, 2, 3])
    try:
        progress = run(plan, out, RayEngine(cluster.address, 1, threads=1), kill_once)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert before and len(lost) == 1 and lost[0] not in before
    assert (progress.done, progress.failed, progress.skipped) == (8, 0, 0), progress.causes
    with Store(out) as store:
        records = store.records()
        assert len(records) == len({record["key"] for record in records}) == 8 and not store.open_cells()
        ((count,),) = store.rows("SELECT count(*) FROM results")
    assert count == 8
    times = Counter(key for key, _ in begun(log))
    assert set(times) == {record["key"] for record in records}
    assert all(times[key] == 1 for key in times if key not in lost) and times[lost[0]] == 2
    job = plan.job(METHODS[1], plan.tasks[0], 2, read_test=False)
    here, there = measured(job), next(record for record in records if record["key"] == job.key)
    assert here["val"] == there["val"] and here["train_loss"] == there["train_loss"]


def logged(log: Path, mortal: str) -> Callable[[Mapping[str, Any], int], dict[str, Any]]:
    """What does a job on a node, after it wrote down the job's key and the node; on one node it lingers."""

    def noted(job: Mapping[str, Any], threads: int) -> dict[str, Any]:
        from viapt.bench.engines import work_on_cpu  # there, where nothing was replaced

        node = ray.get_runtime_context().get_node_id()
        with log.open("a") as file:
            file.write(f"{Job(**job).key} {node}\n")
        time.sleep(60 if node == mortal else 0)  # until the node is killed
        return work_on_cpu(job, threads)

    return noted


def begun(log: Path) -> list[list[str]]:
    """Key and node of each job that was begun, as often as it was."""
    return [line.split() for line in log.read_text().splitlines()]


def test_a_cluster_that_is_not_there(backbone, tmp_path):
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        run(small_plan(backbone), tmp_path / "out", RayEngine("127.0.0.1:1", 1, threads=1))

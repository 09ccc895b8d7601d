"""The same jobs on a Ray cluster of two nodes, one of which dies on the way."""

from __future__ import annotations

import pytest

from bench_cases import METHODS, small_plan, small_world
from viapt.bench.engines import RayEngine
from viapt.bench.jobs import measured
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


def test_the_death_of_a_node_loses_nothing_and_repeats_nothing(backbone, tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    mortal = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    busy = []

    def kill_once(progress, cell, outcome):
        if outcome is not None and not busy:
            busy.append(progress.open)
            cluster.remove_node(mortal, allow_graceful=False)

    plan = small_plan(backbone, seeds=[0, 1, 2])
    out = tmp_path / "out"
    try:
        progress = run(plan, out, RayEngine(cluster.address, 1, threads=1), kill_once)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert busy and busy[0] > 0
    assert (progress.done, progress.failed, progress.skipped) == (6, 0, 0), progress.causes
    with Store(out) as store:
        records = store.records()
        assert len(records) == len({record["key"] for record in records}) == 6 and not store.open_cells()
        ((count,),) = store.rows("SELECT count(*) FROM results")
    assert count == 6
    here = measured(plan.job(METHODS[1], plan.tasks[0], 2, read_test=False))
    there = next(
        record for record in records if record["key"] == plan.job(METHODS[1], plan.tasks[0], 2, read_test=False).key
    )
    assert here["val"] == there["val"] and here["train_loss"] == there["train_loss"]


def test_a_cluster_that_is_not_there(backbone, tmp_path):
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        run(small_plan(backbone), tmp_path / "out", RayEngine("127.0.0.1:1", 1, threads=1))

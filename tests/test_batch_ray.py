"""The same rows from a Ray cluster, also after a kill, and its errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import parquet

from test_batch import COUNT, adapter, images_in, job, photos, run  # noqa: F401 - fixtures
from viapt.batch import predict_to_file
from viapt.batch.engines import LocalEngine, RayEngine
from viapt.batch.rows import Job
from viapt.errors import ConfigError, DataError

pytest.importorskip("ray.data", reason="ray is not installed")


def command(adapter: Path, photos: Path, out: Path) -> list[str]:  # noqa: F811
    options = ["--policy", "multi", "--rounds", "2", "--seed", "3", "--batch-size", "4", "--part", "4"]
    return ["predict", str(adapter), str(photos), "--out", str(out), *options]


def test_killed_in_the_middle_the_same_command_goes_on_and_gives_the_same_file(adapter, photos, tmp_path):  # noqa: F811
    """SIGKILL, which no program can answer, as soon as the first part is there."""
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert run(*command(adapter, photos, here)) == 3
    on_ray = [sys.executable, "-m", "viapt", *command(adapter, photos, there), "--engine", "ray"]
    process = subprocess.Popen(on_ray, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    parts = tmp_path / "there.parquet.parts"
    while not list(parts.glob("0*.parquet")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    cluster = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(cluster)
    done = len(list(parts.glob("0*.parquet")))
    assert 0 < done < COUNT // 4 and not there.exists()
    again = subprocess.run(on_ray, env=os.environ, capture_output=True, text=True)
    assert again.returncode == 3 and f"{4 * done} images were done before" in again.stderr, again.stderr
    found, expected = parquet.read_table(there), parquet.read_table(here)
    assert found.equals(expected) and found.schema.metadata == expected.schema.metadata
    assert not parts.exists()


def open_broken(job: Job) -> Any:  # noqa: F811
    model, options = job.open()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    return model, options


def test_errors_come_back_as_they_are_here(job, photos, tmp_path):  # noqa: F811
    broken = replace(job, open=partial(open_broken, job))
    with pytest.raises(DataError) as here:
        predict_to_file(broken, images_in(photos), tmp_path / "here.parquet", LocalEngine(*broken.open()))
    with pytest.raises(DataError) as there:
        predict_to_file(broken, images_in(photos), tmp_path / "there.parquet", RayEngine(None, 1))
    assert vars(there.value) == vars(here.value) and "finite" in here.value.found


def test_a_cluster_that_is_not_there(job, photos, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        predict_to_file(job, images_in(photos), tmp_path / "p.parquet", RayEngine("127.0.0.1:1", 1))

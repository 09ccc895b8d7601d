"""The same rows from a Ray cluster, also after a kill, and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import parquet

from test_batch import COUNT, adapter, images_in, job, photos, run  # noqa: F401 - fixtures
from viapt.batch import predict_to_file
from viapt.batch.engines import LocalEngine, Part, RayEngine, Worker, taken
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


def test_errors_come_back_as_they_are_here(job, photos):  # noqa: F811
    def broken() -> Any:
        model, options = job.open()
        with torch.no_grad():
            model.head.weight.fill_(torch.nan)
        return model, options

    part = Part(0, list(images_in(photos)()))
    row = {"number": 0, "images": json.dumps(part.images)}
    with pytest.raises(DataError, match="finite") as here:
        list(LocalEngine(*broken()).run(job, [part], lambda _: None))
    made = Worker(replace(job, open=broken))(row)
    with pytest.raises(DataError) as there:
        taken(made)
    assert vars(there.value) == vars(here.value)


def test_a_cluster_that_is_not_there(job, photos, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        predict_to_file(job, images_in(photos), tmp_path / "p.parquet", RayEngine("127.0.0.1:1", 1))

"""The same rows from a Ray cluster."""

from __future__ import annotations

import pytest
from pyarrow import parquet

from test_batch import COUNT, adapter, images_in, job, photos  # noqa: F401 - fixtures
from viapt.batch import predict_to_file
from viapt.batch.engines import LocalEngine, RayEngine
from viapt.errors import ConfigError

pytest.importorskip("ray.data", reason="ray is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def test_a_cluster_gives_the_same_file(job, photos, tmp_path):  # noqa: F811
    here, there, told = tmp_path / "here.parquet", tmp_path / "there.parquet", []
    predict_to_file(job, images_in(photos), here, LocalEngine(*job.open()), part_images=4)
    written = predict_to_file(job, images_in(photos), there, RayEngine(None, 1), part_images=4, step=told.append)
    assert (written.images, written.unreadable, sum(told)) == (COUNT, 3, COUNT)
    assert parquet.read_table(there).equals(parquet.read_table(here))


def test_a_cluster_that_is_not_there(job, photos, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        predict_to_file(job, images_in(photos), tmp_path / "p.parquet", RayEngine("127.0.0.1:1", 1))

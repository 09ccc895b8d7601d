"""Predictions in a Parquet file: the rows of `predict`, none lost and none twice, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pyarrow import parquet
from torch import Tensor

import viapt
from cli_cases import write_backbone, write_photos
from viapt.backbones.base import Preprocessing
from viapt.batch import divided, predict_to_file, rows
from viapt.batch.engines import LocalEngine, Part, RayEngine, Worker, taken
from viapt.batch.parts import Parts
from viapt.batch.rows import Job
from viapt.cli import main
from viapt.cli.batch import open_again
from viapt.cli.use import open_model
from viapt.data.streams import fingerprint, references
from viapt.errors import ArtifactError, ConfigError, DataError

COUNT, PART = 20, 6
ON_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A tiny saved adapter with two classes."""
    folder = tmp_path_factory.mktemp("adapter")
    options: dict[str, Any] = {"num_prompts": 4, "num_instance_prompts": 2, "initial_std": 0.5}
    model = viapt.create_model(write_backbone(folder), method="viapt", classes=["red", "blue"], **options)
    with torch.no_grad():
        model.head.weight.mul_(30)
    return model.save_pretrained(folder / "saved")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twenty images, three of which cannot be read."""
    folder = write_photos(tmp_path_factory.mktemp("photos"), {"red": (220, 30, 30), "blue": (30, 30, 220)}, 10)
    for name in ("red/03.png", "red/04.png", "blue/00.png"):
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.fixture
def job(adapter) -> Job:
    opening = partial(open_again, partial(open_model, adapter, "multi", 2, 3, None, None, False), {})
    return Job(opening, ["red", "blue"], 4, spread=True, passes=False, key={"adapter": "a", "part": PART})


@pytest.fixture
def engine(job) -> LocalEngine:
    return LocalEngine(*job.open())


def images_in(folder: Path) -> partial[Any]:
    return partial(references, [str(folder)])


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def content(out: Path) -> list[dict[str, Any]]:
    return parquet.read_table(out).to_pylist()


@pytest.mark.parametrize("part", [1, PART, 100])
def test_rows_are_what_predict_says(part, job, engine, adapter, photos, tmp_path):
    written = predict_to_file(job, images_in(photos), tmp_path / "p.parquet", engine, part_images=part)
    assert (written.images, written.unreadable, written.before) == (COUNT, 3, 0)
    found = content(tmp_path / "p.parquet")
    files = sorted(photos.rglob("*.png"))
    assert [row["path"] for row in found] == list(map(str, files))
    bad = [row for row in found if row["error"] is not None]
    assert [Path(row["path"]).name for row in bad] == ["00.png", "03.png", "04.png"]
    assert all(row["label"] is row["probability"] is row["probabilities"] is row["spread"] is None for row in bad)
    good = [row for row in found if row["error"] is None]
    expected = viapt.load(adapter).predict([row["path"] for row in good], "multi", rounds=2, seed=3)
    assert [row["label"] for row in good] == expected.labels
    assert float(expected.probabilities.std(0).max()) > 1e-3
    for row, probabilities, spread in zip(good, expected.probabilities, expected.spread, strict=True):
        assert row["probabilities"] == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert row["probability"] == max(row["probabilities"])
        assert row["spread"] == pytest.approx(spread.tolist(), abs=1e-6) and max(row["spread"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    assert parquet.ParquetFile(tmp_path / "p.parquet").num_row_groups == -(-COUNT // part)


def test_the_same_rows_from_a_folder_a_list_and_a_shard(job, engine, photos, tmp_path):
    files = sorted(photos.rglob("*.png"))
    (tmp_path / "l.txt").write_text("\n".join(map(str, files)))
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(photos))
    tables = []
    for source in (photos, tmp_path / "l.txt", tmp_path / "s.tar"):
        out = tmp_path / "p.parquet"
        predict_to_file(job, images_in(source), out, engine, overwrite=True)
        tables.append([{k: v for k, v in row.items() if k not in ("path", "error")} for row in content(out)])
    assert tables[0] == tables[1] == tables[2]


class Stopped(LocalEngine):
    """Dies after some parts."""

    def run(self, job, parts, step) -> Iterator[tuple[int, bytes]]:
        for number, made in super().run(job, parts, step):
            if number == 2:
                raise KeyboardInterrupt
            yield number, made


def stop_early(job: Job, engine: LocalEngine, photos: Path, out: Path) -> None:
    """Leave the first two parts."""
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(job, images_in(photos), out, Stopped(engine.model, engine.options), part_images=PART)


def test_what_was_done_is_not_done_again(job, engine, photos, tmp_path, monkeypatch):
    out, whole = tmp_path / "p.parquet", tmp_path / "whole.parquet"
    predict_to_file(job, images_in(photos), whole, engine, part_images=PART)
    stop_early(job, engine, photos, out)
    assert not out.exists() and len(list(Parts(out, job).folder.glob("0*.part"))) == 2
    seen, read = [], rows.Reference.read
    monkeypatch.setattr(rows.Reference, "read", lambda self: seen.append(self.name) or read(self))
    told: list[int] = []
    written = predict_to_file(job, images_in(photos), out, engine, part_images=PART, step=told.append)
    assert written.before == 2 * PART and sum(told) == COUNT
    assert sorted(seen) == list(map(str, sorted(photos.rglob("*.png"))[2 * PART :]))
    assert parquet.read_table(out).equals(parquet.read_table(whole)) and not Parts(out, job).folder.exists()
    again = predict_to_file(job, images_in(photos), out, engine, part_images=PART)
    assert (again.images, again.unreadable, again.before) == (COUNT, 3, COUNT)


def test_a_damaged_part_is_made_again(job, engine, photos, tmp_path):
    out, whole = tmp_path / "p.parquet", tmp_path / "whole.parquet"
    predict_to_file(job, images_in(photos), whole, engine, part_images=PART)
    stop_early(job, engine, photos, out)
    part = Parts(out, job).path(0)
    part.write_bytes(part.read_bytes()[:-1])
    written = predict_to_file(job, images_in(photos), out, engine, part_images=PART)
    assert (written.before, written.again) == (PART, PART)
    assert out.read_bytes() == whole.read_bytes()


def test_no_damaged_part_is_taken_for_a_whole_one(job, engine, photos, tmp_path):
    """Each of many bytes changed in turn, and the file cut at many places."""
    parts, images = Parts(tmp_path / "p.parquet", job), list(images_in(photos)())
    parts.folder.mkdir()
    [(_, made)] = engine.run(job, [Part(0, images)], lambda _: None)
    parts.write(0, fingerprint(images), made)
    assert parts.has(0, images, fingerprint(images))
    whole = parts.path(0).read_bytes()
    places = range(0, len(whole), 7)
    flipped = (whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in places)
    for damaged in (*flipped, *(whole[:k] for k in places), whole + b"\0"):
        parts.path(0).write_bytes(damaged)
        assert not parts.has(0, images, fingerprint(images))
        with pytest.raises(ArtifactError, match=r"00000000\.part is damaged.*makes this part again"):
            parts.join(1)
    assert not parts.out.exists()


def test_images_that_changed_are_done_again(job, engine, photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "p.parquet"
    shutil.copytree(photos, mine)
    stop_early(job, engine, mine, out)
    shutil.copy(mine / "red" / "09.png", mine / "blue" / "01.png")
    written = predict_to_file(job, images_in(mine), out, engine, part_images=PART)
    assert (written.before, written.again) == (PART, PART)
    found = content(out)
    assert found[1]["probabilities"] == pytest.approx(found[-1]["probabilities"], abs=1e-6)
    os.utime(mine / "red" / "00.png", (0, 0))
    with pytest.raises(ConfigError, match="images that have changed since"):
        predict_to_file(job, images_in(mine), out, engine, part_images=PART)


def test_images_that_were_moved_are_found_by_a_link(job, engine, photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "p.parquet"
    shutil.copytree(photos, mine)
    stop_early(job, engine, mine, out)
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    assert predict_to_file(job, images_in(mine), out, engine, part_images=PART).before == 2 * PART


def test_the_same_words_in_another_folder_mean_other_images(adapter, photos, tmp_path, monkeypatch, capsys):
    """Same names, sizes and times: only the place tells them apart."""
    for name in ("a", "b"):
        shutil.copytree(photos, tmp_path / name / "photos")
    arguments = ["predict", adapter, "photos", "--part", PART, "--out", tmp_path / "p.parquet"]
    write = Parts.write

    def stopping(parts: Parts, number: int, *kept: bytes) -> None:
        write(parts, number, *kept)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", stopping)
        assert run(*arguments) == 130
    for state in ("was begun by another command", "is not what this command writes"):
        monkeypatch.chdir(tmp_path / "b")
        assert run(*arguments) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert state in told and f"sources ['{tmp_path}/a/photos'] there, ['{tmp_path}/b/photos'] here" in told
        monkeypatch.chdir(tmp_path / "a")
        assert run(*arguments) == 3


def test_other_images_other_jobs_and_other_files_are_refused(job, engine, photos, tmp_path):
    out = tmp_path / "p.parquet"
    stop_early(job, engine, photos, out)
    with pytest.raises(DataError, match="no longer those that part 0"):
        predict_to_file(job, images_in(photos / "red"), out, engine, part_images=PART)
    fewer = list(references([str(photos)]))[:PART]
    with pytest.raises(DataError, match="no longer those that part 1"):
        predict_to_file(job, lambda: fewer, out, engine, part_images=PART)
    other = Job(job.open, job.classes, 4, spread=True, passes=False, key={"adapter": "b", "part": PART})
    with pytest.raises(ConfigError, match="adapter 'a' there, 'b' here"):
        predict_to_file(other, images_in(photos), out, engine, part_images=PART)
    with FileLock(Parts(out, job).folder / ".lock"), pytest.raises(ConfigError, match="Another process"):
        predict_to_file(job, images_in(photos), out, engine, part_images=PART)
    predict_to_file(other, images_in(photos), out, engine, part_images=PART, overwrite=True)
    with pytest.raises(ConfigError, match="not what this command writes"):
        predict_to_file(job, images_in(photos), out, engine, part_images=PART)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="not what this command writes"):
        predict_to_file(job, images_in(photos), tmp_path / "mine", engine)
    assert (tmp_path / "mine").read_text() == "mine"


def test_no_images_leave_no_file(job, engine, tmp_path):
    with pytest.raises(DataError, match="no images to predict"):
        predict_to_file(job, lambda: [], tmp_path / "p.parquet", engine)
    with pytest.raises(ConfigError, match="part_images = 0"):
        predict_to_file(job, lambda: [], tmp_path / "p.parquet", engine, part_images=0)
    with pytest.raises(ConfigError, match="is a folder"):
        predict_to_file(job, lambda: [], tmp_path, engine)
    assert not (tmp_path / "p.parquet").exists()


def test_a_part_whose_images_are_all_bad(job, engine, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    written = predict_to_file(job, images_in(tmp_path), tmp_path / "p.parquet", engine)
    assert (written.images, written.unreadable) == (1, 1)


def test_images_are_listed_as_they_are_needed(job, photos):
    """Of a million images no more than a part is in memory."""
    given = 0

    def endless() -> Iterator[Any]:
        nonlocal given
        one = next(references([str(photos)]))
        while True:
            given += 1
            yield one

    parts = divided(endless(), 7)
    assert next(parts).number == 0 and next(parts).number == 1 and given == 14


def test_few_decoded_images_are_held_at_a_time(job, engine, photos, monkeypatch):
    """However large a part is: some decoded ahead, and those of a pass."""
    monkeypatch.setattr(rows, "AHEAD", 6)
    living, most, transform = weakref.WeakSet(), [], rows.eval_transform

    def watched(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
        def change(image: Image.Image) -> Tensor:
            made = transform(preprocessing)(image)
            living.add(made)
            most.append(len(living))
            return made

        return change

    monkeypatch.setattr(rows, "eval_transform", watched)
    list(engine.run(job, [Part(0, list(images_in(photos)()) * 10)], lambda _: None))
    assert len(most) > 100 and max(most) <= 2 * 6 + job.batch_size + 1


def test_killed_in_the_middle_the_same_command_goes_on(adapter, photos, tmp_path):
    """SIGKILL, which no program can answer, as soon as the first part is there."""
    out = tmp_path / "p.parquet"
    arguments = ["predict", str(adapter), str(photos), "--out", str(out), "--part", "2", "--batch-size", "2"]
    slow = (
        "import time, viapt.data.streams as s; read = s.Reference.read\n"
        "s.Reference.read = lambda self: (time.sleep(0.1), read(self))[1]\n"
        f"from viapt.cli import main; main({arguments!r})"
    )
    folder = out.with_name("p.parquet.parts")
    with subprocess.Popen([sys.executable, "-c", slow], env=os.environ) as process:
        while not list(folder.glob("0*.part")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = len(list(folder.glob("0*.part")))
    assert process.returncode == -signal.SIGKILL and 1 <= done < COUNT // 2 and not out.exists()
    assert run(*arguments) == 3
    assert run("predict", adapter, photos, "--out", tmp_path / "q.parquet", "--part", "2", "--batch-size", "2") == 3
    found, whole = parquet.read_table(out), parquet.read_table(tmp_path / "q.parquet")
    assert found.equals(whole) and len(found) == COUNT


def test_the_command(adapter, photos, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    assert run("predict", adapter, photos / "red", "--out", out) == 3
    assert "10 images, 2 of them cannot be read" in capsys.readouterr().out
    assert run("predict", adapter, photos / "red", "--out", out) == 3
    assert "10 images were done before" in capsys.readouterr().err
    schema = parquet.read_schema(out)
    assert schema.names == ["path", "label", "probability", "probabilities", "error"]
    assert b'"classes": ["red", "blue"]' in schema.metadata[b"viapt"]
    assert run("predict", adapter, photos / "red", "--out", out, "--policy", "fixed") == 2
    assert run("predict", adapter, photos / "red", "--out", out, "--policy", "fixed", "--overwrite") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--part 3", "--part has no effect without --out"),
        ("--overwrite", "--overwrite has no effect without --out"),
        ("--engine ray", "--engine has no effect without --out"),
        ("--out {out} --workers 2", "--workers has no effect with --engine local"),
        ("--out {out} --part 0", "--part 0"),
        ("--out {out} --format csv", "--format has no effect with --out"),
        ("--out {out} --adaptive", "adaptive has no effect on policy mean"),
    ],
)
def test_mistakes(arguments, words, adapter, photos, tmp_path, capsys):
    assert run("predict", adapter, photos, *arguments.format(out=tmp_path / "p.parquet").split()) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "p.parquet").exists()


def test_tables_take_lists_and_shards_too(adapter, photos, tmp_path, capsys):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(photos / "red" / "00.png", "00.png")
    (tmp_path / "l.txt").write_text(f"{photos}/red/00.png\n")
    assert run("predict", adapter, tmp_path / "s.tar", tmp_path / "l.txt", "--format", "csv") == 0
    _, one, two = io.StringIO(capsys.readouterr().out).read().splitlines()
    assert one.partition(",")[0] == f"{tmp_path}/s.tar::00.png" and one.partition(",")[2] == two.partition(",")[2]


def command(adapter: Path, photos: Path, out: Path) -> list[str]:
    options = ["--policy", "multi", "--rounds", "2", "--seed", "3", "--batch-size", "4", "--part", "4"]
    return ["predict", str(adapter), str(photos), "--out", str(out), *options]


@ON_RAY
def test_killed_in_the_middle_the_same_command_goes_on_and_gives_the_same_file(adapter, photos, tmp_path):
    """SIGKILL, which no program can answer, as soon as the first part is there."""
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    assert run(*command(adapter, photos, here)) == 3
    on_ray = [sys.executable, "-m", "viapt", *command(adapter, photos, there), "--engine", "ray"]
    process = subprocess.Popen(on_ray, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    parts = tmp_path / "there.parquet.parts"
    while not list(parts.glob("0*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    cluster = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(cluster)
    done = len(list(parts.glob("0*.part")))
    assert 0 < done < COUNT // 4 and not there.exists()
    again = subprocess.run(on_ray, env=os.environ, capture_output=True, text=True)
    assert again.returncode == 3 and f"{4 * done} images were done before" in again.stderr, again.stderr
    found, expected = parquet.read_table(there), parquet.read_table(here)
    assert found.equals(expected) and found.schema.metadata == expected.schema.metadata
    assert not parts.exists()


def test_errors_come_back_as_they_are_here(job, photos):
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


@ON_RAY
def test_a_cluster_that_is_not_there(job, photos, tmp_path):
    with pytest.raises(ConfigError, match="no Ray cluster at"):
        predict_to_file(job, images_in(photos), tmp_path / "p.parquet", RayEngine("127.0.0.1:1", 1))

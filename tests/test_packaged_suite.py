"""The packaged suite: what is read, how it is cached, split and exported."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from shutil import which

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from deb_cases import deb_file, entry
from viapt import packaged
from viapt.cli import main
from viapt.data import packaged as suite
from viapt.data import task_readers
from viapt.data.benchmarks import TASKS as BENCHMARKS
from viapt.data.packaged import Recipe, export_folder, fetch_all, folds, split, split_hash, standard_split
from viapt.data.task import Content, PackagedTask, content_hash
from viapt.data.task_readers import array_in_pickle
from viapt.errors import ConfigError, DataError, FetchError, UnavailableError


def task_of(labels: np.ndarray, official_test: np.ndarray | None = None, images: np.ndarray | None = None):
    images = np.zeros((len(labels), 1, 1, 3), np.uint8) if images is None else images
    classes = [f"class {label}" for label in range(labels.max(initial=0) + 1)]
    return PackagedTask("toy", images, labels, classes, "MIT", "toy 1.0", "0" * 64, official_test)


# Splits


@st.composite
def split_cases(draw):
    labels = np.array(draw(st.lists(st.integers(0, 4), max_size=120)), np.int64)
    official = None
    if draw(st.booleans()):
        official = np.array(draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))), bool)
    pool = len(labels) if official is None else int((~official).sum())
    if official is None:
        pool -= pool // 3
    train = draw(st.integers(0, pool))
    val = draw(st.integers(0, pool - train))
    return labels, official, train, val, draw(st.integers(0, 150)), draw(st.integers(0, 2**32))


@given(split_cases())
def test_splits_are_disjoint_of_the_asked_sizes_and_repeatable(case):
    labels, official, train, val, test, seed = case
    task = task_of(labels, official)
    parts = split(task, train, val, test, seed)
    joined = np.concatenate(list(parts.values()))
    assert len(set(joined.tolist())) == len(joined) and set(joined) <= set(range(len(task.labels)))
    available = len(task.labels) // 3 if official is None else int(official.sum())
    assert {name: len(part) for name, part in parts.items()} == {
        "train": train,
        "val": val,
        "test": min(test, available),
    }
    if official is not None:
        assert official[parts["test"]].all() and not official[parts["train"]].any() and not official[parts["val"]].any()
    for name, part in split(task, train, val, test, seed).items():
        np.testing.assert_array_equal(part, parts[name])
        assert (np.diff(part) > 0).all()


@given(split_cases())
def test_each_part_holds_every_class_by_its_share(case):
    """Less than one image off the class's share of what the part is drawn from: reserve, test out of it, val, train."""
    labels, official, train, val, test, seed = case
    task = task_of(labels, official)
    parts = split(task, train, val, test, seed) | {"reserve": split(task, 0, 0, seed=seed)["test"]}
    left = np.ones(len(task.labels), bool)
    for name in ("reserve", "test", "val", "train"):
        pool = left.copy()
        if name == "test":
            pool = np.isin(np.arange(len(left)), parts["reserve"])
        elif task.official_test is not None:
            pool &= task.official_test if name == "reserve" else ~task.official_test
        for label in range(5):
            share = Fraction(len(parts[name]) * int((task.labels[pool] == label).sum()), max(int(pool.sum()), 1))
            assert abs(int((task.labels[parts[name]] == label).sum()) - share) < 1
        left[parts[name]] = False


SIZES = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 100))


@given(st.lists(st.integers(0, 3), min_size=90, max_size=150), st.booleans(), SIZES, SIZES, st.integers(0, 2**32))
def test_no_picture_that_tests_at_one_size_is_learnt_from_at_another(labels, official, some, others, seed):
    task = task_of(np.array(labels), np.arange(len(labels)) % 4 == 0 if official else None)
    one, other = split(task, *some, seed), split(task, *others, seed)
    for here, there in ((one, other), (other, one)):
        assert not set(here["test"]) & {*there["train"], *there["val"]}
    few, many = sorted((set(one["test"]), set(other["test"])), key=len)
    assert few <= many


def test_official_pictures_beyond_the_reserve_test_too():
    task = task_of(np.arange(6000) % 5, np.arange(6000) < 5000)
    some, all_ = split(task, 400, 100), split(task, 400, 100, 5000)
    np.testing.assert_array_equal(all_["test"], np.arange(5000))
    assert set(some["test"]) < set(split(task, 400, 100, 3000)["test"]) and len(some["test"]) == 2000
    np.testing.assert_array_equal(some["train"], all_["train"])


def test_test_and_validation_images_stay_when_less_is_trained_on():
    task = task_of(np.arange(500) % 5)
    many, few = split(task, 280, 50, 100, seed=3), split(task, 20, 50, 100, seed=3)
    np.testing.assert_array_equal(many["test"], few["test"])
    np.testing.assert_array_equal(many["val"], few["val"])
    assert not np.array_equal(many["test"], split(task, 280, 50, 100, seed=4)["test"])


def test_splits_that_cannot_be_drawn_are_refused():
    task = task_of(np.arange(50) % 5, np.arange(50) < 20)
    with pytest.raises(ConfigError, match="of 30 in task 'toy' besides"):
        split(task, 21, 10, 5)
    with pytest.raises(ConfigError, match="at most 34 together"):  # 16 are reserved
        split(task_of(np.arange(50) % 5), 25, 10, 0)
    with pytest.raises(ConfigError, match="0 or more"):
        split(task, 5, -1, 5)


@given(st.lists(st.integers(3, 30), min_size=2, max_size=5), st.integers(3, 6), st.integers(0, 2**32))
def test_folds_test_and_validate_each_picture_once(sizes, n, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    if n > min(sizes):
        with pytest.raises(ConfigError, match="folds"):
            folds(task_of(labels), n, seed)
        return
    found = folds(task_of(labels), n, seed)
    for part in ("val", "test"):
        assert sorted(np.concatenate([fold[part] for fold in found])) == list(range(len(labels)))
        counts = np.array([np.bincount(labels[fold[part]], minlength=len(sizes)) for fold in found])
        assert np.ptp(counts, axis=0).max() <= 1 and np.ptp(counts.sum(axis=1)) <= 1
    for fold in found:
        assert sorted(np.concatenate(list(fold.values()))) == list(range(len(labels)))
        assert all((np.diff(part) > 0).all() for part in fold.values())
    for fold, again in zip(found, folds(task_of(labels), n, seed), strict=True):
        assert all(np.array_equal(fold[part], again[part]) for part in fold)


def test_the_standard_split():
    many, few = task_of(np.arange(3500) % 7), task_of(np.arange(90) % 6)
    assert {name: len(part) for name, part in standard_split(many).items()} == {"train": 800, "val": 200, "test": 2000}
    assert len(standard_split(task_of(np.arange(2624) % 4))["test"]) == 1624
    np.testing.assert_array_equal(standard_split(many, 3)["test"], split(many, seed=3)["test"])
    tested = np.concatenate([standard_split(few, seed)["test"] for seed in range(5)])
    assert sorted(tested) == list(range(90))
    np.testing.assert_array_equal(standard_split(few, 6)["val"], standard_split(few, 1)["val"])


@given(st.integers(0, 1000))
def test_a_split_is_known_by_its_pictures(seed):
    rng = np.random.default_rng(seed)
    labels, images = rng.integers(0, 3, 30), rng.integers(0, 256, (30, 2, 2, 3), np.uint8)
    task, order = task_of(labels, images=images), rng.permutation(30)
    parts = split(task, 10, 5, 8, seed)
    found = split_hash(task, parts)
    assert found.startswith("sha256:") and len(found) == 71
    moved = replace(task, images=images[order], labels=labels[order])
    place = np.argsort(order)
    assert split_hash(moved, {name: place[part] for name, part in parts.items()}) == found
    swapped = parts | {"train": parts["train"][1:], "val": np.append(parts["val"], parts["train"][0])}
    brighter = images.copy()
    brighter[parts["test"][0], 0, 0, 0] ^= 1
    relabelled = labels.copy()
    relabelled[parts["test"][0]] = (relabelled[parts["test"][0]] + 1) % 3
    others = [
        split_hash(task, swapped),
        split_hash(task, parts | {"train": parts["val"], "val": parts["train"]}),
        split_hash(replace(task, images=brighter), parts),
        split_hash(replace(task, labels=relabelled, classes=["class 0", "class 1", "class 2"]), parts),
    ]
    assert len({found, *others}) == 5


# Pickles


def numpy_1_pickle(array: np.ndarray) -> bytes:
    """As NumPy 1 wrote it; NumPy 2 calls the same module by another name."""
    return pickle.dumps(array, 4).replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")


@given(st.integers(0, 300), st.integers(1, 3), st.integers(1, 3))
def test_an_array_in_a_pickle_is_read(n, height, width):
    pictures = np.random.default_rng(n).integers(0, 256, (n, height, width), np.uint8)
    np.testing.assert_array_equal(array_in_pickle(numpy_1_pickle(pictures), "|u1", pictures.shape), pictures)
    labels = np.arange(n) * 2**40
    np.testing.assert_array_equal(array_in_pickle(numpy_1_pickle(labels), "<i8", (n,)), labels)


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_hostile_pickles_are_refused_and_not_run(tmp_path):
    target = tmp_path / "owned"
    harmless = numpy_1_pickle(np.zeros((2, 3, 3), np.uint8))
    hostile = pickle.dumps(Hostile(target), 4)
    body = hostile[11:-1]  # without protocol, frame and STOP; "0" drops what it made
    for pickled in (hostile, harmless[:2] + body + b"0" + harmless[2:], harmless[:-1] + body + b"0."):
        with suppress(pickle.UnpicklingError):  # frames are out of step by then
            pickle.loads(pickled)
        assert target.exists()  # it would have worked
        target.rmdir()
        with pytest.raises(DataError, match="something else"):
            array_in_pickle(pickled, "|u1", (2, 3, 3))
        assert not target.exists()


def test_another_type_or_shape_is_refused():
    pickled = numpy_1_pickle(np.zeros((2, 3, 3), np.uint8))
    for dtype, shape in (("|i1", (2, 3, 3)), ("|u1", (3, 2, 3)), ("|u1", (2, 9)), ("<i8", (2, 3, 3))):
        with pytest.raises(DataError):
            array_in_pickle(pickled, dtype, shape)
    with pytest.raises(DataError):
        array_in_pickle(numpy_1_pickle(np.asfortranarray(np.zeros((2, 3, 3), np.uint8))), "|u1", (2, 3, 3))


@given(st.data())
def test_damaged_pickles_are_refused_or_differ_in_pixels_only(data):
    pickled = bytearray(numpy_1_pickle(np.zeros((2, 3, 3), np.uint8)))
    if data.draw(st.booleans()):
        del pickled[data.draw(st.integers(0, len(pickled) - 1)) :]
    else:
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = array_in_pickle(bytes(pickled), "|u1", (2, 3, 3))
    except DataError:
        return
    assert array.dtype == np.uint8 and array.shape == (2, 3, 3)


# Fashion-MNIST's formats


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def test_idx_files():
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    raw = idx_bytes(pictures)
    np.testing.assert_array_equal(task_readers._idx(raw), pictures)
    for damaged in (raw[:-1], raw + b"\0", raw[:6], b"", b"\0\0\x0d" + raw[3:], b"\0\0\x08\x00"):
        with pytest.raises(DataError):
            task_readers._idx(damaged)


def test_gzip_files_are_bounded():
    compressed = gzip.compress(b"\0" * 100_000)
    assert len(task_readers._gunzip(compressed, 100_000)) == 100_000
    with pytest.raises(DataError, match="more than 99999 bytes"):
        task_readers._gunzip(compressed, 99_999)
    for damaged in (compressed[:-10], b"no gzip", b""):
        with pytest.raises(DataError):
            task_readers._gunzip(damaged, 1) if damaged else task_readers._idx(task_readers._gunzip(damaged))


# Stamps, out of a miniature package


def png(size: tuple[int, int], colour: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.skipif(which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_stamps_are_photos_by_folder_on_white(tmp_path, monkeypatch):
    kinds = ["animals/birds", "animals/mammals", "food", "household", "plants", "vehicles"]
    files = {f"{kind}/deep/{k}.png": png((20, 10), (40 * k, 7, 9, 255)) for k, kind in enumerate(kinds)}
    files["food/clear.png"] = png((10, 30), (0, 0, 0, 0))
    files |= {
        name: png((5, 5), (1, 1, 1, 255))
        for name in (
            *("food/cartoon/a.png", "food/a_mirror.png", "plants/flowers/plastic/a.png", "people/a.png"),
            *("animals/mammals/bears/toys/a.png", "food/a.txt", "animals/fish/a.png"),
        )
    }
    contents = {f"./usr/share/tuxpaint/stamps/{name}": data for name, data in files.items()}
    contents["./usr/share/else/food/a.png"] = png((5, 5), (1, 1, 1, 255))
    package = packaged.PACKAGES["tuxpaint-stamps-default"]
    path = deb_file(tmp_path / "built.deb", [entry(name, len(data)) for name, data in contents.items()], contents)
    pinned = replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
    monkeypatch.setitem(packaged.PACKAGES, package.name, pinned)
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))

    def client(package: packaged.PackagedFile, folder: Path, _on_progress: object) -> Path:
        return Path(shutil.copy(path, folder / package.filename))

    monkeypatch.setitem(packaged.CLIENTS, "apt-get", client)
    assert suite.state("stamps") == "not fetched"
    task = suite.load_task("stamps")
    assert task.labels.tolist() == [0, 1, 2, 2, 3, 4, 5] and task.licence == "GPL-2"
    assert task.classes == ["bird", "mammal", "food", "household", "plant", "vehicle"]
    assert task.images.shape == (7, 224, 224, 3) and suite.state("stamps") == "ready"
    blank = [k for k in range(7) if (task.images[k] == 255).all()]
    assert len(blank) == 1 and task.labels[blank[0]] == 2  # what cannot be seen is white
    for k in set(range(7)) - set(blank):
        assert (task.images[k, 57:167] == (40 * task.labels[k], 7, 9)).all()  # twice as wide as high: the middle half
        assert (task.images[k, :55] == 255).all() and (task.images[k, 169:] == 255).all()

    (tmp_path / "cache" / "task-stamps.safetensors").unlink()
    (tmp_path / "cache" / pinned.filename).unlink()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    status = fetch_all(["stamps"])["stamps"]
    assert not status.ready and not status.unavailable and "is not the file that was expected" in status.message


# The cache


@pytest.fixture
def toy(tmp_path, monkeypatch) -> list[int]:
    """A task "toy" that counts how often it is made."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    made = []

    def draw(_processes: int, _on_progress: object) -> Content:
        made.append(1)
        rng = np.random.default_rng(0)
        return Content(rng.integers(0, 256, (6, 4, 5), np.uint8), np.arange(6) % 2, np.arange(6) >= 4)

    monkeypatch.setitem(suite.RECIPES, "toy", Recipe(["a", "b"], draw=draw))
    return made


def test_a_task_is_made_once_and_read_back_the_same(toy):
    first, second = suite.load_task("toy"), suite.load_task("toy")
    assert len(toy) == 1
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.official_test, second.official_test)
    assert first.content_hash == second.content_hash and first.classes == ["a", "b"]
    assert first.images.shape == (6, 4, 5, 3) and (first.images == first.images[..., :1]).all()
    with pytest.raises(ValueError, match="read-only"):
        first.images[0, 0, 0, 0] = 1


def test_a_damaged_cache_is_made_again(toy, tmp_path):
    good = suite.load_task("toy")
    path = tmp_path / "cache" / "task-toy.safetensors"
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[position] ^= 0x01
        path.write_bytes(flipped)
        task = suite.load_task("toy")
        assert task.content_hash == good.content_hash
        np.testing.assert_array_equal(task.images, good.images)
    made = len(toy)
    assert made > len(content) // 3 * 0.9  # nearly every flip mattered; padding does not
    for end in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert suite.load_task("toy").content_hash == good.content_hash
    assert len(toy) == made + 4


def test_new_rules_make_a_task_again(toy, monkeypatch):
    suite.load_task("toy")
    monkeypatch.setattr(suite, "LAYOUT", "other")
    suite.load_task("toy")
    assert len(toy) == 2


def test_the_content_hash_sees_pictures_labels_and_shapes():
    images, labels = np.zeros((2, 4, 6), np.uint8), np.zeros(2, np.int64)
    other_labels, other_images = np.array([0, 1]), images.copy()
    other_images[1, 2, 3] = 1
    contents = [Content(images, labels), Content(other_images, labels), Content(images, other_labels)]
    contents += [Content(images.reshape(2, 6, 4), labels), Content(images, labels, np.zeros(2, bool))]
    assert len({content_hash(content) for content in contents}) == len(contents)


def test_no_processes():
    with pytest.raises(ConfigError, match="0 processes"):
        suite.load_task("count", processes=0)


DRAWING = """
import sys
from viapt.data import packaged as suite
from viapt.data.rendered import processes
if __name__ == "__main__":
    processes.CHUNK = 2
    suite.RENDERED = int(sys.argv[1])
    def told(done, wanted):
        print("drawn", done, flush=True)
    task = suite.load_task("azimuth", told, processes=2)
    print(task.content_hash, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_drawing_that_is_killed_leaves_nothing_and_nobody(tmp_path, monkeypatch, number):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "draw.py"
    script.write_text(DRAWING)
    with subprocess.Popen(
        [sys.executable, script, "100000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout and child.stdout.readline().startswith("drawn")
        workers = psutil.Process(child.pid).children(recursive=True)
        assert len(workers) >= 2
        child.send_signal(number)
        child.wait(60)
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["task-azimuth.lock"]
    finished = subprocess.run([sys.executable, script, "6"], capture_output=True, text=True, check=True)
    monkeypatch.setattr(suite, "RENDERED", 6)
    assert finished.stdout.split()[-1] == suite.load_task("azimuth").content_hash
    (tmp_path / "cache" / "task-azimuth.safetensors").unlink()
    assert finished.stdout.split()[-1] == suite.load_task("azimuth").content_hash  # drawn here, by one process


def test_unknown_task():
    with pytest.raises(ConfigError, match="elpv"):
        suite.load_task("elvp")


# Fetching by name


def fake_fetch(broken: str) -> Callable[..., Path]:
    def fetch(name: str, on_progress: packaged.Progress) -> Path:
        on_progress(1, 2)
        if name == broken:
            raise FetchError("the network is down")
        return Path("/cache") / name

    return fetch


@pytest.fixture
def small_suite(tmp_path, monkeypatch) -> Path:
    """Packages that hold next to nothing, few rendered pictures, an empty cache."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(suite, "RENDERED", 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for name, recipe in suite.RECIPES.items():
        if recipe.package:
            tiny = replace(recipe, read=lambda _path: Content(np.zeros((3, 2, 2), np.uint8), np.arange(3) % 2))
            monkeypatch.setitem(suite.RECIPES, name, tiny)
    return tmp_path / "cache"


def test_everything_is_prepared_and_one_failure_does_not_stop_the_others(small_suite, monkeypatch):
    monkeypatch.setattr(packaged, "fetch", fake_fetch("elpv-dataset"))
    output = io.StringIO()
    statuses = fetch_all(["packaged"], Console(file=output, width=60))
    assert list(statuses) == ["weights", *suite.list_tasks()]
    assert [name for name, status in statuses.items() if not status.ready] == ["elpv"]
    assert "elpv: failed: the network is down." in output.getvalue()
    assert "8 pictures, 8 classes, rendered by rules" in statuses["count"].message
    whole = {f"task-{name}.safetensors" for name in suite.list_tasks() if name != "elpv"}
    assert {path.name for path in small_suite.iterdir()} - whole == {f"task-{n}.lock" for n in suite.list_tasks()}


def test_a_second_time_nothing_is_fetched_or_drawn(small_suite, monkeypatch):
    monkeypatch.setattr(packaged, "fetch", fake_fetch(""))
    fetch_all(suite.list_tasks())
    monkeypatch.setattr(packaged, "fetch", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr(suite, "render_all", lambda *_: pytest.fail("drawn"))
    assert all(status.ready for status in fetch_all(suite.list_tasks()).values())
    assert {suite.state(name) for name in suite.list_tasks()} == {"ready"}


def viapt_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_without_debians_tools_its_tasks_are_unavailable_and_the_rest_is_ready(small_suite, monkeypatch, capsys):
    real, others = packaged.fetch, fake_fetch("")

    def fetch(name: str, told: packaged.Progress) -> Path:
        return (real if packaged.PACKAGES[name].client == "apt-get" else others)(name, told)

    monkeypatch.setattr(packaged, "fetch", fetch)
    monkeypatch.setenv("PATH", "")
    assert suite.state("stamps") == "unavailable here: no apt-get and no dpkg-deb"
    assert viapt_command("data", "fetch", "packaged") == 0
    told = capsys.readouterr().err
    for name in ("fashion", "stamps"):
        assert f"{name}: unavailable: apt-get is unavailable here (No such file or directory)" in told
    assert {name for name in suite.list_tasks() if suite.state(name) != "ready"} == {"fashion", "stamps"}
    with pytest.raises(UnavailableError):
        suite.load_task("stamps")
    assert viapt_command("data", "fetch", "stamps", "count") == 2
    assert "not fetched: stamps" in capsys.readouterr().err


@pytest.mark.skipif(which("apt-get") is None, reason="apt-get is not installed")
def test_without_debians_archive_its_tasks_are_unavailable(small_suite, monkeypatch, tmp_path):
    """apt-get itself, sent to an archive that does not exist."""
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] file:{tmp_path}/absent stable main\n")
    settings = tmp_path / "apt.conf"
    places = {"SourceList": sources, "SourceParts": "/dev/null"}
    text = "".join(f'Dir::Etc::{key} "{value}";\n' for key, value in places.items())
    settings.write_text(text + f'Dir::State::Lists "{tmp_path}/lists";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    statuses = fetch_all(["stamps", "count"])
    assert statuses["stamps"].unavailable and not statuses["stamps"].ready and statuses["count"].ready
    assert statuses["stamps"].message.startswith("unavailable: apt-get could not fetch tuxpaint-stamps-default")
    assert not [path for path in small_suite.iterdir() if path.suffix in (".deb", ".partial") or path.is_dir()]


def test_the_licence_is_printed(small_suite, monkeypatch, capfd):
    monkeypatch.setattr(packaged, "fetch", fake_fetch(""))
    output = io.StringIO()
    fetch_all(["elpv", "count"], Console(file=output))
    assert "CC-BY-NC-SA-4.0" in output.getvalue() and "licence Apache-2.0" in output.getvalue()
    fetch_all(["elpv"])
    assert capfd.readouterr() == ("", "")


def test_states_are_listed(small_suite, monkeypatch, capsys):
    monkeypatch.setattr(packaged, "fetch", fake_fetch(""))
    fetch_all(["count", "elpv"])
    path = small_suite / "task-count.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert [suite.state(name) for name in ("elpv", "count", "azimuth", "silhouettes")] == [
        *("ready", "not drawn", "not drawn", "not fetched"),
    ]
    assert viapt_command("data", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "state" and len(lines) == 2 + len(suite.list_tasks()) + 1 + len(BENCHMARKS)
    assert next(line for line in lines if line.startswith("elpv")).endswith("ready")
    assert next(line for line in lines if line.startswith("count")).endswith("not drawn")


def test_an_unknown_name_is_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(packaged, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="'elvp'"):
        fetch_all(["weights", "elvp"])


# Export


@pytest.fixture(params=["grey", "colour"])
def pictures(request) -> np.ndarray:
    rng = np.random.default_rng(0)
    if request.param == "colour":
        return rng.integers(0, 256, (9, 8, 7, 3), np.uint8)
    return np.broadcast_to(rng.integers(0, 256, (9, 8, 7, 1), np.uint8), (9, 8, 7, 3))


def test_export_writes_every_picture_where_it_belongs(tmp_path, pictures):
    task = task_of(np.arange(9) % 3, images=pictures)
    parts = split(task, 3, 3, 3)
    directory = export_folder(task, tmp_path / "deep" / "out", parts)
    found = {path.relative_to(directory) for path in directory.rglob("*.png")}
    expected = {Path(part, f"class {i % 3}", f"{i:05d}.png"): i for part, indices in parts.items() for i in indices}
    assert found == set(expected)
    for path, index in expected.items():
        with Image.open(directory / path) as picture:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), pictures[index])
    assert list((tmp_path / "deep").iterdir()) == [directory]
    with pytest.raises(DataError, match="exists"):
        export_folder(task, directory, parts)


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    task = task_of(np.arange(9) % 3)
    saved = []

    def save(_picture: Image.Image, path: Path, **_options: int) -> None:
        saved.append(path)
        path.touch()
        if len(saved) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(KeyboardInterrupt):
        export_folder(task, tmp_path / "out", split(task, 3, 3, 3))
    assert saved and list(tmp_path.iterdir()) == []


# The real things

HASHES = {
    "stamps": "162f05318388",
    "elpv": "0d236ed36616",
    "silhouettes": "824f1e4948a3",
    "fashion": "fc29fa89c7df",
}


def load_or_skip(name: str) -> PackagedTask:
    try:
        return suite.load_task(name)
    except UnavailableError as error:  # Debian's archive may be out of reach where the package index is not
        pytest.skip(str(error))


@pytest.mark.packaged
@pytest.mark.parametrize("name", HASHES)
def test_content_is_what_results_were_made_with(name):
    assert load_or_skip(name).content_hash.startswith(HASHES[name])


@pytest.mark.packaged
def test_elpv_labels_are_those_of_its_table():
    """The counts that the data set's paper and page give, and one cell looked up by hand."""
    task = load_or_skip("elpv")
    assert np.bincount(task.labels).tolist() == [1508, 295, 106, 715]
    assert task.images.shape == (2624, 300, 300, 3) and task.licence == "CC-BY-NC-SA-4.0"
    assert [task.classes[label] for label in task.labels[:4]] == ["defective"] * 3 + ["intact"]
    wheel = packaged.fetch("elpv-dataset")
    name = "elpv_dataset/data/images/cell1234.png"
    with Image.open(io.BytesIO(packaged.read_members(wheel, [name], 2**20)[name])) as photo:
        np.testing.assert_array_equal(np.asarray(photo), task.images[1233, ..., 0])


@pytest.mark.packaged
def test_silhouettes_have_no_copies_and_the_animals_their_names():
    task = load_or_skip("silhouettes")
    assert len(np.unique(task.images[..., 0], axis=0)) == len(task.labels)
    # Zebras alone are striped: their pictures have grey inside. Giraffes and cats stand higher than bears and cows.
    grey = ((task.images[..., 0] > 60) & (task.images[..., 0] < 200)).mean((1, 2))
    height = (task.images[..., 0] > 128).any(2).sum(1)
    mean_of = lambda values: {name: values[task.labels == k].mean() for k, name in enumerate(task.classes)}  # noqa: E731
    assert max(mean_of(grey), key=mean_of(grey).__getitem__) == "zebra"
    heights = mean_of(height)
    assert min(heights["giraffe"], heights["cat"]) > max(heights["bear"], heights["cow"], heights["elephant"])


@pytest.mark.packaged
def test_fashion_begins_as_everybody_knows_it():
    task = load_or_skip("fashion")
    assert task.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert task.labels[60_000:60_010].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert task.official_test.sum() == 10_000 and task.official_test[60_000:].all()
    assert (split(task)["test"] >= 60_000).all() and (split(task)["train"] < 60_000).all()

"""`viapt data check` on whole and on damaged data: what is said, of which task, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from viapt.backbones.base import Preprocessing
from viapt.cli import main
from viapt.data import ImageDataset, eval_transform
from viapt.data.benchmarks import manifest, registry
from viapt.data.benchmarks.community import CommunityFolders
from viapt.data.benchmarks.diagnosis import Diagnosis
from viapt.data.benchmarks.doctor import check_tasks
from viapt.data.benchmarks.registry import TASKS, BenchmarkTask
from viapt.data.sources import ImageSource

COUNTS = {"train": 8, "val": 4, "test": 8}
TASK, OTHER = "vtab-1k/dmlab", "vtab-1k/retinopathy"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "SETTLED", -(10**9))
    return tmp_path / "cache"


def tiny(name: str = TASK) -> BenchmarkTask:
    return replace(TASKS[name], classes=4, counts=COUNTS)


def photo(seed: int) -> Image.Image:
    """Blobs, with the detail of a small photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    return small.resize((48, 40), Image.Resampling.BICUBIC)


def write_task(root: Path, name: str = "dmlab") -> Path:
    """The community's layout: 20 pictures, in turns of 4 classes."""
    folder = root / name
    (folder / "images").mkdir(parents=True)
    number, lists = 0, {}
    for part, count in COUNTS.items():
        lines = []
        for i in range(count):
            photo(number).save(folder / "images" / f"{number}.jpg", quality=90)
            lines.append(f"images/{number}.jpg {i % 4}\n")
            number += 1
        lists[part] = lines
    for file, lines in (
        ("train800.txt", lists["train"]),
        ("val200.txt", lists["val"]),
        ("train800val200.txt", lists["train"] + lists["val"]),
        ("test.txt", lists["test"]),
    ):
        (folder / file).write_text("".join(lines))
    return folder


def check(root: Path, *names: str) -> list[Diagnosis]:
    return list(check_tasks([tiny(name) for name in names or (TASK,)], root, lambda *_: None))


def said(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Texts by kind."""
    found: dict[str, list[str]] = {}
    for remark in (*diagnosis.problems, *diagnosis.warnings):
        found.setdefault(remark.kind, []).append(remark.text)
    return found


def test_a_whole_task(tmp_path: Path) -> None:
    folder = write_task(tmp_path)
    (diagnosis,) = check(tmp_path)
    assert (diagnosis.state, diagnosis.layout, diagnosis.folder) == ("found", "community", str(folder))
    assert diagnosis.complete
    assert said(diagnosis) == {}
    assert {part: check.per_class for part, check in diagnosis.parts.items()} == {
        "train": (2, 2, 2, 2),
        "val": (1, 1, 1, 1),
        "test": (2, 2, 2, 2),
    }


def test_the_hash_is_that_of_a_training(tmp_path: Path) -> None:
    write_task(tmp_path)
    (diagnosis,) = check(tmp_path)
    transform = eval_transform(Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash"))
    for part, source in CommunityFolders().read(tmp_path, tiny()).items():
        assert diagnosis.parts[part].content_hash == ImageDataset(source, transform).content_hash


def test_nothing_there(tmp_path: Path) -> None:
    (diagnosis,) = check(tmp_path)
    assert (diagnosis.state, diagnosis.folder, diagnosis.parts) == ("missing", "", {})
    assert tiny().source in diagnosis.next_step
    assert str(tmp_path) in diagnosis.next_step


@pytest.mark.parametrize("name", ["images/3.jpg", "val200.txt"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    (write_task(tmp_path) / name).unlink()
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "partly"
    assert said(diagnosis) == {"missing-file": [f"missing in the folder: {name}"]}
    assert "unpack" in diagnosis.next_step


def test_a_truncated_image(tmp_path: Path) -> None:
    path = write_task(tmp_path) / "images" / "15.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "partly"
    (text,) = said(diagnosis)["unreadable"]
    assert str(path) in text
    assert "truncated" in text
    assert diagnosis.parts["test"].content_hash == ""
    assert diagnosis.parts["train"].content_hash != ""
    photo(15).save(path, quality=90)
    assert check(tmp_path)[0].complete


def test_a_truncated_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("dmlab/test.txt", "images/1.jpg 0\n" * 100)
    path = tmp_path / "dmlab.zip"
    path.write_bytes(buffer.getvalue())
    (diagnosis,) = check(tmp_path)
    step = f"viapt data extract {path} --to {tmp_path / 'dmlab'}"
    assert (diagnosis.state, diagnosis.problems, diagnosis.next_step) == ("missing", (), step)
    path.write_bytes(buffer.getvalue()[:-30])
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "missing"
    assert "damaged or truncated" in said(diagnosis)["archive"][0]
    assert "again" in diagnosis.next_step


def test_a_label_out_of_range(tmp_path: Path) -> None:
    path = write_task(tmp_path) / "test.txt"
    path.write_text(path.read_text().replace("images/13.jpg 1", "images/13.jpg 4"))
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "partly"
    (text,) = said(diagnosis)["unreadable-data"]
    assert "line 2: 'images/13.jpg 4'" in text


def test_a_layout_that_lets_labels_out_of_range_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path)
    read = CommunityFolders.read_at

    def shifted(self: CommunityFolders, where: Path, task: BenchmarkTask) -> dict[str, ImageSource]:
        parts = read(self, where, task)
        items = tuple(item._replace(label=item.label + 1) for item in parts["test"].items)
        return parts | {"test": replace(parts["test"], items=items)}

    monkeypatch.setattr(CommunityFolders, "read_at", shifted)
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "partly"
    (text,) = said(diagnosis)["label"]
    assert text.startswith("2 label(s) are not within 0 and 3: images/15.jpg (4); ")
    assert said(diagnosis)["class-count"] == ["1 class(es) have no test image: class 0"]


def test_wrong_counts(tmp_path: Path) -> None:
    path = write_task(tmp_path) / "test.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (diagnosis,) = check(tmp_path)
    assert said(diagnosis) == {"count": ["another number of images than expected: test 7 instead of 8"]}
    assert tiny().source in diagnosis.next_step


def test_wrong_counts_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from viapt.data.benchmarks import class_counts

    monkeypatch.setitem(class_counts.PER_CLASS, "dmlab", {("test",): 2, ("train", "val"): 3})
    path = write_task(tmp_path) / "test.txt"
    assert check(tmp_path)[0].complete
    path.write_text(path.read_text().replace("images/13.jpg 1", "images/13.jpg 2"))
    (diagnosis,) = check(tmp_path)
    assert said(diagnosis) == {
        "class-count": ["2 class(es) have not the 2 images in test that are expected: class 1: 1; class 2: 3"]
    }


def test_swapped_labels(tmp_path: Path) -> None:
    path = write_task(tmp_path) / "train800.txt"
    swapped = path.read_text().replace("images/0.jpg 0", "images/0.jpg 1").replace("images/1.jpg 1", "images/1.jpg 0")
    path.write_text(swapped)
    (diagnosis,) = check(tmp_path)
    assert diagnosis.complete
    (text,) = said(diagnosis)["swapped"]
    assert text.endswith("in 2 picture(s): images/0.jpg (1 and 0)")


def test_copies(tmp_path: Path) -> None:
    images = write_task(tmp_path) / "images"
    shutil.copy(images / "0.jpg", images / "12.jpg")  # train, test: the same label
    shutil.copy(images / "9.jpg", images / "14.jpg")  # val, test: another one
    photo(2).resize((96, 80), Image.Resampling.BILINEAR).save(images / "18.jpg", quality=70)
    (diagnosis,) = check(tmp_path)
    assert diagnosis.complete
    found = {remark.kind: remark.names for remark in diagnosis.warnings}
    assert found == {
        "duplicate": ("images/12.jpg = images/0.jpg", "images/14.jpg = images/9.jpg"),
        "near-duplicate": ("images/18.jpg ~ images/2.jpg",),
        "contradiction": ("images/9.jpg (1) and images/14.jpg (2)",),
    }


def test_names_that_are_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_task(tmp_path) / "images"
    os.rename(os.fsencode(images / "3.jpg"), os.fsencode(images) + b"/caf\xe9\n.jpg")  # noqa: PTH104 - bytes
    (diagnosis,) = check(tmp_path)
    assert diagnosis.state == "partly"
    assert set(said(diagnosis)) == {"missing-file", "name"}
    text = json.dumps(diagnosis.to_dict(), ensure_ascii=False)
    assert r"caf\\udce9\\n.jpg" in text
    text.encode()
    assert run(tmp_path, capsys, TASK, tmp_path)[0] == 1


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: the check is then made as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("what", ["images/3.jpg", "images", "test.txt", "."])
def test_permission_denied(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        monkeypatch.setenv("VIAPT_CACHE", str(root / "no" / "cache"))
        folder = write_task(root)
        write_task(root, "diabetic_retinopathy")
        closed = folder / what
        closed.chmod(0)
        try:
            with nobody():
                first, second = check(root, TASK, OTHER)
        finally:
            closed.chmod(0o755)
    assert not first.complete
    assert any("Permission denied" in text for texts in said(first).values() for text in texts)
    assert first.next_step
    assert second.complete
    assert "VIAPT_CACHE" in said(second)["cache"][0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(5, "Input/output error", "/data/x"), "Input/output error: /data/x"),
        (RuntimeError("surprise"), "RuntimeError: surprise"),
        (MemoryError(), "MemoryError: "),
    ],
)
@pytest.mark.parametrize("method", ["look", "read_found"])
def test_one_broken_task_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str, method: str
) -> None:
    for name in ("dmlab", "diabetic_retinopathy", "dtd"):
        write_task(tmp_path, name)
    original = getattr(CommunityFolders, method)

    def broken(self: CommunityFolders, *given: Any) -> object:
        if given[-1].name == OTHER:  # the task
            raise error
        return original(self, *given)

    monkeypatch.setattr(CommunityFolders, method, broken)
    found = check(tmp_path, TASK, OTHER, "vtab-1k/dtd")
    assert [one.state for one in found] == ["found", "failed", "found"]
    assert said(found[1]) == {"error": [text]}
    assert found[1].next_step


def test_a_second_time_nothing_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_task(tmp_path) / "images"
    shutil.copy(images / "0.jpg", images / "12.jpg")
    first = check(tmp_path)
    decoded = []
    read = ImageSource.read
    monkeypatch.setattr(ImageSource, "read", lambda self, i, **given: decoded.append(self.name(i)) or read(self, i))
    assert check(tmp_path) == first
    assert decoded == []
    photo(99).save(images / "5.jpg")
    again = check(tmp_path)
    assert decoded == [str(images / "5.jpg")]
    shutil.rmtree(tmp_path / "cache")
    assert check(tmp_path) == again


def test_what_was_read_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path)

    def interrupt(name: str, done: int, total: int) -> None:
        assert (name, total) == (TASK, 20)
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(check_tasks([tiny()], tmp_path, interrupt))
    decoded = []
    read = ImageSource.read
    monkeypatch.setattr(ImageSource, "read", lambda self, i, **given: decoded.append(i) or read(self, i))
    assert check(tmp_path)[0].complete
    assert len(decoded) == 8  # of the test part


def run(root: Path, capsys: pytest.CaptureFixture[str], name: str, out: Path) -> tuple[int | str | None, str, dict]:
    """Exit code, what was printed, and the JSON file."""
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", name, "--root", str(root), "--json", str(out / "found.json")])
    path = out / "found.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err, content


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    write_task(root)
    for name in (TASK, OTHER):
        monkeypatch.setitem(registry.TASKS, name, tiny(name))
    code, printed, content = run(root, capsys, TASK, tmp_path)
    assert code == 0
    assert "1 of 1 tasks complete" in printed
    assert content["complete"] is True

    path = root / "dmlab" / "images" / "0.jpg"
    path.write_bytes(path.read_bytes()[:100])
    code, printed, content = run(root, capsys, "vtab-1k", tmp_path)
    assert code == 1
    assert "0 of 19 tasks complete" in printed
    assert str(path) in printed
    states = {one["task"]: one["state"] for one in content["tasks"]}
    assert list(states) == list(registry.SUITES["vtab-1k"])
    assert states.pop(TASK) == "partly"
    assert set(states.values()) == {"missing"}


@pytest.mark.parametrize(
    ("name", "root", "out", "words"),
    [
        ("vtab-1k/dtt", ".", ".", "did you mean"),
        ("vtab-1k/dtd", "nowhere", ".", "is no folder"),
        ("fgvc", ".", "nowhere", "cannot be written"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, root: str, out: str, words: str
) -> None:
    code, printed, content = run(tmp_path / root, capsys, name, tmp_path / out)
    assert code == 2
    assert words in printed
    assert content == {}

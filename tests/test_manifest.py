"""The manifest: an unchanged file is not read again, a changed one always; it is whole or absent."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viapt.data.benchmarks import manifest
from viapt.data.benchmarks.manifest import Manifest, Record, stamp_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of their own; files count as at rest at once (what two seconds are for has a test of its own)."""
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "SETTLED", -(10**9))
    return tmp_path / "cache"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(kept: Manifest, files: list[Path]) -> tuple[dict[str, str], int]:
    """Content hash of every file that is there, by way of the manifest, and how many had to be read."""
    found, read = {}, 0
    for path in files:
        if not path.exists():
            continue
        stamp = stamp_of(path)
        record = kept.recall(path, stamp)
        if record is None:
            read += 1
            record = Record(sha(path), "")
            kept.remember(path, stamp, record)
        found[path.name] = record.content
    return found, read


def write(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i}.bin" for i in range(count)]
    for i, path in enumerate(files):
        path.write_bytes(bytes([i]))
    return files


def test_a_second_time_nothing_is_read(tmp_path: Path) -> None:
    files = write(tmp_path / "data", 5)
    kept = Manifest(tmp_path / "data")
    first, read = contents(kept, files)
    assert read == 5
    kept.save()
    assert contents(Manifest(tmp_path / "data"), files) == (first, 0)
    assert contents(Manifest(tmp_path / "other"), files) == (first, 5)


CHANGES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["write", "same size", "back-dated", "delete", "swap", "save"])),
    max_size=12,
)


@given(CHANGES)
def test_incremental_equals_from_scratch(changes: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "data")
        files = write(folder, 4)
        kept = Manifest(folder)
        for number, (index, change) in enumerate(changes):
            apply(change, files[index], files[index - 1], number)
            contents(kept, files)
            if change == "save":
                kept.save()
                kept = Manifest(folder)
            assert contents(kept, files)[0] == {path.name: sha(path) for path in files if path.exists()}


def apply(change: str, path: Path, other: Path, number: int) -> None:
    time.sleep(0.005)  # beyond the clock tick of a file system
    text = f"{number:04d}".encode()
    if change == "delete":
        path.unlink(missing_ok=True)
    elif change == "write":
        path.write_bytes(text * (number + 1))
    elif change in ("same size", "back-dated"):
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns) if path.exists() else (0, 0)
        path.write_bytes(text[: path.stat().st_size].ljust(path.stat().st_size) if path.exists() else text)
        if change == "back-dated":
            os.utime(path, ns=times)
    elif change == "swap" and path.exists() and other.exists():
        third = path.with_suffix(".third")
        path.rename(third)
        other.rename(path)
        third.rename(other)


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SETTLED", 2 * 10**9)
    files = write(tmp_path / "data", 2)
    kept = Manifest(tmp_path / "data")
    assert contents(kept, files)[1] == contents(kept, files)[1] == 2
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3 * 10**9)
    assert contents(kept, files)[1] == 2
    assert contents(kept, files)[1] == 0


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "data", 1)
    kept = Manifest(tmp_path / "data")
    before = stamp_of(path)
    path.write_bytes(b"longer")
    kept.remember(path, before, Record("of the old content", ""))
    assert kept.records == {}


def test_files_that_are_gone_are_forgotten_and_others_kept(tmp_path: Path) -> None:
    files = write(tmp_path / "data", 3)
    kept = Manifest(tmp_path / "data")
    contents(kept, files)
    kept.save()
    files[0].unlink()
    again = Manifest(tmp_path / "data")
    extra = tmp_path / "data" / "new.bin"
    extra.write_bytes(b"new")
    contents(again, [extra])  # another task, which uses other files of the folder
    again.save()
    assert {Path(path).name for path in Manifest(tmp_path / "data").records} == {"1.bin", "2.bin", "new.bin"}


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    folder.mkdir()
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    path.write_bytes(b"1")
    kept = Manifest(folder)
    contents(kept, [path])
    kept.save()
    assert contents(Manifest(folder), [path])[1] == 0


def saved(tmp_path: Path) -> tuple[Manifest, list[Path], bytes]:
    files = write(tmp_path / "data", 3)
    kept = Manifest(tmp_path / "data")
    contents(kept, files)
    kept.save()
    return kept, files, kept.path.read_bytes()


def damages(whole: bytes) -> Iterator[bytes]:
    yield from (b"", b"\n", b"{}", whole[:-1], whole[: len(whole) // 2], whole[65:], whole + b" ")
    for place in range(0, len(whole), 7):
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def test_a_damaged_manifest_is_made_anew(tmp_path: Path) -> None:
    kept, files, whole = saved(tmp_path)
    for damaged in damages(whole):
        kept.path.write_bytes(damaged)
        fresh = Manifest(tmp_path / "data")
        assert fresh.records == {}
        assert contents(fresh, files)[1] == 3
    fresh.save()
    assert kept.path.read_bytes() == whole


def test_another_version_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT + 1)
    assert Manifest(tmp_path / "data").records == {}


KILLED = """
import os, sys, time
from pathlib import Path
from viapt.data.benchmarks import manifest
manifest.SETTLED = -10**9
kept = manifest.Manifest(Path(sys.argv[1]))
path = Path(sys.argv[1], "3.bin")
kept.remember(path, manifest.stamp_of(path), manifest.Record("new", ""))
def half(temporary, content):
    temporary.write_bytes(content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(60)
manifest._fill = half
kept.save()
"""


def test_killed_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    kept, _, whole = saved(tmp_path)
    (tmp_path / "data" / "3.bin").write_bytes(b"3")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "data")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert kept.path.read_bytes() == whole
    again = Manifest(tmp_path / "data")
    path = tmp_path / "data" / "3.bin"
    again.remember(path, stamp_of(path), Record("new", ""))
    again.save()
    assert len(Manifest(tmp_path / "data").records) == 4


def test_nothing_new_writes_nothing(tmp_path: Path, cache: Path) -> None:
    Manifest(tmp_path / "data").save()
    assert not cache.exists()

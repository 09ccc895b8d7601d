"""Archives of data sets: extracted whole or not at all, and never trusted."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import stat
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deb_cases import entry
from viapt.cli import main
from viapt.data.benchmarks.archives import Limits, ZipImages, extract, list_members, reading
from viapt.errors import DataError

LIMITS = Limits()
FILES = {"set/a.txt": b"alpha", "set/deep/b.bin": bytes(range(256)) * 40, "größe.txt": b""}


def write(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that the suffix says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("empty")
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz", ".tar": "w"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        archive.addfile(entry("empty", kind=tarfile.DIRTYPE))
        for name, content in files.items():
            archive.addfile(entry(name, len(content)), io.BytesIO(content))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, folder: Path, match: str, limits: Limits = LIMITS) -> None:
    """Refused with this message, and nothing of it is on the disk."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError, match=match):
        extract(archive, folder, limits)
    assert sorted(folder.parent.rglob("*")) == before


KINDS = ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"]


@pytest.mark.parametrize("name", KINDS)
def test_what_was_packed_is_unpacked(tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / name, FILES)
    assert extract(archive, tmp_path / "new" / "folder") == 3
    assert content(tmp_path / "new" / "folder") == FILES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
    assert {member.name: member.size for member in list_members(archive)} == {k: len(v) for k, v in FILES.items()}


@pytest.mark.parametrize("name", KINDS)
def test_truncated_archives_are_named(tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / name, {"noise.bin": os.urandom(50_000), "more.bin": os.urandom(50_000)})
    whole = archive.read_bytes()
    for end in (len(whole) // 3, 60_000, 1):
        archive.write_bytes(whole[:end])
        refused(archive, tmp_path / "out", f"{name} is damaged or truncated")
    archive.write_bytes(b"")
    refused(archive, tmp_path / "out", "damaged or truncated")
    archive.write_text("<html>404 not found</html>")
    refused(archive, tmp_path / "out", "damaged or truncated")
    archive.unlink()
    refused(archive, tmp_path / "out", "cannot be read: No such file")


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    archive = write(tmp_path / "x.zip", {"noise.bin": os.urandom(5000)})
    data = bytearray(archive.read_bytes())
    data[3000] ^= 1
    archive.write_bytes(data)
    refused(archive, tmp_path / "out", "damaged or truncated")


BAD_NAMES = ["../evil", "/etc/evil", "a/../../evil", "c:/evil", "..\\evil", "a\\b", "new\nline", "a/..", "bell\a"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = write(tmp_path / kind, {"good.txt": b"good", name: b"evil"})
    refused(archive, tmp_path / "out", "has a member named")


def test_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(entry(os.fsdecode(b"\xff.jpg")))
    refused(tmp_path / "x.tar", tmp_path / "out", r"named '\\udcff.jpg'")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids=["symlink", "hardlink", "character device", "block device", "pipe"],
)
def test_links_and_devices_in_tar_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(entry("good.txt", 4), io.BytesIO(b"good"))
        archive.addfile(entry("bad", kind=kind, link="good.txt"))
    refused(tmp_path / "x.tar", tmp_path / "out", "'bad' of .* is a link or a device")


def test_links_and_encrypted_members_of_zip_files_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("bad")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "x.zip", tmp_path / "out", "'bad' of .* is a link or a device")
    data = bytearray(write(tmp_path / "y.zip", {"secret": b"x"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(signature) + offset] |= 1
    (tmp_path / "y.zip").write_bytes(data)
    refused(tmp_path / "y.zip", tmp_path / "out", "encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/b", "1")
        archive.writestr("a//b", "2")
    refused(tmp_path / "x.zip", tmp_path / "out", "holds 'a/b' twice")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    archive = write(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"})
    refused(archive, tmp_path / "out", "cannot be written")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_bombs_and_crowds_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / name, {f"{k}.bin": bytes(2**20) for k in range(4)})
    assert archive.stat().st_size * 200 < 4 * 2**20
    extract(archive, tmp_path / "small is fine")
    shutil.rmtree(tmp_path / "small is fine")
    monkeypatch.setattr("viapt.data.benchmarks.archives.BOMB_BYTES", 2**20)
    refused(archive, tmp_path / "out", "unpacks to 2,097,152 bytes or more")
    refused(archive, tmp_path / "out", "more than 2 members", Limits(members=2))
    refused(archive, tmp_path / "out", "at most 1,000,000 bytes", Limits(bytes=10**6))


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = write(tmp_path / "x.zip", {"zeros": bytes(100_000)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(archive, tmp_path / "out", "damaged or truncated")


def test_no_room_no_permission_and_a_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "x.tar.gz", FILES)
    (tmp_path / "taken").mkdir()
    refused(archive, tmp_path / "taken", "exists already")
    (tmp_path / "file").write_text("no folder")
    refused(archive, tmp_path / "file" / "out", "cannot be written: File exists")
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 2**30 + 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        refused(archive, tmp_path / "out", r"would take 10,245 bytes, and .* has 1,073,751,824 bytes free")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("viapt.data.benchmarks.archives._copy", full)
        refused(archive, tmp_path / "out", "cannot be written: No space left on device")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind the administrator")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    archive = write(tmp_path / "x.zip", FILES)
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(archive, tmp_path / "locked" / "out", "Permission denied")


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=30), max_size=4),
    st.sampled_from(["x.zip", "x.tar.gz"]),
)
def test_any_names_are_unpacked_inside_or_refused(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        archive = write(folder / kind, files)
    except (UnicodeEncodeError, ValueError):
        return  # cannot be packed
    try:
        extract(archive, folder / "out")
    except DataError:
        assert sorted(path.name for path in folder.iterdir()) == [kind]
    else:
        assert sorted(path.name for path in folder.iterdir()) == ["out", kind]
        assert sorted(content(folder / "out").values()) == sorted(files.values())


def test_images_are_read_from_an_archive_in_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / "x.zip", FILES)
    with reading(archive) as (_, members):
        images = ZipImages(archive, members)
    assert [images[k][0] for k in range(3)] == list(FILES.values())
    assert pickle.loads(pickle.dumps(images))[1] == images[1]
    opened = images._zip
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as if it were a forked process, which shares the position
    assert images[1][0] == FILES["set/deep/b.bin"]
    assert images._zip is not opened
    with pytest.raises(DataError, match="unpacks to 10,240 bytes"):
        ZipImages(archive, members, max_bytes=10_000)
    with pytest.raises(DataError, match="is a tar archive"), reading(write(tmp_path / "x.tar", FILES)):
        pass


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write(tmp_path / "x.tgz", FILES)
    with pytest.raises(SystemExit) as end:
        main(["data", "extract", str(archive), "--to", str(tmp_path / "out")])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 3 files\n"
    with pytest.raises(SystemExit) as end:
        main(["data", "extract", str(archive), "--to", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "exists already" in capsys.readouterr().err

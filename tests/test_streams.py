"""Images from folders, lists and shards: none left out, none twice, nothing read that is too large."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from viapt.data import streams
from viapt.data.streams import Reference, references
from viapt.errors import DataError


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shade(reference: Reference) -> int:
    return int(np.asarray(reference.read())[0, 0, 0])


def shard(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def names(*arguments: object) -> list[str]:
    return [reference.name for reference in references(map(str, arguments))]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, a text, a hidden image and a shard."""
    for k, name in enumerate(["b/2.png", "a/1.png", "10.png", ".hidden.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
    (tmp_path / "images" / "notes.txt").write_text("nowhere.png")
    shard(tmp_path / "images" / "z.tar", {"k.png": png(9), "k.cls": b"3"})
    return tmp_path / "images"


def test_a_folder_has_its_images_and_shards_in_order(folder):
    assert names(folder) == [f"{folder}/{n}" for n in ("10.png", "z.tar::k.png", "a/1.png", "b/2.png")]
    assert names(f"{folder}/*/*.png") == [f"{folder}/a/1.png", f"{folder}/b/2.png"]
    assert names(f"{folder}/*") == [f"{folder}/10.png", f"{folder}/z.tar::k.png"]


def test_a_list_keeps_its_order_and_its_places(folder, tmp_path):
    listed = folder / "mine.txt"
    listed.write_text(f"b/2.png\r\n\n{tmp_path}/absent.png\nb/2.png\n", encoding="utf-8")
    assert names(listed) == [f"{folder}/b/2.png", f"{tmp_path}/absent.png", f"{folder}/b/2.png"]
    assert shade(next(references([str(listed)]))) == 0


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_shard_are_read_where_they_lie(tmp_path, form):
    deep = "/".join(["f" * 40] * 3)  # a name that needs a header of its own, but in ustar
    contents = {f"{deep}/{k}.png": png(k) for k in range(5)} | {"../../up.JPG": png(7), "x.json": b"{}", "n": png(1)}
    found = list(references([str(shard(tmp_path / "s.tar", contents, form))]))
    assert [reference.name.partition("::")[2] for reference in found] == list(contents)[:6]
    assert [shade(reference) for reference in reversed(found)] == [7, 4, 3, 2, 1, 0]
    assert not (tmp_path.parent.parent / "up.JPG").exists()


def test_links_and_devices_in_a_shard_do_not_count(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo(f"{kind.decode()}.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    with pytest.raises(DataError, match=r"no images in .*s\.tar"):
        names(tmp_path / "s.tar")


def test_a_member_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = shard(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2) + bytes(2000)})
    monkeypatch.setattr(streams, "MAX_BYTES", 1000)
    small, large = references([str(path)])
    assert shade(small) == 1
    with pytest.raises(DataError, match=r"s\.tar::b\.png: has 2,"):
        large.read()


def test_a_header_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        entry = tarfile.TarInfo("a.png")
        entry.pax_headers = {"comment": "x" * 5000}
        archive.addfile(entry)
    monkeypatch.setattr(streams, "MAX_HEADER", 4096)
    with pytest.raises(DataError, match="a header of 5120 bytes"):
        names(tmp_path / "s.tar")


@pytest.mark.parametrize("damage", ["compressed", "no tar", "header", "cut in a header", "cut in a member", "empty"])
def test_damaged_shards_are_named(tmp_path, damage):
    path = shard(tmp_path / "s.tar", {f"{k}.png": png(k) for k in range(3)}, tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "compressed": gzip.compress(whole),
            "no tar": b"no tar at all" * 100,
            "header": whole[:1024] + b"?" * 512 + whole[1536:],
            "cut in a header": whole[:1100],
            "cut in a member": whole[: 512 + 100],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError, match=r"s\.tar is no tar file that can be read"):
        names(path)


def test_a_shard_without_end_is_whole_if_its_members_are(tmp_path):
    path = shard(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)}, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:2048])
    assert [shade(reference) for reference in references([str(path)])] == [1, 2]


def test_lists_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"absent\.txt cannot be read"):
        names(tmp_path / "absent.txt")
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe.png\n")
    with pytest.raises(DataError, match="UTF-8"):
        names(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_text("x" * 300)
    monkeypatch.setattr(streams, "MAX_LINE", 200)
    with pytest.raises(DataError, match="more than 200 characters"):
        names(tmp_path / "l.txt")


def test_an_argument_without_images(tmp_path):
    with pytest.raises(DataError, match="no images in"):
        names(tmp_path)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20),
        max_size=8,
        unique=True,
    )
)
def test_whatever_members_are_called_all_images_are_found(tmp_path_factory, stems):
    path = tmp_path_factory.mktemp("s") / "s.tar"
    shard(path, {f"{stem}.png": stem.encode() for stem in stems})
    found = list(streams.members(path))
    assert len({reference.name for reference in found}) == len(found)
    content = path.read_bytes()
    read = [content[one.start : one.start + one.size] for one in found]
    assert read == [stem.encode() for stem in stems]
    assert all(one.name.encode() for one in found)

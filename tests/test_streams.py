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
from viapt.data.braces import expanded
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


def test_a_list_of_shards(folder, tmp_path):
    listed = tmp_path / "shards.txt"
    listed.write_text("images/z.tar\nimages/10.png\nimages/z.tar\n")
    assert names(listed) == [f"{folder}/{name}" for name in ("z.tar::k.png", "10.png", "z.tar::k.png")]
    assert [shade(reference) for reference in references([str(listed)])] == [9, 2, 9]


def test_braces_stand_for_shards_in_their_order(tmp_path):
    for k in range(8, 12):
        shard(tmp_path / f"a-{k:03d}.tar", {"x.png": png(k), "y.png": png(100 + k)})
    found = list(references([f"{tmp_path}/a-{{008..011}}.tar"]))
    assert [shade(reference) for reference in found] == [8, 108, 9, 109, 10, 110, 11, 111]
    assert found[0].name == f"{tmp_path}/a-008.tar::x.png"


def test_in_a_set_a_shard_may_be_empty_but_a_pattern_may_not(tmp_path):
    shard(tmp_path / "0.tar", {"x.png": png(1)})
    shard(tmp_path / "1.tar", {"x.cls": b"1"})
    assert names(f"{tmp_path}/{{0..1}}.tar") == [f"{tmp_path}/0.tar::x.png"]
    with pytest.raises(DataError, match=r"no images in .*/9\*\.tar"):
        names(f"{tmp_path}/{{0,9}}*.tar")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("a{0..2}", ["a0", "a1", "a2"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{8..010}", ["008", "009", "010"]),
        ("{2..0}.tar", ["2.tar", "1.tar", "0.tar"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("x{,y}", ["x", "xy"]),
        ("{a..b} {x} {} {0..} {0..1..2}", ["{a..b} {x} {} {0..} {0..1..2}"]),
    ],
)
def test_braces(argument, words):
    assert list(expanded(argument)) == words


def test_braces_of_a_file_that_is_there_are_its_name(tmp_path):
    path = shard(tmp_path / "{0..1}.tar", {"x.png": png(1)})
    assert names(path) == [f"{path}::x.png"]


@pytest.mark.parametrize("argument", ["{0..999999999999999999}", "{0..999}" * 3, "{a,b}" * 40])
def test_braces_that_stand_for_too_much(argument):
    with pytest.raises(DataError, match=r"stands for 1,0[0-9,]+ names.*at most 100,000"):
        next(references([argument]))


def test_shards_that_are_missing_are_named_before_the_work(folder, tmp_path):
    shard(tmp_path / "s-3.tar", {"x.png": png(1)})
    with pytest.raises(
        DataError, match=r"9 of 10 shards are not there: \S+/s-0\.tar, .*s-1.*s-2.*s-4.*s-5\.tar, and so on"
    ):
        next(references([str(folder), f"{tmp_path}/s-{{0..9}}.tar"]))
    (tmp_path / "l.txt").write_text("s-3.tar\ns-4.tar\nabsent.png\n")
    with pytest.raises(DataError, match=r"l\.txt: 1 of 2 shards are not there: \S+/s-4\.tar\. "):
        next(references([str(folder), str(tmp_path / "l.txt")]))


def test_folders_may_be_called_like_lists_and_shards(folder, tmp_path):
    for name in ("a.txt", "b.tar"):
        folder.rename(tmp_path / name)
        folder = tmp_path / name
        assert len(names(folder)) == 4


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

"""Listing folders, tables, arrays and data sets: what is found, in which order, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from viapt.data.sources import ImageSource, read_source
from viapt.data.tables import read_table
from viapt.errors import DataError


def save(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, colour, colour)).save(path, "PNG")
    return path


def folder(root: Path, *keys: str) -> Path:
    for number, key in enumerate(keys):
        save(root / key, number)
    return root


def listed(source: ImageSource) -> list[tuple[str, str, str]]:
    return [(item.key, source.classes[item.label], item.part) for item in source.items]


# Folders


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    folder(tmp_path, "dog/b.png", "cat/2.png", "cat/deep/er/1.jpg", "cat/1.png")
    source = read_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert [item.label for item in source.items] == [0, 0, 0, 1]
    assert [item.key for item in source.items] == ["cat/1.png", "cat/2.png", "cat/deep/er/1.jpg", "dog/b.png"]
    assert source.root == tmp_path
    assert source.name(3) == str(tmp_path / "dog/b.png")
    assert source.read(1).getpixel((0, 0)) == (1, 1, 1)


def test_class_names_may_be_anything_a_folder_may_be_called(tmp_path: Path) -> None:
    names = ["two words", "größe", "v1.2.final", "日本語", "emoji 🐈", "-dash", "percent%20", "a'b\"c", "val"]
    folder(tmp_path, *(f"{name}/x.png" for name in names))
    assert read_source(tmp_path).classes == tuple(sorted(names))


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{number}/x.png" for number in range(12)))
    assert read_source(tmp_path).classes == tuple(map(str, range(12)))


def test_accents_are_composed_so_that_all_systems_agree(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "äpfel")
    folder(tmp_path, f"{apart}/{apart}.png", "birnen/x.png")
    source = read_source(tmp_path)
    assert source.classes == ("birnen", "äpfel")
    assert source.items[1].key == "äpfel/äpfel.png"
    source.read(1)
    folder(tmp_path, "äpfel/x.png")
    with pytest.raises(DataError, match="how accents are encoded"):
        read_source(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_not_utf8_or_have_control_characters_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "a/x.png", "b/x.png")
    for name in (b"b/\xff.png", b"b/line\nbreak.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        os.link(tmp_path / "b/x.png", path)
        with pytest.raises(DataError, match="rename"):
            read_source(tmp_path)
        Path(os.fsdecode(path)).unlink()


def test_what_is_ignored_is_counted(tmp_path: Path) -> None:
    folder(tmp_path, "a/x.png", "b/x.png", "b/.hidden.png", ".git/c/x.png", "__MACOSX/b/x.png", "stray.png")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a/notes.txt").write_text("about")
    (tmp_path / "a/Thumbs.db").write_text("about")
    (tmp_path / "a/LICENSE").write_text("about")
    os.mkfifo(tmp_path / "b/pipe.png")
    source = read_source(tmp_path)
    assert [item.key for item in source.items] == ["a/x.png", "b/x.png"]
    assert source.ignored == {
        "hidden": 3,
        "files beside the class folders": 2,
        "not images (.txt)": 1,
        "not images (.db)": 1,
        "not images (no suffix)": 1,
        "pipes and devices": 1,
    }


def test_images_are_found_by_content_too_and_bad_ones_are_listed(tmp_path: Path) -> None:
    folder(tmp_path, "a/no suffix", "a/wrong.txt", "b/x.png")
    (tmp_path / "b/broken.jpg").write_text("no photo")
    (tmp_path / "b/phone.heic").write_text("cannot be read")
    keys = [item.key for item in read_source(tmp_path).items]
    assert keys == ["a/no suffix", "a/wrong.txt", "b/broken.jpg", "b/phone.heic", "b/x.png"]


def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", "secret/s.png", "t.png")
    inside = folder(tmp_path / "data", "a/x.png", "b/x.png", ".store/y.png")
    links = {
        "a/escape.png": outside / "t.png",
        "a/escape_folder": outside / "secret",
        "a/relative.png": Path("../../outside/t.png"),
        "a/twice.png": Path("escape_folder/s.png"),
        "c": outside / "secret",
        "a/broken.png": Path("nowhere.png"),
        "a/loop.png": Path("loop.png"),
        "b/around": Path("../b"),
        "d": Path(".store"),
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    source = read_source(inside)
    assert listed(source) == [("a/x.png", "a", ""), ("b/x.png", "b", ""), ("d/y.png", "d", "")]
    assert source.ignored == {
        "hidden": 1,
        "links that leave the folder": 5,
        "broken links": 2,
        "links back to a folder above them": 1,
    }


def test_a_link_that_changes_later_does_not_lead_outside(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.png", 200)
    root = folder(tmp_path / "data", "a/x.png", "b/x.png", ".store/z.png")
    (root / "b/link.png").symlink_to(root / ".store/z.png")
    source = read_source(root)
    (root / "b/link.png").unlink()
    (root / "b/link.png").symlink_to(outside)
    assert source.items[1].key == "b/link.png"
    assert source.read(1).getpixel((0, 0)) == (2, 2, 2)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    folder(tmp_path / "real", "a/x.png", "b/x.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(read_source(tmp_path / "link")) == 2


def test_a_file_reached_twice_counts_once_and_must_not_contradict_itself(tmp_path: Path) -> None:
    folder(tmp_path, "a/x.png", "b/x.png")
    (tmp_path / "a/y.png").symlink_to("x.png")
    source = read_source(tmp_path)
    assert [item.key for item in source.items] == ["a/x.png", "b/x.png"]
    assert source.ignored == {"links to images listed already": 1}
    (tmp_path / "b/z.png").symlink_to("../a/x.png")
    with pytest.raises(DataError, match="listed twice"):
        read_source(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_val_test_folders(tmp_path: Path, val: str) -> None:
    folder(tmp_path, "train/a/1.png", "train/b/2.png", f"{val}/b/3.png", "test/a/4.png", "extra/a/5.png")
    source = read_source(tmp_path)
    assert set(listed(source)) == {
        ("test/a/4.png", "a", "test"),
        ("train/a/1.png", "a", "train"),
        ("train/b/2.png", "b", "train"),
        (f"{val}/b/3.png", "b", "val"),
    }
    assert source.classes == ("a", "b")
    assert source.ignored == {"folders beside train, val and test": 1}


def test_train_alone_is_a_part_and_a_vehicle_is_a_class(tmp_path: Path) -> None:
    folder(tmp_path / "one", "train/a/1.png", "train/b/2.png")
    assert {item.part for item in read_source(tmp_path / "one").items} == {"train"}
    folder(tmp_path / "two", "train/1.png", "bus/2.png", "test/3.png")
    assert read_source(tmp_path / "two").classes == ("bus", "test", "train")
    folder(tmp_path / "three", "train/wagons/1.png", "bus/2.png")
    assert read_source(tmp_path / "three").classes == ("bus", "train")


def test_two_names_for_one_part_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="several folders for one part"):
        read_source(tmp_path)


def test_a_class_unknown_in_training_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cats/1.png")
    with pytest.raises(DataError, match=r"'cats'.*did you mean 'cat'"):
        read_source(tmp_path)


def test_links_between_parts_stay_inside_the_outermost_folder(tmp_path: Path) -> None:
    folder(tmp_path, "store/a/1.png", "store/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / "train").symlink_to(tmp_path / "store")
    assert [item.part for item in read_source(tmp_path).items] == ["train", "train", "val", "val"]


def test_a_training_image_linked_into_the_test_part_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    (tmp_path / "test/a/leak.png").symlink_to("../../train/a/1.png")
    with pytest.raises(DataError, match=r"listed twice.*leak"):
        read_source(tmp_path)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        read_source(tmp_path)
    save(tmp_path / "x.png")
    with pytest.raises(DataError, match="no class folders"):
        read_source(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").touch()
    with pytest.raises(DataError, match=r"no images \(ignored: 1 files beside the class folders, 1 not images"):
        read_source(tmp_path)
    save(tmp_path / "a/x.png")
    with pytest.raises(DataError, match="single class 'a'"):
        read_source(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no training images of 'b'"):
        read_source(tmp_path)


def test_the_folder_above_the_one_that_was_meant(tmp_path: Path) -> None:
    folder(tmp_path, "images/cat/1.png", "images/dog/1.png")
    with pytest.raises(DataError, match=rf"did you mean {tmp_path}/images"):
        read_source(tmp_path)


def test_known_classes_fix_names_and_order_and_may_be_missing(tmp_path: Path) -> None:
    folder(tmp_path, "b/1.png")
    source = read_source(tmp_path, classes=["c", "b", "a"])
    assert source.classes == ("c", "b", "a")
    assert [item.label for item in source.items] == [1]
    with pytest.raises(DataError, match="label 'b'"):
        read_source(tmp_path, classes=["c", "a"])
    with pytest.raises(DataError, match="distinct"):
        read_source(tmp_path, classes=["b", "b"])


# Tables


def table(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    folder(tmp_path, "z.png", "sub/a b, c.png", "ü.png")
    rows = [("z.png", "dog"), ("./sub//a b, c.png", "cat, big"), ("ü.png", "dog")]
    source = read_source(table(tmp_path / f"l{suffix}", [{"path": p, "label": c, "extra": 1} for p, c in rows]))
    assert listed(source) == [("z.png", "dog", ""), ("sub/a b, c.png", "cat, big", ""), ("ü.png", "dog", "")]
    assert source.classes == ("cat, big", "dog")
    assert source.name(2) == str(tmp_path / "ü.png")
    assert [source.read(i).getpixel((0, 0))[0] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_with_a_split(tmp_path: Path, suffix: str) -> None:
    names = [("1.png", "a", "train"), ("2.png", "b", "Train"), ("3.png", "a", "valid"), ("4.png", "b", "test")]
    rows = [{"path": p, "label": c, "split": s} for p, c, s in names]
    source = read_source(table(tmp_path / f"l{suffix}", rows))
    assert [item.part for item in source.items] == ["train", "train", "val", "test"]
    rows[1]["split"] = "tset"
    with pytest.raises(DataError, match=r"split 'tset' is not train, val or test; did you mean 'test'"):
        read_source(table(tmp_path / f"l{suffix}", rows))
    rows[1]["split"] = ""
    with pytest.raises(DataError, match="some rows only"):
        read_source(table(tmp_path / f"l{suffix}", rows))
    for row in rows:
        row["split"] = ""
    assert {item.part for item in read_source(table(tmp_path / f"l{suffix}", rows)).items} == {""}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    "path", ["../outside.png", "/etc/passwd", "a/../../outside.png", "a/../x.png", "", ".", "link.png"]
)
def test_paths_may_not_leave_the_folder_of_the_table(tmp_path: Path, suffix: str, path: str) -> None:
    save(tmp_path / "outside.png")
    base = folder(tmp_path / "data", "x.png", "a/y.png")
    (base / "link.png").symlink_to("../outside.png")
    rows = [{"path": "x.png", "label": "a"}, {"path": "a/y.png", "label": "b"}, {"path": path, "label": "b"}]
    line = "line 4" if suffix == ".csv" else "line 3"
    with pytest.raises(DataError, match=rf"1 bad line\(s\): {line}: path .*(leaves the folder|not the name of a file)"):
        read_source(table(base / f"l{suffix}", rows))


def test_links_inside_the_folder_and_a_linked_folder_are_fine(tmp_path: Path) -> None:
    base = folder(tmp_path / "data", "x.png", "a/y.png")
    (base / "link.png").symlink_to("a/y.png")
    table(base / "l.csv", [{"path": "x.png", "label": "a"}, {"path": "link.png", "label": "b"}])
    (tmp_path / "other").symlink_to(base)
    assert len(read_source(tmp_path / "other" / "l.csv")) == 2


def test_links_that_loop_are_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    save(tmp_path / "x.png")
    source = read_source(table(tmp_path / "l.csv", [{"path": "x.png", "label": 1}, {"path": "loop.png", "label": 2}]))
    with pytest.raises(DataError, match=r"loop\.png"):
        source.read(1)


def test_all_bad_lines_are_reported_at_once(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "label": "" if i % 2 else "a"} for i in range(20)]
    with pytest.raises(DataError, match=r"10 bad line\(s\): line 3: .*; line 5: .*; line 11: .*; \.\.\."):
        read_source(table(tmp_path / "l.csv", rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,label\n", "no images"),
        ("filename,label\na.png,x\n", "rename 'filename' to 'path'"),
        ("Path,class\na.png,x\n", "rename 'Path' to 'path' and rename 'class' to 'label'"),
        ("path,colour\na.png,x\n", "add 'label'"),
        ("path;label\na.png;x\n", "separate the columns by commas"),
        ("path,label,label\na.png,x,y\n", "each once"),
        ("path,label\na.png,x\nb.png\n", "line 3: 1 fields instead of 2"),
        ("path,label\na.png,x,y\n", "line 2: 3 fields instead of 2"),
        ('path,label\n"a.png,x\n', "is not CSV"),
        ("path,label\na.png,\0\n", "line"),
        ("path,label\na.png,  \n", "line 2: label '' is not a name"),
        ("path,label\na.png,x\n./a.png,y\n", "listed twice"),
        ("path,label\na.png,x\na.png,x\nb.png,y\n", "listed twice"),
        (f"path,label\n{'a' * 200_000},x\n", "is not CSV: field larger"),
    ],
)
def test_csv_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no images"),
        ("nonsense\n", "line 1: not JSON"),
        ('{"path": "a.png", "label": "x"}\n[1]\n', "line 2: list instead of an object"),
        ('{"file": "a.png", "label": "x"}', "rename 'file' to 'path'"),
        ('{"path": "a.png"}', "add 'label'"),
        ('{"path": 3, "label": "x"}', "path 3 is not the name of a file"),
        ('{"path": "a.png", "label": 1.5}', "label 1.5 is not a name"),
        ('{"path": "a.png", "label": true}', "label True is not a name"),
        ('{"path": "a.png", "label": null}', "label None is not a name"),
        ('{"path": "a.png", "label": ["x"]}', r"label \['x'\] is not a name"),
        ('{"path": "a.png", "label": "tab\\there"}', "control characters"),
        ('{"path": "\\ud800.png", "label": "x"}', "UTF-8"),
        ('{"path": "a.png", "label": "x", "split": 7}', "split 7"),
        ("[" * 100_000, "line 1: not JSON"),
    ],
)
def test_jsonl_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path / "l.jsonl")


def test_csv_dialects_of_spreadsheets(tmp_path: Path) -> None:
    content = '\ufeffpath, label\r\n"a.png", cat \r\n\r\nb.png,dog\r\n'
    (tmp_path / "l.csv").write_bytes(content.encode())
    assert listed(read_source(tmp_path / "l.csv")) == [("a.png", "cat", ""), ("b.png", "dog", "")]


@pytest.mark.parametrize(("encoding", "where"), [("latin-1", r"line 3"), ("utf-16", r"byte 0 \(line 1\)")])
def test_tables_that_are_not_utf8(tmp_path: Path, encoding: str, where: str) -> None:
    (tmp_path / "l.csv").write_bytes("path,label\na.png,cat\nb.png,größe\n".encode(encoding))
    with pytest.raises(DataError, match=rf"not UTF-8: .*{where}"):
        read_source(tmp_path / "l.csv")


def test_other_files_and_huge_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.xlsx").touch()
    with pytest.raises(DataError, match=r"l\.xlsx.*\*\.csv or \*\.jsonl"):
        read_source(tmp_path / "l.xlsx")
    (tmp_path / "l.csv").write_text("path,label\n")
    monkeypatch.setattr("viapt.data.tables.MAX_TABLE_BYTES", 10)
    with pytest.raises(DataError, match=r"l\.csv is too large"):
        read_source(tmp_path / "l.csv")


names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
segments = names.filter(lambda name: "/" not in name and name not in (".", "..") and name == name.strip())
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)
labels = names.filter(lambda name: name.strip())


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(paths, labels), min_size=1, max_size=6), suffix=st.sampled_from([".csv", ".jsonl"]))
@example(rows=[('a"b', 'it\'s, "quoted"')], suffix=".csv")
@example(rows=[("line\u2028separator", "x\u2029y")], suffix=".jsonl")
def test_whatever_is_written_is_read_back(rows: list[tuple[str, str]], suffix: str) -> None:
    with TemporaryDirectory() as base:
        path = table(Path(base) / f"l{suffix}", [{"path": p, "label": c} for p, c in rows])
        found = [text for record in read_table(path).records for text in (record.key, record.label)]
    assert found == [unicodedata.normalize("NFC", text) for row in rows for text in (row[0], row[1].strip())]


@settings(deadline=None, max_examples=150)
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)),
    suffix=st.sampled_from(["csv", "jsonl"]),
)
@example(content=b"path,label\n\xff,\n", suffix="csv")
@example(content=b'{"path":"a","label":"b","split":{"c":1}}', suffix="jsonl")
@example(content=b'{"path":"a\\u0000","label":"b"}', suffix="jsonl")
def test_arbitrary_bytes_are_a_listing_or_a_data_error(content: bytes, suffix: str) -> None:
    with TemporaryDirectory() as base:
        path = Path(base) / f"l.{suffix}"
        path.write_bytes((b"path,label,split\n" if suffix == "csv" else b"") + content)
        try:
            records = read_table(path).records
        except DataError:
            return
        assert all(record.image.is_relative_to(path.parent.resolve()) and record.label.strip() for record in records)


# Data in memory


def pictures(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((5, 6, 3), np.uint8)


def test_arrays_with_names_or_numbers() -> None:
    source = read_source((pictures(3), ["dog", "cat", "dog"]))
    assert (source.classes, [item.label for item in source.items]) == (("cat", "dog"), [1, 0, 1])
    assert source.read(2).getpixel((0, 0)) == (2, 2, 2)
    source = read_source((pictures(3), np.array([10, 2, 10])))
    assert (source.classes, [item.label for item in source.items]) == (("2", "10"), [1, 0, 1])
    source = read_source((pictures(3), np.array([1, 0, 1])), classes=["no", "yes"])
    assert (source.classes, [item.label for item in source.items]) == (("no", "yes"), [1, 0, 1])


def test_sequences_of_pillow_images_paths_and_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", 7)
    images = [Image.new("RGB", (3, 3), (7, 7, 7)), path, str(path), path.read_bytes()]
    with pytest.raises(DataError, match="listed twice"):
        read_source((images, ["a", "b", "a", "b"]))
    source = read_source(([images[0], path, images[3]], ["a", "b", "a"]))
    assert [source.read(i).getpixel((0, 0)) for i in range(3)] == [(7, 7, 7)] * 3
    assert source.name(1) == str(path)


def test_an_object_with_images_labels_and_classes() -> None:
    task = SimpleNamespace(images=pictures(4)[..., 0], labels=np.array([1, 0, 1, 0]), classes=["zebra", "ape"])
    source = read_source(task)
    assert (source.classes, [item.label for item in source.items]) == (("zebra", "ape"), [1, 0, 1, 0])
    assert {item.part for item in source.items} == {""}
    task.official_test = np.array([False, False, True, True])
    assert [item.part for item in read_source(task).items] == ["train", "train", "test", "test"]
    task.labels = np.array([1, 0, 2, 0])
    with pytest.raises(DataError, match="label 2 of image 2"):
        read_source(task)


class Pairs:
    """A map-style data set."""

    def __init__(self, *pairs: object) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> object:
        return self.pairs[index]


def test_map_style_data_sets() -> None:
    pairs = [(Image.fromarray(image), value % 2) for value, image in enumerate(pictures(4))]
    for data in (pairs, Pairs(*pairs)):
        source = read_source(data)
        assert (source.classes, [item.label for item in source.items]) == (("0", "1"), [0, 1, 0, 1])
        assert source.read(3).getpixel((0, 0)) == (3, 3, 3)
    named = Pairs(*pairs)
    named.classes = ["even", "odd"]
    assert read_source(named).classes == ("even", "odd")
    assert [item.label for item in read_source(named, classes=["odd", "even"]).items] == [1, 0, 1, 0]
    assert read_source(pairs, classes=["x", "y"]).classes == ("x", "y")


def test_map_style_data_sets_that_fail() -> None:
    with pytest.raises(DataError, match=r"item 1 cannot be read .*pair"):
        read_source(Pairs((pictures(1)[0], 0), "no pair"))
    source = read_source(Pairs((pictures(1)[0], 0), (object(), 1)))
    with pytest.raises(DataError, match=r"000001 of .* is of type object"):
        source.read(1)
    tuples = Pairs((pictures(1)[0], 0), (pictures(1)[0], 1))
    tuples.classes = [("cat", "kitty"), ("dog",)]
    with pytest.raises(DataError, match="class names are"):
        read_source(tuples)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((pictures(2), [0]), "2 images and 1 labels"),
        ((pictures(2), [0, 1.5]), "label 1.5 of image 1 is of type float"),
        ((pictures(2), [0, 0]), "single class"),
        ((pictures(2), ["a", "b\n"]), "control characters"),
        ((pictures(0), []), "no images"),
        ([], "no images"),
        (7, "data of type int"),
        ({}, "parts none"),
        ({"training": (pictures(2), [0, 1])}, "parts 'training'"),
    ],
)
def test_data_in_memory_that_are_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(data)


def test_data_given_by_part(tmp_path: Path) -> None:
    folder(tmp_path, "one/cat/1.png", "one/dog/2.png", "two/cat/1.png")
    source = read_source({"train": tmp_path / "one", "test": (pictures(1), ["dog"]), "val": str(tmp_path / "two")})
    assert listed(source) == [
        ("train/cat/1.png", "cat", "train"),
        ("train/dog/2.png", "dog", "train"),
        ("test/000000", "dog", "test"),
        ("val/cat/1.png", "cat", "val"),
    ]
    with pytest.raises(DataError, match="'cow'"):
        read_source({"train": tmp_path / "one", "val": (pictures(1), ["cow"])})
    folder(tmp_path, "split/train/a/1.png", "split/train/b/1.png")
    with pytest.raises(DataError, match="split themselves"):
        read_source({"train": tmp_path / "split"})


def test_listing_needs_no_torch() -> None:
    code = "import sys, viapt.data; assert 'torch' not in sys.modules, 'torch was imported'"
    assert run([sys.executable, "-c", code], check=False).returncode == 0

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from viapt.report import FittedMethod, Measured, Photo, Report, write_report
from viapt.report.rendering import markdown_cell

NASTY = '<script>alert("x")</script> | **50 %** & [a](b)'


def fitted(name: str, attention: list[float] | None = None) -> FittedMethod:
    return FittedMethod(
        name=name,
        accuracy=Measured(0.743, 0.701, 0.782),
        class_accuracy=0.6,
        learnable=43_380,
        stored=520_000,
        seconds=90.4,
        losses=[1.0, 0.5],
        val_accuracies=[0.6, 0.7],
        confusion=np.array([[5, 1], [0, 4]]),
        prompt_attention=attention,
    )


@pytest.fixture
def report() -> Report:
    image = np.tile(np.linspace(0, 255, 30, dtype=np.uint8)[:, None, None], (1, 40, 3))
    attention = np.zeros((3, 4))
    attention[2, 3] = 1.0
    return Report(
        title="Cells",
        summary="Two methods.",
        classes=["good", NASTY],
        methods=[fitted("linear"), fitted("viapt", [0.1, 0.2])],
        notes=["One seed."],
        facts={"command": "viapt demo", "licence": "CC-BY-NC-SA-4.0"},
        photos=[
            Photo("a.png", image, "good", "good", 0.9, attention),
            Photo(NASTY, image, "good", NASTY, 0.6, attention),
        ],
        photos_by="viapt",
    )


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if tag == "img":
            kind, data = values["src"].split(",", 1)
            assert kind == "data:image/png;base64" and values["alt"]
            self.images.append(base64.b64decode(data, validate=True))
        elif tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [values[name] for name in ("href", "src") if name in values and tag != "img"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_whole_and_needs_no_other_file(report, tmp_path):
    _, path = write_report(report, tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == [] and page.links == [] and "script" not in page.tags
    assert len(page.images) == 4 + 2 + 2  # parameters, losses, validation, attention; confusions; photos
    for data in page.images:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 200
    for text in ("74.3", "70.1 to 78.2", "43,380", "520 kB", "90 s", NASTY, "One seed.", "CC-BY-NC-SA-4.0"):
        assert text in page.text


def test_markdown_has_its_pictures_and_whole_tables(report, tmp_path):
    path, _ = write_report(report, tmp_path)
    text = path.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((pictures/[^)]+)\)", text)
    assert sorted(linked) == sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "pictures").iterdir())
    assert "| viapt | 74.3 [70.1, 78.2] | 60.0 | 43,380 | 520 kB | 90 s |" in text
    assert "<script>" not in text.replace(r"\<script\>", "")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_without_prompts_photos_or_validation(report, tmp_path):
    """A report of linear probes alone: nothing to show of prompts."""
    bare = [replace(fitted("linear"), val_accuracies=[])]
    md, html = write_report(replace(report, methods=bare, photos=[], photos_by=""), tmp_path)
    assert len(Page(html.read_text()).images) == 3
    assert "Photos" not in md.read_text() and "attention" not in md.read_text()


def test_equal_reports_are_equal_files(report, tmp_path):
    first = [path.read_bytes() for path in write_report(report, tmp_path / "a")]
    assert first == [path.read_bytes() for path in write_report(report, tmp_path / "b")]


def test_attention_is_drawn_where_it_is(report, tmp_path):
    """All attention lies in the lower right cell: there, and not in the upper left, the photo is coloured."""
    write_report(report, tmp_path)
    with Image.open(tmp_path / "pictures" / "photo-1.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    right = pixels[:, pixels.shape[1] // 2 :]
    rows, columns = np.nonzero((right < 250).any(-1))  # the margin is white
    right = right[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    redness = right[..., 0] - right[..., 2]
    h, w = right.shape[0] // 4, right.shape[1] // 4
    assert redness[-h:, -w:].mean() > 40 and abs(redness[:h, :w].mean()) < 15
    assert (
        right[-h:, :w].mean() > right[:h, :w].mean() + 50
    )  # and the photo below it stands upright: bright at its foot


@given(st.text())
def test_cells_stay_in_their_line_and_column(text):
    cell = markdown_cell(text)
    assert "\n" not in cell and not re.search(r"(?<!\\)(\\\\)*\|", cell)

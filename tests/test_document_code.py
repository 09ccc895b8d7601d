"""The code blocks of the documents do what the documents say; `document_cases.py` tells how they are run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from bench_cases import write_suite
from cli_cases import write_backbone, write_photos
from document_cases import ROOT, Reader, run

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RUN = {"docs/batch.md", "docs/devices.md", "docs/explain.md", "docs/export.md", "docs/inference.md"}
NOT_YET_RUN = {  # what these pages say is not checked here
    "README.md",
    "CONTRIBUTING.md",
    "docs/bench.md",
    "docs/benchmarks.md",
    "docs/data.md",
    "docs/ecosystem.md",
    "docs/methods.md",
    "docs/quickstart.md",
    "docs/serving.md",
    "docs/tutorial.md",
}
COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}

# What pages take for granted: adapters that somebody trained, and other files.
ADAPTERS = ("ADAPTER", "adapter", "runs/photos", "runs/cells", "runs/birds", "runs/birds-2")
MAKES_ITS_OWN = ("README.md", "quickstart.md", "tutorial.md")
REAL = ("quickstart.md",)  # real processes, as a reader starts them


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """What exports or compiles runs without shape checks; so does what starts processes."""
    code = "".join(content for _, content in blocks(page))
    return [pytest.mark.compiled] if re.search(r"\bexport\b|COMPILED", code) else []


READ = [pytest.param(ROOT / name, id=name, marks=marks(ROOT / name)) for name in sorted(RUN)]


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a backbone, an adapter with its run, packaged tasks: made once, copied for each page."""
    desk = tmp_path_factory.mktemp("desk")
    write_photos(desk / "photos", COLOURS, 14, "{}.jpg")
    (desk / "tiny").mkdir()
    backbone = write_backbone(desk / "tiny")
    write_suite(desk / "cache", ("fashion", "silhouettes"))
    settings = ["--set", "calibration_steps=2", "--augmentation", "none", "--precision", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        run(["fit", "photos", "--backbone", backbone, "--out", "trained", "--epochs", "1", *settings])
    return desk


@pytest.fixture
def reader(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Reader:
    """A reader in a folder of their own, with what the page takes for granted."""
    page: Path = request.getfixturevalue("page")
    shutil.copytree(desk / "photos", tmp_path / "photos")
    if page.name not in MAKES_ITS_OWN:
        for name in ADAPTERS:
            shutil.copytree(desk / "trained", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIAPT_CACHE", str(desk / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return Reader(f"local-dir:{desk / 'tiny'}", processes=page.name in REAL)


def test_each_page_with_code_is_run_or_said_not_to_be() -> None:
    assert not RUN & NOT_YET_RUN
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page)} == RUN | NOT_YET_RUN


@pytest.mark.parametrize("page", READ)
def test_the_page_does_what_it_says(page: Path, reader: Reader) -> None:
    reader.read(page)
    assert reader.ran or reader.skipped
    assert all(len(reason.split()) >= 3 for reason in reader.skipped), "a block is left out for no reason"

"""The code blocks of the documents do what the documents say; `document_cases.py` tells how they are run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bench_cases import write_suite
from cli_cases import write_backbone, write_photos
from document_cases import Reader
from document_commands import ROOT, run
from hub_cases import hub_in_use
from viapt.cli import app

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LANGUAGES = {"python", "sh", "text"}  # what a reader runs or compares
ELSEWHERE = {"README.md": "test_readme.py"}  # page -> the test that runs it
RESULTS = ROOT / "docs" / "results" / "README.md"  # its commands take hours
COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}

# What pages take for granted: adapters that somebody trained, and other files.
ADAPTERS = ("ADAPTER", "adapter", "runs/photos", "runs/cells", "runs/birds", "runs/birds-2")
MAKES_ITS_OWN = ("index.md", "quickstart.md", "tutorial.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """What exports or compiles runs without shape checks."""
    code = "".join(content for _, content in blocks(page))
    return [pytest.mark.compiled] if re.search(r"\bexport\b|COMPILED", code) else []


READ = [
    pytest.param(page, id=page.name, marks=marks(page))
    for page in PAGES
    if blocks(page) and page.relative_to(ROOT).as_posix() not in ELSEWHERE
]


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a backbone, an adapter with its run, packaged tasks: made once, copied for each page."""
    desk = tmp_path_factory.mktemp("desk")
    write_photos(desk / "photos", COLOURS, 14, "{}.jpg")
    (desk / "tiny").mkdir()
    backbone = write_backbone(desk / "tiny")
    write_suite(desk / "cache", ("fashion", "azimuth"))
    settings = ["--set", "calibration_steps=2", "--augmentation", "none", "--precision", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        run(["fit", "photos", "--backbone", backbone, "--out", "trained", "--epochs", "1", *settings])
    return desk


@pytest.fixture
def reader(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Reader]:
    """A reader in a folder of their own, with what the page takes for granted."""
    page: Path = request.getfixturevalue("page")
    shutil.copytree(desk / "photos", tmp_path / "photos")
    if page.name not in MAKES_ITS_OWN:
        for name in ADAPTERS:
            shutil.copytree(desk / "trained", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIAPT_CACHE", str(desk / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with hub_in_use(tmp_path / "hub", monkeypatch):
        yield Reader(f"local-dir:{desk / 'tiny'}")


@pytest.mark.parametrize("page", READ)
def test_no_block_is_passed_over(page: Path) -> None:
    assert {language for language, _ in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_other_pages_have_tests_of_their_own(page: str, test: str) -> None:
    assert blocks(ROOT / page) and f'"{page}"' in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # of the Trainer, without a GPU
@pytest.mark.parametrize("page", READ)
def test_the_page_does_what_it_says(page: Path, reader: Reader) -> None:
    reader.read(page)
    assert reader.ran or reader.skipped
    assert all(len(reason.split()) >= 3 for reason in reader.skipped), "a block is left out for no reason"


def parse(words: list[str]) -> None:
    """Let a command read its arguments, and do nothing.

    Raises:
        Exception: there is no such command, option or value.
    """
    command: Any = typer.main.get_command(app)
    name, *words = words
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


def test_the_commands_behind_the_results_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RESULTS.parent)
    lines = [line for language, block in blocks(RESULTS) if language == "sh" for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert len(commands) > 10 and {command[0] for command in commands} == {"viapt"}
    for command in commands:
        parse(command)
    with pytest.raises(Exception, match="No such option"):
        parse([*commands[0], "--no-such"])

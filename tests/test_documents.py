"""Links in the documents lead somewhere: files that are there, headings that they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def prose(text: str) -> str:
    """A document without its blocks of code, in which brackets mean something else."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Targets of links and pictures within the repository."""
    targets = re.findall(r"\]\(([^()\s]+)\)", prose(text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What headings are called in links, by the rule of GitHub."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(target: str, folder: Path, own: str) -> bool:
    """Whether a link from a document of this text, in this folder, leads nowhere."""
    name, _, anchor = target.partition("#")
    path = (folder / name).resolve()
    if name and not (path.exists() and path.is_relative_to(ROOT.resolve())):
        return True
    return bool(anchor) and anchor not in anchors(path.read_text(encoding="utf-8") if name else own)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not [target for target in links(text) if broken(target, document.parent, text)]


def test_there_are_links_and_headings_to_check() -> None:
    found = [target for document in DOCUMENTS for target in links(document.read_text(encoding="utf-8"))]
    assert len(found) > 20 and any("#" in target for target in found)


def test_broken_links_are_noticed() -> None:
    text = "# The `one`, and only\n[a](b.md) [c](#the-one-and-only) [d](README.md#why)\n```\n[e](f.md)\n```\n"
    assert links(text) == ["b.md", "#the-one-and-only", "README.md#why"]
    assert [broken(target, ROOT, text) for target in links(text)] == [True, False, False]
    assert broken("README.md#nowhere", ROOT, text) and broken("#only", ROOT, text) and broken("../x", ROOT, text)


def test_documents_that_the_code_names_are_there() -> None:
    named = {
        name for source in SOURCES for name in re.findall(r"\bdocs/[\w-]+\.md\b", source.read_text(encoding="utf-8"))
    }
    assert named and not [name for name in named if not (ROOT / name).is_file()]

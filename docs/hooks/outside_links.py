"""Links to files that are no pages (sources, tests, results) lead to copies of these files on the site, as text."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from root_pages import PAGES

HOME = "index.md"
LINK = re.compile(r"\]\(([^()\s:#]+)(#[\w-]+)?\)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that leave the folder of documents; mkdocs finds those to what is not there."""
    root = Path(config.config_file_path).parent
    inside = Path(config.docs_dir).relative_to(root).as_posix()
    here = "" if page.file.src_uri in PAGES else posixpath.join(inside, posixpath.dirname(page.file.src_uri))

    def rewritten(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        path = posixpath.normpath(posixpath.join(here, target))
        if files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))):
            return found[0]
        if path == "README.md":
            return f"]({relative(page, HOME)})"
        if (generated := {source: name for name, source in PAGES.items()}.get(path)) is not None:
            return f"]({relative(page, generated)}{anchor})"
        if not (root / path).is_file():
            return found[0]
        return f"]({relative(page, copied(root, path, config, files).src_uri)})"

    return LINK.sub(rewritten, markdown)


def copied(root: Path, path: str, config: MkDocsConfig, files: Files) -> File:
    """A file of the repository as a file of the site, under a name that browsers show instead of storing it."""
    name = f"files/{path}" + ("" if path.endswith((".json", ".txt", ".csv")) else ".txt")
    if (file := files.get_file_from_path(name)) is None:
        file = File.generated(config, name, content=(root / path).read_bytes())
        files.append(file)
    return file


def relative(page: Page, target: str) -> str:
    """From a page to another file of the site."""
    return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

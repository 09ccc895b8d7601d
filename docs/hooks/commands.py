"""The page of all commands, made from the commands themselves: what `--help` says, with every option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from viapt.cli import app

PAGE = "commands.md"
INTRODUCTION = """# Commands

This page is made from the commands themselves; `viapt COMMAND --help` says the same. Mistakes are answered in one
paragraph with exit code 2; `--debug` shows the traceback, with every command.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, PAGE, content=INTRODUCTION + "\n".join(described(get_command(app), "viapt"))))
    return files


def described(command: Any, name: str, parent: Any = None) -> Iterator[str]:
    """Markdown of a command; of a group, that of its commands after its own."""
    context = typer.Context(command, info_name=name.split()[-1], parent=parent)
    group = getattr(command, "commands", {})
    if parent is not None:
        yield f"\n## {name}\n\n{cell(command.help or '')}\n"
        usage = command.get_usage(context).removeprefix("Usage: ")
        yield f"```text\n{' '.join(usage.split())}\n```\n"
        yield from tables(command, context)
    for part, inner in group.items():
        yield from described(inner, f"{name} {part}", context)


def tables(command: Any, context: Any) -> Iterator[str]:
    """A table of the arguments, and one for each panel of options."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        record = None if parameter.hidden else parameter.get_help_record(context)
        if record is not None:
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(parameter.rich_help_panel or kind, []).append(record)
    for panel, records in panels.items():
        yield f"\n| {panel} | |\n|---|---|"
        yield from (f"| {code(left)} | {cell(right)} |" for left, right in records)
    yield ""


def code(text: str) -> str:
    """Verbatim in a cell of a table."""
    return "<code>" + escaped(text).replace("|", "&#124;") + "</code>"


def cell(text: str) -> str:
    """Prose in one line; Markdown takes nothing in it for its own but code and documents, which become links."""
    line = escaped(" ".join(text.split())).replace("|", "&#124;").replace("*", "&#42;").replace("[", "&#91;")
    return re.sub(r"\bdocs/([\w-]+)\.md", r"[\1](\1.md)", line)


def escaped(text: str) -> str:
    """Text that HTML takes as it stands."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""What is printed: tables and lines on standard output, remarks on standard error."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def show(*parts: Table | str) -> None:
    """Print tables and lines, nothing of it interpreted as markup: as wide as the terminal, or as long as they are."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def say(*lines: str) -> None:
    """Lines on standard error, where they do not mix with results."""
    for line in lines:
        print(line, file=sys.stderr)

"""`viapt bench report`: tables, tests and pictures of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    source: Annotated[Path, typer.Argument(help="Folder of results, or a file that `viapt bench export` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; files of an earlier one are replaced.")],
    reference: Annotated[str, typer.Option(help="Method that all others are compared with.")] = "viapt",
    part: Annotated[Literal["test", "val"], typer.Option(help="The part of the splits that counts.")] = "test",
    max_parameters: Annotated[
        int | None, typer.Option(min=0, help="Leave out methods that learn more numbers, heads not counted.")
    ] = None,
) -> None:
    """Write report.md, report.html, and tables as CSV and LaTeX: means, paired tests, ranks, cost."""
    from viapt.bench.results import report_on

    for path in report_on(source, out, reference, part, max_parameters):
        print(path)

"""`viapt bench report`: tables, tests and pictures of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    source: Annotated[Path, typer.Argument(help='JSON file with a list "scores" and a "protocol".')],
    out: Annotated[Path, typer.Option(help="Folder for the report; files of an earlier one are replaced.")],
    reference: Annotated[str, typer.Option(help="Method that all others are compared with.")] = "viapt",
    part: Annotated[Literal["test", "val"], typer.Option(help="The part of the splits that counts.")] = "test",
) -> None:
    """Write report.md, report.html, and tables as CSV and LaTeX: means, paired tests, ranks, cost."""
    from viapt.bench.publish import read_scores, write_report

    scores, protocol = read_scores(source)
    for path in write_report(scores, out, reference, protocol, part=part):
        print(path)

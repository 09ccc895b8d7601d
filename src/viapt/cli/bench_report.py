"""`viapt bench report`: tables, tests and pictures of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
    from viapt.bench.publish import write_report
    from viapt.bench.records import load_records, scores_of, stored_records
    from viapt.bench.results import incomplete, run_facts

    protocol, records = stored_records(source) if source.is_dir() else load_records(source)
    scores = scores_of(protocol, records)
    try:
        facts = run_facts(protocol, records, source.stem) | protocol.to_dict()
    except (KeyError, TypeError) as error:
        raise incomplete(source, error) from error
    options: dict[str, Any] = {"part": part, "max_parameters": max_parameters, "records": records}
    for path in write_report(scores, out, reference, facts, **options):
        print(path)

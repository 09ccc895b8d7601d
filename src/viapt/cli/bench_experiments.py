"""`viapt bench corner-cases | kept-dim | ...`: experiments from jobs to pages; `viapt bench results`: all pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viapt.cli.bench_jobs import FAILED, carry_out
from viapt.cli.bench_options import Asked, options, what_option
from viapt.errors import ConfigError

if TYPE_CHECKING:
    from viapt.bench.experiments import Experiment
    from viapt.bench.plan import Problems
    from viapt.bench.protocol import Protocol

HELP = {
    "corner-cases": "Is ViaPT with m = 0 VPT-Deep, and with m = d VPT-Shallow, to the last digit?",
    "kept-dim": "Which m is the best?",
    "inference": "What do sampling policies change: accuracy, its spread, calibration, cost?",
    "generator": "Which generator is the best; are sampling and instance-awareness worth anything?",
    "reduction": "Is PCA better than random; which way to find the kept subspace is the best?",
    "structured": "Which method learns geometry?",
}
WIDTH = 384  # for problems of entrants, where the backbone is one of the problems
RESULTS = Path("docs/results")


def experiment(name: str) -> Callable[..., None]:
    """The command of an experiment."""

    def command(
        out: Annotated[
            Path | None, what_option(help="Folder of jobs; the same command goes on where it stopped.")
        ] = None,
        source: Annotated[
            Path | None,
            what_option("--from", help="Run nothing: a folder of jobs, or the records in a folder of results."),
        ] = None,
        results: Annotated[Path, what_option(help="Folder for records, page and pictures.")] = RESULTS,
        replace: Annotated[
            bool,
            what_option("--replace", help="Also records there that the new ones lack, or that have another protocol."),
        ] = False,
        *,
        asked: Asked,
    ) -> None:
        from viapt.bench.experiments import EXPERIMENTS
        from viapt.bench.results import publish
        from viapt.bench.store import Store

        origin, failed = check_source(out, source, asked), 0
        if out is not None:
            failed = run_jobs(EXPERIMENTS[name], out, asked, None if replace else results / f"{name}.json")
            with Store(out) as store:
                if not store.records():
                    raise typer.Exit(FAILED)
        for path in publish(EXPERIMENTS[name], origin, results, overwrite=replace):
            print(path)
        if failed:
            raise typer.Exit(FAILED)

    return command


def check_source(out: Path | None, source: Path | None, asked: Asked) -> Path:
    """Where the records come from; refuse neither and both, and options without effect.

    Raises:
        ConfigError: naming them.
    """
    if out is not None and source is None:
        return out
    if source is None or out is not None:
        raise ConfigError(
            "Neither --out nor --from" if out is None else "Both --out and --from",
            expected="--out DIR to do the jobs, or --from RECORDS to make the page from what is there",
        )
    if not source.exists():
        raise ConfigError(f"--from {source}: nothing is there", expected="a folder of jobs, or a file of records")
    idle = [f"--{option.name.replace('_', '-')}" for option in options() if option.name in asked.named]
    if idle:
        raise ConfigError(f"With --from, {', '.join(idle)} has no effect", remedy="leave it out")
    return source


def run_jobs(chosen: Experiment, out: Path, asked: Asked, kept: Path | None) -> int:
    """Check everything, then do the jobs; how many failed.

    Args:
        kept: a file of records that will be kept, so that those of another protocol could not be published.
    """
    from rich.console import Console

    from viapt.bench.plan import Problems, make_plan
    from viapt.bench.results import check_protocol, check_results
    from viapt.bench.runner import continued

    problems = Problems()
    protocol = continued(asked.protocol(problems, **chosen.protocol), out, problems)
    with problems.collected():
        if kept and not problems.found:
            check_protocol(protocol, kept)
    place = asked.place(problems)
    with problems.collected():
        check_results()
    tasks, seeds = asked.tasks or list(chosen.tasks), asked.seeds or list(chosen.seeds)
    entrants = chosen.design(width_of(protocol, tasks[0], problems)).entrants
    console, device = Console(stderr=True, highlight=False), place.device if place else None
    plan = make_plan(protocol, entrants, tasks, seeds, problems, console, device)
    if kept:
        check_protocol(plan.protocol, kept)  # now that its precision is decided
    assert place is not None
    return carry_out(plan, out, place)


def width_of(protocol: Protocol, task: str, problems: Problems) -> int:
    """The backbone's d; a usual one, and a problem noted, where there is no backbone."""
    from viapt.backbones import create_backbone

    with problems.collected():
        size = protocol.image_size_of(task)
        return create_backbone(protocol.backbone, weights=protocol.weights, image_size=size).dim
    return WIDTH


def results(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of results.")] = RESULTS,
) -> None:
    """Make the pages of all experiments, the reports that are there, and the index, from the records in a folder."""
    from viapt.bench.experiments import EXPERIMENTS
    from viapt.bench.results import check_results, write_index, write_page, write_reports

    check_results()
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}", expected="a folder of results")
    for name, chosen in EXPERIMENTS.items():
        path = folder / f"{name}.json"
        if path.exists():
            print(write_page(chosen, path))
    for path in write_reports(folder):
        print(path)
    print(write_index(folder))

"""`viapt bench run | show | export | restore`: methods compared on the packaged suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viapt.cli.bench_experiments import HELP, experiment, results
from viapt.cli.bench_jobs import FAILED, carry_out, show_folder
from viapt.cli.bench_options import Asked, ManyValues, what_option, with_options
from viapt.cli.bench_report import report
from viapt.cli.bench_suite import SuiteOption, suite

if TYPE_CHECKING:
    from viapt.bench.entrants import Entrant
    from viapt.bench.plan import Problems
    from viapt.bench.store import Failure

app = typer.Typer(
    cls=SuiteOption,
    help="Compare methods on tasks, with equal budgets: commands, or --suite vtab-1k|fgvc|hta (see suite).",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")]


@app.command(cls=ManyValues)
@with_options
def run(
    out: Annotated[Path, what_option(help="Folder of results; the same command goes on where it stopped.")],
    methods: Annotated[
        list[str] | None,
        what_option(
            help="NAME or 'NAME:key=value;...': arguments of the method; lr, weight_decay, warmup_epochs, clip; and of "
            "e2vpt prune_tokens, prune_segments."
        ),
    ] = None,
    *,
    asked: Asked,
) -> None:
    """Every method on every task with every seed; what is done already is skipped, what failed is tried again.

    All tasks and the seeds 0 1 2 unless something else is said. Exit code 1: some jobs failed, and are listed with
    their cause.
    """
    from rich.console import Console

    from viapt.bench.plan import Problems, make_plan
    from viapt.bench.runner import continued
    from viapt.data.packaged import list_tasks

    problems = Problems()
    protocol, place = continued(asked.protocol(problems), out, problems), asked.place(problems)
    entrants = parse_all(methods or ["linear", "vpt-deep", "viapt"], parse_entrant, problems)
    names, seeds = asked.tasks or list_tasks(), asked.seeds or [0, 1, 2]
    console, device = Console(stderr=True, highlight=False), place.device if place else None
    plan = make_plan(protocol, entrants, names, seeds, problems, console, device)
    assert place is not None
    if carry_out(plan, out, place):
        raise typer.Exit(FAILED)


@app.command()
def show(folder: Folder) -> None:
    """What is done, what failed and why, what is open; mean ± standard deviation over seeds, by method and task."""
    from viapt.bench.shown import by_cause
    from viapt.bench.store import Store
    from viapt.tables import say

    with Store(folder) as store:
        show_folder(store)
        failures = store.failures()
    for word, has_job in (("Failed", True), ("No job", False)):
        mine = [failure for failure in failures if failure.has_job == has_job]
        say(*(f"{word}: {line}" for line in by_cause((one.cell, told(one)) for one in mine)))


@app.command()
def export(
    folder: Folder,
    json: Annotated[Path, typer.Option("--json", help="The file to write.")],
) -> None:
    """All records as one small JSON file, from which tables can be made again."""
    from viapt.bench.records import export as write
    from viapt.bench.store import Store

    with Store(folder) as store:
        count = write(store, json)
    print(f"{json}: {count} record{'' if count == 1 else 's'}")


@app.command()
def restore(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `viapt bench export` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of results, to be made.")],
) -> None:
    """Make a folder from exported records: to go on with a table on another machine, or to join parts of it."""
    from viapt.bench.records import restore as write

    count = write(files, out)
    print(f"{out}: {count} record{'' if count == 1 else 's'}")


app.command()(report)
for name, text in HELP.items():
    app.command(name, help=text, cls=ManyValues)(with_options(experiment(name)))
app.command()(results)
app.command(cls=ManyValues)(suite)


def told(failure: Failure) -> str:
    """Why, and how often if it was more than once."""
    return failure.cause + (f" ({failure.times} times)" if failure.times > 1 else "")


def parse_all(texts: list[str], parse: Callable[[str], Any], problems: Problems) -> list[Any]:
    """Everything that can be read; what cannot is noted."""
    found = []
    for text in texts:
        with problems.collected():
            found.append(parse(text))
    return found


def parse_entrant(text: str) -> Entrant:
    """ "viapt:kept_dim=64;lr=0.01" to a method with its settings.

    Raises:
        ConfigError: unknown method; or all settings that are unknown, given twice, or whose values do not fit.
    """
    from viapt.bench.entrants import Entrant, training_settings
    from viapt.cli.settings import parse_settings

    method, colon, rest = text.partition(":")
    settings = [setting.strip() for setting in rest.split(";")] if colon else []
    values = parse_settings(settings, method, option=f"{text}:", more=training_settings(method))
    return Entrant(method).at(values)

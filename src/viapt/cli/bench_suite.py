"""`viapt bench --suite`: a published protocol on the tasks of a suite, read from the user's own copies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from viapt.cli.bench_options import Address, EngineName, Gpus, Threads, Workers
from viapt.errors import ConfigError

if TYPE_CHECKING:
    from viapt.bench.plan import Plan, Problems
    from viapt.bench.protocol import Protocol

Suite = Literal["vtab-1k", "fgvc", "hta"]

protocol_option = partial(typer.Option, rich_help_panel="Changes to the protocol, which the results then name")


class SuiteOption(TyperGroup):
    """Commands of which `suite NAME` may also be written as an option: `viapt bench --suite NAME ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, suite_first(args))


def suite_first(args: list[str]) -> list[str]:
    """`--suite NAME` or `--suite=NAME` among options without a command becomes the command `suite NAME`."""
    place = next((i for i, argument in enumerate(args) if argument.partition("=")[0] == "--suite"), None)
    if place is None or not args[0].startswith("-"):
        return args
    _, equals, name = args[place].partition("=")
    rest = place + 1 if equals else place + 2
    return ["suite", *([name] if equals else args[place + 1 : rest]), *args[:place], *args[rest:]]


def suite(
    name: Annotated[Suite, typer.Argument(metavar="SUITE", help="vtab-1k, fgvc or hta.")],
    out: Annotated[Path, typer.Option(help="Folder of results; the same command goes on where it stopped.")],
    root: Annotated[
        Path, typer.Option(envvar="VIAPT_TASKS", help="Folder in which the data sets lie: see viapt data check.")
    ],
    methods: Annotated[list[str] | None, typer.Option(help="As for viapt bench run.")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="Some tasks of the suite (default: all).")] = None,
    backbone: Annotated[str, typer.Option(help="See viapt fit.")] = "vit_base_patch16_224.augreg_in21k",
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, a .safetensors file.")] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels.")] = 224,
    precision: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the frozen backbone.")] = "auto",
    protocol: Annotated[
        Literal["vtab-1k", "fgvc", "hta", "full"] | None,
        protocol_option(help="Another one than the suite's: see docs/benchmarks.md."),
    ] = None,
    normalization: Annotated[
        Literal["weights", "imagenet", "inception", "none"] | None, protocol_option(help="Of images.")
    ] = None,
    seeds: Annotated[list[int] | None, protocol_option(help="Of the reported runs.")] = None,
    epochs: Annotated[int | None, protocol_option(help="Of every training.")] = None,
    batch_size: Annotated[int | None, protocol_option(help="Images in an optimizer step.")] = None,
    grid: Annotated[Literal["vpt", "adamw"] | None, protocol_option(help="What is searched.")] = None,
    trials: Annotated[
        int | None, protocol_option(help="Points tried instead of the whole grid; 0 searches nothing.")
    ] = None,
    workers: Workers = None,
    threads: Threads = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus: Gpus = None,
) -> None:
    """Search on validation images, train again with every seed, read the test images once: as a suite's protocol says.

    Tasks that are not below the root are listed, and means name the number of tasks that they are over. Exit code 1:
    some jobs failed.
    """
    from viapt.bench.plan import Problems
    from viapt.bench.runner import continued
    from viapt.cli.bench_jobs import FAILED, carry_out
    from viapt.cli.bench_options import make_engine

    changes: dict[str, Any] = {
        "normalization": normalization,
        "seeds": tuple(seeds) if seeds else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "grid": grid,
    }
    settings = {
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "image_size": image_size,
        "precision": precision,
        "trials": trials,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    problems, place = Problems(), None
    with problems.collected():
        place = make_engine(engine, workers, threads, address, gpus)
    chosen = continued(protocol_of(name, protocol or name, changes, settings, problems), out, problems)
    plan = plan_of(name, root, methods, tasks, chosen, problems, place.device if place else None)
    assert place is not None
    if carry_out(plan, out, place):
        raise typer.Exit(FAILED)


def protocol_of(
    suite: str, name: str, changes: dict[str, Any], settings: dict[str, Any], problems: Problems
) -> Protocol:
    """The laboratory's protocol; what is out of range is noted, and stays as it was published."""
    from viapt.bench.protocol import Protocol, violations
    from viapt.bench.suites import suite_protocol

    with problems.collected(replaces=vars(Protocol()).keys() - settings.keys() | {"trials"}):
        return suite_protocol(suite, name, changes, settings)
    wrong = violations(vars(Protocol()) | changes | {"trials": settings["trials"] or 0})
    possible = {key: value for key, value in changes.items() if key not in wrong}
    return suite_protocol(suite, name, possible, settings | ({"trials": None} if "trials" in wrong else {}))


def plan_of(
    name: str,
    root: Path,
    methods: list[str] | None,
    tasks: list[str] | None,
    protocol: Protocol,
    problems: Problems,
    device: str | None,
) -> Plan:
    """What will be done, checked.

    Raises:
        ConfigError: with all problems, those that were found before among them.
        DataError: the root holds no task of the suite.
    """
    import os

    from viapt.bench.plan import make_plan
    from viapt.bench.task_data import ROOT
    from viapt.cli.bench import parse_all, parse_entrant
    from viapt.data.benchmarks import SUITES
    from viapt.data.benchmarks.loading import check_root

    with problems.collected():
        check_root(root)
    os.environ[ROOT] = str(root.resolve())  # for the processes that do the jobs
    names = parse_all(tasks or list(SUITES[name]), partial(within, suite=name), problems)
    entrants = parse_all(methods or ["linear", "vpt-deep", "viapt"], parse_entrant, problems)
    assert protocol.suite is not None
    seeds = protocol.suite["seeds"]
    return make_plan(protocol, entrants, names, seeds, problems, device=device)


def within(task: str, suite: str) -> str:
    """The full name of a task of this suite.

    Raises:
        ConfigError: it has no such task.
    """
    from viapt.data.benchmarks import SUITES
    from viapt.errors import did_you_mean

    full = task if "/" in task else f"{suite}/{task}"
    if full not in SUITES[suite]:
        raise ConfigError(
            f"{suite} has no task {task!r}",
            expected=f"one of {', '.join(name.partition('/')[2] for name in SUITES[suite])}",
            remedy=did_you_mean(full, SUITES[suite]),
        )
    return full

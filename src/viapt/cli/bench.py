"""`viapt bench run | show | export`: methods compared on the packaged suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from viapt.cli.bench_report import report
from viapt.cli.bench_suite import suite
from viapt.errors import ConfigError

if TYPE_CHECKING:
    from viapt.bench.engines import Engine
    from viapt.bench.entrants import Entrant
    from viapt.bench.plan import Plan, Problems
    from viapt.bench.store import Store

FAILED = 1

app = typer.Typer(help="Compare methods on tasks, with equal budgets.", no_args_is_help=True)

what_option = partial(typer.Option, rich_help_panel="What")
protocol_option = partial(typer.Option, rich_help_panel="Protocol: one for each folder")
search_option = partial(typer.Option, rich_help_panel="Search")
engine_option = partial(typer.Option, rich_help_panel="Where")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")]


class ManyValues(TyperCommand):
    """Options that may be given several times also take several values: `--tasks elpv fashion`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option = ""
        for argument in args:
            if argument.startswith("--"):
                option = argument if argument in many else ""
                spread += [] if option else [argument]
            else:
                spread += [option, argument] if option else [argument]
        return super().parse_args(ctx, spread)


@app.command(cls=ManyValues)
def run(
    out: Annotated[Path, what_option(help="Folder of results; the same command goes on where it stopped.")],
    methods: Annotated[
        list[str] | None,
        what_option(
            help="NAME or 'NAME:key=value;...': arguments of the method, lr, weight_decay, warmup_epochs, clip."
        ),
    ] = None,
    tasks: Annotated[list[str] | None, what_option(help="Of the packaged suite (default: all).")] = None,
    seeds: Annotated[list[int] | None, what_option(help="Of initial values, order and noise (default: 0 1 2).")] = None,
    read_test: Annotated[
        bool, what_option("--read-test", help="Read the test split, once for each method, task and seed.")
    ] = False,
    backbone: Annotated[str, protocol_option(help="See viapt fit.")] = "packaged:vits14",
    weights: Annotated[Path | None, protocol_option(help="Weights of the backbone, a .safetensors file.")] = None,
    image_size: Annotated[list[str] | None, protocol_option(help="SIDE, or TASK=SIDE (default: 98).")] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], protocol_option(help="Of the frozen backbone; auto is decided once.")
    ] = "auto",
    train: Annotated[int, protocol_option(help="Training images, at most.")] = 800,
    val: Annotated[int, protocol_option(help="Validation images, at most.")] = 200,
    test: Annotated[int, protocol_option(help="Test images, at most; set aside even if they are not read.")] = 2000,
    split_seed: Annotated[int, protocol_option(help="Of the split.")] = 0,
    epochs: Annotated[int, protocol_option(help="Of every training.")] = 10,
    batch_size: Annotated[int, protocol_option(help="Images in an optimizer step.")] = 32,
    weight_decay: Annotated[float, protocol_option(help="Of matrices.")] = 0.01,
    warmup_epochs: Annotated[float | None, protocol_option(help="Of warm-up (default: a tenth of all).")] = None,
    clip: Annotated[float | None, protocol_option(help="Largest norm of the gradient (default: none).")] = None,
    selection: Annotated[Literal["last", "best-val"], protocol_option(help="Which weights to keep.")] = "last",
    augmentation: Annotated[str, protocol_option(help="none, light, standard or strong.")] = "none",
    metric: Annotated[
        Literal["accuracy", "mean_per_class_accuracy"], protocol_option(help="What is compared and searched for.")
    ] = "accuracy",
    trials: Annotated[int, search_option(help="Points tried for each method and task, on validation images.")] = 0,
    search: Annotated[
        list[str] | None,
        search_option(
            help="[METHOD.]NAME=LOW..HIGH, LOW..HIGH:log or A,B,C "
            "(default: lr=0.0005..0.05:log weight_decay=0.0001..0.1:log)."
        ),
    ] = None,
    search_seed: Annotated[int, search_option(help="Of the search and its trainings.")] = 0,
    workers: Annotated[int, engine_option(help="Jobs at a time, each a process.")] = 1,
    threads: Annotated[int | None, engine_option(help="Of each (default: all cores, shared by the workers).")] = None,
    engine: Annotated[Literal["local", "ray"], engine_option(help="This machine, or a Ray cluster.")] = "local",
    address: Annotated[str | None, engine_option(help="Of a Ray cluster (default: one on this machine).")] = None,
    gpus: Annotated[float | None, engine_option(help="GPUs of a job on Ray (default: none).")] = None,
) -> None:
    """Every method on every task with every seed; what is done already is skipped, what failed is tried again.

    Exit code 1: some jobs failed, and are listed with their cause.
    """
    from viapt.bench.plan import Problems, make_plan
    from viapt.bench.protocol import Protocol
    from viapt.bench.runner import continued
    from viapt.data.packaged import list_tasks

    problems = Problems()
    names = tasks or list_tasks()
    protocol = Protocol()
    with problems.collected():
        protocol = Protocol(
            backbone=backbone,
            weights=str(weights) if weights else None,
            **parse_sizes(image_size or [], problems),
            precision=precision,
            train=train,
            val=val,
            test=test,
            split_seed=split_seed,
            epochs=epochs,
            batch_size=batch_size,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            clip=clip,
            selection=selection,
            augmentation=augmentation,
            metric=metric,
            read_test=read_test,
            trials=trials,
            space=parse_space(search or [], problems),
            search_seed=search_seed,
        )
    entrants = parse_all(methods or ["linear", "vpt-deep", "viapt"], parse_entrant, problems)
    plan = make_plan(continued(protocol, out), entrants, names, seeds or [0, 1, 2], problems)
    raise typer.Exit(carry_out(plan, out, make_engine(engine, workers, threads, address, gpus)))


def carry_out(plan: Plan, out: Path, place: Engine) -> int:
    """Do the jobs of a plan, and show how it goes and what came of it; the exit code."""
    from rich.console import Console

    from viapt.bench.runner import run as run_plan
    from viapt.bench.shown import Display
    from viapt.bench.store import Store
    from viapt.tables import say

    for reason in plan.unavailable.values():
        say(f"Not available: {reason}")
    console = Console(stderr=True, highlight=False)
    with Store(out, create=True) as store:
        with Display(store, plan.protocol, console) as display:
            progress = run_plan(plan, out, place, display.observe)
        show_folder(store)
    for cell, cause in progress.causes.items():
        say(f"Failed: {cell}: {cause}")
    return FAILED if progress.failed else 0


@app.command()
def show(folder: Folder) -> None:
    """What is done, what failed and why, what is open; mean ± standard deviation over seeds, by method and task."""
    from viapt.bench.store import Store
    from viapt.tables import say

    with Store(folder) as store:
        show_folder(store)
        failures = store.failures()
    for failure in failures:
        times = f" ({failure.times} times)" if failure.times > 1 else ""
        say(f"Failed{times}: {failure.cell}: {failure.cause}")


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


app.command()(report)
app.command(cls=ManyValues)(suite)


def show_folder(store: Store) -> None:
    """The table of a folder, and how far it is."""
    from viapt.bench.shown import heading, remarks, summary
    from viapt.tables import show as print_out

    protocol = store.protocol()
    if protocol is None:
        print_out("nothing was begun")
        return
    records = store.records()
    state = f"{len(records)} done, {len(store.failures())} failed, {len(store.open_cells())} open"
    print_out(heading(protocol), summary(store, protocol), *remarks(records), state)


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
        ConfigError: unknown method or setting, or a value that does not fit.
    """
    from viapt.bench.entrants import Entrant
    from viapt.bench.protocol import TRAINING
    from viapt.cli.settings import convert, describe, parse_settings
    from viapt.methods import method_class

    method, colon, rest = text.partition(":")
    method_class(method)
    settings = [setting.strip() for setting in rest.split(";")] if colon else []
    own = [setting for setting in settings if setting.partition("=")[0] in TRAINING]
    training: dict[str, Any] = {}
    for setting in own:
        name, _, value = setting.partition("=")
        if name in training:
            raise ConfigError(f"{text}: {name} is given twice", expected="each once")
        try:
            training[name] = convert(value, TRAINING[name])
        except ValueError:
            raise ConfigError(f"{text}: {setting}", expected=f"for {name}, {describe(TRAINING[name])}") from None
    options = parse_settings([setting for setting in settings if setting not in own], method, option=f"{text}:")
    return Entrant(method, options, training)


def parse_sizes(texts: list[str], problems: Problems) -> dict[str, Any]:
    """["70", "elpv=98"] to the two settings of a protocol; what cannot be read is noted."""
    sizes: dict[str, Any] = {"image_sizes": {}}
    for text in texts:
        task, equals, side = text.rpartition("=")
        with problems.collected():
            if not side.isdecimal() or bool(equals) != bool(task):
                raise ConfigError(f"--image-size {text}", expected="SIDE, or TASK=SIDE, in pixels")
            if task in sizes["image_sizes"] or (not task and "image_size" in sizes):
                raise ConfigError(f"--image-size {text}: given twice", expected="each once")
            if task:
                sizes["image_sizes"][task] = int(side)
            else:
                sizes["image_size"] = int(side)
    return sizes


def parse_space(texts: list[str], problems: Problems) -> dict[str, Any]:
    """["lr=0.001..0.1:log", "viapt.kept_dim=8,16"] to a search space; what cannot be read is noted."""
    from viapt.bench.search import check_space

    space: dict[str, Any] = {}
    for text in texts:
        name, _, values = text.partition("=")
        with problems.collected(f"--search {text}"):
            if name in space:
                raise ConfigError(f"{name} is given twice", expected="each once")
            found = {name: parse_range(values)}
            check_space(found)
            space |= found
    return space


def parse_range(text: str) -> dict[str, Any]:
    """ "0.001..0.1:log" or "8,16,none" to a range.

    Raises:
        ConfigError: it is neither.
    """
    low, dots, high = text.partition("..")
    high, colon, scale = high.partition(":")
    if not dots:
        return {"choices": [value_of(part.strip()) for part in text.split(",")]}
    ends = value_of(low), value_of(high)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends) or (colon and scale != "log"):
        raise ConfigError(f"{text!r} is no range", expected="LOW..HIGH, LOW..HIGH:log, or A,B,C")
    return {"low": ends[0], "high": ends[1], "log": bool(colon)}


def value_of(text: str) -> Any:
    """A whole number, a number, true, false, none or text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def make_engine(name: str, workers: int, threads: int | None, address: str | None, gpus: float | None) -> Engine:
    """The engine that was asked for.

    Raises:
        ConfigError: options without effect, or out of range; Ray is not installed.
    """
    import os

    from viapt.bench.engines import LocalEngine, RayEngine

    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"--workers {workers} --threads {threads}", expected="1 or more")
    each = threads or max(1, (os.cpu_count() or 1) // workers)
    if name == "ray":
        return RayEngine(address, workers, each, gpus or 0.0)
    for option, value in (("--address", address), ("--gpus", gpus)):
        if value is not None:
            raise ConfigError(f"{option} has no effect with --engine local", remedy="--engine ray")
    return LocalEngine(workers, each)

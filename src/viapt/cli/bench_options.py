"""The options of all commands of the laboratory that do jobs: what, under which protocol, searched how, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from viapt.errors import ConfigError

if TYPE_CHECKING:
    from viapt.bench.engines import Engine
    from viapt.bench.plan import Problems
    from viapt.bench.protocol import Protocol

what_option = partial(typer.Option, rich_help_panel="What")
protocol_option = partial(typer.Option, rich_help_panel="Protocol: one for each folder")
search_option = partial(typer.Option, rich_help_panel="Search")
engine_option = partial(typer.Option, rich_help_panel="Where")

Workers = Annotated[int | None, engine_option(help="Jobs at a time on this machine, each a process (default: 1).")]
Threads = Annotated[
    int | None,
    engine_option(help="Of each (default: all cores, shared by the workers; with --address 1)."),
]
EngineName = Annotated[Literal["local", "ray"], engine_option(help="This machine, or a Ray cluster.")]
Address = Annotated[str | None, engine_option(help="Of a Ray cluster (default: one on this machine).")]
Gpus = Annotated[float | None, engine_option(help="GPUs of a job on Ray (default: none).")]


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


@dataclass(frozen=True)
class Asked:
    """What a user asked for; a field is an option, with its type, help and default."""

    tasks: Annotated[list[str] | None, what_option(help="Of the packaged suite (default: those of the command).")] = (
        None
    )
    seeds: Annotated[
        list[int] | None, what_option(help="Of initial values, order and noise (default: those of the command).")
    ] = None
    read_test: Annotated[
        bool, what_option("--read-test", help="Read the test split, once for each method, task and seed.")
    ] = False
    backbone: Annotated[str, protocol_option(help="See viapt fit.")] = "packaged:vits14"
    weights: Annotated[Path | None, protocol_option(help="Weights of the backbone, a .safetensors file.")] = None
    image_size: Annotated[list[str] | None, protocol_option(help="SIDE, or TASK=SIDE (default: 98).")] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], protocol_option(help="Of the frozen backbone; auto is decided once.")
    ] = "auto"
    train: Annotated[int, protocol_option(help="Training images, at most.")] = 800
    val: Annotated[int, protocol_option(help="Validation images, at most.")] = 200
    test: Annotated[int, protocol_option(help="Test images, at most; set aside even if they are not read.")] = 2000
    split_seed: Annotated[int, protocol_option(help="Of the split.")] = 0
    epochs: Annotated[int, protocol_option(help="Of every training.")] = 10
    batch_size: Annotated[int, protocol_option(help="Images in an optimizer step.")] = 32
    weight_decay: Annotated[float, protocol_option(help="Of matrices.")] = 0.01
    warmup_epochs: Annotated[float | None, protocol_option(help="Of warm-up (default: a tenth of all).")] = None
    clip: Annotated[float | None, protocol_option(help="Largest norm of the gradient (default: none).")] = None
    selection: Annotated[Literal["last", "best-val"], protocol_option(help="Which weights to keep.")] = "last"
    augmentation: Annotated[str, protocol_option(help="none, light, standard or strong.")] = "none"
    metric: Annotated[
        Literal["accuracy", "mean_per_class_accuracy"], protocol_option(help="What is compared and searched for.")
    ] = "accuracy"
    trials: Annotated[int, search_option(help="Points tried for each method and task, on validation images.")] = 0
    search: Annotated[
        list[str] | None,
        search_option(
            help="[METHOD.]NAME=LOW..HIGH, LOW..HIGH:log or A,B,C (default: lr from a tenth to ten times of each "
            "method's own, weight_decay=0.0001..0.1:log)."
        ),
    ] = None
    search_seed: Annotated[int, search_option(help="Of the search and its trainings.")] = 0
    workers: Workers = None
    threads: Threads = None
    engine: EngineName = "local"
    address: Address = None
    gpus: Gpus = None

    named: frozenset[str] = frozenset()
    """The options that the user gave, be it with their defaults; no option itself."""

    def protocol(self, problems: Problems, **usual: Any) -> Protocol:
        """The protocol, with what is usual for a command where the user says nothing else.

        What is wrong is noted, and has its default.
        """
        from viapt.bench.protocol import Protocol

        read = {"image_size", "weights", "search"}
        known = [field.name for field in fields(Protocol) if field.name not in read and hasattr(self, field.name)]
        given = {name: getattr(self, name) for name in known}
        given |= {"weights": str(self.weights) if self.weights else None}
        given |= parse_sizes(self.image_size or [], problems) | {"space": parse_space(self.search or [], problems)}
        given |= {name: value for name, value in usual.items() if name not in self.named}
        with problems.collected():
            return Protocol(**given)
        nearest = Protocol.nearest(given)
        problems.replaced |= {name for name, value in given.items() if getattr(nearest, name) != value}
        return nearest

    def place(self, problems: Problems) -> Engine | None:
        """The engine; None, and a problem noted, if there is none."""
        with problems.collected():
            return make_engine(self.engine, self.workers, self.threads, self.address, self.gpus)
        return None


def options() -> list[Field[Any]]:
    """The fields of `Asked` that are options."""
    return [field for field in fields(Asked) if field.name != "named"]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `asked: Asked` as one that takes the options themselves, after its own."""
    own = inspect.signature(command, eval_str=True).parameters
    hints = get_type_hints(Asked, include_extras=True)
    taken = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(field.name, taken, default=field.default, annotation=hints[field.name]) for field in options()
    ]
    kept = [parameter.replace(kind=taken) for name, parameter in own.items() if name != "asked"]
    context = inspect.Parameter("context", taken, annotation=typer.Context)

    def spread(context: Any, **given: Any) -> None:  # which is what typer takes for its Context
        asked = {field.name: given.pop(field.name) for field in options()}
        named = frozenset(name for name in asked if was_given(context, name))
        command(**given, asked=Asked(**asked, named=named))

    spread.__dict__["__signature__"] = inspect.Signature([context, *kept, *shared])
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in [context, *kept, *shared]}
    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    return spread


def was_given(context: Any, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_sizes(texts: list[str], problems: Problems) -> dict[str, Any]:
    """["70", "elpv=98"] to the two settings of a protocol; what cannot be read is noted."""
    sizes: dict[str, Any] = {"image_sizes": {}}
    for text in texts:
        task, equals, side = text.rpartition("=")
        with problems.collected(replaces=("image_size", "image_sizes")):
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
    from viapt.bench.protocol import TRAINING
    from viapt.bench.search import check_space
    from viapt.pruning import PRUNING

    space: dict[str, Any] = {}
    for text in texts:
        name, _, values = text.partition("=")
        with problems.collected(f"--search {text}", replaces=("space",)):
            if name in space:
                raise ConfigError(f"{name} is given twice", expected="each once")
            found = {name: parse_range(values)}
            if name.rpartition(".")[2] in (*TRAINING, *PRUNING):
                found = {name: fractional(found[name])}
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


def fractional(values: dict[str, Any]) -> dict[str, Any]:
    """The same range of numbers with a point: from 0 to 1 there is more than 0 and 1."""
    if "choices" in values:
        return {"choices": [float(value) if type(value) is int else value for value in values["choices"]]}
    return values | {end: float(values[end]) for end in ("low", "high")}


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


def make_engine(name: str, workers: int | None, threads: int | None, address: str | None, gpus: float | None) -> Engine:
    """The engine that was asked for.

    Raises:
        ConfigError: options without effect, or out of range; Ray is not installed.
    """
    import os

    from viapt.bench.engines import LocalEngine, RayEngine

    for option, count in (("--workers", workers), ("--threads", threads)):
        if count is not None and count < 1:
            raise ConfigError(f"{option} {count}", expected="1 or more")
    check_place_options(name, workers, address, gpus)
    alone = 1 if address is not None else max(1, (os.cpu_count() or 1) // (workers or 1))
    if name == "ray":
        return RayEngine(address, workers or 1, threads or alone, gpus or 0.0)
    return LocalEngine(workers or 1, threads or alone)


def check_place_options(name: str, workers: int | None, address: str | None, gpus: float | None) -> None:
    """Refuse options without effect, and shares of GPUs that Ray does not have.

    Raises:
        ConfigError: naming one.
    """
    for option, value in (("--address", address), ("--gpus", gpus)):
        if value is not None and name != "ray":
            raise ConfigError(f"{option} has no effect with --engine local", remedy="--engine ray")
    if None not in (workers, address):
        raise ConfigError(
            "--workers has no effect with --address",
            expected="as many jobs at a time as the cluster has room for, by their --threads and --gpus",
            remedy="leave it out",
        )
    if gpus is not None and (gpus != round(gpus, 4) or gpus < 0 or (gpus > 1 and not gpus.is_integer())):
        raise ConfigError(
            f"--gpus {gpus:g}", expected="0, a share below 1 with at most four decimals, or a whole number"
        )

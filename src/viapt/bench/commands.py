"""The commands that make records and pages again, as far as records say it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from viapt.bench.experiments import Experiment
from viapt.bench.findings import Record
from viapt.bench.protocol import Protocol
from viapt.bench.publish import REFERENCE
from viapt.bench.store import FINAL
from viapt.methods import METHODS

FLAGS = {"read_test"}
ROOT_TOLD = "# DIR: the folder in which your data sets lie"


def command(name: str, experiment: Experiment | None, protocol: Protocol, records: Sequence[Record]) -> str:
    """The command that makes the records again, in a folder of their name: a folder has one protocol."""
    tasks, seeds = tasks_and_seeds(records)
    out, methods = f"--out runs/{name}", f"--methods {' '.join(rows_of(records))}"
    if protocol.suite:
        own = " ".join([out, f"--root DIR --tasks {' '.join(tasks)}", *suite_options(protocol), methods])
        return f"viapt bench suite {protocol.suite['suite']} {own}  {ROOT_TOLD}"
    parts = [f"viapt bench {experiment.name if experiment else 'run'}", out]
    parts.append(f"--tasks {' '.join(tasks)} --seeds {' '.join(map(str, seeds))}")
    normal = Protocol(**experiment.protocol) if experiment else Protocol()
    for field in fields(Protocol):
        value = getattr(protocol, field.name)
        if value == getattr(normal, field.name) or field.name == "space":
            continue
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "image_sizes":
            parts.append("--image-size " + " ".join(f"{task}={side}" for task, side in value.items()))
        else:
            parts.append(option if field.name in FLAGS else f"{option} {value}")
    parts += [f"--search {' '.join(map(in_range, protocol.space.items()))}"] if protocol.space else []
    return " ".join(parts if experiment else [*parts, methods])


def suite_options(protocol: Protocol) -> Iterator[str]:
    """The options of `viapt bench suite` that make this protocol."""
    suite = protocol.suite or {}
    for name in ("backbone", "weights", "image_size", "precision"):
        if getattr(protocol, name) is not None:
            yield f"--{name.replace('_', '-')} {getattr(protocol, name)}"
    if suite["name"] != suite["suite"]:
        yield f"--protocol {suite['name']}"
    for name in suite["changed"]:
        value = suite[name]
        yield f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def report_command(stem: str, reference: str, part: str, max_parameters: int | None) -> str:
    """The command that makes the report of a table of methods again, in the folder of its records."""
    parts = [f"viapt bench report {stem}.json --out {stem} --part {part}"]
    parts += [] if reference == REFERENCE else [f"--reference {shlex.quote(reference)}"]
    parts += [] if max_parameters is None else [f"--max-parameters {max_parameters}"]
    return f"{' '.join(parts)}  # the tables alone"


def in_range(pair: tuple[str, Any]) -> str:
    """A part of a search space as `--search` takes it."""
    name, values = pair
    if "choices" in values:
        return f"{name}={','.join(map(str, values['choices']))}"
    return f"{name}={values['low']}..{values['high']}{':log' if values.get('log') else ''}"


def tasks_and_seeds(records: Sequence[Record]) -> tuple[list[str], list[int]]:
    """Of the trainings that count, in order."""
    tasks = sorted({record["task"] for record in records})
    return tasks, sorted({record["seed"] for record in records if record["trial"] == FINAL})


def rows_of(records: Sequence[Record]) -> list[str]:
    """The rows of a table as `--methods` takes them; with their learning rate where it was another default's."""
    return list(dict.fromkeys(as_given(record["method"], rate_of(record, records)) for record in records))


def rate_of(record: Record, records: Sequence[Record]) -> float | None:
    """The learning rate of a row, if neither its name nor today's default says it, and no search found it."""
    rate, method = record["job"]["training"].get("lr"), METHODS.get(record["job"]["method"])
    searched, said = any(one["trial"] != FINAL for one in records), "lr=" in record["method"]
    return None if searched or said or method is None or rate == method.learning_rate else rate


def as_given(name: str, rate: float | None = None) -> str:
    """ "viapt(kept_dim=32, lr=0.01)" as the command line takes it."""
    method, _, listed = name.partition("(")
    settings = re.split(r", (?=[a-z_]+=)", listed.removesuffix(")")) if listed else []
    settings += [] if rate is None else [f"lr={rate}"]
    return f"'{method}:{';'.join(settings)}'" if settings else method

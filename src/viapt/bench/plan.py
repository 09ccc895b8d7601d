"""From what was asked for to jobs; all that is impossible is found before the first of them starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64
from rich.console import Console

from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone
from viapt.bench.entrants import Entrant
from viapt.bench.jobs import Job
from viapt.bench.protocol import Protocol
from viapt.bench.provenance import code_for, versions
from viapt.bench.search import names_of, needs_optuna, probes, require_optuna, space_of
from viapt.bench.task_data import benchmark_data, hash_of, is_benchmark, parts_of
from viapt.data.benchmarks import find_task
from viapt.data.packaged import PackagedTask, fetch_all, list_tasks, load_task, state
from viapt.data.task_splits import reserved, to_learn_from
from viapt.device import default_device
from viapt.errors import ConfigError, DataError, FetchError, ViaptError, did_you_mean
from viapt.precision import choose_precision
from viapt.pruning import PRUNING
from viapt.recipe import Recipe


class Problems:
    """Everything that is wrong, collected to be said at once.

    Attributes:
        unseen: tasks that nobody looked at because of it.
        replaced: settings of the protocol that are not as asked for because of it, but have their defaults.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.unseen: list[str] = []
        self.replaced: set[str] = set()

    @contextmanager
    def collected(self, where: str = "", replaces: Collection[str] = ()) -> Iterator[None]:
        """Inside, an error of the user's is noted instead of raised, and which settings of the protocol it costs."""
        try:
            yield
        except ViaptError as error:
            self.replaced |= set(replaces)
            text = f"{where}: {error}" if where else str(error)
            if text not in self.found:
                self.found.append(text)

    def refuse(self) -> None:
        """Say them all.

        Raises:
            ConfigError: there are some.
        """
        unseen = f" Not in the cache, and not looked at: {', '.join(self.unseen)}." if self.unseen else ""
        if len(self.found) == 1:
            raise ConfigError(self.found[0] + unseen)
        if self.found:
            listed = " ".join(f"({number}) {text}" for number, text in enumerate(self.found, start=1))
            raise ConfigError(f"{len(self.found)} problems, and nothing was started: {listed}{unseen}")


@dataclass(frozen=True)
class TaskFacts:
    """What a plan keeps of a task, its pictures left behind; and how many images, where not those of the protocol."""

    name: str
    data_hash: str
    split_hash: str
    images: dict[str, int] | None = None


@dataclass(frozen=True)
class Plan:
    """What will be done, checked.

    Attributes:
        protocol: with its precision decided.
        unavailable: tasks that cannot be had here, and why.
    """

    protocol: Protocol
    entrants: list[Entrant]
    tasks: list[TaskFacts]
    seeds: list[int]
    unavailable: dict[str, str]
    backbone: Backbone
    device: str

    def job(self, entrant: Entrant, task: TaskFacts, seed: int, *, read_test: bool) -> Job:
        """The job of an entrant, at whatever point it is, on a task.

        Raises:
            ConfigError: its settings are impossible.
        """
        protocol = self.protocol
        return Job(
            method=entrant.method,
            options=entrant.configuration(self.backbone),
            task=task.name,
            data_hash=task.data_hash,
            split_hash=task.split_hash,
            split_seed=protocol.split_seed,
            images=task.images or sizes_asked(protocol),
            backbone=protocol.backbone,
            weights=protocol.weights,
            fingerprint=self.backbone.fingerprint,
            image_size=protocol.image_size_of(task.name),
            precision=protocol.precision,
            device=self.device,
            augmentation=protocol.augmentation,
            training=training(entrant, protocol),
            read_test=read_test,
            rounds=protocol.rounds,
            draws=protocol.draws,
            seed=seed,
            code=code_for(entrant.method, task.name),
            versions=versions(entrant.method, protocol.backbone),
            suite=protocol.suite_of(read_test),
        )


def training(entrant: Entrant, protocol: Protocol) -> dict[str, Any]:
    """The arguments of `fit`, and of `prune` where it is to be pruned.

    Raises:
        ConfigError: one is out of range.
    """
    values = entrant.training_under(protocol)
    values |= {"epochs": protocol.epochs, "batch_size": protocol.batch_size, "selection": protocol.selection}
    if protocol.suite and protocol.suite["optimizer"] != "adamw":
        values["optimizer"] = protocol.suite["optimizer"]
    whole: dict[str, Any] = {"optimizer": "adamw"} | {key: values[key] for key in values if key not in PRUNING}
    Recipe(**whole, accumulate=1, seed=0)
    return values


def make_plan(
    protocol: Protocol,
    entrants: Sequence[Entrant],
    tasks: Sequence[str],
    seeds: Sequence[int],
    problems: Problems | None = None,
    console: Console | None = None,
    device: str | None = None,
) -> Plan:
    """Check everything, and load what has to be known: the backbone and the tasks.

    Args:
        tasks: of the packaged suite, or SUITE/NAME.
        problems: found before, to be said together with what is found here.
        console: where to show how packaged tasks are prepared that the cache lacks, which takes a process for each
            core; None prepares them in this process, silently. Where there are problems, they are not prepared.
        device: the kind that jobs will find, see `Engine.device`; None: that of this process. What "auto" means for
            one that is not here is float32.

    Raises:
        ConfigError: with all problems.
    """
    problems = problems or Problems()
    check_list("method", [entrant.without_defaults() for entrant in entrants], problems, name=lambda one: one.name)
    check_list("task", tasks, problems)
    check_list("seed", seeds, problems)
    for seed in seeds:
        with problems.collected():
            if seed < 0:
                raise ConfigError(f"The seed {seed}", expected="0 or more")
    for name in protocol.image_sizes:
        with problems.collected("image size"):
            check_task(name)
    backbone = the_backbone(protocol, tasks, problems)
    check_entrants(entrants, protocol, backbone, problems)
    if needs_optuna(protocol, entrants):
        with problems.collected():
            require_optuna()
    facts, unavailable = look_at(tasks, protocol, problems, console)
    problems.refuse()
    assert backbone is not None
    if not facts:
        told = "; ".join(f"{name}: {cause}" for name, cause in unavailable.items())
        raise DataError(f"None of the tasks can be had here: {told}")
    device = device or default_device().type
    decided = replace(protocol, precision=choose_precision(protocol.precision, device).name)
    return Plan(decided, list(entrants), facts, list(seeds), unavailable, backbone, device)


def check_list(what: str, given: Sequence[Any], problems: Problems, name: Callable[[Any], str] = str) -> None:
    """Note that nothing, or something twice, was given."""
    with problems.collected():
        if not given and not problems.found:
            raise ConfigError(f"No {what}s", expected=f"at least one {what}")
    for place, one in enumerate(given):
        first = given.index(one)
        with problems.collected():
            if first < place:
                raise ConfigError(f"The {what} {name(given[first])} is given twice", expected="each once")


def the_backbone(protocol: Protocol, tasks: Sequence[str], problems: Problems) -> Backbone | None:
    """The backbone, in each size that is asked for; None, and a problem noted, if there is none."""
    backbone = None
    sizes = {protocol.image_size_of(task) for task in tasks if task in list_tasks()} or {protocol.image_size}
    for size in sorted(sizes):
        with problems.collected():
            backbone = create_backbone(protocol.backbone, weights=protocol.weights, image_size=size)
    with problems.collected():
        choose_precision(protocol.precision)
    return backbone


def check_entrants(
    entrants: Sequence[Entrant], protocol: Protocol, backbone: Backbone | None, problems: Problems
) -> None:
    """Note impossible settings, those that the probes of a search space show included."""
    unused = set(protocol.space)
    for entrant in entrants:
        space = space_of(entrant, protocol)
        unused -= {name for key, name in names_of(protocol.space, entrant.method).items() if key in space}
        with problems.collected(f"{entrant.name}: the search space"):
            if protocol.trials and not space:
                raise ConfigError("Nothing to search")
            overlap = [name for name in space if name in entrant.options | entrant.training]
            if overlap:
                raise ConfigError(f"{overlap[0]} is both given and searched", expected="one of the two")
        for point in probes(space):
            at = entrant.at(point)
            with problems.collected(at.name):
                training(at, protocol)
            if backbone is not None:
                with problems.collected(at.name):
                    at.effective(backbone, point).configuration(backbone)
    for name in sorted(unused):
        with problems.collected("the search space"):
            raise ConfigError(f"No method has {name!r}", remedy="leave it out")


def look_at(
    tasks: Sequence[str], protocol: Protocol, problems: Problems, console: Console | None
) -> tuple[list[TaskFacts], dict[str, str]]:
    """The tasks that are there; those that are not, and why. What is wrong with one is noted.

    What the cache lacks is fetched or drawn, which may take minutes, only where nothing was wrong before.
    """
    known, facts, unavailable = list[str](), [], {}
    for name in tasks:
        with problems.collected():
            check_task(name)
            known.append(name)
    missing = [name for name in list_tasks() if name in known and state(name) != "ready"]
    if problems.found:
        problems.unseen = missing
    elif console and missing:
        unavailable = prepared(missing, console)
    for name in known:
        if name in unavailable or name in problems.unseen:
            continue
        with problems.collected():
            try:
                found = benchmark_facts(name) if is_benchmark(name) else load_task(name)
            except (FetchError, DataError, OSError) as error:
                unavailable[name] = str(error)
                continue
            facts.append(found if isinstance(found, TaskFacts) else facts_of(found, protocol))
    return facts, unavailable


def prepared(missing: list[str], console: Console) -> dict[str, str]:
    """Fetch or draw packaged tasks that the cache lacks, and show it; those that cannot be had, and why."""
    console.print(f"Not in the cache, and prepared first: {', '.join(missing)}", soft_wrap=True)
    statuses = fetch_all(missing, console)
    return {name: status.message for name, status in statuses.items() if not status.ready}


def benchmark_facts(name: str) -> TaskFacts:
    """What a job says of a benchmark task. A class without training images is no error: VTAB-1k has such.

    Raises:
        DataError: it is not there, or not as it should be.
    """
    data = benchmark_data(name)
    return TaskFacts(name, data.data_hash, data.split_hash, data.images)


def check_task(name: str) -> None:
    """Refuse a task that nobody knows.

    Raises:
        ConfigError: with the closest name.
    """
    if is_benchmark(name):
        find_task(name)
        return
    known = list_tasks()
    if name not in known:
        raise ConfigError(
            f"There is no task {name!r}", expected=f"one of {', '.join(known)}", remedy=did_you_mean(name, known)
        )


def facts_of(task: PackagedTask, protocol: Protocol) -> TaskFacts:
    """What a job says of a task under a protocol.

    Raises:
        ConfigError: one class, or parts without images of some class.
    """
    if len(task.classes) < 2:
        raise ConfigError(f"The task {task.name!r} has the single class {task.classes[0]!r}", expected="two or more")
    asked = sizes_asked(protocol)
    images = sizes_for(task, asked)
    indices = parts_of(task, images, protocol.split_seed)
    read = ["train", "val", "test"] if protocol.read_test else ["train", "val"]
    check_parts(task, {part: indices[part] for part in read}, asked)
    return TaskFacts(task.name, task.content_hash, hash_of(indices), None if images == asked else images)


def sizes_asked(protocol: Protocol) -> dict[str, int]:
    """Images by part, at most."""
    return {"train": protocol.train, "val": protocol.val, "test": protocol.test}


def sizes_for(task: PackagedTask, asked: Mapping[str, int]) -> dict[str, int]:
    """Images by part: as asked, as long as there are enough to train and validate on, and less in a small task.

    There training and validation share all that is not reserved for tests, in the proportion that was asked for, with
    one image each at least.
    """
    train, val, besides = asked["train"], asked["val"], to_learn_from(task)
    if train + val <= besides or besides < 2:
        return dict(asked)
    fewer = max(1, besides * val // (train + val))
    return {"train": besides - fewer, "val": fewer, "test": min(asked["test"], reserved(task))}


def check_parts(task: PackagedTask, parts: Mapping[str, Int64[np.ndarray, " _"]], asked: Mapping[str, int]) -> None:
    """Refuse parts without images of some class.

    Raises:
        ConfigError: naming these parts and some of their classes.
    """
    poor = {part: text for part, indices in parts.items() if (text := lacking(task, indices))}
    if not poor:
        return
    found = ", and ".join(f"the {part} part ({len(parts[part])} images): none of {text}" for part, text in poor.items())
    limited = [f"--{part}" for part in poor if len(parts[part]) == asked[part]]
    raise ConfigError(
        f"{task.name!r} ({len(task.labels)} images) is too small for its {len(task.classes)} classes: {found}",
        expected="an image of each class in each part",
        remedy=f"more images: {', '.join(limited)}" if limited else "leave the task out: the others with --tasks",
    )


def lacking(task: PackagedTask, indices: Int64[np.ndarray, " _"]) -> str:
    """Some of the classes of which there is no image, in words; "" if there is none."""
    counts = np.bincount(task.labels[indices], minlength=len(task.classes))
    empty = [name for name, count in zip(task.classes, counts, strict=True) if count == 0]
    return ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")

"""From a plan to results: what is done is skipped, what fails is noted, what is left is given to an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from viapt.bench.engines import Engine
from viapt.bench.entrants import Entrant
from viapt.bench.jobs import Job, Outcome
from viapt.bench.plan import Plan, Problems, TaskFacts
from viapt.bench.protocol import Protocol
from viapt.bench.provenance import installed
from viapt.bench.search import Point, exhaustive, grid, needs_optuna, search, space_of
from viapt.bench.store import FILE, Cell, Store
from viapt.errors import ConfigError, DataError

LOCK = ".lock"
LOOK_AGAIN = 10.0  # seconds after which an engine is asked for room again, and how things are is shown


@dataclass(frozen=True)
class Step:
    """A job and its place in the table; without a job, why there is none."""

    cell: Cell
    job: Job | None
    cause: str = ""


Steps = Generator[list[Step], list[Outcome], None]


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        wanted: jobs of this run, those of searches included.
        skipped: of these, done before.
        done, failed: of these, now.
        causes: why, by place; what was refused because the test split had been read is among them.
    """

    wanted: int
    skipped: int = 0
    done: int = 0
    failed: int = 0
    causes: dict[Cell, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def open(self) -> int:
        """Jobs that nothing has become of yet."""
        return self.wanted - self.skipped - self.done - self.failed


Observer = Callable[[Progress, Cell | None, Outcome | None], None]


def run(plan: Plan, folder: Path, engine: Engine, observe: Observer = lambda *_: None) -> Progress:
    """Do all jobs of a plan that are not done; one runner at a time in a folder.

    Args:
        folder: of the store, which is made if need be.
        engine: not yet entered.
        observe: called at the start, whenever something became of a job, and while nothing does every `LOOK_AGAIN`.

    Raises:
        ConfigError: another runner is there, or the folder has another protocol, or a search by another Optuna.
        ArtifactError: the store cannot be used.
        KeyboardInterrupt: after Ctrl-C; what is done is stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0), Store(folder, create=True) as store:
            store.adopt(plan.protocol, sampler(plan.protocol, plan.entrants))
            mine = Run(plan, store, engine, observe)
            try:
                with engine:
                    return mine.finish()
            finally:
                mine.withdraw()
    except Timeout:
        raise ConfigError(
            f"Another process runs jobs in {folder}", remedy="wait for it, or choose another folder"
        ) from None


def continued(protocol: Protocol, folder: Path, problems: Problems | None = None) -> Protocol:
    """The same, with the precision that a folder decided on where "auto" is asked for.

    A machine that now seems faster or slower changes no table.

    Args:
        problems: where to note that the folder cannot be gone on with; None raises it. Settings of the protocol
            that have their defaults because of problems found before are not compared.

    Raises:
        ArtifactError: the folder's store cannot be used.
        ConfigError: the folder has another protocol, or a search by another Optuna.
    """
    if not (folder / FILE).exists():
        return protocol
    replaced = problems.replaced if problems else ()
    with problems.collected() if problems else nullcontext(), Store(folder, create=True) as store:
        before = store.protocol()
        if before is not None and protocol.precision == "auto":
            protocol = replace(protocol, precision=before.precision)
        store.check(protocol, sampler(protocol), replaced)
    return protocol


def sampler(protocol: Protocol, entrants: Iterable[Entrant] = ()) -> str | None:
    """The version of Optuna, where it searches and is installed."""
    found = installed("optuna") if needs_optuna(protocol, entrants) else "none"
    return None if found == "none" else found


class Run:
    """A plan on its way: one sequence of steps for each method and task, all side by side."""

    def __init__(self, plan: Plan, store: Store, engine: Engine, observe: Observer) -> None:
        self.plan, self.store, self.engine, self.observe = plan, store, engine, observe
        pairs = [(entrant, task) for task in plan.tasks for entrant in plan.entrants]
        self.lanes = [Lane(steps(plan, entrant, task)) for entrant, task in pairs]
        self.cells = [cell for entrant, task in pairs for cell in cells(plan, entrant, task)]
        self.progress = Progress(wanted=len(pairs) * (plan.protocol.trials + len(plan.seeds)))
        self.queue: dict[str, list[tuple[Lane, Step]]] = {}
        self.waiting: dict[Future[dict[str, Any]], list[tuple[Lane, Step]]] = {}
        self.asked: dict[str, Future[dict[str, Any]]] = {}
        self.opened: set[Cell] = set()

    def finish(self) -> Progress:
        """Go on until nothing is left."""
        self.store.expect(dict.fromkeys(self.cells))
        self.refuse_unavailable()
        self.observe(self.progress, None, None)
        for lane in self.lanes:
            self.go_on(lane)
        self.submit()
        while self.waiting:
            done = wait(self.waiting, LOOK_AGAIN, FIRST_COMPLETED).done
            for future in done:
                self.take(future)
            if not done:
                self.observe(self.progress, None, None)
            self.submit()
        return self.progress

    def refuse_unavailable(self) -> None:
        """Write down why the places of tasks that cannot be had stay empty; what was measured before stays."""
        for task, cause in self.plan.unavailable.items():
            for entrant, seed in product(self.plan.entrants, self.plan.seeds):
                cell = Cell(entrant.name, task, seed)
                if not self.store.is_done(cell):
                    self.store.refuse(cell, cause)

    def go_on(self, lane: Lane) -> None:
        """Begin the next steps of a lane, until it has to wait."""
        while lane.next():
            for step in lane.batch:
                self.begin(lane, step)
            if lane.open:
                return

    def begin(self, lane: Lane, step: Step) -> None:
        """Answer a step from the store, or have it wait for its job."""
        job, progress = step.job, self.progress
        if job is None:
            self.store.refuse(step.cell, step.cause)
            self.note(lane, step, Outcome(cause=step.cause))
            return
        if job.read_test:
            try:
                self.store.check_exam(step.cell, job)
            except DataError as error:
                self.note(lane, step, Outcome(cause=str(error)))
                return
        self.store.expect({step.cell: job.key})
        record, asked = self.store.result(job.key), self.asked.get(job.key)
        if record is None and asked is None:
            self.queue.setdefault(job.key, []).append((lane, step))
            return
        self.open_exam(step.cell, job)
        if asked is not None:
            self.waiting[asked].append((lane, step))
            return
        progress.skipped += 1
        lane.answer(step, Outcome(record=record))
        self.observe(progress, None, None)

    def submit(self) -> None:
        """Give the engine as many jobs as it has room for: what is only queued here has read nothing yet."""
        room = self.engine.room() if self.queue else 0
        while self.queue and len(self.waiting) < room:
            key = next(iter(self.queue))
            waiting = self.queue.pop(key)
            job = waiting[0][1].job
            assert job is not None
            for _, step in waiting:
                self.open_exam(step.cell, job)
            self.asked[key] = self.engine.submit(job)
            self.waiting[self.asked[key]] = waiting

    def open_exam(self, cell: Cell, job: Job) -> None:
        """Note that a job reads the test split, before it does."""
        if job.read_test and self.store.open_exam(cell, job):
            self.opened.add(cell)

    def close_exams(self, waiting: list[tuple[Lane, Step]]) -> None:
        """Forget what was noted for a job that never began; what an earlier run noted stays."""
        for _, step in waiting:
            if step.cell in self.opened:
                self.store.withdraw_exam(step.cell)
                self.opened.discard(step.cell)

    def withdraw(self) -> None:
        """After the engine's end: forget what was noted for jobs that it had not begun."""
        for future, waiting in self.waiting.items():
            if future.done() and not outcome_of(future).begun:
                self.close_exams(waiting)

    def take(self, future: Future[dict[str, Any]]) -> None:
        """Store what became of a job, and go on with those who waited for it."""
        outcome = outcome_of(future)
        waiting = self.waiting.pop(future)
        if not outcome.begun:
            self.close_exams(waiting)
        job = waiting[0][1].job
        assert job is not None
        del self.asked[job.key]
        self.store.settle(job.key, outcome)
        for lane, step in waiting:
            self.note(lane, step, outcome)
        for lane, _ in waiting:
            if not lane.open:
                self.go_on(lane)

    def note(self, lane: Lane, step: Step, outcome: Outcome) -> None:
        """Count an outcome, and tell the lane."""
        if outcome.record is not None:
            self.progress.done += 1
        else:
            self.progress.failed += 1
            self.progress.causes[step.cell] = outcome.cause
        lane.answer(step, outcome)
        self.observe(self.progress, step.cell, outcome)


def outcome_of(future: Future[dict[str, Any]]) -> Outcome:
    """What became of a job."""
    try:
        return Outcome(**future.result())
    except CancelledError:
        return Outcome(cause="not started", begun=False)
    except Exception as error:  # whatever an engine makes of a lost process
        return Outcome(cause=f"{type(error).__name__}: {error}")


class Lane:
    """Steps that come one batch after the other, each batch when the last is answered."""

    def __init__(self, source: Steps) -> None:
        self.source, self.batch, self.ended = source, list[Step](), False
        self.answers: dict[Cell, Outcome] | None = None

    @property
    def open(self) -> int:
        """Steps of the batch that are not answered."""
        return len(self.batch) - len(self.answers or {})

    def next(self) -> bool:
        """Get the next batch; False at the end."""
        if self.ended:
            return False
        try:
            if self.answers is None:
                self.batch = next(self.source)
            else:
                self.batch = self.source.send([self.answers[step.cell] for step in self.batch])
        except StopIteration:
            self.batch, self.ended = [], True
        self.answers = {}
        return not self.ended

    def answer(self, step: Step, outcome: Outcome) -> None:
        """Keep what became of a step."""
        assert self.answers is not None
        self.answers[step.cell] = outcome


def cells(plan: Plan, entrant: Entrant, task: TaskFacts) -> list[Cell]:
    """The places that a method on a task fills."""
    trials = [Cell(entrant.name, task.name, plan.protocol.search_seed, trial) for trial in range(plan.protocol.trials)]
    return [*trials, *(Cell(entrant.name, task.name, seed) for seed in plan.seeds)]


def steps(plan: Plan, entrant: Entrant, task: TaskFacts) -> Steps:
    """Search, if the protocol says so; then the chosen settings with every seed."""
    chosen: Point | None = {}
    cause = "No trial of the search succeeded"
    if plan.protocol.trials:
        try:
            chosen = yield from searched(plan, entrant, task)
        except LostTrialError as lost:
            chosen, cause = None, str(lost)
    final = [Cell(entrant.name, task.name, seed) for seed in plan.seeds]
    if chosen is None:
        yield [Step(cell, None, cause) for cell in final]
        return
    at, read = entrant.at(chosen).effective(plan.backbone, chosen), plan.protocol.read_test
    yield [Step(cell, plan.job(at, task, cell.seed, read_test=read)) for cell in final]


def searched(plan: Plan, entrant: Entrant, task: TaskFacts) -> Generator[list[Step], list[Outcome], Point | None]:
    """The best point of the search for one method and task.

    A point that is impossible, or diverges, is a trial that failed, whenever it is tried.

    Raises:
        LostTrialError: of another trial, and so of all that would follow, nothing is known yet.
    """
    protocol, space = plan.protocol, space_of(entrant, plan.protocol)
    if exhaustive(protocol, space):
        points = grid(space)
    else:
        points = search(space, defaults(plan, entrant), protocol.trials, protocol.search_seed)
    value: float | None = None
    for trial in range(protocol.trials + 1):
        try:
            point = points.send(value) if trial else next(points)
        except StopIteration as end:
            return end.value
        cell = Cell(entrant.name, task.name, protocol.search_seed, trial)
        step = trial_step(plan, entrant, task, cell, point)
        (outcome,) = yield [step]
        if outcome.record is None and step.job is not None and not outcome.diverged:
            raise LostTrialError(
                f"Trial {trial + 1} of its search was lost, and may decide it: run again ({outcome.cause})"
            )
        value = None if outcome.record is None else outcome.record["val"][protocol.metric]
    raise AssertionError("a search ends after its last trial")


class LostTrialError(Exception):
    """A trial failed for a reason that has nothing to do with its settings."""


def trial_step(plan: Plan, entrant: Entrant, task: TaskFacts, cell: Cell, point: Point) -> Step:
    """The job of a trial, or why there is none."""
    try:
        at = entrant.at(point).effective(plan.backbone, point)
        job = plan.job(at, task, cell.seed, read_test=False)
    except ConfigError as error:
        return Step(cell, None, f"{entrant.at(point).name}: {error}")
    return Step(cell, replace(job, rounds=0, draws=0))


def defaults(plan: Plan, entrant: Entrant) -> Point:
    """Where a search starts; what is searched may have no possible default beside what was given."""
    start = entrant.training_under(plan.protocol)
    try:
        return start | entrant.configuration(plan.backbone)
    except ConfigError:
        return start

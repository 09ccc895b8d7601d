"""The results of a folder, in one SQLite file: what was asked for, what came of it, and who read which test split.

Every change is one transaction, so a process may die at any moment. Any number of processes may read and write.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from viapt.bench.jobs import Job, Outcome
from viapt.bench.protocol import Protocol, differences
from viapt.errors import ArtifactError, ConfigError, DataError

FILE = "bench.sqlite"
FORMAT = 1
APPLICATION = 0x76696170  # "viap": tells our files from other programs'
PATIENCE = 60.0  # seconds that another process may keep the file
FINAL = -1  # in place of the number of a trial
PLACE = "method", "task", "seed", "trial"  # of a record in the table
NO_JOB = "no job: "  # begins the key of a place that has none

SCHEMA = """
CREATE TABLE protocol (value TEXT NOT NULL);
CREATE TABLE cells (
    method TEXT NOT NULL, task TEXT NOT NULL, seed INTEGER NOT NULL, trial INTEGER NOT NULL, key TEXT,
    PRIMARY KEY (method, task, seed, trial)
);
CREATE TABLE results (key TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE failures (key TEXT PRIMARY KEY, cause TEXT NOT NULL, trace TEXT NOT NULL, times INTEGER NOT NULL);
CREATE TABLE exams (
    method TEXT NOT NULL, task TEXT NOT NULL, seed INTEGER NOT NULL, job TEXT NOT NULL, opened TEXT NOT NULL,
    PRIMARY KEY (method, task, seed)
);
"""


@dataclass(frozen=True)
class Cell:
    """A place in the table: a method on a task with a seed, or one trial of its search; `method` is a display name."""

    method: str
    task: str
    seed: int
    trial: int = FINAL

    @property
    def where(self) -> tuple[str, str, int, int]:
        """The primary key."""
        return *self.who, self.trial

    @property
    def who(self) -> tuple[str, str, int]:
        """For whom the test split is read once."""
        return self.method, self.task, self.seed

    def __str__(self) -> str:
        trial = "" if self.trial == FINAL else f", trial {self.trial + 1}"
        return f"{self.method}, {self.task}, seed {self.seed}{trial}"


@dataclass(frozen=True)
class Failure:
    """A job that failed, and how often; or why a place has no job."""

    cell: Cell
    cause: str
    trace: str
    times: int
    has_job: bool = True


class Store:
    """The file of a folder.

    Args:
        folder: where it is, or is made.
        create: make it if it is not there.

    Raises:
        ConfigError: there is none, or no place for one.
        ArtifactError: it is damaged, of another program or of a newer version, or somebody keeps it.
    """

    def __init__(self, folder: Path, *, create: bool = False, patience: float = PATIENCE) -> None:
        self.path = folder / FILE
        if not create and not self.path.exists():
            raise ConfigError(f"{folder} holds no {FILE}", remedy="viapt bench run --out makes one")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {folder} cannot be made ({error})") from error
        with self.guarded():
            self.connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None)
        try:
            self.prepare(create)
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def prepare(self, create: bool) -> None:
        """Make the tables in an empty file; refuse what is no file of ours."""
        self.rows("PRAGMA synchronous = FULL")
        if create:
            with self.transaction() as tell:
                if tell("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    for statement in SCHEMA.split(";"):
                        tell(statement)
                    tell(f"PRAGMA application_id = {APPLICATION}")
                    tell(f"PRAGMA user_version = {FORMAT}")
        ((application,),) = self.rows("PRAGMA application_id")
        ((format_,),) = self.rows("PRAGMA user_version")
        if application != APPLICATION:
            raise ArtifactError(f"{self.path} was not made by viapt", remedy="choose another folder")
        if format_ > FORMAT:
            raise ArtifactError(
                f"{self.path} has format {format_}", expected=f"up to {FORMAT}", remedy="use a newer viapt"
            )
        ((state,),) = self.rows("PRAGMA quick_check(1)")
        if state != "ok":
            raise damaged(self.path, state)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, what SQLite says becomes what a user can act on."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise ArtifactError(
                    f"{self.path} is kept by another program", remedy="end it, and run the same command again"
                ) from error
            raise ArtifactError(
                f"{self.path} cannot be used ({error})", remedy="a folder with room, to write to"
            ) from error
        except sqlite3.DatabaseError as error:
            raise damaged(self.path, str(error)) from error

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """All statements that are told inside, or none."""
        with self.guarded():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection.execute
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.rollback()
                raise
            self.connection.execute("COMMIT")

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The answer to a question."""
        with self.guarded():
            return self.connection.execute(statement, values).fetchall()

    def protocol(self) -> Protocol | None:
        """The protocol of the folder; None before its first run."""
        found = self.rows("SELECT value FROM protocol")
        return Protocol.from_dict(json.loads(found[0][0])) if found else None

    def optuna(self) -> str | None:
        """The version that the folder's searches began with; None without, or where it was not written down."""
        found = self.rows("SELECT value FROM protocol")
        return json.loads(found[0][0]).get("optuna") if found else None

    def adopt(self, protocol: Protocol, optuna: str | None = None) -> None:
        """Make this the folder's protocol, or make sure that it is.

        Args:
            optuna: the version that will search: another one would ask for other points.

        Raises:
            ConfigError: it has another one.
        """
        with self.transaction() as tell:
            if self.protocol() is None:
                searched = {} if optuna is None else {"optuna": optuna}
                tell("INSERT INTO protocol VALUES (?)", (json.dumps(protocol.to_dict() | searched),))
        self.check(protocol, optuna)

    def check(self, protocol: Protocol, optuna: str | None = None, besides: Collection[str] = ()) -> None:
        """Make sure that this may be the folder's protocol, or is.

        Args:
            optuna: see `adopt`.
            besides: settings that are not compared.

        Raises:
            ConfigError: it has another one.
        """
        before, began = self.protocol(), self.optuna()
        if before is None:
            return
        there, here = (
            {name: value for name, value in one.to_dict().items() if name not in besides} for one in (before, protocol)
        )
        if changed := differences(there, here):
            raise ConfigError(
                f"{self.path.parent} holds results of another protocol: {'; '.join(changed)}",
                remedy="choose another folder: numbers of two protocols do not belong into one table",
            )
        if None not in (optuna, began) and began != optuna:
            raise ConfigError(
                f"{self.path.parent} was searched with optuna {began}, and {optuna} is installed",
                expected="one version for a search: others ask for other points",
                remedy=f"pip install optuna=={began}, or choose another folder",
            )

    def expect(self, cells: Mapping[Cell, str | None]) -> None:
        """Write down places that are to be filled, and the keys of their jobs as far as they are known."""
        statement = """INSERT INTO cells VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET key = excluded.key
                       WHERE excluded.key IS NOT NULL"""
        with self.transaction() as tell:
            for cell, key in cells.items():
                tell(statement, (*cell.where, key))

    def check_exam(self, cell: Cell, job: Job) -> bool:
        """Whether it is noted that this job reads the test split for its method, task and seed.

        Raises:
            DataError: another job did.
        """
        question = "SELECT job, opened FROM exams WHERE method = ? AND task = ? AND seed = ?"
        found = self.rows(question, *cell.who)
        if not found:
            return False
        ((text, opened),) = found
        noted, mine = json.loads(text), job.to_dict()
        if noted != mine:
            raise DataError(
                f"The test split was read on {opened} by another job ({'; '.join(differences(noted, mine))})",
                expected="one reading for each method, task and seed",
                remedy="a new folder, if what was read changed no decision",
            )
        return True

    def open_exam(self, cell: Cell, job: Job) -> bool:
        """Note that this job, and no other, reads the test split for its method, task and seed; whether that is new.

        The same job may do it again: it finds the same numbers.

        Raises:
            DataError: another job did.
        """
        with self.transaction() as tell:
            if self.check_exam(cell, job):
                return False
            opened = datetime.now(UTC).isoformat(timespec="seconds")
            tell("INSERT INTO exams VALUES (?, ?, ?, ?, ?)", (*cell.who, json.dumps(job.to_dict()), opened))
        return True

    def withdraw_exam(self, cell: Cell) -> None:
        """Forget a note: its job never began."""
        with self.transaction() as tell:
            tell("DELETE FROM exams WHERE method = ? AND task = ? AND seed = ?", cell.who)

    def result(self, key: str) -> dict[str, Any] | None:
        """The record of a job that is done."""
        found = self.rows("SELECT record FROM results WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def settle(self, key: str, outcome: Outcome) -> bool:
        """Write down what became of a job; False if it was done before, and stays as it was."""
        with self.transaction() as tell:
            if tell("SELECT 1 FROM results WHERE key = ?", (key,)).fetchone():
                return False
            if outcome.record is not None:
                tell("INSERT INTO results VALUES (?, ?)", (key, json.dumps(outcome.record)))
                tell("DELETE FROM failures WHERE key = ?", (key,))
            else:
                tell(
                    """INSERT INTO failures VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE
                       SET cause = excluded.cause, trace = excluded.trace, times = times + 1""",
                    (key, outcome.cause, outcome.trace),
                )
        return True

    def refuse(self, cell: Cell, cause: str) -> None:
        """Write down why a place has no job."""
        key = f"{NO_JOB}{cell}"
        self.expect({cell: key})
        self.settle(key, Outcome(cause=cause))

    def is_done(self, cell: Cell) -> bool:
        """Whether a place has a record."""
        question = """SELECT 1 FROM cells JOIN results USING (key)
                      WHERE method = ? AND task = ? AND seed = ? AND trial = ?"""
        return bool(self.rows(question, *cell.where))

    def records(self) -> list[dict[str, Any]]:
        """What is done: the record of each job with its place in the table, in a stable order."""
        found = self.rows(
            """SELECT method, task, seed, trial, key, record FROM cells JOIN results USING (key)
               ORDER BY method, task, seed, trial"""
        )
        return [dict(zip((*PLACE, "key"), row[:5], strict=True)) | json.loads(row[5]) for row in found]

    def failures(self) -> list[Failure]:
        """What failed, and was not done since."""
        found = self.rows(
            """SELECT method, task, seed, trial, cause, trace, times, key FROM cells JOIN failures USING (key)
               ORDER BY method, task, seed, trial"""
        )
        return [Failure(Cell(*row[:4]), *row[4:7], has_job=not row[7].startswith(NO_JOB)) for row in found]

    def open_cells(self) -> list[Cell]:
        """What was asked for, and is neither done nor failed."""
        found = self.rows(
            """SELECT method, task, seed, trial FROM cells
               WHERE key IS NULL OR key NOT IN (SELECT key FROM results UNION SELECT key FROM failures)
               ORDER BY method, task, seed, trial"""
        )
        return [Cell(*row) for row in found]


def damaged(path: Path, why: str) -> ArtifactError:
    """What to say of a file that SQLite cannot read."""
    return ArtifactError(
        f"{path} is damaged ({why})",
        remedy="restore it from a copy, or run again in a new folder; exported records are not touched by this",
    )

"""Teaching: a new task from a few labelled photos, fitted beside the server and used as soon as it is there.

    DIR/NAME/         an adapter for each task that was taught
    DIR/.lesson-ID/   photos and run of the one that is fitted now; removed when it ends, however it ends
    DIR/.lock         one server a folder

The fit is a process of its own, `viapt.serve.lesson`: it takes no memory of the server's, gives way to it on the
processors, and can be ended at any moment. An adapter is written whole or not at all, and then loaded as a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from viapt.adapter_files import CARD, CONFIG, TENSORS, TENSORS_LIMIT, commit, read_file
from viapt.errors import ArtifactError, ConfigError, DataError, ViaptError
from viapt.history import Epoch, read_history
from viapt.multitask import MultiTask
from viapt.runs import Settings
from viapt.serve.lesson import ERROR, LESSON, PHOTOS, RUN
from viapt.serve.limits import Limits
from viapt.serve.problems import Problem
from viapt.training import HISTORY

log = logging.getLogger("viapt.serve")
State = Literal["preparing", "fitting", "saving", "done", "cancelled", "failed"]

LOCK, SCRATCH = ".lock", ".lesson-"
FILES = (CONFIG, TENSORS, CARD)
REMEMBERED = 20  # lessons
POLITE = 10  # of nice: serving goes first
GRACE = 10.0  # seconds that a fit has to end by itself
ENOUGH = 5  # photos of each class, of which some can be held back
HELD_BACK, BATCH = 0.2, 16


@dataclass(eq=False)
class Lesson:
    """One teaching.

    Attributes:
        photos: of each class.
        curve: the epochs so far.
        error: found, expected, remedy: why it failed.
        unwanted: somebody has cancelled it.
    """

    name: str
    photos: dict[str, int]
    method: str
    epochs: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "preparing"
    curve: list[Epoch] = field(default_factory=list)
    error: dict[str, str] | None = None
    unwanted: bool = False
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    work: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.ended is None

    @property
    def seconds(self) -> float:
        """Since it began, until it ended."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def left(self) -> float:
        """Seconds that it will take yet, by its pace so far."""
        done = len(self.curve)
        return 30.0 if not done else self.seconds / done * (self.epochs - done)


class Teacher:
    """Fits one task at a time into a folder.

    Raises:
        ConfigError: no such folder can be made, another server has it, the backbone cannot be built again, or a task
            that was taught before has the name of another one.
    """

    def __init__(self, tasks: MultiTask, folder: Path, limits: Limits) -> None:
        if tasks.backbone.name is None or not tasks.backbone.pretrained:
            raise ConfigError(
                "The backbone cannot be built again in another process", expected="one with a name and trained weights"
            )
        self.image_size = one_number(tasks.backbone.preprocessing.image_size)
        self.tasks, self.folder, self.limits = tasks, folder, limits
        self.lessons: dict[str, Lesson] = {}
        self.beginning = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / LOCK, timeout=0)
            self.lock.acquire()
        except Timeout:  # an OSError, too
            raise ConfigError(f"Another server teaches into {folder}", remedy="choose another folder") from None
        except OSError as error:
            raise ConfigError(f"Nothing can be written to {folder} ({error})", expected="a folder of yours") from error
        for left_over in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left_over)
        names = sorted(path.parent.name for path in folder.glob(f"[!.]*/{CONFIG}"))
        self.taught = [name for name in names if self.remember(name)]

    def remember(self, name: str) -> bool:
        """Load a task that was taught before, unless it is there; one that cannot be loaded is logged, and left alone.

        Raises:
            ConfigError: another task has its name.
        """
        folder = self.folder / name
        if name in self.tasks:
            other = self.tasks.sources[self.tasks[name]].folder
            if other.resolve() != folder.resolve():
                raise ConfigError(
                    f"{other} and {folder}, which was taught, would both be called {name!r}",
                    remedy="rename one of the folders",
                )
            return True
        try:
            self.tasks.add(name, folder)
        except (ArtifactError, ConfigError) as error:
            log.error("%s, which was taught, is not loaded: %s", folder, error)
            return False
        return True

    @property
    def current(self) -> Lesson | None:
        """The one that has not ended."""
        return next((lesson for lesson in self.lessons.values() if lesson.running), None)

    def check_free(self) -> None:
        """Refuse while something is being fitted.

        Raises:
            Problem: 429, with the time that it will take yet.
        """
        if self.current or self.beginning:
            wait = 5 if self.current is None else max(1, min(600, round(self.look(self.current).left)))
            raise Problem(429, "busy", "A task is being taught already", remedy="wait, or cancel it", retry_after=wait)

    def check_name(self, name: str, replace: bool) -> None:
        """Refuse a name that is taken, and one task too many.

        Raises:
            Problem: taken by a task that was not taught here, or by one that was, and is not to be replaced.
        """
        mine = name in self.taught
        if (name in self.tasks and not mine) or (mine and not replace) or (not mine and (self.folder / name).exists()):
            raise Problem(
                409,
                "task_exists",
                f"There is a task {name!r} already",
                expected="a new name",
                remedy="replace: true" if mine else "",
            )
        if not mine and len(self.taught) >= self.limits.taught:
            raise Problem(
                409,
                "too_many_tasks",
                f"{len(self.taught)} tasks were taught here",
                expected=f"at most {self.limits.taught}",
                remedy="remove some from the server's folder, and start it again",
            )

    def begin(self, lesson: Lesson, photos: Sequence[tuple[bytes, str]]) -> None:
        """Fit in the background: to photos with their classes, all checked before."""
        while len(self.lessons) >= REMEMBERED:
            del self.lessons[next(iter(self.lessons))]
        self.lessons[lesson.id] = lesson
        lesson.work = asyncio.create_task(self.teach(lesson, photos))

    def look(self, lesson: Lesson) -> Lesson:
        """The same lesson, with the curve as it is now."""
        if lesson.state == "fitting":
            with contextlib.suppress(DataError):  # there is none yet
                lesson.curve = read_history(self.scratch(lesson) / RUN / HISTORY)
        return lesson

    async def cancel(self, lesson: Lesson) -> None:
        """End it, and wait for its end; one that is being saved is saved."""
        if lesson.work is not None:
            if lesson.state == "fitting" and not lesson.unwanted:
                lesson.work.cancel()
            lesson.unwanted = True
            await asyncio.wait({lesson.work})

    async def close(self) -> None:
        """End whatever is being fitted, and give the folder up."""
        if self.current:
            await self.cancel(self.current)
        self.lock.release()

    async def teach(self, lesson: Lesson, photos: Sequence[tuple[bytes, str]]) -> None:
        """Fit, save, load; never fails, but notes what happened."""
        state: State = "failed"
        try:
            await asyncio.to_thread(self.prepare, lesson, photos)
            if lesson.unwanted:
                raise asyncio.CancelledError
            lesson.state = "fitting"
            async with asyncio.timeout(self.limits.fit_seconds):
                await self.fit(lesson)
            self.look(lesson).state = "saving"
            await asyncio.to_thread(self.keep, lesson)
            state = "done"
        except asyncio.CancelledError:
            state = "cancelled"
        except TimeoutError:
            lesson.error = said(f"The fit took longer than {self.limits.fit_seconds:g} s", "fewer photos or epochs")
        except ViaptError as error:
            lesson.error = said(error.found, error.expected, error.remedy)
        except OSError as error:
            lesson.error = said(f"The server's disk refuses ({error.strerror})")
        except Exception:
            log.exception("Teaching %s failed", lesson.name)
            lesson.error = said("The server failed; its log says why")
        finally:
            self.look(lesson)
            await asyncio.to_thread(shutil.rmtree, self.scratch(lesson), ignore_errors=True)
            lesson.ended, lesson.state = time.monotonic(), state

    def prepare(self, lesson: Lesson, photos: Sequence[tuple[bytes, str]]) -> None:
        """Write down what is fitted to what."""
        folder = self.scratch(lesson)
        (folder / "photos").mkdir(parents=True)
        lines = []
        for number, (data, label) in enumerate(photos):
            (folder / "photos" / f"{number:06d}").write_bytes(data)
            lines.append(json.dumps({"path": f"photos/{number:06d}", "label": label}) + "\n")
        (folder / PHOTOS).write_text("".join(lines), encoding="utf-8")
        (folder / LESSON).write_text(json.dumps(self.settings(lesson).to_dict()), encoding="utf-8")

    def settings(self, lesson: Lesson) -> Settings:
        """Of the run: on the server's backbone, as the server has it."""
        backbone = self.tasks.backbone
        return Settings(
            backbone=backbone.name or "",
            weights=None if backbone.weights is None else str(backbone.weights),
            image_size=self.image_size,
            precision=str(backbone.dtype).removeprefix("torch."),
            method=lesson.method,
            augmentation="light",
            val_fraction=HELD_BACK if holds_back(lesson.photos) else 0.0,
            test_fraction=0.0,
            epochs=lesson.epochs,
            batch_size=min(BATCH, sum(lesson.photos.values())),
        )

    async def fit(self, lesson: Lesson) -> None:
        """In a process of its own, which is gone at the end, however that comes.

        Raises:
            DataError: it failed.
        """
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "viapt.serve.lesson", str(self.scratch(lesson))),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the server's alone
            env={"OMP_NUM_THREADS": threads} | os.environ,
        )
        try:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, POLITE)
            code = await process.wait()
        finally:
            await ended(process)
        if code == 0:
            return
        told = self.scratch(lesson) / ERROR
        if not told.exists():
            raise DataError(f"The fit ended with exit code {code}", remedy="the server's log says more")
        raise DataError(**json.loads(told.read_text(encoding="utf-8")))

    def keep(self, lesson: Lesson) -> None:
        """The adapter as a task, and as a folder; if that cannot be written, everything is as it was.

        Raises:
            ArtifactError: the disk refuses.
            ConfigError: somebody else loaded a task of this name meanwhile.
        """
        fitted, folder = self.scratch(lesson) / RUN, self.folder / lesson.name
        replaced = lesson.name in self.taught
        self.tasks.add(lesson.name, fitted, replace=replaced)
        try:
            commit(folder, {name: read_file(fitted / name, TENSORS_LIMIT) for name in FILES})
        except ArtifactError:
            self.tasks.remove(lesson.name)
            if replaced:
                self.tasks.add(lesson.name, folder)
            raise
        if not replaced:
            self.taught.append(lesson.name)

    def forget(self, name: str) -> None:
        """Whatever this name will mean now was not taught here."""
        if name in self.taught:
            self.taught.remove(name)

    def scratch(self, lesson: Lesson) -> Path:
        """Where a lesson works."""
        return self.folder / f"{SCRATCH}{lesson.id}"


async def ended(process: asyncio.subprocess.Process) -> None:
    """Have a process end: asked first, then made to."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def said(found: str, expected: str = "", remedy: str = "") -> dict[str, str]:
    """An error in words."""
    return {"found": found, "expected": expected, "remedy": remedy}


def holds_back(photos: Mapping[str, int]) -> bool:
    """Whether there are photos enough to measure on some that are not learned from."""
    return min(photos.values()) >= ENOUGH


def one_number(size: Any) -> int:
    """The side of square images.

    Raises:
        ConfigError: they are not square.
    """
    height, width = size
    if height != width:
        raise ConfigError(f"The backbone wants images of {height} x {width}", expected="square ones, to teach")
    return height

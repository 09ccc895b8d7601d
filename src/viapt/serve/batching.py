"""Dynamic batching: rows of different requests and tasks go through the backbone together, several passes at a time.

Rows are admitted up to a bound, and cut into jobs, each of which fits into a pass. A job waits at most `Limits.wait`
for others of its kind, and is computed in one of the threads of passes while the next ones gather. A request keeps the
tasks that there were when it was admitted. Where a batch fails, its jobs are computed again one by one, so that nobody
pays for another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median_low

import torch
from jaxtyping import Float
from torch import Tensor

from viapt.mixture import Row, kind, passes, size
from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask, Outcome, Question, outcome
from viapt.serve.limits import Limits
from viapt.serve.metrics import Metrics
from viapt.serve.pace import efficient_pace, seconds_at
from viapt.serve.problems import LESS, Problem

Models = Mapping[str, PromptedClassifier]
LATELY = 15  # passes: more than another program holds up


@dataclass(eq=False)
class Job:
    """Rows of a request that fit into a pass, the request's images, and who waits for the logits."""

    request: object
    images: Float[Tensor, "n 3 height width"]
    rows: Sequence[Row]
    answer: asyncio.Future[list[Tensor]]
    arrived: float = field(default_factory=time.monotonic)

    @cached_property
    def kind(self) -> Hashable:
        """Jobs of one kind may share a pass."""
        return kind(self.rows[0].model)

    @cached_property
    def size(self) -> int:
        """Rows for the blocks."""
        return size(self.rows)


class Batcher:
    """Gathers jobs, computes them, and hands the answers out; on the event loop that `start` is called on."""

    def __init__(self, tasks: MultiTask, limits: Limits, metrics: Metrics) -> None:
        self.tasks, self.limits, self.metrics = tasks, limits, metrics
        self.pace = efficient_pace(tasks.backbone, limits.passes, limits.rows)
        tasks.allow(self.pace.passes)
        metrics.passes.set(self.pace.passes)
        self.jobs: deque[Job] = deque()
        self.admitted = 0
        self.ended = False
        self.taken = deque([seconds_at(tasks.backbone, self.pace)], LATELY)  # seconds of a row, in each pass
        self.arrived = asyncio.Event()
        self.threads = ThreadPoolExecutor(
            self.pace.passes, "viapt-passes", initializer=torch.set_num_threads, initargs=(self.pace.threads,)
        )
        self.loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to compute."""
        self.loops = [asyncio.create_task(self.run()) for _ in range(self.pace.passes)]

    async def stop(self) -> None:
        """End; whoever still waits, or asks afterwards, is told so."""
        self.ended = True
        for loop in self.loops:
            loop.cancel()
        await asyncio.gather(*self.loops, return_exceptions=True)
        self.threads.shutdown(wait=True)
        refuse(self.jobs)

    @property
    def alive(self) -> bool:
        """Whether jobs are computed."""
        return bool(self.loops) and not any(loop.done() for loop in self.loops)

    @property
    def seconds(self) -> float:
        """That a row took lately."""
        return median_low(self.taken)

    @property
    def room(self) -> int:
        """Rows that may be admitted at a time: those of the queue, but no more than are answered within the timeout."""
        return max(1, min(self.limits.queue, int(self.limits.timeout * self.pace.passes / self.seconds)))

    def check(self, rows: int) -> None:
        """Refuse what can never be admitted.

        Raises:
            Problem: 413.
        """
        if rows > self.room:
            raise Problem(
                413,
                "too_many_rows",
                f"The request makes {rows} rows (images x tasks x rounds)",
                expected=f"at most {self.room}: the queue, or what is computed here within {self.limits.timeout:g} s",
                remedy=LESS,
            )

    def admit(self, rows: int) -> None:
        """Take so many rows on; `release` gives them up again.

        Raises:
            Problem: there are too many already (429), or these alone are more than there can ever be (413).
        """
        self.check(rows)
        if self.admitted + rows > self.room:
            raise Problem(
                429,
                "busy",
                f"{self.admitted} rows are being computed or wait",
                expected=f"at most {self.room} with those of this request, {rows}",
                remedy="send it again later",
                retry_after=max(1, math.ceil(self.seconds * self.admitted / self.pace.passes)),
            )
        self.admitted += rows
        self.metrics.waiting.set(self.admitted)

    def release(self, rows: int) -> None:
        """The opposite of `admit`."""
        self.admitted -= rows
        self.metrics.waiting.set(self.admitted)

    async def ask(
        self, images: Float[Tensor, "n 3 height width"], questions: Sequence[Question], models: Models
    ) -> list[Outcome]:
        """The answers to a request's questions, which were admitted; cancelled, they are not computed any more."""
        if self.ended:
            raise draining()
        request = object()
        jobs = [
            Job(request, images, rows, asyncio.get_running_loop().create_future())
            for rows in passes(self.tasks.rows_of(questions, models, images.shape[0]), self.pace.rows)
        ]
        self.jobs.extend(jobs)
        self.arrived.set()
        logits: list[list[Tensor]] = [[] for _ in questions]
        try:
            for job, found in zip(jobs, await asyncio.gather(*(job.answer for job in jobs)), strict=True):
                for row, some in zip(job.rows, found, strict=True):
                    logits[row.question].append(some)
        finally:
            for job in jobs:  # if one of them failed, the others are for nothing
                job.answer.cancel()
            self.jobs = deque(job for job in self.jobs if job.request is not request)
        return [outcome(found, question.policy) for question, found in zip(questions, logits, strict=True)]

    async def run(self) -> None:
        """Batch after batch."""
        while True:
            await self.gather()
            await self.answer(self.take())

    async def answer(self, batch: list[Job]) -> None:
        """Compute a batch and hand its answers out; nothing of it is kept while the next one is waited for."""
        if not batch:
            return
        began = time.monotonic()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.threads, self.compute, batch)
        except BaseException:
            refuse(batch)
            raise
        self.count(batch, time.monotonic() - began)
        for job, result in zip(batch, results, strict=True):
            if job.answer.done():
                continue
            if isinstance(result, Exception):
                job.answer.set_exception(result)
            else:
                job.answer.set_result(result)

    async def gather(self) -> None:
        """Wait until there is a job, and then for as many of its kind as fit, but not too long."""
        while True:
            self.arrived.clear()
            patience = None
            if self.jobs:
                patience = self.jobs[0].arrived + self.limits.wait - time.monotonic()
                if patience <= 0 or self.waiting >= self.pace.rows:
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.arrived.wait()

    @property
    def waiting(self) -> int:
        """Rows of the next pass's kind that nobody computes yet."""
        return sum(job.size for job in self.jobs if job.kind == self.jobs[0].kind)

    def take(self) -> list[Job]:
        """The oldest job, and those of its kind that make its pass cheaper; the others stay in their order."""
        batch: list[Job] = []
        others: deque[Job] = deque()
        rows = 0
        for job in self.jobs:
            if job.answer.done():  # nobody waits for it any more
                continue
            if not batch or (job.kind == batch[0].kind and rows + job.size <= self.pace.rows):
                batch.append(job)
                rows += job.size
            else:
                others.append(job)
        self.jobs = others
        return batch

    def compute(self, batch: list[Job]) -> list[list[Tensor] | Exception]:
        """In a thread of passes: what each job is told."""
        try:
            images, rows = [], []
            for job in batch:
                needed = list(dict.fromkeys(row.image for row in job.rows))
                places = {image: len(images) + place for place, image in enumerate(needed)}
                images += [job.images[image] for image in needed]
                rows += [row._replace(image=places[row.image]) for row in job.rows]
            logits = iter(self.tasks.compute(torch.stack(images), rows))
            return [[next(logits) for _ in job.rows] for job in batch]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for job in batch for result in self.compute([job])]

    def count(self, batch: list[Job], seconds: float) -> None:
        """For the metrics, and to say when to come back."""
        rows = sum(len(job.rows) for job in batch)
        self.taken.append(seconds / rows)
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_requests.observe(len({job.request for job in batch}))
        self.metrics.batch_seconds.observe(seconds)


def refuse(jobs: Iterable[Job]) -> None:
    """Tell whoever still waits that nobody computes any more."""
    for job in jobs:
        if not job.answer.done():
            job.answer.set_exception(draining())


def draining() -> Problem:
    """Nobody computes any more."""
    return Problem(503, "draining", "The server is shutting down", retry_after=5)

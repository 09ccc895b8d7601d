"""Dynamic batching: questions of different requests, tasks and methods go through the backbone together.

Rows are admitted up to a bound, wait at most `Limits.wait` for others, and are computed in a thread of their own while
the next ones gather. A request keeps the tasks that there were when it was admitted. Where a batch fails, its requests
are computed again one by one, so that nobody pays for another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask, Outcome, Question
from viapt.serve.limits import Limits
from viapt.serve.metrics import Metrics
from viapt.serve.pace import efficient_rows
from viapt.serve.problems import Problem

Models = Mapping[str, PromptedClassifier]


@dataclass(eq=False)
class Job:
    """A request's questions about its images, and who waits for the answers."""

    images: Float[Tensor, "n 3 height width"]
    questions: Sequence[Question]
    models: Models
    rows: int
    answer: asyncio.Future[list[Outcome]]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Gathers jobs, computes them, and hands the answers out; on the event loop that `start` is called on."""

    def __init__(self, tasks: MultiTask, limits: Limits, metrics: Metrics) -> None:
        self.tasks, self.limits, self.metrics = tasks, limits, metrics
        self.rows, self.most = limits.rows or efficient_rows(tasks.backbone), limits.rows or tasks.rows
        self.jobs: deque[Job] = deque()
        self.admitted = 0
        self.pace = 0.01  # seconds a row took lately
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="viapt-passes")
        self.loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute."""
        self.loop = asyncio.create_task(self.run())

    async def stop(self) -> None:
        """End; whoever still waits is told so."""
        if self.loop is not None:
            self.loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.loop
        self.thread.shutdown(wait=True)
        while self.jobs:
            job = self.jobs.popleft()
            if not job.answer.done():
                job.answer.set_exception(Problem(503, "draining", "The server is shutting down", retry_after=5))

    @property
    def alive(self) -> bool:
        """Whether jobs are computed."""
        return self.loop is not None and not self.loop.done()

    def admit(self, rows: int) -> None:
        """Take so many rows on; `release` gives them up again.

        Raises:
            Problem: there are too many already (429), or these alone are more than there can ever be (413).
        """
        if rows > self.limits.queue:
            raise Problem(
                413,
                "too_many_rows",
                f"The request makes {rows} rows (images x tasks x rounds)",
                expected=f"at most {self.limits.queue}",
                remedy="send fewer images at a time, choose tasks, or ask for fewer rounds",
            )
        if self.admitted + rows > self.limits.queue:
            raise Problem(
                429,
                "busy",
                f"{self.admitted} rows are being computed or wait",
                expected=f"at most {self.limits.queue} with those of this request, {rows}",
                remedy="send it again later",
                retry_after=max(1, math.ceil(self.pace * self.admitted)),
            )
        self.admitted += rows
        self.metrics.waiting.set(self.admitted)

    def release(self, rows: int) -> None:
        """The opposite of `admit`."""
        self.admitted -= rows
        self.metrics.waiting.set(self.admitted)

    async def ask(
        self, images: Float[Tensor, "n 3 height width"], questions: Sequence[Question], models: Models, rows: int
    ) -> list[Outcome]:
        """The answers to a request's questions, which were admitted; cancelled, they are not computed any more."""
        job = Job(images, questions, models, rows, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.arrived.set()
        return await job.answer

    async def run(self) -> None:
        """Batch after batch."""
        while True:
            await self.gather()
            batch = self.take()
            if not batch:
                continue
            began = time.monotonic()
            results = await asyncio.get_running_loop().run_in_executor(self.thread, self.compute, batch)
            self.count(batch, time.monotonic() - began)
            for job, result in zip(batch, results, strict=True):
                if job.answer.done():
                    continue
                if isinstance(result, Exception):
                    job.answer.set_exception(result)
                else:
                    job.answer.set_result(result)

    async def gather(self) -> None:
        """Wait until there is a job, and then for as many as fit, but not too long."""
        while True:
            self.arrived.clear()
            patience = None
            if self.jobs:
                patience = self.jobs[0].arrived + self.limits.wait - time.monotonic()
                if patience <= 0 or self.waiting >= self.rows:
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.arrived.wait()

    @property
    def waiting(self) -> int:
        """Rows that nobody computes yet."""
        return sum(job.rows for job in self.jobs)

    def take(self) -> list[Job]:
        """The oldest jobs that go together: of the same set of tasks, and not too many rows.

        That is as many as make a pass cheaper; of a long queue half, since passes of different methods are shared
        better then, and who comes first need not wait for the last.
        """
        batch: list[Job] = []
        rows, limit = 0, max(self.rows, min(self.waiting // 2, self.most))
        while self.jobs:
            job = self.jobs[0]
            if batch and (job.models is not batch[0].models or rows + job.rows > limit):
                break
            self.jobs.popleft()
            if not job.answer.done():  # nobody waits for it any more
                batch.append(job)
                rows += job.rows
        return batch

    def compute(self, batch: list[Job]) -> list[list[Outcome] | Exception]:
        """In the thread of passes: what each job is told."""
        try:
            images = torch.cat([job.images for job in batch])
            questions, first = [], 0
            for job in batch:
                questions += [question._replace(image=question.image + first) for question in job.questions]
                first += job.images.shape[0]
            outcomes = iter(self.tasks.answer(images, questions, batch[0].models))
            return [[next(outcomes) for _ in job.questions] for job in batch]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for job in batch for result in self.compute([job])]

    def count(self, batch: list[Job], seconds: float) -> None:
        """For the metrics, and to say when to come back."""
        rows = sum(job.rows for job in batch)
        self.pace += 0.2 * (seconds / rows - self.pace)
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_requests.observe(len(batch))
        self.metrics.batch_seconds.observe(seconds)

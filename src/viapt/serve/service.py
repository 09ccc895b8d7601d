"""What the routes work with: tasks, the batches that they are asked in, and who fetches and teaches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from starlette.datastructures import UploadFile as Upload
from torch import Tensor

from viapt.data.images import read_image
from viapt.data.transforms import eval_transform
from viapt.errors import ArtifactError, ConfigError, DataError, did_you_mean
from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask, Outcome, Question
from viapt.serve.attention import attend
from viapt.serve.batching import Batcher, draining
from viapt.serve.fetching import Fetcher
from viapt.serve.limits import Limits
from viapt.serve.metrics import Metrics
from viapt.serve.problems import Problem, from_error
from viapt.serve.schema import Answers, Attention, ImageAnswer, LoadRequest, TaskAnswer, TaskInfo
from viapt.serve.tasks import below
from viapt.serve.teaching import Teacher

DECODERS = 2  # threads; each holds the pixels of one image


class Service:
    """What the routes work with."""

    def __init__(
        self,
        tasks: MultiTask,
        limits: Limits,
        roots: Sequence[Path],
        teacher: Teacher | None,
        fetcher: Fetcher | None,
        replica: str | None = None,
    ) -> None:
        self.tasks, self.limits, self.roots = tasks, limits, list(roots)
        self.teacher, self.fetcher, self.replica = teacher, fetcher, replica
        self.metrics = Metrics(replica)
        self.batcher = Batcher(tasks, limits, self.metrics)
        self.decoders = ThreadPoolExecutor(DECODERS, "viapt-decoding", torch.set_num_threads, (1,))
        self.loader = ThreadPoolExecutor(1, "viapt-loading", torch.set_num_threads, (1,))
        self.looking = asyncio.Lock()  # one at a time, so that a pass waits for one of them at most
        self.transform = eval_transform(tasks.backbone.preprocessing)

    async def classify(
        self, images: Sequence[Upload], urls: Sequence[str], asked: Question, names: Sequence[str]
    ) -> Answers:
        """All images for all these tasks (none: all that there are), as `asked` says; those of addresses come last."""
        models = self.tasks.models  # for the whole request, whatever is loaded or unloaded meanwhile
        names = chosen(models, names)
        titles = [title(image, k) for k, image in enumerate(images)] + list(urls)
        self.check_sources(len(titles), len(urls))
        if asked.rounds > self.limits.rounds:
            raise Problem(422, "too_many_rounds", f"{asked.rounds} rounds", expected=f"at most {self.limits.rounds}")
        passes = sum(asked.rounds if samples(models[name]) and asked.policy == "multi" else 1 for name in names)
        rows = passes * len(titles)
        self.batcher.check(rows)
        fetched = await self.fetch(urls)  # before rows are taken on: others' are computed meanwhile
        self.batcher.admit(rows)
        try:
            batch = await self.decode_all([*images, *fetched], titles)
            questions = [asked._replace(task=name, image=k) for k in range(len(titles)) for name in names]
            outcomes = await self.batcher.ask(batch, questions, models)
        finally:
            self.batcher.release(rows)
        self.metrics.images.inc(len(titles))
        found = [
            task_answer(models[question.task].classes, outcome, question.task)
            for question, outcome in zip(questions, outcomes, strict=True)
        ]
        pieces = [found[start : start + len(names)] for start in range(0, len(found), len(names))]
        return Answers(
            images=[
                ImageAnswer(name=title, tasks=dict(zip(names, piece, strict=True)))
                for title, piece in zip(titles, pieces, strict=True)
            ]
        )

    def check_sources(self, images: int, addressed: int) -> None:
        """Refuse no images, too many, and addresses where nobody allowed them.

        Raises:
            Problem: likewise.
        """
        if addressed and self.fetcher is None:
            raise Problem(
                403, "urls_are_off", "No images are fetched from addresses here", expected="a server with --allow-urls"
            )
        if not images:
            raise Problem(422, "invalid_request", "There are no images", expected="at least one, as a file")
        if images > self.limits.images:
            raise Problem(
                413, "too_many_images", f"{images} images", expected=f"at most {self.limits.images} in a request"
            )

    async def fetch(self, urls: Sequence[str]) -> list[bytes]:
        """The images of these addresses."""
        return await self.fetcher.fetch(list(urls)) if self.fetcher and urls else []

    async def attention(self, image: Upload, task: str) -> Attention:
        """Where a task looks, in its turn."""
        model, data = self.tasks.models[chosen(self.tasks.models, [task])[0]], await image.read()
        work = partial(attend, self.tasks, model, self.transform, data, title(image, 0), self.limits.pixels)
        self.batcher.admit(1)
        try:
            await self.looking.acquire()
        except BaseException:  # nobody waits for it any more
            self.batcher.release(1)
            raise
        try:
            return await self.look(work)
        except DataError as error:
            raise from_error(422, "unreadable_image", error) from error

    async def look(self, work: Callable[[], Attention]) -> Attention:
        """In a thread of passes; the turn and its row end with the work, which goes on if nobody waits for it."""
        loop = asyncio.get_running_loop()
        try:
            found = self.batcher.threads.submit(work)
        except RuntimeError:  # they have ended
            self.looked()
            raise draining() from None
        found.add_done_callback(lambda _: loop.call_soon_threadsafe(self.looked))
        return await asyncio.wrap_future(found)

    def looked(self) -> None:
        """The next one may look."""
        self.looking.release()
        self.batcher.release(1)

    async def read_photos(self, photos: Sequence[Upload]) -> list[bytes | str]:
        """The bytes of each photo that can be read, or what is wrong with it."""

        async def read(photo: Upload, index: int) -> bytes | str:
            data = await photo.read()
            try:
                await self.decode(data, title(photo, index))
            except Problem as problem:
                return problem.detail
            return data

        return list(await asyncio.gather(*(read(photo, index) for index, photo in enumerate(photos))))

    async def decode_all(self, images: Sequence[Upload | bytes], titles: Sequence[str]) -> Tensor:
        """A batch, or the first problem; what was not begun then is left alone."""
        decoding = [asyncio.ensure_future(self.decode(*one)) for one in zip(images, titles, strict=True)]
        try:
            return torch.stack(await asyncio.gather(*decoding))
        finally:
            for task in decoding:
                task.cancel()

    async def decode(self, image: Upload | bytes, name: str) -> Tensor:
        """An encoded image as the backbone wants it.

        Raises:
            Problem: it is no image, damaged or too large.
        """
        data = image if isinstance(image, bytes) else await image.read()

        def work() -> Tensor:
            return self.transform(read_image(data, name=name, max_pixels=self.limits.pixels))

        try:
            return await asyncio.get_running_loop().run_in_executor(self.decoders, work)
        except DataError as error:
            raise from_error(422, "unreadable_image", error) from error

    async def load(self, name: str, request: LoadRequest) -> TaskInfo:
        """A task from an adapter below one of the roots, in its turn among all changes."""
        return await asyncio.get_running_loop().run_in_executor(self.loader, self.load_now, name, request)

    async def unload(self, name: str) -> TaskInfo:
        """Forget a task, likewise."""
        return await asyncio.get_running_loop().run_in_executor(self.loader, self.unload_now, name)

    def load_now(self, name: str, request: LoadRequest) -> TaskInfo:
        """In the thread that loads."""
        if name in self.tasks and not request.replace:
            raise Problem(409, "task_exists", f"There is a task {name!r} already", remedy='"replace": true')
        if name not in self.tasks and len(self.tasks) >= self.limits.tasks:
            found = f"{len(self.tasks)} tasks are loaded"
            raise Problem(
                409, "too_many_tasks", found, expected=f"at most {self.limits.tasks}", remedy="DELETE /v1/tasks/NAME"
            )
        folder = below(self.roots, request.directory)
        try:
            model = self.tasks.add(name, folder, replace=request.replace)
        except (ArtifactError, ConfigError) as error:
            raise from_error(422, "unusable_adapter", error) from error
        if self.teacher is not None:
            self.teacher.forget(name)
        return self.info(name, model)

    def unload_now(self, name: str) -> TaskInfo:
        """In the thread that loads."""
        if self.replica is not None:
            raise Problem(403, "loading_is_off", "Tasks are not unloaded at run time here", expected="one process")
        model = self.tasks.models[chosen(self.tasks.models, [name])[0]]
        try:
            self.tasks.remove(name)
        except ConfigError as error:  # whoever made the application may change its tasks, too
            raise from_error(404, "unknown_task", error) from error
        return self.info(name, model)

    def info(self, name: str, model: PromptedClassifier) -> TaskInfo:
        """What a client may know of a task."""
        taught = self.teacher is not None and name in self.teacher.taught
        return TaskInfo(
            name=name,
            method=model.method.name,
            classes=model.classes,
            samples=samples(model),
            precision=self.tasks.sources[model].precision,
            taught=taught,
        )


def chosen(models: Mapping[str, PromptedClassifier], names: Sequence[str]) -> list[str]:
    """The tasks of these names, each once; without names, all.

    Raises:
        Problem: there is no such task, or none at all.
    """
    for name in names:
        if name not in models:
            raise Problem(
                404,
                "unknown_task",
                f"There is no task {name!r}",
                expected=f"one of {', '.join(models)}" if models else "a task that is loaded",
                remedy=did_you_mean(name, models),
            )
    found = list(dict.fromkeys(names or models))
    if not found:
        raise Problem(503, "no_tasks", "No tasks are loaded", remedy="PUT /v1/tasks/NAME", retry_after=5)
    return found


def task_answer(classes: Sequence[str], outcome: Outcome, task: str) -> TaskAnswer:
    """In plain numbers.

    Raises:
        Problem: they are not finite.
    """
    if not bool(outcome.probabilities.isfinite().all()):
        raise Problem(500, "not_finite", f"The probabilities of task {task!r} are not finite")
    values, best = outcome.probabilities.tolist(), int(outcome.probabilities.argmax())
    spread = None if outcome.spread is None else dict(zip(classes, outcome.spread.tolist(), strict=True))
    probabilities = dict(zip(classes, values, strict=True))
    return TaskAnswer(
        label=classes[best],
        probability=values[best],
        probabilities=probabilities,
        spread=spread,
        rounds=outcome.rounds,
    )


def samples(model: PromptedClassifier) -> bool:
    """Whether policies differ for it."""
    return model.method.sampled_prompts > 0


def title(image: Upload, index: int) -> str:
    """What an uploaded file is called in answers."""
    return image.filename or f"image {index}"

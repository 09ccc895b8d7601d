"""The application: what can be asked over HTTP, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile as Upload
from torch import Tensor

from viapt.data.images import read_image
from viapt.data.transforms import eval_transform
from viapt.errors import ArtifactError, ConfigError, DataError, did_you_mean
from viapt.inference import Policy
from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask, Outcome, Question
from viapt.serve import problems
from viapt.serve.batching import Batcher
from viapt.serve.gate import Gate
from viapt.serve.limits import Limits
from viapt.serve.metrics import Metrics
from viapt.serve.problems import Problem, from_error
from viapt.serve.schema import (
    Answers,
    ErrorBody,
    ImageAnswer,
    LimitsInfo,
    LoadRequest,
    Status,
    TaskAnswer,
    TaskInfo,
    TaskList,
)
from viapt.serve.tasks import below

DECODERS = 2  # threads; each holds the pixels of one image
LARGEST_SEED = 2**63  # a schema says it as a float, which this is exactly
Name = Annotated[str, InPath(pattern=r"^[^/\x00-\x1f]{1,100}$", description="Of the task.")]
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 503, 504)
}

TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


class Service:
    """What the routes work with."""

    def __init__(self, tasks: MultiTask, limits: Limits, roots: Sequence[Path]) -> None:
        self.tasks, self.limits, self.roots = tasks, limits, list(roots)
        self.metrics = Metrics()
        self.batcher = Batcher(tasks, limits, self.metrics)
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="viapt-decoding")
        self.transform = eval_transform(tasks.backbone.preprocessing)

    async def classify(self, images: Sequence[Upload], asked: Question, names: Sequence[str]) -> Answers:
        """All images for all these tasks (none: all that there are), as `asked` says."""
        models = self.tasks.models  # for the whole request, whatever is loaded or unloaded meanwhile
        names = chosen(models, names)
        if len(images) > self.limits.images:
            raise Problem(
                413, "too_many_images", f"{len(images)} images", expected=f"at most {self.limits.images} in a request"
            )
        if asked.rounds > self.limits.rounds:
            raise Problem(422, "too_many_rounds", f"{asked.rounds} rounds", expected=f"at most {self.limits.rounds}")
        passes = sum(asked.rounds if samples(models[name]) and asked.policy == "multi" else 1 for name in names)
        rows = passes * len(images)
        self.batcher.admit(rows)
        try:
            batch = await self.decode_all(images)
            questions = [asked._replace(task=name, image=k) for k in range(len(images)) for name in names]
            outcomes = await self.batcher.ask(batch, questions, models, rows)
        finally:
            self.batcher.release(rows)
        self.metrics.images.inc(len(images))
        found = [
            task_answer(models[question.task].classes, outcome, question.task)
            for question, outcome in zip(questions, outcomes, strict=True)
        ]
        pieces = [found[start : start + len(names)] for start in range(0, len(found), len(names))]
        return Answers(
            images=[
                ImageAnswer(name=title(image, k), tasks=dict(zip(names, piece, strict=True)))
                for k, (image, piece) in enumerate(zip(images, pieces, strict=True))
            ]
        )

    async def decode_all(self, images: Sequence[Upload]) -> Tensor:
        """A batch, or the first problem; what was not begun then is left alone."""
        decoding = [asyncio.ensure_future(self.decode(image, k)) for k, image in enumerate(images)]
        try:
            return torch.stack(await asyncio.gather(*decoding))
        finally:
            for task in decoding:
                task.cancel()

    async def decode(self, image: Upload, index: int) -> Tensor:
        """An uploaded file as the backbone wants it.

        Raises:
            Problem: it is no image, damaged or too large.
        """
        data = await image.read()
        name = title(image, index)

        def work() -> Tensor:
            return self.transform(read_image(data, name=name, max_pixels=self.limits.pixels))

        try:
            return await asyncio.get_running_loop().run_in_executor(self.decoders, work)
        except DataError as error:
            raise from_error(422, "unreadable_image", error) from error

    def load(self, name: str, request: LoadRequest) -> TaskInfo:
        """A task from an adapter below one of the roots."""
        if name in self.tasks and not request.replace:
            raise Problem(409, "task_exists", f"There is a task {name!r} already", remedy='"replace": true')
        folder = below(self.roots, request.directory)
        try:
            model = self.tasks.add(name, folder, replace=request.replace)
        except (ArtifactError, ConfigError) as error:
            raise from_error(422, "unusable_adapter", error) from error
        self.metrics.tasks.set(len(self.tasks))
        return info(name, model)

    def unload(self, name: str) -> TaskInfo:
        """Forget a task."""
        model = self.tasks.models[chosen(self.tasks.models, [name])[0]]
        try:
            self.tasks.remove(name)
        except ConfigError as error:  # somebody else was faster
            raise from_error(404, "unknown_task", error) from error
        self.metrics.tasks.set(len(self.tasks))
        return info(name, model)


def create_app(
    tasks: MultiTask, *, limits: Limits | None = None, roots: Sequence[Path] = (), token: str | None = None
) -> FastAPI:
    """The service of these tasks, as an ASGI application.

    Args:
        tasks: what is loaded at first.
        limits: None: the defaults.
        roots: folders below which adapters may be loaded at run time.
        token: that every request must carry, but those about health.
    """
    service = Service(tasks, limits or Limits(), roots)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        service.metrics.tasks.set(len(tasks))
        yield
        await service.batcher.stop()
        service.decoders.shutdown(wait=True)

    app = FastAPI(
        title="viapt", version=version("viapt"), lifespan=lifespan, responses=ERRORS, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.add_middleware(Gate, limits=service.limits, metrics=service.metrics, token=token)
    problems.install(app)
    add_status(app, service)
    add_tasks(app, service)

    @app.post("/v1/classify", response_model=Answers)
    async def classify(
        request: Request,
        images: Annotated[list[UploadFile], File(min_length=1, description="Encoded images: JPEG, PNG, WebP ...")],
        tasks: Annotated[list[str] | None, Form(description="Names; none: all that are loaded.")] = None,
        policy: Annotated[Policy, Form()] = "mean",
        rounds: Annotated[int, Form(ge=1, description="Of policy multi; GET /v1/tasks says how many at most.")] = 5,
        seed: Annotated[int, Form(ge=0, le=LARGEST_SEED, description="Of policies fixed and multi.")] = 0,
    ) -> Answers:
        """Classify images for the chosen tasks; one unreadable image refuses the request, and is named."""
        asked = Question("", 0, policy, rounds, seed)
        answers = service.classify(images, asked, tasks or [])
        return await in_time(answers, request, service.limits.timeout)

    return app


def add_status(app: FastAPI, service: Service) -> None:
    """What those who run the process ask for."""

    @app.get("/healthz", response_model=Status, responses={503: {"model": Status}})
    async def health() -> Any:
        """Whether the process computes; if not, restart it."""
        return Status(status="ok") if service.batcher.alive else JSONResponse({"status": "broken"}, 503)

    @app.get("/readyz", response_model=Status, responses={503: {"model": Status}})
    async def readiness() -> Any:
        """Whether to send requests here."""
        return Status(status="ready") if service.batcher.alive else JSONResponse({"status": "broken"}, 503)

    @app.get("/metrics", response_class=Response, responses={200: TEXT})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def add_tasks(app: FastAPI, service: Service) -> None:
    """What is loaded, and loading."""
    tasks, limits = service.tasks, service.limits

    @app.get("/v1/tasks", response_model=TaskList)
    async def list_tasks() -> TaskList:
        """The tasks that are loaded, and the limits of a request."""
        return TaskList(
            tasks=[info(name, model) for name, model in tasks.models.items()],
            limits=LimitsInfo(
                images=limits.images, request_bytes=limits.request_bytes, pixels=limits.pixels, rounds=limits.rounds
            ),
            backbone=tasks.backbone.name,
            fingerprint=tasks.backbone.fingerprint,
        )

    @app.put("/v1/tasks/{name}", response_model=TaskInfo)
    def load_task(name: Name, request: LoadRequest) -> TaskInfo:
        """Load an adapter as a task; everything else goes on meanwhile."""
        return service.load(name, request)

    @app.delete("/v1/tasks/{name}", response_model=TaskInfo)
    def unload_task(name: Name) -> TaskInfo:
        """Unload a task; requests that have begun still get its answers."""
        return service.unload(name)


async def in_time(answers: Any, request: Request, seconds: float) -> Answers:
    """Answers, if they come in time and while somebody waits for them; else their computation is cancelled.

    Raises:
        Problem: it took too long, or the client is gone (which nobody reads).
    """
    work, gone = asyncio.ensure_future(answers), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise Problem(499, "client_gone", "The client is gone")
        raise Problem(504, "timeout", f"There was no answer within {seconds:g} s", retry_after=1)
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def disconnected(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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


def info(name: str, model: PromptedClassifier) -> TaskInfo:
    """What a client may know of a task."""
    return TaskInfo(name=name, method=model.method.name, classes=model.classes, samples=samples(model))


def title(image: Upload, index: int) -> str:
    """What an uploaded file is called in answers."""
    return image.filename or f"image {index}"

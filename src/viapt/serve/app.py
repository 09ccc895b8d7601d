"""The application: what can be asked over HTTP, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from viapt.inference import Policy
from viapt.multitask import MultiTask, Question
from viapt.serve import problems
from viapt.serve.fetching import Fetcher
from viapt.serve.gate import Gate
from viapt.serve.limits import Limits
from viapt.serve.page import add_page
from viapt.serve.problems import Problem
from viapt.serve.schema import (
    Answers,
    Attention,
    ErrorBody,
    LimitsInfo,
    LoadRequest,
    Status,
    TaskInfo,
    TaskList,
)
from viapt.serve.service import Service
from viapt.serve.teaching import Teacher
from viapt.serve.teaching_routes import add_teaching, offered

T = TypeVar("T")
LARGEST_SEED = 2**63  # a schema says it as a float, which this is exactly
Name = Annotated[str, InPath(pattern=r"^[^/\x00-\x1f]{1,100}$", description="Of the task.")]
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503, 504)
}

TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


def create_app(
    tasks: MultiTask,
    *,
    limits: Limits | None = None,
    roots: Sequence[Path] = (),
    token: str | None = None,
    teach: Path | None = None,
    fetcher: Fetcher | None = None,
    local: bool = False,
    replica: str | None = None,
) -> FastAPI:
    """The service of these tasks, as an ASGI application.

    Args:
        tasks: what is loaded at first.
        limits: None: the defaults.
        roots: folders below which adapters may be loaded at run time.
        token: that every request must carry, but those about health, and the page, which asks for it.
        teach: folder for tasks that are taught here; those that it holds are loaded. None: nothing is taught.
        fetcher: of images that are named by their address; None: none are fetched.
        local: whether it is only ever called by a loopback name. Then no foreign site can have a browser on this
            machine call it by a name of its own.
        replica: a name among several processes that answer as one. Its tasks then stay as they are, and its metrics
            carry the name.

    Raises:
        ConfigError, ArtifactError: see `viapt.serve.teaching.Teacher`.
    """
    limits = limits or Limits()
    teacher = None if teach is None else Teacher(tasks, teach, limits)
    service = Service(tasks, limits, roots, teacher, fetcher, replica)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        if teacher is not None:
            await teacher.close()
        await service.batcher.stop()
        service.decoders.shutdown(wait=True)
        service.loader.shutdown(wait=True)

    app = FastAPI(
        title="viapt", version=version("viapt"), lifespan=lifespan, responses=ERRORS, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.add_middleware(Gate, limits=limits, metrics=service.metrics, token=token, local=local)
    problems.install(app)
    add_page(app)
    add_status(app, service)
    add_tasks(app, service)
    add_teaching(app, teacher, limits, service.read_photos, in_time)

    @app.post("/v1/classify", response_model=Answers)
    async def classify(
        request: Request,
        images: Annotated[
            list[UploadFile], File(default_factory=list, description="Encoded images: JPEG, PNG, WebP ...")
        ],
        urls: Annotated[
            list[str], Form(default_factory=list, description="Addresses of images, where the server allows it.")
        ],
        tasks: Annotated[list[str], Form(default_factory=list, description="Names; none: all that are loaded.")],
        policy: Annotated[Policy, Form()] = "mean",
        rounds: Annotated[
            int | None,
            Form(ge=1, description="Of policy multi alone (default: 5, or the most that GET /v1/tasks tells)."),
        ] = None,
        seed: Annotated[
            int | None, Form(ge=0, le=LARGEST_SEED, description="Of policies fixed and multi alone (default: 0).")
        ] = None,
    ) -> Answers:
        """Classify images for the chosen tasks; one unreadable image refuses the request, and is named."""
        answers = service.classify(images, urls, sampled(policy, rounds, seed, service.limits.rounds), tasks)
        return await in_time(answers, request, service.limits.timeout)

    @app.post("/v1/attention", response_model=Attention)
    async def attention(
        request: Request,
        image: Annotated[UploadFile, File(description="An encoded image.")],
        task: Annotated[str, Form(description="Whose attention.")],
    ) -> Attention:
        """Where a task looks in an image, layer by layer, with the mean of its instance prompts."""
        return await in_time(service.attention(image, task), request, service.limits.timeout)

    return app


def sampled(policy: Policy, rounds: int | None, seed: int | None, at_most: int) -> Question:
    """How each picture is asked about, where there may be so many rounds.

    Raises:
        Problem: what has no effect is given.
    """
    if rounds is not None and policy != "multi":
        raise Problem(422, "invalid_request", f"rounds has no effect on policy {policy}", expected="policy multi")
    if seed is not None and policy == "mean":
        raise Problem(422, "invalid_request", "seed has no effect on policy mean", expected="policy fixed or multi")
    if rounds is None:
        rounds = min(5, at_most) if policy == "multi" else 1
    return Question("", 0, policy, rounds, 0 if seed is None else seed)


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
        service.metrics.tasks.set(len(service.tasks))
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def add_tasks(app: FastAPI, service: Service) -> None:
    """What is loaded, and loading."""
    tasks, limits = service.tasks, service.limits

    @app.get("/v1/tasks", response_model=TaskList)
    async def list_tasks() -> TaskList:
        """The tasks that are loaded, and the limits of a request."""
        return TaskList(
            tasks=[service.info(name, model) for name, model in tasks.models.items()],
            limits=LimitsInfo(
                images=limits.images,
                request_bytes=limits.request_bytes,
                pixels=limits.pixels,
                rounds=limits.rounds,
                queue=limits.queue,
                rows=max(1, service.batcher.room // 2),
                timeout=limits.timeout,
            ),
            urls=service.fetcher is not None,
            teaching=offered(service.teacher, limits),
            backbone=tasks.backbone.name,
            precision=tasks.precision,
            fingerprint=tasks.backbone.fingerprint,
        )

    @app.put("/v1/tasks/{name}", response_model=TaskInfo)
    async def load_task(name: Name, request: LoadRequest) -> TaskInfo:
        """Load an adapter as a task, one after the other; everything else goes on meanwhile."""
        return await service.load(name, request)

    @app.delete("/v1/tasks/{name}", response_model=TaskInfo)
    async def unload_task(name: Name) -> TaskInfo:
        """Unload a task; requests that have begun still get its answers."""
        return await service.unload(name)


async def in_time(answers: Coroutine[Any, Any, T], request: Request, seconds: float) -> T:
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
        raise Problem(504, "timeout", f"There was no answer within {seconds:g} s", remedy=problems.LESS, retry_after=1)
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def disconnected(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

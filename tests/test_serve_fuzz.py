"""Requests drawn from the service's own schema: none is answered with a 5xx, and every answer is one it describes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from cli_cases import write_backbone
from serve_cases import picture
from viapt.create import create_backbone, create_model
from viapt.multitask import MultiTask
from viapt.serve.app import create_app
from viapt.serve.fetching import Fetcher
from viapt.serve.lesson import RUN
from viapt.serve.limits import Limits
from viapt.serve.teaching import Lesson, Teacher

EXAMPLES = 4  # of each operation
UNHEALTHY = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
]

# Not every string is a picture or the name of a task. Server errors are looked for here: one of them has its reason.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


class Quick(Teacher):
    """Whose fits have no steps."""

    async def fit(self, lesson: Lesson) -> None:
        model = create_model(self.tasks.backbone, "linear", classes=list(lesson.photos), precision="float32")
        await asyncio.to_thread(model.save_pretrained, self.scratch(lesson) / RUN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone, and two adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    backbone = create_backbone(write_backbone(folder))
    for name, method in (("a", "viapt"), ("b", "linear")):
        create_model(backbone, method, classes=2, precision="float32").save_pretrained(folder / name)
    return folder


@pytest.fixture
def app(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """A service where all is allowed: a task "a" that stays, an adapter "b" that may be loaded, and teaching.

    One of its own for each test, since the plugin of Schemathesis ends it when a test ends.
    """
    monkeypatch.setattr("viapt.serve.app.Teacher", Quick)
    tasks = MultiTask(f"local-dir:{folder}", {"a": folder / "a"})

    async def nowhere(host: str, _: int) -> list[str]:
        raise OSError(host)

    fetcher = Fetcher(1000, 1.0, nowhere)
    return create_app(tasks, roots=[folder], teach=tmp_path, limits=Limits(passes=2), fetcher=fetcher)


def operations(app: FastAPI) -> list[Any]:
    """All that the schema describes; what removes something comes last."""
    described = schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
    return sorted((one.ok() for one in described if isinstance(one, Ok)), key=lambda one: one.method == "delete")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_requests_that_the_schema_draws_are_answered_as_it_says(app: FastAPI, mode: GenerationMode) -> None:
    for operation in operations(app):
        draw(app, operation, mode)


def draw(app: FastAPI, operation: Any, mode: GenerationMode) -> None:
    """Some requests to one operation, always the same ones."""

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, suppress_health_check=UNHEALTHY)
    def check(case: Any) -> None:
        response = answer(app, case)
        assert response.status_code < 500 or without_tasks(response), response.text

    with contextlib.suppress(Unsatisfiable):  # where nothing is sent, nothing can be wrong
        check()


def answer(app: FastAPI, case: Any) -> Any:
    """The response, if it is one that the schema describes; when what it began has ended, for draws depend on it."""
    response = case.call_and_validate(excluded_checks=EXCLUDED)
    while app.state.service.teacher.current:
        time.sleep(0.01)
    return response


def without_tasks(response: Any) -> bool:
    """The one 5xx that a client may cause: all tasks were unloaded."""
    return response.status_code == 503 and response.json()["error"]["code"] == "no_tasks"


BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/classify": {"images": [picture(1), picture(2)], "tasks": ["a"], "policy": "multi"},
    "POST /v1/attention": {"image": picture(), "task": "a"},
    "POST /v1/teachings": {"name": "taught", "images": [picture(1), picture(2)], "labels": ["x", "y"]},
    "PUT /v1/tasks/{name}": {"directory": "b"},
}


def test_requests_that_make_sense_are_answered_as_the_schema_says(app: FastAPI) -> None:
    for operation in operations(app):
        names = {"name": "taught" if operation.path.endswith("adapter") else "b"} if "{name}" in operation.path else {}
        ids = {"id": next(iter(app.state.service.teacher.lessons))} if "{id}" in operation.path else {}
        content = {}
        if (body := BODIES.get(operation.label)) is not None:
            kind = "application/json" if operation.method == "put" else "multipart/form-data"
            content = {"body": body, "media_type": kind}
        response = answer(app, operation.Case(path_parameters=names | ids, **content))
        assert response.status_code < 300, f"{operation.label}: {response.text}"

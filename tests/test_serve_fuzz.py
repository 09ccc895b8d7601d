"""Requests drawn from the service's own schema: none is answered with a 5xx, and every answer is one it describes."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from artifact_cases import fitted
from serve_cases import picture
from viapt.multitask import MultiTask
from viapt.serve.app import create_app
from viapt.testing.subject import tiny_vit

EXAMPLES = 20  # of each operation and mode

# Not every string is a picture or the name of a task, and what `fill` made good is no longer what was drawn as bad.
# Server errors are looked for here: one of them has its reason.
EXCLUDED = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema that the application gives, with the application behind it."""
    folder = tmp_path_factory.mktemp("adapters")
    fitted(tiny_vit()).save_pretrained(folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    app = create_app(MultiTask(tiny_vit(), {"a": folder / "a"}), roots=[folder])
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    asgi.shutdown_lifespans()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_request_is_answered_as_the_schema_says(described: Any, mode: GenerationMode) -> None:
    statuses = Counter[tuple[str, int]]()
    for operation in (found.ok() for found in described.get_all_operations()):
        ask(operation, mode, statuses)
    if mode is GenerationMode.POSITIVE:
        found = {label for label, status in statuses if status == 200}
        assert found == {operation.ok().label for operation in described.get_all_operations()}


def ask(operation: Any, mode: GenerationMode, statuses: Counter[tuple[str, int]]) -> None:
    """Some requests to one operation."""

    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    def check(case: Any, sensible: bool) -> None:
        if sensible:
            fill(case)
        response = case.call_and_validate(excluded_checks=EXCLUDED)
        assert response.status_code < 500 or without_tasks(response), response.text
        statuses[operation.label, response.status_code] += 1

    with contextlib.suppress(Unsatisfiable):  # where nothing is sent, nothing can be wrong
        check()


def without_tasks(response: Any) -> bool:
    """The one 5xx that a client may cause: all tasks were unloaded."""
    return response.status_code == 503 and response.json()["error"]["code"] == "no_tasks"


def fill(case: Any) -> None:
    """Put what is there in the place of what was drawn: pictures, a task, an adapter."""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "b"  # which is loaded, replaced and unloaded, while "a" stays
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("images"), list):
        case.body |= {"images": [picture(k) for k in range(len(case.body["images"]))], "tasks": ["a"], "rounds": 2}
    if "directory" in case.body:
        case.body["directory"] = "b"

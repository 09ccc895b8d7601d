"""Requests that are wrong, cut off, slow, late or too many: each is told so, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve_cases import (
    bomb,
    held,
    passes_made,
    picture,
    refused,
    serve,
    sound,
    until,
    upload,
    write_tasks,
)
from viapt.serve.batching import LATELY
from viapt.serve.limits import Limits

# Of an upload that ends too early, Starlette leaves the temporary file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file .tempfile.SpooledTemporaryFile:ResourceWarning")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tasks(tmp_path_factory.mktemp("adapters"))


HEAD = {"content-type": "multipart/form-data; boundary=line"}
PART = b'--line\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "http_400"),
    "no multipart": ({"content": b"xxxx", "headers": HEAD}, 400, "http_400"),
    "cut short": ({"content": PART + picture()[:100], "headers": HEAD}, 422, "invalid_request"),
    "no images": ({"data": {"tasks": "deep"}, "files": {"other": b"x"}}, 422, "invalid_request"),
    "json": ({"json": {}}, 422, "invalid_request"),
    "no file": ({"files": {"images": (None, b"text")}}, 422, "invalid_request"),
    "truncated": (upload(picture(), picture()[:200]), 422, "unreadable_image"),
    "no image": (upload(b"hello"), 422, "unreadable_image"),
    "empty": (upload(b""), 422, "unreadable_image"),
    "bomb": (upload(bomb()), 422, "unreadable_image"),
    "strip": (upload(picture(0, (1, 500))), 422, "unreadable_image"),
    "unknown task": (upload(picture(), tasks="depe"), 404, "unknown_task"),
    "unknown policy": (upload(picture(), policy="often"), 422, "invalid_request"),
    "no rounds": (upload(picture(), policy="multi", rounds="0"), 422, "invalid_request"),
    "rounds of one pass": (upload(picture(), rounds="3"), 422, "invalid_request"),
    "rounds of one sample": (upload(picture(), policy="fixed", rounds="1"), 422, "invalid_request"),
    "seed of no sample": (upload(picture(), seed="0"), 422, "invalid_request"),
    "too many rounds": (upload(picture(), policy="multi", rounds="33"), 422, "too_many_rounds"),
    "seed": (upload(picture(), seed="-1"), 422, "invalid_request"),
    "too many images": (upload(*[picture()] * 5), 413, "too_many_images"),
    "too many rows": (upload(picture(), picture(), policy="multi", rounds="20"), 413, "too_many_rows"),
    "too large": (upload(b"x" * 70_000), 413, "request_too_large"),
}


def test_what_is_wrong_is_said_and_disturbs_nobody(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        for request, status, code in WRONG.values():
            refused(await client.post("/v1/classify", **request), status, code)
            assert app.state.service.batcher.admitted == 0
        together = [client.post("/v1/classify", **request) for request, _, _ in WRONG.values()]
        answers, *_ = await asyncio.gather(asyncio.gather(*together), *(sound(client, adapters) for _ in range(3)))
        for response, (_, status, code) in zip(answers, WRONG.values(), strict=True):
            refused(response, status, code)
        error = refused(
            await client.post("/v1/classify", **upload(picture(), picture()[:200])), 422, "unreadable_image"
        )
        assert "1.png" in error["message"] and "truncated" in error["message"]
        error = refused(await client.post("/v1/classify", **upload(picture(), tasks="depe")), 404, "unknown_task")
        assert error["remedy"] == "did you mean 'deep'?"
        refused(await client.get("/nowhere"), 404, "http_404")
        refused(await client.get("/v1/classify"), 405, "http_405")
        await sound(client, adapters)

    serve(adapters, scenario, Limits(images=4, pixels=10_000, request_bytes=60_000, queue=40))


def test_a_body_that_does_not_tell_its_size_is_cut_off(
    adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viapt.serve.gate.LINGER", 0)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield PART
        while True:
            sent += 1000
            yield b"x" * 1000

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        refused(await client.post("/v1/classify", content=endless(), headers=HEAD), 413, "request_too_large")
        assert sent <= 65_000
        await sound(client, adapters)

    serve(adapters, scenario, Limits(request_bytes=60_000))


def test_a_slow_upload_is_given_up(adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viapt.serve.gate.LINGER", 0.05)

    async def stuck() -> AsyncIterator[bytes]:
        yield PART
        await asyncio.sleep(3600)

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        refused(await client.post("/v1/classify", content=stuck(), headers=HEAD), 408, "slow_upload")

    serve(adapters, scenario, Limits(upload=0.05))


def test_a_late_answer_is_given_up_and_never_computed(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        made, batcher = passes_made(app), app.state.service.batcher
        batcher.taken.extend([0.001] * LATELY)  # whatever else computes here
        with held(app):
            late = await asyncio.gather(*(client.post("/v1/classify", **upload(picture())) for _ in range(3)))
            for response in late:
                assert "fewer images" in refused(response, 504, "timeout")["remedy"]
            assert batcher.admitted == 0
        app.state.service.limits = batcher.limits = Limits()
        await sound(client, adapters)
        assert len(made) == 1 + len(adapters)  # the one that had begun, and those of the last request

    serve(adapters, scenario, Limits(timeout=0.05))


def scope_of(request: httpx.Request) -> dict[str, Any]:
    """What an ASGI server makes of a request to classify."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "raw_path": b"/v1/classify",
        "query_string": b"",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }


def test_a_client_that_vanishes_in_the_middle_of_its_upload_is_forgotten(
    adapters: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        request = client.build_request("POST", "/v1/classify", **upload(picture()))
        body = await request.aread()
        messages = [{"type": "http.request", "body": body[: len(body) // 2], "more_body": True}]

        async def receive() -> Any:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            assert message["type"] != "http.response.start" or message["status"] == 400

        await app(scope_of(request), receive, send)
        assert app.state.service.batcher.admitted == 0 and not caplog.records
        await sound(client, adapters)

    serve(adapters, scenario)


def test_a_client_that_vanishes_is_forgotten(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        request = client.build_request("POST", "/v1/classify", **upload(picture()))
        body, leave, sent = await request.aread(), asyncio.Event(), []
        scope = scope_of(request)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        batcher = app.state.service.batcher
        with held(app) as begun:
            first = asyncio.create_task(client.post("/v1/classify", **upload(picture(1))))
            await begun()
            gone = asyncio.create_task(app(scope, receive, send))
            await until(lambda: len(batcher.jobs) == 2 + 3)
            leave.set()
            await gone
            assert batcher.admitted == 3  # of the first alone
        assert (await first).status_code == 200
        await sound(client, adapters)
        assert batcher.metrics.registry.get_sample_value("viapt_batch_rows_sum") == 6

    serve(adapters, scenario)


def test_a_full_queue_says_when_to_come_back(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        one = {"tasks": "deep"}
        with held(app) as begun:
            admitted = [asyncio.create_task(client.post("/v1/classify", **upload(picture(), **one))) for _ in range(2)]
            await begun()
            await until(lambda: app.state.service.batcher.admitted >= 2)
            response = await client.post("/v1/classify", **upload(picture(), **one))
            refused(response, 429, "busy")
            assert int(response.headers["retry-after"]) >= 1
            app.state.service.batcher.limits = Limits()
        assert [(await response).status_code for response in admitted] == [200, 200]
        await sound(client, adapters)

    serve(adapters, scenario, Limits(queue=2))


def test_what_cannot_be_computed_in_time_is_refused_at_once(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        batcher, deep = app.state.service.batcher, {"tasks": "deep"}
        batcher.taken.extend([1.0] * (LATELY - 1) + [1000.0])  # one pass was held up
        limits = (await client.get("/v1/tasks")).json()["limits"]
        assert (limits["rows"], limits["timeout"]) == (4, 8.9)
        error = refused(await client.post("/v1/classify", **upload(*[picture()] * 9, **deep)), 413, "too_many_rows")
        assert "9 rows" in error["message"] and "at most 8" in error["expected"] and "--timeout" in error["remedy"]
        with held(app) as begun:
            first = asyncio.create_task(client.post("/v1/classify", **upload(picture(), **deep)))
            await begun()
            response = await client.post("/v1/classify", **upload(*[picture()] * 8, **deep))
            assert "at most 8" in refused(response, 429, "busy")["expected"]
            assert response.headers["retry-after"] == "1"
        assert (await first).status_code == 200
        batcher.taken.extend([1000.0] * LATELY)
        limits = (await client.get("/v1/tasks")).json()["limits"]
        assert limits["rows"] == 1
        assert (await client.post("/v1/classify", **upload(picture(), **deep))).status_code == 200

    serve(adapters, scenario, Limits(timeout=8.9))


def test_too_many_requests_are_turned_away_at_once(adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they send, and however slowly; it is let pass by for a while, so that they see the answer."""
    monkeypatch.setattr("viapt.serve.gate.LINGER", 0.05)

    async def endless() -> AsyncIterator[bytes]:
        yield PART
        await asyncio.sleep(3600)

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        with held(app) as begun:
            first = asyncio.create_task(client.post("/v1/classify", **upload(picture())))
            await begun()
            response = await client.post("/v1/classify", content=endless(), headers=HEAD)
            refused(response, 503, "busy")
            assert response.headers["retry-after"] == "1"
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            for path in ("/metrics", "/", "/page/page.css"):
                assert (await client.get(path)).status_code == 200
            refused(await client.get("/v1/tasks"), 503, "busy")
        assert (await first).status_code == 200

    serve(adapters, scenario, Limits(requests=1))

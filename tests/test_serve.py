"""What the service answers: right answers, and for everything that is wrong its status and a clear JSON error."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from artifact_cases import fitted
from serve_cases import bomb, held, picture, serve, upload
from viapt.artifact import TENSORS, load
from viapt.errors import ArtifactError, ConfigError
from viapt.inference import predict
from viapt.multitask import MultiTask
from viapt.serve.access import check_reach, is_loopback, read_token
from viapt.serve.limits import Limits
from viapt.serve.pace import Pace, efficient_pace, efficient_rows, seconds_per_row
from viapt.serve.tasks import adapters_in
from viapt.testing.subject import tiny_vit

METHODS: dict[str, dict[str, Any]] = {"paper": {}, "deep": {"num_prompts": 3}, "probe": {}}
NAMES = {"paper": "viapt", "deep": "vpt-deep", "probe": "linear"}
TOKEN = "a-token-of-some-length"

# Of an upload that ends too early, Starlette leaves the temporary file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file .tempfile.SpooledTemporaryFile:ResourceWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of one backbone, unlike each other."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, options) in enumerate(METHODS.items()):
        model = fitted(tiny_vit(), NAMES[name], seed=seed, **options)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    return adapters_in([folder])


def check(answer: dict[str, Any], directory: Path, data: bytes, policy: Any, rounds: int, seed: int) -> None:
    """One task's answer about one image is what its adapter predicts alone."""
    model = load(directory, tiny_vit())
    expected = predict(model, [data], policy, rounds, seed)
    assert list(answer["probabilities"]) == model.classes
    found = torch.tensor(list(answer["probabilities"].values()))
    torch.testing.assert_close(found, expected.probabilities[0], rtol=0, atol=1e-5)
    assert answer["label"] == expected.labels[0] and answer["rounds"] == int(expected.rounds[0])
    assert answer["probability"] == max(answer["probabilities"].values())
    if policy == "multi":
        spread = torch.tensor(list(answer["spread"].values()))
        torch.testing.assert_close(spread, expected.spread[0], rtol=0, atol=1e-5)
    else:
        assert answer["spread"] is None


async def sound(client: httpx.AsyncClient, adapters: dict[str, Path], **headers: str) -> None:
    """The service still answers rightly."""
    response = await client.post("/v1/classify", **upload(picture(3)), headers=headers)
    assert response.status_code == 200, response.text
    for name, answer in response.json()["images"][0]["tasks"].items():
        check(answer, adapters[name], picture(3), "mean", 5, 0)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The one form that errors have."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert error["code"] == code and error["message"] and set(error) == {"code", "message", "expected", "remedy"}
    return error


@pytest.mark.parametrize("policy", ["mean", "fixed", "multi"])
def test_answers_are_those_of_each_task_alone(adapters: dict[str, Path], policy: str) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        pictures = [picture(1), picture(2, (50, 33))]
        response = await client.post("/v1/classify", **upload(*pictures, policy=policy, rounds="3", seed="7"))
        assert response.status_code == 200, response.text
        images = response.json()["images"]
        assert [image["name"] for image in images] == ["0.png", "1.png"]
        for image, data in zip(images, pictures, strict=True):
            assert list(image["tasks"]) == list(adapters)
            for name, answer in image["tasks"].items():
                check(answer, adapters[name], data, policy, 3, 7)
        response = await client.post("/v1/classify", **upload(pictures[0], tasks=["probe", "deep", "probe"]))
        assert list(response.json()["images"][0]["tasks"]) == ["probe", "deep"]

    serve(adapters, scenario)


def sizes_of_passes(app: FastAPI) -> list[int]:
    """Rows of each pass that is made from now on."""
    tasks, sizes = app.state.service.tasks, []
    compute = tasks.compute
    tasks.compute = lambda images, rows: sizes.append(len(rows)) or compute(images, rows)
    return sizes


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_requests_share_a_pass_and_get_their_own_answers(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        sizes = sizes_of_passes(app)
        assert (await client.put("/v1/tasks/other", json={"directory": "deep"})).status_code == 200
        names = ["deep", "other"] * 3
        asked = [
            client.post("/v1/classify", **upload(picture(k), tasks=name, policy="fixed", seed=str(k)))
            for k, name in enumerate(names)
        ]
        for k, (name, response) in enumerate(zip(names, await asyncio.gather(*asked), strict=True)):
            check(response.json()["images"][0]["tasks"][name], adapters["deep"], picture(k), "fixed", 1, k)
        assert sizes == [6]

    folder = adapters["deep"].parent
    serve(adapters, scenario, Limits(wait=3600.0, rows=6), roots=[folder])  # only a full pass begins


def test_a_pass_is_the_oldest_job_and_those_that_share_it(adapters: dict[str, Path]) -> None:
    """Others keep their order, and a request that makes more rows than a pass has is cut."""

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        batcher, asked = app.state.service.batcher, []

        async def ask(name: str, *seeds: int) -> None:
            asked.append((name, seeds, asyncio.create_task(post(name, seeds))))
            waiting = len(batcher.jobs)
            await until(lambda: len(batcher.jobs) > waiting)

        async def post(name: str, seeds: Sequence[int]) -> httpx.Response:
            return await client.post("/v1/classify", **upload(*map(picture, seeds), tasks=name))

        with held(app) as begun:
            asked.append(("deep", (9,), asyncio.create_task(post("deep", (9,)))))
            await begun()
            await ask("deep", 0)
            await ask("paper", 1)
            await ask("deep", 2)
            await ask("probe", 3, 4, 5)
            await ask("paper", 6)
            await ask("deep", 7)
        orders = passes_made(app)
        for name, seeds, response in asked:
            images = (await response).json()["images"]
            for seed, image in zip(seeds, images, strict=True):
                check(image["tasks"][name], adapters[name], picture(seed), "mean", 5, 0)
        assert orders == [["vpt-deep"] * 2, ["viapt"] * 2, ["linear"] * 2, ["linear"], ["vpt-deep"]]

    serve(adapters, scenario, Limits(rows=2))


def passes_made(app: FastAPI) -> list[list[str]]:
    """The methods in each pass that is made from now on."""
    tasks, found = app.state.service.tasks, []
    compute = tasks.compute
    tasks.compute = lambda images, rows: found.append([row.model.method.name for row in rows]) or compute(images, rows)
    return found


def test_a_picture_is_computed_once_for_all_tasks_without_prompts(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        assert (await client.put("/v1/tasks/other", json={"directory": "probe"})).status_code == 200
        orders = passes_made(app)
        response = await client.post("/v1/classify", **upload(picture(1), picture(2), tasks=["probe", "other"]))
        for image, seed in zip(response.json()["images"], (1, 2), strict=True):
            for answer in image["tasks"].values():
                check(answer, adapters["probe"], picture(seed), "mean", 5, 0)
        assert orders == [["linear"] * 2] * 2
        (rows,) = [line for line in (await client.get("/metrics")).text.splitlines() if "batch_rows_sum" in line]
        assert rows == "viapt_batch_rows_sum 4.0"

    serve(adapters, scenario, Limits(rows=1), roots=[adapters["probe"].parent])


def test_a_request_is_shared_by_passes_at_the_same_time(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        tasks, barrier = app.state.service.tasks, threading.Barrier(3)
        compute = tasks.compute

        def together(*arguments: Any) -> Any:
            barrier.wait(timeout=60)
            return compute(*arguments)

        tasks.compute = together
        fields = {"tasks": ["paper", "deep", "probe"], "policy": "multi", "rounds": "4", "seed": "3"}
        response = await client.post("/v1/classify", **upload(picture(1), **fields))
        for name, answer in response.json()["images"][0]["tasks"].items():
            check(answer, adapters[name], picture(1), "multi", 4, 3)

    serve(adapters, scenario, Limits(rows=1, passes=3))


def test_what_fails_in_one_pass_is_not_computed_in_others(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        tasks, calls = app.state.service.tasks, []

        def failing(*_: Any) -> Any:
            calls.append(1)
            raise RuntimeError("a secret")

        compute, tasks.compute = tasks.compute, failing
        refused(await client.post("/v1/classify", **upload(*map(picture, range(5)), tasks="deep")), 500, "internal")
        tasks.compute = compute
        await sound(client, adapters)
        assert len(calls) <= 2  # the next one may have begun before anybody could say so

    serve(adapters, scenario, Limits(rows=1))


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [({1: 1.0, 2: 0.6}, 1), ({1: 1.0, 2: 0.52, 4: 0.27, 8: 0.2}, 4), ({1: 1.0}, 1), ({1: 1, 2: 0.5, 4: 0.25}, 4)],
)
def test_threads_are_shared_by_passes_unless_one_makes_good_use_of_them(
    seconds: dict[int, float], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, given = torch.get_num_threads(), []

    def taken(_: Any, rows: int) -> float:
        given.append(torch.get_num_threads())
        return seconds[given[-1]] * (1.0 if len(given) % 3 else 1.5)  # another program, now and then

    monkeypatch.setattr("viapt.serve.pace.seconds_per_row", taken)
    torch.set_num_threads(max(seconds))
    try:
        monkeypatch.setattr("viapt.serve.pace.efficient_rows", lambda _: 7 + torch.get_num_threads())
        assert efficient_pace(tiny_vit()) == Pace(max(seconds) // threads, threads, 7 + threads)
        given.clear()
        assert efficient_pace(tiny_vit(), passes=1, rows=3) == Pace(1, max(seconds), 3) and not given
        assert efficient_pace(tiny_vit(), passes=16, rows=3) == Pace(16, 1, 3)
        monkeypatch.setattr("viapt.serve.pace.computes_on_threads", lambda _: False)
        assert efficient_pace(tiny_vit()) == Pace(1, max(seconds), 7 + max(seconds)) and not given
        assert torch.get_num_threads() == max(seconds)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("pace", "rows"),
    [
        ([1.0, 0.95], 1),
        ([1.0, 0.6, 0.5, 0.49], 4),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 32),
        ([2.0**-k for k in range(7)], 64),
    ],
)
def test_a_pass_has_as_many_rows_as_make_it_cheaper(
    pace: list[float], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {2**k: value for k, value in enumerate(pace)}
    monkeypatch.setattr("viapt.serve.pace.seconds_per_row", lambda _, rows: seconds[rows])
    assert efficient_rows(tiny_vit(), most=2 ** (len(pace) - 1)) == rows


def test_seconds_are_those_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 90.0, 100.0, 106.0, 200.0, 204.0, 300.0, 308.0])
    monkeypatch.setattr("viapt.precision.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert seconds_per_row(tiny_vit(), 2) == 2.0


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
        sizes = sizes_of_passes(app)
        with held(app):
            late = await asyncio.gather(*(client.post("/v1/classify", **upload(picture())) for _ in range(3)))
            for response in late:
                refused(response, 504, "timeout")
            assert app.state.service.batcher.admitted == 0
        app.state.service.limits = Limits()
        await sound(client, adapters)
        assert len(sizes) == 1 + len(adapters)  # the one that had begun, and those of the last request

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
            while app.state.service.batcher.admitted < 2:
                await asyncio.sleep(0.001)
            response = await client.post("/v1/classify", **upload(picture(), **one))
            refused(response, 429, "busy")
            assert int(response.headers["retry-after"]) >= 1
            app.state.service.batcher.limits = Limits()
        assert [(await response).status_code for response in admitted] == [200, 200]
        await sound(client, adapters)

    serve(adapters, scenario, Limits(queue=2))


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
        assert (await first).status_code == 200

    serve(adapters, scenario, Limits(requests=1))


def test_a_task_may_be_unloaded_and_another_loaded_while_it_is_asked(adapters: dict[str, Path], folder: Path) -> None:
    """Each request is answered by what was loaded when it came."""

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        batcher = app.state.service.batcher

        def ask(seed: int) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/v1/classify", **upload(picture(seed), tasks="deep")))

        with held(app) as begun:
            first = ask(1)
            await begun()
            second = ask(2)
            await until(lambda: len(batcher.jobs) == 1)
            assert (await client.delete("/v1/tasks/deep")).status_code == 200
            refused(await client.post("/v1/classify", **upload(picture(), tasks="deep")), 404, "unknown_task")
            assert (await client.put("/v1/tasks/deep", json={"directory": "paper"})).status_code == 200
            third = ask(3)
            await until(lambda: len(batcher.jobs) == 2)
        for seed, (name, response) in enumerate((("deep", first), ("deep", second), ("paper", third)), start=1):
            answer = (await response).json()["images"][0]["tasks"]["deep"]
            check(answer, adapters[name], picture(seed), "mean", 1, 0)
        assert (await client.delete("/v1/tasks/deep")).status_code == 200
        refused(await client.delete("/v1/tasks/deep"), 404, "unknown_task")

    serve(adapters, scenario, roots=[folder])


def test_a_request_that_fails_takes_no_other_with_it(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        tasks = app.state.service.tasks
        assert (await client.put("/v1/tasks/other", json={"directory": "deep"})).status_code == 200
        compute, sizes = tasks.compute, []

        def failing(images: Any, rows: Any) -> Any:
            sizes.append(len(rows))
            if any(row.model is tasks["deep"] for row in rows):
                raise RuntimeError("a secret")
            return compute(images, rows)

        tasks.compute = failing
        bad, good = await asyncio.gather(
            client.post("/v1/classify", **upload(picture(1), tasks="deep")),
            client.post("/v1/classify", **upload(picture(2), tasks="other")),
        )
        assert "secret" not in refused(bad, 500, "internal")["message"]
        check(good.json()["images"][0]["tasks"]["other"], adapters["deep"], picture(2), "mean", 1, 0)
        assert sizes == [2, 1, 1]

    serve(adapters, scenario, Limits(wait=3600.0, rows=2), roots=[adapters["deep"].parent])


def test_tasks_are_listed_loaded_and_replaced(adapters: dict[str, Path], folder: Path) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        found = (await client.get("/v1/tasks")).json()
        assert [(one["name"], one["method"], one["samples"]) for one in found["tasks"]] == [("a", "vpt-deep", False)]
        assert found["fingerprint"] == tiny_vit().fingerprint
        limits = Limits()
        assert found["limits"] == {
            name: getattr(limits, name) for name in ("images", "request_bytes", "pixels", "rounds", "queue")
        }
        refused(await client.put("/v1/tasks/a", json={"directory": "paper"}), 409, "task_exists")
        response = await client.put("/v1/tasks/a", json={"directory": "paper", "replace": True})
        assert response.json()["method"] == "viapt"
        response = await client.put("/v1/tasks/b", json={"directory": str(folder / "probe")})
        assert response.status_code == 200
        await sound(client, {"a": adapters["paper"], "b": adapters["probe"]})
        for name in ("a", "b"):
            assert (await client.delete(f"/v1/tasks/{name}")).status_code == 200
        refused(await client.post("/v1/classify", **upload(picture())), 503, "no_tasks")

    serve({"a": adapters["deep"]}, scenario, roots=[folder])


def test_adapters_that_must_not_be_loaded(adapters: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    corrupt, foreign = root / "corrupt", root / "foreign"
    shutil.copytree(adapters["deep"], corrupt)
    data = bytearray((corrupt / TENSORS).read_bytes())
    data[-5] ^= 1
    (corrupt / TENSORS).write_bytes(data)
    fitted(tiny_vit(init_values=0.5), "linear").save_pretrained(foreign)
    fitted(tiny_vit(), reduction="batch").save_pretrained(root / "batch")
    (root / "link").symlink_to(folder / "probe")
    (root / "empty").mkdir()

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for name in ("corrupt", "foreign", "batch", "empty"):
            refused(await client.put("/v1/tasks/new", json={"directory": name}), 422, "unusable_adapter")
            again = {"directory": name, "replace": True}
            refused(await client.put("/v1/tasks/deep", json=again), 422, "unusable_adapter")
        for name in ("link", "..", ".", "../adapters", str(folder / "probe"), "/", "missing", "a\0b"):
            refused(await client.put("/v1/tasks/new", json={"directory": name}), 403, "not_allowed")
        for body in ({}, {"directory": ""}, {"directory": 5}, []):
            refused(await client.put("/v1/tasks/new", json=body), 422, "invalid_request")
        await sound(client, adapters)

    serve(adapters, scenario, roots=[root])


def test_without_roots_nothing_is_loaded(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        refused(await client.put("/v1/tasks/new", json={"directory": "deep"}), 403, "loading_is_off")

    serve(adapters, scenario)


def test_a_token_is_needed_for_all_but_health(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        for path in ("/v1/tasks", "/metrics", "/openapi.json", "/nowhere"):
            for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
                response = await client.get(path, headers=headers)
                refused(response, 401, "unauthorised")
                assert response.headers["www-authenticate"] == "Bearer"
        refused(await client.post("/v1/classify", **upload(picture())), 401, "unauthorised")
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        await sound(client, adapters, Authorization=f"Bearer {TOKEN}")

    serve(adapters, scenario, token=TOKEN)


def test_metrics_count_what_happened(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        await client.post("/v1/classify", **upload(picture(1), picture(2), tasks=["deep", "paper"]))
        await client.post("/v1/classify", **upload(b"no image"))
        lines = (await client.get("/metrics")).text.splitlines()
        for line in (
            'viapt_requests_total{route="/v1/classify",status="200"} 1.0',
            'viapt_requests_total{route="/v1/classify",status="422"} 1.0',
            "viapt_images_total 2.0",
            "viapt_batch_rows_sum 4.0",
            "viapt_queue_rows 0.0",
            "viapt_tasks 3.0",
        ):
            assert line in lines

    serve(adapters, scenario)


def test_the_schema_describes_answers_and_errors(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        schema = (await client.get("/openapi.json")).json()
        assert set(schema["paths"]) == {
            "/healthz", "/readyz", "/metrics", "/v1/tasks", "/v1/tasks/{name}", "/v1/tasks/{name}/adapter",
            "/v1/classify", "/v1/attention", "/v1/teachings", "/v1/teachings/{id}",
        }  # fmt: skip
        assert "text/plain" not in schema["paths"]["/metrics"]["get"]["responses"]["401"]["content"]
        answers = schema["paths"]["/v1/classify"]["post"]["responses"]
        assert "Answers" in json.dumps(answers["200"])
        assert all("ErrorBody" in json.dumps(answers[code]) for code in ("413", "422", "429", "503"))

    serve(adapters, scenario)


def test_a_service_whose_loop_has_ended_says_so(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        await app.state.service.batcher.stop()
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "broken"})

    serve(adapters, scenario)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.0.5", "example.org", "localhost.example.org", "")),
    ],
)
def test_only_loopback_goes_without_a_token(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    check_reach(host, TOKEN)
    if loopback:
        check_reach(host, None)
    else:
        with pytest.raises(ConfigError, match="no token"):
            check_reach(host, None)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("VIAPT_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text("another-token-of-some-length\n")
    assert read_token(file) == "another-token-of-some-length"
    for text in ("", "short", "with a blank in the middle", "two-lines-that-are-long\nenough", "ü" * 20):
        file.write_text(text)
        with pytest.raises(ConfigError, match="token"):
            read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_folders_of_adapters(folder: Path, tmp_path: Path) -> None:
    assert adapters_in([folder]) == {name: folder / name for name in ("deep", "paper", "probe")}
    assert adapters_in([folder / "deep", folder / "paper"]) == {n: folder / n for n in ("deep", "paper")}
    with pytest.raises(ConfigError, match="no adapters"):
        adapters_in([tmp_path])
    with pytest.raises(ConfigError, match="both be called 'deep'"):
        adapters_in([folder, folder / "deep"])


@pytest.mark.parametrize("wrong", [{"queue": 0}, {"wait": -1.0}, {"timeout": float("nan")}, {"rows": -3}])
def test_impossible_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_foreign_adapter_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    fitted(tiny_vit(init_values=0.5), "linear").save_pretrained(tmp_path / "foreign")
    with pytest.raises(ArtifactError):
        MultiTask(tiny_vit(), adapters_in([folder, tmp_path]))

"""`viapt serve --engine ray`: two replicas, one of which is killed while clients ask; the end; what proxies say."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import torch
from fastapi import FastAPI
from starlette.responses import JSONResponse, PlainTextResponse

import viapt
from serve_cases import PATIENCE, picture, serve, served, upload, write_adapters
from viapt.cli import main
from viapt.errors import ConfigError
from viapt.serve.limits import Limits
from viapt.serve.on_ray import Replicas, check_free
from viapt.serve.ray_proxy import Retriable
from viapt.serve.tasks import adapters_in

pytest.importorskip("ray.serve", reason="ray is not installed")

TOKEN = "a-token-of-some-length"
FULL = 8  # pictures, for two tasks: a full pass
HELD = "10000"  # milliseconds that a request of less than a full pass waits for others
SAMPLE = re.compile(r'viapt_queue_rows\{replica="(\w+)"\} (\S+)')


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    write_adapters(folder)
    return folder / "adapters"


@pytest.fixture(scope="module")
def expected(adapters: Path) -> dict[tuple[str, int], list[float]]:
    """Of a task and a picture: what the adapter alone predicts."""
    found = {}
    for name in ("paper", "deep"):
        model = viapt.load(adapters / name)
        for k in range(FULL):
            found[name, k] = model.predict([picture(k)]).probabilities[0].tolist()
    return found


class World:
    """A server, and what is known of it."""

    def __init__(self, url: str, process: subprocess.Popen[str], expected: Any) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE)
        self.process, self.expected = process, expected

    async def ask(self, count: int, *tasks: str) -> str:
        """One request; "" for a right answer, else the code of an error after which it may be sent again."""
        shown = [picture(k) for k in range(count)]
        response = await self.client.post("/v1/classify", **upload(*shown, tasks=list(tasks)))
        if response.status_code in (429, 503):
            assert response.headers["retry-after"].isdigit() and list(response.json()) == ["error"], response.text
            return response.json()["error"]["code"]
        assert response.status_code == 200, response.text
        images = response.json()["images"]
        assert len(images) == count
        for k, image in enumerate(images):
            assert sorted(image["tasks"]) == sorted(tasks)
            for task, answer in image["tasks"].items():
                assert list(answer["probabilities"].values()) == pytest.approx(self.expected[task, k], abs=1e-5)
        return ""

    async def waiting(self) -> dict[str, float]:
        """Rows that wait in each replica, by their metrics; asked at the same time, all replicas answer some."""
        found: dict[str, float] = {}
        for response in await asyncio.gather(*(self.client.get("/metrics") for _ in range(8))):
            assert response.status_code in (200, 503)
            found |= {name: float(value) for name, value in SAMPLE.findall(response.text)}
        return found

    def replicas(self) -> set[psutil.Process]:
        """Their processes."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return {one for one in family if name_of(one).startswith("ray::ServeReplica")}


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    print((tmp_path / "log").read_text())  # shown where the test fails


def test_the_death_of_a_replica_is_told_and_the_other_goes_on(adapters: Path, expected: Any, log: Path) -> None:
    """Smaller requests wait for others, so that both hold some when one dies."""
    options = ["--engine", "ray", "--replicas", "2", "--rows", str(2 * FULL), "--wait-ms", HELD]
    with served(adapters, log, *options, VIAPT_TOKEN=TOKEN) as (url, process):
        world = World(url, process, expected)
        asyncio.run(scenario(world))


async def scenario(world: World) -> None:
    async with world.client:
        while code := await world.ask(FULL, "paper", "deep"):
            assert code == "draining"  # that is: not yet there
            await asyncio.sleep(0.5)
        assert (await world.client.get("/v1/tasks", headers={"Authorization": "no"})).status_code == 401
        refused = await world.client.delete("/v1/tasks/deep")
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "loading_is_off"
        await one_dies(world)
        await all_end(world)


async def one_dies(world: World) -> None:
    rows: dict[str, float] = {}
    while len(rows) < 2:  # one may be there before the other
        rows |= await world.waiting()
    before, held = world.replicas(), []
    assert len(before) == 2
    while not all(rows.values()):
        held.append(asyncio.create_task(world.ask(1, "paper")))
        rows |= await world.waiting()
        assert len(held) < 2 * FULL and not any(one.done() for one in held)
    victim = min(before, key=lambda one: one.pid)
    victim.kill()

    back = asyncio.Event()
    clients = [asyncio.create_task(until(back, world)) for _ in range(3)]
    assert {await one for one in held} == {"", "replica_died"}
    while len(world.replicas() - {victim}) < 2 or not set(await world.waiting()) - set(rows):
        await asyncio.sleep(0.2)
    back.set()
    assert all(await asyncio.gather(*clients))


async def until(back: asyncio.Event, world: World) -> int:
    """Full passes, one after the other; how many were answered."""
    answered = 0
    while not back.is_set():
        code = await world.ask(FULL, "paper", "deep")
        assert code in ("", "replica_died", "busy")
        answered += not code
        await asyncio.sleep(1.0 if code else 0.05)
    return answered


async def all_end(world: World) -> None:
    """On SIGTERM what was begun is answered, and nothing is left behind."""
    family = psutil.Process(world.process.pid).children(recursive=True)
    held = asyncio.create_task(world.ask(1, "deep"))
    while not any((await world.waiting()).values()):
        pass
    world.process.send_signal(signal.SIGTERM)
    assert await held == ""
    assert world.process.wait(PATIENCE) == 0
    assert not psutil.wait_procs(family, PATIENCE)[1]


def test_a_replica_keeps_its_tasks_and_says_who_counts(adapters: Path) -> None:
    async def story(client: httpx.AsyncClient, _: FastAPI) -> None:
        refused = await client.delete("/v1/tasks/deep")
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "loading_is_off"
        assert [task["name"] for task in (await client.get("/v1/tasks")).json()["tasks"]] == ["deep", "paper"]
        lines = (await client.get("/metrics")).text.splitlines()
        assert 'viapt_queue_rows{replica="one"} 0.0' in lines
        assert 'viapt_requests_total{replica="one",route="/v1/tasks/{name}",status="403"} 1.0' in lines
        assert all('replica="one"' in line for line in lines if not line.startswith("#"))

    backbone = f"local-dir:{adapters.parent / 'tiny'}"
    serve(adapters_in([adapters]), story, backbone=backbone, replica="one")


def test_a_replica_computes_on_its_cores(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = Replicas([adapters], None, Limits(passes=1, rows=1), None, False, 2, cpus=3)
    threads = torch.get_num_threads()
    try:
        assert replicas.build("one").state.service.batcher.pace.threads == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    asked: dict[str, Any] = {}

    def deployment(**options: Any) -> Any:
        asked.update(options)
        return lambda _: SimpleNamespace(bind=lambda: None)

    serve = SimpleNamespace(deployment=deployment, ingress=lambda _: lambda found: found)
    monkeypatch.setattr("viapt.serve.on_ray.import_ray", lambda _: serve)
    replicas.deployment()
    assert asked["ray_actor_options"] == {"num_cpus": 3} and asked["num_replicas"] == 2


@pytest.mark.parametrize(("options", "cpus"), [("", 2), ("--cpus 5", 5), ("--address a:1", 1), ("--gpus 1", 1)])
def test_replicas_share_the_cores_of_this_machine(
    options: str, cpus: int, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    wanted: list[Any] = []
    monkeypatch.setattr("viapt.serve.on_ray.serve_on_ray", lambda replicas, *_: wanted.append(replicas))
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(adapters), "--engine", "ray", "--replicas", "3", "--precision", "float32", *options.split()])
    assert stopped.value.code == 0
    assert (wanted[0].cpus, wanted[0].number, wanted[0].precision) == (cpus, 3, "float32")


@pytest.mark.parametrize(
    ("sent", "status", "code", "retry"),
    [
        (None, 503, "replica_died", "1"),
        (PlainTextResponse("full", 503), 503, "busy", "1"),
        (PlainTextResponse("no such path", 404), 503, "draining", "5"),
        (JSONResponse({"error": {"code": "busy"}}, 503, {"Retry-After": "7"}), 503, "busy", "7"),
        (JSONResponse({"error": {"code": "unknown_task"}}, 404), 404, "unknown_task", None),
        (JSONResponse({"error": {"code": ""}}, 200), 200, "", None),
    ],
)
def test_what_a_proxy_says(sent: Any, status: int, code: str, retry: str | None) -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if sent is not None:
            await sent(scope, receive, send)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Retriable(proxy)), base_url="http://test") as client:
            return await client.get("/")

    response = asyncio.run(ask())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers.get("retry-after") == retry


@pytest.mark.parametrize(
    ("headers", "bodies", "ended"),
    [
        ([(b"Content-Length", b"4")], [b"an", b"sw"], True),
        ([(b"Content-Length", b"4")], [b"an"], False),
        ([], [b"answ"], False),
    ],
    ids=["whole", "cut off", "of unknown length"],
)
def test_a_replica_dies_as_it_answers(headers: list[tuple[bytes, bytes]], bodies: list[bytes], ended: bool) -> None:
    """What is whole is ended, so that the connection stays; what may be cut off is not said to be whole."""
    sent: list[Any] = [{"type": "http.response.start", "status": 200, "headers": headers}]
    sent += [{"type": "http.response.body", "body": body, "more_body": True} for body in bodies]
    passed: list[Any] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        for message in sent:
            await send(message)

    async def noted(message: Any) -> None:
        passed.append(message)

    async def nothing() -> Any:
        raise AssertionError("nobody reads")

    asyncio.run(Retriable(proxy)({"type": "http", "path": "/"}, nothing, noted))
    assert passed == sent + [{"type": "http.response.body"}] * ended


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Nothing can listen"):
        check_free("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--replicas 2", "--replicas has no effect with --engine local"),
        ("--cpus 2", "--cpus has no effect with --engine local"),
        ("--engine ray --root .", "--root has no effect with --engine ray"),
        ("--engine ray --teach .", "--teach has no effect with --engine ray"),
        ("--engine ray", "no adapters in"),
        ("--engine ray --host 0.0.0.0", "no token"),
    ],
)
def test_options_of_the_command(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(tmp_path), *options.split()])
    assert stopped.value.code == 2 and words in capsys.readouterr().err

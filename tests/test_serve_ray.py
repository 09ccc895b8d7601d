"""`viapt serve --engine ray`: two replicas, one of which is killed while clients ask; the end; what proxies say."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

import viapt
from serve_cases import PATIENCE, picture, served, upload, write_adapters
from viapt.cli import main
from viapt.errors import ConfigError
from viapt.serve.on_ray import check_free
from viapt.serve.ray_proxy import Retriable

pytest.importorskip("ray.serve", reason="ray is not installed")

TOKEN = "a-token-of-some-length"
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
        for k in range(4):
            found[name, k] = model.predict([picture(k)]).probabilities[0].tolist()
    return found


class World:
    """A server, and what is known of it."""

    def __init__(self, url: str, process: subprocess.Popen[str], expected: Any) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE)
        self.process, self.expected = process, expected

    async def ask(self, first: int, count: int, *tasks: str) -> str:
        """One request; "" for a right answer, else the code of an error after which it may be sent again."""
        shown = [picture(first + k) for k in range(count)]
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
                assert list(answer["probabilities"].values()) == pytest.approx(self.expected[task, first + k], abs=1e-5)
        return ""

    async def waiting(self, count: int = 2) -> dict[str, float]:
        """Rows that wait in each of so many replicas, by their metrics."""
        rows: dict[str, float] = {}
        while len(rows) < count:
            response = await self.client.get("/metrics")
            if response.status_code == 200:
                rows |= {name: float(value) for name, value in SAMPLE.findall(response.text)}
            else:
                assert response.status_code == 503
                await asyncio.sleep(0.1)
        return rows

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
    """Rows = 4: smaller requests wait for others, so that it is known who holds some when it dies."""
    options = ["--engine", "ray", "--replicas", "2", "--rows", "4", "--wait-ms", HELD]
    with served(adapters, log, *options, VIAPT_TOKEN=TOKEN) as (url, process):
        asyncio.run(scenario(World(url, process, expected)))
    assert process.returncode == 0


async def scenario(world: World) -> None:
    assert (await httpx.AsyncClient().get(f"{world.client.base_url}/v1/tasks")).status_code in (401, 503)
    while code := await world.ask(0, 2, "paper", "deep"):
        assert code == "draining"  # that is: not yet there
        await asyncio.sleep(0.5)
    assert (await world.client.get("/v1/tasks", headers={"Authorization": "no"})).status_code == 401
    refused = await world.client.delete("/v1/tasks/deep")
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "loading_is_off"
    await one_dies(world)
    await world_ends(world)


async def one_dies(world: World) -> None:
    before = world.replicas()
    assert len(before) == 2
    held = [asyncio.create_task(world.ask(0, 1, "paper")) for _ in range(4)]
    while min((named := await world.waiting()).values()) == 0:
        assert not any(one.done() for one in held), "slower than the requests wait"
    victim = min(before, key=lambda one: one.pid)
    victim.kill()

    back = asyncio.Event()
    clients = [asyncio.create_task(until(back, world, k)) for k in range(3)]
    codes = [await one for one in held]
    assert set(codes) == {"", "replica_died"}
    while len(world.replicas() - {victim}) < 2 or not set(await world.waiting()) - set(named):
        await asyncio.sleep(0.2)
    back.set()
    for answered in asyncio.as_completed(clients):
        assert await answered > 0


async def until(back: asyncio.Event, world: World, first: int) -> int:
    """Full passes, one after the other; how many were answered."""
    answered = 0
    while not back.is_set():
        code = await world.ask(first, 2, "paper", "deep")
        assert code in ("", "replica_died", "busy")
        answered += not code
        await asyncio.sleep(1.0 if code else 0.05)
    return answered


async def world_ends(world: World) -> None:
    """On SIGTERM what was begun is answered, and nothing is left behind."""
    family = psutil.Process(world.process.pid).children(recursive=True)
    held = asyncio.create_task(world.ask(1, 1, "deep"))
    while max((await world.waiting()).values()) == 0:
        pass
    world.process.send_signal(signal.SIGTERM)
    assert await held == ""
    await world.client.aclose()
    world.process.wait(PATIENCE)
    assert not psutil.wait_procs(family, PATIENCE)[1]


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


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Nothing can listen"):
        check_free("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--replicas 2", "--replicas has no effect with --engine local"),
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

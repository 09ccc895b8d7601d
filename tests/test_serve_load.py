"""benchmarks/serve.py in small: clients of all kinds at the same time, on real sockets; no timing."""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cli_cases import write_backbone
from serve_cases import PATIENCE
from viapt.multitask import MultiTask
from viapt.serve.app import create_app

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[Any, Any]]:
    """The benchmark and its clients, as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("serve"), importlib.import_module("service_load")


@pytest.fixture(scope="module")
def world(bench: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service in a thread, and what it must answer."""
    serve, load = bench
    folder = tmp_path_factory.mktemp("service")
    backbone = write_backbone(folder)
    adapters = serve.write_adapters(folder / "adapters", backbone, 4)
    app = create_app(MultiTask(backbone, adapters), roots=[folder / "adapters"], token=serve.TOKEN)
    port = serve.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    shown = load.pictures(6)
    yield load.World(f"http://127.0.0.1:{port}", serve.TOKEN, shown, load.predicted(adapters, shown))
    server.should_exit = True
    thread.join()
    assert app.state.service.batcher.admitted == 0


def test_faults_disturb_nobody(bench: tuple[Any, Any], world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good requests get the offline predictions, whatever goes wrong beside them and whatever is loaded meanwhile."""
    serve, load = bench
    monkeypatch.setattr(serve, "SWAP", 0.05)
    monkeypatch.setattr(load, "SHARES", dict.fromkeys(load.SHARES, 1))
    refusals: list[str] = []

    async def scenario() -> Any:
        swapping = asyncio.create_task(serve.swap(world, refusals))
        found = await load.load(world, clients=8, seconds=0, least=12)
        swapping.cancel()
        await asyncio.gather(swapping, return_exceptions=True)
        return found

    tally = asyncio.run(scenario())
    assert not tally.lost and not tally.wrong and not refusals
    good = Counter({kind: tally.counts[kind] for kind in ("one", "several", "tasks", "rounds")})
    assert len(tally.waits) == good.total()
    assert set(tally.counts) >= set(load.SHARES)


def test_the_clients_see_a_wrong_answer(bench: tuple[Any, Any], world: Any) -> None:
    """Else the test above would mean nothing."""
    load = bench[1]
    expected = dict(world.expected)
    for key, predictions in world.expected.items():
        expected[key] = [{name: 1 - value for name, value in one.items()} for one in predictions]
    mistaken = load.World(world.url, world.token, world.pictures, expected)
    tally = asyncio.run(load.load(mistaken, clients=4, seconds=0, least=4))
    assert len(tally.wrong) >= len(tally.waits) > 0
    locked_out = load.World(world.url, "a-token-that-is-no-good", world.pictures, world.expected)
    tally = asyncio.run(load.load(locked_out, clients=4, seconds=0, least=4))
    assert not tally.waits and tally.lost


@pytest.mark.parametrize(
    ("path", "token", "size", "status", "code"),
    [
        ("/v1/classify", False, 8, 401, "unauthorised"),
        ("/v1/classify", True, 40, 413, "request_too_large"),
    ],
)
def test_a_refusal_reaches_a_client_that_is_still_sending(
    world: Any, path: str, token: bool, size: int, status: int, code: str
) -> None:
    """Also one that reads nothing before it has sent everything: it must not find the connection reset."""
    address = httpx.URL(world.url)
    head = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {size * 2**20}"]
    head += [f"Authorization: Bearer {world.token}"] if token else []
    with socket.create_connection((address.host, address.port), timeout=PATIENCE) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + bytes(size * 2**20))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and code.encode() in answer

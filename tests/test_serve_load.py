"""benchmarks/serve.py in small: clients of all kinds at the same time, on real sockets; no timing."""

from __future__ import annotations

import asyncio
import gc
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
import torch
import uvicorn

from cli_cases import write_backbone
from serve_cases import PATIENCE
from viapt.multitask import MultiTask
from viapt.serve.app import create_app
from viapt.serve.limits import Limits

ROOT = Path(__file__).resolve().parents[1]
# Starlette's parser leaves the file of a body that ends too early to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file .tempfile.SpooledTemporaryFile:ResourceWarning")


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[Any, Any, Any]]:
    """The benchmark, its clients and its changes of tasks, as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        serve, load, tasks = (importlib.import_module(name) for name in ("serve", "service_load", "service_tasks"))
        yield serve, load, tasks


@pytest.fixture(scope="module")
def service(bench: tuple[Any, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A service in a thread, what it must answer, and a corrupt adapter that it may be asked to load."""
    serve, load, tasks = bench
    folder = tmp_path_factory.mktemp("service")
    backbone = write_backbone(folder)
    adapters = serve.write_adapters(folder / "adapters", backbone, 4)
    corrupt = tasks.corrupted(adapters["task0"], folder / "corrupt")
    app = create_app(
        MultiTask(backbone, adapters), roots=[folder / "adapters", folder], token=serve.TOKEN, limits=Limits(passes=2)
    )
    port = serve.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    shown = load.pictures(6)
    yield load.World(f"http://127.0.0.1:{port}", serve.TOKEN, shown, load.predicted(adapters, shown)), corrupt
    server.should_exit = True
    thread.join()
    assert app.state.service.batcher.admitted == 0


@pytest.fixture(scope="module")
def world(service: tuple[Any, Path]) -> Any:
    """What the service must answer."""
    return service[0]


@pytest.fixture
def fast(bench: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds are as frequent, and nobody waits long."""
    _, load, tasks = bench
    monkeypatch.setattr(tasks, "PAUSE", 0.05)
    monkeypatch.setattr(load, "SLOW", 0.1)
    monkeypatch.setattr(load, "SHARES", dict.fromkeys(load.SHARES, 1))


def disturbed(bench: tuple[Any, Any, Any], world: Any, corrupt: Path, turns: int) -> tuple[Any, Any]:
    """What came of all kinds of requests, and of changes of tasks beside them."""
    _, load, tasks = bench
    changes = tasks.Changes()

    async def change() -> None:
        for _ in range(turns):
            await tasks.turn(world, corrupt, changes)

    async def scenario() -> Any:
        return (await asyncio.gather(load.load(world, clients=8, seconds=0, least=14), change()))[0]

    return asyncio.run(scenario()), changes


@pytest.mark.usefixtures("fast")
def test_faults_disturb_nobody(bench: tuple[Any, Any, Any], service: tuple[Any, Path]) -> None:
    """Good requests get the offline predictions, whatever goes wrong beside them and whatever is loaded meanwhile."""
    load = bench[1]
    tally, changes = disturbed(bench, *service, turns=3)
    assert not tally.lost and not tally.wrong and not changes.wrong
    good = Counter({kind: tally.counts[kind] for kind in ("one", "several", "tasks", "rounds", "slow")})
    assert len(tally.waits) == good.total()
    assert set(tally.counts) >= set(load.SHARES)
    assert changes.answers["right"] and changes.answers["gone"]


@pytest.mark.usefixtures("fast")
def test_nothing_is_kept(bench: tuple[Any, Any, Any], service: tuple[Any, Path]) -> None:
    """Neither pictures, nor answers, nor tasks that have gone: the service has the tensors that it had before."""
    world, corrupt = service
    disturbed(bench, world, corrupt, turns=1)
    before = kept(world)
    disturbed(bench, world, corrupt, turns=2)
    assert kept(world) == before


def kept(world: Any) -> int:
    """Bytes of all tensors in this process, when the service has answered one picture and everything before it."""
    headers, question = {"Authorization": f"Bearer {world.token}"}, {"tasks": world.tasks[0]}
    with httpx.Client(base_url=world.url, headers=headers, timeout=PATIENCE) as http:
        while "viapt_queue_rows 0.0" not in http.get("/metrics").text:
            time.sleep(0.01)
        http.post("/v1/classify", data=question, files={"images": ("x", world.pictures[0])}).raise_for_status()
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def test_the_clients_see_a_wrong_answer(bench: tuple[Any, Any, Any], world: Any) -> None:
    """Else the tests above would mean nothing."""
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


@pytest.mark.usefixtures("fast")
def test_a_wrong_change_of_a_task_is_seen(bench: tuple[Any, Any, Any], service: tuple[Any, Path]) -> None:
    """Here a sound adapter, of another task, stands where a corrupt one should be."""
    tasks, (world, corrupt) = bench[2], service
    changes = tasks.Changes()
    sound = corrupt.parent / "adapters" / world.tasks[2]
    asyncio.run(tasks.turn(world, sound, changes))
    assert [text for text in changes.wrong if "PUT" in text and "200" in text]
    assert [text for text in changes.wrong if text.startswith(f"{tasks.SPARE}: 200")]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, ""),
        ({"lost": 1}, "1 lost"),
        ({"wrong": 2}, "2 wrong"),
        ({"wrong about changes of tasks": 3}, "3 wrong about"),
        ({"growth": 0.06}, "grew by 6.0%"),
        ({"growth": float("nan")}, "grew by"),
        ({"exit code": -9}, "exit code -9"),
    ],
)
def test_what_makes_the_benchmark_fail(bench: tuple[Any, Any, Any], found: dict[str, Any], words: str) -> None:
    good = {"lost": 0, "wrong": 0, "wrong about changes of tasks": 0, "growth": 0.04, "exit code": 0, "p99 / p50": 3.5}
    failed = bench[0].failures(good | found)
    assert len(failed) == bool(words) and all(words in text for text in failed)
    assert "3.50" in bench[0].missed(good)[0] and not bench[0].missed(good | {"p99 / p50": 2.9})


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

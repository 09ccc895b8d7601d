"""Two replicas on Ray Serve, one of which is killed while clients ask: no wrong answer, and none is lost."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli_cases import write_backbone
from viapt.cli import main
from viapt.errors import ConfigError
from viapt.serve.cluster import NAME, Replicas, check_free, deploy
from viapt.serve.limits import Limits

pytest.importorskip("ray.serve", reason="ray is not installed")
import ray

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The benchmark of the service and its clients, as modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("serve"), importlib.import_module("service_load")


def replicas_of(name: str) -> set[str]:
    """Names of the actors that are the replicas of an application."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if actor["name"].startswith(f"SERVE_REPLICA::{name}#")}


def test_the_death_of_a_replica_loses_no_answer(
    bench: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, load = bench
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's default of 15 lets replicas starve beside other tests
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(load, "SHARES", {"one": 3, "several": 1, "tasks": 1})
    adapters = serve.write_adapters(tmp_path / "adapters", write_backbone(tmp_path), 2)
    port, shown = serve.free_port(), load.pictures(4)
    world = load.World(f"http://127.0.0.1:{port}", serve.TOKEN, shown, load.predicted(adapters, shown))
    end = deploy(Replicas([tmp_path / "adapters"], None, Limits(), serve.TOKEN, 2), "127.0.0.1", port, None)
    try:
        headers = {"Authorization": f"Bearer {serve.TOKEN}"}
        assert httpx.get(f"{world.url}/v1/tasks").status_code == 401
        refused = httpx.delete(f"{world.url}/v1/tasks/task0", headers=headers)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "loading_is_off"
        before = replicas_of(NAME)
        assert len(before) == 2
        killed = min(before)

        async def scenario() -> list[Any]:
            asking = asyncio.create_task(load.load(world, clients=4, seconds=4, attempts=20))
            await asyncio.sleep(1)
            ray.kill(ray.get_actor(killed, namespace="serve"))
            first = await asking
            while len(replicas_of(NAME) - {killed}) < 2:
                await asyncio.sleep(0.1)
            return [first, await load.load(world, clients=4, seconds=0, least=3, attempts=20)]

        for tally in asyncio.run(scenario()):
            assert not tally.lost and not tally.wrong and tally.seconds
    finally:
        end()


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Nothing can listen"):
        check_free("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--replicas 2", "--replicas has no effect with --engine local"),
        ("--engine ray --root .", "--root with --engine ray"),
        ("--engine ray", "no adapters in"),
    ],
)
def test_options_of_the_command(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIAPT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(tmp_path), *options.split()])
    assert stopped.value.code == 2 and words in capsys.readouterr().err

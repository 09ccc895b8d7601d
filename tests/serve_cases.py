"""A small service for tests: its tasks, pictures to send, and ways to hold its computation up."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from PIL import Image

from artifact_cases import fitted
from cli_cases import write_backbone
from viapt.artifact import load
from viapt.create import create_model
from viapt.inference import predict
from viapt.multitask import MultiTask
from viapt.serve.app import create_app
from viapt.serve.limits import Limits
from viapt.serve.tasks import adapters_in
from viapt.testing.subject import tiny_vit


def picture(seed: int = 0, size: tuple[int, int] = (40, 36)) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A small file of a million pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(file, "PNG")
    return file.getvalue()


def upload(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    """Arguments of httpx for a request to classify."""
    return {"files": [("images", (f"{k}.png", data)) for k, data in enumerate(pictures)], "data": fields}


def write_adapters(folder: Path) -> None:
    """A tiny backbone and two adapters of it, in `adapters`."""
    (folder / "tiny").mkdir()
    backbone = write_backbone(folder / "tiny")
    for name, method in (("paper", "viapt"), ("deep", "vpt-deep")):
        options = {"num_prompts": 4} | ({"num_instance_prompts": 2} if method == "viapt" else {})
        model = create_model(backbone, method, classes=["a b", "ü", "c"], precision="float32", **options)
        model.save_pretrained(folder / "adapters" / name)


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("viapt", {}),
    "deep": ("vpt-deep", {"num_prompts": 3}),
    "probe": ("linear", {}),
}


def write_tasks(folder: Path) -> dict[str, Path]:
    """Three adapters of one tiny backbone, unlike each other."""
    for seed, (name, (method, options)) in enumerate(METHODS.items()):
        model = fitted(tiny_vit(), method, seed=seed, **options)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
        model.save_pretrained(folder / name)
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


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def passes_made(app: FastAPI) -> list[list[str]]:
    """The methods in each pass that is made from now on."""
    tasks, found = app.state.service.tasks, []
    compute = tasks.compute
    tasks.compute = lambda images, rows: found.append([row.model.method.name for row in rows]) or compute(images, rows)
    return found


Scenario = Callable[[httpx.AsyncClient, FastAPI], Awaitable[None]]


def serve(
    adapters: dict[str, Path],
    scenario: Scenario,
    limits: Limits | None = None,
    backbone: str | None = None,
    **options: Any,
) -> None:
    """A scenario with a new service of these adapters; at the end, nothing is left behind.

    One pass at a time, unless the limits say otherwise.
    """
    limits = limits or Limits()
    limits = replace(limits, passes=limits.passes or 1)
    app = create_app(MultiTask(backbone or tiny_vit(), adapters), limits=limits, **options)

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client,
        ):
            await scenario(client, app)
            assert app.state.service.batcher.admitted == 0

    asyncio.run(run())
    gc.collect()  # here, and not in the middle of another test


PATIENCE = 500  # seconds; machines may be busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reached(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def served(folder: Path, log: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`viapt serve` in a process of its own, ready; it is killed if it does not end by itself."""
    port = free_port()
    command = [sys.executable, "-m", "viapt", "serve", str(folder), "--port", str(port), *options]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    with log.open("w") as file:
        process = subprocess.Popen(command, env=surroundings, stdout=file, stderr=file, text=True)
        try:
            deadline = time.monotonic() + PATIENCE
            while not reached(port):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait()


@contextmanager
def held(app: FastAPI) -> Iterator[Callable[[], Awaitable[None]]]:
    """Inside, passes begin and do not end; gives something that waits until one has begun."""
    tasks, begun, free = app.state.service.tasks, threading.Event(), threading.Event()
    compute = tasks.compute

    def slow(*arguments: Any) -> Any:
        begun.set()
        free.wait()
        return compute(*arguments)

    tasks.compute = slow
    try:
        yield lambda: until(begun.is_set)
    finally:
        free.set()
        tasks.compute = compute

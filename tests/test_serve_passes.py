"""How the service computes: what shares a pass, in which order, how many passes at a time, and what fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

from serve_cases import (
    check,
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
from viapt.errors import DataError
from viapt.serve.batching import LATELY
from viapt.serve.limits import Limits
from viapt.serve.pace import Pace, efficient_pace, efficient_rows, seconds_per_row
from viapt.testing.subject import tiny_vit


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tasks(tmp_path_factory.mktemp("adapters"))


def test_requests_share_a_pass_and_get_their_own_answers(adapters: dict[str, Path]) -> None:
    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        made = passes_made(app)
        assert (await client.put("/v1/tasks/other", json={"directory": "deep"})).status_code == 200
        names = ["deep", "other"] * 3
        asked = [
            client.post("/v1/classify", **upload(picture(k), tasks=name, policy="fixed", seed=str(k)))
            for k, name in enumerate(names)
        ]
        for k, (name, response) in enumerate(zip(names, await asyncio.gather(*asked), strict=True)):
            check(response.json()["images"][0]["tasks"][name], adapters["deep"], picture(k), "fixed", 1, k)
        assert [len(rows) for rows in made] == [6]

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


@pytest.fixture
def held_attention(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, threading.Event]:
    """Attention that tells when it begins, and ends without success when it may."""
    begun, end = threading.Semaphore(0), threading.Event()

    def attend(*_: Any) -> Any:
        begun.release()
        assert end.wait(60)
        raise DataError("no attention")

    monkeypatch.setattr("viapt.serve.service.attend", attend)
    return begun, end


def test_attention_leaves_passes_to_others(
    adapters: dict[str, Path], held_attention: tuple[threading.Semaphore, threading.Event]
) -> None:
    """Of many that look, one is in the threads of passes at a time."""
    begun, end = held_attention

    async def scenario(client: httpx.AsyncClient, _: FastAPI) -> None:
        files = {"image": ("x", picture())}
        looks = [asyncio.create_task(client.post("/v1/attention", files=files, data={"task": "deep"})) for _ in "abc"]
        await asyncio.to_thread(begun.acquire)
        await asyncio.wait_for(sound(client, adapters), 60)  # by the other thread
        assert not begun.acquire(blocking=False)
        end.set()
        for look in looks:
            refused(await look, 422, "unreadable_image")

    serve(adapters, scenario, Limits(passes=2))


def test_attention_that_nobody_waits_for_keeps_its_turn(
    adapters: dict[str, Path], held_attention: tuple[threading.Semaphore, threading.Event]
) -> None:
    """Until its thread is free: others that look wait for it, and passes have the other thread. Who waits goes."""
    begun, end = held_attention

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        service, files = app.state.service, {"image": ("x", picture())}
        service.batcher.taken.extend([0.001] * LATELY)  # whatever else computes here

        async def look() -> httpx.Response:
            return await client.post("/v1/attention", files=files, data={"task": "deep"})

        for response in await asyncio.gather(look(), look(), look()):
            refused(response, 504, "timeout")
        service.limits = Limits()
        assert begun.acquire(timeout=60) and service.batcher.admitted == 1
        await asyncio.wait_for(sound(client, adapters), 60)  # by the other thread
        assert not begun.acquire(blocking=False) and service.looking.locked()
        end.set()
        refused(await look(), 422, "unreadable_image")
        assert service.batcher.admitted == 0 and not service.looking.locked()
        await service.batcher.stop()
        refused(await look(), 503, "draining")

    serve(adapters, scenario, Limits(passes=2, timeout=0.2))


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


@pytest.mark.parametrize("passes", [1, 2])
def test_at_the_end_whoever_waits_is_told_so(passes: int, adapters: dict[str, Path]) -> None:
    """Those whose rows are being computed as well as those in the queue, and those that are still being decoded."""

    async def scenario(client: httpx.AsyncClient, app: FastAPI) -> None:
        tasks, begun = app.state.service.tasks, []
        compute = tasks.compute

        def slow(*arguments: Any) -> Any:
            begun.append(1)
            time.sleep(0.2)
            return compute(*arguments)

        tasks.compute = slow
        names = [name for name in adapters for _ in range(2)]
        asked = [asyncio.create_task(client.post("/v1/classify", **upload(picture(), tasks=name))) for name in names]
        await until(lambda: len(begun) == passes and app.state.service.batcher.admitted == len(names))
        await app.state.service.batcher.stop()
        for response in asked:
            refused(await response, 503, "draining")
        assert len(begun) == passes

    serve(adapters, scenario, Limits(rows=1, passes=passes))

"""Clients of a service that check every answer: mixed requests, some of them wrong on purpose, at full speed or a rate.

one        one picture for one task            several    three pictures for one task
tasks      one picture for three tasks         rounds     one picture, three samples and their spread
token      a wrong token: 401                  truncated  a damaged picture: 422
unknown    a task that is not there: 404       bomb       a picture with too many pixels: 422
malformed  no multipart where it should be: 400
cut        a body that ends in the middle: 422
slow       one picture for one task by a client that takes half a second to send it
vanish     the client goes away in the middle of its upload, or before the answer

A good request is one row through the backbone or three. One that the service is too busy for (429, 503) is sent again
when it says so. What has no right answer in the end is lost; an answer that is not the offline prediction is wrong.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import viapt

SHARES = {"one": 50, "several": 20, "tasks": 12, "rounds": 8, "token": 2, "truncated": 2, "unknown": 2, "bomb": 2}
SHARES |= {"vanish": 2, "malformed": 1, "cut": 1, "slow": 2}
FAULTS = {
    "token": (401, "unauthorised"),
    "truncated": (422, "unreadable_image"),
    "unknown": (404, "unknown_task"),
    "bomb": (422, "unreadable_image"),
    "malformed": (400, "http_400"),
    "cut": (422, "invalid_request"),
}
BAD = {*FAULTS, "vanish"}  # kinds that get no prediction
PHASES = "warm-up", "capacity", "load", "capacity after"
SLOW, PIECES = 0.5, 5  # seconds that a slow client takes to send, and in how many pieces
SEVERAL, SEED = 3, 5  # pictures, tasks or rounds
BUSY = (429, 503)
TOLERANCE = 1e-4  # of a probability in float32: batches differ, and with them the rounding


@dataclass(frozen=True)
class World:
    """What may be asked, and what is right.

    Attributes:
        pictures: encoded.
        expected: (task, policy) -> for each picture, class -> probability.
    """

    url: str
    token: str
    pictures: Sequence[bytes]
    expected: Mapping[tuple[str, str], Sequence[Mapping[str, float]]]

    @property
    def tasks(self) -> list[str]:
        return sorted({task for task, _ in self.expected})


@dataclass(frozen=True)
class Wait:
    """For an answer to a good request, repetitions included: seconds since it was due, and since it was sent, which is
    later where a client still waited for the answer before.
    """

    kind: str
    due: float
    sent: float


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        chosen: numbers of pictures.
        whole: whether a client that vanishes has sent all of it.
    """

    kind: str
    tasks: Sequence[str]
    chosen: Sequence[int]
    whole: bool = True


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        waits: for each answer to a good request.
        furthest: of a probability from the offline prediction.
        counts: of requests by kind, of "busy" answers and of connections that broke and were made "again".
        wrong, lost: what happened, in words.
    """

    waits: list[Wait] = field(default_factory=list)
    furthest: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def predicted(adapters: Mapping[str, Path], pictures: Sequence[bytes], **options: Any) -> dict[tuple[str, str], Any]:
    """The offline predictions, each task alone: `World.expected`.

    Args:
        options: of `viapt.load`.
    """
    expected = {}
    for task, folder in adapters.items():
        model = viapt.load(folder, **options)
        for policy in ("mean", "multi"):
            found = model.predict(list(pictures), policy, SEVERAL, SEED).probabilities.tolist()
            expected[task, policy] = [dict(zip(model.classes, row, strict=True)) for row in found]
    return expected


def pictures(count: int, size: tuple[int, int] = (160, 120)) -> list[bytes]:
    """JPEG files of smooth noise."""
    found = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def bomb() -> bytes:
    """A file of a few kilobytes that is a picture of 36 million pixels."""
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    return file.getvalue()


def drawn(draw: random.Random, tasks: Sequence[str], pictures: int) -> Ask:
    """What a client asks next."""
    (kind,) = draw.choices(list(SHARES), list(SHARES.values()))
    if kind in BAD:
        chosen = [draw.randrange(pictures)]
        return Ask(kind, tasks[:1], chosen, whole=kind != "vanish" or draw.choice([False, True]))
    some = draw.sample(tasks, SEVERAL if kind == "tasks" else 1)
    return Ask(kind, some, draw.sample(range(pictures), SEVERAL if kind == "several" else 1))


def seed_of(seed: int, phase: str) -> int:
    """Of what is asked in one of the `PHASES` of a run."""
    return len(PHASES) * seed + PHASES.index(phase)


def client_draws(clients: int, seed: int) -> list[random.Random]:
    """What each client draws from: its phase, if there is a pace, and then what it asks."""
    return [random.Random(f"{seed} {k}") for k in range(clients)]


async def load(
    world: World,
    clients: int,
    seconds: float,
    rate: float | None = None,
    *,
    least: int = 1,
    attempts: int = 2,
    seed: int = 0,
) -> Tally:
    """So many clients at the same time, each with one request after the other.

    Args:
        rate: requests a second, of all clients together, each at an even pace; None: each sends the next one when it
            has its answer.
        least: requests of each client, however long they take.
        attempts: how often a good request whose connection breaks, or that meets a 5xx, is sent at most.
    """
    tally, heavy = Tally(), bomb()
    gap, end = None if rate is None else clients / rate, time.monotonic() + seconds
    draws = client_draws(clients, seed)
    await asyncio.gather(*(client(world, draw, heavy, end, gap, least, attempts, tally) for draw in draws))
    return tally


async def client(
    world: World,
    draw: random.Random,
    heavy: bytes,
    end: float,
    gap: float | None,
    least: int,
    attempts: int,
    tally: Tally,
) -> None:
    """One client, until the end."""
    headers = {"Authorization": f"Bearer {world.token}"}
    due = time.monotonic() + draw.uniform(0, gap or 0)
    async with httpx.AsyncClient(base_url=world.url, headers=headers, timeout=120, verify=False) as http:
        while due < end or least > 0:
            least -= 1
            await asyncio.sleep(due - time.monotonic())
            ask = drawn(draw, world.tasks, len(world.pictures))
            tally.counts[ask.kind] += 1
            if ask.kind == "vanish":
                await vanish(world, ask)
            elif ask.kind in FAULTS:
                await fail(http, world, ask, heavy, tally)
            else:
                await succeed(http, world, ask, due, attempts, tally)
            due = time.monotonic() if gap is None else due + gap


async def succeed(http: httpx.AsyncClient, world: World, ask: Ask, due: float, attempts: int, tally: Tally) -> None:
    """A good request, until it is answered."""
    policy = "multi" if ask.kind == "rounds" else "mean"
    sampling = {"rounds": str(SEVERAL), "seed": str(SEED)} if policy == "multi" else {}
    fields = {"tasks": ask.tasks, "policy": policy} | sampling
    files = [("images", (str(k), world.pictures[k])) for k in ask.chosen]
    sent = time.monotonic()
    while True:
        response, broken = None, ""
        try:
            request = http.build_request("POST", "/v1/classify", data=fields, files=files)
            response = await http.send(slowly(request) if ask.kind == "slow" else request)
        except httpx.HTTPError as error:
            broken = repr(error)
        if response is not None and response.status_code in BUSY:
            tally.counts["busy"] += 1
            await asyncio.sleep(int(response.headers.get("Retry-After", 1)))
            continue
        if response is not None and response.status_code == 200:
            now = time.monotonic()
            tally.waits.append(Wait(ask.kind, now - due, now - sent))
            compare(world, response.json(), ask, policy, tally)
            return
        attempts -= 1
        if attempts == 0 or (response is not None and response.status_code < 500):
            tally.lost.append(broken if response is None else f"{response.status_code} {response.text[:200]}")
            return
        tally.counts["again"] += 1


def slowly(request: httpx.Request) -> httpx.Request:
    """The same, sent in pieces with pauses."""
    body = request.read()
    size = -(-len(body) // PIECES)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            await asyncio.sleep(SLOW / PIECES)
            yield body[start : start + size]

    return httpx.Request(request.method, request.url, headers=request.headers, content=pieces())


def compare(world: World, answer: dict[str, Any], ask: Ask, policy: str, tally: Tally) -> None:
    """Note how far an answer is from the offline prediction, and whether that is wrong."""
    asked = [(str(k), sorted(ask.tasks)) for k in ask.chosen]
    if (given := [(image["name"], sorted(image["tasks"])) for image in answer["images"]]) != asked:
        tally.wrong.append(f"{given} instead of {asked}")
        return
    for image, k in zip(answer["images"], ask.chosen, strict=True):
        for task, found in image["tasks"].items():
            given = found["probabilities"]
            far = furthest(world.expected[task, policy][k], given)
            tally.furthest = max(tally.furthest, far)
            if far > TOLERANCE or given[found["label"]] != max(given.values()):
                tally.wrong.append(f"{task}, picture {k}, {policy}: {far:.2g} from the prediction")


def furthest(expected: Mapping[str, float], given: Mapping[str, float]) -> float:
    """Between the probabilities of a class; a class that is not there is far away."""
    return max(abs(value - given.get(name, 9.0)) for name, value in expected.items())


async def fail(http: httpx.AsyncClient, world: World, ask: Ask, heavy: bytes, tally: Tally) -> None:
    """A request that must be refused, in the one form that errors have."""
    kind, good = ask.kind, world.pictures[ask.chosen[0]]
    data = {"truncated": good[: len(good) // 2], "bomb": heavy}.get(kind, good)
    fields = {"tasks": "no such task" if kind == "unknown" else ask.tasks}
    request = http.build_request("POST", "/v1/classify", data=fields, files={"images": ("x", data)})
    if kind == "token":
        request.headers["Authorization"] = "Bearer a-token-that-is-wrong"
    if kind in ("malformed", "cut"):
        body = request.read()
        body = body[len(body) // 2 :] if kind == "malformed" else body[: len(body) // 2]
        told = {name: request.headers[name] for name in ("Authorization", "Content-Type")}
        request = httpx.Request("POST", request.url, headers=told, content=body)
    try:
        response = await http.send(request)
    except httpx.HTTPError as error:
        tally.lost.append(f"{kind}: {error!r}")
        return
    if response.status_code in BUSY:
        tally.counts["busy"] += 1
        return
    if (response.status_code, response.json()["error"]["code"]) != FAULTS[kind]:
        tally.wrong.append(f"{kind}: {response.status_code} {response.text[:200]}")


async def vanish(world: World, ask: Ask) -> None:
    """Send half of a request, or all of it, and go."""
    files = {"images": ("x", world.pictures[ask.chosen[0]])}
    request = httpx.Request("POST", f"{world.url}/v1/classify", files=files)
    body, where = request.read(), request.url
    head = [f"POST {where.path} HTTP/1.1", f"Host: {where.host}", f"Authorization: Bearer {world.token}"]
    head += [f"Content-Type: {request.headers['content-type']}", f"Content-Length: {len(body)}", "", ""]
    _, writer = await asyncio.open_connection(where.host, where.port)
    writer.write("\r\n".join(head).encode() + body[: len(body) if ask.whole else len(body) // 2])
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.close()

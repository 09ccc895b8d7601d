"""A task of a service that comes and goes while others are asked, and is asked itself all the while.

A turn: a corrupt adapter is refused, a task is loaded, a corrupt one does not take its place, another one does, and it
is unloaded. Around each change the task is asked: the right answer is that of one of the two adapters, or that there is
no such task.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service_load import BUSY, TOLERANCE, World, furthest
from viapt.adapter_files import TENSORS

SPARE = "spare"
PAUSE = 10.0  # seconds between its changes
AROUND = 4  # questions about each change
GONE, CORRUPT = (404, "unknown_task"), (422, "unusable_adapter")


@dataclass
class Changes:
    """What came of the changes.

    Attributes:
        answers: of the spare task, "right", "gone" or "busy".
        wrong: what happened instead, in words.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def corrupted(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter in which one bit of a number is another."""
    shutil.copytree(adapter, folder)
    data = bytearray((folder / TENSORS).read_bytes())
    data[-5] ^= 1
    (folder / TENSORS).write_bytes(data)
    return folder


async def keep_changing(world: World, corrupt: Path, changes: Changes) -> None:
    """Turn after turn, until it is cancelled."""
    while True:
        await turn(world, corrupt, changes)


async def turn(world: World, corrupt: Path, changes: Changes) -> None:
    """All changes, each once."""
    done = (200, "")
    first, second, damaged = ({"directory": name} for name in (*world.tasks[:2], str(corrupt)))
    calls: list[tuple[tuple[int, str], dict[str, Any]]] = [
        (CORRUPT, {"method": "PUT", "json": damaged}),
        (done, {"method": "PUT", "json": first}),
        (CORRUPT, {"method": "PUT", "json": damaged | {"replace": True}}),
        (done, {"method": "PUT", "json": second | {"replace": True}}),
        (done, {"method": "DELETE"}),
    ]
    headers = {"Authorization": f"Bearer {world.token}"}
    async with httpx.AsyncClient(base_url=world.url, headers=headers, timeout=120) as http:
        for expected, call in calls:
            await asyncio.sleep(PAUSE)
            asked = [asyncio.create_task(ask(http, world, k % len(world.pictures), changes)) for k in range(AROUND)]
            await asyncio.sleep(0)  # they are sent first
            response = await http.request(url=f"/v1/tasks/{SPARE}", **call)
            await asyncio.gather(*asked)
            if (response.status_code, code_of(response)) != expected:
                changes.wrong.append(f"{call}: {response.status_code} {response.text[:200]}")


async def ask(http: httpx.AsyncClient, world: World, picture: int, changes: Changes) -> None:
    """A question of the spare task, and what came of it."""
    files = {"images": ("x", world.pictures[picture])}
    try:
        response = await http.post("/v1/classify", data={"tasks": SPARE}, files=files)
    except httpx.HTTPError as error:
        changes.wrong.append(f"{SPARE}: {error!r}")
        return
    if response.status_code in BUSY:
        changes.answers["busy"] += 1
    elif (response.status_code, code_of(response)) == GONE:
        changes.answers["gone"] += 1
    elif response.status_code == 200 and is_right(response.json(), world, picture):
        changes.answers["right"] += 1
    else:
        changes.wrong.append(f"{SPARE}: {response.status_code} {response.text[:200]}")


def is_right(answer: Mapping[str, Any], world: World, picture: int) -> bool:
    """Whether one of the two adapters says this of the picture."""
    given = answer["images"][0]["tasks"][SPARE]["probabilities"]
    return any(furthest(world.expected[task, "mean"][picture], given) <= TOLERANCE for task in world.tasks[:2])


def code_of(response: httpx.Response) -> str:
    """Of a refusal."""
    return "" if response.is_success else response.json()["error"]["code"]

"""A service under load: right answers, flat memory, and how long clients wait at 70 % of what it can do.

    python benchmarks/serve.py --json benchmarks/results/serve.json   # ten minutes, 32 clients
    python benchmarks/serve.py --backbone vit_tiny_patch16_224 --seconds 30 --warm-up 5 --capacity-seconds 10

`viapt serve` runs in a process of its own with random adapters of several methods on a random backbone. 32 clients
(`service_load.py` says what they ask) first send one request after the other: that is the capacity. Then they send at
a part of it, while a further task comes and goes and is asked, too (`service_tasks.py`); then at full speed again.
Every answer is compared with the offline prediction of its task alone. The exit code is 1 if anything was lost, wrong
or refused wrongly, or if the memory grew by more than 5 %; figures are written all the same.

capacity after   beside `capacity`: whether the machine was as fast at the end as in the beginning
cores            that the server's process had, at full speed before and after, and under the load
p50, p90, p99    of the seconds since a good request was due; `as sent`: since it was sent; slow clients, who take
                 as long as they take, are told by kind alone
missed           whether p99 / p50 is above 3, which says nothing of the answers
furthest         of a probability from the offline prediction
growth           of the server's resident memory from the first tenth under the load to the last
range            from the smallest to the largest mean of a tenth, as a part of the mean of all
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

import measure
import viapt
from service_load import Tally, Wait, World, load, pictures, predicted, seed_of
from service_tasks import Changes, corrupted, keep_changing

METHODS = ["viapt", "vpt-deep", "vpt-shallow", "linear"]
TOKEN = "a-token-of-this-benchmark"
PICTURES = 24
GROWTH, RATIO = 0.05, 3.0  # of memory, and of p99 to p50, at most


def write_adapters(folder: Path, backbone: str, count: int, **options: Any) -> dict[str, Path]:
    """Random adapters whose answers are unlike each other: name -> folder."""
    frozen = viapt.create_backbone(backbone, **options)
    found = {}
    for number in range(count):
        model = viapt.create_model(frozen, METHODS[number % len(METHODS)], classes=10, precision="float32")
        model.head.weight.data.normal_(0, 0.2)
        found[f"task{number}"] = model.save_pretrained(folder / f"task{number}")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(folder: Path, corrupt: Path, port: int, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The service, when it is ready; the corrupt adapter may be loaded as well."""
    command = [sys.executable, "-m", "viapt", "serve", str(folder), "--port", str(port)]
    command += ["--root", str(folder), "--root", str(corrupt.parent)]
    command += [f"--{name}={value}" for name in ("rows", "passes") if (value := getattr(args, name)) is not None]
    own = {"VIAPT_TOKEN": TOKEN, "OMP_NUM_THREADS": str(args.threads), "ACCELERATE_USE_CPU": "true"}
    environment = os.environ | own
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/readyz").raise_for_status()
            return process
        except httpx.HTTPError:
            time.sleep(0.2)
    sys.exit("the service did not start")


async def watch(pid: int, samples: list[float]) -> None:
    while True:
        samples.append(measure.resident(pid))
        await asyncio.sleep(1)


def cpu_seconds(pid: int) -> float:
    """That a process has computed, on all threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def phase(
    world: World, pid: int, args: argparse.Namespace, seconds: float, rate: float | None, name: str
) -> tuple[Tally, float, float]:
    """One of `PHASES`: what came of it, requests a second and cores in use, until the last answer."""
    began, before = time.monotonic(), cpu_seconds(pid)
    tally = await load(world, args.clients, seconds, rate, seed=seed_of(args.seed, name))
    took = time.monotonic() - began
    pace, cores = answered(tally) / took, (cpu_seconds(pid) - before) / took
    say(f"{pace:.2f} requests/s on {cores:.2f} cores, p50 {quantile(tally.waits, 0.5):.3f} s, {dict(tally.counts)}")
    return tally, pace, cores


async def measured(world: World, corrupt: Path, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    """Warm-up, capacity, the load, and the capacity again."""
    warm, *_ = await phase(world, pid, args, args.warm_up, None, "warm-up")
    full, capacity, full_cores = await phase(world, pid, args, args.capacity_seconds, None, "capacity")
    samples: list[float] = []
    changes = Changes()
    beside = [asyncio.create_task(watch(pid, samples)), asyncio.create_task(keep_changing(world, corrupt, changes))]
    under, rate, cores = await phase(world, pid, args, args.seconds, capacity * args.part, "load")
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    again, capacity_after, cores_after = await phase(world, pid, args, args.capacity_seconds, None, "capacity after")
    parts = [warm, full, under, again]
    faults = {
        "lost": [case for part in parts for case in part.lost],
        "wrong": [case for part in parts for case in part.wrong],
        "wrong about changes of tasks": changes.wrong,
    }
    speeds = {"capacity": capacity, "capacity after": capacity_after, "rate": rate}
    speeds |= {"cores": [full_cores, cores_after], "cores under the load": cores}
    furthest = {"furthest": max(part.furthest for part in parts)}
    spare = {"the task that comes and goes": dict(changes.answers)}
    speeds["passes at a time"] = await passes_at_a_time(world)
    return speeds | summary(under) | memory(samples) | counted(faults) | furthest | spare


async def passes_at_a_time(world: World) -> int:
    """As the service says."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {world.token}"}) as http:
        told = (await http.get(f"{world.url}/metrics")).raise_for_status().text
    return int(float(next(line.split()[1] for line in told.splitlines() if line.startswith("viapt_passes "))))


def failures(result: dict[str, Any]) -> list[str]:
    """What must not be."""
    found = [f"{result[kind]} {kind}" for kind in ("lost", "wrong", "wrong about changes of tasks") if result[kind]]
    if not result["growth"] <= GROWTH:
        found.append(f"the memory grew by {result['growth']:.1%}; at most {GROWTH:.0%} are wanted")
    if result["exit code"] != 0:
        found.append(f"the service ended with exit code {result['exit code']}")
    return found


def missed(result: dict[str, Any]) -> list[str]:
    """What was wanted, and is not so."""
    ratio = result["p99 / p50"]
    return [] if ratio <= RATIO else [f"p99 / p50 is {ratio:.2f}; at most {RATIO:g} is wanted"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def counted(faults: dict[str, list[str]]) -> dict[str, int]:
    """How many of each; what they were is said."""
    for kind, cases in faults.items():
        for case in cases[:5]:
            say(f"{kind}: {case}")
    return {kind: len(cases) for kind, cases in faults.items()}


def quantile(waits: Sequence[Wait], part: float, since: str = "due") -> float:
    """Of the seconds that answers took."""
    values = sorted(getattr(wait, since) for wait in waits)
    return values[min(len(values) - 1, int(len(values) * part))] if values else float("nan")


def answered(tally: Tally) -> int:
    """How many requests there were, each once."""
    return tally.counts.total() - tally.counts["busy"] - tally.counts["again"]


def summary(tally: Tally) -> dict[str, Any]:
    """How many requests there were, and how long the good ones waited."""
    by_kind: dict[str, list[Wait]] = {}
    for wait in tally.waits:
        by_kind.setdefault(wait.kind, []).append(wait)
    prompt = [wait for wait in tally.waits if wait.kind != "slow"]
    return {
        "requests": answered(tally),
        "answers": len(tally.waits),
        "kinds": dict(sorted(tally.counts.items())),
        **quantiles(prompt),
        "as sent": quantiles(prompt, "sent"),
        "by kind": {kind: quantiles(waits) for kind, waits in sorted(by_kind.items())},
    }


def quantiles(waits: Sequence[Wait], since: str = "due") -> dict[str, float]:
    p50, p90, p99, longest = (quantile(waits, part, since) for part in (0.5, 0.9, 0.99, 1.0))
    return {"p50": p50, "p90": p90, "p99": p99, "longest": longest, "p99 / p50": p99 / p50}


def memory(samples: list[float]) -> dict[str, float]:
    """Of the server, in MiB, by tenths of the time."""
    size = max(1, len(samples) // 10)
    tenths = [statistics.fmean(samples[k : k + size]) for k in range(0, len(samples) - size + 1, size)]
    spread = (max(tenths) - min(tenths)) / statistics.fmean(tenths)
    return {"MiB first": tenths[0], "MiB last": tenths[-1], "growth": tenths[-1] / tenths[0] - 1, "range": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=30)
    parser.add_argument("--capacity-seconds", type=float, default=60)
    parser.add_argument("--part", type=float, default=0.7, help="of the capacity")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the service's passes")
    parser.add_argument("--rows", type=int, help="of a pass (default: as the service measures)")
    parser.add_argument("--passes", type=int, help="at the same time, likewise")
    parser.add_argument("--seed", type=int, default=0, help="of what the clients ask, and when")
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        adapters = write_adapters(Path(folder), args.backbone, args.tasks, pretrained=False)
        corrupt = corrupted(adapters["task0"], Path(other) / "corrupt")
        shown = pictures(PICTURES)
        port = free_port()
        world = World(f"http://127.0.0.1:{port}", TOKEN, shown, predicted(adapters, shown))
        process = started(Path(folder), corrupt, port, args)
        try:
            result = asyncio.run(measured(world, corrupt, process.pid, args))
            process.send_signal(signal.SIGTERM)
            result["exit code"] = process.wait(60)
        finally:
            process.kill()
    result["missed"], failed = missed(result), failures(result)
    print(json.dumps(result, indent=2))
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    measure.write(args.json, settings, result=result)
    for text in failed:
        say(f"failed: {text}")
    for text in result["missed"]:
        say(f"missed: {text}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

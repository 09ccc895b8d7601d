"""How long clients would wait at a service without faults of its own: the queue alone, with the clients of `serve.py`.

    python benchmarks/service_queue.py --json benchmarks/results/service_queue.json   # four minutes

Rows all take equally long, some of them at a time, in the order in which their requests came; nothing else takes time:
no decoding, no refusals, no changes of tasks. What each client asks and when is what `service_load.py` draws, at a part
of what such clients get at full speed. So p99 / p50 is here a property of the requests, their phases and the order in
which they are served; where a measured one is like it, the service has not made it so.

passes   at the same time, of `--row` x passes / cores seconds each: one pass at a time loses nothing by taking all
         cores for one row, as it would in truth
whole    requests are not cut into rows: the rows of each follow each other in one pass
lead     for each of its rows, a request is served as if it had come so many passes earlier: who needs most begins first
part     of the requests a second at full speed
p50, p99 medians over the seeds, in seconds
below    how many seeds have a ratio below 3
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from serve import METHODS, PICTURES, RATIO, quantiles
from service_load import BAD, SEVERAL, SLOW, Ask, Wait, client_draws, drawn, seed_of


def rows(ask: Ask) -> int:
    """That it needs: tasks without prompts share one of a picture, and only instance prompts differ by round."""
    methods = [METHODS[int(task.removeprefix("task")) % len(METHODS)] for task in ask.tasks]
    prompted = len(methods) - methods.count("linear")
    each = prompted + (methods.count("linear") > 0)
    return each * len(ask.chosen) * (SEVERAL if ask.kind == "rounds" and methods == ["viapt"] else 1)


@dataclass
class Request:
    """What one client waits for."""

    client: int
    ask: Ask
    due: float
    sent: float
    left: int  # rows


class Queue:
    """An ideal service, and its clients.

    Args:
        passes: at a time, each of `row` seconds.
        rate: requests a second of all clients together; None: each asks again when it is answered.
        whole: a request takes one pass for all of its rows, one after the other.
        lead: passes by which a request is preferred for each of its rows; 0: first come, first served.
    """

    def __init__(
        self,
        clients: int,
        tasks: int,
        passes: int,
        row: float,
        rate: float | None,
        seed: int,
        *,
        whole: bool = False,
        lead: float = 0.0,
    ) -> None:
        self.tasks = sorted(f"task{k}" for k in range(tasks))
        self.draws = client_draws(clients, seed)
        self.gap = None if rate is None else clients / rate
        self.row, self.free, self.whole, self.lead = row, passes, whole, lead
        self.waiting: list[tuple[float, int, Request, int]] = []  # a heap: rank, and what came first among equals
        self.events: list[tuple[float, int, Any]] = []
        self.waits: list[Wait] = []
        self.asked = self.happened = self.arrived = 0

    def run(self, seconds: float) -> tuple[list[Wait], float]:
        """The waits of answers, and requests a second."""
        now = 0.0
        for client, draw in enumerate(self.draws):
            due = draw.uniform(0, self.gap or 0)
            self.at(due, (client, due))
        while self.events:
            now, _, event = heapq.heappop(self.events)
            match event:
                case Request():  # its client, who is slow, has sent it
                    self.arrive(now, event)
                case (Request() as request, int(done)):
                    self.finish(now, request, done)
                case (client, due):
                    self.ask(now, client, due, seconds)
            self.start(now)
        return self.waits, self.asked / now

    def at(self, when: float, event: Any) -> None:
        self.happened += 1
        heapq.heappush(self.events, (when, self.happened, event))

    def ask(self, now: float, client: int, due: float, end: float) -> None:
        """What the client sends next, if there is time."""
        if due >= end:
            return
        self.asked += 1
        ask = drawn(self.draws[client], self.tasks, PICTURES)
        if ask.kind in BAD:
            return self.again(now, client, due)
        request = Request(client, ask, due, now, rows(ask))
        if ask.kind == "slow":
            return self.at(now + SLOW, request)
        return self.arrive(now, request)

    def arrive(self, now: float, request: Request) -> None:
        rank = now - self.lead * self.row * request.left
        for piece in [request.left] if self.whole else [1] * request.left:
            self.arrived += 1
            heapq.heappush(self.waiting, (rank, self.arrived, request, piece))

    def start(self, now: float) -> None:
        while self.free and self.waiting:
            _, _, request, piece = heapq.heappop(self.waiting)
            self.free -= 1
            self.at(now + piece * self.row, (request, piece))

    def finish(self, now: float, request: Request, done: int) -> None:
        self.free += 1
        request.left -= done
        if request.left == 0:
            self.waits.append(Wait(request.ask.kind, now - request.due, now - request.sent))
            self.again(now, request.client, request.due)

    def again(self, now: float, client: int, due: float) -> None:
        """The client's next request is due a while after this one was, or at once; it is sent when it is answered."""
        following = now if self.gap is None else due + self.gap
        self.at(max(now, following), (client, following))


def ratios(args: argparse.Namespace, part: float, passes: int, **way: Any) -> dict[str, Any]:
    """Of all seeds; `way` goes to the queue."""
    found: dict[int, dict[str, float]] = {}
    for seed in args.seeds:
        common = args.clients, args.tasks, passes, args.row * passes / args.cores
        _, capacity = Queue(*common, None, seed_of(seed, "capacity"), **way).run(120)
        waits, _ = Queue(*common, capacity * part, seed_of(seed, "load"), **way).run(args.seconds)
        found[seed] = quantiles([wait for wait in waits if wait.kind != "slow"])
    return {
        "part": part,
        "passes": passes,
        **way,
        "p50": statistics.median(one["p50"] for one in found.values()),
        "p99": statistics.median(one["p99"] for one in found.values()),
        "ratio": quartiles([one["p99 / p50"] for one in found.values()]),
        "below": sum(one["p99 / p50"] < RATIO for one in found.values()),
        "of the first seeds": {seed: round(found[seed]["p99 / p50"], 2) for seed in args.seeds[:4]},
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"least": min(values), "quarter": low, "median": middle, "three quarters": high, "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--row", type=float, default=0.15, help="seconds of a row on one core")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ways: list[dict[str, Any]] = [
        {"passes": args.cores},
        {"passes": args.cores, "whole": True},
        {"passes": 1},
        *({"passes": args.cores, "lead": lead} for lead in (-0.5, 0.5, 1.0, 2.0)),
    ]
    found = [ratios(args, part, **way) for part in (0.6, 0.7, 0.8) for way in ways]
    print(json.dumps(found, indent=2))
    measure.write(args.json, {key: value for key, value in vars(args).items() if key != "json"}, result=found)


if __name__ == "__main__":
    main()

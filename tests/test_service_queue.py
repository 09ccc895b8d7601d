"""The queue that waiting times of the service are put beside: by hand where that is possible."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROW = 0.15
TASKS = 8


@pytest.fixture(scope="module")
def queue() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield importlib.import_module("service_queue")


def test_rows(queue: Any) -> None:
    """Of tasks 0 to 3: viapt, vpt-deep, vpt-shallow, linear."""
    several, ask = list(range(queue.SEVERAL)), queue.Ask
    assert queue.rows(ask("one", ["task1"], [0])) == 1
    assert queue.rows(ask("several", ["task1"], several)) == 3
    assert queue.rows(ask("tasks", ["task0", "task1", "task2"], [0])) == 3
    assert queue.rows(ask("tasks", ["task1", "task3", "task7"], [0])) == 2
    assert queue.rows(ask("rounds", ["task4"], [0])) == 3
    assert queue.rows(ask("rounds", ["task5"], [0])) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_client_alone_waits_for_its_own_rows(queue: Any, whole: bool) -> None:
    waits, rate = queue.Queue(1, TASKS, 2, ROW, 0.5, 0, whole=whole).run(2000)
    assert rate == pytest.approx(0.5, rel=0.01)
    passes = {"one": {1}, "several": {3 if whole else 2}, "tasks": {2, 3} if whole else {1, 2}}
    passes["rounds"] = {1, 3} if whole else {1, 2}
    for wait in waits:
        assert wait.sent == wait.due
        if wait.kind == "slow":
            assert wait.due == pytest.approx(queue.SLOW + ROW)
        else:
            assert min(abs(wait.due - count * ROW) for count in passes[wait.kind]) < 1e-9


@pytest.mark.parametrize("passes", [1, 2])
def test_at_full_speed_no_pass_idles(queue: Any, passes: int) -> None:
    """As many requests as their rows allow: those of the same draws, counted by hand."""
    service = queue.Queue(16, TASKS, passes, ROW, None, 3)
    _, rate = service.run(500)
    draw = queue.client_draws(1, 3)[0]
    asks = [queue.drawn(draw, service.tasks, queue.PICTURES) for _ in range(20_000)]
    work = sum(queue.rows(ask) for ask in asks if ask.kind not in queue.BAD) / len(asks)
    assert rate == pytest.approx(passes / (work * ROW), rel=0.04)


def test_first_come_first_served(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass at a time: Lindley's recursion, from when requests were sent and their rows."""
    service = queue.Queue(3, TASKS, 1, ROW, 3.0, 1)
    came: list[Any] = []
    arrive = service.arrive
    monkeypatch.setattr(service, "arrive", lambda now, request: (came.append(replace(request)), arrive(now, request)))
    waits, _ = service.run(300)
    expected, free = Counter[float](), 0.0
    for request in came:
        free = max(free, request.sent + (queue.SLOW if request.ask.kind == "slow" else 0)) + request.left * ROW
        expected[round(free - request.sent, 6)] += 1
    assert Counter(round(wait.sent, 6) for wait in waits) == expected
    assert max(expected) > 3 * ROW + queue.SLOW  # somebody has waited for others


def test_a_lead_of_those_who_need_more(queue: Any) -> None:
    """Two wait while one is served; the later one has two rows, and with a lead of a pass each begins as early."""
    for lead, order in ((0.0, ["short", "long", "long"]), (2.0, ["long", "long", "short"])):
        service = queue.Queue(1, TASKS, 1, ROW, None, 0, lead=lead)
        for now, kind, rows in ((0.0, "short", 1), (ROW, "long", 2)):
            service.arrive(now, queue.Request(0, queue.Ask(kind, [], []), now, now, rows))
        served = []
        for _ in range(3):
            service.free = 1
            service.start(ROW)
        while service.events:
            served.append(queue.heapq.heappop(service.events)[2][0].ask.kind)
        assert served == order

"""Drawing many pictures of a task in several processes: the same ones, whatever their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from jaxtyping import Int64, UInt8

from viapt.data.rendered import SIZE, render, rendered_labels

CHUNK = 50
"""Pictures drawn at once: about a second, which is how long an interruption waits."""

Chunk = tuple[int, UInt8[np.ndarray, "n height width 3"]]


def render_all(
    name: str, n: int, seed: int, processes: int = 1, on_progress: Callable[[int, int], None] | None = None
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int64[np.ndarray, " n"]]:
    """Pictures 0 to n - 1 of a task and their labels.

    Args:
        name: of `viapt.data.rendered.TASKS`.
        n: how many.
        seed: of the task.
        processes: 1 draws in this process. More are started afresh, so the program that calls this must then be
            importable without running (`if __name__ == "__main__":`).
        on_progress: called with the pictures drawn and those wanted.
    """
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    done = 0
    for start, drawn in _chunks(name, n, seed, processes):
        images[start : start + len(drawn)] = drawn
        done += len(drawn)
        if on_progress:
            on_progress(done, n)
    return images, rendered_labels(name, 0, n, seed)


def _chunks(name: str, n: int, seed: int, processes: int) -> Iterator[Chunk]:
    """All pictures, in any order, each chunk with the number of its first picture."""
    spans = [(name, start, min(start + CHUNK, n), seed) for start in range(0, n, CHUNK)]
    if processes == 1:
        yield from map(_draw, spans)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_the_parent)
    try:
        for future in as_completed([pool.submit(_draw, span) for span in spans]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(span: tuple[str, int, int, int]) -> Chunk:
    name, start, stop, seed = span
    return start, render(name, start, stop, seed)[0]


def _follow_the_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()

"""What the benchmarks share: variants that take turns, peak memory of a process of its own, machine, rates, FLOPs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import viapt

Step = Callable[[], object]
Clock = Callable[[], float]


def seconds(step: Step, clock: Clock = time.perf_counter) -> float:
    start = clock()
    step()
    return clock() - start


def in_turns(steps: dict[str, Step], turns: int, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of every turn but the first; a machine whose speed drifts slows all variants alike.

    In each turn a variant runs twice, and the second run counts: the first one finds the memory that others left.

    Args:
        clock: `time.process_time` where other processes want the same cores: what this one computed, on all threads.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            step()
            took = seconds(step, clock)
            if turn:
                times[name].append(took)
        print(f"turn {turn} of {turns}", file=sys.stderr, flush=True)
    return times


def summary(times: Sequence[float], count: int) -> dict[str, float]:
    """Median and range of the seconds, and how many images a second that is."""
    middle = statistics.median(times)
    return {"seconds": middle, "fastest": min(times), "slowest": max(times), "images_per_second": count / middle}


def high_water_mark() -> float:
    """MiB of this process alone at its peak (Linux); `ru_maxrss` would count what the parent held before it."""
    return in_status("VmHWM", "self")


def resident(process: int | Literal["self"] = "self") -> float:
    """MiB of a process now (Linux)."""
    return in_status("VmRSS", process)


def in_status(field: str, process: int | Literal["self"]) -> float:
    """An entry of /proc/PROCESS/status, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def peak_memory(arguments: list[str]) -> float:
    """MiB at the peak of a process that runs the same script with these arguments and prints its `high_water_mark`."""
    command = [sys.executable, sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def matmul_rate(dtype: torch.dtype, rows: int, dim: int) -> float:
    """The best rate of a matrix product here, in GFLOP/s: of a ViT's shapes and a large square, by either library."""
    from viapt.backbones.frozen_linear import linear

    best = 0.0
    for m, k, n in ((rows, dim, 3 * dim), (rows, dim, 4 * dim), (rows, 4 * dim, dim), (4096, 4096, 4096)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        for product in (torch.nn.functional.linear, linear):
            fastest = min(seconds(lambda x=x, w=weight, p=product: p(x, w)) for _ in range(6))
            best = max(best, 2 * m * k * n / fastest / 1e9)
    return best


def flops(step: Step) -> int:
    """Multiplications and additions of one call, counted by PyTorch.

    Its counter knows neither oneDNN's linear operator nor the fused attention of CPUs, so these stand aside meanwhile.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with (
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            step()
    return counter.get_total_flops()


def machine() -> dict[str, Any]:
    """On what the figures were taken, and when."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16_instructions": [name for name in ("amx_bf16", "avx512_bf16") if name in flags],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "viapt": viapt.__version__,
    }


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print chosen columns: name -> format."""
    cells = [
        [f"{row[name]:{form}}" if row.get(name) is not None else "" for name, form in columns.items()] for row in rows
    ]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    for line in [list(columns), *cells]:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )


def write(path: Path | None, settings: dict[str, Any], **results: Any) -> None:
    """Keep what was measured, if there is a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"machine": machine(), "settings": settings} | results, indent=2) + "\n")
    partial.replace(path)

"""How long `viapt data check` takes: for the first time, with nothing changed, and with a few files changed.

    python benchmarks/doctor.py --json benchmarks/results/doctor.json

Writes some 50,000 small JPEGs as two tasks of VTAB-1k in the community's layout, and runs the command on them. Their
files are in the system's page cache. Every run is a process of its own, its start included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import measure
from viapt.data.benchmarks import find_task

TASKS = {"vtab-1k/retinopathy": "diabetic_retinopathy", "vtab-1k/eurosat": "eurosat"}
LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
CHANGED = 100


def write_tasks(root: Path, side: int) -> list[Path]:
    """All files of the tasks, each picture another one."""
    rng = np.random.default_rng(0)
    files = []
    for name, folder in TASKS.items():
        task = find_task(name)
        images = root / folder / "images"
        images.mkdir(parents=True)
        for part, file in LISTS.items():
            lines = []
            for i in range(task.counts[part]):
                path = images / f"{part}{i}.jpg"
                pixels = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
                Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)
                lines.append(f"images/{path.name} {i % task.classes}\n")
                files.append(path)
            (root / folder / file).write_text("".join(lines))
    return files


def check(root: Path, cache: Path) -> float:
    """Seconds of the command for all tasks, which must be complete."""

    def step() -> None:
        for name in TASKS:
            command = [sys.executable, "-m", "viapt", "data", "check", name, "--root", str(root)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"VIAPT_CACHE": str(cache)})
            if done.returncode:
                sys.exit(done.stdout + done.stderr)

    return measure.seconds(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="pixels of a picture")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "data"), Path(folder, "cache")
        files = write_tasks(root, args.side)
        time.sleep(3)  # files that have just changed are not remembered
        rows = [{"variant": "first time", "seconds": check(root, cache)}]
        rows += [{"variant": "nothing changed", "seconds": check(root, cache)} for _ in range(3)]
        for path in files[:: len(files) // CHANGED][:CHANGED]:
            path.touch()
        rows.append({"variant": f"{CHANGED} files changed", "seconds": check(root, cache)})
        manifests = sum(path.stat().st_size for path in (cache / "manifests").glob("*.json"))
    for row in rows:
        row["files_per_second"] = len(files) / row["seconds"]
    measure.table(rows, {"variant": "", "seconds": ".1f", "files_per_second": ",.0f"})
    settings = {"files": len(files), "side": args.side, "tasks": list(TASKS)}
    measure.write(args.json, settings, rows=rows, manifest_bytes=manifests)


if __name__ == "__main__":
    main()

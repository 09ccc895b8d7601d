"""Methods on the packaged suite, validation accuracy only: how the defaults were chosen (docs/log.md).

    python benchmarks/recipe.py --methods linear vpt-deep viapt --seeds 0 1 2
    python benchmarks/recipe.py --methods viapt:kept_dim=64 "viapt:carry_scale=0.3;kept_dim=16" --tasks fashion

Each run is one line of `--out`; runs that are there already are not repeated, so the command can be interrupted. The
split is fixed; seeds change the start and the order of images. The test part is never read. Two processes of one thread
each are faster than one of two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import viapt
from viapt.cli.settings import parse_settings
from viapt.data import ImageDataset, eval_transform, read_source
from viapt.data.packaged import load_task, split
from viapt.evaluation import evaluate

# Small, so that many seeds fit: 56 says as much as 98 of source pictures of 28 pixels.
IMAGE_SIZE = {"elpv": 70, **dict.fromkeys(("silhouettes", "fashion", "orientation", "count"), 56)}
IMAGE_SIZE |= dict.fromkeys(("stamps", "azimuth", "elevation", "distance"), 98)
TASKS = ["elpv", "silhouettes", "fashion", "orientation"]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One training; the job with what came out of it."""
    torch.set_num_threads(1)
    task = load_task(job["task"])
    method, _, settings = job["method"].partition(":")
    model = viapt.create_model(
        "packaged:vits14",
        method=method,
        classes=task.classes,
        image_size=IMAGE_SIZE[task.name],
        seed=job["seed"],
        **parse_settings(settings.split(";") if settings else [], method),
    )
    parts = split(task, train=job["train"], val=job["val"], test=0)
    transform = eval_transform(model.backbone.preprocessing)
    source = read_source((task.images, task.labels), classes=task.classes)
    train, val = (ImageDataset(source.select(parts[part]), transform) for part in ("train", "val"))
    history = viapt.fit(
        model, train, epochs=job["epochs"], lr=job["lr"], batch_size=job["batch"], seed=job["seed"], progress=False
    )
    return job | {
        "val_accuracy": evaluate(model, val).accuracy.value,
        "train_loss": history.epochs[-1].train_loss,
        "learnable_parameters": model.parameter_counts()["method"],
        "seconds": history.seconds,
        "data_hash": task.content_hash,
        "protocol": history.protocol,
        "image_size": IMAGE_SIZE[task.name],
    }


def key(job: dict[str, Any]) -> str:
    return json.dumps({name: job[name] for name in ("task", "method", "seed", "lr", "epochs", "train", "val", "batch")})


def table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Mean and standard deviation over seeds, per task, and their mean over tasks."""
    lines = [f"{'method':44}{'lr':>8}{'learnable':>11}" + "".join(f"{task:>15}" for task in tasks) + f"{'mean':>8}"]
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["lr"]) == (method, lr)]
        cells, means = [], []
        for task in tasks:
            values = [100 * row["val_accuracy"] for row in mine if row["task"] == task]
            means.append(statistics.mean(values) if values else math.nan)
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{means[-1]:9.2f} ±{spread:4.2f}")
        learnable = mine[0]["learnable_parameters"]
        lr_text = "default" if lr is None else f"{lr:g}"
        lines.append(f"{method:44}{lr_text:>8}{learnable:11,}" + "".join(cells) + f"{statistics.mean(means):8.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", default=["linear", "vpt-deep", "viapt"], help="NAME or NAME:key=value;..."
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=list(IMAGE_SIZE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--lr", nargs="+", type=float, default=[None], help="learning rates; the method's own by default"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--val", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe.jsonl"))
    args = parser.parse_args()

    fixed = {name: getattr(args, name) for name in ("epochs", "train", "val", "batch")}
    jobs = [
        {"task": task, "method": method, "seed": seed, "lr": lr} | fixed
        for seed, method, lr, task in itertools.product(args.seeds, args.methods, args.lr, args.tasks)
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {key(row): row for row in map(json.loads, args.out.read_text().splitlines())} if args.out.exists() else {}
    open_jobs = [job for job in jobs if key(job) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool, args.out.open("a") as out:
        for number, future in enumerate(as_completed([pool.submit(run, job) for job in open_jobs]), 1):
            row = future.result()
            done[key(row)] = row
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"{number}/{len(open_jobs)} {row['method']} {row['task']} {row['seed']}: {row['val_accuracy']:.4f}")
    print(table([done[key(job)] for job in jobs], args.tasks))


if __name__ == "__main__":
    main()

"""What many tasks on one backbone cost: throughput of a batch whose images belong to as many tasks as can be.

    python benchmarks/multitask.py                                    # 200 tasks on ViT-S/16
    python benchmarks/multitask.py --cpu-time --turns 3 --json benchmarks/results/multitask.json

one      all images of the batch for one task, by `MultiTask`
alone    the same by that task's own model, without `MultiTask`
many     each image for another task: a different choice of tasks in every turn

`x one` is the time beside that of `one`, by the clock on the wall, or with `--cpu-time` by what the process computed,
which others on the same cores disturb less. `MiB per task` is what the process grows by while tasks are added, and
`adapter MiB` what their tensors hold. Weights and adapters are random; variants take turns.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

import measure
import viapt
from viapt.inference import class_probabilities, evaluating
from viapt.multitask import MultiTask, Question
from viapt.precision import resolve_precision

METHODS = {"viapt": ["viapt"], "vpt-deep": ["vpt-deep"], "mixed": ["viapt", "vpt-deep", "vpt-shallow", "linear"]}


def adapter_bytes(model: viapt.PromptedClassifier) -> int:
    state = (*model.method.parameters(), *model.method.buffers(), *model.head.parameters())
    return sum(tensor.untyped_storage().nbytes() for tensor in state)


def filled(
    backbone: viapt.Backbone, methods: list[str], args: argparse.Namespace
) -> tuple[MultiTask, dict[str, float]]:
    """Tasks, of these methods in turns, and what they cost in memory."""
    tasks = MultiTask(backbone)
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            precision = str(backbone.dtype).removeprefix("torch.")
            model = viapt.create_model(backbone, method, classes=args.classes, precision=precision)
            model.save_pretrained(Path(folder, method))
        tasks.add("warm", Path(folder, methods[0]))
        tasks.remove("warm")
        before = measure.resident()
        for number, method in zip(range(args.tasks), itertools.cycle(methods), strict=False):
            tasks.add(f"task {number}", Path(folder, method))
        grown = measure.resident() - before
    held = sum(adapter_bytes(model) for model in tasks.values()) / 2**20
    return tasks, {"MiB per task": grown / args.tasks, "adapter MiB": held / args.tasks}


def steps(tasks: MultiTask, count: int) -> dict[str, measure.Step]:
    """A batch of so many images: for one task, for that task without the others, for as many tasks as can be."""
    images, names = torch.randn(count, 3, *tasks.backbone.preprocessing.image_size), itertools.cycle(tasks)
    first = next(iter(tasks))

    def alone() -> None:
        with evaluating(tasks[first]):
            class_probabilities(tasks[first], images, "mean", 5, 0)

    return {
        "one": lambda: tasks.answer(images, [Question(first, k) for k in range(count)]),
        "alone": alone,
        "many": lambda: tasks.answer(images, [Question(next(names), k) for k in range(count)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    precision = str(resolve_precision(args.precision, torch.device("cpu"))).removeprefix("torch.")
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = []
    for kind in args.methods:
        backbone = viapt.create_backbone(args.backbone, pretrained=False).to(getattr(torch, precision))
        tasks, memory = filled(backbone, METHODS[kind], args)
        for count in args.batch:
            times = measure.in_turns(steps(tasks, count), args.turns, clock)
            results = {name: measure.summary(took, count) for name, took in times.items()}
            for name, result in results.items():
                ratio = result["seconds"] / results["one"]["seconds"]
                rows.append({"methods": kind, "variant": name, "batch": count, "x one": ratio} | memory | result)
    print(f"\n{args.backbone}, {precision}, {args.tasks} tasks of {args.classes} classes")
    columns = {"methods": "", "variant": "", "batch": "", "seconds": ".4f", "images_per_second": ".1f", "x one": ".3f"}
    measure.table(rows, columns | {"MiB per task": ".2f", "adapter MiB": ".2f"})
    settings = {
        key: getattr(args, key) for key in ("backbone", "tasks", "batch", "classes", "methods", "turns", "cpu_time")
    }
    measure.write(args.json, settings | {"precision": precision}, rows=rows)


if __name__ == "__main__":
    main()

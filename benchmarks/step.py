"""What one training step costs: bare forward, linear, VPT-Deep, and ViaPT with each reduction.

    python benchmarks/step.py                                      # ViT-B/16, 224 px, p = 10, batch 32
    python benchmarks/step.py --backbone vit_small_patch16_224 --batch 8 --steps 10

Weights are random: time and memory do not depend on their values. The variants take turns, step by step, so that a
machine whose speed drifts slows all of them alike; the table gives the median step and its ratio to VPT-Deep's. Peak
memory is that of a process of its own which takes one step. The reduction alone (all layers, forward and backward) is
timed on prompts of the same shape; a basis refresh is timed alone and spread over `--epoch-steps` steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import viapt
from viapt.model import PromptedClassifier
from viapt.precision import resolve_precision
from viapt.reduction import REDUCTIONS, RunningPCA

VARIANTS = ["forward", "linear", "vpt-deep", *(f"viapt:{name}" for name in REDUCTIONS)]


def build(variant: str, args: argparse.Namespace, backbone: torch.nn.Module) -> PromptedClassifier:
    method, _, reduction = variant.partition(":")
    options = {} if method in ("forward", "linear") else {"num_prompts": args.prompts}
    if reduction:
        options["reduction"] = reduction
    method = "linear" if method == "forward" else method
    model = viapt.create_model(backbone, method=method, classes=100, **options)
    if reduction:  # as after calibration, whose refreshes are timed alone
        model.method.scale.measuring = False
        if isinstance(model.method.kept, RunningPCA):
            model.method.kept.estimating = False
    return model.train(variant != "forward")


def stepper(variant: str, model: PromptedClassifier, images: torch.Tensor) -> Callable[[], None]:
    labels = torch.zeros(images.shape[0], dtype=torch.long)

    def step() -> None:
        if variant == "forward":
            with torch.no_grad():
                model(images)
            return
        loss, _ = model(images, labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def reduction_seconds(model: PromptedClassifier, args: argparse.Namespace) -> float:
    """The kept subspaces of all layers, forward and backward, on prompts of the step's shape."""
    method = model.method
    prompts = torch.randn(args.batch, args.prompts, method.dim, requires_grad=True)

    def step() -> None:
        for layer in range(method.depth):
            method.kept(layer, prompts, method.fresh[layer]).sum().backward()

    return statistics.median(seconds(step) for _ in range(args.steps + 2))


def refresh_seconds(model: PromptedClassifier) -> float:
    """One refresh of all bases of `running`."""
    kept = model.method.kept
    if not isinstance(kept, RunningPCA):
        return 0.0
    x = torch.randn(model.method.dim, model.method.dim)

    def refresh() -> None:
        for index in range(kept.count):
            kept.moment[index] = x @ x.mT
            kept.refresh(index)

    return min(seconds(refresh) for _ in range(2))


def high_water_mark() -> float:
    """MiB of this process alone at its peak (Linux); `ru_maxrss` would count what the parent held before it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_memory(variant: str, args: argparse.Namespace) -> float:
    """MiB at the peak of a process that takes one step of one variant."""
    command = [sys.executable, __file__, "--only", variant]
    for name in ("backbone", "batch", "prompts", "precision"):
        command += [f"--{name}", str(getattr(args, name))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--epoch-steps", type=int, default=1000, help="steps of a training run that pay for the refreshes"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="vpt-deep must be one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()

    precision = resolve_precision(args.precision, torch.device("cpu"))
    seed_model = viapt.create_model(
        args.backbone, method="linear", classes=100, pretrained=False, precision=str(precision).removeprefix("torch.")
    )
    backbone = seed_model.backbone
    images = torch.randn(args.batch, 3, *backbone.preprocessing.image_size)
    if args.only:
        stepper(args.only, build(args.only, args, backbone), images)()
        print(high_water_mark())
        return

    models = {variant: build(variant, args, backbone) for variant in args.variants}
    steps = {variant: stepper(variant, model, images) for variant, model in models.items()}
    times: dict[str, list[float]] = {variant: [] for variant in args.variants}
    for turn in range(args.steps + 1):
        for variant, step in steps.items():
            took = seconds(step)
            if turn:  # the first warms up
                times[variant].append(took)
        print(f"turn {turn} of {args.steps}", file=sys.stderr)

    deep = statistics.median(times["vpt-deep"])
    rows = []
    for variant in args.variants:
        took = statistics.median(times[variant])
        row = {
            "variant": variant,
            "seconds": took,
            "images_per_second": args.batch / took,
            "ratio_to_vpt_deep": took / deep,
            "peak_memory_mib": peak_memory(variant, args),
        }
        if variant.startswith("viapt"):
            refreshes = models[variant].method.calibration_steps.bit_length()
            row["reduction_share"] = reduction_seconds(models[variant], args) / took
            row["refresh_seconds"] = refresh_seconds(models[variant])
            row["amortised_refresh_share"] = row["refresh_seconds"] * refreshes / (args.epoch_steps * took)
        rows.append(row)

    threads = torch.get_num_threads()
    settings = f"{args.backbone}, {precision}, batch {args.batch}, p = {args.prompts}"
    print(f"{settings}, {threads} threads, torch {torch.__version__}")
    print(f"{'':18}{'s/step':>8}{'img/s':>8}{'x deep':>8}{'MiB':>8}{'reduction':>11}{'refresh':>9}")
    for row in rows:
        shares = (
            f"{row['reduction_share']:11.1%}{row['amortised_refresh_share']:9.2%}" if "reduction_share" in row else ""
        )
        print(
            f"{row['variant']:18}{row['seconds']:8.3f}{row['images_per_second']:8.1f}{row['ratio_to_vpt_deep']:8.3f}"
            f"{row['peak_memory_mib']:8.0f}{shares}"
        )
    if args.json:
        about = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "precision": str(precision),
        }
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "only", "variants")}
        args.json.write_text(json.dumps({"about": about, "settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

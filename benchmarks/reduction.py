"""What each reduction adds to a training step, and what finding the kept subspaces costs.

    python benchmarks/reduction.py                                 # ViT-B/16, batch 16, p = 10
    python benchmarks/reduction.py --json benchmarks/results/reduction.json

`x vpt-deep` is the step beside VPT-Deep's without its shortcut (all tokens in every block); `share` is that of all
layers' reductions, forward and backward, timed alone on prompts of the step's shape; `refresh` is that of taking new
bases as often as training does, spread over `--steps` steps. Weights are random. Variants take turns.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import measure
import viapt
from viapt.backbones.base import Backbone
from viapt.device import keep_freed_memory
from viapt.model import PromptedClassifier
from viapt.precision import resolve_precision
from viapt.reduction import REDUCTIONS, RunningPCA

VARIANTS = ["vpt-deep", *REDUCTIONS]


def build(variant: str, args: argparse.Namespace, backbone: Backbone) -> PromptedClassifier:
    options = {"num_prompts": args.prompts} | ({} if variant == "vpt-deep" else {"reduction": variant})
    method = "vpt-deep" if variant == "vpt-deep" else "viapt"
    model = viapt.create_model(backbone, method=method, classes=100, precision=args.precision, **options)
    if variant != "vpt-deep":  # as after calibration, whose refreshes are timed alone
        model.method.scale.measuring = False
        if isinstance(model.method.kept, RunningPCA):
            model.method.kept.estimating = False
    return model.train()


def stepper(model: PromptedClassifier, images: torch.Tensor, *, shortcuts: bool) -> measure.Step:
    labels = torch.zeros(images.shape[0], dtype=torch.long)

    def step() -> None:
        model.backbone.shortcuts = shortcuts
        model(images, labels)[0].backward()
        model.zero_grad(set_to_none=True)

    return step


def reduction_seconds(model: PromptedClassifier, args: argparse.Namespace) -> float:
    """The kept subspaces of all layers, forward and backward, on prompts of the step's shape."""
    method = model.method
    prompts = torch.randn(args.batch, args.prompts, method.dim, requires_grad=True)

    def step() -> None:
        for layer in range(method.depth):
            method.kept(layer, prompts, method.fresh[layer]).sum().backward()

    return statistics.median(measure.seconds(step) for _ in range(args.turns + 2))


def refresh_seconds(model: PromptedClassifier) -> float:
    """All bases of `running`, taken anew."""
    kept = model.method.kept
    if not isinstance(kept, RunningPCA):
        return 0.0
    x = torch.randn(model.method.dim, model.method.dim)

    def refresh() -> None:
        for index in range(kept.count):
            kept.moment[index] = x @ x.mT
            kept.refresh(index)

    return min(measure.seconds(refresh) for _ in range(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="steps of a training that pay for the refreshes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    args.precision = str(resolve_precision(args.precision, torch.device("cpu"))).removeprefix("torch.")

    options = {"classes": 2, "pretrained": False, "precision": args.precision}
    backbone = viapt.create_model(args.backbone, method="linear", **options).backbone
    images = torch.randn(args.batch, 3, *backbone.preprocessing.image_size)
    models = {variant: build(variant, args, backbone) for variant in VARIANTS}
    steps = {name: stepper(model, images, shortcuts=name != "vpt-deep") for name, model in models.items()}
    times = measure.in_turns(steps, args.turns)
    deep, rows = statistics.median(times["vpt-deep"]), []
    for variant, model in models.items():
        row = {"variant": variant} | measure.summary(times[variant], args.batch)
        row["x vpt-deep"] = row["seconds"] / deep
        if variant != "vpt-deep":
            refreshes = model.method.calibration_steps.bit_length()
            row["share"] = reduction_seconds(model, args) / row["seconds"]
            row["refresh"] = refresh_seconds(model) * refreshes / (args.steps * row["seconds"])
        rows.append(row)
    print(f"\n{args.backbone}, {args.precision}, batch {args.batch}, p = {args.prompts}")
    columns = {"variant": "", "seconds": ".3f", "images_per_second": ".1f", "x vpt-deep": ".3f"}
    measure.table(rows, columns | {"share": ".2%", "refresh": ".3%"})
    settings = {key: getattr(args, key) for key in ("backbone", "batch", "prompts", "precision", "turns", "steps")}
    measure.write(args.json, settings, rows=rows)


if __name__ == "__main__":
    main()

"""How the cost of a training step grows: with prompts, image size, depth, batch and classes, one at a time.

    python benchmarks/scaling.py                                             # ViT-S/16, ViaPT and VPT-Deep
    python benchmarks/scaling.py --json benchmarks/results/scaling.json --vary prompts batch

Ratios are to the default value of each row, which is the same model in all of them. Weights are random.
Values take turns within a row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch

import measure
import viapt
from viapt.device import keep_freed_memory
from viapt.precision import resolve_precision

DEFAULTS = {"prompts": 10, "image": 224, "depth": 12, "batch": 16, "classes": 100}
GRID = {
    "prompts": (10, 1, 5, 20, 50, 100),
    "image": (224, 96, 160, 384),
    "depth": (12, 3, 6, 24),
    "batch": (16, 1, 4, 32, 64),
    "classes": (100, 2, 1000, 10000),
}


def build(method: str, values: dict[str, int], args: argparse.Namespace) -> measure.Step:
    vit = timm.create_model(args.backbone, num_classes=0, depth=values["depth"], img_size=values["image"])
    options = {"num_prompts": values["prompts"]}
    if method == "viapt":
        options["num_instance_prompts"] = round(0.7 * values["prompts"])
    model = viapt.create_model(
        vit, method=method, classes=values["classes"], precision=args.precision, **options
    ).train()
    if method == "viapt":
        model.method.scale.measuring = model.method.kept.estimating = False
    images = torch.randn(values["batch"], 3, values["image"], values["image"])
    labels = torch.zeros(values["batch"], dtype=torch.long)

    def step() -> None:
        model(images, labels)[0].backward()
        model.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--vary", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    args.precision = str(resolve_precision(args.precision, torch.device("cpu"))).removeprefix("torch.")
    rows = []
    for name in args.vary:
        cases = {(m, value): DEFAULTS | {name: value} for value in GRID[name] for m in ("viapt", "vpt-deep")}
        steps = {f"{m} {value}": build(m, values, args) for (m, value), values in cases.items()}
        times = measure.in_turns(steps, args.turns)
        found = {key: measure.summary(times[f"{key[0]} {key[1]}"], values["batch"]) for key, values in cases.items()}
        for m, value in sorted(cases, key=lambda key: (key[0], key[1])):
            one = found[m, value]
            ratio = one["seconds"] / found[m, DEFAULTS[name]]["seconds"]
            deep = one["seconds"] / found["vpt-deep", value]["seconds"]
            rows.append({"vary": name, "value": value, "method": m, "x default": ratio, "x vpt-deep": deep} | one)
        print(f"\n{args.backbone}, {args.precision}: {name}")
        columns = {"method": "", "value": "", "images_per_second": ".1f", "seconds": ".3f", "x default": ".2f"}
        measure.table([row for row in rows if row["vary"] == name], columns | {"x vpt-deep": ".2f"})
        settings = {key: getattr(args, key) for key in ("backbone", "precision", "turns")} | {"defaults": DEFAULTS}
        measure.write(args.json, settings, rows=rows)


if __name__ == "__main__":
    main()

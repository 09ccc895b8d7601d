"""What a training step costs, beside the floor: a forward pass and the backward pass through activations alone.

    python benchmarks/training.py                                  # ViT-B/16, batch 16, p = 10
    python benchmarks/training.py --backbone vit_small_patch16_224 --batch 64 --turns 5
    python benchmarks/training.py --json benchmarks/results/training.json --backbone vit_tiny_patch16_224 \\
        vit_small_patch16_224 vit_base_patch16_224 --batch 8 16 32 64

    floor            timm's blocks, no prompts: forward, and the gradient of the embedded image; nothing learns
    linear           a head on the frozen feature, embedded anew in each step
    vpt-deep plain   prompts through timm's own blocks, no shortcut
    viapt plain      likewise
    plain float32    `viapt plain` with float32 weights: what a loop over timm's blocks costs
    vpt-deep, viapt  as they run
    lora             peft's LoRA, r = 8, on qkv of the same timm model and precision, as its documentation shows it
    full             every weight learns (in the same precision, no optimizer step)

A step is forward, loss, backward; weights are random, since time does not depend on them. Variants take turns. All of
them profit from memory that is kept between steps (`viapt.device`). Peak memory is that of a process of its own.
The last lines compare the step's multiplications and additions a second with the best matrix product of the same run.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import timm
import torch
from torch.nn import functional as F  # noqa: N812

import measure
import viapt
from viapt.backbones.base import Backbone
from viapt.device import keep_freed_memory
from viapt.precision import resolve_precision

VARIANTS = ["floor", "linear", "vpt-deep plain", "viapt plain", "plain float32", "vpt-deep", "viapt", "lora", "full"]
CLASSES = 100


def frozen(name: str, dtype: torch.dtype) -> Backbone:
    precision = str(dtype).removeprefix("torch.")
    return viapt.create_model(name, method="linear", classes=2, pretrained=False, precision=precision).backbone


def prompted(method: str, backbone: Backbone, args: argparse.Namespace, plain: bool) -> measure.Step:
    options = {} if method == "linear" else {"num_prompts": args.prompts}
    model = viapt.create_model(backbone, method=method, classes=CLASSES, precision=precision_of(backbone), **options)
    model.train()
    if method == "viapt":  # as after its first steps, which measure and estimate
        model.method.scale.measuring = model.method.kept.estimating = False
    images, labels = batch(backbone.preprocessing.image_size, args)

    def step() -> None:
        backbone.shortcuts = not plain
        loss, _ = model(images, labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def precision_of(backbone: Backbone) -> str:
    return str(backbone.dtype).removeprefix("torch.")


def batch(size: tuple[int, int], args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(args.size, 3, *size), torch.arange(args.size) % CLASSES


def floor(backbone: Backbone, args: argparse.Namespace) -> measure.Step:
    vit: Any = backbone.vit
    images, _ = batch(backbone.preprocessing.image_size, args)

    def step() -> None:
        tokens = backbone.embed(images, 0)
        x = torch.cat([tokens.prefix, tokens.patches], dim=1).requires_grad_()
        for block in vit.blocks:
            block.attn.fused_attn = backbone.dtype == torch.float32  # the faster way in each precision
        backbone.pool(vit.blocks(x)).float().sum().backward()

    return step


def learning(
    model: torch.nn.Module, dtype: torch.dtype, size: tuple[int, int], args: argparse.Namespace
) -> measure.Step:
    images, labels = batch(size, args)

    def step() -> None:
        F.cross_entropy(model(images.to(dtype)).float(), labels).backward()
        model.zero_grad(set_to_none=True)

    return step


def lora(args: argparse.Namespace, dtype: torch.dtype, size: tuple[int, int]) -> measure.Step:
    from peft import LoraConfig, get_peft_model

    vit = timm.create_model(args.name, num_classes=CLASSES).to(dtype).eval()
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    return learning(get_peft_model(vit, config), dtype, size, args)


def build(variant: str, args: argparse.Namespace, dtype: torch.dtype) -> measure.Step:
    method, _, kind = variant.partition(" ")
    if variant == "plain float32":
        return prompted("viapt", frozen(args.name, torch.float32), args, plain=True)
    backbone = frozen(args.name, dtype)
    size = backbone.preprocessing.image_size
    if variant == "floor":
        return floor(backbone, args)
    if variant == "lora":
        return lora(args, dtype, size)
    if variant == "full":
        return learning(timm.create_model(args.name, num_classes=CLASSES).to(dtype).eval(), dtype, size, args)
    return prompted(method, backbone, args, plain=kind == "plain")


def compare(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """All variants for one backbone and batch."""
    steps = {variant: build(variant, args, dtype) for variant in args.variants}
    times = measure.in_turns(steps, args.turns)
    settings = ["--backbone", args.name, "--batch", str(args.size), "--precision", args.precision]
    settings += ["--prompts", str(args.prompts)]
    rows = []
    for variant in args.variants:
        row = {"variant": variant} | measure.summary(times[variant], args.size)
        rows.append(row | {"peak_memory_mib": measure.peak_memory([*settings, "--only", variant])})
    rates = {row["variant"]: row["images_per_second"] for row in rows}
    for row in rows:
        row |= {
            f"x {base}": row["images_per_second"] / rates[base] for base in ("floor", "vpt-deep plain") if base in rates
        }
    vit = frozen(args.name, torch.float32)
    tokens = 1 + args.prompts + (vit.preprocessing.image_size[0] // vit.patch_size[0]) ** 2
    work = args.size * measure.flops(build("viapt", argparse.Namespace(**(vars(args) | {"size": 1})), torch.float32))
    best = measure.matmul_rate(dtype, args.size * tokens, vit.dim)
    result = {"backbone": args.name, "batch": args.size, "precision": str(dtype).removeprefix("torch."), "rows": rows}
    result |= {"matmul_gflops": best, "step_gflop": work / 1e9}
    result["step_gflops"] = work / 1e9 * rates["viapt"] / args.size
    result["share_of_matmul"] = result["step_gflops"] / best
    print(f"\n{args.name}, {result['precision']}, batch {args.size}, p = {args.prompts}")
    columns = {"variant": "", "images_per_second": ".1f", "fastest": ".3f", "slowest": ".3f", "x floor": ".2f"}
    measure.table(rows, columns | {"x vpt-deep plain": ".2f", "peak_memory_mib": ".0f"})
    print(
        f"viapt: {work / 1e9:.0f} GFLOP a step, {result['step_gflops']:.0f} GFLOP/s: {result['share_of_matmul']:.0%} "
        f"of the best matrix product ({best:.0f} GFLOP/s)",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["vit_base_patch16_224"])
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="viapt must be one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    dtype = resolve_precision(args.precision, torch.device("cpu"))
    args.precision = str(dtype).removeprefix("torch.")
    cases = [argparse.Namespace(**vars(args), name=name, size=size) for name in args.backbone for size in args.batch]
    if args.only:
        step = build(args.only, cases[0], dtype)
        for _ in range(3):  # the second one needs more than the first: memory that is kept is in pieces
            step()
        print(measure.high_water_mark())
        return
    results = []
    for case in cases:
        results.append(compare(case, dtype))
        gc.collect()
        settings = {key: getattr(args, key) for key in ("backbone", "batch", "prompts", "precision", "turns")}
        measure.write(args.json, settings, results=results)


if __name__ == "__main__":
    main()

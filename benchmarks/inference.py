"""What an answer costs: by policy, eager and compiled, and exported to ONNX Runtime and OpenVINO.

    python benchmarks/inference.py                                    # ViT-B/16, p = 10
    python benchmarks/inference.py --backbone vit_small_patch16_224 --json benchmarks/results/inference.json

    bare             the backbone alone, by timm's own code, in the same precision and runtime
    plain            policy mean, every block computing all tokens
    mean, fixed      one pass; multi: R = 5 rounds
    compiled         mean, its blocks compiled
    onnx, openvino   float32 files of viapt export (policy mean), beside the bare backbone in the same runtime

`x bare` is the time beside that of the bare backbone in the same runtime; `allowed` is 1.03 * (tokens with prompts) /
tokens.
Latency is of one image, throughput of a batch. Weights are random. Variants take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import measure
import viapt
from viapt.device import keep_freed_memory
from viapt.inference import class_probabilities, evaluating
from viapt.model import PromptedClassifier
from viapt.precision import resolve_precision


def eager(model: PromptedClassifier, images: torch.Tensor, policy: Any, *, plain: bool = False) -> measure.Step:
    def step() -> None:
        model.backbone.shortcuts = not plain
        with evaluating(model):
            class_probabilities(model, images, policy, 5, 0)

    return step


def bare(model: PromptedClassifier, images: torch.Tensor) -> measure.Step:
    def step() -> None:
        with torch.no_grad():
            model.head(model.backbone(images).float())

    return step


def compiled(model: PromptedClassifier, images: torch.Tensor) -> measure.Step:
    options = {"num_prompts": model.method.num_prompts, "precision": str(model.backbone.dtype)[6:]}
    twin = viapt.create_model(model.backbone, method="viapt", classes=100, **options)

    def step() -> None:
        twin.backbone.compile_blocks(True)
        with evaluating(twin):
            class_probabilities(twin, images, "mean", 5, 0)
        twin.backbone.compile_blocks(False)

    return step


def exported(name: str, method: str, target: Any, folder: Path, args: argparse.Namespace) -> Any:
    from viapt.export import export
    from viapt.exported import load_exported

    options = {"num_prompts": args.prompts} if method == "viapt" else {}
    model = viapt.create_model(name, method=method, classes=100, pretrained=False, precision="float32", **options)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[target]
    return load_exported(export(model, folder / f"{method}-{target}{suffix}", to=target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--targets", nargs="*", choices=["onnx", "openvino"], default=["onnx", "openvino"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    args.precision = str(resolve_precision(args.precision, torch.device("cpu"))).removeprefix("torch.")
    options = {"classes": 100, "pretrained": False, "precision": args.precision, "num_prompts": args.prompts}
    model = viapt.create_model(args.backbone, method="viapt", **options)
    height, width = model.backbone.preprocessing.image_size
    tokens = 1 + height * width // (model.backbone.patch_size[0] * model.backbone.patch_size[1])
    allowed = (tokens + args.prompts) / tokens * 1.03
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f"{target} {method}": exported(args.backbone, method, target, Path(folder), args)
            for target in args.targets
            for method in ("linear", "viapt")
        }
        for count in (1, args.batch):
            images = torch.randn(count, 3, height, width)
            steps = {
                "bare": bare(model, images),
                "plain": eager(model, images, "mean", plain=True),
                "mean": eager(model, images, "mean"),
                "fixed": eager(model, images, "fixed"),
                "multi": eager(model, images, "multi"),
                "compiled": compiled(model, images),
            }
            steps |= {name: lambda file=file, x=images: file(x) for name, file in files.items()}
            times = measure.in_turns(steps, args.turns)
            found = {name: measure.summary(took, count) for name, took in times.items()}
            for name, one in found.items():
                base = found[f"{name.split()[0]} linear"] if " " in name else found["bare"]
                ratio = one["seconds"] / base["seconds"]
                rows.append({"variant": name, "batch": count, "x bare": ratio, "allowed": allowed} | one)
    print(f"\n{args.backbone}, {args.precision} (exported: float32), p = {args.prompts}")
    columns = {
        "variant": "",
        "batch": "",
        "seconds": ".4f",
        "images_per_second": ".1f",
        "x bare": ".3f",
        "allowed": ".3f",
    }
    measure.table(rows, columns)
    settings = {key: getattr(args, key) for key in ("backbone", "batch", "prompts", "precision", "turns")}
    measure.write(args.json, settings, rows=rows)


if __name__ == "__main__":
    main()

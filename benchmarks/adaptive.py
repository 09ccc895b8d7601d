"""What adaptive rounds save, and what they change: passes for each image, accuracy, labels, beside all R rounds.

    python benchmarks/adaptive.py                                             # three tasks, R = 5
    python benchmarks/adaptive.py --json benchmarks/results/adaptive.json

ViaPT is fitted to 500 pictures of a packaged task and its rounds are calibrated on 200 others, as `viapt fit` does;
all figures are of 300 further pictures, none of them from a test part. `initial_std` is how widely instance prompts
start to spread: 0.01 is the default, 0.3 a case in which rounds differ far more. `changed` counts the labels that are
not those of all rounds, at most `--max-disagreement` of them in the long run. These are counts, not times: a busy
machine does not change them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import measure
import viapt
from viapt.backbones.base import Preprocessing
from viapt.data import eval_transform
from viapt.data.packaged import PackagedTask, load_task, split_hash, standard_split
from viapt.evaluation import Outputs, outputs
from viapt.precision import resolve_precision

TASKS = {"elpv": 70, "silhouettes": 56, "fashion": 56}  # pixels
TRAIN = 500


def pictures(task: PackagedTask, indices: np.ndarray, preprocessing: Preprocessing) -> TensorDataset:
    transform = eval_transform(preprocessing)
    images = torch.stack([transform(Image.fromarray(task.images[index])) for index in indices])
    return TensorDataset(images, torch.from_numpy(task.labels[indices]).long())


def compare(name: str, seed: int, initial_std: float, args: argparse.Namespace) -> dict[str, Any]:
    task, size = load_task(name), TASKS[name]
    parts = standard_split(task, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(parts["train"])
    parts = {"train": shuffled[:TRAIN], "val": parts["val"], "held out": shuffled[TRAIN:]}
    backbone = viapt.create_backbone(args.backbone, image_size=size)
    options: dict[str, Any] = {"classes": task.classes, "precision": args.precision, "seed": seed}
    model = viapt.create_model(backbone, method="viapt", initial_std=initial_std, **options)
    sets = {part: pictures(task, indices, backbone.preprocessing) for part, indices in parts.items()}
    viapt.fit(model, sets["train"], sets["val"], epochs=args.epochs, batch_size=25, seed=seed, progress=False)

    def answers(**how: Any) -> Outputs:
        return outputs(model, sets["held out"], rounds=args.rounds, seed=seed, **how)

    one, every = answers(policy="mean"), answers(policy="multi")
    adaptive = answers(policy="multi", alpha=args.max_disagreement)
    labels = {key: found.probabilities.argmax(1) for key, found in (("mean", one), ("all", every), ("few", adaptive))}
    right = {key: float((found == every.labels).double().mean()) for key, found in labels.items()}
    return {
        "task": name,
        "seed": seed,
        "initial_std": initial_std,
        "images": len(every.labels),
        "passes": float(adaptive.rounds.double().mean()),
        "changed": int((labels["few"] != labels["all"]).sum()),
        "changed by mean": int((labels["mean"] != labels["all"]).sum()),
        "accuracy, mean": right["mean"],
        "accuracy, all rounds": right["all"],
        "accuracy, adaptive": right["few"],
        "data_hash": split_hash(task, parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="packaged:vits14")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--initial-std", nargs="+", type=float, default=[0.01, 0.3])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-disagreement", type=float, default=0.01)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.precision = str(resolve_precision(args.precision, torch.device("cpu"))).removeprefix("torch.")
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    rows = []
    for std in args.initial_std:
        for name in args.tasks:
            for seed in args.seeds:
                rows.append(compare(name, seed, std, args))
                measure.write(args.json, settings, rows=rows)
    columns = {"task": "", "seed": "", "initial_std": "", "images": "", "passes": ".2f", "changed": ""}
    columns |= {"changed by mean": ""} | {f"accuracy, {key}": ".3f" for key in ("mean", "all rounds", "adaptive")}
    measure.table(rows, columns)


if __name__ == "__main__":
    main()

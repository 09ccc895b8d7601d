"""A packaged suite and a backbone so small that a job takes a second: files in a cache, which every process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cli_cases import write_backbone
from viapt.bench.engines import LocalEngine
from viapt.bench.entrants import Entrant
from viapt.bench.plan import Plan, make_plan
from viapt.bench.protocol import Protocol
from viapt.bench.runner import Progress, run
from viapt.data import packaged as suite
from viapt.data.task import content_hash

SMALL = {"image_size": 32, "train": 40, "val": 20, "test": 30, "epochs": 1, "batch_size": 20, "precision": "float32"}
VIAPT = {"num_prompts": 3, "num_instance_prompts": 1, "kept_dim": 4, "calibration_steps": 1}
METHODS = [Entrant("linear"), Entrant("viapt", VIAPT)]


def write_suite(cache: Path, names: tuple[str, ...] = ("elpv", "silhouettes")) -> None:
    """Tasks of 16-pixel noise in the cache, brighter for a higher class."""
    cache.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        recipe = suite.RECIPES[name]
        rng = np.random.default_rng(number)
        labels = np.arange(120) % len(recipe.classes)
        images = (20 * labels[:, None, None] + rng.integers(0, 40, (120, 16, 16))).astype(np.uint8)
        path = cache / f"task-{name}.safetensors"
        content = suite.Content(images, labels)
        suite._write_cached(path, recipe.source, content, content_hash(content))


def small_world(root: Path) -> str:
    """Suite (where VIAPT_CACHE=root/cache) and backbone; what `--backbone` takes."""
    write_suite(root / "cache")
    (root / "vit").mkdir()
    return write_backbone(root / "vit")


def small_plan(backbone: str, **changes: Any) -> Plan:
    """Two methods, one task, two seeds, unless something else is said."""
    asked: dict[str, Any] = {"entrants": METHODS, "tasks": ["elpv"], "seeds": [0, 1], "console": None, "device": None}
    asked |= {name: changes.pop(name) for name in list(changes) if name in asked}
    return make_plan(Protocol(**{"backbone": backbone} | SMALL | changes), **asked)


def small_run(folder: Path, backbone: str, workers: int = 1, **changes: Any) -> Progress:
    """A plan done in processes of one thread."""
    return run(small_plan(backbone, **changes), folder, LocalEngine(workers, threads=1))

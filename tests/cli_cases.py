"""A tiny backbone in timm's layout, and a folder of photos, for the tests of commands and of the README."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def write_backbone(folder: Path, architecture: str = "vit_tiny_patch16_224") -> str:
    """What `--backbone` takes for a transformer of timm of depth 2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model(architecture, pretrained=False, num_classes=0, **SIZES)
    safetensors.torch.save_file(vit.state_dict(), folder / "model.safetensors")
    pixels = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    config = {"architecture": architecture, "num_features": 24, "model_args": SIZES}
    config |= {"num_classes": 0, "pretrained_cfg": pixels | {"num_classes": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def write_photos(
    folder: Path, colours: Mapping[str, tuple[int, int, int]], count: int, name: str = "{:02d}.png"
) -> Path:
    """A folder for each class, its pictures noise around a colour."""
    rng = np.random.default_rng(0)
    for label, colour in colours.items():
        (folder / label).mkdir(parents=True)
        for k in range(count):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / name.format(k))
    return folder

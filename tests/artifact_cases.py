"""Small models for the tests of adapters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from viapt.artifact import CONFIG, TENSORS
from viapt.create import create_model
from viapt.model import PromptedClassifier
from viapt.testing.subject import train

CLASSES = ["solar cell", "cœur | x", "a.b", "d\nd"]
Config = dict[str, Any]
OPTIONS: dict[str, Any] = {"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 8}
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def tiny(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)


def fitted(backbone: Any = None, method: str = "viapt", **options: Any) -> PromptedClassifier:
    """A model after three training steps, in evaluation mode."""
    if method == "viapt":
        options = OPTIONS | options
    model = create_model(tiny() if backbone is None else backbone, method, classes=CLASSES, **options)
    size = model.backbone.preprocessing.image_size
    images = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(2))
    train(model, images, torch.arange(8) % 4, 3)
    return model.eval()


def logits(model: PromptedClassifier) -> Tensor:
    size = model.backbone.preprocessing.image_size
    images = nn.functional.interpolate(IMAGES, size=size)
    noise = model.draw_noise(1, seed=3).expand(len(images), -1, -1)
    with torch.no_grad():
        return torch.stack([model(images), model(images, noise=noise)])


def forge(folder: Path, config: Callable[[Config], Any] | None = None, data: bytes | None = None) -> None:
    """Alter an adapter and make its check sums right again, as somebody who means harm would."""
    values = json.loads((folder / CONFIG).read_text())
    if config is not None:
        config(values)
    if data is not None:
        (folder / TENSORS).write_bytes(data)
        values["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    values.pop("config_sha256", None)
    values["config_sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(values))

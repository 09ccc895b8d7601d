"""Models to export, and what their files must answer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viapt.export.graph import Deployed, trace
from viapt.export.targets import WRITERS
from viapt.model import PromptedClassifier
from viapt.runtimes import TARGETS, open_session
from viapt.testing import Subject, tiny_backbones

BACKBONES = tiny_backbones()


def fitted(method: str = "viapt", backbone: str = "vit", **options: Any) -> PromptedClassifier:
    """A model after two training steps, with a head and a spread of prompts large enough for everything to show."""
    if method == "viapt" and options.get("num_instance_prompts", 1) and options.get("kept_dim", 1):
        options = {"initial_std": 1.0} | options
    model = Subject(method, BACKBONES[backbone](), **options).trained()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


def images(model: PromptedClassifier, count: int) -> Tensor:
    size = model.backbone.preprocessing.image_size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def answers(model: PromptedClassifier, batch: Tensor, noise: Tensor | None = None) -> np.ndarray:
    """What the model itself says."""
    with torch.no_grad():
        return model(batch, noise=noise).numpy()


def rounded(model: PromptedClassifier, dtype: torch.dtype) -> PromptedClassifier:
    """With the backbone's matrices as two bytes a number hold them."""
    model = copy.deepcopy(model)
    for parameter in model.backbone.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype).float()
    return model


def written(model: PromptedClassifier, folder: Path, policy: str = "mean", dtype: str = "float32") -> dict[str, Any]:
    """A session for each target, of one graph."""
    deployed = Deployed(model, policy, 0, dtype)
    program = trace(deployed)
    sessions = {}
    for name, target in TARGETS.items():
        WRITERS[name](program, deployed)(folder / f"model{target.suffix}", {})
        sessions[name] = open_session(folder / f"model{target.suffix}")
    return sessions

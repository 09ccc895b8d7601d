"""Does the file answer as the model does? Asked in the runtime that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viapt.errors import ArtifactError
from viapt.export.graph import Deployed, slim
from viapt.exported import IMAGES, NOISE, as_array
from viapt.model import PromptedClassifier
from viapt.runtimes.base import Session, refusing

TOLERANCE = 1e-4  # of the largest logit, and of 1; both sides compute in float32, in another order
BATCHES = ((1, 1), (3, 1), (3, 3))  # images, rows of noise


def check_parity(deployed: Deployed, session: Session, path: Path) -> dict[str, Any]:
    """How far the file's logits are from the model's, for the weights as they are stored.

    Args:
        deployed: what was exported.
        session: the file.
        path: how the file will be called, for errors.

    Raises:
        ArtifactError: further than `TOLERANCE`, or it cannot be run.
    """
    worst, model = 0.0, slim(deployed.model)
    for batch, rows in BATCHES:
        inputs = deployed.inputs(batch, rows)
        arrays: dict[str, Any] = dict(zip((IMAGES, NOISE), map(as_array, inputs), strict=False))
        with refusing(path, session.runtime, "run"):
            found = torch.from_numpy(session.run(arrays))
        worst = max(worst, difference(found, answer(model, deployed.noise, *inputs)))
    if not worst <= TOLERANCE:  # also for NaN
        raise ArtifactError(
            f"The file for {session.runtime} answers differently from the model: its logits are off by {worst:.1e} of"
            f" their size, and it is not kept",
            expected=f"at most {TOLERANCE:.0e}",
            remedy="choose another target, and report this",
        )
    return {
        "batch_sizes": sorted({batch for batch, _ in BATCHES}),
        "difference": worst,
        "runtime": session.runtime,
        "tolerance": TOLERANCE,
    }


def check_rounding(model: PromptedClassifier, deployed: Deployed) -> dict[str, Any]:
    """How far storing weights in two bytes moved the logits: told, not judged."""
    if not deployed.halves:
        return {}
    inputs = deployed.inputs(3, 3)
    before, after = (answer(slim(each), deployed.noise, *inputs) for each in (model, deployed.model))
    return {"rounding": difference(after, before)}


@torch.no_grad()
def answer(model: PromptedClassifier, fixed: Tensor | None, images: Tensor, noise: Tensor | None = None) -> Tensor:
    """The model's own logits, not by way of the graph."""
    noise = fixed if noise is None else noise
    return model(images) if noise is None else model(images, noise=noise.expand(images.shape[0], -1, -1))


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest entry or of 1, whichever is more; infinite for other shapes."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))

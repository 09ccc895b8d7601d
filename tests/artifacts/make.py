"""Make the folder of a format version: a tiny vision transformer, an adapter, and what it answers."""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import viapt
from viapt.testing.subject import train

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


def main(folder: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **SIZES)
    timm.models.save_for_hf(vit, str(folder / "vit"), model_args=SIZES, safe_serialization=True)
    options = {"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 4}
    model = viapt.create_model(vit, "viapt", classes=["left", "right", "neither"], precision="float32", **options)
    images = torch.randn(3, 3, 32, 32)
    train(model, images, torch.arange(3), 5)
    model.eval().save_pretrained(folder / "adapter", training={"epochs": 5})
    with torch.no_grad():
        save_file({"images": images, "logits": model(images)}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A method on a tiny frozen backbone and a tiny task: what the contract's checks work on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from viapt.backbones import create_backbone
from viapt.backbones.base import Backbone
from viapt.backbones.timm_vit import TimmViT
from viapt.methods import method_class
from viapt.methods.base import PromptMethod
from viapt.model import PromptedClassifier

CLASSES = ("left", "right", "neither")


class Subject:
    """A method on a backbone: builds the same model anew as often as a check needs one.

    Args:
        method: a class, or the name of a method that is known.
        backbone: left as it is; every model gets a copy.
        options: keyword arguments of the method.
    """

    def __init__(self, method: str | type[PromptMethod], backbone: Backbone, **options: Any) -> None:
        self.method = method_class(method) if isinstance(method, str) else method
        self.backbone, self.options = backbone, options

    def model(
        self, method: type[PromptMethod] | None = None, *, backbone: Backbone | None = None
    ) -> PromptedClassifier:
        """A new model in evaluation mode, on a backbone or a copy of its own; the same initial values each time."""
        backbone = copy.deepcopy(self.backbone) if backbone is None else backbone
        options = self.options if method is None else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            prompts = (method or self.method)(backbone.widths, backbone.depth, backbone.patch_size, **options)
            return PromptedClassifier(backbone, prompts, CLASSES).eval()

    def trained(self, steps: int = 2) -> PromptedClassifier:
        """A new model after some training steps, in evaluation mode."""
        model = self.model()
        train(model, *self.task(), steps)
        return model.eval()

    def task(self, count: int = 12) -> tuple[Float[Tensor, "n 3 height width"], Int[Tensor, " n"]]:
        """Noisy images, brighter on the left, on the right or nowhere; and which of these."""
        generator = torch.Generator().manual_seed(1)
        height, width = self.backbone.preprocessing.image_size
        images = torch.randn(count, 3, height, width, generator=generator) / 2
        labels = torch.arange(count) % len(CLASSES)
        images[labels == 0, :, :, : width // 2] += 2
        images[labels == 1, :, :, width // 2 :] += 2
        return images.to(next(self.backbone.parameters())), labels


def tiny_backbones() -> dict[str, Callable[[], Backbone]]:
    """Name -> builder of a small random backbone, one for each way in which vision transformers differ here."""
    variants: dict[str, dict[str, Any]] = {
        "vit": {},
        "one-block": {"depth": 1},
        "dinov2": {"reg_tokens": 2, "init_values": 1e-5, "no_embed_class": True},
        "clip": {"pre_norm": True, "mlp_ratio": 2, "global_pool": "token"},
        "siglip": {"class_token": False, "global_pool": "map"},
        "average": {"class_token": False, "global_pool": "avg", "fc_norm": True, "img_size": (16, 32)},
    }
    rope: dict[str, Any] = {"use_rot_pos_emb": True, "swiglu_mlp": True}
    rotary: dict[str, Any] = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}
    mixed = rotary | {"rope_type": "mixed", "attn_type": "rope"}
    biased: dict[str, Any] = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    others: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
        "eva02": (Eva, rope),
        "dinov3": (
            Eva,
            rotary
            | {
                "rope_type": "dinov3",
                "num_reg_tokens": 2,
                "rope_rotate_half": True,
                "qkv_bias": False,
                "init_values": 1e-5,
            },
        ),
        "rope": (Eva, mixed | {"num_reg_tokens": 2, "init_values": 0.1, "global_pool": "token"}),
        "beit": (Beit, biased),
        "swin": (SwinTransformer, {"patch_size": 4, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}),
    }
    vits: dict[str, Callable[[], Backbone]] = {n: partial(tiny_vit, **options) for n, options in variants.items()}
    timms = vits | {name: partial(tiny_timm, kind, **options) for name, (kind, options) in others.items()}
    return timms | (tiny_transformers() if find_spec("transformers") else {})


def tiny_transformers() -> dict[str, Callable[[], Backbone]]:
    """The same for models of transformers."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    wide = sizes | {"intermediate_size": 48}
    shared = {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "hf-vit": ("ViT", wide),
        "hf-deit": ("DeiT", wide),
        "hf-beit": ("Beit", wide | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
        "hf-data2vec": ("Data2VecVision", wide | shared),
        "hf-dinov2": ("Dinov2WithRegisters", sizes | {"mlp_ratio": 2, "num_register_tokens": 2}),
        "hf-dinov2-plain": ("Dinov2", sizes | {"mlp_ratio": 2, "use_swiglu_ffn": True}),
        "hf-clip": ("CLIPVision", wide),
        "hf-siglip": ("SiglipVision", wide),
        "hf-mae": ("ViTMAE", wide),
    }
    return {name: partial(tiny_model, kind, options) for name, (kind, options) in variants.items()}


def tiny_model(kind: str, options: dict[str, Any]) -> Backbone:
    """A small model of transformers."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**options)
    return tiny(lambda: getattr(transformers, f"{kind}Model")(config))


def tiny_vit(**options: Any) -> TimmViT:
    """A small `VisionTransformer`."""
    backbone = tiny_timm(VisionTransformer, **options)
    assert isinstance(backbone, TimmViT)
    return backbone


def tiny_timm(kind: Callable[..., nn.Module], **options: Any) -> Backbone:
    """A small transformer of timm."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 0}
    depth = {} if "depths" in options else {"depth": 3}
    return tiny(lambda: kind(**(sizes | depth | options)))


def tiny(build: Callable[[], nn.Module]) -> Backbone:
    """What `build` makes, with weights large enough for every part of it to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return create_backbone(module)


def train(
    model: PromptedClassifier,
    images: Float[Tensor, "n 3 height width"],
    labels: Int[Tensor, " n"],
    steps: int,
    *,
    lr: float = 1e-2,
) -> list[float]:
    """AdamW on the whole set at once, for what requires a gradient; the losses before each step."""
    optimizer = torch.optim.AdamW([p for p in model.learnable().values() if p.requires_grad], lr=lr)
    model.train()
    losses = []
    for _ in range(steps):
        loss, _ = model(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

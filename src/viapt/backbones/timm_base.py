"""What the adapters for timm's transformers share: what is supported, and what is read off a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.data.config import resolve_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from viapt.backbones.base import Backbone, Preprocessing
from viapt.errors import BackboneError

Resampler = Callable[[Tensor, tuple[int, int]], Tensor]
Transformer = VisionTransformer | Eva | Beit | SwinTransformer
KINDS: tuple[type[Transformer], ...] = (VisionTransformer, Eva, Beit, SwinTransformer)
POOLING = ("norm", "fc_norm", "attn_pool")  # parts behind the blocks
CLASSIFIER = ("head.", "head_dist.")  # what the names of a classifier's weights begin with
SUPPORTED = (
    "timm's VisionTransformer (ViT, DeiT, DeiT-3, DINOv2, CLIP, SigLIP, FlexiViT ...), "
    "Eva (EVA-02, DINOv3, ViT-RoPE ...), Beit or SwinTransformer"
)
ADAPTER = "choose one of viapt.list_backbones(), or write an adapter: a subclass of viapt.backbones.base.Backbone"


class TimmBackbone(Backbone):
    """A transformer of timm: its own parts compute everything.

    Args:
        vit: the module, which becomes part of this one: it is frozen and resized in place, and its classifier dropped.
        name: how `create_model` was asked for it, or None.
        image_size: (height, width) to change to, or None for the weights' own.
        resample_position: (position embedding (1, t, d), new grid) -> (1, t', d), or None for timm's.

    Raises:
        BackboneError: for another kind of model, or an image size that does not suit the patches.
    """

    kinds: ClassVar[tuple[type[Transformer], ...]]
    vit: Any

    def __init__(
        self,
        vit: nn.Module,
        *,
        name: str | None = None,
        image_size: tuple[int, int] | None = None,
        resample_position: Resampler | None = None,
    ) -> None:
        super().__init__()
        self.vit = check_supported(vit, self.kinds)
        self.vit.reset_classifier(0)
        self.name = name
        self.dim, self.depth = self.vit.embed_dim, len(self.blocks)
        self.patch_size = patch_size_of(self.vit)
        self.fingerprint = fingerprint(self.vit)
        if image_size is not None:
            resize(self.vit, image_size, resample_position)
        self.preprocessing = preprocessing_of(self.vit)
        if isinstance(self.vit.patch_embed, PatchEmbed):  # one convolution of three channels, faster in this format
            self.vit.patch_embed.to(memory_format=torch.channels_last)
        self.freeze()

    @property
    def feature_dim(self) -> int:
        return self.vit.num_features

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.vit.blocks)

    def stage_of(self, name: str) -> int:
        part, *rest = name.removeprefix("vit.").split(".")
        return int(rest[0]) if part == "blocks" else self.depth if part in POOLING else -1

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return self.vit.forward_head(self.vit.forward_features(images.to(self.dtype)), pre_logits=True)

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)


def check_supported(vit: nn.Module, kinds: tuple[type[Transformer], ...] = KINDS) -> Transformer:
    """The same module, known to be one that a loop reproduces.

    Raises:
        BackboneError: it is of another class, overrides the forward pass, pools nothing, or takes no RGB images.
    """
    kind = f"{type(vit).__module__}.{type(vit).__name__}"
    if not isinstance(vit, kinds):
        raise BackboneError(f"The backbone is a {kind}", expected=SUPPORTED, remedy=ADAPTER)
    if type(vit).forward_features not in [known.forward_features for known in kinds]:
        raise BackboneError(f"{kind} has a forward_features of its own", expected=SUPPORTED, remedy=ADAPTER)
    checked: Any = vit
    if not checked.global_pool:
        raise BackboneError(
            "The backbone has global_pool = '': it returns tokens instead of one feature",
            remedy="vit.reset_classifier(0, 'token'), or 'avg'",
        )
    channels = next(layer.in_channels for layer in checked.patch_embed.modules() if isinstance(layer, nn.Conv2d))
    if channels != 3:
        raise BackboneError(f"The backbone takes images of {channels} channels", expected="3 (RGB)")
    return checked


def patch_size_of(vit: Any) -> tuple[int, int]:
    """Pixels (height, width) behind one token, also where a convolutional stem makes the tokens."""
    sides: Any = vit.patch_embed.feat_ratio(as_scalar=False)
    height, width = sides
    return int(height), int(width)


def grid_of(vit: Any, embedded: Tensor) -> tuple[int, int]:
    """(h, w) of embedded patches: (batch, h, w, d) where the model takes images of any size, else (batch, n, d)."""
    height, width = embedded.shape[1:3] if embedded.ndim == 4 else vit.patch_embed.grid_size
    return int(height), int(width)


def fingerprint(module: nn.Module, leave_out: tuple[str, ...] = CLASSIFIER) -> str:
    """sha256 over names, shapes, types and bytes of a module's weights, those with such names left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(leave_out):
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def preprocessing_of(vit: Transformer) -> Preprocessing:
    """The weights' own data configuration, at the image size that the model now has."""
    config = resolve_data_config({}, model=vit)
    sides: Any = vit.patch_embed.img_size or config["input_size"][1:]
    height, width = sides
    return Preprocessing(
        image_size=(int(height), int(width)),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
    )


def check_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Refuse an image that does not divide into patches.

    Raises:
        BackboneError: with a size that does.
    """
    for side, patch in zip(image_size, patch_size, strict=True):
        if side % patch or side <= 0:
            raise BackboneError(
                f"The image size {image_size[0]} x {image_size[1]} does not divide into patches of {patch} pixels",
                expected=f"multiples of {patch}",
                remedy=f"for instance {max(1, round(side / patch)) * patch}",
            )


def resize(vit: Any, image_size: tuple[int, int], resample_position: Resampler | None = None) -> None:
    """Change image size and position grid in place.

    Raises:
        BackboneError: if a side is no multiple of the patch.
    """
    check_size(image_size, patch_size_of(vit))
    if image_size == vit.patch_embed.img_size:
        return
    if resample_position is None or vit.pos_embed is None:
        vit.set_input_size(img_size=image_size)
        return
    vit.patch_embed.set_input_size(img_size=image_size)
    resampled = resample_position(vit.pos_embed.detach(), vit.patch_embed.grid_size)
    vit.pos_embed = nn.Parameter(resampled, requires_grad=False)

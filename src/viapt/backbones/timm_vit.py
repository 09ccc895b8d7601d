"""Any `timm.models.vision_transformer.VisionTransformer` as a frozen backbone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from timm.data.config import resolve_data_config
from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from viapt.backbones import frozen_block
from viapt.backbones.base import Backbone, Needed, Preprocessing, Tokens
from viapt.device import check_compiler
from viapt.errors import BackboneError

Resampler = Callable[[Tensor, tuple[int, int]], Tensor]
POOLING = ("norm", "fc_norm", "attn_pool")  # parts behind the blocks
KINDS = 64  # of compiled blocks: more than there are
CLASSIFIER = ("head.", "head_dist.")  # what the names of a classifier's weights begin with
SUPPORTED = "a timm.models.vision_transformer.VisionTransformer (ViT, DeiT, DeiT-3, DINOv2, CLIP, SigLIP, FlexiViT ...)"
ADAPTER = "choose one of viapt.list_backbones(), or write an adapter: a subclass of viapt.backbones.base.Backbone"


class TimmViT(Backbone):
    """A plain loop: patch_embed, _pos_embed, patch_drop, norm_pre, blocks, norm, pool; bit-identical to timm's forward.

    Args:
        vit: the module, which becomes part of this one: it is frozen and resized in place, and its classifier dropped.
        name: how `create_model` was asked for it, or None.
        image_size: (height, width) to change to, or None for the weights' own.
        resample_position: (position embedding (1, t, d), new grid) -> (1, t', d), or None for timm's.

    Raises:
        BackboneError: for another kind of model, or an image size that does not suit the patches.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        name: str | None = None,
        image_size: tuple[int, int] | None = None,
        resample_position: Resampler | None = None,
    ) -> None:
        super().__init__()
        self.vit = check_supported(vit)
        self.vit.reset_classifier(0)
        self.name = name
        self.dim, self.depth = self.vit.embed_dim, len(self.vit.blocks)
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

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        vit = self.vit
        x = vit.patch_embed(images.to(self.dtype))
        grid = (x.shape[1], x.shape[2]) if x.ndim == 4 else vit.patch_embed.grid_size
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x)))
        k = vit.num_prefix_tokens
        return Tokens(prefix=x[:, :k], patches=x[:, k:], grid=(int(grid[0]), int(grid[1])))

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        return self.vit.blocks[layer](tokens)

    def advance(
        self,
        layer: int,
        tokens: Float[Tensor, "batch t dim"],
        prompts: Float[Tensor, "rows p dim"],
        context: Any,
        needed: Needed = "all",
    ) -> tuple[Float[Tensor, "rows _ dim"], Float[Tensor, "rows _ dim"]]:
        block = self.vit.blocks[layer]
        if not (self.shortcuts and frozen_block.is_plain(block)):
            return super().advance(layer, tokens, prompts, context, needed)
        through = compiled_block() if self.compiled else frozen_block.advance
        rows, t = prompts.shape[0], tokens.shape[1]
        if needed == "all":
            apart = tokens.shape[0] != rows or tokens.requires_grad != prompts.requires_grad
            asking = [tokens, prompts] if apart else [torch.cat([tokens, prompts], dim=1)]
            left, prompts = through(block, asking, [], rows=rows).split([t, prompts.shape[1]], dim=1)
            return left, prompts
        read = t if needed == "image" else self.pooled_tokens(t)
        silent = [group for group in (tokens[:, read:], prompts) if group.shape[1]]
        return through(block, [tokens[:, :read]], silent, rows=rows), prompts[:, :0]

    def compile_blocks(self, wanted: bool = True) -> None:
        if wanted:
            others = [type(block).__name__ for block in self.vit.blocks if not frozen_block.is_plain(block)]
            if others or not self.shortcuts:
                found = f"a {others[0]} of another kind, or with other layers or hooks" if others else "no shortcuts"
                raise BackboneError(
                    f"The backbone has {found}",
                    expected="timm's Block, unchanged, with shortcuts, to compile block by block",
                    remedy="leave compile (--compile) away",
                )
            check_compiler(next(self.parameters()).device)
        self.compiled = wanted

    def pooled_tokens(self, t: int) -> int:
        """How many of t tokens `pool` reads, from the first."""
        return 1 if self.vit.global_pool == "token" and self.vit.attn_pool is None else t

    def attention(self, layer: int, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch heads t t"]:
        block = self.vit.blocks[layer]
        if not isinstance(block, Block | ResPostBlock) or not isinstance(block.attn, Attention):
            raise BackboneError(f"Blocks of the kind {type(block).__name__} do not expose their attention weights")
        attn, x = block.attn, block.norm1(tokens) if isinstance(block, Block) else tokens
        q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return ((attn.q_norm(q) * attn.scale) @ attn.k_norm(k).mT).softmax(dim=-1)

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        return self.vit.forward_head(self.vit.norm(tokens), pre_logits=True)


@cache
def compiled_block() -> Callable[..., Tensor]:
    """`frozen_block.advance` as a kernel: one for all blocks, whatever the size of the batch.

    It is made anew for each set of tokens that are needed, with and without gradients, and for a single image. Beyond
    eight kinds torch would run the rest uncompiled, without an error: what several models in one process ask for.
    """
    compiled = torch.compile(frozen_block.advance, dynamic=True)
    return torch._dynamo.config.patch(recompile_limit=KINDS)(compiled)


def check_supported(vit: nn.Module) -> VisionTransformer:
    """The same module, known to be one that the loop reproduces.

    Raises:
        BackboneError: it is of another class, overrides the forward pass, pools nothing, or takes no RGB images.
    """
    kind = f"{type(vit).__module__}.{type(vit).__name__}"
    if not isinstance(vit, VisionTransformer):
        raise BackboneError(f"The backbone is a {kind}", expected=SUPPORTED, remedy=ADAPTER)
    if type(vit).forward_features is not VisionTransformer.forward_features:
        raise BackboneError(f"{kind} has a forward_features of its own", expected=SUPPORTED, remedy=ADAPTER)
    if not vit.global_pool:
        raise BackboneError(
            "The backbone has global_pool = '': it returns tokens instead of one feature",
            remedy="vit.reset_classifier(0, 'token'), or 'avg'",
        )
    channels = next(layer.in_channels for layer in vit.patch_embed.modules() if isinstance(layer, nn.Conv2d))
    if channels != 3:
        raise BackboneError(f"The backbone takes images of {channels} channels", expected="3 (RGB)")
    return vit


def patch_size_of(vit: VisionTransformer) -> tuple[int, int]:
    """Pixels (height, width) behind one token, also where a convolutional stem makes the tokens."""
    height, width = vit.patch_embed.feat_ratio(as_scalar=False)
    return int(height), int(width)


def fingerprint(module: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of a module's weights, its classifier left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(CLASSIFIER):
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def preprocessing_of(vit: VisionTransformer) -> Preprocessing:
    """The weights' own data configuration, at the image size that the model now has."""
    config = resolve_data_config({}, model=vit)
    height, width = vit.patch_embed.img_size or config["input_size"][1:]
    return Preprocessing(
        image_size=(int(height), int(width)),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
    )


def resize(vit: VisionTransformer, image_size: tuple[int, int], resample_position: Resampler | None = None) -> None:
    """Change image size and position grid in place.

    Raises:
        BackboneError: if a side is no multiple of the patch.
    """
    for side, patch in zip(image_size, patch_size_of(vit), strict=True):
        if side % patch or side <= 0:
            raise BackboneError(
                f"The image size {image_size[0]} x {image_size[1]} does not divide into patches of {patch} pixels",
                expected=f"multiples of {patch}",
                remedy=f"for instance {max(1, round(side / patch)) * patch}",
            )
    if image_size == vit.patch_embed.img_size:
        return
    if resample_position is None or vit.pos_embed is None:
        vit.set_input_size(img_size=image_size)
        return
    vit.patch_embed.set_input_size(img_size=image_size)
    resampled = resample_position(vit.pos_embed.detach(), vit.patch_embed.grid_size)
    vit.pos_embed = nn.Parameter(resampled, requires_grad=False)

"""Any `timm.models.eva.Eva` as a frozen backbone: EVA, and with rotary positions EVA-02, DINOv3, ViT-RoPE, PE."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from viapt.backbones.base import Tokens
from viapt.backbones.timm_base import TimmBackbone, grid_of
from viapt.errors import BackboneError


class TimmRope(TimmBackbone):
    """patch_embed, _pos_embed, norm_pre, blocks, norm, pool; bit-identical to timm's forward.

    Queries and keys of patches are rotated by where they lie. A prompt lies nowhere: its rotation is the identity, and
    that of the other tokens stays what it was. For arguments and errors see `TimmBackbone`.
    """

    kinds = (Eva,)

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        vit = self.vit
        x = vit.patch_embed(images.to(self.dtype))
        grid = grid_of(vit, x)
        x, rotation = vit._pos_embed(x)
        x, k = vit.norm_pre(x), vit.num_prefix_tokens
        context = None if rotation is None else with_identity(rotation, num_prompts)
        return Tokens(prefix=x[:, :k], patches=x[:, k:], grid=grid, context=context)

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        if context is not None and self.vit.rope_mixed:  # each block has its own
            context = context[layer]
        return self.vit.blocks[layer](tokens, rope=context)

    def check_entered(self) -> None:
        for block in self.vit.blocks:
            fused = isinstance(block.attn, EvaAttention) and block.attn.q_bias is not None
            if fused and not isinstance(block.attn.qkv, nn.Linear):
                raise BackboneError(
                    f"{type(block.attn).__name__} multiplies with the weights of its layer qkv itself, "
                    "and would pass by what a method puts in its place",
                    expected="a method that leaves qkv as it is, for instance viapt, vpt-deep or bitfit",
                )


def with_identity(rotation: Float[Tensor, "*l n twice"], num_prompts: int) -> Float[Tensor, "*l t twice"]:
    """Sines and cosines, side by side, of the patches; and for each prompt those of no rotation: 0 and 1."""
    *leading, _, twice = rotation.shape
    nothing = rotation.new_zeros(*leading, num_prompts, twice)
    nothing[..., twice // 2 :] = 1
    return torch.cat([rotation, nothing], dim=-2)

"""Any `timm.models.vision_transformer.VisionTransformer` as a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from viapt.backbones import frozen_block
from viapt.backbones.base import Needed, Tokens
from viapt.backbones.timm_base import TimmBackbone, grid_of
from viapt.device import check_compiler
from viapt.errors import BackboneError

KINDS = 64  # of compiled blocks: more than there are


class TimmViT(TimmBackbone):
    """A plain loop: patch_embed, _pos_embed, patch_drop, norm_pre, blocks, norm, pool; bit-identical to timm's forward.

    Blocks leave out what nobody reads, and may be compiled. For arguments and errors see `TimmBackbone`.
    """

    kinds = (VisionTransformer,)

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        vit = self.vit
        x = vit.patch_embed(images.to(self.dtype))
        grid = grid_of(vit, x)
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x)))
        k = vit.num_prefix_tokens
        return Tokens(prefix=x[:, :k], patches=x[:, k:], grid=grid)

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


@cache
def compiled_block() -> Callable[..., Tensor]:
    """`frozen_block.advance` as a kernel: one for all blocks, whatever the size of the batch.

    It is made anew for each set of tokens that are needed, with and without gradients, and for a single image. Beyond
    eight kinds torch would run the rest uncompiled, without an error: what several models in one process ask for.
    """
    compiled = torch.compile(frozen_block.advance, dynamic=True)
    return torch._dynamo.config.patch(recompile_limit=KINDS)(compiled)

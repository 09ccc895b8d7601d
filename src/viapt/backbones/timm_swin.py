"""Any `timm.models.swin_transformer.SwinTransformer` as a frozen backbone: windows, and stages of growing width.

Prompts stand behind the tokens of every window, as in VPT (Jia et al., ECCV 2022, section 3.3 and the authors' code):

    window w of an image:  [x_w, P]  attends to itself, with the window's biases and mask; 0 for pairs with a prompt
    what leaves a block:   x, window by window; P, the mean over the windows of the image
    between two stages:    four neighbours of x become one token; P becomes what four equal neighbours would

A prompt has no place on the grid, so it merges with no patch: it goes through the merging alone, four times itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.backbones.base import Tokens
from viapt.backbones.timm_base import TimmBackbone
from viapt.errors import BackboneError


class TimmSwin(TimmBackbone):
    """patch_embed, blocks, each stage's merging behind the last block of the stage before, norm, pool.

    timm's attention takes no tokens beyond its window, so the order of a block's layers is written here; the layers are
    the block's own. For arguments and errors see `TimmBackbone`.

    Raises:
        BackboneError: the model takes images of any size: its masks are then made anew for each.
    """

    kinds = (SwinTransformer,)

    def __init__(self, vit: nn.Module, **options: Any) -> None:
        super().__init__(vit, **options)
        if self.vit.dynamic_img_size:
            raise BackboneError(
                "The Swin takes images of any size", expected="one made for images of one size (strict_img_size=True)"
            )
        ends = list(accumulate(len(stage.blocks) for stage in self.vit.layers))
        self.endings = {end - 1: number for number, end in enumerate(ends[:-1], start=1)}  # block -> the stage it opens

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(block.dim for block in self.blocks)

    @property
    def blocks(self) -> Sequence[Any]:
        return [block for stage in self.vit.layers for block in stage.blocks]

    def stage_of(self, name: str) -> int:
        part, *rest = name.removeprefix("vit.").split(".")
        if part != "layers":
            return super().stage_of(name)
        before = sum(len(stage.blocks) for stage in self.vit.layers[: int(rest[0])])
        return before - 1 if rest[1] == "downsample" else before + int(rest[2])

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        x = self.vit.patch_embed(images.to(self.dtype)).flatten(1, 2)
        return Tokens(prefix=x[:, :0], patches=x, grid=self.vit.patch_embed.grid_size)

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch _ _"]:
        block = self.blocks[layer]
        tokens = tokens + attend(block, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
        following = self.endings.get(layer)
        if following is None:
            return tokens
        return merge(self.vit.layers[following].downsample, tokens, block.input_resolution)

    def attention(
        self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any
    ) -> Float[Tensor, "batch heads t t"]:
        raise BackboneError("Swin attends inside windows, not over the whole picture")

    def pool(self, tokens: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch features"]:
        grid = self.blocks[-1].input_resolution
        return self.vit.forward_head(self.vit.norm(tokens).unflatten(1, grid), pre_logits=True)


def attend(block: Any, x: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch t dim"]:
    """timm's attention in shifted windows, of patches and the prompts behind them.

    What is linear (queries, keys, values, the projection, the mean over windows) is computed once for a prompt, not
    once for each window.
    """
    attn, (h, w), window, shift = block.attn, block.input_resolution, block.window_size, block.shift_size
    p = x.shape[1] - h * w
    image, prompts = x.split([h * w, p], dim=1)
    image = image.unflatten(1, (h, w)).roll((-shift[0], -shift[1]), (1, 2))
    image = F.pad(image, (0, 0, 0, -w % window[1], 0, -h % window[0]))
    padded = image.shape[1:3]
    qkv = attn.qkv(torch.cat([image.flatten(1, 2), prompts], dim=1))
    image, prompts = qkv.split([padded[0] * padded[1], p], dim=1)
    image = window_partition(image.unflatten(1, padded), window).flatten(1, 2)  # (batch * windows, area, 3 * dim)
    windows = padded[0] * padded[1] // block.window_area
    image = image.unflatten(0, (-1, windows))
    together = torch.cat([image, prompts[:, None].expand(-1, windows, -1, -1)], dim=2)
    q, k, v = together.unflatten(-1, (3, attn.num_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_of(block, windows, p))
    seen = seen.unflatten(1, (windows, attn.num_heads)).transpose(2, 3).flatten(3)  # (batch, windows, area + p, dim)
    image, prompts = seen.split([block.window_area, p], dim=2)
    image = window_reverse(image.flatten(0, 1), window, *padded)[:, :h, :w].roll(shift, (1, 2))
    return attn.proj(torch.cat([image.flatten(1, 2), prompts.mean(1)], dim=1))


def bias_of(block: Any, windows: int, p: int) -> Float[Tensor, "1 _ t t"]:
    """Biases of positions, and the mask of shifted windows, for all windows and heads; 0 for pairs with a prompt."""
    bias = block.attn._get_rel_pos_bias()
    if block.attn_mask is not None:
        bias = bias + block.attn_mask[:, None]
    bias = F.pad(bias.expand(windows, -1, -1, -1), (0, p, 0, p))
    return bias.flatten(0, 1)[None]


def merge(merging: Any, x: Float[Tensor, "batch t dim"], grid: tuple[int, int]) -> Float[Tensor, "batch _ _"]:
    """Four neighbours into one wider token, by timm's layer; each prompt as four of itself."""
    h, w = grid
    image, prompts = x.split([h * w, x.shape[1] - h * w], dim=1)
    merged = merging(image.unflatten(1, (h, w)))
    of_prompts = merging.reduction(merging.norm(prompts.repeat(1, 1, 4)))
    return torch.cat([merged.flatten(1, 2), of_prompts], dim=1)

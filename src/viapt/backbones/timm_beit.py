"""Any `timm.models.beit.Beit` as a frozen backbone: BEiT and BEiT v2."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from viapt.backbones.base import Tokens
from viapt.backbones.timm_base import TimmBackbone


class TimmBeit(TimmBackbone):
    """patch_embed, class token, positions, blocks, norm, pool.

    Attention has a bias for every pair of positions. A prompt has no position: pairs with it have none, and those of
    the other tokens stay what they were. timm's attention takes no tokens beyond its grid, so the order of a block's
    layers is written here; the layers are the block's own. For arguments and errors see `TimmBackbone`.
    """

    kinds = (Beit,)

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        vit = self.vit
        x = vit.patch_embed(images.to(self.dtype))
        x = torch.cat([vit.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if vit.pos_embed is not None:
            x = x + vit.pos_embed
        context = None if vit.rel_pos_bias is None else vit.rel_pos_bias()
        return Tokens(prefix=x[:, :1], patches=x[:, 1:], grid=vit.patch_embed.grid_size, context=context)

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        block = self.vit.blocks[layer]
        seen = attend(block.attn, block.norm1(tokens), context)
        tokens = tokens + (seen if block.gamma_1 is None else block.gamma_1 * seen)
        made = block.mlp(block.norm2(tokens))
        return tokens + (made if block.gamma_2 is None else block.gamma_2 * made)


def attend(attn: Any, x: Float[Tensor, "batch t dim"], shared: Tensor | None) -> Float[Tensor, "batch t dim"]:
    """timm's attention of BEiT, for any number of tokens behind those of its grid."""
    qkv = attn.qkv(x)
    if attn.q_bias is not None:
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=position_bias(attn, shared, x.shape[1]))
    return attn.proj(seen.transpose(1, 2).flatten(2))


def position_bias(attn: Any, shared: Tensor | None, t: int) -> Float[Tensor, "#batch heads t t"] | None:
    """The biases of an attention and of all, 0 for pairs with a token that has no position; None: there are none."""
    own = None if attn.relative_position_bias_table is None else attn._get_rel_pos_bias()
    found = [bias for bias in (own, shared) if bias is not None]
    if not found:
        return None
    bias, more = sum(found[1:], found[0]), t - found[0].shape[-1]
    bias = F.pad(bias, (0, more, 0, more))
    return bias if bias.ndim == 4 else bias[None]

"""E2VPT: prompts for keys and values, and fewer prompts (Han et al., ICCV 2023, arXiv 2307.13770)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.errors import BackboneError, check_rules
from viapt.methods.base import PromptMethod, init_bound, rows_of, stand_in
from viapt.widths import Widths, prompt_parameter

HEAD = 64  # dimensions of a head in the paper's ViT-B, and in all models here up to ViT-L


class E2VPT(PromptMethod):
    """VPT-Deep with masks, and in every block further keys and values that no token asks for (section 3.2 and 3.3).

        attention = softmax(Q [K, P_K]^T / sqrt(e)) [V, P_V]
        enters block i = rho_k * [q_k1 P_i,k1, .., q_kR P_i,kR]   for prompts k = 1..p, cut into R segments each

    The masks rho (of tokens) and q (of segments) are 1, until `viapt.pruning.prune` sets those of little importance to
    0: then training starts again from the first values (rewinding).

    Args:
        num_prompts: p >= 1.
        key_value_prompts: keys and values of each block, >= 1.
        shared_key_value: P_K = P_V, as the authors' code has it by default.
        segments: R, a divisor of dim. Learnable: depth * dim * (p + key_value_prompts), twice the last if not shared.
    """

    name = "e2vpt"
    learning_rate = 1.5e-3
    inside = True
    carries = False
    token_mask: Tensor
    segment_mask: Tensor

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        key_value_prompts: int = 5,
        shared_key_value: bool = True,
        segments: int = 8,
    ) -> None:
        super().__init__(dim, depth, patch_size)
        dim = self.dim
        self.num_prompts, self.key_value_prompts = num_prompts, key_value_prompts
        self.shared_key_value, self.segments = shared_key_value, segments
        rules = [
            ("num_prompts", num_prompts >= 1, "at least 1"),
            ("key_value_prompts", key_value_prompts >= 1, "at least 1"),
            ("segments", segments >= 1 and dim % segments == 0, f"a divisor of {dim}"),
        ]
        check_rules(vars(self), rules)
        bound, kinds = init_bound(dim, patch_size), 1 if shared_key_value else 2
        self.prompts = prompt_parameter(depth, num_prompts, dim, bound=bound)
        self.attentions = nn.ModuleList(Widened(kinds, key_value_prompts, dim) for _ in range(depth))
        self.register_buffer("token_mask", torch.ones(num_prompts))
        self.register_buffer("segment_mask", torch.ones(num_prompts, segments))
        self.gates: Tensor | None = None

    def enter(self, backbone: Any) -> None:
        for block, attention in zip(backbone.blocks, self.attentions, strict=True):
            attn = getattr(block, "attn", None)
            if type(attn) is not Attention or getattr(attn, "gate", None) is not None:
                raise BackboneError(
                    f"A block of the kind {type(block).__name__} has attention of the kind {type(attn).__name__}",
                    expected="timm's Attention, without a gate, for e2vpt",
                )
            stand_in(block, "attn", attention)

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.entering(0, rows_of(patches, noise))

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return self.entering(layer, prompts.shape[0])

    def entering(self, layer: int, rows: int) -> Float[Tensor, "rows p dim"]:
        """The prompts of a block, masked."""
        mask = self.token_mask[:, None] * self.segment_mask
        prompts = self.prompts[layer] * self.whole(mask)
        return prompts.expand(rows, -1, -1) if self.gates is None else prompts * self.whole(self.gates)

    def whole(self, mask: Float[Tensor, "*rows p segments"]) -> Float[Tensor, "*rows p dim"]:
        """A number for each segment, for each of its dimensions."""
        return mask.repeat_interleave(self.dim // self.segments, dim=-1)


class Widened(nn.Module):
    """Attention that also sees keys and values of its own."""

    def __init__(self, kinds: int, count: int, dim: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(kinds, count, dim))
        bound = math.sqrt(6 / (count * HEAD))  # Kaiming's, by a fan of count x HEAD, as the authors' code has it
        nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, attn: Any, x: Float[Tensor, "batch t dim"], **options: Any) -> Float[Tensor, "batch t dim"]:
        """`attn` is timm's; its own layers do the computing."""
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        own = self.prompts.to(x.dtype).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        keys, values = own[0].expand(x.shape[0], -1, -1, -1), own[-1].expand(x.shape[0], -1, -1, -1)
        k, v = torch.cat([attn.k_norm(k), keys], dim=2), torch.cat([v, values], dim=2)
        seen = F.scaled_dot_product_attention(attn.q_norm(q), k, v)
        return attn.proj(attn.norm(seen.transpose(1, 2).flatten(2)))

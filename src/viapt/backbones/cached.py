"""Backbones whose images have been through a part of them before: what enters is what a cache holds of an image."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from viapt.backbones.base import Backbone, Needed, Tokens
from viapt.errors import BackboneError


class CachedTokens(Backbone):
    """The same backbone behind its embedding: what enters are prefix and patch tokens, one after the other.

    Args:
        inner: the backbone; everything but the embedding is its own.
        tokens: of any images, to know prefix and grid.

    Raises:
        BackboneError: its blocks need more than tokens.
    """

    def __init__(self, inner: Backbone, tokens: Tokens) -> None:
        super().__init__()
        if tokens.context is not None:
            raise BackboneError(
                f"The blocks of {type(inner).__name__} need more than tokens", remedy="train it without a cache"
            )
        self.inner, self.shortcuts = inner, inner.shortcuts
        self.prefix_tokens, self.grid = tokens.prefix.shape[1], tokens.grid
        self.shape = (tokens.prefix.shape[1] + tokens.patches.shape[1], inner.dim)
        describe_as(self, inner)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    def forward(self, images: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        tokens = images
        for layer in range(self.depth):
            tokens = self.inner.block(layer, tokens, None)
        return self.inner.pool(tokens)

    def embed(self, images: Float[Tensor, "batch t dim"], num_prompts: int) -> Tokens:
        k = self.prefix_tokens
        return Tokens(images[:, :k], images[:, k:], self.grid)

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch _ _"]:
        return self.inner.block(layer, tokens, context)

    def advance(
        self,
        layer: int,
        tokens: Float[Tensor, "batch t dim"],
        prompts: Float[Tensor, "rows p dim"],
        context: Any,
        needed: Needed = "all",
    ) -> tuple[Float[Tensor, "rows _ _"], Float[Tensor, "rows _ _"]]:
        return self.inner.advance(layer, tokens, prompts, context, needed)

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        return self.inner.pool(tokens)

    @property
    def feature_dim(self) -> int:
        return self.inner.feature_dim


class CachedFeatures(Backbone):
    """A backbone that has nothing left to do: what enters are its features. For methods without prompts.

    Args:
        inner: the backbone that the features come from.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner
        describe_as(self, inner)
        self.depth = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inner.feature_dim,)

    def forward(self, images: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return images

    def embed(self, images: Float[Tensor, "batch features"], num_prompts: int) -> Tokens:
        tokens = images[:, None]
        return Tokens(prefix=tokens, patches=tokens[:, :0], grid=(0, 0))

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        raise BackboneError(f"Features are behind block {layer}", expected="no block to go through")

    def pool(self, tokens: Float[Tensor, "batch 1 features"]) -> Float[Tensor, "batch features"]:
        return tokens[:, 0]

    @property
    def feature_dim(self) -> int:
        return self.inner.feature_dim


def describe_as(backbone: Backbone, inner: Backbone) -> None:
    """Give a backbone the description of another one."""
    names = "name", "weights", "pretrained", "dim", "depth", "patch_size", "preprocessing", "fingerprint", "compiled"
    for name in names:
        setattr(backbone, name, getattr(inner, name))
    backbone.freeze()

"""What every frozen backbone looks like to the rest of viapt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import BackboneError


@dataclass(frozen=True)
class Preprocessing:
    """How the weights want their images: the part of a timm data configuration that evaluation needs.

    Attributes:
        image_size: (height, width) in pixels that enters the backbone.
        mean, std: per-channel statistics in RGB order, on the [0, 1] scale.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: the share of the resized image that a crop keeps, in (0, 1].
        crop_mode: "center" (resize the short side, then crop), "squash" (resize both sides, ignoring the aspect ratio) or
            "border" (resize the long side, then pad), as in timm.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


class Tokens(NamedTuple):
    """An image batch after patch and position embedding.

    Attributes:
        prefix: class and register tokens, (batch, k, dim), k >= 0.
        patches: image tokens E0, (batch, h * w, dim), row by row.
        grid: (h, w).
        context: whatever the blocks need besides tokens (a rotary state, for instance), or None.
    """

    prefix: Float[Tensor, "batch k dim"]
    patches: Float[Tensor, "batch n dim"]
    grid: tuple[int, int]
    context: Any = None


class Backbone(nn.Module, ABC):
    """An adapter around somebody else's frozen vision transformer.

    A backbone never learns: all parameters have `requires_grad=False`, and it stays in evaluation mode (dropout, stochastic
    depth and running statistics off) whatever `train()` is called with.

    Attributes:
        name: how to build it again, as given to `create_model`; None for a module of the user's own.
        dim: d, the embedding dimension.
        depth: N, the number of blocks.
        patch_size: (height, width) of a patch in pixels.
        preprocessing: what the weights expect of images.
        fingerprint: "sha256:<hex>" of the weights as they were loaded, before any change of image size or precision.
    """

    name: str | None
    dim: int
    depth: int
    patch_size: tuple[int, int]
    preprocessing: Preprocessing
    fingerprint: str

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """The feature without prompts, by the wrapped module's own code: what the loop over `block` must reproduce."""

    @abstractmethod
    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        """Images to tokens. `num_prompts` is how many will be inserted, for backbones that must prepare their context."""

    @abstractmethod
    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        """Tokens through block `layer` (0-based)."""

    @abstractmethod
    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        """Prefix and patch tokens (no prompts) that left the last block, to the feature that the head classifies."""

    def attention(self, layer: int, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch heads t t"]:
        """Attention weights (each row sums to 1) of block `layer` for the tokens that enter it: for inspection only.

        Raises:
            BackboneError: if this backbone does not expose them.
        """
        raise BackboneError(f"{type(self).__name__} does not expose its attention weights")

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width of what `pool` returns."""

    def freeze(self) -> None:
        """Turn gradients off and evaluation mode on, for good."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: frozen means frozen."""
        return super().train(False)

"""What every frozen backbone looks like to the rest of viapt."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.attention_weights import attention_weights
from viapt.errors import BackboneError

Needed = Literal["all", "image", "pooled"]


@dataclass(frozen=True)
class Preprocessing:
    """How the weights want their images: the part of a timm data configuration that evaluation needs.

    Attributes:
        image_size: (height, width) in pixels that enters the backbone, at most 4096 each.
        mean, std: per-channel statistics in RGB order, on the [0, 1] scale.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: the share of the resized image that a crop keeps, in (0, 1].
        crop_mode: "center" (resize the short side, then crop), "squash" (resize both sides, whatever the aspect
            ratio) or "border" (resize the long side, then pad), as in timm.

    Raises:
        BackboneError: a value is of the wrong type or out of range.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        rules = {
            "image_size": is_tuple(self.image_size, 2, int) and all(0 < side <= 4096 for side in self.image_size),
            "mean": is_tuple(self.mean, 3, int, float),
            "std": is_tuple(self.std, 3, int, float) and all(value > 0 for value in self.std),
            "interpolation": self.interpolation in ("bicubic", "bilinear", "nearest"),
            "crop_pct": is_tuple((self.crop_pct,), 1, int, float) and 0 < self.crop_pct <= 1,
            "crop_mode": self.crop_mode in ("center", "squash", "border"),
        }
        for name, holds in rules.items():
            if not holds:
                raise BackboneError(f"The preprocessing has {name} = {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`."""
        plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**plain)


def is_tuple(value: Any, length: int, *kinds: type) -> bool:
    """Whether this is a tuple of so many finite numbers of these kinds."""
    if not isinstance(value, tuple) or len(value) != length:
        return False
    return all(isinstance(x, kinds) and not isinstance(x, bool) and isfinite(x) for x in value)


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


def for_each_draw(x: Float[Tensor, "batch ..."], rows: int) -> Float[Tensor, "rows ..."]:
    """The same rows again for every draw of the prompts."""
    return x if x.shape[0] == rows else torch.cat([x] * (rows // x.shape[0]))


class Backbone(nn.Module, ABC):
    """An adapter around somebody else's frozen vision transformer.

    A backbone never learns: all parameters have `requires_grad=False`, and it stays in evaluation mode (dropout,
    stochastic depth and running statistics off) whatever `train()` is called with.

    Attributes:
        name: how to build it again, as given to `create_model`; None for a module of the user's own.
        weights: the file that its weights were read from, if the user named one.
        pretrained: False if its weights are random (drawn from a fixed seed).
        dim: d, the embedding dimension; where blocks differ, that of the first.
        depth: N, the number of blocks.
        patch_size: (height, width) of a patch in pixels.
        preprocessing: what the weights expect of images.
        fingerprint: "sha256:<hex>" of the weights as they were loaded, before any change of image size or precision.
        shortcuts: leave out work whose result nobody reads, where that is known to be exact. Off, every block sees and
            computes all tokens: slower, and for comparison.
        compiled: whether blocks run as kernels that `torch.compile` makes: see `compile_blocks`.
    """

    shortcuts: bool = True
    compiled: bool = False
    name: str | None = None
    weights: Path | None = None
    pretrained: bool = True
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
        """Images to tokens; `num_prompts` will be inserted, for backbones that must prepare their context."""

    @abstractmethod
    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch _ _"]:
        """Tokens [prefix, patches, prompts] through block `layer` (0-based).

        What leaves it are the tokens that the next block takes: behind the last one of a stage fewer, and wider.
        """

    def advance(
        self,
        layer: int,
        tokens: Float[Tensor, "batch t dim"],
        prompts: Float[Tensor, "rows p dim"],
        context: Any,
        needed: Needed = "all",
    ) -> tuple[Float[Tensor, "rows _ _"], Float[Tensor, "rows _ _"]]:
        """Image tokens and prompts through block `layer`: what left it, prefix and patches first, then prompts.

        An adapter overrides this to leave out what is not needed. Whatever it does, what is needed is what `block`
        gives, to rounding.

        Args:
            tokens: prefix and patches.
            prompts: as many rows as `tokens`, or a multiple: several draws for each image, all images with the first,
                then all with the second, and so on.
            needed: "all"; "image": nobody reads the prompts that leave; "pooled": nor the tokens that `pool` does not
                read. What is not needed may be left out of the results, from the end.
        """
        tokens = for_each_draw(tokens, prompts.shape[0])
        x = self.block(layer, torch.cat([tokens, prompts], dim=1), context)
        p = prompts.shape[1]
        left, prompts = x.split([x.shape[1] - p, p], dim=1)
        return left, prompts

    @abstractmethod
    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        """Prefix and patch tokens (no prompts) that left the last block, to the feature that the head classifies."""

    def view(self) -> Backbone:
        """The same backbone again, for one model to put modules into: modules of its own, the very same tensors."""
        return copy.deepcopy(self, {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())})

    def check_entered(self) -> None:
        """Called on a view when a method has put its modules in.

        Raises:
            BackboneError: one of them would not be used, because the module around it takes only the weights.
        """

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, for methods that put modules into them.

        Raises:
            BackboneError: this backbone does not show them.
        """
        raise BackboneError(
            f"{type(self).__name__} does not show its blocks", expected="a method that gives tokens alone"
        )

    def stage_of(self, name: str) -> int:
        """Where the parameter of this name is used: -1 for `embed`, the number of a block, or `depth` for `pool`.

        Raises:
            BackboneError: this backbone does not say.
        """
        raise BackboneError(
            f"{type(self).__name__} does not say where it uses {name}", expected="a method that learns no weights"
        )

    def compile_blocks(self, wanted: bool = True) -> None:
        """From now on, run each block as a kernel that `torch.compile` makes when it is first needed (or no longer).

        One for all blocks and batch sizes. Results are the same but for rounding. Measured gains are in
        docs/performance.md: off by default.

        Raises:
            BackboneError: this backbone cannot.
            ConfigError: on a CPU, there is no C++ compiler.
        """
        if wanted:
            raise BackboneError(
                f"{type(self).__name__} does not compile its blocks", remedy="leave compile (--compile) away"
            )

    def attention(
        self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any
    ) -> Float[Tensor, "batch heads t t"]:
        """Attention weights (each row sums to 1) of block `layer` for the tokens that enter it: for inspection only.

        Raises:
            BackboneError: the block's attention is not PyTorch's, or not of these tokens with each other.
        """
        through = partial(self.block, layer, tokens, context)
        return attention_weights(through, type(self).__name__, *tokens.shape[:2])

    @property
    def widths(self) -> int | tuple[int, ...]:
        """d, as methods are built for it; where blocks differ, d of each block, multiples of the first."""
        return self.dim

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width of what `pool` returns."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image as it enters: (3, height, width)."""
        return (3, *self.preprocessing.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which it computes: that of its weights."""
        return next(self.parameters()).dtype

    def freeze(self) -> None:
        """Turn gradients off and evaluation mode on, for good."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: frozen means frozen."""
        return super().train(False)


class Reweighted(nn.Module):
    """A backbone whose verbs can be called with other weights in place of its own, as often as somebody likes.

    `torch.func.functional_call` calls `forward` alone: so all verbs are behind that.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, verb: str, *arguments: Any) -> Any:
        """What the verb gives."""
        return getattr(self.backbone, verb)(*arguments)

    def do(self, weights: Mapping[str, Tensor], verb: str, *arguments: Any) -> Any:
        """The same with some weights, by their names in the backbone, in the precision of the backbone."""
        dtype = self.backbone.dtype
        given = {f"backbone.{name}": tensor.to(dtype) for name, tensor in weights.items()}
        return torch.func.functional_call(self, given, (verb, *arguments))

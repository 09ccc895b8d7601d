"""Vision transformers of the transformers library as frozen backbones, in its layouts of versions 4 and 5.

Both versions name their parts otherwise, so blocks, embeddings and biases are found by what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.backbones.base import Backbone, Preprocessing, Tokens
from viapt.backbones.timm_base import ADAPTER, check_size, fingerprint
from viapt.errors import BackboneError

HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
BEHIND = ("layernorm", "post_layernorm", "pooler", "head")  # the blocks


@dataclass(frozen=True)
class Family:
    """What differs between models.

    Attributes:
        model: the class in transformers that holds the vision transformer alone.
        feature: "class" (the normalised class token), or "pooled" (what the model itself calls its pooled output).
        preprocessing: of the family's published weights, but for the image size.
    """

    model: str
    feature: Literal["class", "pooled"]
    preprocessing: Preprocessing


FAMILIES = {
    "vit": Family("ViTModel", "class", Preprocessing(**HALF, interpolation="bilinear", crop_mode="squash")),
    "deit": Family("DeiTModel", "class", Preprocessing(crop_pct=0.875)),
    "beit": Family("BeitModel", "pooled", Preprocessing(**HALF, crop_mode="squash")),
    "data2vec-vision": Family("Data2VecVisionModel", "pooled", Preprocessing(**HALF, crop_mode="squash")),
    "dinov2": Family("Dinov2Model", "class", Preprocessing(crop_pct=0.875)),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "class", Preprocessing(crop_pct=0.875)),
    "clip_vision_model": Family("CLIPVisionModel", "pooled", Preprocessing(**CLIP)),
    "siglip_vision_model": Family("SiglipVisionModel", "pooled", Preprocessing(**HALF, crop_mode="squash")),
    "vit_mae": Family("ViTMAEModel", "class", Preprocessing(interpolation="bilinear", crop_mode="squash")),
}
SUPPORTED = f"a transformers model of the kinds {', '.join(FAMILIES)}"


class HuggingFaceViT(Backbone):
    """embeddings, norm before the blocks (CLIP), blocks, norm, pooling; the model's own parts compute everything.

    Args:
        model: a model with one vision transformer inside, of which that part is taken, frozen and changed in place.
        name: how `create_model` was asked for it, or None.
        image_size: (height, width), or None for that of the preprocessing.
        preprocessing: what the weights expect of images; None for what the family's published weights expect, at the
            size that the model was configured for.

    Raises:
        BackboneError: another kind of model, or an image size that does not suit the patches.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        image_size: tuple[int, int] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.model, self.name = trunk_of(model), name
        config = self.model.config
        family = FAMILIES[config.model_type]
        self.path, blocks = blocks_of(self.model, config.num_hidden_layers)
        self.pooling = pooling_of(self.model, family)
        self.dim, self.depth = config.hidden_size, len(blocks)
        self.patch_size, own = pair(config.patch_size), pair(config.image_size)
        drop_unused(self.model, self.pooling)
        self.fingerprint = fingerprint(self.model, leave_out=())
        size = image_size or (preprocessing.image_size if preprocessing else own)
        check_size(size, self.patch_size)
        self.preprocessing = replace(preprocessing or family.preprocessing, image_size=size)
        self.masked = hasattr(config, "mask_ratio")
        if self.masked:
            config.mask_ratio = 0.0  # MAE sees all patches
        switch = "interpolate_pos_encoding"  # where it is none, positions follow the image without being told
        told = size != own and arguments(self.model.embeddings).get(switch, True) is False
        self.resizing = {switch: True} if told else {}
        self.shared_bias = pad_biases(self.model, self.path)
        known = arguments(blocks[0])
        self.asked: dict[str, Any] = {
            name: None for name, default in known.items() if default is inspect.Parameter.empty
        }
        if "resolution" in known:
            self.asked["resolution"] = size
        self.bias = "relative_position_bias" if "relative_position_bias" in known else "attention_mask"
        self.freeze()

    @property
    def feature_dim(self) -> int:
        return self.dim

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_submodule(self.path))

    def stage_of(self, name: str) -> int:
        inner = name.removeprefix("model.")
        if inner.startswith(f"{self.path}."):
            return int(inner.removeprefix(f"{self.path}.").partition(".")[0])
        return self.depth if inner.partition(".")[0] in BEHIND else -1

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        output = self.model(images.to(self.dtype), **self.embedding_options(images))
        return output.last_hidden_state[:, 0] if self.pooling == "class" else output.pooler_output

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        x = self.model.embeddings(images.to(self.dtype), **self.embedding_options(images))
        x = x[0] if isinstance(x, tuple) else x
        if hasattr(self.model, "pre_layrnorm"):
            x = self.model.pre_layrnorm(x)
        grid = self.grid
        k, context = x.shape[1] - grid[0] * grid[1], None
        if self.shared_bias is not None:
            context = self.model.get_submodule(self.shared_bias)(grid, dim_size=x.shape[1] + num_prompts)
        return Tokens(prefix=x[:, :k], patches=x[:, k:], grid=grid, context=context)

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch t dim"]:
        options = self.asked if context is None else self.asked | {self.bias: context}
        left = self.model.get_submodule(self.path)[layer](tokens, **options)
        return left[0] if isinstance(left, tuple) else left

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        if self.pooling == "class":
            return self.model.layernorm(tokens[:, :1])[:, 0]
        if self.pooling == "pooler":
            return self.model.pooler(self.model.layernorm(tokens))
        if self.pooling == "head":
            return self.model.head(self.model.post_layernorm(tokens))
        return self.model.post_layernorm(tokens[:, 0])

    def check_entered(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.MultiheadAttention) and not isinstance(module.out_proj, nn.Linear):
                raise BackboneError(
                    "The attention that pools the tokens multiplies with the weights of its layer out_proj itself, "
                    "and would pass by what a method puts in its place",
                    expected="a method that leaves it as it is, for instance viapt, vpt-deep or adaptformer",
                )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patches."""
        (height, width), (rows, columns) = self.preprocessing.image_size, self.patch_size
        return height // rows, width // columns

    def embedding_options(self, images: Tensor) -> dict[str, Any]:
        """What the embedding is told besides images: to resize positions, and for MAE an order, which is kept."""
        if not self.masked:
            return self.resizing
        order = torch.arange(self.grid[0] * self.grid[1], dtype=images.dtype, device=images.device)
        return self.resizing | {"noise": order.expand(images.shape[0], -1)}


class WithoutPosition(nn.Module):
    """The biases of pairs of positions, and 0 for pairs with a token beyond the grid, which has no position."""

    def __init__(self, bias: nn.Module) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, *arguments: Any, dim_size: int, **options: Any) -> Float[Tensor, "1 heads t t"]:
        """For `dim_size` tokens."""
        bias = self.bias(*arguments, dim_size=dim_size, **options)
        more = dim_size - bias.shape[-1]
        return F.pad(bias, (0, more, 0, more))


def trunk_of(model: nn.Module) -> Any:
    """The vision transformer inside a model: what holds embeddings with a convolution, and blocks.

    Raises:
        BackboneError: there is none, of another kind, or for other images.
    """
    kind = f"{type(model).__module__}.{type(model).__name__}"
    for module in model.modules():
        embeddings = getattr(module, "embeddings", None)
        convolutions = [m for m in embeddings.modules() if isinstance(m, nn.Conv2d)] if embeddings is not None else []
        if not convolutions:
            continue
        found = getattr(getattr(module, "config", None), "model_type", None)
        if found not in FAMILIES:
            raise BackboneError(f"The backbone is a {kind}, of the kind {found}", expected=SUPPORTED, remedy=ADAPTER)
        if convolutions[0].in_channels != 3:
            raise BackboneError(
                f"The backbone takes images of {convolutions[0].in_channels} channels", expected="3 (RGB)"
            )
        return module
    raise BackboneError(f"The backbone is a {kind}", expected=SUPPORTED, remedy=ADAPTER)


def blocks_of(trunk: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """Path and list of the blocks: as many as the configuration says, all of one class.

    Raises:
        BackboneError: there is not exactly one such list.
    """
    lists = [(path, m) for path, m in trunk.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    found = [(path, m) for path, m in lists if len({type(block) for block in m}) == 1]
    if len(found) != 1:
        raise BackboneError(
            f"{type(trunk).__name__} has {len(found)} lists of {depth} blocks", expected="one", remedy=ADAPTER
        )
    return found[0]


def pooling_of(trunk: Any, family: Family) -> Literal["class", "pooler", "head", "post"]:
    """How the feature is made.

    Raises:
        BackboneError: the part that pools is missing.
    """
    if family.feature == "class":
        return "class"
    if not hasattr(trunk, "post_layernorm"):
        if getattr(trunk, "pooler", None) is not None:
            return "pooler"
        if not isinstance(trunk.layernorm, nn.Identity):
            return "class"
    elif hasattr(trunk, "head"):
        return "head"
    elif "siglip" not in trunk.config.model_type:
        return "post"
    raise BackboneError(
        f"The {type(trunk).__name__} has no part that pools its tokens",
        expected="one with a pooling layer (add_pooling_layer=True, or vision_use_head=True)",
    )


def drop_unused(trunk: Any, pooling: str) -> None:
    """Remove what the feature does not depend on: the token of masked patches, and a pooling layer that is not read."""
    if hasattr(trunk.embeddings, "mask_token"):
        trunk.embeddings.mask_token = None
    if pooling == "class" and hasattr(trunk, "pooler"):
        trunk.pooler = None


def pad_biases(trunk: nn.Module, blocks: str) -> str | None:
    """Let biases of positions know of tokens without one; the path of the module whose biases are for all blocks."""
    found = [path for path, m in trunk.named_modules() if "relative_position_bias_table" in m._parameters]
    for path in found:
        trunk.set_submodule(path, WithoutPosition(trunk.get_submodule(path)))
    return next((path for path in found if not path.startswith(f"{blocks}.")), None)


def arguments(module: nn.Module) -> dict[str, Any]:
    """What a module's forward takes behind its input: name -> default, or `inspect.Parameter.empty`."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: p.default for p in plain[2:]}  # without self and the input


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)

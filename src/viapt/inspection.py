"""What a fitted model looks like inside: parameters by part, the subspace each layer keeps, who attends to the prompts.

Nothing is changed and nothing learned: the frozen blocks are watched through a backbone that stands in for the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.backbones.base import Backbone, Tokens
from viapt.errors import BackboneError
from viapt.inference import evaluating
from viapt.model import PromptedClassifier
from viapt.reduction import FixedSubspace, Reduction, RunningPCA, SelectCoordinates


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        parameters: part -> numbers it holds, learnable parts by their first name ("method.generator"), then the head,
            buffers that the adapter stores ("method.kept (fixed)"), and the frozen backbone.
        learnable: how many numbers are trained, head included.
        explained: layer -> share in [0, 1] of what the kept subspace was chosen by, as training estimated it: of the
            prompts' second moment, or with `center_basis` of their covariance beside the axes of the slots' means;
            None where nothing was estimated, and for a first layer that has no subspace.
        kept_energy: layer -> share in [0, 1] of the prompts' squared length inside the kept subspace, on the given
            images; None without images, or where the reduction keeps no subspace in place.
        kept_variance: likewise of what differs between the images, prompt by prompt; None for a layer where nothing
            differs.
        prompt_attention: layer -> share in [0, 1] of attention that goes to prompts, averaged over images and heads:
            the class token's, or the patches' where there is none; None without images, without prompts, or where the
            backbone hides its attention.
        images: how many images were looked at.
    """

    parameters: dict[str, int]
    learnable: int
    explained: list[float | None] | None = None
    kept_energy: list[float | None] | None = None
    kept_variance: list[float | None] | None = None
    prompt_attention: list[float] | None = None
    images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class PromptAttention:
    """Attention to and from the prompts, in evaluation mode, without noise.

    Attributes:
        share: of what the class token attends to (patches, where there is no class token), the part on prompts, in
            [0, 1], averaged over heads.
        maps: where on the image's grid each prompt looks, averaged over layers and heads; a map sums to the prompt's
            attention on patches.
    """

    share: Float[Tensor, "batch layers"]
    maps: Float[Tensor, "batch p h w"]


def inspect_model(model: PromptedClassifier, images: Float[Tensor, "batch 3 height width"] | None = None) -> Inspection:
    """Count, and where preprocessed images are given, measure.

    Args:
        model: any prompted classifier; it is left as it was.
        images: as `model.backbone.preprocessing` says, on the model's device.
    """
    counts = count_parameters(model)
    learnable = sum(p.numel() for p in model.learnable().values())
    estimated = estimated_share(model)
    if images is None or images.shape[0] == 0:
        return Inspection(counts, learnable, explained=estimated)
    try:
        share = prompt_attention(model, images).share.mean(0).tolist() if model.method.num_prompts else None
    except BackboneError:
        share = None
    energy, variance = measured_shares(model, images)
    return Inspection(counts, learnable, estimated, energy, variance, share, images.shape[0])


def count_parameters(model: PromptedClassifier) -> dict[str, int]:
    """Part -> how many numbers it holds: see `Inspection.parameters`."""
    counts: dict[str, int] = {}
    transient = model.method.transient_state()
    stored = {name for name in model.method.state_dict() if name not in transient}
    for name, tensor in model.method.named_parameters():
        part = f"method.{name.split('.')[0]}"
        counts[part] = counts.get(part, 0) + tensor.numel()
    for name, tensor in model.method.named_buffers():
        if name in stored:
            part = f"method.{name.split('.')[0]} (fixed)"
            counts[part] = counts.get(part, 0) + tensor.numel()
    return counts | {part: n for part, n in model.parameter_counts().items() if part != "method"}


def estimated_share(model: PromptedClassifier) -> list[float | None] | None:
    """The share that training's estimate gave each layer, where the reduction keeps one."""
    found = [reduction for reduction in reductions(model) if isinstance(reduction, RunningPCA)]
    if not found or not all(bool((reduction.seen > 0).all()) for reduction in found):
        return None
    shares = [float(r.explained[r.index(layer)]) for r in found for layer in range(r.first, r.layers)]
    return [None] * found[0].first + shares


def measured_shares(
    model: PromptedClassifier, images: Float[Tensor, "batch 3 height width"]
) -> tuple[list[float | None] | None, list[float | None] | None]:
    """`Inspection.kept_energy` and `Inspection.kept_variance`."""
    energy: dict[int, float] = {}
    variance: dict[int, float | None] = {}

    def measure(reduction: nn.Module, inputs: tuple[int, Tensor, Tensor]) -> None:
        layer, prompts, fresh = inputs
        assert isinstance(reduction, Reduction)
        kept = reduction.reduce(layer, prompts, torch.zeros_like(fresh))
        energy[layer] = float(kept.square().sum() / prompts.square().sum())
        differing = (prompts - prompts.mean(0)).square().sum()
        tiny = torch.finfo(prompts.dtype).eps * prompts.square().sum()  # equal prompts differ by rounding
        variance[layer] = float((kept - kept.mean(0)).square().sum() / differing) if differing > tiny else None

    in_place = [r for r in reductions(model) if r.kept_dim and isinstance(r, FixedSubspace | SelectCoordinates)]
    hooks = [reduction.register_forward_pre_hook(measure) for reduction in in_place]
    try:
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not energy:
        return None, None
    layers = range(model.backbone.depth)
    return [energy.get(layer) for layer in layers], [variance.get(layer) for layer in layers]


def prompt_attention(model: PromptedClassifier, images: Float[Tensor, "batch 3 height width"]) -> PromptAttention:
    """How much is looked at the prompts, and where the prompts look.

    Raises:
        BackboneError: if the backbone does not expose its attention weights.
    """
    shares: list[Tensor] = []
    maps: list[Tensor] = []
    p = model.method.num_prompts

    def record(layer: int, tokens: Tensor, context: Any, watched: Watched) -> None:
        weights = watched.backbone.attention(layer, tokens, context).float().mean(1)
        k, t = watched.prefix, weights.shape[-1] - p  # prefix, patches, prompts
        looking = weights[:, :1] if k else weights[:, :t]
        shares.append(looking[:, :, t:].sum(-1).mean(-1))
        maps.append(weights[:, t:, k:t])

    watched = watch(model, images, record)
    return PromptAttention(torch.stack(shares, 1), torch.stack(maps).mean(0).unflatten(-1, watched.grid))


class Watched(Backbone):
    """A backbone that computes what another one does, and shows `on_block` the tokens that enter each block."""

    def __init__(self, backbone: Backbone, on_block: Callable[[int, Tensor, Any, Watched], None]) -> None:
        super().__init__()
        self.backbone, self.on_block = backbone, on_block
        self.dim, self.depth, self.preprocessing = backbone.dim, backbone.depth, backbone.preprocessing
        self.prefix, self.grid = 0, (0, 0)

    @property
    def feature_dim(self) -> int:
        return self.backbone.feature_dim

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return self.backbone(images)

    def embed(self, images: Float[Tensor, "batch 3 height width"], num_prompts: int) -> Tokens:
        tokens = self.backbone.embed(images, num_prompts)
        self.prefix, self.grid = tokens.prefix.shape[1], tokens.grid
        return tokens

    def block(self, layer: int, tokens: Float[Tensor, "batch t dim"], context: Any) -> Float[Tensor, "batch _ _"]:
        self.on_block(layer, tokens, context, self)
        return self.backbone.block(layer, tokens, context)

    def pool(self, tokens: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch features"]:
        return self.backbone.pool(tokens)


def watch(
    model: PromptedClassifier,
    images: Float[Tensor, "batch 3 height width"],
    on_block: Callable[[int, Tensor, Any, Watched], None],
) -> Watched:
    """Classify images in evaluation mode without noise, and show `on_block` the tokens that enter each block.

    Returns:
        The backbone that was watched, which knows the grid and the prefix of these images.

    Raises:
        BackboneError: the method computes with weights of its own in place of the backbone's, past whoever watches it.
    """
    if any(model.method.weights(stage) for stage in range(-1, model.backbone.depth + 1)):
        raise BackboneError(f"{model.method.name} learns weights of the blocks, whose attention is not shown")
    watched = Watched(model.backbone, on_block)
    with evaluating(model):
        standing_in(model, watched)(images)
    return watched


def standing_in(model: PromptedClassifier, backbone: Backbone) -> PromptedClassifier:
    """The same classifier on a backbone that answers as its own does; all that it learned is shared, what its method
    remembers of a pass is not.
    """
    twin = copy.copy(model)
    twin._modules = {**model._modules, "backbone": backbone, "method": copy.copy(model.method)}
    return twin


def reductions(model: PromptedClassifier) -> list[Reduction]:
    """The kept subspaces of the model's method: none, or one for each stage, for the methods so far."""
    return [module for module in model.method.modules() if isinstance(module, Reduction)]

"""What can be seen of a model's way to an answer: attention over the picture, prompts, features, neighbours.

None of it proves why a model answers as it does: attention is where information is fetched from, not what it is used
for, and a map of features in two dimensions leaves most of them out.

Everything is computed in evaluation mode, on the mean of the instance prompts, and a few images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from viapt.backbones.base import Backbone
from viapt.device import send
from viapt.errors import ConfigError, DataError
from viapt.inference import evaluating
from viapt.inspection import Watched, watch
from viapt.model import PromptedClassifier

TOGETHER = 8  # images in one pass: attention takes batch x heads x tokens^2 numbers
PERPLEXITY = 30.0  # of t-SNE, where there are features enough
LEAST_FEATURES = 8  # fewer dots are no map

Images = Float[Tensor, "n 3 height width"]


@dataclass(frozen=True)
class LayerAttention:
    """Attention weights on the picture, averaged over heads: what each layer fetches from where.

    Attributes:
        looking: who looks: "class token", or "patches" (their mean) where there is none.
        maps: where on the grid of patches it looks. With `on_prompts` and `on_prefix`, a map sums to 1.
        on_prompts: the share that goes to prompts.
        on_prefix: the share that goes to class and register tokens.
        prompts: where each prompt looks.
    """

    looking: str
    maps: Float[Tensor, "n layers h w"]
    on_prompts: Float[Tensor, "n layers"]
    on_prefix: Float[Tensor, "n layers"]
    prompts: Float[Tensor, "n layers p h w"]


@dataclass(frozen=True)
class PromptSimilarity:
    """How alike the prompts are that enter each layer, image by image: whether they react to the image.

    Attributes:
        cosine: of the same prompt for two images, averaged over prompts. Where what all images share is long, it is
            close to 1 however much else differs.
        varying: share in [0, 1] of the prompts' squared length that lies in what differs between the images.
    """

    cosine: Float[Tensor, "layers n n"]
    varying: Float[Tensor, " layers"]


def layer_attention(model: PromptedClassifier, images: Images) -> LayerAttention:
    """Where the class token and the prompts look, layer by layer.

    Args:
        model: any prompted classifier; it is left as it was.
        images: preprocessed, on the model's device.

    Raises:
        BackboneError: the backbone does not expose its attention weights.
    """
    p = model.method.num_prompts
    found: list[list[Tensor]] = []
    prefix = 0
    for batch in images.split(TOGETHER):
        layers: list[Tensor] = []

        def record(layer: int, tokens: Tensor, context: Any, watched: Watched, layers: list[Tensor] = layers) -> None:
            weights = watched.backbone.attention(layer, tokens, context).float().mean(1)
            k, t = watched.prefix, weights.shape[-1] - p
            looking = weights[:, :1] if k else weights[:, :t].mean(1, keepdim=True)
            layers.append(torch.cat([looking, weights[:, t:]], dim=1))  # who looks, then the prompts

        watched = watch(model, batch, record)
        prefix, grid = watched.prefix, watched.grid
        stacked = torch.stack(layers, 1).cpu()
        t = stacked.shape[-1] - p
        looking = stacked[:, :, 0]
        found.append(
            [
                looking[..., prefix:t].unflatten(-1, grid),
                looking[..., t:].sum(-1),
                looking[..., :prefix].sum(-1),
                stacked[:, :, 1:, prefix:t].unflatten(-1, grid),
            ]
        )
    maps, on_prompts, on_prefix, prompts = (torch.cat(parts) for parts in zip(*found, strict=True))
    return LayerAttention("class token" if prefix else "patches", maps, on_prompts, on_prefix, prompts)


def lookers(model: PromptedClassifier, attention: LayerAttention, k: int) -> dict[str, Float[np.ndarray, "layers h w"]]:
    """Who looks at picture k, and where."""
    maps = {"The class token" if attention.looking == "class token" else "The patches, their mean": attention.maps[k]}
    for kind, rows in kinds(model).items():
        maps[f"{kind}, the mean of {rows.stop - rows.start}"] = attention.prompts[k, :, rows].mean(1)
    return {who: where.numpy() for who, where in maps.items()}


def kinds(model: PromptedClassifier) -> dict[str, slice]:
    """Which prompts are made from the picture, and which are the same for all; a kind that there is not is left out."""
    lambda_, p = model.method.num_instance_prompts, model.method.num_prompts
    found = {"Instance prompts": slice(0, lambda_), "Dataset-level prompts": slice(lambda_, p)}
    return {kind: rows for kind, rows in found.items() if rows.start < rows.stop}


def entering_prompts(model: PromptedClassifier, images: Images) -> list[Float[Tensor, "n p _"]]:
    """The prompts that enter each layer, as wide as it is.

    Raises:
        BackboneError: as `viapt.inspection.watch`.
    """
    p, batches = model.method.num_prompts, []
    for batch in images.split(TOGETHER):
        layers: list[Tensor] = []

        def record(layer: int, tokens: Tensor, context: Any, watched: Watched, layers: list[Tensor] = layers) -> None:
            layers.append(tokens[:, tokens.shape[1] - p :].float())

        watch(model, batch, record)
        batches.append([layer.cpu() for layer in layers])
    return [torch.cat(layer) for layer in zip(*batches, strict=True)]


def prompt_similarity(prompts: Sequence[Float[Tensor, "n p _"]]) -> PromptSimilarity:
    """Compare the prompts of several images, layer by layer.

    Raises:
        DataError: there are fewer than two images.
    """
    if prompts[0].shape[0] < 2:
        raise DataError(f"The prompts of {prompts[0].shape[0]} image(s)", expected="two images or more, to compare")
    cosines, varying = [], []
    for layer in prompts:
        units = F.normalize(layer, dim=-1)
        cosines.append(torch.einsum("ipd,jpd->ij", units, units) / layer.shape[1])
        varying.append((layer - layer.mean(0)).square().sum() / layer.square().sum())
    return PromptSimilarity(torch.stack(cosines), torch.stack(varying))


def features_of(
    model: PromptedClassifier,
    backbone: Backbone,
    batches: Iterator[Images],
    progress: Callable[[int], None] | None = None,
) -> tuple[Float32[Tensor, "n features"], Float32[Tensor, "n features"]]:
    """The features that a head would classify, without what was learned and with it.

    Args:
        model: the tuned model.
        backbone: as it was before: not the view that a method works in.
        batches: preprocessed images, on any device.
        progress: called after each batch with the number of images done.

    Raises:
        DataError: there are no images.
    """
    before, after, done = [], [], 0
    with evaluating(model):
        for batch in batches:
            images = send(batch, model.head.weight.device)
            before.append(backbone(images).float().cpu())
            after.append(model.run(model.embed(images), None).float().cpu())
            done += images.shape[0]
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("There are no images to compute features of", expected="at least one")
    return torch.cat(before), torch.cat(after)


def nearest(
    queries: Float[Tensor, "n features"],
    known: Float[Tensor, "m features"],
    count: int,
    excluded: Bool[Tensor, "n m"] | None = None,
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosine similarities and indices of the known features that are most alike, k = min(count, m) of them.

    Args:
        excluded: pairs that do not count, such as an image and itself: their similarity is minus infinity.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(known, dim=1).T
    if excluded is not None:
        similarity = similarity.masked_fill(excluded, -torch.inf)
    values, indices = similarity.topk(min(count, known.shape[0]), dim=1)
    return values, indices


def in_two_dimensions(
    features: Float[Tensor, "n features"], method: str, seed: int = 0
) -> tuple[Float[np.ndarray, "n 2"], float | None]:
    """A map of features: by "pca", or by "t-sne" of their first 50 principal components.

    Returns:
        The coordinates; and for "pca" the share in [0, 1] of the features' variance that is seen, else None.

    Raises:
        ConfigError: another method; scikit-learn is not installed.
        DataError: too few features.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError("scikit-learn is not installed", remedy="pip install 'viapt[explain]'") from error
    if method not in ("pca", "t-sne"):
        raise ConfigError(f"There is no map {method!r}", expected="pca or t-sne")
    n = features.shape[0]
    if n < LEAST_FEATURES:
        raise DataError(f"{n} features", expected=f"{LEAST_FEATURES} or more, to draw a map of them")
    values = features.double().numpy()
    pca = PCA(n_components=2 if method == "pca" else min(50, *values.shape), svd_solver="full")
    reduced = pca.fit_transform(values)
    if method == "pca":
        return reduced, float(pca.explained_variance_ratio_.sum())
    tsne = TSNE(perplexity=min(PERPLEXITY, (n - 1) / 3), init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(reduced), dtype=np.float64), None

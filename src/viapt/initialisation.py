"""Before the first step: prompts that start as tokens of training images, in subspaces that are estimated already.

What a block does with a token that it could have met is less arbitrary than what it does with a random one, and prompts
that were learned resemble patch tokens (SPT, arXiv 2402.02382). The size of a prompt is free, since a block begins with
LayerNorm: prompts start as large as random ones do, so that a learning rate means the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import torch
from jaxtyping import Float
from torch import Tensor

from viapt.evaluation import LabelledImages, load
from viapt.inference import check_images
from viapt.methods.base import init_bound
from viapt.model import PromptedClassifier
from viapt.recipe import EpochBatches, Recipe


@torch.no_grad()
def begin(model: PromptedClassifier, train: LabelledImages, recipe: Recipe) -> None:
    """Let the method of a model start from data, if its `initial_prompts` is "tokens"; nothing is learned here.

    Prompts start as tokens of the first batch; then as many batches go through the model as its subspaces and scales
    are estimated from; then prompts start again, in these subspaces.

    Args:
        train: what the model is going to be trained on.
        recipe: its batches are those that training begins with; the same seed gives the same tokens and noise.

    Raises:
        DataError: images that do not fit the model.
    """
    method = model.method
    if method.initial_prompts != "tokens":
        return
    batches = first_batches(model, train, recipe)
    tokens = drawn_tokens(model, next(batches), recipe.seed)
    method.begin(tokens)
    if method.calibration_steps:
        training = model.training
        model.train()
        for number, images in enumerate(islice(batches, method.calibration_steps)):
            noise = model.draw_noise(len(images), seed=recipe.seed, index=-1 - number)
            model.classify(model.embed(images), noise)
        model.train(training)
        method.begin(tokens)


def first_batches(
    model: PromptedClassifier, train: LabelledImages, recipe: Recipe
) -> Iterator[Float[Tensor, "batch ..."]]:
    """Images in the order of a training, epoch after epoch, without end."""
    sampler = EpochBatches(len(train), recipe.batch_size, recipe.seed)
    device = model.head.weight.device
    loader = load(train, 0, device, batch_sampler=sampler)
    for epoch in count():
        sampler.set_epoch(epoch)
        if callable(set_epoch := getattr(train, "set_epoch", None)):
            set_epoch(epoch)
        for images, _ in loader:
            check_images(model, images)
            yield images.to(device)


def drawn_tokens(
    model: PromptedClassifier, images: Float[Tensor, "batch ..."], seed: int
) -> Float[Tensor, "depth p dim"]:
    """Patch tokens that enter each block without prompts, as large as prompts start; as many as there are prompts."""
    backbone, p = model.backbone, model.method.num_prompts
    size = init_bound(backbone.dim, backbone.patch_size) / math.sqrt(3)  # root mean square of uniform(-v, v)
    generator = torch.Generator().manual_seed(seed)
    tokens = backbone.embed(images, 0)
    x, k = torch.cat([tokens.prefix, tokens.patches], dim=1), tokens.prefix.shape[1]
    drawn = []
    for layer in range(backbone.depth):
        patches = model.to_own_precision(x[:, k:]).flatten(0, 1)
        order = torch.randperm(len(patches), generator=generator)
        order = order.repeat(math.ceil(p / len(order)))[:p]  # of so few that some serve twice
        chosen = patches[order.to(patches.device)]
        drawn.append(chosen * (size / chosen.square().mean(-1, keepdim=True).sqrt()))
        x = backbone.block(layer, x, tokens.context)
    return torch.stack(drawn)

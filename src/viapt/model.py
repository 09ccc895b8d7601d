"""PromptedClassifier: an explicit loop over the blocks of a frozen backbone, into which a prompt method puts tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from viapt.backbones.base import Backbone, Needed, Reweighted, Tokens
from viapt.errors import ConfigError
from viapt.methods.base import PromptMethod

if TYPE_CHECKING:
    import viapt.inference
    from viapt.rounds import RoundNoise


class PromptedClassifier(nn.Module):
    """A frozen backbone, a prompt method, a linear head.

    The backbone computes in whatever precision its weights have (see `to_precision`); prompts, reduction and head stay
    in their own.

    Args:
        backbone: frozen; never trained, never changed. A method that works inside it does so in a view of it.
        method: what puts prompts in.
        classes: names of the classes, in the order of the logits.

    Attributes:
        checkpointing: recompute block activations in the backward pass instead of storing them.
        round_noise: how far the rounds of the policy `multi` differ, as `viapt.calibrate_rounds` measured it.
    """

    reweighted: Reweighted

    def __init__(self, backbone: Backbone, method: PromptMethod, classes: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.method = backbone.view() if method.inside else backbone, method
        if method.inside:
            method.enter(self.backbone)
            self.backbone.check_entered()
            object.__setattr__(self, "reweighted", Reweighted(self.backbone))  # no part of this model's state
        self.classes = check_classes(classes)
        self.head = nn.Linear(backbone.feature_dim, len(self.classes))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.checkpointing = False
        self.noise_seed, self.noise_calls = 0, 0
        self.round_noise: RoundNoise | None = None

    def forward(
        self,
        images: Float[Tensor, "batch ..."],
        labels: Int[Tensor, " batch"] | None = None,
        *,
        noise: Float[Tensor, "batch lambda_ dim"] | None = None,
    ) -> Any:
        """Logits (batch, classes); with `labels`, (loss, logits).

        Args:
            images: (batch, 3, height, width), preprocessed as `backbone.preprocessing` says.
            labels: class indices; the loss is cross-entropy plus the method's penalty.
            noise: standard normal, one row per sampled prompt. Without it, evaluation uses the mean and training draws
                from a private generator.
        """
        if noise is None and self.training:
            self.noise_calls += 1
            noise = self.draw_noise(images.shape[0], seed=self.noise_seed, index=self.noise_calls)
        tokens = self.embed(images)
        logits = self.classify(tokens, noise)
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels)
        penalty = self.method.penalty(self.to_own_precision(tokens.patches), tokens.grid)
        return (loss if penalty is None else loss + penalty), logits

    def embed(self, images: Float[Tensor, "batch ..."]) -> Tokens:
        """The images, embedded by the backbone: for most methods the same whatever is learned."""
        return self.at(-1, "embed", images, self.method.num_prompts)

    def classify(
        self, tokens: Tokens, noise: Float[Tensor, "rows lambda_ dim"] | None
    ) -> Float[Tensor, "rows classes"]:
        """Logits of embedded images.

        Args:
            tokens: of `embed`.
            noise: as many rows as images; or a multiple, several draws for each image: a row for every image, then a
                row for every image again, and so on. None: the mean.
        """
        return self.head(self.run(tokens, noise))

    def run(self, tokens: Tokens, noise: Float[Tensor, "rows lambda_ dim"] | None) -> Float[Tensor, "rows features"]:
        """Embedded images to pooled features: the loop."""
        method, last = self.method, self.backbone.depth - 1
        prompts = method.start(self.to_own_precision(tokens.patches), tokens.grid, noise)
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        for layer in range(self.backbone.depth):
            if layer > 0:
                prompts = method.carry(layer, self.to_own_precision(prompts))
            needed = "pooled" if layer == last else "all" if method.carries else "image"
            x, left = self.advance(layer, x, to_precision(prompts, x.dtype), tokens.context, needed)
            x, prompts = method.leaving(layer, x), left if method.carries else prompts
        return self.to_own_precision(self.at(self.backbone.depth, "pool", x))

    def at(self, stage: int, verb: str, *arguments: Any) -> Any:
        """What the backbone does in a stage, with the weights that the method puts there in place of its own."""
        weights = self.method.weights(stage)
        if not weights:
            return getattr(self.backbone, verb)(*arguments)
        return self.reweighted.do(weights, verb, *arguments)

    def advance(
        self,
        layer: int,
        x: Float[Tensor, "_ t dim"],
        prompts: Float[Tensor, "rows p dim"],
        context: Any,
        needed: Needed,
    ) -> tuple[Float[Tensor, "rows _ _"], Float[Tensor, "rows _ _"]]:
        """One frozen block, its activations stored or recomputed."""
        if self.checkpointing and torch.is_grad_enabled():
            # Blocks draw no random numbers: prompts are sampled outside them.
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            return checkpoint(self.at, layer, "advance", layer, x, prompts, context, needed, **options)
        return self.at(layer, "advance", layer, x, prompts, context, needed)

    def to_own_precision(self, tokens: Tensor) -> Tensor:
        """Backbone tokens in the precision of prompts and head."""
        return tokens.to(self.head.weight.dtype)

    def draw_noise(self, batch: int, *, seed: int, index: int = 0) -> Float[Tensor, "batch lambda_ dim"]:
        """Standard normal noise for a batch; the same for equal (seed, index), on every device; in training as much
        as that takes.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        rows = self.method.training_noise if self.training else self.method.sampled_prompts
        shape = (batch, rows, self.backbone.dim)
        return torch.randn(shape, generator=generator).to(self.head.weight)

    def learnable(self) -> dict[str, nn.Parameter]:
        """Name -> tensor of what is trained: method and head."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("backbone.")}

    def parameter_counts(self) -> dict[str, int]:
        """How many numbers each part holds: "method", "head", "backbone"."""
        parts = {"method": self.method, "head": self.head, "backbone": self.backbone}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def print_trainable_parameters(self) -> None:
        """One line, in the manner of peft."""
        counts = self.parameter_counts()
        trainable, total = counts["method"] + counts["head"], sum(counts.values())
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    def to_precision(self, dtype: torch.dtype) -> PromptedClassifier:
        """Cast the frozen backbone alone; what learns keeps its own precision."""
        self.backbone.to(dtype)
        return self

    def save_pretrained(self, directory: str | Path, *, training: Mapping[str, Any] | None = None) -> Path:
        """Save the adapter; see `viapt.artifact.save_pretrained`."""
        from viapt.artifact import save_pretrained

        return save_pretrained(self, directory, training=training)

    def push_to_hub(self, name: str, *, private: bool = True, training: Mapping[str, Any] | None = None) -> str:
        """Put the adapter on a model hub; see `viapt.publishing.push_to_hub`."""
        from viapt.publishing import push_to_hub

        return push_to_hub(self, name, private=private, training=training)

    def predict(
        self,
        images: Any,
        policy: Literal["mean", "fixed", "multi"] = "mean",
        rounds: int = 5,
        seed: int = 0,
        batch_size: int = 32,
        *,
        adaptive: bool = False,
        max_disagreement: float = 0.01,
    ) -> viapt.inference.Prediction:
        """Labels and probabilities of images; see `viapt.inference.predict`."""
        from viapt.inference import predict

        options: dict[str, Any] = {"adaptive": adaptive, "max_disagreement": max_disagreement}
        return predict(self, images, policy, rounds, seed, batch_size, **options)


def to_precision(prompts: Float[Tensor, "rows p dim"], dtype: torch.dtype) -> Float[Tensor, "rows p dim"]:
    """The same numbers in another precision; one row that stands for all stays one in memory."""
    if prompts.stride(0) == 0:
        return prompts[:1].to(dtype).expand_as(prompts)
    return prompts.to(dtype)


def check_classes(classes: Sequence[Any]) -> list[str]:
    """Class names, checked: at least two, all strings, all different.

    Raises:
        ConfigError: naming what is wrong.
    """
    names = list(classes)
    if len(names) < 2:
        raise ConfigError(f"{len(names)} class(es)", expected="at least two")
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"The class name {name!r} is a {type(name).__name__}", expected="strings")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"Class names occur twice: {', '.join(map(repr, twice))}", expected="different names")
    return names

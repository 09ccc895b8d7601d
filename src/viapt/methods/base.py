"""What every prompt method is: tokens that enter the first block, and what becomes of them before each later one."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import BackboneError
from viapt.widths import Stage, Widths, stages_of, width_of_each

InitialPrompts = Literal["uniform", "tokens"]


class PromptMethod(nn.Module, ABC):
    """What is learned for a frozen transformer: prompt tokens, mostly. One file per method.

    The constructor's keyword arguments are its whole configuration.

    A method that does more than give tokens has `inside = True`, and then either puts modules into a view of the
    backbone that belongs to its model alone (`enter`), or names tensors that take the place of the backbone's own
    (`weights`). See "Methods inside the backbone" in docs/method.md.

    A subclass sets `name`, takes `(dim, depth, patch_size, *, ...)`, and keeps each keyword argument in an attribute of
    the same name.

    Args:
        dim: d, the width of the backbone's blocks; where they differ, d of each block, multiples of the first.
        depth: N, how many blocks there are.
        patch_size: (height, width) in pixels.

    Attributes:
        dim: of the first block.
        widths: of each block.
        staged: whether it can serve blocks of several widths: its parts are then as wide as the stage they serve.
        num_prompts: p, prompt tokens in the sequence.
        num_instance_prompts: lambda, how many of them are made from the image, 0 <= lambda <= p.
        carries: whether `carry` reads the prompts that left the block before; if not, nobody computes them, and it is
            given those that entered.
        batch_dependent: whether an image's answer depends on the other images of its batch.
        exact_gradient: whether the gradient is the derivative of the answer, or is stopped somewhere on purpose.
        learning_rate: of AdamW, where the user names none; chosen on validation data (docs/log.md).
        inside: whether it works inside the backbone, or between its blocks.
        initial_prompts: "tokens", if `begin` wants to be called before a training.
        calibration_steps: training batches from which it estimates something.
        same_for_ever: what of an image is the same whatever is learned, so that it can be computed once: its
            "features", its "tokens" after the embedding, or "nothing".
    """

    name: ClassVar[str]
    learning_rate: ClassVar[float] = 5e-3
    num_prompts: int = 0
    num_instance_prompts: int = 0
    carries: bool = True
    batch_dependent: bool = False
    exact_gradient: bool = True
    inside: ClassVar[bool] = False
    initial_prompts: InitialPrompts = "uniform"
    calibration_steps: int = 0
    staged: ClassVar[bool] = False
    same_for_ever: ClassVar[Literal["features", "tokens", "nothing"]] = "tokens"

    def __init__(self, dim: Widths, depth: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.widths = width_of_each(dim, depth)
        self.dim, self.depth, self.patch_size = self.widths[0], depth, patch_size
        if len(self.stages) > 1 and not self.staged:
            name, widths = getattr(self, "name", type(self).__name__), list(dict.fromkeys(self.widths))
            raise BackboneError(
                f"{name} serves blocks of one width, and these have {widths}",
                expected="a backbone without stages, or a method that is staged, for instance viapt or vpt-deep",
            )

    @property
    def stages(self) -> list[Stage]:
        """Blocks of one width each."""
        return stages_of(self.widths)

    @property
    def built_for(self) -> Widths:
        """What the constructor was given as `dim`."""
        return self.dim if len(self.stages) == 1 else self.widths

    @property
    def sampled_prompts(self) -> int:
        """Rows of standard normal noise that an image takes in evaluation; 0: all draws are the same."""
        return self.num_instance_prompts

    @property
    def training_noise(self) -> int:
        """The same in training."""
        return self.sampled_prompts

    @abstractmethod
    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        """The prompts that enter block 0, given the embedded images and, to sample, standard normal noise.

        Args:
            noise: None: the mean, which is also what noise of 0 gives. In training it has `training_noise` rows for
                each image. There may be noise for a multiple of the images (see `PromptedClassifier.classify`); there
                are then as many prompts.
        """

    @abstractmethod
    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        """The prompts that enter block `layer` >= 1, given what left block `layer - 1`."""

    def begin(self, tokens: Float[Tensor, "depth p dim"]) -> None:
        """Start from data: called before the first step of a training, if `initial_prompts` is "tokens".

        Args:
            tokens: p for each block, drawn from those that enter it without prompts, as large as prompts start.
        """

    def enter(self, backbone: Any) -> None:
        """Work inside a backbone from now on; called once, before anything is computed, if `inside`.

        Args:
            backbone: a `viapt.backbones.base.Backbone`: a view, whose modules may be replaced (see `stand_in`), while
                its tensors are shared and stay as they are. Everything that learns belongs to the method.
        """

    def replaced(self) -> set[str]:
        """Names of the backbone's tensors that are never used, because `weights` has others for them."""
        return set()

    def weights(self, stage: int) -> dict[str, Tensor]:
        """Tensors to use in place of the backbone's own: name there -> tensor.

        Args:
            stage: -1 for the embedding, the number of a block, or `depth` for what follows the blocks.
        """
        return {}

    def leaving(self, layer: int, tokens: Float[Tensor, "rows t width"]) -> Float[Tensor, "rows t width"]:
        """What becomes of an image's tokens (no prompts) that left block `layer`: here they stay as they are.

        Behind the last block there may be fewer: those that are pooled. Who changes them is `inside`.
        """
        return tokens

    def penalty(self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]) -> Float[Tensor, ""] | None:
        """A term that training adds to the loss, or None."""
        return None

    def learning_rates(self) -> dict[str, float]:
        """Parameters that learn at another rate than the training's: name -> factor on it."""
        return {}

    def without_effect(self) -> dict[str, str]:
        """The keyword arguments that change nothing, given the others: name -> reason."""
        return {}

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this method again."""
        return {name: getattr(self, name) for name in arguments(type(self))}

    def transient_state(self) -> set[str]:
        """Names of state tensors that only an interrupted training needs, and a saved adapter does not."""
        return {
            f"{path}.{buffer}" if path else buffer
            for path, module in self.named_modules()
            for buffer in getattr(module, "transient", ())
        }


class WithoutPrompts(PromptMethod):
    """A method that puts no tokens in."""

    carries = False
    staged = True

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return patches.new_zeros(rows_of(patches, noise), 0, self.dim)

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p width"]:
        width = self.widths[layer]
        return prompts if prompts.shape[-1] == width else prompts.new_zeros(prompts.shape[0], 0, width)


class StandIn(nn.Module):
    """What stands in a backbone's view in place of one of its modules.

    Args:
        module: the backbone's own, frozen.
        part: the method's: called with the module and its input. It is registered with the method, not here: so it is
            learned, saved and counted with the method alone.
    """

    part: nn.Module
    module: Any

    def __init__(self, module: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.__dict__["part"] = part

    @property
    def weight(self) -> Tensor:
        """The frozen module's: embeddings ask for its type. A backbone refuses where more is made of it."""
        return self.module.weight

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """What the method makes of the module; blocks tell their attention more than tokens."""
        return self.part(self.module, x, **options)


def stand_in(network: nn.Module, path: str, part: nn.Module) -> None:
    """Put `part` in place of the module at a dotted path."""
    parent, _, name = path.rpartition(".")
    place = network.get_submodule(parent)
    setattr(place, name, StandIn(place.get_submodule(name), part))


def arguments(method: type[PromptMethod]) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a method's constructor, by name."""
    parameters = inspect.signature(method.__init__).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def rows_of(patches: Float[Tensor, "batch n dim"], noise: Float[Tensor, "rows lambda_ dim"] | None) -> int:
    """How many rows of prompts there are: one for each draw of noise, or one for each image."""
    return patches.shape[0] if noise is None else noise.shape[0]


def init_bound(dim: int, patch_size: tuple[int, int]) -> float:
    """v of VPT's initialisation uniform(-v, v).

    Sqrt(6 / (3 * patch_height * patch_width + dim)); 0.0625 for ViT-B/16.
    """
    return math.sqrt(6 / (3 * patch_size[0] * patch_size[1] + dim))

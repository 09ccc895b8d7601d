"""LoRA: low-rank changes of frozen matrices (Hu et al., ICLR 2022, arXiv 2106.09685), computed by peft."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor, nn

from viapt.errors import BackboneError, ConfigError
from viapt.methods.base import StandIn, WithoutPrompts
from viapt.widths import Widths

TARGETS = {"qkv": ["qkv"], "attention": ["qkv", "proj"], "all": ["qkv", "proj", "mlp"]}
LAYERS: dict[str, list[set[str]]] = {  # what libraries call them; one way in each block
    "qkv": [{"qkv"}, {"q_proj", "k_proj", "v_proj"}, {"query", "key", "value"}],
    "proj": [{"proj"}, {"o_proj"}, {"out_proj"}],
    "mlp": [{"fc1", "fc2"}, {"fc1_g", "fc1_x", "fc2"}],
}


class LoRA(WithoutPrompts):
    """In every block, beside a frozen matrix W_0, a product of two thin ones learns (eq. 3):

        h = W_0 x + (alpha / r) B A x

    A starts as peft has it (Kaiming uniform), B at 0. There is no dropout.

    Args:
        rank: r >= 1. Learnable for each matrix of shape (b, a): r * (a + b).
        alpha: a finite number above 0.
        targets: which matrices of a block: "qkv", "attention" (and the projection behind it) or "all" (and the MLP's).
    """

    name = "lora"
    learning_rate = 3e-3
    inside = True

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        rank: int = 4,
        alpha: float = 8.0,
        targets: Literal["qkv", "attention", "all"] = "qkv",
    ) -> None:
        super().__init__(dim, depth, patch_size)
        self.rank, self.alpha, self.targets = rank, alpha, targets
        if rank < 1 or not 0 < alpha < float("inf"):
            raise ConfigError(f"rank = {rank}, alpha = {alpha} is not possible", expected="rank >= 1, alpha > 0")
        if find_spec("peft") is None:
            raise ConfigError("The method lora needs peft", remedy="pip install 'viapt[lora]'")

    def enter(self, backbone: Any) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        alpha: Any = self.alpha  # peft takes fractions, whatever its annotation says
        self.parts = nn.ModuleDict()
        for number, block in enumerate(backbone.blocks):
            names = [name for target in TARGETS[self.targets] for name in layers(block, target)]
            config = LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=names)
            inject_adapter_in_model(config, block)
            for path, layer in [found for found in block.named_modules() if isinstance(found[1], LoraLayer)]:
                part = LowRank(layer)
                block.set_submodule(path, StandIn(layer.get_base_layer(), part))
                self.parts[f"{number}/{path.replace('.', '/')}"] = part


def layers(block: nn.Module, target: str) -> list[str]:
    """Names of the linear layers that do the target's work in a block.

    Raises:
        BackboneError: none that is known.
    """
    linear = {path.rpartition(".")[2] for path, module in block.named_modules() if isinstance(module, nn.Linear)}
    for names in LAYERS[target]:
        if names <= linear:
            return sorted(names)
    raise BackboneError(
        f"A block of the kind {type(block).__name__} has no {target} that lora knows, but {', '.join(sorted(linear))}",
        expected=" or ".join(", ".join(sorted(names)) for names in LAYERS[target]),
    )


class LowRank(nn.Module):
    """A layer of peft, of which A and B alone are registered here: its matrix W_0 is the backbone's.

    Args:
        layer: with one adapter.
    """

    layer: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.a, self.b = layer.lora_A, layer.lora_B
        for parameter in self.parameters():  # peft takes the precision of W_0
            parameter.data = parameter.data.float()
        object.__setattr__(self, "layer", layer)

    def forward(self, matrix: nn.Module, x: Tensor) -> Tensor:
        """`matrix` is the layer's own W_0."""
        return self.layer(x)

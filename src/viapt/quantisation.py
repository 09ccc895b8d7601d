"""int8 inference: the linear layers of the frozen backbone with weights of one byte, multiplied as integers.

Each row of weights (an output channel) and each row of activations (a token) has a scale of its own, its largest
magnitude over 127. So a product of int8 rows, summed exactly in int32, times the two scales approximates the product:

    y = s_x s_w (q_x . q_w) + b          q = round(x / s), |q| <= 127

A scale for each token, found while computing, keeps a token's output independent of its batch, to the last bit; one
scale for a whole batch, as in torch's older dynamic quantisation, does not. Patch embedding, norms, attention's
softmax, prompts, reduction and head stay as they are.

On processors with int8 units (AVX-512 VNNI, AMX) this is several times faster than float32; it takes a quarter of the
memory. What it costs in accuracy depends on weights and task: `viapt evaluate --quantise int8` measures it.
"""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from viapt.errors import ConfigError
from viapt.model import PromptedClassifier

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny


def quantise(model: PromptedClassifier) -> PromptedClassifier:
    """A copy for inference, the backbone's linear layers in int8; the model itself stays as it is.

    The copy predicts and is evaluated like any model. All of it is frozen. It can be neither trained nor saved: an
    adapter belongs to the weights that its fingerprint names; it is loaded with these, and then quantised.

    Raises:
        ConfigError: it is quantised already, or its backbone has no linear layers that stay as they are.
    """
    if is_quantised(model):
        raise ConfigError("The model is quantised already", expected="one in floating point")
    learned = model.method.replaced()
    modules = model.backbone.named_modules()
    layers = [layer for name, layer in modules if is_worthwhile(layer) and f"{name}.weight" not in learned]
    if not layers:
        found = f"The backbone {type(model.backbone).__name__} has no linear layers"
        raise ConfigError(f"{found} that {model.method.name} leaves as they are", expected="some")
    # Where deepcopy would copy one of these layers, it finds the quantised one.
    memo: dict[int, Any] = {id(layer): QuantisedLinear(layer) for layer in layers}
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def is_worthwhile(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is linear, by torch's own code, and more than a vector (of which `_int_mm` 2.14 errs)."""
    return type(layer) is nn.Linear and layer.in_features > 1


def is_quantised(model: nn.Module) -> bool:
    """Whether a model has layers in int8."""
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


class QuantisedLinear(nn.Module):
    """A linear layer with int8 weights, for inference alone.

    Args:
        linear: the layer to replace; its weights are read and left alone.
    """

    quantised: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        quantised, scale = quantise_rows(linear.weight.detach())
        self.register_buffer("quantised", quantised)
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch c"]:
        """The layer's output, in the precision of its input.

        Raises:
            ConfigError: a gradient is wanted; rounding has none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError("A quantised model has no gradients", remedy="use the model that it was made from")
        tokens, scale = quantise_rows(x.flatten(0, -2))
        y = torch.ops.aten._int_mm(tokens, self.quantised.t()).float().mul_(self.scale).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])

    @property
    def weight(self) -> Float[Tensor, "c d"]:
        """The weights that it computes with, for code that does not call the layer."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        return (self.quantised * self.scale[:, None]).to(dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantisedLinear:
        """Move to other devices and precisions, the scales in float32 for ever: rounded, they would bend each row."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantise_rows(x: Float[Tensor, "n d"]) -> tuple[Int8[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """Each row as int8, and what to multiply it by; a row of zeros stays one."""
    scale = x.abs().amax(-1, keepdim=True).float().div_(LARGEST).clamp_min_(TINY)
    return torch.mul(x, scale.reciprocal()).round_().to(torch.int8), scale

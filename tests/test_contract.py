"""Every method and every reduction keeps the contract on every kind of backbone; and the contract notices breaches."""

from __future__ import annotations

import inspect
import pkgutil
import shutil
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import viapt.backbones
from contract_cases import BACKBONES, REFUSED, runs
from viapt.backbones.base import Backbone
from viapt.backbones.cached import CachedFeatures, CachedTokens
from viapt.errors import BackboneError
from viapt.methods import METHODS
from viapt.methods.base import PromptMethod
from viapt.methods.vpt import VPTDeep
from viapt.reduction import REDUCTIONS
from viapt.testing import CHECKS, COMPILED_CHECKS, Check, Subject, check_prompt_method
from viapt.testing.checks import compiles

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"reduction": name} for name in REDUCTIONS},
    "uncentred": {"center_basis": False},
    "paper": {"carry_scale": 1.0, "calibrate_carry": False},
    "nothing kept": {"kept_dim": 0},
    "everything kept": {"kept_dim": 24},
    "all instance": {"num_prompts": 4, "num_instance_prompts": 4},
    "no instance": {"num_instance_prompts": 0},
    "one each": {"per_prompt": True, "kl_weight": 0.1},
    "other generator": {"generator_depthwise": True, "generator_kernels": (3, 1), "generator_width": 3},
    "shared, learned scale": {"shared_basis": True, "learn_carry_scale": True},
    "spatial": {"spatial": True, "num_instance_prompts": 6},
    "adaptive": {"kept_dim": "adaptive", "explained": 0.8},
    "adaptive for each image": {"kept_dim": "adaptive", "image_gate": True, "shared_basis": True, "fresh_dim": "full"},
    "full width, variation": {"fresh_dim": "full", "fresh_rows": 4, "carried": "variation", "carry_norm": True},
    "instance every": {"instance_every": True, "instance_noise": False, "fresh_rows": 3},
    "warm-up, slow generator": {"instance_warmup": 3, "generator_lr": 0.3},
    "gradient through the basis": {"basis_gradient": True, "calibration_steps": 5},
    "carried without gradient": {"detach_carried": True, "learn_carry_scale": True},
}


def cases(checks: dict[str, Check]) -> list[Any]:
    """Parameters (method, backbone, options, check)."""
    pairs = [(m, b) for m in METHODS for b in BACKBONES if (m, b) not in REFUSED]
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [(f"{m}-{b}", m, b, {}) for m, b in pairs]
    kinds += [(f"viapt-{name}", "viapt", "vit", options) for name, options in VARIANTS.items()]
    return [
        pytest.param(method, backbone, options, check, id=f"{name}-{check_name}")
        for name, method, backbone, options in kinds
        for check_name, check in checks.items()
        if runs(method, backbone, check_name)
    ]


@pytest.mark.parametrize(("method", "backbone", "options", "check"), cases(CHECKS))
def test_contract(method: str, backbone: str, options: dict[str, Any], check: Check) -> None:
    check(Subject(method, BACKBONES[backbone](), **options))


@pytest.mark.parametrize(("method", "backbone"), REFUSED)
def test_what_cannot_work_is_refused(method: str, backbone: str) -> None:
    with pytest.raises(BackboneError) as error:
        Subject(method, BACKBONES[backbone]()).model()
    assert error.value.expected


@pytest.mark.compiled
@pytest.mark.parametrize(("method", "backbone", "options", "check"), cases(COMPILED_CHECKS))
def test_compiled_contract(method: str, backbone: str, options: dict[str, Any], check: Check) -> None:
    check(Subject(method, BACKBONES[backbone](), **options))


@pytest.mark.compiled
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))),
    reason="torch's inductor needs a C++ compiler (g++ or clang++), and none is installed; graphs are still captured",
)
@pytest.mark.parametrize("method", METHODS)
def test_compiles_to_machine_code(method: str) -> None:
    compiles(Subject(method, BACKBONES["vit"]()), backend="inductor")


def test_every_kind_of_backbone_has_a_tiny_one() -> None:
    modules = [import_module(f"viapt.backbones.{info.name}") for info in pkgutil.iter_modules(viapt.backbones.__path__)]
    found = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    kinds = {kind for kind in found if issubclass(kind, Backbone) and not inspect.isabstract(kind)}
    kinds -= {CachedFeatures, CachedTokens}  # of any kind behind its embedding: no images, see test_caching.py
    assert kinds == {type(build()) for build in BACKBONES.values()}


# --- the contract notices ---


class Sound(VPTDeep):
    """VPT-Deep as a third party's class, eq. 6 of arXiv 2203.12119.

    Args:
        num_prompts: p.
        projected_dim: h.
        dropout: share left out.
        shared: one P for all.
        initial_prompts: how they start.
    """

    name = "third-party"


class Forgets(Sound):
    """Caches what it computed in evaluation: afterwards its prompts never learn.

    Args:
        num_prompts: p.
    """

    cached: Tensor | None = None

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        if self.cached is None and not self.training:
            self.cached = self.prompts.detach().clone()
        held = self.prompts if self.cached is None else self.cached
        return held[layer].expand(prompts.shape[0], -1, -1)


class Peeks(Sound):
    """Mixes the images of a batch without saying so.

    Args:
        num_prompts: p.
    """

    carries = True

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        return super().carry(layer, prompts) + prompts.mean(0)


class Reads(Peeks):
    """Reads what it says it does not.

    Args:
        num_prompts: p.
    """

    carries = False


class Excuses(Sound):
    """Declares a dependence on the batch that it does not have.

    Args:
        num_prompts: p.
    """

    batch_dependent = True


class Stops(Sound):
    """Stops a gradient without saying so.

    Args:
        num_prompts: p.
    """

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        new = self.prompts[layer].expand(prompts.shape[0], -1, -1)
        return new + (new * new).detach()


class Draws(Sound):
    """Uses the global random numbers in training.

    Args:
        num_prompts: p.
    """

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        new = super().carry(layer, prompts)
        return new + 0.01 * torch.randn_like(new) if self.training else new


class Idle(Sound):
    """Holds a parameter that does nothing.

    Args:
        num_prompts: p.
    """

    def __init__(self, dim: int, depth: int, patch_size: tuple[int, int], *, num_prompts: int = 10) -> None:
        super().__init__(dim, depth, patch_size, num_prompts=num_prompts)
        self.idle = nn.Parameter(torch.zeros(3))


class Counts(Sound):
    """Changes a buffer in evaluation.

    Args:
        num_prompts: p.
    """

    def __init__(self, dim: int, depth: int, patch_size: tuple[int, int], *, num_prompts: int = 10) -> None:
        super().__init__(dim, depth, patch_size, num_prompts=num_prompts)
        self.register_buffer("calls", torch.zeros(()))

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        self.calls += 1
        return super().carry(layer, prompts)


class Loses(Sound):
    """Keeps what it was built with to itself.

    Args:
        num_prompts: p.
    """

    def config(self) -> dict[str, Any]:
        return {}


class Unpicklable(Sound):
    """Holds a function without a name.

    Args:
        num_prompts: p.
    """

    def __init__(self, dim: int, depth: int, patch_size: tuple[int, int], *, num_prompts: int = 10) -> None:
        super().__init__(dim, depth, patch_size, num_prompts=num_prompts)
        self.function = lambda x: x


class Silent(VPTDeep):
    """Says nothing."""

    name = "third-party"


class Widens(Sound):
    """Gives other numbers of prompts than it says.

    Args:
        num_prompts: p.
    """

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        return super().carry(layer, prompts)[:, 1:]


def test_a_third_party_method_passes() -> None:
    check_prompt_method(Sound, BACKBONES["vit"](), num_prompts=2)


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (Forgets, "gradients"),
        (Peeks, "batch_does_not_matter"),
        (Reads, "carries"),
        (Excuses, "batch_does_not_matter"),
        (Stops, "gradcheck"),
        (Draws, "evaluation_is_deterministic"),
        (Draws, "same_seed_same_losses"),
        (Idle, "gradients"),
        (Idle, "every_tensor_moves"),
        (Counts, "evaluation_is_deterministic"),
        (Loses, "configuration"),
        (Unpicklable, "copies"),
        (Silent, "documented"),
        (Widens, "shapes"),
    ],
)
def test_the_contract_notices(method: type[PromptMethod], check: str) -> None:
    with pytest.raises(Exception) as caught:
        check_prompt_method(method, BACKBONES["vit"](), checks={check: CHECKS[check]}, num_prompts=2)
    assert any(f"'{check}'" in note for note in caught.value.__notes__)


class Trainable(Backbone):
    """A backbone that changes when it is trained with, hides a block from the loop, or never recomputes."""

    def __init__(self, inner: Backbone, fault: str) -> None:
        super().__init__()
        self.inner, self.fault = inner, fault
        self.name, self.dim, self.depth, self.patch_size = None, inner.dim, inner.depth, inner.patch_size
        self.preprocessing, self.fingerprint = inner.preprocessing, inner.fingerprint
        self.register_buffer("steps", torch.zeros(()))
        if fault == "learns":
            next(self.inner.parameters()).requires_grad_(True)

    feature_dim = property(lambda self: self.inner.feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * (1.001 if self.fault == "differs" else 1)

    def embed(self, images: Tensor, num_prompts: int) -> Any:
        if self.fault == "counts":
            self.steps += 1
        return self.inner.embed(images, num_prompts)

    def block(self, layer: int, tokens: Tensor, context: Any) -> Tensor:
        noise = torch.rand(()) if self.fault == "random" else 1
        return self.inner.block(layer, tokens, context) * noise

    def pool(self, tokens: Tensor) -> Tensor:
        return self.inner.pool(tokens)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("learns", "gradients"),
        ("counts", "backbone_unchanged"),
        ("differs", "zero_prompt_parity"),
        ("random", "checkpointing"),
    ],
)
def test_the_contract_notices_a_faulty_backbone(fault: str, check: str) -> None:
    build = partial(Trainable, BACKBONES["vit"]())
    CHECKS[check](Subject(Sound, build(""), num_prompts=2))
    with pytest.raises(AssertionError):
        CHECKS[check](Subject(Sound, build(fault), num_prompts=2))

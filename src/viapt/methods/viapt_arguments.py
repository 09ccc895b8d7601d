"""Which arguments of ViaPT go together: those that make no sense, and those that change nothing given the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from viapt.errors import check_rules
from viapt.reduction import REDUCTIONS

if TYPE_CHECKING:
    from viapt.methods.viapt import ViaPT

GENERATOR = "generator_width", "generator_kernels", "generator_depthwise", "per_prompt", "spatial", "generator_lr"
INSTANCE = *GENERATOR, "initial_std", "kl_weight", "instance_noise", "instance_every", "instance_warmup"
BASIS = "reduction", "shared_basis", "center_basis", "basis_gradient", "basis_seed", "calibration_steps"
GATES = "explained", "max_kept_dim", "image_gate"
CARRY = "carry_scale", "calibrate_carry", "learn_carry_scale", "carried", "carry_norm", "detach_carried"


def check(method: ViaPT) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigError: naming each argument, its value and its range.
    """
    p, instance, m, d = method.num_prompts, method.num_instance_prompts, method.kept_dim, method.dim
    kernels, rows, most = method.generator_kernels, method.fresh_rows, method.max_kept_dim
    adaptive, reductions = isinstance(m, str), ", ".join(REDUCTIONS)
    # What is bounded by an argument that is itself impossible is no problem of its own.
    least_rows = max(1, p - instance) if instance >= 0 else 1
    rules = [
        ("num_prompts", p >= 1, "at least 1"),
        ("num_instance_prompts", instance >= 0 and (p < 1 or instance <= p), f"0 to num_prompts = {p}"),
        ("kept_dim", isinstance(m, str) or 0 <= m <= d, f"0 to the embedding dimension {d}, or adaptive"),
        ("explained", 0 < method.explained <= 1, "above 0, at most 1"),
        ("max_kept_dim", most is None or 1 <= most < d, f"1 to {d - 1}"),
        (
            "fresh_rows",
            p < 1 or least_rows <= rows <= p,
            f"num_prompts - num_instance_prompts, but 1 at least, to {p}",
        ),
        ("reduction", method.reduction in REDUCTIONS, f"one of {reductions}"),
        ("reduction", not adaptive or method.reduction == "running", "running, with kept_dim = adaptive"),
        (
            "basis_gradient",
            not method.basis_gradient or not (adaptive or method.shared_basis),
            "False with kept_dim = adaptive, whose gates follow single axes, and with shared_basis, of no one block",
        ),
        ("calibration_steps", method.calibration_steps >= 1, "at least 1"),
        ("carry_scale", math.isfinite(method.carry_scale), "a finite number"),
        ("generator_width", method.generator_width >= 1, "at least 1"),
        ("generator_kernels", len(kernels) == 2 and all(k % 2 == 1 for k in kernels), "two odd numbers"),
        ("initial_std", method.initial_std > 0, "above 0"),
        ("kl_weight", method.kl_weight >= 0, "0 or above"),
        (
            "instance_every",
            len(method.stages) == 1 or not (method.instance_every and instance),
            "False, where blocks differ in width",
        ),
        ("instance_warmup", method.instance_warmup >= 0, "0 or above"),
        (
            "initial_prompts",
            method.initial_prompts == "uniform" or (method.reduction != "instance" and len(method.stages) == 1),
            "uniform with reduction = instance, whose subspaces are each image's own, and for blocks of several widths",
        ),
        ("generator_lr", 0 < method.generator_lr < math.inf, "a finite number above 0"),
    ]
    check_rules(vars(method), rules)


def without_effect(method: ViaPT) -> dict[str, str]:
    """The arguments that change nothing, given the others: name -> reason."""
    idle: dict[str, str] = {}
    m = method.kept_dim
    adaptive = isinstance(m, str)
    estimated = isinstance(m, str) or (method.reduction == "running" and m < method.dim)
    if not estimated:
        idle |= dict.fromkeys(("center_basis", "basis_gradient"), "no subspace is estimated")
    elif method.initial_prompts == "tokens":
        idle["basis_gradient"] = "with initial_prompts = tokens subspaces are estimated before anything is learned"
    elif method.wide and method.detach_carried:
        idle["basis_gradient"] = "with detach_carried no gradient reaches the prompts that the subspaces are taken from"
    if not estimated and not method.calibrate_carry and method.carried == "all":
        idle["calibration_steps"] = "nothing is estimated"
    if not adaptive:
        idle |= dict.fromkeys(GATES, "kept_dim is not adaptive")
    if method.reduction not in ("random", "select"):
        idle["basis_seed"] = f"nothing is drawn for reduction = {method.reduction}"
    if method.reduction in ("batch", "instance"):
        idle["shared_basis"] = f"reduction = {method.reduction} stores no subspace"
    if m == method.dim and not method.wide:
        idle["fresh_rows"] = f"with kept_dim = {m} there are no fresh parameters"
    if method.carry_scale == 0 and not method.learn_carry_scale:
        names = "calibrate_carry", "carried", "carry_norm", "detach_carried"
        if method.wide and method.fresh_dim == "full":  # and nothing has to make room
            names = (*names, *BASIS, *GATES, "kept_dim")
        idle |= dict.fromkeys(names, "with carry_scale = 0 nothing is carried")
    if method.spatial:
        idle["per_prompt"] = "with spatial each instance prompt has a (mean, std) of its own"
    if not method.instance_noise:
        idle |= dict.fromkeys(("initial_std", "kl_weight"), "with instance_noise = False there is no std")
    if method.num_instance_prompts == 0:
        idle |= dict.fromkeys(INSTANCE, "there are no instance prompts")
    if m == 0:
        names = (*BASIS, *CARRY, "num_instance_prompts", "fresh_dim", "fresh_rows")
        idle |= dict.fromkeys(names, "with kept_dim = 0 nothing is kept")
    return idle

"""Visual Instance-aware Prompt Tuning (arXiv 2507.07796): the paper in one file, top-down.

    symbol    code                    meaning
    d         dim                     embedding dimension
    N         depth                   transformer blocks
    p         num_prompts             prompt tokens in the sequence
    lambda    num_instance_prompts    of these, sampled from the image
    m         kept_dim                dimensions kept from what left the block before
    E_0       patches                 embedded image, (batch, n, d), on a grid (h, w)
    mu, sigma mean, std               parameters of the instance distribution
    Z_i       prompts                 prompts that left block i, (batch, p, d)
    W_i       fresh[i]                learnable parameters that enter before block i, (p, d - m)

    P_ins,k = mu(E_0) + sigma(E_0) * eps_k, eps_k ~ N(0, I)     k = 1..lambda       (generate, sample)
    Z_0     = [P_ins, P_data]                                                       (fuse)
    enters block i = s_i * PCA_m(Z_{i-1}) + W_i laid into the other d - m dimensions      (compress, pad)

m = 0 is VPT-Deep, m = d (with s = 1) VPT-Shallow. What the paper leaves open, and how we chose, is in docs/method.md.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.distributed import whole
from viapt.errors import ConfigError
from viapt.methods.base import PromptMethod, init_bound, prompt_parameter, rows_of
from viapt.reduction import REDUCTIONS

ReductionName = Literal["running", "batch", "instance", "linear", "random", "select"]


class ViaPT(PromptMethod):
    """Instance-aware prompts, and a kept subspace between blocks.

    Args:
        num_prompts: p >= 1.
        num_instance_prompts: lambda, 0 <= lambda <= p.
        kept_dim: m, 0 <= m <= d; None: d / 12.
        reduction: how the m dimensions are found; see `viapt.reduction`.
        shared_basis: one kept subspace for all blocks instead of one each (a smaller adapter).
        center_basis: choose the subspace by what differs between images, not by all that the prompts hold (`running`).
        basis_seed: of the fixed subspace (`random`, `select`).
        calibration_steps: training steps that estimate subspace (`running`) and scales (`calibrate_carry`).
        carry_scale: s, the factor on what is carried into blocks 2..N.
        calibrate_carry: measure s in units that make what differs between images as large as a prompt starts; see
            `CarryScale`. False with `carry_scale` 1 is the paper.
        learn_carry_scale: learn s for each block, starting from `carry_scale`.
        generator_width: c, channels of the generator.
        generator_kernels: sizes of its two convolutions, odd.
        generator_depthwise: second convolution per channel instead of full.
        per_prompt: a (mean, std) for each instance prompt instead of one for all.
        initial_std: std of the instance distribution at the start, > 0.
        kl_weight: weight of KL(N(mean, std^2) || N(0, I)), averaged over the dimensions; the paper has none.
    """

    name = "viapt"

    def __init__(
        self,
        dim: int,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        num_instance_prompts: int = 7,
        kept_dim: int | None = None,
        reduction: ReductionName = "running",
        shared_basis: bool = False,
        center_basis: bool = True,
        basis_seed: int = 0,
        calibration_steps: int = 8,
        carry_scale: float = 0.1,
        calibrate_carry: bool = True,
        learn_carry_scale: bool = False,
        generator_width: int = 2,
        generator_kernels: tuple[int, int] = (1, 3),
        generator_depthwise: bool = False,
        per_prompt: bool = False,
        initial_std: float = 0.01,
        kl_weight: float = 0.0,
    ) -> None:
        super().__init__(dim, depth, patch_size)
        m = dim // 12 if kept_dim is None else kept_dim
        self.num_prompts, self.num_instance_prompts, self.kept_dim = num_prompts, num_instance_prompts, m
        self.reduction, self.shared_basis, self.center_basis = reduction, shared_basis, center_basis
        self.basis_seed, self.calibration_steps = basis_seed, calibration_steps
        self.carry_scale, self.calibrate_carry, self.learn_carry_scale = carry_scale, calibrate_carry, learn_carry_scale
        self.generator_width, self.generator_kernels = generator_width, generator_kernels
        self.generator_depthwise, self.per_prompt, self.initial_std = generator_depthwise, per_prompt, initial_std
        self.kl_weight = kl_weight
        self.check()

        bound = init_bound(dim, patch_size)
        self.kept = REDUCTIONS[reduction](
            dim, m, depth, shared=shared_basis, seed=basis_seed, steps=calibration_steps, center=center_basis
        )
        self.carries = m > 0
        self.batch_dependent = self.kept.batch_dependent and m > 0
        self.exact_gradient = self.kept.exact_gradient or m == 0
        if m < dim:
            self.fresh = prompt_parameter(depth, num_prompts, dim - m, bound=bound)
        else:
            self.register_buffer("fresh", torch.empty(depth, num_prompts, 0), persistent=False)
        if m == 0:  # nothing of Z_0 would be kept, so nothing is made
            self.num_instance_prompts = 0
        elif num_instance_prompts < num_prompts:
            self.dataset_prompts = prompt_parameter(num_prompts - num_instance_prompts, dim, bound=bound)
        if self.num_instance_prompts:
            self.generator = InstanceGenerator(
                dim,
                num_prompts=num_instance_prompts if per_prompt else 1,
                width=generator_width,
                kernels=generator_kernels,
                depthwise=generator_depthwise,
                bound=bound,
                initial_std=initial_std,
            )
        self.scale = CarryScale(
            depth,
            carry_scale,
            learn=learn_carry_scale and m > 0,
            unit=bound / math.sqrt(3) if calibrate_carry and m > 0 else None,
            steps=calibration_steps,
        )

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.kept(0, self.fuse(patches, grid, noise), self.fresh[0])

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return self.kept(layer, self.scale(layer, prompts), self.fresh[layer])

    def fuse(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        """Z_0: instance prompts, then dataset-level prompts."""
        rows = rows_of(patches, noise)
        if self.kept_dim == 0:
            return patches.new_zeros(rows, self.num_prompts, self.dim)
        kinds = []
        if self.num_instance_prompts:
            kinds.append(self.sample(patches, grid, noise))
        if self.num_instance_prompts < self.num_prompts:
            kinds.append(self.dataset_prompts.expand(rows, -1, -1))
        return torch.cat(kinds, dim=1)

    def sample(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows lambda_ dim"]:
        """P_ins = mean + std * eps; without noise the mean."""
        mean, std = self.generator(patches, grid)
        if noise is None:
            return mean.expand(-1, self.num_instance_prompts, -1)
        draws = noise.shape[0] // patches.shape[0]
        return mean.repeat(draws, 1, 1) + std.repeat(draws, 1, 1) * noise

    def penalty(self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]) -> Float[Tensor, ""] | None:
        if not self.kl_weight or not self.num_instance_prompts:
            return None
        mean, std = self.generator(patches, grid)
        return self.kl_weight * (mean.square() + std.square() - 1 - 2 * std.log()).mean() / 2

    def without_effect(self) -> dict[str, str]:
        idle: dict[str, str] = {}
        estimated = self.reduction == "running" and self.kept_dim < self.dim
        if not estimated:
            idle["center_basis"] = "no subspace is estimated"
        if not estimated and not self.calibrate_carry:
            idle["calibration_steps"] = "nothing is estimated"
        if self.reduction not in ("random", "select"):
            idle["basis_seed"] = f"nothing is drawn for reduction = {self.reduction}"
        if self.reduction in ("batch", "instance"):
            idle["shared_basis"] = f"reduction = {self.reduction} stores no subspace"
        if self.num_instance_prompts == 0:
            generator = "generator_width", "generator_kernels", "generator_depthwise"
            names = (*generator, "per_prompt", "initial_std", "kl_weight")
            idle |= dict.fromkeys(names, "there are no instance prompts")
        if self.kept_dim == 0:
            basis = "reduction", "shared_basis", "center_basis", "basis_seed", "calibration_steps"
            carry = "carry_scale", "calibrate_carry", "learn_carry_scale", "num_instance_prompts"
            idle |= dict.fromkeys((*basis, *carry), "with kept_dim = 0 nothing is kept")
        return idle

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: naming the argument, its value and its range.
        """
        p, m, d = self.num_prompts, self.kept_dim, self.dim
        kernels = self.generator_kernels
        rules: list[tuple[str, bool, str]] = [
            ("num_prompts", p >= 1, "at least 1"),
            ("num_instance_prompts", 0 <= self.num_instance_prompts <= p, f"0 to num_prompts = {p}"),
            ("kept_dim", 0 <= m <= d, f"0 to the embedding dimension {d}"),
            ("reduction", self.reduction in REDUCTIONS, f"one of {', '.join(REDUCTIONS)}"),
            ("calibration_steps", self.calibration_steps >= 1, "at least 1"),
            ("carry_scale", math.isfinite(self.carry_scale), "a finite number"),
            ("generator_width", self.generator_width >= 1, "at least 1"),
            ("generator_kernels", len(kernels) == 2 and all(k % 2 == 1 for k in kernels), "two odd numbers"),
            ("initial_std", self.initial_std > 0, "above 0"),
            ("kl_weight", self.kl_weight >= 0, "0 or above"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is not possible", expected=expected)


class CarryScale(nn.Module):
    """s_i, the factor on the prompts carried into block i = 2..N.

    Tokens that leave a block are larger than a prompt starts, more so with depth, and a block, which begins with
    LayerNorm, sees directions only: carried as they are they drown the fresh parameters. So s_i can be measured:

        s_i = scale * unit / rms(Z - mean of Z over the images of the batch)

    averaged over the first training steps, then frozen. Batches of one image deviate from nothing and do not count.

    Args:
        depth: N.
        scale: a number, in `unit`s or as it is.
        learn: learn a factor for each block that starts from `scale`.
        unit: root mean square of a prompt as it starts; None: do not measure.
        steps: training steps that measure.
    """

    gain: Tensor
    seen: Tensor

    def __init__(self, depth: int, scale: float, *, learn: bool, unit: float | None, steps: int) -> None:
        super().__init__()
        self.unit, self.steps = unit, steps
        scales = torch.full((depth - 1,), float(scale))
        if learn:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        if unit is not None:
            self.register_buffer("gain", torch.ones(depth - 1))
            self.register_buffer("seen", torch.zeros(depth - 1, dtype=torch.long))
            self.register_load_state_dict_post_hook(CarryScale.loaded)
        self.measuring = unit is not None

    def loaded(self, _: object) -> None:
        """Go on measuring only where training had not finished it."""
        self.measuring = bool((self.seen < self.steps).any())

    def forward(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        """s_i times the prompts; `layer` = i - 1 >= 1."""
        scale = self.scales[layer - 1]
        if self.unit is not None:
            if self.training and self.measuring:
                self.measure(layer - 1, whole(prompts.detach()), self.unit)
            scale = scale * self.gain[layer - 1]
        return scale * prompts

    @torch.no_grad()
    def measure(self, index: int, prompts: Float[Tensor, "rows p dim"], unit: float) -> None:
        """Average one batch in, and stop after the last block's last step."""
        if prompts.shape[0] == 1:
            return
        if self.seen[index] < self.steps:
            deviation = (prompts - prompts.mean(0)).square().mean().sqrt().clamp_min(torch.finfo(prompts.dtype).eps)
            gain, seen = self.gain.clone(), int(self.seen[index])
            gain[index] = (seen * gain[index] + unit / deviation) / (seen + 1)
            self.gain = gain
            self.seen[index] += 1
        self.measuring = bool((self.seen < self.steps).any())


class InstanceGenerator(nn.Module):
    """E_0 -> (mean, std) of the instance prompts: two convolutions on the token grid, averaged, projected.

    The tokens are normalised first (no parameters): E_0 differs in scale by orders of magnitude between backbones.

    Args:
        dim: d.
        num_prompts: how many (mean, std) pairs.
        width: c, channels.
        kernels: sizes of the two convolutions.
        depthwise: second convolution per channel.
        bound: the projection starts in [-bound, bound], as other prompts do.
        initial_std: the std about which it starts.
    """

    log_std_range = (-12.0, 2.0)

    def __init__(
        self,
        dim: int,
        *,
        num_prompts: int,
        width: int,
        kernels: tuple[int, int],
        depthwise: bool,
        bound: float,
        initial_std: float,
    ) -> None:
        super().__init__()
        self.dim, self.num_prompts = dim, num_prompts
        first, second = kernels
        self.encoder = nn.Sequential(
            nn.Conv2d(dim, width, first, padding=first // 2),
            nn.GELU(),
            nn.Conv2d(width, width, second, padding=second // 2, groups=width if depthwise else 1),
            nn.GELU(),
        )
        # No bias: a shift that all images share is what dataset-level prompts and W_1 are for.
        self.project = nn.Linear(width, 2 * num_prompts * dim, bias=False)
        nn.init.uniform_(self.project.weight, -bound, bound)
        self.initial_log_std = math.log(initial_std)

    def forward(
        self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch k dim"], Float[Tensor, "batch k dim"]]:
        """Mean and std, k = `num_prompts`."""
        x = F.layer_norm(patches, (self.dim,)).mT.unflatten(-1, grid)
        x = self.project(self.encoder(x).mean((-2, -1)))
        mean, log_std = x.unflatten(-1, (2, self.num_prompts, self.dim)).unbind(1)
        return mean, (self.initial_log_std + log_std).clamp(*self.log_std_range).exp()

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

from viapt.errors import ConfigError
from viapt.methods.base import PromptMethod, init_bound, prompt_parameter
from viapt.reduction import REDUCTIONS

ReductionName = Literal["running", "batch", "instance", "linear", "random", "select"]


class ViaPT(PromptMethod):
    """Instance-aware prompts, and a kept subspace between blocks.

    Args:
        num_prompts: p >= 1.
        num_instance_prompts: lambda, 0 <= lambda <= p.
        kept_dim: m, 0 <= m <= d; None: d / 6, which is the paper's best for ViT-B (128).
        reduction: how the m dimensions are found; see `viapt.reduction`.
        shared_basis: one kept subspace for all blocks instead of one each (a smaller adapter).
        basis_steps: training steps that estimate the subspace (`running`).
        basis_seed: of the fixed subspace (`random`, `select`).
        carry_scale: s, the factor on what is carried into blocks 2..N; 1 is the paper.
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
        num_instance_prompts: int = 5,
        kept_dim: int | None = None,
        reduction: ReductionName = "running",
        shared_basis: bool = False,
        basis_steps: int = 64,
        basis_seed: int = 0,
        carry_scale: float = 0.1,
        learn_carry_scale: bool = False,
        generator_width: int = 4,
        generator_kernels: tuple[int, int] = (1, 3),
        generator_depthwise: bool = False,
        per_prompt: bool = False,
        initial_std: float = 0.01,
        kl_weight: float = 0.0,
    ) -> None:
        super().__init__(dim, depth, patch_size)
        m = dim // 6 if kept_dim is None else kept_dim
        self.num_prompts, self.num_instance_prompts, self.kept_dim = num_prompts, num_instance_prompts, m
        self.reduction, self.shared_basis, self.basis_steps, self.basis_seed = (
            reduction,
            shared_basis,
            basis_steps,
            basis_seed,
        )
        self.carry_scale, self.learn_carry_scale = carry_scale, learn_carry_scale
        self.generator_width, self.generator_kernels = generator_width, generator_kernels
        self.generator_depthwise, self.per_prompt, self.initial_std = generator_depthwise, per_prompt, initial_std
        self.kl_weight = kl_weight
        self.check()

        bound = init_bound(dim, patch_size)
        self.kept = REDUCTIONS[reduction](dim, m, depth, shared=shared_basis, seed=basis_seed, steps=basis_steps)
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
        scales = torch.full((depth - 1,), float(carry_scale))
        if learn_carry_scale and m > 0:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "batch lambda_ dim"] | None,
    ) -> Float[Tensor, "batch p dim"]:
        return self.kept(0, self.fuse(patches, grid, noise), self.fresh[0])

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        return self.kept(layer, self.scales[layer - 1] * prompts, self.fresh[layer])

    def fuse(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "batch lambda_ dim"] | None,
    ) -> Float[Tensor, "batch p dim"]:
        """Z_0: instance prompts, then dataset-level prompts."""
        batch = patches.shape[0]
        if self.kept_dim == 0:
            return patches.new_zeros(batch, self.num_prompts, self.dim)
        kinds = []
        if self.num_instance_prompts:
            kinds.append(self.sample(patches, grid, noise))
        if self.num_instance_prompts < self.num_prompts:
            kinds.append(self.dataset_prompts.expand(batch, -1, -1))
        return torch.cat(kinds, dim=1)

    def sample(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "batch lambda_ dim"] | None,
    ) -> Float[Tensor, "batch lambda_ dim"]:
        """P_ins = mean + std * eps; without noise the mean."""
        mean, std = self.generator(patches, grid)
        if noise is None:
            return mean.expand(-1, self.num_instance_prompts, -1)
        return mean + std * noise

    def penalty(self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]) -> Float[Tensor, ""] | None:
        if not self.kl_weight or not self.num_instance_prompts:
            return None
        mean, std = self.generator(patches, grid)
        return self.kl_weight * (mean.square() + std.square() - 1 - 2 * std.log()).mean() / 2

    def without_effect(self) -> dict[str, str]:
        idle: dict[str, str] = {}
        if self.reduction != "running" or self.kept_dim == self.dim:
            idle["basis_steps"] = "no subspace is estimated"
        if self.reduction not in ("random", "select"):
            idle["basis_seed"] = f"nothing is drawn for reduction = {self.reduction}"
        if self.reduction in ("batch", "instance"):
            idle["shared_basis"] = f"reduction = {self.reduction} stores no subspace"
        if self.num_instance_prompts == 0:
            generator = "generator_width", "generator_kernels", "generator_depthwise"
            names = (*generator, "per_prompt", "initial_std", "kl_weight")
            idle |= dict.fromkeys(names, "there are no instance prompts")
        if self.kept_dim == 0:
            names = "reduction", "shared_basis", "basis_steps", "basis_seed", "carry_scale", "learn_carry_scale"
            idle |= dict.fromkeys((*names, "num_instance_prompts"), "with kept_dim = 0 nothing is kept")
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
            ("basis_steps", self.basis_steps >= 1, "at least 1"),
            ("carry_scale", math.isfinite(self.carry_scale), "a finite number"),
            ("generator_width", self.generator_width >= 1, "at least 1"),
            ("generator_kernels", len(kernels) == 2 and all(k % 2 == 1 for k in kernels), "two odd numbers"),
            ("initial_std", self.initial_std > 0, "above 0"),
            ("kl_weight", self.kl_weight >= 0, "0 or above"),
        ]
        for name, holds, expected in rules:
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is not possible", expected=expected)


class InstanceGenerator(nn.Module):
    """E_0 -> (mean, std) of the instance prompts: two convolutions on the token grid, averaged, projected.

    The tokens are normalised first (no parameters): E_0 differs in scale by orders of magnitude between backbones.

    Args:
        dim: d.
        num_prompts: how many (mean, std) pairs.
        width: c, channels.
        kernels: sizes of the two convolutions.
        depthwise: second convolution per channel.
        bound: the mean starts in [-bound, bound], as other prompts do.
        initial_std: the std at the start.
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
        self.project = nn.Linear(width, 2 * num_prompts * dim)
        with torch.no_grad():
            mean, log_std = self.project.bias.view(2, -1)
            mean.uniform_(-bound, bound)
            log_std.fill_(math.log(initial_std))
            self.project.weight.mul_(bound)  # instances start near one another, as close as prompts are small

    def forward(
        self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch k dim"], Float[Tensor, "batch k dim"]]:
        """Mean and std, k = `num_prompts`."""
        x = F.layer_norm(patches, (self.dim,)).mT.unflatten(-1, grid)
        x = self.project(self.encoder(x).mean((-2, -1)))
        mean, log_std = x.unflatten(-1, (2, self.num_prompts, self.dim)).unbind(1)
        return mean, log_std.clamp(*self.log_std_range).exp()

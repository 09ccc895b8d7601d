"""What is carried from block to block: the prompts that left the block before, less what they share, at a size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.distributed import whole


class CarryScale(nn.Module):
    """What is carried into block i = 2..N: s_i times the prompts Z, or what is left of them.

        s_i * norm(Z - mean over images of Z)

    Tokens that leave a block are larger than a prompt starts, more so with depth, and a block, which begins with
    LayerNorm, sees directions only: carried as they are they drown the fresh parameters. So s_i can be measured:

        s_i = scale * unit / rms(Z - mean of Z over the images of the batch)

    averaged over the first training steps, then frozen. Batches of one image deviate from nothing and do not count.

    Args:
        depth: the number of the last block, N or the end of a stage.
        scale: a number, in `unit`s or as it is.
        learn: learn a factor for each block that starts from `scale`.
        measure: measure s_i; of normalised prompts, if they are.
        unit: root mean square of a prompt as it starts.
        steps: training steps that measure.
        mean_of: (p, d): subtract the mean of each prompt slot, measured in the same steps; None: subtract nothing.
        normalise: bring each token to root mean square `unit` first (no parameters).
        first: the first block that it serves (0-based).
    """

    gain: Tensor
    mean: Tensor
    seen: Tensor

    def __init__(
        self,
        depth: int,
        scale: float,
        *,
        learn: bool,
        measure: bool,
        unit: float,
        steps: int,
        mean_of: tuple[int, int] | None = None,
        normalise: bool = False,
        first: int = 1,
    ) -> None:
        super().__init__()
        self.unit, self.steps, self.calibrated, self.normalise = unit, steps, measure, normalise
        self.varying, self.first, blocks = mean_of is not None, first, depth - first
        scales = torch.full((blocks,), float(scale))
        if learn:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        self.measuring = measure or self.varying
        if measure:
            self.register_buffer("gain", torch.ones(blocks))
        if mean_of is not None:
            self.register_buffer("mean", torch.zeros(blocks, *mean_of))
        if self.measuring:
            self.register_buffer("seen", torch.zeros(blocks, dtype=torch.long))
            self.register_load_state_dict_post_hook(CarryScale.loaded)

    def loaded(self, _: object) -> None:
        """Go on measuring only where training had not finished it."""
        self.measuring = bool((self.seen < self.steps).any())

    def forward(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        """s_i times the prompts; `layer` = i - 1 >= `first`."""
        index = layer - self.first
        if self.training and self.measuring:
            self.measure(index, whole(prompts.detach()))
        prompts = self.remaining(index, prompts)
        scale = self.scales[index]
        if self.calibrated:
            scale = scale * self.gain[index]
        return scale * prompts

    def remaining(self, index: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        """What is left of the prompts before they are scaled."""
        if self.varying:
            prompts = prompts - self.mean[index]
        if self.normalise:  # a token of less than a thousandth of a prompt's size stays small
            power = prompts.square().mean(-1, keepdim=True) + (self.unit / 1000) ** 2
            prompts = prompts * (self.unit * power.rsqrt())
        return prompts

    @torch.no_grad()
    def measure(self, index: int, prompts: Float[Tensor, "rows p dim"]) -> None:
        """Average one batch in, and stop after the last block's last step."""
        if prompts.shape[0] == 1:
            return
        if self.seen[index] < self.steps:
            seen = int(self.seen[index])
            if self.varying:
                mean = self.mean.clone()
                mean[index] = (seen * mean[index] + prompts.mean(0)) / (seen + 1)
                self.mean = mean
            if self.calibrated:
                prompts = self.remaining(index, prompts)
                deviation = (prompts - prompts.mean(0)).square().mean().sqrt().clamp_min(torch.finfo(prompts.dtype).eps)
                gain = self.gain.clone()
                gain[index] = (seen * gain[index] + self.unit / deviation) / (seen + 1)
                self.gain = gain
            self.seen[index] += 1
        self.measuring = bool((self.seen < self.steps).any())

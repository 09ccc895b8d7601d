"""When further rounds would hardly change an image's label: a sequential rule (derived in docs/inference.md).

    R       rounds that would be averaged in all, k of them done
    m_r     margin in round r: the leading class's logit minus a rival's; normal about an unknown mean, variance v
    S_k     m_1 + ... + m_k; given S_R it is normal about (k / R) S_R with variance v k (R - k) / R, whatever the mean
    v       differs between images as variance * degrees / chi^2_degrees does (`RoundNoise`)

After k rounds the pooled estimate of v has degrees + k - 1 degrees of freedom, and S_k / sqrt(v k (R - k) / R) has a
Student tail under S_R = 0, the worst case of an answer that turns. An image is settled when these tails, summed over
all rivals, are at most alpha / 2^k: over all looks at most alpha.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy.special import polygamma, psi, stdtr
from torch import Tensor

from viapt.errors import ConfigError

SMALLEST, LARGEST = 1e-12, 1e12  # variance of a margin: nothing but rounding; nothing but nonsense


@dataclass(frozen=True)
class RoundNoise:
    """How far a margin varies from round to round: each image's variance is variance * degrees / chi^2_degrees.

    Attributes:
        variance: typical variance of the margin (a difference of logits) between the first and the second class, > 0.
        degrees: degrees of freedom, > 0: the more, the more alike are the images' variances.
        images, rounds: that it was estimated from, at least 2 each.

    Raises:
        ConfigError: a value out of range.
    """

    variance: float
    degrees: float
    images: int
    rounds: int

    def __post_init__(self) -> None:
        for name, least in (("variance", 0), ("degrees", 0), ("images", 1), ("rounds", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < LARGEST:
                raise ConfigError(f"The noise of rounds has {name} = {value!r}", expected=f"a number above {least}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def settled(
    logits: Float[Tensor, "k batch classes"], noise: RoundNoise, rounds: int, alpha: float
) -> Bool[Tensor, " batch"]:
    """For which images the label after k rounds stands, but for a probability of at most alpha over all looks.

    Args:
        logits: of the first k >= 1 rounds.
        noise: of the model that they come from.
        rounds: R >= k.
        alpha: probability that an image's label differs from the one that R rounds would give, in (0, 1).
    """
    k, degrees = logits.shape[0], noise.degrees + logits.shape[0] - 1
    if k == rounds:
        return torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    z = logits.double().cpu()
    leader = z.softmax(2).mean(0).argmax(1)[:, None]
    margins = z.gather(2, leader.expand(k, -1, 1)) - z
    deviation = (margins - margins.mean(0)).square().sum(0)
    variance = (noise.degrees * noise.variance + deviation) / degrees
    t = margins.sum(0) / (variance * k * (rounds - k) / rounds).sqrt()
    tails = torch.from_numpy(stdtr(degrees, -t.numpy())).scatter(1, leader, 0.0)
    return (tails.sum(1) <= alpha / 2**k).to(logits.device)


def estimate_noise(margins: Float64[np.ndarray, "rounds images"]) -> RoundNoise:
    """Typical variance and its degrees of freedom, from a few rounds of many images.

    By the moments of the log variances (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3). The degrees of freedom are at
    most the number of images: so many cannot be told from infinitely many.

    The variance is kept within bounds that no real model comes near.

    Raises:
        ConfigError: fewer than two rounds or images, or margins that are not finite.
    """
    rounds, images = margins.shape
    if rounds < 2 or images < 2 or not np.isfinite(margins).all():
        raise ConfigError(f"{rounds} rounds of {images} images", expected="finite margins, at least two of each")
    half = (rounds - 1) / 2
    logs = np.log(np.clip(margins.var(0, ddof=1), SMALLEST, LARGEST)) - psi(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half))
    degrees = min(float(images), 2 * inverse_trigamma(excess)) if excess > 0 else float(images)
    variance = float(np.exp(logs.mean() + psi(degrees / 2) - np.log(degrees / 2)))
    return RoundNoise(min(max(variance, SMALLEST), LARGEST / 2), degrees, images, rounds)


def inverse_trigamma(value: float) -> float:
    """x > 0 with trigamma(x) = value > 0, by Newton's method on 1 / trigamma, which is convex: it converges."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x

"""The rule that stops rounds, against plain simulation: how often the label differs from the one of all rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from viapt.errors import ConfigError
from viapt.rounds import RoundNoise, estimate_noise, inverse_trigamma, settled

NOISE = RoundNoise(variance=0.25, degrees=6.0, images=100, rounds=5)


def population(rng: np.random.Generator, means: np.ndarray, rounds: int, noise: RoundNoise) -> np.ndarray:
    """Logits (rounds, images, classes) about `means` (images, classes); differences vary as `noise` says."""
    variance = noise.variance * noise.degrees / rng.chisquare(noise.degrees, len(means))
    deviations = rng.standard_normal((rounds, *means.shape)) * np.sqrt(variance / 2)[:, None]
    return means + deviations


def stopped(logits: np.ndarray, noise: RoundNoise, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Rounds used for each image, and whether its label is another than that of all rounds: in plain numpy."""
    rounds = len(logits)
    probabilities = special.softmax(logits, axis=2)
    used = np.full(logits.shape[1], rounds)
    for k in range(rounds - 1, 0, -1):
        used[settled(torch.from_numpy(logits[:k]), noise, rounds, alpha).numpy()] = k
    early = np.array([probabilities[: used[i], i].mean(0).argmax() for i in range(len(used))])
    return used, early != probabilities.mean(0).argmax(1)


@pytest.mark.parametrize("alpha", [0.01, 0.2])
@pytest.mark.parametrize("variance", [0.01, 1.0, 25.0])
def test_the_stated_error_holds_whatever_the_mean(alpha: float, variance: float) -> None:
    noise = RoundNoise(variance, 5.0, 100, 5)
    rng, images = np.random.default_rng(0), 40_000
    for mean in (0.0, 0.5, 1.0, 2.0, 3.0):
        means = np.sqrt(variance) * np.stack([np.full(images, mean), np.zeros(images)], 1)
        _, wrong = stopped(population(rng, means, 5, noise), noise, alpha)
        assert wrong.mean() <= alpha + 3 * np.sqrt(alpha / images), mean
        if mean == 0:  # the worst case, where an idle rule would never be wrong
            assert wrong.mean() > alpha / 10


def test_the_stated_error_holds_among_many_classes() -> None:
    rng, images, alpha = np.random.default_rng(1), 20_000, 0.05
    for scale in (0.0, 0.5, 2.0):
        means = scale * rng.standard_normal((images, 10))
        used, wrong = stopped(population(rng, means, 5, NOISE), NOISE, alpha)
        assert wrong.mean() <= alpha + 3 * np.sqrt(alpha / images), scale
    assert used.mean() < 3


def test_clear_images_stop_after_one_round() -> None:
    rng = np.random.default_rng(2)
    means = np.stack([np.full(2000, 10.0), np.zeros(2000)], 1)
    used, _ = stopped(population(rng, means, 5, NOISE), NOISE, 0.01)
    assert (used == 1).mean() > 0.99


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_threshold_is_a_quantile_of_student(k: int) -> None:
    """Equal margins in all rounds of two classes: nothing deviates, and the smallest margin has a closed form."""
    rounds, alpha, degrees = 5, 0.04, NOISE.degrees + k - 1
    variance = NOISE.degrees * NOISE.variance / degrees
    needed = stats.t(degrees).isf(alpha / 2**k) * np.sqrt(variance * (rounds - k) / (rounds * k))
    for factor, expected in ((0.999, False), (1.001, True)):
        logits = torch.zeros(k, 1, 2, dtype=torch.float64)
        logits[:, :, 1] = factor * needed
        assert bool(settled(logits, NOISE, rounds, alpha)) is expected


def test_rounds_that_contradict_each_other_need_more() -> None:
    agree = torch.tensor([[[1.5, 0.0]], [[1.5, 0.0]]])
    differ = torch.tensor([[[4.5, 0.0]], [[-1.5, 0.0]]])
    assert bool(settled(agree, NOISE, 5, 0.05)) and not bool(settled(differ, NOISE, 5, 0.05))


def test_all_rounds_settle_everything() -> None:
    assert bool(settled(torch.zeros(5, 3, 4), NOISE, 5, 0.01).all())
    assert not bool(settled(torch.zeros(4, 3, 4), NOISE, 5, 0.01).any())


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 5), st.permutations(range(6)))
def test_an_image_is_judged_alone(seed: int, k: int, classes: int, order: list[int]) -> None:
    """Neither the others of the batch matter, nor a shift of its logits, nor the order of rounds and classes."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal((k, 6, classes)))
    answer = settled(logits, NOISE, 5, 0.1)
    assert torch.equal(settled(logits[:, order], NOISE, 5, 0.1), answer[order])
    assert torch.equal(settled(logits[:, :1], NOISE, 5, 0.1), answer[:1])
    changed = logits.flip(0)[:, :, torch.from_numpy(rng.permutation(classes))] + 0.5
    assert torch.equal(settled(changed, NOISE, 5, 0.1), answer)


@pytest.mark.parametrize(("variance", "degrees"), [(0.04, 3.0), (4.0, 12.0)])
def test_the_noise_is_estimated_from_its_own_population(variance: float, degrees: float) -> None:
    rng, images = np.random.default_rng(3), 20_000
    scales = np.sqrt(variance * degrees / rng.chisquare(degrees, images))
    found = estimate_noise(rng.normal(size=images) + scales * rng.standard_normal((5, images)))
    assert found.variance == pytest.approx(variance, rel=0.05)
    assert found.degrees == pytest.approx(degrees, rel=0.1)
    assert (found.images, found.rounds) == (images, 5)


def test_equal_variances_have_as_many_degrees_as_images() -> None:
    """Nothing tells them from infinitely many; the estimate is the pooled variance, but for sampling error."""
    margins = np.random.default_rng(4).normal(scale=0.3, size=(5, 400))
    pinned = margins / margins.std(0, ddof=1) * 0.3
    found = estimate_noise(pinned)
    assert found.degrees == 400
    assert 0.5 < found.variance / 0.09 < 1.5


def test_rounds_without_noise_settle_at_once() -> None:
    found = estimate_noise(np.ones((5, 10)))
    assert bool(settled(torch.tensor([[[0.01, 0.0]]]), found, 5, 0.01))


@given(st.floats(1e-4, 1e4))
def test_trigamma_is_inverted(value: float) -> None:
    assert special.polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("margins", [np.zeros((1, 5)), np.zeros((5, 1)), np.full((5, 5), np.nan)])
def test_too_little_to_estimate_from_is_refused(margins: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        estimate_noise(margins)


@pytest.mark.parametrize("change", [{"variance": 0.0}, {"degrees": -1.0}, {"images": 1}, {"variance": float("nan")}])
def test_impossible_noise_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        RoundNoise(**(NOISE.to_dict() | change))

"""Adaptive rounds against all rounds, done one by one; what they need to know, measured, saved and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import viapt.sampling
from artifact_cases import forge
from training_cases import quiet, tiny_data, tiny_images, tiny_model
from viapt.artifact import load
from viapt.errors import ArtifactError, ConfigError
from viapt.evaluation import evaluate
from viapt.inference import predict
from viapt.model import PromptedClassifier
from viapt.round_calibration import calibrate_rounds
from viapt.rounds import RoundNoise, settled

ROUNDS = 5
NOISE = RoundNoise(variance=0.06, degrees=8.0, images=50, rounds=5)


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    """Its images lie near the borders of its classes, so that noise turns labels."""
    model = tiny_model(carry_scale=1.0).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.bias.sub_(model(tiny_images(50)).mean(0))
    model.round_noise = NOISE
    return model


def one_by_one(model: PromptedClassifier, images: Tensor, rounds: int, seed: int = 0) -> Tensor:
    """Logits (rounds, images, classes): every image and round in a pass of its own."""
    with torch.no_grad():
        passes = [
            [model(x[None], noise=model.draw_noise(1, seed=seed, index=r))[0] for x in images] for r in range(rounds)
        ]
    return torch.stack([torch.stack(row) for row in passes])


@pytest.fixture(scope="module")
def logits(model: PromptedClassifier) -> Tensor:
    """Of twelve images, alone in every round."""
    return one_by_one(model, tiny_images(12), ROUNDS)


def by_hand(logits: Tensor, alpha: float) -> tuple[list[int], Tensor]:
    """Rounds of each image, judged alone, and its probabilities."""
    used = [
        next(k for k in range(1, ROUNDS + 1) if settled(logits[:k, i : i + 1], NOISE, ROUNDS, alpha))
        for i in range(logits.shape[1])
    ]
    return used, torch.stack([logits[:k, i].softmax(1).mean(0) for i, k in enumerate(used)])


@pytest.mark.parametrize("together", [1, 2, 8])
def test_batched_rounds_are_rounds(together: int, model: PromptedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viapt.sampling, "TOGETHER", together)
    images, rows = tiny_images(3), []
    classify = type(model).classify
    monkeypatch.setattr(type(model), "classify", lambda *a: rows.append(a[2].shape[0]) or classify(*a))
    result = predict(model, images, "multi", rounds=ROUNDS, seed=3)
    assert max(rows) <= 3 * together and sum(rows) == 3 * ROUNDS
    expected = one_by_one(model, images, ROUNDS, seed=3).softmax(2)
    torch.testing.assert_close(result.probabilities, expected.mean(0), atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(result.spread, expected.numpy().std(0), atol=1e-6)
    assert result.rounds is not None and result.rounds.tolist() == [ROUNDS] * 3


def test_rounds_share_the_embedding(model: PromptedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    embed = type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda *a: calls.append(1) or embed(*a))
    predict(model, tiny_images(4), "multi", batch_size=2)
    predict(model, tiny_images(4), "multi", batch_size=2, adaptive=True)
    assert len(calls) == 4


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), batch_size=st.integers(1, 13), alpha=st.sampled_from([0.05, 0.1]))
def test_each_image_gets_the_rounds_that_it_needs_in_whatever_batch(
    order: list[int], batch_size: int, alpha: float, model: PromptedClassifier, logits: Tensor
) -> None:
    images = tiny_images(12)
    used, probabilities = by_hand(logits, alpha)
    assert len(set(used)) > 2, "the images should differ in their rounds"
    result = predict(
        model, images[order], "multi", rounds=ROUNDS, batch_size=batch_size, adaptive=True, max_disagreement=alpha
    )
    assert result.rounds is not None and result.rounds.tolist() == [used[index] for index in order]
    torch.testing.assert_close(result.probabilities, probabilities[order], atol=1e-6, rtol=1e-5)
    assert result.labels == [model.classes[int(row.argmax())] for row in probabilities[order]]
    assert result.spread is None


def test_other_policies_take_one_pass(model: PromptedClassifier) -> None:
    for policy in ("mean", "fixed"):
        result = predict(model, tiny_images(3), policy)
        assert result.rounds is not None and result.rounds.tolist() == [1, 1, 1]


def test_without_instance_prompts_one_pass_says_all() -> None:
    result = predict(tiny_model("vpt-deep"), tiny_images(3), "multi", adaptive=True)
    assert result.rounds is not None and result.rounds.tolist() == [1, 1, 1]


def test_evaluation_counts_passes(model: PromptedClassifier) -> None:
    data = tiny_data(12)
    taken = predict(model, data.tensors[0], "multi", adaptive=True).rounds
    found = evaluate(model, data, policy="multi", adaptive=True)
    assert taken is not None and found.rounds == pytest.approx(float(taken.double().mean()))
    assert 1 < found.rounds < 5
    assert evaluate(model, data, policy="multi").rounds == 5 and evaluate(model, data).rounds == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "mean", "adaptive": True}, "adaptive has no effect on policy mean"),
        ({"policy": "multi", "adaptive": True, "rounds": 1}, "1 round"),
        ({"policy": "multi", "adaptive": True, "max_disagreement": 0.0}, "max_disagreement = 0.0"),
        ({"policy": "multi", "max_disagreement": 0.05}, "max_disagreement = 0.05 has no effect"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: dict[str, Any], message: str, model: PromptedClassifier
) -> None:
    with pytest.raises(ConfigError, match=message):
        predict(model, tiny_images(1), **arguments)
    with pytest.raises(ConfigError, match=message):
        evaluate(model, tiny_data(3), **arguments)


# What adaptive rounds need to know


def test_the_calibration_measures_the_noise_of_the_first_two_classes(model: PromptedClassifier) -> None:
    """With weights that make the logits linear in the noise, their variance is known."""
    model = tiny_model(carry_scale=1.0).eval()
    model.head.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    data = tiny_data(40)
    found = calibrate_rounds(model, data, seed=1, batch_size=40)
    assert found is model.round_noise and (found.images, found.rounds) == (40, 5)
    # The same by many draws: variance of the margin between the two classes that lead on average, image by image.
    logits = one_by_one(model, data.tensors[0], 60, seed=9).double()
    first, second = logits.softmax(2).mean(0).topk(2).indices.T
    margins = logits[:, torch.arange(40), first] - logits[:, torch.arange(40), second]
    typical = margins.var(0).log().mean().exp()
    assert found.variance == pytest.approx(float(typical), rel=0.5)


def test_the_calibration_leaves_no_other_trace(model: PromptedClassifier) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, noise = torch.get_rng_state(), model.round_noise
    for training in (True, False):
        model.train(training)
        assert calibrate_rounds(model, tiny_data(6)) == calibrate_rounds(model, tiny_data(6))
        assert model.training is training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.round_noise = noise


def test_a_training_calibrates_on_validation_images() -> None:
    model = tiny_model()
    quiet(model, tiny_data(), tiny_data(10, seed=1))
    assert model.round_noise is not None and model.round_noise.images == 10
    quiet(model, tiny_data(20))
    assert model.round_noise.images == 20
    quiet(model, tiny_data(2), tiny_data(1))
    assert model.round_noise.images == 2
    without = tiny_model("vpt-deep")
    quiet(without, tiny_data())
    assert without.round_noise is None


def test_an_adapter_remembers(tmp_path: Path, model: PromptedClassifier) -> None:
    model.save_pretrained(tmp_path)
    assert load(tmp_path, backbone=model.backbone).round_noise == NOISE


def test_an_older_adapter_says_what_to_do(tmp_path: Path, model: PromptedClassifier) -> None:
    model.save_pretrained(tmp_path)
    forge(tmp_path, lambda config: config.pop("round_noise"))
    older = load(tmp_path, backbone=model.backbone)
    predict(older, tiny_images(2), "multi")
    with pytest.raises(ConfigError, match="calibrate_rounds"):
        predict(older, tiny_images(2), "multi", adaptive=True)


@pytest.mark.parametrize(
    "noise", [{}, {"variance": 1.0}, NOISE.to_dict() | {"degrees": 0}, NOISE.to_dict() | {"variance": "x"}, 3, [1]]
)
def test_forged_noise_is_refused(noise: Any, tmp_path: Path, model: PromptedClassifier) -> None:
    model.save_pretrained(tmp_path)
    forge(tmp_path, lambda config: config.update(round_noise=noise))
    with pytest.raises(ArtifactError, match="round_noise"):
        load(tmp_path, backbone=model.backbone)


@pytest.mark.parametrize(
    ("method", "count", "message"), [("vpt-deep", 5, "samples no prompts"), ("viapt", 1, "at least two")]
)
def test_what_cannot_be_calibrated_is_refused(method: str, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate_rounds(tiny_model(method), tiny_data(count))

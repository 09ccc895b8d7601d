"""Metrics against scipy and torchmetrics, intervals against the truth that they should hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from training_cases import learned_bits, tiny_data, tiny_images, tiny_model
from viapt.errors import ConfigError, DataError
from viapt.evaluation import calibration, check_dataset, evaluate, measure, negative_log_likelihood, proportion
from viapt.inference import predict


def outcomes(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and labels that agree more often than by chance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits.softmax(1), labels


@given(total=st.integers(1, 500), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_proportions_have_wilson_intervals(total: int, share: float, confidence: float) -> None:
    hits = round(share * total)
    actual = proportion(hits, total, confidence)
    expected = binomtest(hits, total).proportion_ci(confidence, "wilson")
    assert actual.value == hits / total
    assert (actual.low, actual.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5, 6, 12])
def test_metrics_are_those_of_torchmetrics(classes: int) -> None:
    probabilities, labels = outcomes(300, classes)
    names = [f"name {index}" for index in range(classes)]
    result = measure(probabilities, labels, names, "mean", 0.95, 100, 0)
    top1 = multiclass_accuracy(probabilities, labels, classes, average="micro")
    assert result.accuracy.value == pytest.approx(top1.item())
    if classes > 5:
        top5 = multiclass_accuracy(probabilities, labels, classes, average="micro", top_k=5)
        assert result.top5 is not None and result.top5.value == pytest.approx(top5.item())
    else:
        assert result.top5 is None
    per_class = multiclass_accuracy(probabilities, labels, classes, average="none")
    assert [entry.value for entry in result.per_class.values() if entry] == pytest.approx(per_class.tolist())
    assert list(result.per_class) == names
    assert result.confusion == multiclass_confusion_matrix(probabilities, labels, classes).tolist()
    error = multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1")
    assert result.calibration_error.value == pytest.approx(error.item(), abs=1e-6)
    loss = torch.nn.functional.nll_loss(probabilities.log(), labels)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)


def test_rows_of_the_confusion_matrix_have_intervals() -> None:
    probabilities, labels = outcomes(100, 4)
    labels[labels == 2] = 1
    result = measure(probabilities, labels, list("abcd"), "mean", 0.9, 100, 0)
    assert result.per_class["c"] is None
    rates, low, high = result.confusion_rates()
    for row, counts in enumerate(result.confusion):
        for column, hits in enumerate(counts):
            entry = rates[row, column], low[row, column], high[row, column]
            if row == 2:
                assert np.isnan(entry).all()
                continue
            expected = binomtest(hits, sum(counts)).proportion_ci(0.9, "wilson")
            assert entry == pytest.approx((hits / sum(counts), expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("shift", [0.02, 0.15])
def test_the_calibration_interval_holds_the_truth(shift: float) -> None:
    """Confidence exceeds accuracy by `shift` everywhere, so the true error is `shift`; 95 % intervals, 80 trials."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(80):
        confidences = rng.uniform(0.5, 1, 500)
        correct = rng.random(500) < confidences - shift
        estimate = calibration(confidences, correct, 0.95, 200, seed=trial)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        held += estimate.low <= shift <= estimate.high
    assert held >= 62  # of 80; 73 or 74 on average (the percentile interval at 0.02: 1)


def test_the_bootstrap_is_seeded_and_private() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.3, 1, 200)
    correct = rng.random(200) < confidences
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second, third = (calibration(confidences, correct, 0.95, 100, seed) for seed in (1, 1, 2))
    assert first == second != third
    assert first.value == third.value
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


def test_a_perfect_and_a_hopeless_model() -> None:
    labels = torch.arange(8)
    sure = torch.eye(8)
    perfect = measure(sure, labels, [str(i) for i in range(8)], "mean", 0.95, 100, 0)
    assert (perfect.accuracy.value, perfect.accuracy.high, perfect.calibration_error.value, perfect.loss) == (
        1,
        1,
        0,
        0,
    )
    assert 0.6 < perfect.accuracy.low < 0.7  # eight of eight prove little
    hopeless = measure(sure, labels.roll(1), [str(i) for i in range(8)], "mean", 0.95, 100, 0)
    assert (hopeless.accuracy.value, hopeless.accuracy.low, hopeless.calibration_error.value) == (0, 0, 1)
    assert math.isfinite(hopeless.loss) and hopeless.loss > 50


@pytest.mark.parametrize("policy", ["mean", "fixed", "multi"])
def test_evaluate_is_predict_and_metrics(policy: Any) -> None:
    model, data = tiny_model(), tiny_data(17)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    before, state = learned_bits(model), torch.get_rng_state()
    done: list[int] = []
    result = evaluate(model, data, policy=policy, rounds=3, seed=5, batch_size=7, progress=done.append)
    expected = predict(model, data.tensors[0], policy, rounds=3, seed=5, batch_size=7)
    right = [model.classes.index(label) == int(y) for label, y in zip(expected.labels, data.tensors[1], strict=True)]
    assert result.accuracy.value == sum(right) / 17
    assert result.loss == pytest.approx(negative_log_likelihood(expected.probabilities, data.tensors[1]))
    assert (result.policy, result.count, result.classes) == (policy, 17, model.classes)
    assert done == [7, 14, 17]
    assert model.training and learned_bits(model) == before
    assert torch.equal(state, torch.get_rng_state())


def test_workers_and_batches_change_nothing() -> None:
    model, data = tiny_model(), tiny_data(9)
    first = evaluate(model, data, batch_size=4)
    second = evaluate(model, data, batch_size=4, workers=2)
    assert first == second


def test_the_result_is_plain_json() -> None:
    values = evaluate(tiny_model(classes=7), tiny_data(9, classes=7)).to_dict()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again == values
    assert {"accuracy", "top5", "per_class", "confusion", "calibration_error", "loss"} <= values.keys()
    assert set(values["top5"]) == {"value", "low", "high"}


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"seed": -1}, {"confidence": 1.0}, {"resamples": 99}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        evaluate(tiny_model("linear"), tiny_data(), **arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(tiny_images(0), torch.zeros(0).long()), "is empty"),
        (TensorDataset(tiny_images(2), torch.tensor([0, 3])), "A label is 3"),
        (TensorDataset(tiny_images(2) * math.nan, torch.tensor([0, 1])), "images 0 to 1 are not finite"),
        (TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), r"\(2, 3, 8, 8\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: TensorDataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(tiny_model("linear"), data)


def test_a_stream_is_no_data_set_here() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter([])

        def __len__(self) -> int:
            return 1

    for stream in (Stream(), iter([]), 3):
        with pytest.raises(DataError, match=rf"The stream is a {type(stream).__name__}.*map-style"):
            check_dataset(tiny_model("linear"), stream, "stream")

"""Two models on the same images: the paired interval against all possible outcomes, the rest against plain counting."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.utils.data import TensorDataset

from training_cases import tiny_data, tiny_images, tiny_model
from viapt.comparison import accuracy_change, compare, speeds
from viapt.errors import DataError
from viapt.quantisation import quantise


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions before and after, and labels, with so many images of each kind."""
    before = torch.tensor([1] * both + [1] * lost + [0] * gained + [0] * neither)
    after = torch.tensor([1] * both + [0] * lost + [1] * gained + [2] * neither)
    return before, after, torch.ones_like(before)


def test_a_published_example() -> None:
    """Fagerland, Lydersen & Laake (2014), 21 children before and after: 1, 1, 7, 12; 95 %: 0.013 to 0.508."""
    change, lost, gained = accuracy_change(*pairs(1, 1, 7, 12), 0.95)
    assert (lost, gained) == (1, 7) and change.value == pytest.approx(6 / 21)
    assert (change.low, change.high) == pytest.approx((0.013, 0.508), abs=1e-3)


@pytest.mark.parametrize(("down", "up"), [(0.02, 0.02), (0.05, 0.02), (0.1, 0.3), (0.25, 0.25), (0.0, 0.05)])
@pytest.mark.parametrize("n", [20, 60])
def test_the_interval_holds_the_truth_as_often_as_it_says(n: int, down: float, up: float) -> None:
    """The chance, summed over all numbers of lost and gained images, that it does."""
    held = total = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            rest = n - lost - gained
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            chance = ways * down**lost * up**gained * (1 - down - up) ** rest
            if chance > 1e-9:
                change, *_ = accuracy_change(*pairs(rest, lost, gained, 0), 0.95)
                total += chance
                held += chance * (change.low <= up - down <= change.high)
    assert total == pytest.approx(1, abs=1e-5)
    assert held >= 0.94


def test_nothing_changed_is_not_known_for_certain() -> None:
    change, lost, gained = accuracy_change(*pairs(40, 0, 0, 10), 0.95)
    assert (change.value, lost, gained) == (0, 0, 0) and change.low == pytest.approx(-change.high) and change.high > 0
    narrow, *_ = accuracy_change(*pairs(4000, 0, 0, 1000), 0.95)
    assert 0 < narrow.high < change.high
    wider, *_ = accuracy_change(*pairs(40, 0, 0, 10), 0.99)
    assert wider.high > change.high


def test_intervals_hold_the_estimate_and_end_at_one() -> None:
    for kinds in [(0, 3, 0, 0), (0, 0, 3, 0), (0, 1, 0, 0), (5, 0, 1, 0)]:
        change, *_ = accuracy_change(*pairs(*kinds), 0.95)
        assert -1 <= change.low <= change.value <= change.high <= 1


def test_compared_image_by_image() -> None:
    data = tiny_data(30)
    before, after = tiny_model().eval(), tiny_model().eval()
    with torch.no_grad():
        after.head.bias += torch.tensor([0.02, 0.0, -0.02])
    found = compare(before, after, data, batch_size=7)
    images, labels = data.tensors
    first, second = (model.predict(images).probabilities.argmax(1) for model in (before, after))
    assert 0 < (first != second).sum() < 30  # there is something to compare
    right = [(first == labels).tolist(), (second == labels).tolist()]
    assert found.lost == sum(a and not b for a, b in zip(*right, strict=True))
    assert found.gained == sum(b and not a for a, b in zip(*right, strict=True))
    assert found.agreement.value == float((first == second).double().mean())
    assert found.accuracy_change.value == pytest.approx((sum(right[1]) - sum(right[0])) / 30)
    assert found.accuracy_change.value == pytest.approx(found.after.accuracy.value - found.before.accuracy.value)
    assert set(json.loads(json.dumps(found.to_dict()))) == {
        "accuracy_change",
        "agreement",
        "lost",
        "gained",
        "images_per_second",
    }


def test_a_model_agrees_with_itself() -> None:
    model = tiny_model().eval()
    found = compare(model, model, tiny_data(12), policy="multi", rounds=2)
    assert found.agreement.value == 1 and found.lost == found.gained == 0 and found.before == found.after


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by the cost of what is computed: the ratio comes out, whatever the first pass took."""
    models, now, turns = (tiny_model().eval(), quantise(tiny_model())), [0.0], []

    def answer(model: object, *_: object) -> None:
        turns.append(models.index(model))
        now[0] += (100 if len(turns) <= 2 else 1) * (0.5, 0.125)[turns[-1]]

    monkeypatch.setattr("viapt.comparison.class_probabilities", answer)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert speeds(models, tiny_images(4), "mean", 5, 0) == (8.0, 32.0)
    assert turns == [0, 1] * 7


def test_bad_labels_are_named() -> None:
    images, labels = tiny_data(6).tensors
    with pytest.raises(DataError, match="label is 9"):
        compare(tiny_model(), tiny_model(), TensorDataset(images, labels.clone().fill_(9)))

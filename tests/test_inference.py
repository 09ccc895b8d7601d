"""The three policies against their definitions; every kind of input; nothing depends on the batch."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from training_cases import tiny_images, tiny_model
from viapt.data.transforms import eval_transform
from viapt.errors import ConfigError, DataError
from viapt.inference import check_policy, predict
from viapt.model import PromptedClassifier


@pytest.fixture(scope="module")
def model() -> PromptedClassifier:
    """Its head is large enough for the noise to show."""
    model = tiny_model().eval()
    torch.nn.init.normal_(model.head.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    return model


def by_hand(model: PromptedClassifier, image: Tensor, noise: Tensor | None) -> Tensor:
    """Probabilities of one image."""
    with torch.no_grad():
        return torch.softmax(model(image[None], noise=noise), dim=1)[0]


def test_mean_drops_the_noise(model: PromptedClassifier) -> None:
    images = tiny_images(5)
    result = predict(model, images)
    silent = torch.zeros(1, 2, 32)
    expected = torch.stack([by_hand(model, image, silent) for image in images])
    torch.testing.assert_close(result.probabilities, expected)
    assert result.labels == [model.classes[int(row.argmax())] for row in expected]
    assert result.spread is None


def test_fixed_uses_one_noise_for_all_images(model: PromptedClassifier) -> None:
    images = tiny_images(5)
    noise = model.draw_noise(1, seed=7)
    expected = torch.stack([by_hand(model, image, noise) for image in images])
    torch.testing.assert_close(predict(model, images, "fixed", seed=7).probabilities, expected)
    others = predict(model, images, "fixed", seed=8).probabilities
    assert (expected - others).abs().max() > 1e-3
    assert (expected - predict(model, images).probabilities).abs().max() > 1e-3


def test_multi_averages_probabilities_over_rounds(model: PromptedClassifier) -> None:
    images = tiny_images(3)
    rounds = torch.stack(
        [torch.stack([by_hand(model, x, model.draw_noise(1, seed=7, index=r)) for x in images]) for r in range(4)]
    )
    result = predict(model, images, "multi", rounds=4, seed=7)
    torch.testing.assert_close(result.probabilities, rounds.mean(0))
    assert result.spread is not None
    np.testing.assert_allclose(result.spread, np.std(rounds.numpy(), axis=0), atol=1e-6)
    assert result.spread.max() > 1e-3


def test_one_round_of_multi_is_fixed(model: PromptedClassifier) -> None:
    images = tiny_images(3)
    multi = predict(model, images, "multi", rounds=1, seed=3)
    assert torch.equal(multi.probabilities, predict(model, images, "fixed", seed=3).probabilities)
    assert multi.spread is not None and not multi.spread.any()


@pytest.mark.parametrize("policy", ["fixed", "multi"])
def test_without_instance_prompts_all_policies_agree(policy: Any) -> None:
    model = tiny_model("vpt-deep")
    result = predict(model, tiny_images(3), policy)
    torch.testing.assert_close(result.probabilities, predict(model, tiny_images(3)).probabilities)
    if policy == "multi":
        assert result.spread is not None and not result.spread.any()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(7)), batch_size=st.integers(1, 9), policy=st.sampled_from(["mean", "fixed", "multi"])
)
def test_the_answer_for_an_image_depends_on_the_image(
    order: list[int], batch_size: int, policy: Any, model: PromptedClassifier
) -> None:
    images = tiny_images(7)
    alone = predict(model, images, policy, rounds=2, batch_size=1)
    mixed = predict(model, images[order], policy, rounds=2, batch_size=batch_size)
    torch.testing.assert_close(mixed.probabilities, alone.probabilities[order], atol=1e-5, rtol=1e-5)
    assert mixed.labels == [alone.labels[index] for index in order]


def test_global_generators_mode_and_weights_are_left_alone(model: PromptedClassifier) -> None:
    model = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        result = predict(model, tiny_images(4), "multi")
        assert torch.equal(state, torch.get_rng_state())
        assert model.training is training and model.method.training is training
        assert not result.probabilities.requires_grad
    model.train()
    with pytest.raises(DataError):
        predict(model, [object()])
    assert model.training
    model.eval()
    model.method.train()  # as a caller may have left it
    noisy = predict(model, tiny_images(4)).probabilities
    torch.testing.assert_close(noisy, predict(model.eval(), tiny_images(4)).probabilities, rtol=0, atol=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# What images may be


def photo(seed: int = 0, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_all_kinds_of_images_give_the_same(model: PromptedClassifier, tmp_path: Path) -> None:
    photos = [photo(seed) for seed in range(3)]
    for index, image in enumerate(photos):
        image.save(tmp_path / f"{index}.png")
    transform = eval_transform(model.backbone.preprocessing)
    tensors = torch.stack([transform(image) for image in photos])
    expected = predict(model, tensors).probabilities
    kinds: list[Any] = [
        photos,
        [np.asarray(image) for image in photos],
        np.stack([np.asarray(image) for image in photos]),
        [encoded(image) for image in photos],
        sorted(tmp_path.iterdir()),
        [str(path) for path in sorted(tmp_path.iterdir())],
        list(tensors),
        [photos[0], np.asarray(photos[1]), tensors[2]],
        (image for image in photos),
    ]
    for images in kinds:
        assert torch.equal(predict(model, images).probabilities, expected)
    singles: list[Any] = [photos[0], np.asarray(photos[0]), encoded(photos[0]), tmp_path / "0.png", f"{tmp_path}/0.png"]
    for image in singles:
        result = predict(model, image)
        assert len(result.labels) == 1
        torch.testing.assert_close(result.probabilities, expected[:1])


def test_images_are_read_as_they_are_needed(model: PromptedClassifier) -> None:
    read = 0

    def images() -> Iterator[Image.Image]:
        nonlocal read
        for seed in range(5):
            read += 1
            yield photo(seed)

    done: list[tuple[int, int]] = []
    predict(model, images(), batch_size=2, progress=lambda count: done.append((count, read)))
    assert done == [(2, 2), (4, 4), (5, 5)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (torch.zeros(0, 3, 32, 32), "no images"),
        (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\)"),
        (torch.zeros(2, 3, 16, 16), r"shape \(2, 3, 16, 16\).*\(n, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8.*paths"),
        ([3], r"Image 0 .* is a int"),
        (5, "images are a int"),
        (["missing.png"], r"missing\.png"),
        ([np.zeros((5, 5, 3)), b"no image"], "image 1"),
        (torch.full((2, 3, 32, 32), math.nan), "image 0 .* not finite"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str, model: PromptedClassifier) -> None:
    with pytest.raises(DataError, match=message):
        predict(model, images)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'median'.*mean, fixed, multi"):
        check_policy("median", 1, 0)


@pytest.mark.parametrize("arguments", [{"policy": "multi", "rounds": 0}, {"seed": -1}, {"batch_size": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], model: PromptedClassifier) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments)) if len(arguments) == 1 else "rounds"):
        predict(model, tiny_images(1), **arguments)


def test_a_method_that_depends_on_the_batch_warns() -> None:
    model = tiny_model(reduction="batch")
    with pytest.warns(UserWarning, match="other images of the batch"):
        predict(model, tiny_images(4), batch_size=2)

"""Transforms: timm's pixels in evaluation, the same augmentation for the same seed, and nothing left behind."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from viapt.backbones.base import Preprocessing
from viapt.data.transforms import eval_transform, list_augmentations, sample_seed, train_transform
from viapt.errors import ConfigError

SMALL = Preprocessing(image_size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.875)
RANDOM = ["light", "standard", "strong"]


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(height * 1000 + width))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("image_size", [(32, 32), (28, 42)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_evaluation_is_timms_pixel_for_pixel(
    crop_mode: str, interpolation: str, image_size: tuple[int, int], crop_pct: float
) -> None:
    preprocessing = Preprocessing(image_size, (0.48, 0.45, 0.4), (0.22, 0.23, 0.24), interpolation, crop_pct, crop_mode)
    ours = eval_transform(preprocessing)
    theirs = create_transform(
        (3, *image_size),
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    for height, width in ((32, 32), (40, 57), (90, 31), (5, 7), (33, 64)):
        image = picture(height, width)
        found = ours(image)
        assert found.dtype == torch.float32
        assert found.shape == (3, *image_size)
        assert torch.equal(found, theirs(image))


@pytest.mark.parametrize("augmentation", list_augmentations())
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("image_size", [(32, 32), (28, 42)])
@pytest.mark.parametrize("shape", [(40, 50), (100, 30), (6, 9)])
def test_every_augmentation_gives_the_size_that_the_weights_want(
    augmentation: str, crop_mode: str, image_size: tuple[int, int], shape: tuple[int, int]
) -> None:
    transform = train_transform(Preprocessing(image_size, crop_mode=crop_mode), augmentation)
    image = picture(*shape)
    pixels = transform.prepare(image)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    found = transform.finish(pixels, seed=5)
    assert found.shape == (3, *image_size)
    assert found.dtype == torch.float32
    assert torch.equal(found, transform(image, 5))


def test_none_is_evaluation() -> None:
    image = picture(45, 61)
    for seed in (0, 1):
        assert torch.equal(train_transform(SMALL, "none")(image, seed), eval_transform(SMALL)(image))


def test_light_is_evaluation_or_its_mirror_image() -> None:
    image = picture(45, 61)
    plain = eval_transform(SMALL)(image)
    found = [train_transform(SMALL, "light")(image, seed) for seed in range(40)]
    mirrored = [torch.equal(tensor, plain.flip(-1)) for tensor in found]
    assert all(torch.equal(tensor, plain) or flip for tensor, flip in zip(found, mirrored, strict=True))
    assert 8 < sum(mirrored) < 32


def test_standard_is_a_window_of_the_image_resized_to_8_7ths() -> None:
    image = picture(45, 61)
    transform = train_transform(SMALL, "standard")
    resized = transform.prepare(image)
    assert tuple(resized.shape) == (3, 36, 36 * 61 // 45)
    whole = (resized.float() / 255 - torch.tensor(SMALL.mean)[:, None, None]) / torch.tensor(SMALL.std)[:, None, None]
    windows = [
        whole[:, top : top + 32, left : left + 32].flip(-1) if flip else whole[:, top : top + 32, left : left + 32]
        for top in range(5)
        for left in range(resized.shape[2] - 31)
        for flip in (False, True)
    ]
    places = [
        [place for place, window in enumerate(windows) if torch.allclose(window, transform(image, seed), atol=1e-5)]
        for seed in range(12)
    ]
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) > 6


def test_standard_at_224_pixels_is_resize_256_crop_224() -> None:
    assert tuple(train_transform(Preprocessing(), "standard").prepare(picture(300, 400)).shape) == (3, 256, 341)


@pytest.mark.parametrize("augmentation", RANDOM)
def test_the_seed_alone_decides_and_no_generator_is_touched(augmentation: str) -> None:
    transform, image = train_transform(SMALL, augmentation), picture(45, 61)
    first = [transform(image, seed) for seed in range(20)]
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    again = [transform(image, seed) for seed in reversed(range(20))][::-1]
    after = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({tensor.numpy().tobytes() for tensor in first}) > 1


@pytest.mark.parametrize("augmentation", list_augmentations())
def test_transforms_survive_pickle(augmentation: str) -> None:
    transform, image = train_transform(SMALL, augmentation), picture(45, 61)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(image, 3), transform(image, 3))
    assert (again.augmentation, again.preprocessing) == (augmentation, SMALL)


@pytest.mark.parametrize("augmentation", RANDOM)
def test_prepared_pixels_are_not_changed(augmentation: str) -> None:
    transform = train_transform(SMALL, augmentation)
    pixels = transform.prepare(picture(45, 61))
    kept = pixels.clone()
    for seed in range(30):
        transform.finish(pixels, seed)
    assert torch.equal(pixels, kept)


def test_names() -> None:
    assert list_augmentations() == ["none", "light", "standard", "strong"]
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        train_transform(SMALL, "standart")


@settings(max_examples=200)
@given(st.tuples(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**9)))
def test_sample_seeds_are_valid_and_distinct(place: tuple[int, int, int]) -> None:
    seed, epoch, index = place
    near = {sample_seed(seed + a, epoch + b, index + c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}
    assert len(near) == 8
    assert all(0 <= value < 2**63 for value in near)

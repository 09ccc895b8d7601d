"""The perceptual hash against a cosine transform written out, and what looks alike against a plain loop."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from viapt.data.benchmarks.near_duplicates import NEAR, Alike, appearance, find_alike


def scene(seed: int, side: int = 160) -> Image.Image:
    """Smooth blobs, and some noise, in colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    picture = np.zeros((side, side, 3))
    for _ in range(40):
        y, x, width = *rng.uniform(0, 1, 2), rng.uniform(0.02, 0.25)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2)
        picture += blob[..., None] * rng.normal(0, 60, 3)
    noise = rng.normal(0, 3, picture.shape)
    return Image.fromarray(np.clip(128 + picture + noise, 0, 255).astype(np.uint8))


def bits(value: bytes) -> list[int]:
    return [byte >> (7 - place) & 1 for byte in value for place in range(8)]


def distance(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(bits(one), bits(other), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_hash_is_the_sign_of_the_low_frequencies(seed: int) -> None:
    """DCT-II by its definition: c(u, v) = sum g(y, x) cos(pi (2y + 1) u / 128) cos(pi (2x + 1) v / 128)."""
    image = scene(seed)
    grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.LANCZOS), float)
    wave = [[math.cos(math.pi * (2 * y + 1) * u / 128) for y in range(64)] for u in range(16)]
    # The orthonormal transform halves the power of constants along one direction.
    weight = [math.sqrt(0.5)] + [1.0] * 15
    low = [
        weight[u] * weight[v] * sum(wave[u][y] * float(grey[y] @ np.array(wave[v])) for y in range(64))
        for u in range(16)
        for v in range(16)
    ][1:]
    middle = sorted(low)[127]
    assert bits(appearance(image)) == [int(value > middle) for value in low] + [0]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


ALTERED = {
    "compressed": lambda image: jpeg(image, 60),
    "half the size": lambda image: image.resize((80, 80), Image.Resampling.BICUBIC),
    "twice the size": lambda image: image.resize((320, 320), Image.Resampling.BILINEAR),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_an_altered_copy_looks_alike(change: str) -> None:
    for seed in range(8):
        image = scene(seed)
        assert distance(appearance(image), appearance(ALTERED[change](image))) <= NEAR


def test_different_pictures_do_not() -> None:
    hashes = [appearance(scene(seed)) for seed in range(24)]
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 4 * NEAR


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_flat_picture_is_like_nothing(value: int) -> None:
    flat = appearance(Image.fromarray(np.full((30, 20, 3), value, np.uint8)))
    assert flat == b""
    assert find_alike([flat, flat], [flat, appearance(scene(0))]) == []


def flipped(value: bytes, places: list[int]) -> bytes:
    changed = bytearray(value)
    for place in places:
        changed[place // 8] ^= 128 >> place % 8
    return bytes(changed)


@given(st.data())
def test_the_nearest_is_found(data: st.DataObject) -> None:
    places = st.lists(st.integers(0, 254), unique=True, max_size=2 * NEAR)
    bases = [bytes(32), bytes([170] * 31 + [170])]
    one = st.builds(flipped, st.sampled_from(bases), places)
    hashes = st.lists(st.one_of(st.just(b""), one), max_size=12)
    others, known = data.draw(hashes), data.draw(hashes)
    expected = []
    for i, value in enumerate(others):
        distances = [(distance(value, other), k) for k, other in enumerate(known) if value and other]
        if distances and min(distances)[0] <= NEAR:
            expected.append(Alike(i, min(distances)[1], min(distances)[0]))
    assert find_alike(others, known) == expected


def test_many_are_compared_in_parts() -> None:
    rng = np.random.default_rng(0)
    known = [rng.bytes(31) + b"\0" for _ in range(50)]
    others = [rng.bytes(31) + b"\0" for _ in range(2500)]
    for i in (0, 1023, 1024, 2499):
        others[i] = flipped(known[i % 50], [3, 77])
    assert find_alike(others, known) == [Alike(i, i % 50, 2) for i in (0, 1023, 1024, 2499)]

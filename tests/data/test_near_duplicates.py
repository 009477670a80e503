"""Pictures that repeat others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from adray.data.near_duplicates import (
    find_near_duplicates,
    pairs_of_near_duplicates,
    small_copies,
)
from adray.data.synthetic_images import draw_normal


def part(seed: int) -> Image.Image:
    """A part that lies a little differently each time."""
    pixels = draw_normal("gasket", 256, np.random.default_rng(seed))
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX))


def saved_again(image: Image.Image) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return Image.open(data)


@pytest.fixture
def training():
    return [part(seed) for seed in range(20)]


def test_a_picture_saved_again_or_made_smaller_is_found_and_others_are_not(training):
    tests = [part(seed) for seed in range(100, 110)]
    tests[3] = saved_again(training[7])
    tests[5] = training[11].resize((128, 128), Image.Resampling.BOX)
    found = find_near_duplicates(
        np.stack(list(map(small, tests))), np.stack(list(map(small, training)))
    )
    assert [(near.index, near.other) for near in found] == [(3, 7), (5, 11)]


def test_all_pairs_are_compared_as_scipy_compares_them():
    random = np.random.default_rng(0)
    others = random.integers(0, 256, (700, 8, 8), np.uint8)
    # More than one block of rows, each a level away from one of the others.
    chosen = random.integers(0, 700, 1100)
    copies = np.clip(others[chosen].astype(int) + random.integers(0, 2, (1100, 8, 8)), 0, 255)
    found = find_near_duplicates(copies.astype(np.uint8), others)

    distances = cdist(copies.reshape(1100, -1), others.reshape(700, -1)) / 8
    assert [near.index for near in found] == list(range(1100))
    assert [near.other for near in found] == distances.argmin(axis=1).tolist()
    assert np.allclose([near.distance for near in found], distances.min(axis=1), atol=1e-4)


def test_parts_that_all_look_the_same_are_no_copies_of_each_other():
    random = np.random.default_rng(1)
    part = random.integers(50, 200, (32, 32))
    pictures = np.rint(part + random.normal(0, 0.4, (60, 32, 32))).astype(np.uint8)
    assert find_near_duplicates(pictures[:20], pictures[20:]) == []


def test_nothing_is_near_to_nothing():
    nothing = np.zeros((0, 32, 32), np.uint8)
    some = np.zeros((3, 32, 32), np.uint8)
    assert find_near_duplicates(nothing, some) == find_near_duplicates(some, nothing) == []


def test_pairs_of_one_set_are_those_that_scipy_finds_below_a_level():
    random = np.random.default_rng(2)
    different = random.integers(0, 256, (600, 8, 8))
    # Each of the second half repeats one of the first, most of them within a level.
    again = different[:500] + random.integers(0, 2, (500, 8, 8)) * random.integers(
        1, 3, (500, 1, 1)
    )
    copies = np.clip(np.concatenate([different, again]), 0, 255).astype(np.uint8)
    distances = cdist(copies.reshape(1100, -1), copies.reshape(1100, -1)) / 8
    expected = np.argwhere(np.triu(distances <= 1, k=1))
    assert 100 < len(expected) < 500
    assert pairs_of_near_duplicates(copies) == list(map(tuple, expected.tolist()))


def test_one_picture_or_none_repeats_nothing():
    assert pairs_of_near_duplicates(np.zeros((0, 8, 8), np.uint8)) == []
    assert pairs_of_near_duplicates(np.zeros((1, 8, 8), np.uint8)) == []


@pytest.mark.parametrize("size", [32, 64, 256])
def test_a_small_copy_is_that_of_pillow_made_by_boxes(size):
    image = part(0).convert("RGB").resize((size, size))
    made = small_copies(np.asarray(image).transpose(2, 0, 1)[None])
    assert np.abs(made[0].astype(int) - small(image)).max() <= 1


@pytest.mark.parametrize("size", [8, 31, 50])
def test_a_small_copy_of_any_size_keeps_the_mean_of_blocks(size):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, size, size), np.uint8)
    side = min(size, 32)
    grey = np.einsum("bchw,c->bhw", pixels, [0.299, 0.587, 0.114])
    starts = [i * size // side for i in range(side)] + [size]
    made = small_copies(pixels)
    assert made.shape == (2, side, side)
    for i, j in [(0, 0), (side - 1, 3), (5, side - 1)]:
        block = grey[:, starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
        np.testing.assert_allclose(made[:, i, j], block.mean((1, 2)), atol=0.51)

"""Perlin noise against a slow loop and its mathematical properties; masks against what training needs of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adray.components.perlin import perlin_mask, perlin_noise


def noise(size, cells, rotation=0.0, seed=0):
    count = len(cells)
    generator = torch.Generator().manual_seed(seed)
    return perlin_noise(size, torch.tensor(cells), torch.full((count,), rotation), generator)


def slow_noise(size, cells, seed):
    """One unrotated square, pixel by pixel."""
    angle = (
        2
        * math.pi
        * torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(seed))[0].double().numpy()
    )
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    values = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) / size * cells[0], (j + 0.5) / size * cells[1]
            for down in (0, 1):
                for right in (0, 1):
                    row, column = int(y) + down, int(x) + right
                    share = fade(1 - abs(y - row)) * fade(1 - abs(x - column))
                    a = angle[row, column]
                    values[i, j] += share * (math.cos(a) * (y - row) + math.sin(a) * (x - column))
    return math.sqrt(2) * values


@pytest.mark.parametrize("cells", [(1, 1), (4, 2), (3, 8)])
def test_it_is_the_textbook_noise(cells):
    ours = noise(24, [cells], seed=3)[0, 0].numpy()
    np.testing.assert_allclose(ours, slow_noise(24, cells, 3), atol=1e-5)


@pytest.mark.parametrize("rotation", [0.0, 0.7])
def test_it_is_continuous_and_bounded(rotation):
    for cells in ([2, 2], [8, 4]):
        value = noise(256, [cells] * 4, rotation)
        step = max(value.diff(dim=2).abs().max(), value.diff(dim=3).abs().max())
        assert value.abs().max() <= 1
        # The slope per cell is at most about 3.5 along an axis, that of the lattice's diagonal sqrt(2) more.
        assert step < 5 * max(cells) / 256


def test_it_vanishes_at_the_points_of_the_lattice():
    odd = noise(9, [(9, 9)], rotation=math.pi / 2)  # pixel centres lie at the cells' centres
    at_points = noise(3, [(6, 6)])[0, 0]  # and here at 1, 3, 5
    assert odd.abs().max() > 0.1
    torch.testing.assert_close(at_points, torch.zeros(3, 3), atol=1e-5, rtol=0)


def test_a_quarter_turn_of_the_lattice_turns_the_picture():
    still, turned = noise(32, [(4, 4)]), noise(32, [(4, 4)], math.pi / 2)
    torch.testing.assert_close(turned, still.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_the_squares_of_a_batch_are_independent():
    pair = noise(64, [(4, 4), (4, 4)]).flatten(1)
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.5


def test_masks_are_patches_of_zeros_and_ones_that_seldom_are_empty_or_full():
    masks = perlin_mask(256, 128, generator=torch.Generator().manual_seed(0))
    assert masks.shape == (256, 1, 128, 128)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    coverage = masks.mean((1, 2, 3))
    assert 0.02 < coverage.mean() < 0.2
    assert (coverage == 0).float().mean() < 0.4
    assert coverage.max() < 0.9


def test_every_place_is_covered_about_as_often_also_the_corners():
    masks = perlin_mask(1000, 32, generator=torch.Generator().manual_seed(1))
    often = masks.mean(0)[0]
    corners = torch.stack([often[:6, :6], often[-6:, :6], often[:6, -6:], often[-6:, -6:]]).mean()
    assert 0.5 < float(corners / often.mean()) < 1.5


def test_a_higher_threshold_covers_less():
    low, high = (perlin_mask(64, 64, t, torch.Generator().manual_seed(2)) for t in (0.2, 0.6))
    assert torch.all(high <= low)
    assert high.sum() < low.sum()


def test_the_seed_decides_through_the_generator_and_through_torchs_own():
    one, two, other = (
        perlin_mask(4, 64, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(7)
    first = perlin_mask(4, 64)
    torch.manual_seed(7)
    assert torch.equal(perlin_mask(4, 64), first)

"""A coreset chosen batch by batch, beside the selection written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from adray.components.streamed_coreset import StreamedCoreset, farthest_first


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def slowly(points: np.ndarray, count: int) -> np.ndarray:
    """Pick the farthest of (N, D) points again and again, from the one farthest from the mean."""
    if len(points) <= count:
        return points
    picks = [int(np.linalg.norm(points - points.mean(0), axis=1).argmax())]
    while len(picks) < count:
        picks.append(int(cdist(points, points[picks]).min(1).argmax()))
    return points[picks]


def merged(batches: list[np.ndarray], count: int) -> np.ndarray:
    """Merge summaries of equally many batches, level by level."""
    levels: list[list[np.ndarray]] = [[] for _ in range(10)]
    for batch in batches:
        block = slowly(batch, count)
        for level in levels:
            level.append(block)
            if len(level) < 2:
                break
            block = slowly(np.concatenate(level), count)
            level.clear()
    return slowly(np.concatenate([block for level in levels for block in level]), count)


@pytest.mark.parametrize("count", [1, 7, 60, 200])
def test_the_farthest_come_first_as_in_numpy(count):
    points = torch.randn(120, 6)
    found = farthest_first(points, count).numpy()
    np.testing.assert_array_equal(found, slowly(points.numpy(), count))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 13])
def test_batches_merge_as_digits_carry_in_a_binary_counter(number):
    batches = [torch.randn(30 + i, 5) for i in range(number)]
    coreset = StreamedCoreset(12)
    for batch in batches:
        coreset.add(batch)
        assert sum(map(len, coreset.levels.values())) <= 12 * number.bit_length()
    assert len(coreset.levels) == number.bit_count()
    expected = merged([batch.numpy() for batch in batches], 12)
    np.testing.assert_array_equal(coreset.coreset().numpy(), expected)


@pytest.mark.parametrize("number", [4, 5, 8, 16])
def test_the_coreset_has_its_size_whatever_the_number_of_batches(number):
    coreset = StreamedCoreset(20)
    for _ in range(number):
        coreset.add(torch.randn(25, 4))
    assert len(coreset.coreset()) == 20


def test_no_vector_is_farther_than_the_radii_of_its_selections(monkeypatch):
    radii = []

    def measured(vectors, count):
        chosen = farthest_first(vectors, count)
        radii.append(float(torch.cdist(vectors, chosen).amin(1).max()))
        return chosen

    monkeypatch.setattr("adray.components.streamed_coreset.farthest_first", measured)
    batches = torch.randn(9, 40, 3)
    coreset = StreamedCoreset(15)
    for batch in batches:
        coreset.add(batch)
    found = coreset.coreset()
    farthest = float(torch.cdist(batches.flatten(0, 1), found).amin(1).max())
    # A batch, three merges for eight of them, and the last.
    assert farthest <= sum(sorted(radii)[-5:]) + 1e-5


def test_nothing_is_chosen_of_no_batches():
    with pytest.raises(ValueError, match="at least one batch"):
        StreamedCoreset(3).coreset()

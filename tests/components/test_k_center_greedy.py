"""The selection against a slow greedy loop in float64 and against the best of all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from adray.components.k_center_greedy import k_center_greedy, select_by_folds


def points(count, size=5, seed=0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def slow_greedy(features, start, count):
    """The farthest point, again and again, in float64."""
    x = features.double().numpy()
    chosen, nearest = [start], np.linalg.norm(x - x[start], axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(x - x[chosen[-1]], axis=1))
    return chosen


def radius(features, chosen):
    x = features.double().numpy()
    return np.linalg.norm(x[:, None] - x[None, chosen], axis=2).min(1).max()


@pytest.mark.parametrize(("count", "wanted"), [(40, 40), (600, 300), (9000, 700)])
def test_the_order_is_that_of_a_slow_greedy_loop(count, wanted):
    features = points(count)
    chosen = k_center_greedy(features, wanted, torch.Generator().manual_seed(3))
    assert chosen.tolist() == slow_greedy(features, int(chosen[0]), wanted)


def test_a_large_common_offset_does_not_spoil_the_order():
    features = points(500, shift=300.0)
    chosen = k_center_greedy(features, 200)
    assert chosen.tolist() == slow_greedy(features, int(chosen[0]), 200)


def test_a_smaller_selection_is_the_beginning_of_a_larger_one():
    features = points(3000, 16)
    full = k_center_greedy(features, 1500, torch.Generator().manual_seed(1))
    for count in (1, 2, 57, 400, 1499):
        assert torch.equal(
            k_center_greedy(features, count, torch.Generator().manual_seed(1)), full[:count]
        )


@pytest.mark.parametrize("seed", range(5))
def test_the_covering_radius_is_at_most_twice_the_best_possible(seed):
    features = points(14, 2, seed)
    best = min(radius(features, subset) for subset in itertools.combinations(range(14), 4))
    assert radius(features, k_center_greedy(features, 4).numpy()) <= 2 * best + 1e-9


@pytest.mark.parametrize(("total", "wanted"), [(60, 50), (900, 700), (900, 20)])
def test_without_a_fold_a_slow_greedy_loop_goes_on_from_what_was_chosen_of_the_others(
    total, wanted
):
    features = points(total)
    fold = torch.arange(total) % 3
    found = select_by_folds(features, wanted, fold, torch.Generator().manual_seed(3))
    plain = k_center_greedy(features, wanted, torch.Generator().manual_seed(3))
    assert torch.equal(found.chosen, plain)

    x = features.double().numpy()
    for number, kept in enumerate(found.without):
        assert not (fold[kept] == number).any()
        expected = [place for place in kept.tolist() if place in plain]
        outside = int((fold != number).sum())
        assert set(plain[fold[plain] != number].tolist()) <= set(expected)
        while len(expected) < min(wanted, outside):
            nearest = np.linalg.norm(x[:, None] - x[None, expected], axis=2).min(1)
            nearest[fold.numpy() == number] = -1
            expected.append(int(nearest.argmax()))
        assert kept.tolist() == expected


def test_a_fold_of_all_chosen_points_leaves_a_selection_of_the_others():
    features = points(40)
    start = int(k_center_greedy(features, 1, torch.Generator().manual_seed(3)))
    fold = torch.zeros(40, dtype=torch.int64)
    fold[start] = 1
    found = select_by_folds(features, 1, fold, torch.Generator().manual_seed(3))
    first, second = found.without
    assert first.tolist() == [start]
    assert second.tolist() != [start]


def test_all_points_can_be_chosen_each_once():
    assert sorted(k_center_greedy(points(700), 700).tolist()) == list(range(700))


def test_identical_points_are_chosen_once_each_too():
    features = torch.ones(300, 4)
    assert sorted(k_center_greedy(features, 300).tolist()) == list(range(300))


def test_one_copy_of_each_distinct_point_comes_first():
    features = points(20).repeat(30, 1)
    assert len(set((k_center_greedy(features, 20) % 20).tolist())) == 20


def test_one_point_is_its_own_selection():
    assert k_center_greedy(torch.ones(1, 3), 1).tolist() == [0]


def test_the_generator_decides_the_start():
    features = points(1000)
    starts = {
        int(k_center_greedy(features, 1, torch.Generator().manual_seed(seed))) for seed in range(5)
    }
    assert len(starts) > 1
    again = [k_center_greedy(features, 9, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*again)


def test_the_features_are_left_as_they_were():
    features = points(400)
    before = features.clone()
    k_center_greedy(features, 100)
    assert torch.equal(features, before)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_radius():
    features = points(5000, 32)
    chosen = k_center_greedy(features.cuda(), 500, torch.Generator().manual_seed(0))
    assert chosen.is_cuda
    on_cpu = k_center_greedy(features, 500, torch.Generator().manual_seed(0))
    assert radius(features, chosen.cpu().numpy()) == pytest.approx(
        radius(features, on_cpu.numpy()), rel=1e-4
    )

"""Which training normals are left out together, held against what must stay together."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adray.data.base import Sample
from adray.data.folds import FOLDS, MOST_GROUPS, calibration_folds


def make(n, category="c", **changes):
    names = [f"{category}/good/{i}.png" for i in range(n)]
    return [
        Sample(Path("/x") / m, (), 0, "good", "d", category, "train", m, **changes) for m in names
    ]


def in_groups(n, groups, field="group"):
    return [replace(sample, **{field: f"lot {i % groups}"}) for i, sample in enumerate(make(n))]


@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 28, 100, 305])
def test_there_are_ten_folds_of_like_size_and_of_fewer_images_each_is_one(n):
    folds = calibration_folds(make(n), None, 1)
    sizes = np.bincount(folds.number)
    assert len(sizes) == folds.count == min(n, FOLDS)
    assert sizes.max() - sizes.min() <= 1
    assert not folds.by_group


def test_each_category_is_spread_over_all_folds():
    folds = calibration_folds(make(40, "a") + make(23, "b"), None, 3)
    first = np.bincount(folds.number[:40], minlength=10)
    second = np.bincount(folds.number[40:], minlength=10)
    assert set(first) == {4}
    assert set(second) == {2, 3}


def test_folds_depend_on_names_and_seed_and_not_on_the_order_of_the_list():
    samples = in_groups(50, 20, "part")
    shuffled = random.Random(1).sample(samples, len(samples))

    def of(members, seed):
        number = calibration_folds(members, None, seed).number
        return {sample.key: fold for sample, fold in zip(members, number, strict=True)}

    assert of(samples, 3) == of(shuffled, 3)
    assert of(samples, 3) != of(samples, 4)


@pytest.mark.parametrize("groups", [2, 5, 13, MOST_GROUPS])
def test_each_group_is_a_fold_of_its_own(groups):
    samples = in_groups(2 * MOST_GROUPS, groups)
    folds = calibration_folds(samples, None, 0)
    assert folds.by_group
    assert folds.count == groups
    of_fold = defaultdict(set)
    for sample, number in zip(samples, folds.number, strict=True):
        of_fold[number].add(sample.group)
    assert {len(names) for names in of_fold.values()} == {1}


@pytest.mark.parametrize(
    ("groups", "field"), [(MOST_GROUPS + 5, "group"), (25, "part"), (4, "part")]
)
def test_many_groups_and_parts_stay_whole_in_ten_folds_at_most(groups, field):
    samples = in_groups(3 * groups, groups, field)
    folds = calibration_folds(samples, None, 0)
    assert not folds.by_group
    assert folds.count == min(groups, FOLDS)
    pairs = {(getattr(s, field), n) for s, n in zip(samples, folds.number, strict=True)}
    assert len(pairs) == groups


def test_images_without_a_group_beside_some_with_one_are_dealt_one_by_one():
    samples = in_groups(12, 3) + make(30, "other")
    folds = calibration_folds(samples, None, 0)
    assert (folds.by_group, folds.count) == (False, 10)
    assert all(len(set(folds.number[i:12:3])) == 1 for i in range(3))


def test_one_group_of_all_is_split_image_by_image_and_said():
    folds = calibration_folds(in_groups(6, 1), None, 0)
    assert folds.count == 6
    assert not folds.by_group
    assert folds.is_one_group


def test_near_duplicates_are_left_out_together_also_across_a_third_picture():
    pictures = np.random.default_rng(0).integers(0, 250, (30, 32, 32)).astype(np.uint8)
    pictures[7] = pictures[3]
    pictures[20] = pictures[7] + 1
    for seed in range(20):
        number = calibration_folds(make(30), pictures, seed).number
        assert number[3] == number[7] == number[20]
        assert max(Counter(number).values()) <= 4


def test_a_picture_that_repeats_one_of_another_lot_joins_the_two():
    pictures = np.random.default_rng(0).integers(0, 250, (12, 32, 32)).astype(np.uint8)
    pictures[5] = pictures[0]
    folds = calibration_folds(in_groups(12, 4), pictures, 0)
    assert folds.count == 3
    assert folds.number[0] == folds.number[1]

"""Which images stay together, against joining them pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from adray.results.image_units import image_units


def table(rows):
    columns = ["category", "path", "group", "part", "picture", "split"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(dataset="set")


def joined_pair_by_pair(frame):
    """Units by joining two images at a time until nothing changes."""
    unit = list(range(len(frame)))
    changed = True
    while changed:
        changed = False
        for i, j in itertools.combinations(range(len(frame)), 2):
            one, other = frame.iloc[i], frame.iloc[j]
            same_place = one["category"] == other["category"]
            shared = any(
                one[name] and one[name] == other[name] for name in ("group", "part", "picture")
            )
            if same_place and shared and unit[i] != unit[j]:
                unit = [unit[i] if number == unit[j] else number for number in unit]
                changed = True
    return unit


@pytest.mark.parametrize("seed", range(6))
def test_images_that_are_connected_by_what_they_share_have_one_number(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(30):
        names = [str(rng.integers(12)) if rng.random() < 0.4 else "" for _ in range(3)]
        rows.append((str(rng.integers(2)), f"{i}.png", *names, "test"))
    frame = table(rows)
    found = image_units(frame)
    expected = joined_pair_by_pair(frame)
    for i, j in itertools.combinations(range(30), 2):
        assert (found[i] == found[j]) == (expected[i] == expected[j])


def test_a_drawn_defect_stays_with_its_image_and_a_number_in_a_name_joins_nothing():
    rows = [("box", path, "", "", "", split) for path, split in (
        ("a.png", "holdout"), ("a.png#0", "synthetic"), ("a.png#1", "synthetic"),
        ("b#1.png", "test"), ("b#2.png", "test"),
    )]  # fmt: skip
    assert len(set(image_units(table(rows))[:3])) == 1
    assert len(set(image_units(table(rows)))) == 3


def test_the_same_image_scored_twice_stays_together():
    rows = [("box", "a.png", "", "", "", "test"), ("box", "b.png", "", "", "", "test")] * 2
    found = image_units(table(rows))
    assert found.tolist() == [found[0], found[1]] * 2
    assert found[0] != found[1]

"""Letters of what cannot be told apart."""

from __future__ import annotations

import itertools

import numpy as np

from adray.results.groups import group_letters


def test_two_share_a_letter_exactly_where_they_are_not_told_apart():
    rng = np.random.default_rng(10)
    for size in (1, 2, 5, 9):
        for _ in range(20):
            upper = np.triu(rng.random((size, size)) < 0.4, 1)
            apart = upper | upper.T
            letters = group_letters(~apart)
            assert letters[0].startswith("a")
            for a, b in itertools.combinations(range(size), 2):
                assert bool({*letters[a]} & {*letters[b]}) != apart[a, b]
    assert group_letters(np.ones((3, 3), bool)) == ["a", "a", "a"]

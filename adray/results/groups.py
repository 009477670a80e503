"""Letters for what cannot be told apart: a compact letter display.

What it must fulfil: H.-P. Piepho, "An algorithm for a letter-based representation of all-pairwise
comparisons", 2004.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_letters(same: NDArray[np.bool_]) -> list[str]:
    """Give letters such that two configurations share one exactly where they cannot be told apart.

    Each letter is a set of configurations none of which differ. The fewest are not sought, which is
    a hard problem, but where the sets are intervals of the list, as they mostly are, these are
    found.

    Args:
        same: (K, K) symmetric, true on the diagonal, best configuration first.
    """
    sets = _needed(_covering_sets(same))
    sets.sort(key=lambda members: tuple(np.flatnonzero(members)))

    letters = [""] * len(same)
    for k, members in enumerate(sets):
        for i in np.flatnonzero(members):
            letters[i] += _letter(k, len(sets))
    return letters


def _covering_sets(same: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Find sets, (K,) each, such that every two that are the same stand in one."""
    covered = np.zeros_like(same)
    sets = []
    for i in range(len(same)):
        # The furthest partner first: the set of both then holds the nearer ones too.
        for j in range(len(same) - 1, i - 1, -1):
            is_new = same[i, j] and not covered[i, j]
            if is_new and (j > i or not covered[i].any()):
                members = _grow(same, i, j)
                sets.append(members)
                covered |= np.outer(members, members)
    return sets


def _grow(same: NDArray[np.bool_], i: int, j: int) -> NDArray[np.bool_]:
    """Join to i and j those between them, then the others, as long as no two of the set differ."""
    members = np.zeros(len(same), dtype=bool)
    for k in (i, j, *range(i + 1, j), *range(j + 1, len(same)), *range(i)):
        if same[k][members].all():
            members[k] = True
    return members


def _needed(sets: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Leave out those sets whose every pair stands in another one."""
    counts = np.zeros((1, 1), dtype=int)
    for members in sets:
        counts = counts + np.outer(members, members)

    # Each in turn, since of two sets that cover one another one must stay.
    kept = []
    for members in sets:
        pairs = np.outer(members, members)
        if (counts[pairs] > 1).all():
            counts = counts - pairs
        else:
            kept.append(members)
    return kept


def _letter(k: int, count: int) -> str:
    """Give one of a to z or, where these do not suffice, of a1, b1, ..."""
    letter = chr(ord("a") + k % 26)
    return letter if count <= 26 else f"{letter}{k // 26 + 1}"

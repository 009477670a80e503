"""Letters for what cannot be told apart: a compact letter display.

What it must fulfil: H.-P. Piepho, "An algorithm for a letter-based representation of all-pairwise comparisons", 2004.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_letters(same: NDArray[np.bool_]) -> list[str]:
    """Letters such that two configurations share one exactly where they cannot be told apart.

    Each letter is a set of configurations none of which differ; the fewest are not sought, which is a hard problem,
    but where the sets are intervals of the list, as they mostly are, these are found.

    Args:
        same: (K, K) symmetric, true on the diagonal, best configuration first.
    """
    covered = np.zeros_like(same)
    sets: list[NDArray[np.bool_]] = []
    for i in range(len(same)):
        for j in range(len(same) - 1, i - 1, -1):
            if same[i, j] and not covered[i, j] and (j > i or not covered[i].any()):
                members = _grow(same, i, j)
                sets.append(members)
                covered |= np.outer(members, members)
    sets = _needed(sets)
    sets.sort(key=lambda members: tuple(np.flatnonzero(members)))
    return [
        "".join(_letter(k, len(sets)) for k, members in enumerate(sets) if members[i])
        for i in range(len(same))
    ]


def _grow(same: NDArray[np.bool_], i: int, j: int) -> NDArray[np.bool_]:
    """The set of i and j, those between them, then the others, as long as no two of it differ."""
    members = np.zeros(len(same), dtype=bool)
    for k in (i, j, *range(i + 1, j), *range(j + 1, len(same)), *range(i)):
        if same[k][members].all():
            members[k] = True
    return members


def _needed(sets: list[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Without those sets whose every pair stands in another one."""
    counts = sum(
        (np.outer(members, members).astype(int) for members in sets),
        start=np.zeros((1, 1), dtype=int),
    )
    kept = []
    for members in sets:
        pairs = np.outer(members, members)
        if (counts[pairs] > 1).all():
            counts = counts - pairs
        else:
            kept.append(members)
    return kept


def _letter(k: int, count: int) -> str:
    """One of a to z or, where these do not suffice, of a1, b1, ..."""
    letter = chr(ord("a") + k % 26)
    return letter if count <= 26 else f"{letter}{k // 26 + 1}"

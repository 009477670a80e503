"""A coreset of vectors that come in batches, of which only summaries are kept.

Merge and reduce (J. Bentley, J. Saxe, 1980; S. Har-Peled, S. Mazumdar, 2004): each batch becomes a
coreset of its own. Two that stand for as many batches become one, as digits carry in a binary
counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adray.components.k_center_greedy import k_center_passes


class StreamedCoreset:
    """Keeps at most `size` vectors for each binary digit of the number of batches.

    No vector lies farther from the coreset than the radii of the selections sum to that it went
    through (triangle inequality): one for its batch, one for each merge, and the last.

    Args:
        size: vectors of the coreset, fewer where there are not so many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.levels: dict[int, Tensor] = {}
        """By the power of two of the batches that they stand for, (m, D) each."""

    def add(self, vectors: Tensor) -> None:
        """Add a batch of (N, D) vectors, at least one."""
        level = 0
        summary = farthest_first(vectors, self.size)
        while level in self.levels:
            both = torch.cat([self.levels.pop(level), summary])
            summary = farthest_first(both, self.size)
            level += 1
        self.levels[level] = summary

    def coreset(self) -> Tensor:
        """Choose among all summaries, (M, D).

        Raises:
            ValueError: before the first batch.
        """
        if not self.levels:
            raise ValueError("a coreset needs at least one batch")
        summaries = [self.levels[level] for level in sorted(self.levels)]
        return farthest_first(torch.cat(summaries), self.size)


@torch.no_grad()
def farthest_first(vectors: Tensor, count: int) -> Tensor:
    """Choose vectors one after the other, each the farthest from those chosen before.

    The first is the farthest from the mean, so that nothing is drawn.

    Args:
        vectors: (N, D) float32.
        count: vectors to choose, all where there are no more.

    Returns:
        (min(count, N), D).
    """
    if len(vectors) <= count:
        return vectors
    start = (vectors - vectors.mean(0)).norm(dim=1).argmax()
    passes = k_center_passes(vectors, count, earlier=[start[None]])
    return vectors[torch.cat(passes)[:count]]

"""Nearest neighbours in a memory bank, exactly, without a matrix of all distances."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_BYTES = 256 * 2**20
"""Of the distances between some vectors and the whole bank that are held at once."""


def nearest(vectors: Tensor, bank: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of (Q, D) vectors in a bank.

    A neighbour is found by one matrix product. The distance to it is then computed from the
    difference, since the product's rounding depends on how many vectors came together.

    Args:
        vectors: (Q, D) float32.
        bank: (M, D).
        center: (D,), the bank's mean, around which products cancel less.

    Returns:
        The Euclidean distance to each and its index in the bank, each (Q,).
    """
    centered = bank - center
    half_squares = 0.5 * centered.square().sum(1)

    distances = []
    neighbors = []
    for chunk in vectors.split(max(1, _CHUNK_BYTES // (4 * len(bank)))):
        # |p - m|^2 = |p|^2 - 2 pm + |m|^2, of which |p|^2 does not change the nearest m: (q, M)
        nearness = torch.addmm(half_squares, chunk - center, centered.T, alpha=-1)
        neighbor = nearness.argmin(1)
        distances.append((chunk - bank[neighbor]).norm(dim=1))
        neighbors.append(neighbor)
    return torch.cat(distances), torch.cat(neighbors)

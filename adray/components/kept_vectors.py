"""The vectors that a model was fitted on, kept so that images can be added and taken away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from adray.errors import InputError
from adray.language.sentence import Sentence

NAME = "vectors"
"""Of the (N, D) vectors among what a checkpoint keeps for updates."""
_TOLERANCE = 1e-4
"""Relative distance up to which two vectors are of one image; rounding makes far less."""


def updated_vectors(
    statistics: Mapping[str, Tensor], added: Iterable[Tensor], removed: Iterable[Tensor]
) -> Tensor:
    """Add vectors to those that a model was fitted on, and take some of them away.

    Args:
        statistics: what the checkpoint keeps.
        added: (B, D) each.
        removed: (B, D) each, of the same images as before.

    Returns:
        (N, D) of all that are left, on the host.

    Raises:
        InputError: for a checkpoint that keeps none, and for an image that is not among them.
    """
    if NAME not in statistics:
        raise InputError(Sentence.of("update no vectors"))
    vectors = statistics[NAME]
    for batch in removed:
        for vector in batch.cpu():
            vectors = _without(vectors, vector)
    return torch.cat([vectors, *(batch.cpu() for batch in added)])


def _without(vectors: Tensor, vector: Tensor) -> Tensor:
    """Take the one of (N, D) vectors away that equals another."""
    if len(vectors) == 0:
        raise InputError(Sentence.of("update no image left"))
    distance = (vectors - vector).norm(dim=1)
    place = int(distance.argmin())
    if float(distance[place]) > _TOLERANCE * float(vector.norm()):
        raise InputError(Sentence.of("update image unknown"))
    kept = torch.ones(len(vectors), dtype=torch.bool)
    kept[place] = False
    return vectors[kept]

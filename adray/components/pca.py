"""Principal component analysis: the few directions in which feature vectors vary most.

Why not a library's: scikit-learn's takes more than four times as long for 209 values of 16,384
features, and leaves the device. torch's `pca_lowrank` is a random approximation, whose residuals
differ there by most of their size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.errors import InputError
from adray.language.sentence import Sentence

_NOISE = 1e-10
"""Directions with a smaller share of the largest variance are rounding: features are float32 of a
deep network."""


class PCA(DynamicBufferMixin):
    """Mean, principal directions and their variances; what it is given is never changed.

    `fit` works in float64 on the smaller of the two products of the centred values with themselves,
    N x N or D x D. Squaring costs half the digits, of which float64 has more than twice those of
    float32 values. Memory: 8 * N * D bytes and that product.

    Args:
        keep: a number of components, or as a float in (0, 1] the part of the variance that they
            explain together at least. Never more than the values' rank, which is below N.

    Raises:
        InputError: for fewer than one component, or a part of the variance outside (0, 1].
    """

    mean: Tensor
    """(D,)."""
    components: Tensor
    """(K, D), orthonormal, by falling variance."""
    variance: Tensor
    """(K,), of the N values, divided by N - 1."""

    def __init__(self, keep: int | float) -> None:
        super().__init__()
        if keep <= 0 or (isinstance(keep, float) and keep > 1):
            raise InputError(Sentence.of("pca keep", keep=str(keep)))
        self.keep = keep
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("components", torch.empty(0))
        self.register_buffer("variance", torch.empty(0))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Find the components of (N, D). Values that are all equal have none.

        Raises:
            InputError: for values that are not finite.
        """
        check_features(values)
        mean = values.mean(0, dtype=torch.float64)
        centered = values.double() - mean  # (N, D)
        wide = len(centered) < centered.shape[1]
        product = centered @ centered.T if wide else centered.T @ centered  # (min(N, D), min(N, D))

        # Sums of squares along the directions: the eigenvalues, which `eigh` gives rising.
        squares, vectors = torch.linalg.eigh(product)
        squares = squares.flip(-1)
        count = count_components(squares, self.keep)
        squares = squares[:count]
        vectors = vectors.flip(-1)[:, :count]
        # An eigenvector of the N x N product weights the N values: their sum is the direction.
        directions = centered.T @ vectors / squares.sqrt() if wide else vectors  # (D, K)

        self.mean = mean.to(values.dtype)
        self.components = directions.T.contiguous().to(values.dtype)
        self.variance = (squares / max(1, len(values) - 1)).to(values.dtype)

    def transform(self, values: Tensor) -> Tensor:
        """Give the coordinates of (B, D) along the components, (B, K)."""
        return (values - self.mean) @ self.components.T

    def residual(self, values: Tensor) -> Tensor:
        """Give what the components cannot explain: (B, D) less their reconstruction, (B, D)."""
        return (values - self.mean) - self.transform(values) @ self.components


def count_components(squares: Tensor, keep: int | float) -> int:
    """Count the components to keep.

    Args:
        squares: sums of squares along all components, falling.
        keep: see `PCA`.

    Returns:
        `keep`, or the fewest that explain more than that part of the variance, but at most the
        rank.
    """
    rank = int((squares > _NOISE * squares[0]).sum())
    if isinstance(keep, int):
        return min(keep, rank)
    too_few = int((squares.cumsum(0) <= keep * squares.sum()).sum())
    return min(too_few + 1, rank)

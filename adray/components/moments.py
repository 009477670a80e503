"""Number, mean and covariance of vectors that come in batches, none of which is kept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums of some vectors in float64, around their own mean.

    Plain sums of products in float32 can make a negative variance.
    """

    count: float
    """Number of vectors."""
    mean: Tensor
    """(D,)."""
    scatter: Tensor
    """(D, D): sum of the products of the vectors less their mean."""

    @classmethod
    def of(cls, vectors: Tensor) -> Moments:
        """Sum (N, D) vectors, at least one."""
        values = vectors.double()
        mean = values.mean(0)
        centered = values - mean
        return cls(len(values), mean, centered.T @ centered)

    def joined(self, other: Moments) -> Moments:
        """Give the moments of these vectors and others (T. Chan et al., 1979)."""
        total = self.count + other.count
        offset = other.mean - self.mean  # (D,)
        between = offset.outer(offset) * (self.count * other.count / total)
        mean = self.mean + offset * (other.count / total)
        return Moments(total, mean, self.scatter + other.scatter + between)

    def without(self, other: Moments) -> Moments:
        """Give the moments of these vectors less others that are among them.

        Raises:
            ValueError: where none would be left.
        """
        left = self.count - other.count
        if left < 1:
            raise ValueError(f"{other.count:.0f} vectors cannot be taken from {self.count:.0f}")
        mean = (self.count * self.mean - other.count * other.mean) / left
        offset = other.mean - mean  # (D,)
        between = offset.outer(offset) * (left * other.count / self.count)
        return Moments(left, mean, self.scatter - other.scatter - between)

"""One Gaussian per position of a feature map, fitted in a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features

_CHUNK_BYTES = 32 * 2**20
"""Memory for the covariances in float64 that are worked on at a time; their factors and inverses take
as much again each."""


class MultiVariateGaussian(DynamicBufferMixin):
    """Mean and covariance of P positions with d values each, and the Mahalanobis distance to them.

    `update` takes batches, `fit` ends the stream; no batch is kept. While it runs one (P, d, d)
    float32 tensor is held, which `fit` turns in place, some positions at a time, into the whitening
    matrices that `distance` needs.

    Args:
        regularization: added to the diagonal of each covariance, so that it can be inverted with
            fewer samples than d.
    """

    mean: Tensor
    """(P, d)."""
    whitening: Tensor
    """(P, d, d), lower triangular: W with W^T W the inverse of covariance plus regularisation. More
    rows in `leave_out`."""

    def __init__(self, regularization: float = 0.01) -> None:
        super().__init__()
        self.regularization = regularization
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("whitening", torch.empty(0))
        self.reset()

    def reset(self) -> None:
        """Forget the batches so far."""
        self._count = 0
        self._shift = torch.empty(0)  # (P, 1, d)
        self._sum = torch.empty(0)  # (P, d) float64
        self._products = torch.empty(0)  # (P, d, d)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Add a batch of (B, P, d) to the sums.

        They run over values less the first batch's mean, so that float32 does not cancel.
        """
        values = values.transpose(0, 1)  # (P, B, d)
        positions, count, size = values.shape
        if self._count == 0:
            self.whitening = values.new_empty(0)  # of a fit before, as large as what is held now
            self._shift = values.mean(1, keepdim=True)
            self._sum = torch.zeros_like(self._shift[:, 0], dtype=torch.float64)
            self._products = values.new_zeros(positions, size, size)

        shifted = values - self._shift
        self._sum += shifted.sum(1, dtype=torch.float64)
        self._products.baddbmm_(shifted.transpose(1, 2), shifted)
        self._count += count

    @torch.no_grad()
    def resume(self, count: int) -> None:
        """Turn a fit back into the sums of its `count` samples, to which more can be added.

        The whitening matrices hold all that the sums did, so that nothing else has to be stored. The
        next fit differs by the rounding of float32.
        """
        self._count = count
        self._shift = self.mean[:, None].clone()
        self._sum = torch.zeros_like(self.mean, dtype=torch.float64)
        self._products = torch.empty_like(self.whitening)

        identity = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        for rows in self._chunks(self.mean):
            whitening = self.whitening[rows].double()
            # W^T W inverts covariance plus regularisation, of which W^-1 is the Cholesky factor.
            factor = torch.linalg.solve_triangular(
                whitening, identity.expand_as(whitening), upper=False
            )
            covariance = factor @ factor.transpose(1, 2)
            covariance.diagonal(dim1=1, dim2=2).sub_(self.regularization)
            self._products[rows] = ((count - 1) * covariance).to(self._products.dtype)
        self.whitening = self.whitening.new_empty(0)

    @torch.no_grad()
    def remove(self, values: Tensor) -> None:
        """Take a batch of (B, P, d) that was added before from the sums."""
        shifted = values.transpose(0, 1) - self._shift  # (P, B, d)
        self._sum -= shifted.sum(1, dtype=torch.float64)
        self._products.baddbmm_(shifted.transpose(1, 2), shifted, alpha=-1)
        self._count -= len(values)

    @torch.no_grad()
    def fit(self) -> None:
        """Turn the sums into means and whitening matrices.

        Raises:
            ValueError: for fewer than two samples.
            InputError: for features that are not finite.
        """
        if self._count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, but there are {self._count}")
        # No product of two features is larger than both of their squares.
        check_features(self._products.diagonal(dim1=1, dim2=2))
        offset = self._sum / self._count  # (P, d), of the mean from the shift
        self.mean = (self._shift[:, 0] + offset).to(self._shift.dtype)

        # Some positions at a time, since float64 takes twice the memory.
        for rows in self._chunks(offset):
            whitening = self._whitening(self._products[rows], offset[rows], self._count - 1)
            self._products[rows] = whitening.to(self._products.dtype)
        self.whitening = self._products
        self.reset()

    @torch.no_grad()
    def leave_out(self, folds: Iterable[Tensor]) -> Iterator[None]:
        """Become what a fit without a fold would be, for one fold of the samples after the other.

        With T the summed products of deviations from the mean, those without m samples are
        T - E^T E, where E has m + 1 rows: the samples' deviations, and their sum over the root of
        how many are left. So the inverse is that of all samples plus m + 1 products (Woodbury's
        identity), and folds of one size share one factorisation. It ends the stream, as `fit` does.

        Args:
            folds: (B, P, d) each, of samples that `update` was given; best those of a size in a row.

        Raises:
            ValueError: for a fold that leaves fewer than two samples.
        """
        offset = self._sum / self._count  # (P, d)
        mean = self._shift[:, 0].double() + offset
        positions, size = offset.shape
        divisor = 0
        for fold in folds:
            left = self._count - len(fold)
            if left < 2:
                raise ValueError(f"a covariance needs at least 2 samples, but {left} are left")
            if left - 1 != divisor:
                divisor = left - 1
                self.whitening = self._products.new_empty(0)  # of the size before
                shape = (positions, size + len(fold) + 1, size)
                self.whitening = self._products.new_empty(shape)
                for rows in self._chunks(offset):
                    whitening = self._whitening(self._products[rows], offset[rows], divisor)
                    self.whitening[rows, :size] = whitening.to(self.whitening.dtype)

            deviation = fold.transpose(0, 1).double() - mean[:, None]  # (P, B, d)
            total = deviation.sum(1, keepdim=True)
            self.mean = (mean - total[:, 0] / left).to(self._shift.dtype)
            taken = torch.cat([deviation, total / math.sqrt(left)], 1) / math.sqrt(divisor)
            taken = taken.to(self.whitening.dtype)
            for rows in self._chunks(offset):
                self.whitening[rows, size:] = _downdate(self.whitening[rows, :size], taken[rows])
            yield
        self.reset()

    @staticmethod
    def _chunks(offset: Tensor) -> Iterator[slice]:
        """Yield the positions of (P, d) means in parts whose float64 matrices fit in memory."""
        positions, size = offset.shape
        chunk = max(1, _CHUNK_BYTES // (8 * size * size))
        for first in range(0, positions, chunk):
            yield slice(first, first + chunk)

    def _whitening(self, products: Tensor, offset: Tensor, divisor: int) -> Tensor:
        """Invert the Cholesky factors of some positions' covariances in float64.

        Args:
            products: (p, d, d), sums of the products of shifted values.
            offset: (p, d) float64, mean of the shifted values.
            divisor: what makes a covariance of the summed products of deviations.

        Returns:
            (p, d, d) float64, lower triangular.
        """
        # One copy, and in place from there on, as these are large.
        covariance = products.double()
        covariance.baddbmm_(offset[:, :, None], offset[:, None, :], alpha=-self._count)
        covariance.div_(divisor)
        covariance.diagonal(dim1=1, dim2=2).add_(self.regularization)

        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(offset.shape[1], dtype=torch.float64, device=offset.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False)

    def distance(self, values: Tensor) -> Tensor:
        """Measure how far (B, P, d) lie from their positions' Gaussians, (B, P), at least 0."""
        centered = (values - self.mean).transpose(0, 1)  # (P, B, d)
        return torch.bmm(centered, self.whitening.transpose(1, 2)).norm(dim=2).T


def _downdate(whitening: Tensor, taken: Tensor) -> Tensor:
    """Give the rows that a whitening matrix W needs once E^T E is taken from its covariance.

    With G = W E^T, the inverse of the covariance becomes W^T W + W^T G (I - G^T G)^-1 G^T W.

    Args:
        whitening: W of p positions, (p, d, d).
        taken: E, (p, m, d).

    Returns:
        (p, m, d).
    """
    whitened = taken @ whitening.transpose(1, 2)  # G^T, (p, m, d)
    core = torch.eye(taken.shape[1], dtype=torch.float64, device=taken.device)
    core = core - (whitened @ whitened.transpose(1, 2)).double()

    # G was rounded to float32, so that what is just above 0 may come out below.
    core.diagonal(dim1=1, dim2=2).add_(torch.finfo(torch.float32).eps)
    factor = torch.linalg.cholesky(core).to(whitened.dtype)
    return torch.linalg.solve_triangular(factor, whitened, upper=False) @ whitening

"""One Gaussian per position of a feature map, fitted in a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from adray.components.dynamic_buffer import DynamicBufferMixin

_CHUNK_BYTES = 256 * 2**20


class MultiVariateGaussian(DynamicBufferMixin):
    """Mean and covariance of P positions with d values each, and the Mahalanobis distance to them.

    `update` takes batches, `fit` ends the stream; no batch is kept. While it runs one (P, d, d) float32 tensor is
    held, which `fit` turns in place, some positions at a time, into the whitening matrices that `distance` needs.

    Args:
        regularization: added to the diagonal of each covariance, so that it can be inverted with fewer samples than d.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, regularization: float = 0.01) -> None:
        super().__init__()
        self.regularization = regularization
        self.register_buffer("mean", torch.empty(0))  # (P, d)
        self.register_buffer("whitening", torch.empty(0))  # (P, d, d), lower triangular
        self.reset()

    def reset(self) -> None:
        """Forget a stream that was begun."""
        self._count = 0
        self._shift = self._sum = self._products = torch.empty(0)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take a batch of (B, P, d).

        Sums run over values less the first batch's mean, so that float32 does not cancel.
        """
        values = values.transpose(0, 1)  # (P, B, d)
        if self._count == 0:
            self._shift = values.mean(1, keepdim=True)  # (P, 1, d)
            self._sum = torch.zeros_like(self._shift[:, 0], dtype=torch.float64)  # (P, d)
            self._products = values.new_zeros(
                len(values), values.shape[2], values.shape[2]
            )  # (P, d, d)
        shifted = values - self._shift
        self._sum += shifted.sum(1, dtype=torch.float64)
        self._products.baddbmm_(shifted.transpose(1, 2), shifted)
        self._count += values.shape[1]

    @torch.no_grad()
    def fit(self) -> None:
        """Turn the sums into means and whitening matrices: W with W^T W the inverse of covariance plus regularisation.

        Raises:
            ValueError: for fewer than two samples.
        """
        if self._count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, but there are {self._count}")
        positions, size = self._sum.shape
        offset = self._sum / self._count
        self.mean = (self._shift[:, 0] + offset).to(self._shift.dtype)
        identity = torch.eye(size, dtype=torch.float64, device=offset.device)
        for rows in torch.arange(positions, device=offset.device).split(
            max(1, _CHUNK_BYTES // (8 * size * size))
        ):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            covariance = self._products[part].double()  # in place from here on, as these are large
            covariance.baddbmm_(offset[part, :, None], offset[part, None, :], alpha=-self._count)
            covariance.div_(self._count - 1).diagonal(dim1=1, dim2=2).add_(self.regularization)
            factor = torch.linalg.cholesky(covariance)
            self._products[part] = torch.linalg.solve_triangular(factor, identity, upper=False).to(
                self._products.dtype
            )
        self.whitening = self._products
        self.reset()

    def distance(self, values: Tensor) -> Tensor:
        """Mahalanobis distance of (B, P, d) to each position's Gaussian, (B, P), at least 0."""
        centered = (values - self.mean).transpose(0, 1)  # (P, B, d)
        return torch.bmm(centered, self.whitening.transpose(1, 2)).norm(dim=2).T  # (B, P)

"""One invertible step of a normalising flow: affine coupling, a scale and shift per channel, a fixed permutation.

Computes what FrEIA's `AllInOneBlock` does with softplus scaling and a hard permutation (L. Ardizzone et al., MIT
licence, https://github.com/vislearn/FrEIA), so weights carry over. The permutation is an index here: FrEIA multiplies
with a dense (C, C) matrix and keeps two of them per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SCALE_INIT = 2.0 * math.log(math.exp(5.0) - 1.0)  # where 0.1 * softplus(s, beta=0.5) is 1


class AllInOneBlock(nn.Module):
    """An invertible map of (B, C, ...) tensors, with the logarithm of its Jacobian determinant.

    The first half of the channels passes unchanged and tells a sub-network how to scale and shift the second half.

    Args:
        channels: C, at least 2; an odd one goes to the first half.
        build_subnet: called with input and output channels; returns the network that reads the first half (and the
            condition) and keeps all but the channel dimension.
        clamp: bound of the coupling's log scale, which lies in (-clamp, clamp).
        condition_channels: channels of the condition that `forward` and `inverse` take; 0 for none.
    """

    permutation: Tensor

    def __init__(
        self,
        channels: int,
        build_subnet: Callable[[int, int], nn.Module],
        clamp: float = 2.0,
        condition_channels: int = 0,
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.halves = [channels - channels // 2, channels // 2]
        self.subnet = build_subnet(self.halves[0] + condition_channels, 2 * self.halves[1])
        self.global_scale = nn.Parameter(torch.full((channels,), _SCALE_INIT))
        self.global_offset = nn.Parameter(torch.zeros(channels))
        # A buffer: it is random, and a checkpoint without it would be another model.
        self.register_buffer("permutation", torch.randperm(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map `x` towards the latent space.

        Args:
            x: (B, C, ...).
            condition: (B, condition_channels, ...), or None.

        Returns:
            The image of `x`, (B, C, ...), and log|det J| per sample, (B,).
        """
        first, second = x.split(self.halves, dim=1)
        log_scale, shift = self._coupling(first, condition)
        y = torch.cat((first, torch.addcmul(shift, second, log_scale.exp())), dim=1)
        scale = self._scale()
        y = torch.addcmul(self._by_channel(self.global_offset, x), y, self._by_channel(scale, x))
        positions = x[0, 0].numel()
        log_det = log_scale.flatten(1).sum(1) + positions * scale.log().sum()
        return y.index_select(1, self.permutation), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """The `x` whose image under `forward` is `y`, both (B, C, ...)."""
        y = y.index_select(1, self.permutation.argsort())
        y = (y - self._by_channel(self.global_offset, y)) / self._by_channel(self._scale(), y)
        first, second = y.split(self.halves, dim=1)
        log_scale, shift = self._coupling(first, condition)
        return torch.cat((first, (second - shift) * torch.exp(-log_scale)), dim=1)

    def _coupling(self, first: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log scale and shift of the second half, each (B, C // 2, ...)."""
        known = first if condition is None else torch.cat((first, condition), dim=1)
        # A tenth of what the sub-network says: a fresh step is close to a permutation, and training stays stable.
        log_scale, shift = (0.1 * self.subnet(known)).chunk(2, dim=1)
        return self.clamp * torch.tanh(log_scale), shift

    def _scale(self) -> Tensor:
        return 0.1 * F.softplus(self.global_scale, beta=0.5)  # (C,), positive

    @staticmethod
    def _by_channel(values: Tensor, like: Tensor) -> Tensor:
        return values.view(-1, *([1] * (like.dim() - 2)))  # (C, 1, ...)

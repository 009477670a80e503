"""One invertible step of a normalising flow, and such steps after each other.

A step is an affine coupling, a scale and shift per channel, and a fixed permutation or rotation of
the channels. It computes what FrEIA's `AllInOneBlock` does with softplus scaling (L. Ardizzone et
al., MIT licence, https://github.com/vislearn/FrEIA), so weights carry over, and it stands in
FrEIA's sequences in its place. The permutation is an index here: FrEIA multiplies with a dense
(C, C) matrix and keeps two of them per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn
from torch.nn import functional as F

_SCALE_INIT = 2.0 * math.log(math.exp(5.0) - 1.0)  # where 0.1 * softplus(s, beta=0.5) is 1


class AllInOneBlock(InvertibleModule):
    """An invertible map of (B, C, ...) tensors, with the logarithm of its Jacobian determinant.

    The first half of the channels passes unchanged and tells a sub-network how to scale and shift
    the second half.

    Args:
        dims_in: one shape (C, ...), of which only C counts, at least 2. An odd one goes to the
            first half.
        dims_c: the condition's shape (D, ...), of which only D counts, or nothing for none.
        subnet_constructor: called with input and output channels. It returns the network that reads
            the first half (and the condition) and keeps all but the channel dimension.
        affine_clamping: bound of the coupling's log scale, which lies in (-bound, bound).
        permute_soft: turn the channels' space at random in place of a permutation.
    """

    permutation: Tensor
    rotation: Tensor

    def __init__(
        self,
        dims_in: Sequence[tuple[int, ...]],
        dims_c: Sequence[tuple[int, ...]] = (),
        *,
        subnet_constructor: Callable[[int, int], nn.Module],
        affine_clamping: float = 2.0,
        permute_soft: bool = False,
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels = dims_in[0][0]
        self.clamp = affine_clamping
        self.halves = [channels - channels // 2, channels // 2]

        known = self.halves[0] + sum(shape[0] for shape in dims_c)
        self.subnet = subnet_constructor(known, 2 * self.halves[1])
        self.global_scale = nn.Parameter(torch.full((channels,), _SCALE_INIT))
        self.global_offset = nn.Parameter(torch.zeros(channels))
        # A buffer: it is random, and a checkpoint without it would be another model.
        self.permute_soft = permute_soft
        if permute_soft:
            self.register_buffer("rotation", random_rotation(channels))
        else:
            self.register_buffer("permutation", torch.randperm(channels))

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Give the shapes of what comes out: those of what goes in."""
        return input_dims

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] = (),
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor], Tensor]:
        """Map x towards the latent space, or z back.

        Args:
            x_or_z: x, or z for the way back, as one tensor (B, C, ...).
            c: the condition as one tensor (B, D, ...), or nothing where there is none.
            rev: go back.
            jac: without effect, the determinant is always given.

        Returns:
            z or x as one tensor (B, C, ...), and log|det J| of the way taken per sample, (B,).
        """
        (tensor,) = x_or_z
        image, log_det = self._to_data(tensor, c) if rev else self._to_latent(tensor, c)
        return (image,), log_det

    def _to_latent(self, x: Tensor, c: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.halves, dim=1)
        log_scale, shift = self._coupling(first, c)
        z = torch.cat((first, torch.addcmul(shift, second, log_scale.exp())), dim=1)

        scale = self._scale()
        z = torch.addcmul(_by_channel(self.global_offset, x), z, _by_channel(scale, x))
        log_det = _log_det(log_scale, scale)
        return self._mix(z), log_det

    def _to_data(self, z: Tensor, c: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        scale = self._scale()
        z = self._unmix(z)
        z = (z - _by_channel(self.global_offset, z)) / _by_channel(scale, z)

        first, second = z.split(self.halves, dim=1)
        log_scale, shift = self._coupling(first, c)
        x = torch.cat((first, (second - shift) * torch.exp(-log_scale)), dim=1)
        return x, -_log_det(log_scale, scale)

    def _mix(self, z: Tensor) -> Tensor:
        """Permute or turn the channels, which leaves volumes as they are."""
        if self.permute_soft:
            return torch.einsum("oc,bc...->bo...", self.rotation, z)
        return z.index_select(1, self.permutation)

    def _unmix(self, z: Tensor) -> Tensor:
        """Undo `_mix`."""
        if self.permute_soft:
            return torch.einsum("oc,bo...->bc...", self.rotation, z)
        return z.index_select(1, self.permutation.argsort())

    def _coupling(self, first: Tensor, c: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Give log scale and shift of the second half, each (B, C // 2, ...)."""
        known = torch.cat((first, *c), dim=1) if c else first
        # A tenth of what the sub-network says: a fresh step is close to a permutation, and
        # training stays stable.
        log_scale, shift = (0.1 * self.subnet(known)).chunk(2, dim=1)
        return self.clamp * torch.tanh(log_scale), shift

    def _scale(self) -> Tensor:
        return 0.1 * F.softplus(self.global_scale, beta=0.5)  # (C,), positive


def random_rotation(channels: int) -> Tensor:
    """Draw a rotation of (C,) vectors, (C, C), all of them being equally likely."""
    rotation, triangle = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))

    # The decomposition prefers some signs, these make it uniform over all orthogonal matrices.
    rotation = rotation * triangle.diagonal().sign()
    if torch.linalg.slogdet(rotation).sign < 0:
        rotation[:, 0] = -rotation[:, 0]  # a reflection becomes a rotation
    return rotation.float()


def _log_det(log_scale: Tensor, scale: Tensor) -> Tensor:
    """Add up the log scales of the coupling, (B, C // 2, ...), and of the channels, (C,): (B,)."""
    # By shape: an index into the batch would bind an exported graph to its length.
    positions = log_scale.shape[2:].numel()
    return log_scale.flatten(1).sum(1) + positions * scale.log().sum()


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per channel such that it meets (B, C, ...): (C, 1, ...)."""
    return values.view(-1, *([1] * (like.dim() - 2)))


class CouplingSteps(SequenceINN):
    """Steps after each other, as FrEIA's sequence.

    `append` adds a step. A call maps x to z and log|det dz/dx|, (B,), or back with ``rev=True``.

    Args:
        dims: shape (C, ...) of what goes in and out. `AllInOneBlock` reads C alone of it.
    """

    def __init__(self, *dims: int) -> None:
        super().__init__(*dims)
        # Checkpoints are older than FrEIA's frame here and call the steps so.
        del self.module_list
        self.steps = nn.ModuleList()

    @property
    def module_list(self) -> nn.ModuleList:
        """Give the steps under FrEIA's name."""
        return self.steps

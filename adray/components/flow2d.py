"""Steps of a normalising flow over feature maps, whose sub-networks are convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice

from torch import nn

from adray.components.all_in_one_block import AllInOneBlock, CouplingSteps


def conv_subnet(kernel_size: int, hidden_ratio: float) -> Callable[[int, int], nn.Module]:
    """Give a builder of two convolutions with a ReLU between, as `AllInOneBlock` wants it.

    Args:
        kernel_size: side of both convolutions, odd.
        hidden_ratio: hidden channels as a multiple of the input channels.
    """
    padding = kernel_size // 2

    def build(channels_in: int, channels_out: int) -> nn.Module:
        hidden = max(1, int(channels_in * hidden_ratio))
        return nn.Sequential(
            nn.Conv2d(channels_in, hidden, kernel_size, padding=padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels_out, kernel_size, padding=padding),
        )

    return build


def build_flow2d(
    channels: int, steps: int, kernel_sizes: Sequence[int], hidden_ratio: float, clamp: float
) -> CouplingSteps:
    """Build the steps from a feature map (B, C, h, w) to a latent one of the same shape.

    Args:
        channels: C of the feature map.
        steps: number of coupling steps.
        kernel_sizes: of the steps' sub-networks, in turn.
        hidden_ratio: see `conv_subnet`.
        clamp: bound of a coupling's log scale.
    """
    flow = CouplingSteps(channels)
    for kernel_size in islice(cycle(kernel_sizes), steps):
        subnet = conv_subnet(kernel_size, hidden_ratio)
        flow.append(AllInOneBlock, subnet_constructor=subnet, affine_clamping=clamp)
    return flow

"""EfficientNet-Lite0 with the published file's names of parameters, tapped at several stages.

M. Tan and Q. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML
2019, https://arxiv.org/abs/1905.11946. Its Lite form has no squeeze-and-excitation and clips at 6
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). As in TensorFlow,
a convolution of stride 2 pads an even side at its end alone.

It is small, and a package of the package index holds its trained weights, so it is what finds
defects where no larger backbone has been copied. timm has the network as well, but takes seconds to
import. The tests hold this one against timm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-3
"""Of its batch norms, TensorFlow's."""


@dataclass(frozen=True)
class _Blocks:
    """Inverted residual blocks in a row."""

    depth: int
    """Number of blocks."""
    kernel: int
    """Side of the depthwise convolutions."""
    stride: int
    """Of the first block."""
    expansion: int
    """Channels between the 1x1 convolutions for each channel of the input."""
    channels: int
    """Of the output."""


_STEM = 32
"""Channels that the first convolution gives."""
_PLAN = (
    _Blocks(1, 3, 1, 1, 16),
    _Blocks(2, 3, 2, 6, 24),
    _Blocks(2, 5, 2, 6, 40),
    _Blocks(3, 3, 2, 6, 80),
    _Blocks(3, 5, 1, 6, 112),
    _Blocks(4, 5, 2, 6, 192),
    _Blocks(1, 3, 1, 6, 320),
)
_ENDS = {2: "layer1", 4: "layer2", 10: "layer3", 15: "layer4"}
"""The last block of each stride, 4, 8, 16 and 32, by the name of the ResNet's stage of it."""


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow does: the odd pixel at the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H / stride, W / stride), rounded up."""
        rows = self._padding(x.shape[2])
        columns = self._padding(x.shape[3])
        padded = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(padded)

    def _padding(self, side: int) -> int:
        """Count the pixels that a side of the image lacks."""
        stride = self.stride[0]
        steps = math.ceil(side / stride) - 1
        return max(steps * stride + self.kernel_size[0] - side, 0)


class InvertedResidual(nn.Module):
    """A depthwise convolution between two of 1x1, and a shortcut where the shape stays.

    Args:
        channels_in: of the input.
        blocks: in whose row it stands.
        stride: of the depthwise convolution.
    """

    def __init__(self, channels_in: int, blocks: _Blocks, stride: int) -> None:
        super().__init__()
        width = channels_in * blocks.expansion
        self.has_shortcut = stride == 1 and channels_in == blocks.channels
        self._expand_conv: nn.Module = nn.Identity()
        if blocks.expansion > 1:
            self._expand_conv = nn.Conv2d(channels_in, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, _EPS)

        self._depthwise_conv = SameConv2d(
            width, width, blocks.kernel, stride, groups=width, bias=False
        )
        self._bn1 = nn.BatchNorm2d(width, _EPS)
        self._project_conv = nn.Conv2d(width, blocks.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(blocks.channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels, H / stride, W / stride)."""
        branch = x
        if isinstance(self._expand_conv, nn.Conv2d):
            branch = F.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        branch = F.relu6(self._bn1(self._depthwise_conv(branch)), inplace=True)
        branch = self._bn2(self._project_conv(branch))
        return branch + x if self.has_shortcut else branch


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its head, up to the last stage that is tapped.

    Args:
        layers: stages whose maps are given, some of ``layer1`` to ``layer4`` in this order. They
            have 24, 40, 112 and 320 channels.
    """

    first_weights = ("_conv_stem", "_bn0", "_blocks.0.", "_blocks.1.", "_blocks.2.")
    """Beginnings of the names of the parameters that every choice of layers has."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self._conv_stem = SameConv2d(3, _STEM, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(_STEM, _EPS)
        self._blocks = nn.ModuleList(_all_blocks())

        # The whole network takes its random numbers, so that what is drawn after it stays the same
        # whichever stages are tapped.
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        last = max(number for number, stage in _ENDS.items() if stage in self.layers)
        del self._blocks[last + 1 :]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Give the maps of the tapped stages.

        Args:
            image: (B, 3, H, W) normalised.

        Returns:
            One (B, C, h, w) map per layer, in the order of `layers`.
        """
        x = F.relu6(self._bn0(self._conv_stem(image)), inplace=True)
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if _ENDS.get(number) in self.layers:
                maps.append(x)
        return maps


def _all_blocks() -> list[nn.Module]:
    """Build the sixteen blocks."""
    found: list[nn.Module] = []
    channels = _STEM
    for blocks in _PLAN:
        for number in range(blocks.depth):
            stride = blocks.stride if number == 0 else 1
            found.append(InvertedResidual(channels, blocks, stride))
            channels = blocks.channels
    return found

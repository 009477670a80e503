"""Convolutional encoder and decoder of the reconstruction methods, skip connections optional."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def down_block(channels_in: int, channels_out: int) -> nn.Module:
    """Halve the side: 4x4 convolution of stride 2, batch norm, leaky ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2, inplace=True))


def up_block(channels_in: int, channels_out: int) -> nn.Module:
    """Double the side: 4x4 transposed convolution of stride 2, batch norm, leaky ReLU."""
    conv = nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2, inplace=True))


def level_widths(base_channels: int, num_blocks: int) -> list[int]:
    """Count the channels of each level, from the largest map to the smallest."""
    return [base_channels * 2**level for level in range(num_blocks)]


class Encoder(nn.Module):
    """Convolutions of stride 2, each of which doubles the channels, then a 1x1 convolution.

    Args:
        base_channels: channels after the first convolution.
        num_blocks: convolutions of stride 2.
        latent_channels: channels of the latent map.
    """

    def __init__(self, base_channels: int, num_blocks: int, latent_channels: int) -> None:
        super().__init__()
        widths = level_widths(base_channels, num_blocks)
        self.blocks = nn.ModuleList()
        for channels_in, channels_out in itertools.pairwise([3, *widths]):
            self.blocks.append(down_block(channels_in, channels_out))
        self.head = nn.Conv2d(widths[-1], latent_channels, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Squeeze (B, 3, H, W), H and W multiples of 2 ** num_blocks.

        Returns:
            The latent map, (B, latent_channels, H / 2 ** num_blocks, W / 2 ** num_blocks), and the
            output of each block, from the largest map to the smallest.
        """
        levels = []
        for block in self.blocks:
            image = block(image)
            levels.append(image)
        return self.head(image), levels


class Decoder(nn.Module):
    """The mirrored `Encoder`, ending in a sigmoid.

    Args:
        base_channels: channels of the largest map.
        num_blocks: convolutions of stride 2.
        latent_channels: channels of the latent map.
        skips: skip connections, from the deepest level upwards; `num_blocks - 1` connects all
            levels of a U-Net.
    """

    def __init__(
        self, base_channels: int, num_blocks: int, latent_channels: int, skips: int = 0
    ) -> None:
        super().__init__()
        self.skips = skips
        widths = level_widths(base_channels, num_blocks)[::-1]

        # A level of the encoder comes in beside what the block before has drawn.
        inputs = list(widths)
        for level in range(1, skips + 1):
            inputs[level] *= 2

        self.head = nn.Conv2d(latent_channels, widths[0], 1)
        self.blocks = nn.ModuleList()
        for channels_in, channels_out in zip(inputs[:-1], widths[1:], strict=True):
            self.blocks.append(up_block(channels_in, channels_out))
        self.tail = nn.ConvTranspose2d(inputs[-1], 3, 4, stride=2, padding=1)

    def forward(self, latent: Tensor, levels: list[Tensor]) -> Tensor:
        """Draw (B, 3, H, W) in [0, 1] from a latent map and the levels of the encoder."""
        x = self.head(latent)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < self.skips:
                # The deepest level is the latent map's own source, so the one above it comes first.
                x = torch.cat([x, levels[-2 - i]], dim=1)
        return torch.sigmoid(self.tail(x))

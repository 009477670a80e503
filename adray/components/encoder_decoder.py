"""The convolutional encoder and decoder of the reconstruction methods, with skip connections where they are wanted."""

from __future__ import annotations

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


class Encoder(nn.Module):
    """Convolutions of stride 2, each of which doubles the channels, then a 1x1 convolution to the latent map.

    Args:
        base_channels: channels after the first convolution.
        num_blocks: convolutions of stride 2.
        latent_channels: channels of the latent map.
    """

    def __init__(self, base_channels: int, num_blocks: int, latent_channels: int) -> None:
        super().__init__()
        widths = _widths(base_channels, num_blocks)
        self.blocks = nn.ModuleList(
            down_block(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], latent_channels, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Squeeze (B, 3, H, W), H and W multiples of 2 ** num_blocks.

        Returns:
            The latent map, (B, latent_channels, H / 2 ** num_blocks, W / 2 ** num_blocks), and what each block gave,
            from the largest to the smallest map.
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
        skips: skip connections, from the deepest level upwards; `num_blocks - 1` connects all levels of a U-Net.
    """

    def __init__(
        self, base_channels: int, num_blocks: int, latent_channels: int, skips: int = 0
    ) -> None:
        super().__init__()
        self.skips = skips
        widths = _widths(base_channels, num_blocks)[::-1]
        taken = [width * 2 if 0 < i <= skips else width for i, width in enumerate(widths)]
        self.head = nn.Conv2d(latent_channels, widths[0], 1)
        self.blocks = nn.ModuleList(
            up_block(i, o) for i, o in zip(taken[:-1], widths[1:], strict=True)
        )
        self.tail = nn.ConvTranspose2d(taken[-1], 3, 4, stride=2, padding=1)

    def forward(self, latent: Tensor, levels: list[Tensor]) -> Tensor:
        """Draw (B, 3, H, W) in [0, 1] from a latent map and the levels of the encoder."""
        x = self.head(latent)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < self.skips:
                x = torch.cat([x, levels[-2 - i]], 1)
        return torch.sigmoid(self.tail(x))


def _widths(base_channels: int, num_blocks: int) -> list[int]:
    return [base_channels * 2**i for i in range(num_blocks)]

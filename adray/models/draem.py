"""DRAEM: A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection.

V. Zavrtanik et al., ICCV 2021.

Paper: https://arxiv.org/abs/2108.07610
Reference: https://github.com/VitjanZ/DRAEM (MIT; facts only).

Irregular patches of normal images are painted over with foreign textures. One network learns to
undo this, a second one sees both images and learns to say where they differ in a way that matters.
The map is its probability of an anomaly, the score the maximum of the map's local mean.

Differs from the paper: patches also reach the corners of the image (see `adray.components.perlin`).
The ten ways of changing a texture are torchvision's, in ranges close to the reference's. Colours
are in RGB order, the reference's published weights expect BGR. An epoch has each image once, where
the reference draws as many with replacement.

Differs from the reference in the loss:

- The structural similarity mirrors the border. There the window sees zeros, which make a border
  more alike than it is (2 % of this term at 256 px).
- Its constants are those of values in [0, 1]. There they are four times as large whenever the
  rebuilt image has a value below -0.5, as in the first steps.
- The focal loss is exact. There probabilities are bounded at 1e-5, so that a pixel which is
  confidently wrong teaches almost nothing, which forgives wrong masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.focal_loss import focal_loss
from adray.components.inside import highest_local_mean
from adray.components.perlin import perlin_mask
from adray.components.ssim import ssim_map
from adray.components.sspcab import SSPCAB
from adray.components.textures import (
    draw_number,
    draw_textures,
    find_photographs,
    image_functions,
    turned_texture,
)
from adray.methods.draem import METHODS, DraemConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_SCORE_WINDOW = 21
"""Side in pixels of the mean before the maximum (reference)."""


def conv_layer(channels_in: int, channels_out: int) -> nn.Module:
    """Build a 3x3 convolution with batch norm and ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def conv_block(channels_in: int, channels_mid: int, channels_out: int) -> nn.Module:
    """Build two `conv_layer`."""
    first = conv_layer(channels_in, channels_mid)
    return nn.Sequential(first, conv_layer(channels_mid, channels_out))


def down_stage(channels_in: int, channels_out: int) -> nn.Module:
    """Build a block that halves the side at its end."""
    return nn.Sequential(conv_block(channels_in, channels_out, channels_out), nn.MaxPool2d(2))


def up_layer(channels_in: int, channels_out: int) -> nn.Module:
    """Build what doubles the side bilinearly, then a `conv_layer`."""
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(enlarge, conv_layer(channels_in, channels_out))


def up_stage(channels_in: int, channels_out: int) -> nn.Module:
    """Build a block that doubles the side at its beginning."""
    enlarge = up_layer(channels_in, channels_in)
    return nn.Sequential(enlarge, conv_block(channels_in, channels_in, channels_out))


class ReconstructiveNetwork(nn.Module):
    """Autoencoder of stride 16 without skip connections (section 3.1).

    Args:
        width: channels at full resolution.
        sspcab: whether an SSPCAB block takes the place of the deepest convolutions.
    """

    def __init__(self, width: int, sspcab: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            down_stage(3, width),
            down_stage(width, 2 * width),
            down_stage(2 * width, 4 * width),
            down_stage(4 * width, 8 * width),
        )

        self.bottleneck: nn.Module
        if sspcab:
            self.bottleneck = SSPCAB(8 * width)
        else:
            self.bottleneck = conv_block(8 * width, 8 * width, 8 * width)

        # As many doublings as the encoder has halvings, and three colours at the end.
        self.decoder = nn.Sequential(
            up_stage(8 * width, 4 * width),
            up_stage(4 * width, 2 * width),
            up_stage(2 * width, width),
            up_stage(width, width),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuild (B, 3, H, W).

        Returns:
            The reconstruction, (B, 3, H, W), not bounded, and the SSPCAB block's loss, a scalar,
            0 without the block.
        """
        code = self.encoder(image)
        predicted = self.bottleneck(code)
        if isinstance(self.bottleneck, SSPCAB):
            error = F.mse_loss(predicted, code)
        else:
            error = code.new_zeros(())
        return self.decoder(predicted), error


class DiscriminativeNetwork(nn.Module):
    """U-net of stride 32 over a reconstruction and its image (section 3.2).

    Args:
        width: channels at full resolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        channels_in = 6
        for factor in (1, 2, 4, 8, 8, 8):
            channels = factor * width
            self.down.append(conv_block(channels_in, channels, channels))
            channels_in = channels

        # Multiples of the width: what comes from below, what skips there, and what is made of both.
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for below, skip, out in ((8, 8, 8), (8, 8, 4), (4, 4, 2), (2, 2, 1), (1, 1, 1)):
            self.up.append(up_layer(below * width, out * width))
            self.merge.append(conv_block((out + skip) * width, out * width, out * width))
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, pair: Tensor) -> Tensor:
        """Give the logits of normal and anomalous, (B, 2, H, W), for (B, 6, H, W)."""
        skips = [self.down[0](pair)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        feature = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            feature = merge(torch.cat([up(feature), skips.pop()], 1))
        return self.head(feature)


class DraemModel(nn.Module):
    """The two networks one after the other.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: DraemConfig) -> None:
        super().__init__()
        self.reconstructive = ReconstructiveNetwork(config.reconstructive_width, config.sspcab)
        self.discriminative = DiscriminativeNetwork(config.discriminative_width)
        self.apply(init_weights)

    def compare(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rebuild a batch and look for what differs.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W multiples of 32.

        Returns:
            The reconstruction (B, 3, H, W), logits (B, 2, H, W) of normal and anomalous, and the
            SSPCAB block's loss.
        """
        rebuilt, block_loss = self.reconstructive(image)
        return rebuilt, self.discriminative(torch.cat([rebuilt, image], 1)), block_loss

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Show where a batch is anomalous.

        Args:
            image: see `compare`.
            features: None, since there is no frozen stage.

        Returns:
            The probability of an anomaly, (B, 1, H, W), and the maximum of its mean over 21 x 21
            pixels, (B,), both in [0, 1].
        """
        _, logits, _ = self.compare(image)
        anomaly_map = logits.float().softmax(1)[:, 1:]
        smooth = F.avg_pool2d(anomaly_map, _SCORE_WINDOW, stride=1, padding=_SCORE_WINDOW // 2)
        return Prediction(smooth.flatten(1).amax(1), anomaly_map)


def init_weights(module: nn.Module) -> None:
    """Draw the initial weights of a convolution or batch norm as the reference does."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def turn_some(image: Tensor, probability: float) -> Tensor:
    """Turn some of (B, 3, H, W) by up to 90 degrees either way. The corners become black."""
    turned = image.clone()
    for i in (torch.rand(len(image)) < probability).nonzero().flatten().tolist():
        turned[i] = turned_texture(image[i], draw_number(-90, 90))
    return turned


def paint(image: Tensor, texture: Tensor, mask: Tensor, beta: Tensor) -> Tensor:
    """Lay a texture over the masked part of an image (equation 4).

    Args:
        image: (B, 3, H, W) in [0, 1].
        texture: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W), 1 where the texture goes.
        beta: (B, 1, 1, 1) in [0, 1], the share of the image that shows through.
    """
    return torch.where(mask > 0, torch.lerp(texture, image, beta), image)


def augment_texture(texture: Tensor) -> Tensor:
    """Change (3, H, W) uint8 in three of ten ways, drawn without repetition (section 3.3)."""
    for i in torch.randperm(len(_AUGMENTERS))[:3].tolist():
        texture = _AUGMENTERS[i](texture)
    return texture


def _gamma(texture: Tensor) -> Tensor:
    exponent = torch.empty(3, 1, 1, device=texture.device).uniform_(0.5, 2.0)
    return (255 * (texture / 255) ** exponent).byte()


def _brightness(texture: Tensor) -> Tensor:
    return (texture * draw_number(0.8, 1.2) + draw_number(-30, 30)).clamp(0, 255).byte()


def _sharpness(texture: Tensor) -> Tensor:
    return image_functions().adjust_sharpness(texture, draw_number(0, 3))


def _hue_and_saturation(texture: Tensor) -> Tensor:
    shifted = image_functions().adjust_hue(texture, draw_number(-0.2, 0.2))
    return image_functions().adjust_saturation(shifted, draw_number(0.6, 1.4))


def _solarize(texture: Tensor) -> Tensor:
    if draw_number(0, 1) < 0.5:
        return image_functions().solarize(texture, draw_number(32, 128))
    return texture


def _posterize(texture: Tensor) -> Tensor:
    return image_functions().posterize(texture, int(draw_number(1, 9)))


def _rotate(texture: Tensor) -> Tensor:
    return turned_texture(texture, draw_number(-45, 45))


def _invert(texture: Tensor) -> Tensor:
    return image_functions().invert(texture)


def _autocontrast(texture: Tensor) -> Tensor:
    return image_functions().autocontrast(texture)


def _equalize(texture: Tensor) -> Tensor:
    return image_functions().equalize(texture)


_AUGMENTERS: tuple[Callable[[Tensor], Tensor], ...] = (
    _gamma,
    _brightness,
    _sharpness,
    _hue_and_saturation,
    _solarize,
    _posterize,
    _invert,
    _autocontrast,
    _equalize,
    _rotate,
)


def draem_losses(rebuilt: Tensor, logits: Tensor, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Give the three terms of equation 5, each a mean over the batch.

    Args:
        rebuilt: (B, 3, H, W), reconstruction of the painted image.
        logits: (B, 2, H, W) of normal and anomalous.
        image: (B, 3, H, W) in [0, 1], before painting.
        mask: (B, 1, H, W), 1 where painted.

    Returns:
        ``l2`` and ``ssim`` of the reconstruction (equation 2) and ``focal`` of the segmentation
        (equation 3).
    """
    rebuilt = rebuilt.float()
    return {
        "l2": F.mse_loss(rebuilt, image),
        "ssim": 1 - ssim_map(rebuilt, image).mean(),
        "focal": focal_loss(logits, mask),
    }


class DraemTrainer(BaseTrainer):
    """Trains both networks together on synthetic defects."""

    config: DraemConfig
    model: DraemModel
    method = METHODS["DraemTrainer"]
    textures: Any = None
    """Photographs to paint with, see `LoaderSet.auxiliary`; None for built-in noise."""

    def build_model(self) -> DraemModel:
        return DraemModel(self.config)

    def on_fit_start(self) -> None:
        size = self.train_config.input_size
        name = self.config.auxiliary
        self.textures = find_photographs(self.loaders, name, size, self.without_auxiliary)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        adam = torch.optim.Adam(self.model.parameters(), self.config.lr)
        milestones = [int(0.8 * total_steps), int(0.9 * total_steps)]
        return adam, torch.optim.lr_scheduler.MultiStepLR(adam, milestones, gamma=0.2)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        image = turn_some(batch.image, self.config.rotation_probability)
        painted, mask = self.add_defects(image)
        rebuilt, logits, block_loss = self.model.compare(painted)

        # Equation 5, and the block's own loss.
        losses = draem_losses(rebuilt, logits, image, mask)
        loss = losses["l2"] + losses["ssim"] + losses["focal"]
        loss = loss + self.config.sspcab_weight * block_loss
        self.optimize(loss)

        history = {"loss": loss, **losses}
        return {name: value.detach() for name, value in history.items()}

    def add_defects(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Paint foreign textures over patches of some images.

        Args:
            image: (B, 3, S, S) in [0, 1], normal.

        Returns:
            The painted images and where they were painted, (B, 1, S, S) in {0, 1}.
        """
        size = image.shape[-1]
        device = image.device
        painted = image.clone()
        mask = image.new_zeros(len(image), 1, size, size)
        chosen = (torch.rand(len(image)) < self.config.anomaly_probability).nonzero().flatten()
        count = len(chosen)
        if count == 0:
            return painted, mask

        # Only what is chosen gets noise and a texture, which cost more than the painting.
        chosen = chosen.to(device)
        patches = perlin_mask(count, size, self.config.perlin_threshold, device=device)
        beta = self.config.max_beta * torch.rand(count, 1, 1, 1, device=device)
        textures = self._draw_textures(count, size)
        painted[chosen] = paint(image[chosen], textures, patches, beta)
        mask[chosen] = patches
        return painted, mask

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return highest_local_mean(anomaly_map, inside, _SCORE_WINDOW)

    def _draw_textures(self, count: int, size: int) -> Tensor:
        """Draw textures and change them, (count, 3, S, S) in [0, 1]."""
        drawn = draw_textures(self.textures, count, size, self.device)
        return torch.stack([augment_texture(texture) for texture in drawn]) / 255

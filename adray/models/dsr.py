"""DSR: A Dual Subspace Re-Projection Network for Surface Anomaly Detection.

V. Zavrtanik et al., ECCV 2022.

Paper: https://arxiv.org/abs/2208.01521
Reference: https://github.com/VitjanZ/DSR_anomaly_detection (MIT; facts only); it publishes the
quantised autoencoder.

A frozen autoencoder turns an image into two maps of codes out of two codebooks. In training some
codes are exchanged for others nearby: defects that look like nothing in particular and need no
foreign images. Two restriction networks learn to bring such maps back to the codes of normal
images, a decoder of the object's own draws an image from them, and a detector learns to tell that
image from the one the frozen decoder draws of the disturbed codes. In a second phase, with images
that are painted over, one more network learns to sharpen the detector's map. The map is what this
one says, the score the maximum of the local mean of what the detector says.

Budget `paper` counts steps: an epoch of the reference is 8000 drawn images whatever the product has,
so that its 100 + 50 epochs in batches of 8 are 100 000 + 50 000 steps.

Differs from the reference:

- The focal loss takes the logarithm of the softmax as it is. The reference bounds probabilities
  at 1e-5, so that a pixel which is confidently wrong teaches almost nothing.
- The steps at which the second phase lowers its learning rate are counted within that phase. The
  reference never comes to them.
- The last step counts in both phases. The reference saves its second network every fifth epoch, for
  the last time in the 46th of 50.
- Images come in turn. The reference draws each anew, with replacement.
- Anomalous patches reach the corners (see `adray.components.perlin`).

Where to find what, in the order of the file: codes and the frozen autoencoder (`Codebook`,
`QuantizedAutoencoder`); the trained networks (`restriction_net`, `object_decoder`, `UNet`); how an
image becomes a map (`DsrModel`); synthetic defects (`disturb` and `exchange` in codes, `paint` in
pixels); the loss, and the two phases of training (`DsrTrainer`).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import load_backbone
from adray.components.focal_loss import focal_loss
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.components.inside import highest_local_mean
from adray.components.perlin import perlin_mask
from adray.methods.dsr import METHODS, DsrConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_CODES = 4096
"""K, entries of each codebook, as published."""
_DIM = 128
"""D, length of a code, as published; the autoencoder is as wide as a code is long."""
_HI = 4
"""Pixels per position of the fine map of codes."""
_LO = 8
"""Pixels per position of the coarse map of codes."""
_ROWS = 4096
"""Positions compared with a codebook at a time: a table of 64 MB."""
_SCORE_WINDOW = 21
"""Side in pixels of the mean before the maximum (reference)."""


# The quantised autoencoder; modules are named as in the published file


class Codebook(nn.Module):
    """Vectors that stand for all others: the nearest replaces a feature."""

    def __init__(self) -> None:
        super().__init__()
        self._embedding = nn.Embedding(_CODES, _DIM)

    def forward(self, features: Tensor) -> Tensor:
        """Quantise (B, D, h, w). The gradient passes straight through to the features."""
        flat = as_rows(features.detach())
        nearest = torch.cat([self.distances(rows).argmin(1) for rows in flat.split(_ROWS)])
        codes = as_map(self._embedding(nearest), features)
        if not features.requires_grad:
            return codes
        return features + (codes - features).detach()

    def at_rank(self, flat: Tensor, rank: Tensor) -> Tensor:
        """Give the code at a place in the order of distance to each feature.

        Args:
            flat: (N, D) features.
            rank: (N,), 0 for the nearest code.

        Returns:
            (N, D).
        """
        chosen = []
        for rows, places in zip(flat.split(_ROWS), rank.split(_ROWS), strict=True):
            order = self.distances(rows).argsort(1)  # (n, K), the nearest first
            chosen.append(order.gather(1, places[:, None])[:, 0])
        return self._embedding(torch.cat(chosen))

    def distances(self, flat: Tensor) -> Tensor:
        """Give the squared distances of (N, D) to the codes, (N, K).

        They lack the features' own squares, which order nothing.
        """
        codes = self._embedding.weight
        # In half precision many codes would be equally near.
        with torch.autocast(flat.device.type, enabled=False):
            return torch.addmm(codes.square().sum(1), flat.float(), codes.T, alpha=-2)

    def fill(self, features: Tensor) -> None:
        """Take the codes from the vectors of (B, D, h, w), at random."""
        flat = as_rows(features)
        self._embedding.weight.copy_(flat[torch.randperm(len(flat))[:_CODES]])


def as_rows(features: Tensor) -> Tensor:
    """Put the vectors of a map (B, D, h, w) below each other, (BHW, D)."""
    return rearrange(features, "b d h w -> (b h w) d")


def as_map(flat: Tensor, like: Tensor) -> Tensor:
    """Lay rows (BHW, D) out as a map of the shape, type and memory format of `like`."""
    b, _, h, w = like.shape
    codes = rearrange(flat, "(b h w) d -> b d h w", b=b, h=h, w=w).to(like.dtype)
    # As they come the channels lie last in memory.
    return codes.contiguous() if like.is_contiguous() else codes


class Residual(nn.Module):
    """A residual block whose shortcut is rectified too.

    So it is in the reference, where the ReLU works in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._block = nn.Sequential(
            nn.Identity(),  # the published file counts a ReLU here
            nn.Conv2d(_DIM, _DIM // 2, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(_DIM // 2, _DIM, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Refine (B, D, h, w)."""
        x = x.relu()
        return x + self._block(x)


class ResidualStack(nn.Module):
    """Two residual blocks and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self._layers = nn.ModuleList([Residual(), Residual()])

    def forward(self, x: Tensor) -> Tensor:
        """Refine (B, D, h, w)."""
        for layer in self._layers:
            x = layer(x)
        return x.relu()


def named(**parts: nn.Module) -> nn.Sequential:
    """Put modules after each other, with names in place of numbers."""
    return nn.Sequential(OrderedDict(parts))


def image_decoder(channels_in: int) -> nn.Sequential:
    """Build what draws an image (B, 3, 4h, 4w) from (B, channels_in, h, w)."""
    return named(
        _conv_1=nn.Conv2d(channels_in, _DIM, 3, padding=1),
        _residual_stack=ResidualStack(),
        _conv_trans_1=nn.ConvTranspose2d(_DIM, _DIM // 2, 4, stride=2, padding=1),
        relu=nn.ReLU(),
        _conv_trans_2=nn.ConvTranspose2d(_DIM // 2, 3, 4, stride=2, padding=1),
    )


@dataclass(frozen=True)
class Codes:
    """An image in the quantised autoencoder."""

    detail: Tensor
    """(B, D, H/4, W/4), of the fine encoder: with the coarse codes it gives the fine ones."""
    lo_features: Tensor
    """(B, D, H/8, W/8), not yet quantised."""
    lo: Tensor
    """(B, D, H/8, W/8), coarse codes."""
    hi: Tensor
    """(B, D, H/4, W/4), fine codes."""


class QuantizedAutoencoder(FrozenNetwork):
    """The frozen autoencoder with two codebooks after A. Razavi et al., VQ-VAE-2, NeurIPS 2019.

    It stays in eval mode whatever its parent does, and no gradient reaches its weights, codebooks
    included.

    Args:
        weights: ``"pretrained"`` reads the published file, ``"random"`` leaves the initialisation.

    Raises:
        InputError: for a missing, broken or foreign weight file.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.backbone = "dsr_vq_model"
        self._encoder_b = named(
            _conv_1=nn.Conv2d(3, _DIM // 2, 4, stride=2, padding=1),
            relu_1=nn.ReLU(),
            _conv_2=nn.Conv2d(_DIM // 2, _DIM, 4, stride=2, padding=1),
            relu_2=nn.ReLU(),
            _conv_3=nn.Conv2d(_DIM, _DIM, 3, padding=1),
            _residual_stack=ResidualStack(),
        )
        self._encoder_t = named(
            _conv_1=nn.Conv2d(_DIM, _DIM, 4, stride=2, padding=1),
            relu_1=nn.ReLU(),
            _conv_2=nn.Conv2d(_DIM, _DIM, 3, padding=1),
            relu_2=nn.ReLU(),
            _residual_stack=ResidualStack(),
        )
        self._pre_vq_conv_top = nn.Conv2d(_DIM, _DIM, 1)
        self._pre_vq_conv_bot = nn.Conv2d(2 * _DIM, _DIM, 1)
        self._vq_vae_top = Codebook()
        self._vq_vae_bot = Codebook()
        self.upsample_t = nn.ConvTranspose2d(_DIM, _DIM, 4, stride=2, padding=1)
        self._decoder_b = image_decoder(2 * _DIM)

        self.weight_file = chosen_weight_file(self.backbone, weights)
        if self.weight_file:
            load_backbone(self, self.weight_file)
        else:
            self._init_untrained()
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def _init_untrained(self) -> None:
        """Make an untrained autoencoder that tells images apart.

        Features keep their size from layer to layer, and the codes are such features.
        """
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

        clouds = F.interpolate(torch.rand(_CODES // 64, 3, 16, 16), (64, 64), mode="bicubic")
        detail = self._encoder_b(clouds)
        lo_features = self._pre_vq_conv_top(self._encoder_t(detail))  # (64, D, 8, 8)
        self.lo_codebook.fill(lo_features)
        self.hi_codebook.fill(self.hi_features(detail, self.lo_codebook(lo_features)))

    @property
    def lo_codebook(self) -> Codebook:
        """Give the coarse codes."""
        return self._vq_vae_top

    @property
    def hi_codebook(self) -> Codebook:
        """Give the fine codes."""
        return self._vq_vae_bot

    @torch.no_grad()
    def encode(self, image: Tensor) -> Codes:
        """Give the codes of (B, 3, H, W)."""
        detail = self._encoder_b(image)
        lo_features = self._pre_vq_conv_top(self._encoder_t(detail))
        lo = self.lo_codebook(lo_features)
        hi = self.hi_codebook(self.hi_features(detail, lo))
        return Codes(detail, lo_features, lo, hi)

    def hi_features(self, detail: Tensor, lo: Tensor) -> Tensor:
        """Make the features that become the fine codes, (B, D, H/4, W/4)."""
        return self._pre_vq_conv_bot(torch.cat([detail, self.upsample_t(lo)], 1))

    def join(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Put the coarse codes, enlarged, beside the fine ones for a decoder, (B, 2D, H/4, W/4)."""
        return torch.cat([self.upsample_t(lo), hi], 1)

    def decode(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Draw the image (B, 3, H, W) of any codes, without knowledge of the object."""
        return self._decoder_b(self.join(lo, hi))


# The trained networks


def conv_block(*channels: int) -> nn.Sequential:
    """Build 3x3 convolutions from each number of channels to the next, with norm and ReLU."""
    steps: list[nn.Module] = []
    for channels_in, channels_out in itertools.pairwise(channels):
        # A group per channel is instance norm, on a CPU in two thirds of `nn.InstanceNorm2d`'s
        # time.
        norm = nn.GroupNorm(channels_out, channels_out, affine=False)
        steps += [nn.Conv2d(channels_in, channels_out, 3, padding=1), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


def double() -> nn.Module:
    """Build what doubles the side bilinearly, corner pixels on the corners."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


def restriction_net(width: int) -> nn.Sequential:
    """Build what brings a map of codes, (B, D, h, w), back to the subspace of normal ones.

    It has no skips that could carry defects.
    """
    full = 2 * width
    half = 4 * width
    quarter = 8 * width
    return nn.Sequential(
        conv_block(_DIM, full, full),
        nn.MaxPool2d(2),
        conv_block(full, half, half),
        nn.MaxPool2d(2),
        conv_block(half, quarter, quarter),
        # Up again, to features that the codebook quantises.
        double(),
        conv_block(quarter, half, half, half),
        double(),
        conv_block(half, full, full, full),
        nn.Conv2d(full, _DIM, 3, padding=1),
    )


def object_decoder(width: int) -> nn.Sequential:
    """Build what draws the one object it is trained on from joined codes (B, 2D, H/4, W/4)."""
    full = 4 * width
    half = 8 * width
    quarter = 16 * width
    return nn.Sequential(
        conv_block(2 * _DIM, full, half),
        nn.MaxPool2d(2),
        conv_block(half, half, quarter),
        nn.MaxPool2d(2),
        # Few channels pass, enlarged to the codes' size, and become an image (B, 3, H, W).
        nn.Conv2d(quarter, width, 1),
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
        nn.ReLU(inplace=True),
        image_decoder(width),
    )


class UNet(nn.Module):
    """Three levels down and up again, with skips.

    Args:
        channels_in: of the images.
        width: channels at full size.
    """

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        full = width
        half = 2 * width
        quarter = 4 * width

        # Lists in the order of a pass, each from one level to the next.
        self.down = nn.ModuleList(
            [
                conv_block(channels_in, full, full),
                conv_block(full, half, half),
                conv_block(half, quarter, quarter),
            ]
        )
        self.bottom = conv_block(quarter, quarter, quarter)
        self.up = nn.ModuleList(
            [up_block(quarter, quarter), up_block(quarter, half), up_block(half, full)]
        )
        self.merge = nn.ModuleList(
            [
                conv_block(2 * quarter, quarter, quarter),
                conv_block(2 * half, half, half),
                conv_block(2 * full, full, full),
            ]
        )
        self.head = nn.Conv2d(full, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of normal and anomalous, (B, 2, H, W).

        Args:
            x: (B, C, H, W), H and W multiples of 8.
        """
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)

        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


def up_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Build what doubles the side and convolves."""
    return nn.Sequential(double(), conv_block(channels_in, channels_out))


# The model


@dataclass(frozen=True)
class Restored:
    """What the restriction networks and the object's decoder make of codes."""

    lo_features: Tensor
    """(B, D, H/8, W/8), before they are quantised again."""
    hi_features: Tensor
    """(B, D, H/4, W/4), likewise."""
    image: Tensor
    """(B, 3, H, W)."""


class DsrModel(nn.Module):
    """The frozen autoencoder and the five networks around it.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: DsrConfig) -> None:
        super().__init__()
        self.autoencoder = QuantizedAutoencoder(config.weights)
        self.restrict_lo = restriction_net(config.width)
        self.restrict_hi = restriction_net(config.width)
        self.decoder = object_decoder(config.width)
        self.detector = UNet(6, config.width)  # two images
        self.sharpener = UNet(8, config.width)  # these and two probabilities

        for part in (*self.decoder.modules(), *self.detector.modules()):
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(part.weight, std=0.02)

    def restore(self, lo: Tensor, hi: Tensor) -> Restored:
        """Bring codes back to those of normal images, and draw the image.

        Args:
            lo: (B, D, H/8, W/8).
            hi: (B, D, H/4, W/4).
        """
        lo_features = self.restrict_lo(lo)
        hi_features = self.restrict_hi(hi)
        vq = self.autoencoder
        joined = vq.join(vq.lo_codebook(lo_features), vq.hi_codebook(hi_features))
        return Restored(lo_features, hi_features, self.decoder(joined))

    def detect(self, restored: Tensor, general: Tensor) -> Tensor:
        """Give the logits (B, 2, H, W) of how the object's image differs from the general one.

        No gradient reaches either image.
        """
        return self.detector(torch.cat([restored.detach(), general.detach()], 1))

    @torch.no_grad()
    def compare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Draw an image of the object and a general one of its codes, and detect where they differ.

        Args:
            image: (B, 3, H, W) in [0, 1].

        Returns:
            Both images and the detector's two probabilities, (B, 8, H, W), for the sharpening
            network, and the probability of an anomaly, (B, 1, H, W) float32.
        """
        codes = self.autoencoder.encode(as_published(image))
        restored = self.restore(codes.lo, codes.hi).image
        general = self.autoencoder.decode(codes.lo, codes.hi)
        probability = self.detect(restored, general).float().softmax(1)
        seen = torch.cat([restored, general, probability.to(restored.dtype)], 1)
        return seen, probability[:, 1:]

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Tell how probable an anomaly is.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W multiples of 32.
            features: None, since the frozen stage is not cached.

        Returns:
            The sharpened probability of each pixel, (B, 1, H, W) in [0, 1], and the maximum of the
            local mean of the detector's, (B,).
        """
        seen, coarse = self.compare(image)
        anomaly_map = self.sharpener(seen).float().softmax(1)[:, 1:]
        local_mean = F.avg_pool2d(coarse, _SCORE_WINDOW, stride=1, padding=_SCORE_WINDOW // 2)
        return Prediction(local_mean.flatten(1).amax(1), anomaly_map)


def as_published(image: Tensor) -> Tensor:
    """Order colours blue, green, red, as the reference reads images for its weights."""
    return image.flip(1)


# Synthetic defects


@dataclass(frozen=True)
class Disturbed:
    """Codes with synthetic defects."""

    lo: Tensor
    """(B, D, H/8, W/8)."""
    hi: Tensor
    """(B, D, H/4, W/4)."""
    mask: Tensor
    """(B, 1, H, W), 1 where a defect is, at the resolution of the codes."""


def disturb(
    autoencoder: QuantizedAutoencoder, clean: Codes, mask: Tensor, config: DsrConfig
) -> Disturbed:
    """Exchange codes under a mask for foreign ones: in both maps, in the coarse, or in the fine.

    Half the images get both, a quarter each either (reference). Random numbers are drawn on the
    CPU, where asking how many positions a mask has makes no device wait.

    Args:
        autoencoder: of the codes.
        clean: codes of B normal images.
        mask: (B, 1, H, W) float32 in {0, 1}, on the CPU.
        config: strength of the defects.
    """
    both, only_lo = torch.rand(2, len(mask), 1, 1, 1) < 0.5
    in_lo = both | only_lo  # (B, 1, 1, 1)
    in_hi = both | ~only_lo
    lo_mask = F.max_pool2d(mask, _LO)
    hi_mask = F.max_pool2d(mask, _HI)

    # Fine codes are made anew of the disturbed coarse ones, but not where only these are disturbed.
    lo = exchange(autoencoder.lo_codebook, clean.lo_features, clean.lo, lo_mask * in_lo, config)
    hi_features = autoencoder.hi_features(clean.detail, lo)
    hi = torch.where(in_hi.to(lo.device), autoencoder.hi_codebook(hi_features), clean.hi)
    hi = exchange(autoencoder.hi_codebook, hi_features, hi, hi_mask * in_hi, config)

    size = mask.shape[2:]
    truth = torch.where(in_lo, F.interpolate(lo_mask, size), F.interpolate(hi_mask, size))
    return Disturbed(lo, hi, truth.to(lo.device, non_blocking=True))


def exchange(
    codebook: Codebook, features: Tensor, codes: Tensor, mask: Tensor, config: DsrConfig
) -> Tensor:
    """Put a random neighbour of the feature in the place of its code.

    Each position draws uniformly among the codes that are not the nearest few and not beyond the
    image's own strength.

    Args:
        codebook: of the codes.
        features: (B, D, h, w), not quantised.
        codes: (B, D, h, w).
        mask: (B, 1, h, w), above 0 where codes are exchanged, on the CPU.
        config: strength and skipped part.
    """
    b, _, h, w = codes.shape
    device = codes.device
    position = mask.flatten().nonzero()[:, 0]  # (n,), in 0..BHW - 1

    # Ranks are drawn from `first` on, and below a `last` that each image draws for itself.
    strength = config.min_strength + (1 - config.min_strength) * torch.rand(b)
    first = int(config.skipped * _CODES)
    last = (strength * _CODES).long().add(1).clamp(first + 1, _CODES - 1)  # (B,)
    last = last[position // (h * w)]  # (n,)
    rank = (first + torch.rand(len(position)) * (last - first)).long()

    position = position.to(device, non_blocking=True)
    rank = rank.to(device, non_blocking=True)
    foreign = codebook.at_rank(as_rows(features)[position], rank).to(codes.dtype)
    return as_map(as_rows(codes).index_copy(0, position, foreign), codes)


def paint(image: Tensor, mask: Tensor, max_beta: float) -> Tensor:
    """Cover patches with one random colour per image, of which a random part is transparent.

    Args:
        image: (B, 3, H, W).
        mask: (B, 1, H, W), above 0 inside the patches.
        max_beta: largest share of the image that shows through.
    """
    color = torch.rand(len(image), 3, 1, 1).to(image.device)
    beta = max_beta * torch.rand(len(image), 1, 1, 1).to(image.device)
    return torch.where(mask > 0, torch.lerp(color, image, beta), image)


def turn_some(image: Tensor, probability: float) -> Tensor:
    """Turn some of (B, 3, S, S) by up to 90 degrees either way. The corners become black."""
    chosen = torch.rand(len(image), 1, 1, 1) < probability
    angle = (torch.rand(len(image)) - 0.5) * math.pi
    cos = angle.cos()
    sin = angle.sin()
    zero = torch.zeros(len(image))

    # Two rows of three: a rotation about the centre, and no shift.
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix.to(image.device), list(image.shape), align_corners=False)
    turned = F.grid_sample(image, grid, align_corners=False)
    return torch.where(chosen.to(image.device), turned, image)


# The loss and the training


def restoration_loss(image: Tensor, clean: Codes, restored: Restored) -> Tensor:
    """Measure how far the restored codes and image are from those of the normal image."""
    lo = F.mse_loss(restored.lo_features.float(), clean.lo)
    hi = F.mse_loss(restored.hi_features.float(), clean.hi)
    return lo + hi + 10 * F.mse_loss(restored.image.float(), image)


class DsrTrainer(BaseTrainer):
    """Trains restriction, decoder and detector on disturbed codes, then the sharpening network.

    The second phase shows it painted images.
    """

    config: DsrConfig
    model: DsrModel
    method = METHODS["DsrTrainer"]

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return highest_local_mean(anomaly_map, inside, _SCORE_WINDOW)

    @classmethod
    def check_weight_file(cls, config: DsrConfig, name: str, path: Path) -> None:
        load_backbone(QuantizedAutoencoder("random"), path)

    def build_model(self) -> DsrModel:
        return DsrModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        first = max(1, round(self.config.first_phase * total_steps))
        self.first_steps = first

        def first_rate(step: int) -> float:
            """Give the factor of the first phase's learning rate."""
            return 1.0 if step < 0.8 * first else 0.1

        def second_rate(step: int) -> float:
            """Give the factor of the second phase's learning rate."""
            done = (step - first) / max(1, total_steps - first)
            if done < 0.8:
                return 1.0
            return 0.2 if done < 0.9 else 0.04

        # One optimiser for both phases: what has no gradient in a phase does not move in it.
        model = self.model
        early = nn.ModuleList([model.restrict_lo, model.restrict_hi, model.decoder, model.detector])
        groups = [
            {"params": list(early.parameters())},
            {"params": list(model.sharpener.parameters())},
        ]
        adam = torch.optim.Adam(groups, self.config.lr, fused=True)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, [first_rate, second_rate])

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        if self.step < self.first_steps:
            loss, focal = self.first_phase(batch.image)
        else:
            focal = self.second_phase(batch.image)
            loss = focal
        self.optimize(loss)
        return {"loss": loss.detach(), "loss_focal": focal.detach()}

    def first_phase(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Learn to restore, and to detect, disturbed codes of (B, 3, S, S).

        Returns:
            The loss, and its focal part.
        """
        model = self.model
        image = as_published(turn_some(image, self.config.rotation_probabilities[0]))
        with torch.no_grad():
            clean = model.autoencoder.encode(image)
            disturbed = disturb(model.autoencoder, clean, self.draw_mask(image), self.config)
            general = model.autoencoder.decode(disturbed.lo, disturbed.hi)

        # The detector compares what the object's decoder and the frozen one make of the same codes.
        restored = model.restore(disturbed.lo, disturbed.hi)
        logits = model.detect(restored.image, general)
        focal = focal_loss(logits, disturbed.mask)
        return restoration_loss(image, clean, restored) + focal, focal

    def second_phase(self, image: Tensor) -> Tensor:
        """Learn to find what is painted on (B, 3, S, S), and give the loss."""
        image = turn_some(image, self.config.rotation_probabilities[1])
        mask = self.draw_mask(image).to(image.device, non_blocking=True)
        seen, _ = self.model.compare(paint(image, mask, self.config.max_beta))
        return focal_loss(self.model.sharpener(seen), mask)

    def draw_mask(self, image: Tensor) -> Tensor:
        """Draw patches for some of (B, 3, S, S), none for the others.

        Returns:
            (B, 1, S, S) float32 in {0, 1}, on the CPU.
        """
        chosen = torch.rand(len(image), 1, 1, 1) < self.config.anomaly_probability
        return perlin_mask(len(image), image.shape[-1], self.config.perlin_threshold) * chosen

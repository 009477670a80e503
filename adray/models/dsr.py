"""DSR: A Dual Subspace Re-Projection Network for Surface Anomaly Detection (V. Zavrtanik et al., ECCV 2022).

Paper: https://arxiv.org/abs/2208.01521
Reference: https://github.com/VitjanZ/DSR_anomaly_detection (MIT; facts only); it publishes the quantised autoencoder.

A frozen autoencoder turns an image into two maps of codes out of two codebooks. In training some codes are exchanged
for others nearby: anomalies that look like nothing in particular and need no foreign images. Two restriction networks
learn to bring such maps back to the codes of normal images, a decoder of the object's own draws an image from them, and
a detector learns to tell that image from the one the frozen decoder draws of the disturbed codes. In a second phase,
with images that are painted over, one more network learns to sharpen the detector's map. The map is what this one says,
the score the maximum of the local mean of what the detector says.

Differs from the reference: one softmax where it feeds its focal loss probabilities as if they were logits; the steps at
which the second phase lowers its learning rate are counted within that phase, the reference never comes to them;
anomalous patches reach the corners (see `adray.components.perlin`).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import load_backbone
from adray.components.focal_loss import focal_loss
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.components.perlin import perlin_mask
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_CODES, _DIM = 4096, 128
"""Entries of each codebook and their length, as published; the autoencoder is as wide as a code is long."""
_HI, _LO = 4, 8
"""Pixels per position of the fine and of the coarse map of codes."""
_STRIDE = 32
"""Pixels per position of the deepest map: the coarse codes are halved twice. Its norm needs two positions a side."""
_ROWS = 4096
"""Positions compared with a codebook at a time: a table of 64 MB."""
_SCORE_WINDOW = 21
"""Side in pixels of the mean before the maximum (reference)."""


@dataclass(frozen=True)
class DsrConfig:
    """Hyperparameters of DSR; defaults are the reference's."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the quantised autoencoder; everything else always starts at random."""
    width: int = 64
    """Channels of the detector and of the sharpening network at full size; the other trained networks' go with it."""
    lr: float = 2e-4
    """Learning rate of Adam in both phases, x 0.1 at 80 % of the first, x 0.2 at 80 and 90 % of the second."""
    first_phase: float = 2 / 3
    """Part of all steps that the first phase takes; the reference trains 100 + 50 epochs."""
    anomaly_probability: float = 0.5
    """Part of the training images that get an anomaly, in both phases."""
    perlin_threshold: float = 0.5
    """Of the noise that forms anomalous patches; higher gives fewer and smaller ones."""
    min_strength: float = 0.2
    """Least part of the codebook from which a foreign code is drawn, nearest first."""
    skipped: float = 0.05
    """Part of the codebook, nearest first, that is too close to be an anomaly; below `min_strength`."""
    max_beta: float = 0.8
    """Largest share of the image that shows through a painted patch of the second phase."""
    rotation_probabilities: tuple[float, float] = (0.4, 0.3)
    """Part of the training images that are turned by up to 90 degrees either way, per phase."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("width", self.width, 1, 512)
        check_range("lr", self.lr, 0, 1)
        check_range("first_phase", self.first_phase, 0.01, 0.99)
        check_range("anomaly_probability", self.anomaly_probability, 0, 1)
        check_range("perlin_threshold", self.perlin_threshold, -1, 1)
        check_range("min_strength", self.min_strength, 0.01, 1)
        check_range("skipped", self.skipped, 0, 0.99)
        check_range("max_beta", self.max_beta, 0, 1)
        if self.skipped >= self.min_strength:
            raise InputError(
                f"skipped {self.skipped} must be less than min_strength {self.min_strength}; lower it"
            )
        if len(self.rotation_probabilities) != 2:
            raise InputError(
                f"rotation_probabilities {list(self.rotation_probabilities)} must be two, one per phase"
            )
        for probability in self.rotation_probabilities:
            check_range("rotation_probabilities", probability, 0, 1)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return ("dsr_vq_model",) if self.weights == "pretrained" else ()


# The quantised autoencoder; modules are named as in the published file


class Codebook(nn.Module):
    """Vectors that stand for all others: the nearest replaces a feature."""

    def __init__(self) -> None:
        super().__init__()
        self._embedding = nn.Embedding(_CODES, _DIM)

    def forward(self, features: Tensor) -> Tensor:
        """Quantise (B, D, h, w); the gradient passes straight through to the features."""
        flat = features.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (BHW, D)
        nearest = torch.cat([self.distances(rows).argmin(1) for rows in flat.split(_ROWS)])
        codes = as_map(self._embedding(nearest), features)
        return features + (codes - features).detach() if features.requires_grad else codes

    def fill(self, features: Tensor) -> None:
        """Take the codes from the vectors of (B, D, h, w), at random."""
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)
        self._embedding.weight.copy_(flat[torch.randperm(len(flat))[:_CODES]])

    def at_rank(self, flat: Tensor, rank: Tensor) -> Tensor:
        """For each row of (N, D) the code that is at `rank` (N,) in the order of distance, 0 the nearest: (N, D)."""
        parts = zip(flat.split(_ROWS), rank.split(_ROWS), strict=True)
        return self._embedding(
            torch.cat([self.distances(f).argsort(1).gather(1, r[:, None])[:, 0] for f, r in parts])
        )

    def distances(self, flat: Tensor) -> Tensor:
        """Squared distances of (N, D) to the codes less the features' own squares, which order nothing: (N, K)."""
        codes = self._embedding.weight
        with torch.autocast(
            flat.device.type, enabled=False
        ):  # in half precision many codes would be equally near
            return torch.addmm(codes.square().sum(1), flat.float(), codes.T, alpha=-2)


def as_map(flat: Tensor, like: Tensor) -> Tensor:
    """Rows (BHW, D) as a map (B, D, H, W) with the shape, type and memory format of `like`."""
    b, d, h, w = like.shape
    channels_last = flat.view(b, h, w, d).permute(0, 3, 1, 2).to(like.dtype)
    return channels_last.contiguous() if like.is_contiguous() else channels_last


class Residual(nn.Module):
    """A residual block whose shortcut is rectified too, as in the reference, where the ReLU works in place."""

    def __init__(self) -> None:
        super().__init__()
        inner = (
            nn.Conv2d(_DIM, _DIM // 2, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(_DIM // 2, _DIM, 1, bias=False),
        )
        self._block = nn.Sequential(nn.Identity(), *inner)

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
    """Modules after each other, with names in place of numbers."""
    return nn.Sequential(OrderedDict(parts))


def image_decoder(channels_in: int) -> nn.Sequential:
    """From (B, channels_in, h, w) to an image (B, 3, 4h, 4w)."""
    return named(
        _conv_1=nn.Conv2d(channels_in, _DIM, 3, padding=1),
        _residual_stack=ResidualStack(),
        _conv_trans_1=nn.ConvTranspose2d(_DIM, _DIM // 2, 4, stride=2, padding=1),
        relu=nn.ReLU(),
        _conv_trans_2=nn.ConvTranspose2d(_DIM // 2, 3, 4, stride=2, padding=1),
    )


class Codes(NamedTuple):
    """An image in the quantised autoencoder.

    Attributes:
        detail: (B, D, H/4, W/4), of the fine encoder, from which the fine codes are made together with the coarse ones.
        lo_features: (B, D, H/8, W/8), not yet quantised.
        lo: (B, D, H/8, W/8), coarse codes.
        hi: (B, D, H/4, W/4), fine codes.
    """

    detail: Tensor
    lo_features: Tensor
    lo: Tensor
    hi: Tensor


class QuantizedAutoencoder(FrozenNetwork):
    """The frozen autoencoder with two codebooks after A. Razavi et al., VQ-VAE-2, NeurIPS 2019.

    It stays in eval mode whatever its parent does, and no gradient reaches its weights, codebooks included.

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
        self._vq_vae_top, self._vq_vae_bot = Codebook(), Codebook()
        self.upsample_t = nn.ConvTranspose2d(_DIM, _DIM, 4, stride=2, padding=1)
        self._decoder_b = image_decoder(2 * _DIM)
        self.weight_file = chosen_weight_file("dsr_vq_model", weights)
        if self.weight_file:
            load_backbone(self, self.weight_file)
        else:
            self._init_untrained()
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def _init_untrained(self) -> None:
        """Make an untrained autoencoder that tells images apart: features keep their size, codes are such features."""
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
        """The coarse codes."""
        return self._vq_vae_top

    @property
    def hi_codebook(self) -> Codebook:
        """The fine codes."""
        return self._vq_vae_bot

    @torch.no_grad()
    def encode(self, image: Tensor) -> Codes:
        """The codes of (B, 3, H, W)."""
        detail = self._encoder_b(image)
        lo_features = self._pre_vq_conv_top(self._encoder_t(detail))
        lo = self.lo_codebook(lo_features)
        return Codes(detail, lo_features, lo, self.hi_codebook(self.hi_features(detail, lo)))

    def hi_features(self, detail: Tensor, lo: Tensor) -> Tensor:
        """What becomes the fine codes: (B, D, H/4, W/4)."""
        return self._pre_vq_conv_bot(torch.cat([detail, self.upsample_t(lo)], 1))

    def join(self, lo: Tensor, hi: Tensor) -> Tensor:
        """What decoders take: coarse codes, enlarged, beside the fine ones, (B, 2D, H/4, W/4)."""
        return torch.cat([self.upsample_t(lo), hi], 1)

    def decode(self, lo: Tensor, hi: Tensor) -> Tensor:
        """The image (B, 3, H, W) that any codes stand for, drawn without knowledge of the object."""
        return self._decoder_b(self.join(lo, hi))


# What is trained


def conv_block(*channels: int) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each with instance norm and ReLU."""
    steps: list[nn.Module] = []
    for channels_in, channels_out in itertools.pairwise(channels):
        # A group per channel is instance norm, in two thirds of `nn.InstanceNorm2d`'s time on a CPU.
        norm = nn.GroupNorm(channels_out, channels_out, affine=False)
        steps += [nn.Conv2d(channels_in, channels_out, 3, padding=1), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


def double() -> nn.Module:
    """Twice the side, bilinear, corner pixels on the corners."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


def restriction_net(width: int) -> nn.Sequential:
    """Brings a map of codes, (B, D, h, w), back to the subspace of normal ones; no skips that could carry defects."""
    a, b, c = 2 * width, 4 * width, 8 * width
    return nn.Sequential(
        conv_block(_DIM, a, a),
        nn.MaxPool2d(2),
        conv_block(a, b, b),
        nn.MaxPool2d(2),
        conv_block(b, c, c),
        double(),
        conv_block(c, b, b, b),
        double(),
        conv_block(b, a, a, a),
        nn.Conv2d(a, _DIM, 3, padding=1),
    )


def object_decoder(width: int) -> nn.Sequential:
    """Draws images (B, 3, H, W) of the one object it is trained on, from joined codes (B, 2D, H/4, W/4)."""
    a, b, c = 4 * width, 8 * width, 16 * width
    return nn.Sequential(
        conv_block(2 * _DIM, a, b),
        nn.MaxPool2d(2),
        conv_block(b, b, c),
        nn.MaxPool2d(2),
        nn.Conv2d(c, width, 1),
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
        a, b, c = width, 2 * width, 4 * width
        self.down = nn.ModuleList(
            [conv_block(channels_in, a, a), conv_block(a, b, b), conv_block(b, c, c)]
        )
        self.bottom = conv_block(c, c, c)
        self.up = nn.ModuleList(
            nn.Sequential(double(), conv_block(i, o)) for i, o in ((c, c), (c, b), (b, a))
        )
        self.merge = nn.ModuleList(conv_block(2 * o, o, o) for o in (c, b, a))
        self.head = nn.Conv2d(a, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normal and anomalous, (B, 2, H, W), for (B, C, H, W); H and W are multiples of 8."""
        skips = []
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


class Restored(NamedTuple):
    """What the restriction networks and the object's decoder make of codes.

    Attributes:
        lo_features: (B, D, H/8, W/8), before they are quantised again.
        hi_features: (B, D, H/4, W/4), likewise.
        image: (B, 3, H, W).
    """

    lo_features: Tensor
    hi_features: Tensor
    image: Tensor


class DsrModel(nn.Module):
    """The frozen autoencoder and the five networks around it.

    Args:
        weights: ``"pretrained"`` or ``"random"``, of the autoencoder.
        width: channels of the detector and of the sharpening network at full size; the other networks' go with it.
    """

    def __init__(self, weights: str, width: int = 64) -> None:
        super().__init__()
        self.autoencoder = QuantizedAutoencoder(weights)
        self.restrict_lo, self.restrict_hi = restriction_net(width), restriction_net(width)
        self.decoder = object_decoder(width)
        self.detector = UNet(6, width)
        self.sharpener = UNet(8, width)
        for part in (*self.decoder.modules(), *self.detector.modules()):
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(part.weight, std=0.02)

    def restore(self, lo: Tensor, hi: Tensor) -> Restored:
        """Bring codes (B, D, H/8, W/8) and (B, D, H/4, W/4) back to those of normal images, and draw the image."""
        lo_features, hi_features = self.restrict_lo(lo), self.restrict_hi(hi)
        vq = self.autoencoder
        joined = vq.join(vq.lo_codebook(lo_features), vq.hi_codebook(hi_features))
        return Restored(lo_features, hi_features, self.decoder(joined))

    def detect(self, restored: Tensor, general: Tensor) -> Tensor:
        """Logits (B, 2, H, W) of how the object's image differs from the general one; none of its gradient leaves."""
        return self.detector(torch.cat([restored.detach(), general.detach()], 1))

    @torch.no_grad()
    def compare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Draw an image of the object and a general one of its codes, and detect where they differ.

        Args:
            image: (B, 3, H, W) in [0, 1].

        Returns:
            Both images and the detector's two probabilities, (B, 8, H, W), for the sharpening network, and the
            probability of an anomaly, (B, 1, H, W) float32.
        """
        codes = self.autoencoder.encode(as_published(image))
        restored, general = (
            self.restore(codes.lo, codes.hi).image,
            self.autoencoder.decode(codes.lo, codes.hi),
        )
        probability = self.detect(restored, general).float().softmax(1)
        return torch.cat([restored, general, probability.to(restored.dtype)], 1), probability[:, 1:]

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """How probable an anomaly is.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W multiples of 32.
            features: None, since the frozen stage is not cached.

        Returns:
            The sharpened probability of each pixel, (B, 1, H, W) in [0, 1], and the maximum of the local mean of the
            detector's, (B,).
        """
        seen, coarse = self.compare(image)
        anomaly_map = self.sharpener(seen).float().softmax(1)[:, 1:]
        local_mean = F.avg_pool2d(coarse, _SCORE_WINDOW, stride=1, padding=_SCORE_WINDOW // 2)
        return Prediction(local_mean.flatten(1).amax(1), anomaly_map)


def as_published(image: Tensor) -> Tensor:
    """Colours in the order blue, green, red, in which the reference reads images for its weights."""
    return image.flip(1)


# Anomalies


class Disturbed(NamedTuple):
    """Codes with anomalies.

    Attributes:
        lo: (B, D, H/8, W/8).
        hi: (B, D, H/4, W/4).
        mask: (B, 1, H, W), 1 where an anomaly is, at the resolution of the codes.
    """

    lo: Tensor
    hi: Tensor
    mask: Tensor


def disturb(
    autoencoder: QuantizedAutoencoder, clean: Codes, mask: Tensor, config: DsrConfig
) -> Disturbed:
    """Exchange codes under a mask for foreign ones: in both maps, only in the coarse one, or only in the fine one.

    Half the images get both, a quarter each either (reference). Random numbers are drawn on the CPU, where asking how
    many positions a mask has makes no device wait.

    Args:
        autoencoder: of the codes.
        clean: codes of B normal images.
        mask: (B, 1, H, W) float32 in {0, 1}, on the CPU.
        config: strength of the anomalies.
    """
    both, only_lo = torch.rand(2, len(mask), 1, 1, 1) < 0.5
    in_lo, in_hi = both | only_lo, both | ~only_lo
    lo_mask, hi_mask = F.max_pool2d(mask, _LO), F.max_pool2d(mask, _HI)
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

    Each position draws uniformly among the codes that are not the nearest few and not beyond the image's own strength.

    Args:
        codebook: of the codes.
        features: (B, D, h, w), not quantised.
        codes: (B, D, h, w).
        mask: (B, 1, h, w), above 0 where codes are exchanged, on the CPU.
        config: strength and skipped part.
    """
    (b, d, h, w), device = codes.shape, codes.device
    position = mask.flatten().nonzero()[:, 0]
    strength = config.min_strength + (1 - config.min_strength) * torch.rand(b)
    first = int(config.skipped * _CODES)
    last = (
        (strength * _CODES).long().add(1).clamp(first + 1, _CODES - 1)[position // (h * w)]
    )  # exclusive
    rank = (first + torch.rand(len(position)) * (last - first)).long()
    position, rank = position.to(device, non_blocking=True), rank.to(device, non_blocking=True)
    flat_features, flat_codes = (
        x.permute(0, 2, 3, 1).reshape(-1, d) for x in (features, codes)
    )  # (BHW, D)
    foreign = codebook.at_rank(flat_features[position], rank).to(codes.dtype)
    return as_map(flat_codes.index_copy(0, position, foreign), codes)


def paint(image: Tensor, mask: Tensor, max_beta: float) -> Tensor:
    """Cover patches of (B, 3, H, W) with one random colour per image, of which up to `max_beta` is transparent."""
    color = torch.rand(len(image), 3, 1, 1).to(image.device)
    beta = max_beta * torch.rand(len(image), 1, 1, 1).to(image.device)
    return torch.where(mask > 0, torch.lerp(color, image, beta), image)


def turn_some(image: Tensor, probability: float) -> Tensor:
    """Turn each of (B, 3, S, S) with this probability by up to 90 degrees either way; the corners become black."""
    chosen, angle = torch.rand(len(image)) < probability, (torch.rand(len(image)) - 0.5) * math.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(image))
    matrix = torch.stack(
        [torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1
    )  # (B, 2, 3)
    grid = F.affine_grid(matrix.to(image.device), list(image.shape), align_corners=False)
    turned = F.grid_sample(image, grid, align_corners=False)
    return torch.where(chosen.view(-1, 1, 1, 1).to(image.device), turned, image)


def restoration_loss(image: Tensor, clean: Codes, restored: Restored) -> Tensor:
    """How far the restored codes and image are from those of the normal image."""
    lo, hi = (
        F.mse_loss(restored.lo_features.float(), clean.lo),
        F.mse_loss(restored.hi_features.float(), clean.hi),
    )
    return lo + hi + 10 * F.mse_loss(restored.image.float(), image)


class DsrTrainer(BaseTrainer):
    """Trains restriction, decoder and detector on disturbed codes, then the sharpening network on painted images."""

    config: DsrConfig
    model: DsrModel
    config_class = DsrConfig

    @classmethod
    def check_inputs(cls, config: DsrConfig, train_config: TrainConfig) -> list[str]:
        size, normalize = train_config.input_size, train_config.normalize
        if size % _STRIDE or size < 2 * _STRIDE:
            below = max(2 * _STRIDE, size // _STRIDE * _STRIDE)
            near = f"{below} or {below + _STRIDE}" if below < size else str(below)
            raise InputError(
                f"input size {size} does not suit dsr: img_size (or crop_size) must be a multiple of {_STRIDE}, at "
                f"least {2 * _STRIDE}; use {near}"
            )
        if normalize != "none":
            raise InputError(
                f"normalize {normalize!r} does not suit dsr, whose weights want [0, 1]; use none"
            )
        if train_config.patience is not None:
            return [
                f"dsr: patience {train_config.patience} may end training before its second phase"
            ]
        return []

    @classmethod
    def check_weight_file(cls, config: DsrConfig, name: str, path: Path) -> None:
        load_backbone(QuantizedAutoencoder("random"), path)

    def build_model(self) -> DsrModel:
        return DsrModel(self.config.weights, self.config.width)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        model, first = self.model, max(1, round(self.config.first_phase * total_steps))
        self.first_steps = first
        early = nn.ModuleList([model.restrict_lo, model.restrict_hi, model.decoder, model.detector])
        groups = [{"params": list(part.parameters())} for part in (early, model.sharpener)]

        def first_rate(step: int) -> float:
            return 1.0 if step < 0.8 * first else 0.1

        def second_rate(step: int) -> float:
            done = (step - first) / max(1, total_steps - first)
            return 1.0 if done < 0.8 else 0.2 if done < 0.9 else 0.04

        adam = torch.optim.Adam(groups, self.config.lr, fused=True)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, [first_rate, second_rate])

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        loss, focal = (
            self.first_phase(batch.image)
            if self.step < self.first_steps
            else self.second_phase(batch.image)
        )
        self.optimize(loss)
        return {"loss": loss.detach(), "loss_focal": focal.detach()}

    def first_phase(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its focal part of learning to restore, and to detect, disturbed codes of (B, 3, S, S)."""
        model = self.model
        image = as_published(turn_some(image, self.config.rotation_probabilities[0]))
        with torch.no_grad():
            clean = model.autoencoder.encode(image)
            disturbed = disturb(model.autoencoder, clean, self.draw_mask(image), self.config)
            general = model.autoencoder.decode(disturbed.lo, disturbed.hi)
        restored = model.restore(disturbed.lo, disturbed.hi)
        logits = model.detect(restored.image, general)
        focal = focal_loss(logits, disturbed.mask)
        return restoration_loss(image, clean, restored) + focal, focal

    def second_phase(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, twice, of learning to find what is painted on (B, 3, S, S)."""
        image = turn_some(image, self.config.rotation_probabilities[1])
        mask = self.draw_mask(image).to(image.device, non_blocking=True)
        seen, _ = self.model.compare(paint(image, mask, self.config.max_beta))
        focal = focal_loss(self.model.sharpener(seen), mask)
        return focal, focal

    def draw_mask(self, image: Tensor) -> Tensor:
        """Patches for some of (B, 3, S, S), none for the others: (B, 1, S, S) float32 in {0, 1}, on the CPU."""
        chosen = torch.rand(len(image), 1, 1, 1) < self.config.anomaly_probability
        return perlin_mask(len(image), image.shape[-1], self.config.perlin_threshold) * chosen

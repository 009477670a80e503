"""GLASS: global and local anomaly synthesis with gradient ascent (Q. Chen et al., ECCV 2024).

A Unified Anomaly Synthesis Strategy with Gradient Ascent for Industrial Anomaly Detection and
Localization.
Paper: https://arxiv.org/abs/2407.09359
Reference: https://github.com/cqylunlun/GLASS (MIT, facts only).

A frozen backbone and a learnt linear adaptor describe each patch. A discriminator learns to tell
normal patches from two kinds of synthetic ones. Global synthesis adds noise to normal patches, moves
them by gradient ascent to where the discriminator takes them for normal least, and brings them back
to a shell around the normal ones, so that they lie near and yet outside. Local synthesis paints
textures over the images. The map is the discriminator's probability, the score its worst patch.

How far outside is what the hypothesis says. Under ``manifold`` a synthetic patch lies 0.5 to 1 from
the normal one that it was made of. Under ``hypersphere`` it lies r to 2 r from the mean patch of its
position, where r holds most of the normal ones, and patches of painted places 2 r to 4 r.

Memory: the backbone's maps of each training image are kept, 4 MB with Wide ResNet-50 at 288 px.

Differs from the paper: nothing in the method. Differs from the reference:

- The last epoch is taken. There it is the one with the best sum of image and pixel AUROC on the test
  set, so that its published figures are higher than what can be had.
- The hypothesis follows from the training images by the reference's own rule of their spectrum, or
  is set. Its published figures take it, and whether there is a foreground mask, from a table per
  product, and resize two products otherwise.
- There are no foreground masks. An epoch is all images, not at most 50 batches.
- The mean patch of each position is that of all images alike. There each batch counts alike.
- The score is the logit of the worst patch, whose probability can be 1 for many.
- Painted patches come from `adray.components.perlin`, which also reach the corners. Without
  photographs noise is painted.
- Each layer's window is averaged before it is enlarged, which is the same but for rounding.
- The map's smoothing mirrors the border without the edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.perlin import perlin_mask
from adray.components.textures import (
    draw_number,
    draw_textures,
    find_photographs,
    image_functions,
)
from adray.methods.glass import METHODS, GlassConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_SLOPE = 0.2
"""Of the leaky ReLU below 0."""
_PROJECT_EVERY = 5
"""Steps of ascent between two projections."""
_MANIFOLD_RADIUS = 0.5
"""Least distance of a synthetic patch from the normal one under the manifold hypothesis."""
_SMOOTHING = 1e-5
"""By which the focal loss keeps probabilities from 0."""
_LENGTH_EPS = 1e-10
"""Added to lengths that are divided by."""
_OPACITY = (0.2, 0.8)
"""Range of how much of the image shows through a texture."""
_MASK_TRIES = 100
"""Draws of masks until none is empty."""
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_ADAPTOR_DECAY = 1e-5
"""Weight decay of the adaptor, added to its gradient."""
_DISCRIMINATOR_DECAY = 1e-2
"""Weight decay of the discriminator, apart from its gradient."""


class Discriminator(nn.Module):
    """Says of each patch whether it is anomalous.

    Args:
        width: of a patch.
        hidden: of the layer between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.projection = nn.Linear(hidden, 1, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Give logits (N,) of patches (N, D), above 0 for rather anomalous than not."""
        hidden = F.leaky_relu(self.norm(self.linear(patches)), _SLOPE)
        return self.projection(hidden)[:, 0]


class GlassModel(nn.Module):
    """A frozen backbone, an adaptor and a discriminator.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    def __init__(self, config: GlassConfig, input_size: int) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, input_size)
        _, self.grid = shapes[config.layers[0]]
        self.width = config.width
        self.adaptor = nn.Linear(config.width, config.width)
        self.discriminator = Discriminator(config.width, config.hidden)
        for part in (self.adaptor, self.discriminator):
            part.apply(init_weights)
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe the patches by their windows of 3 x 3, averaged to D numbers.

        Args:
            features: one (B, C, h, w) per layer.

        Returns:
            On the first layer's grid, (B, P, D) float32. All of it is linear.
        """
        parts = []
        for feature in features:
            height = feature.shape[2]
            windows = windows_of(feature.float())  # (B, C * 9, h * w)
            pooled = averaged(windows.transpose(1, 2), self.width)  # (B, h * w, D)
            small = rearrange(pooled, "b (h w) d -> b d h w", h=height)
            parts.append(F.interpolate(small, self.grid, mode="bilinear", align_corners=False))
        joined = rearrange(torch.cat(parts, 1), "b d h w -> b (h w) d")
        return averaged(joined, self.width)

    def adapt(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe and adapt the patches, (B, P, D)."""
        return self.adaptor(self.embed(features))

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Tell whether and where a batch is anomalous.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed probabilities (B, 1, H, W) in [0, 1], and the logit of the worst patch (B,).
        """
        patches = self.adapt(self.features(image) if features is None else features)
        # The length of a tensor is a plain number, which would fix the batch of an exported graph.
        each = self.discriminator(patches.flatten(0, 1)).float()
        logits = each.unflatten(0, patches.shape[:2])  # (B, P)
        small = logits.sigmoid().unflatten(1, (1, *self.grid))
        anomaly_map = self.blur.enlarge(small, (image.shape[2], image.shape[3]))
        return Prediction(logits.amax(1), anomaly_map)


def windows_of(feature: Tensor) -> Tensor:
    """Give the windows of 3 x 3 around each patch of (B, C, h, w), (B, C * 9, h * w), 0 beyond the edge.

    They are those of `F.unfold`, which ONNX does not have.
    """
    height, width = feature.shape[2:]
    padded = F.pad(feature, (1, 1, 1, 1))
    shifted = []
    for top in range(3):
        for left in range(3):
            shifted.append(padded[:, :, top : top + height, left : left + width])
    return torch.stack(shifted, 2).flatten(1, 2).flatten(2)


def averaged(values: Tensor, width: int) -> Tensor:
    """Average neighbours along the last axis of (B, N, L) to (B, N, `width`)."""
    length = values.shape[2]
    if length % width:
        return F.adaptive_avg_pool1d(values, width)
    # The same where all averages are of as many numbers, and ONNX has this one.
    return F.avg_pool1d(values, length // width)


def init_weights(module: nn.Module) -> None:
    """Draw the initial weights of a linear layer as the reference does."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)


# Global synthesis, on features


def on_shell(points: Tensor, center: Tensor, least: Tensor | float) -> Tensor:
    """Bring points to a distance between `least` and twice that from their centres.

    Args:
        points: (N, D).
        center: (N, D).
        least: distance.

    Returns:
        (N, D), each on the line from its centre to where it was (truncated projection).
    """
    offset = points - center
    length = offset.norm(dim=1)
    wanted = length.clamp(least, 2 * least)
    return center + (wanted / (length + _LENGTH_EPS)).unsqueeze(1) * offset


def ascended(
    discriminator: Discriminator,
    normal: Tensor,
    noisy: Tensor,
    steps: int,
    rate: float,
    project: Callable[[Tensor], Tensor],
) -> Tensor:
    """Move noisy patches by gradient ascent to where they are taken for anomalous least.

    Args:
        discriminator: in train mode, whose batch norm sees both kinds together.
        normal: (N, D) patches.
        noisy: (N, D), of them.
        steps: number of steps.
        rate: length of a step.
        project: brings patches back, after each fifth step.

    Returns:
        (N, D), through which gradients reach the normal patches.
    """
    for step in range(1, steps + 1):
        logits = discriminator(torch.cat([normal, noisy]))[len(normal) :]
        missed = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        (gradient,) = torch.autograd.grad(missed, [noisy])
        length = gradient.norm(dim=1, keepdim=True)
        noisy = noisy + rate * gradient / (length + _LENGTH_EPS)
        if step % _PROJECT_EVERY == 0:
            noisy = project(noisy)
    return noisy


# Local synthesis, on images


def draw_masks(count: int, size: int, device: torch.device) -> Tensor:
    """Draw patches of Perlin noise: one, two or what two have in common, none of them empty.

    Returns:
        (count, 1, size, size) float32, 1 inside.
    """
    masks = _combined(count, size, device)
    for _ in range(_MASK_TRIES):
        empty = masks.amax((1, 2, 3)) == 0
        if not bool(empty.any()):
            break
        masks[empty] = _combined(int(empty.sum()), size, device)
    return masks


def _combined(count: int, size: int, device: torch.device) -> Tensor:
    """Combine two masks each in one of three ways, (count, 1, size, size)."""
    first = perlin_mask(count, size, device=device)
    second = perlin_mask(count, size, device=device)
    chance = torch.rand(count, 1, 1, 1, device=device)
    either = torch.where(chance > 1 / 3, first * second, first)
    return torch.where(chance > 2 / 3, torch.maximum(first, second), either)


def augment_texture(texture: Tensor) -> Tensor:
    """Change (3, H, W) uint8 in three of nine ways, drawn without repetition."""
    for i in torch.randperm(len(_AUGMENTERS))[:3].tolist():
        texture = _AUGMENTERS[i](texture)
    return texture


def _contrast(texture: Tensor) -> Tensor:
    return image_functions().adjust_contrast(texture, draw_number(0.8, 1.2))


def _brightness(texture: Tensor) -> Tensor:
    return image_functions().adjust_brightness(texture, draw_number(0.8, 1.2))


def _saturation_and_hue(texture: Tensor) -> Tensor:
    saturated = image_functions().adjust_saturation(texture, draw_number(0.8, 1.2))
    return image_functions().adjust_hue(saturated, draw_number(-0.2, 0.2))


def _mirror(texture: Tensor) -> Tensor:
    return texture.flip(2)


def _upside_down(texture: Tensor) -> Tensor:
    return texture.flip(1)


def _grey(texture: Tensor) -> Tensor:
    return image_functions().rgb_to_grayscale(texture, 3)


def _autocontrast(texture: Tensor) -> Tensor:
    return image_functions().autocontrast(texture)


def _equalize(texture: Tensor) -> Tensor:
    return image_functions().equalize(texture)


def _rotate(texture: Tensor) -> Tensor:
    return image_functions().rotate(texture, draw_number(-45, 45))


_AUGMENTERS: tuple[Callable[[Tensor], Tensor], ...] = (
    _contrast,
    _brightness,
    _saturation_and_hue,
    _mirror,
    _upside_down,
    _grey,
    _autocontrast,
    _equalize,
    _rotate,
)


def paint(image: Tensor, texture: Tensor, mask: Tensor, opacity: Tensor) -> Tensor:
    """Lay a texture over the masked part of an image.

    Args:
        image: (B, 3, H, W).
        texture: (B, 3, H, W), normalised alike.
        mask: (B, 1, H, W), 1 where the texture goes, else 0.
        opacity: (B, 1, 1, 1), beta, the share of the image that shows through.
    """
    return image * (1 - mask) + (1 - opacity) * texture * mask + opacity * image * mask


# The loss


def hardest_focal_loss(logits: Tensor, target: Tensor, easy_part: float) -> Tensor:
    """Average the focal loss of the patches that are judged worst.

    Args:
        logits: (N,).
        target: (N,), 1 for anomalous, else 0.
        easy_part: part of the patches that is left out.

    Returns:
        Scalar.
    """
    probability = logits.sigmoid()
    wrongness = (probability - target).square()
    is_hard = wrongness >= torch.quantile(wrongness.detach(), easy_part)

    # Of the true class, with the reference's smoothing of the truth.
    right = torch.where(target > 0, probability, 1 - probability)
    right = right * (1 - _SMOOTHING) + (1 - right) * _SMOOTHING + _SMOOTHING
    focal = -(1 - right).square() * right.log()
    return focal[is_hard].mean()


# The hypothesis


_SPECTRUM_SIDE = 289
_SPECTRUM_BLUR = 39
_LEAST_MAGNITUDE = 170.0
"""Of 20 times the natural logarithm of the spectrum, from which on a frequency counts."""
_LEAST_DENSITY = 0.21
_LEAST_RADIUS = 12
_LEAST_POINTS = 60


def suits_hypersphere(mean_image: Tensor) -> bool:
    """Tell by the spectrum of the mean training image whether normal patches make a sphere.

    It does where many low frequencies are strong and fill their disc or their box.

    Args:
        mean_image: (3, H, W) in [0, 1].
    """
    strong = _strong_frequencies(mean_image)
    middle = _SPECTRUM_SIDE // 2
    down, across = np.nonzero(strong)
    if len(down) == 0:
        return False

    box = 4 * max(1, int(np.abs(across - middle).max())) * max(1, int(np.abs(down - middle).max()))
    radius = float(np.hypot(across - middle, down - middle).max())
    rows, columns = np.indices((2 * _SPECTRUM_SIDE, 2 * _SPECTRUM_SIDE))
    disc = int((np.hypot(columns - middle, rows - middle) <= radius).sum())
    is_dense = max(len(down) / box, len(down) / disc) > _LEAST_DENSITY
    return is_dense and radius > _LEAST_RADIUS and len(down) > _LEAST_POINTS


def _strong_frequencies(mean_image: Tensor) -> NDArray[np.bool_]:
    """Find the strong frequencies of the smoothed luminance, (S, S), 0 in the middle."""
    levels = (mean_image.cpu() * 255).floor().clamp(0, 255)
    side = (_SPECTRUM_SIDE, _SPECTRUM_SIDE)
    small = F.interpolate(levels[None], side, mode="bilinear", align_corners=False)[0].round()
    luminance = (small * small.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).round()

    smooth = uniform_filter(luminance.double().numpy(), _SPECTRUM_BLUR, mode="mirror").round()
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(smooth)))
    return 20 * np.log(np.maximum(magnitude, 1e-12)) > _LEAST_MAGNITUDE


class GlassTrainer(BaseTrainer):
    """Trains adaptor and discriminator on both kinds of synthetic defects."""

    config: GlassConfig
    model: GlassModel
    method = METHODS["GlassTrainer"]
    textures: Any = None
    """Photographs to paint with, see `LoaderSet.auxiliary`; None for built-in noise."""
    mean_features: tuple[Tensor, ...]
    """Means of the backbone's maps over the training images, (1, C, h, w) each."""
    center: Tensor
    """(P, D), the mean adapted patch of each position in this epoch."""
    is_sphere = False
    """Whether the hypothesis is the hypersphere."""

    def build_model(self) -> GlassModel:
        return GlassModel(self.config, self.train_config.input_size)

    def on_fit_start(self) -> None:
        size = self.train_config.input_size
        name = self.config.auxiliary
        self.textures = find_photographs(self.loaders, name, size, self.without_auxiliary)

        mean_image = self._take_means()
        self.is_sphere = self.config.hypothesis == "hypersphere"
        if self.config.hypothesis == "spectrum":
            self.is_sphere = suits_hypersphere(mean_image)

    @torch.no_grad()
    def _take_means(self) -> Tensor:
        """Average the maps of all training images, and give the mean image (3, H, W) in [0, 1]."""
        self.model.eval()
        self.loaders.train.set_epoch(0)
        image_sum: Tensor | None = None
        feature_sums: list[Tensor] = []
        for batch in self.loaders.train:
            with self.autocast():
                features = self.source.for_training(batch)
            assert features is not None, "the model has a frozen stage"
            sums = [feature.double().sum(0, keepdim=True) for feature in features]
            pixels = batch.image.double().sum(0)
            if image_sum is None:
                image_sum = pixels
                feature_sums = sums
            else:
                image_sum += pixels
                feature_sums = [old + new for old, new in zip(feature_sums, sums, strict=True)]

        assert image_sum is not None, "the loader was seen to have batches"
        count = len(self.loaders.train.samples)
        self.mean_features = tuple((total / count).float() for total in feature_sums)
        kind, device = image_sum.dtype, image_sum.device
        mean = torch.tensor(_IMAGENET_MEAN, dtype=kind, device=device).view(3, 1, 1)
        std = torch.tensor(_IMAGENET_STD, dtype=kind, device=device).view(3, 1, 1)
        return (image_sum / count * std + mean).float()

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        adaptor = {
            "params": list(self.model.adaptor.parameters()),
            "lr": self.config.adaptor_lr,
            "weight_decay": _ADAPTOR_DECAY,
        }
        discriminator = {
            "params": list(self.model.discriminator.parameters()),
            "lr": self.config.discriminator_lr,
            "weight_decay": _DISCRIMINATOR_DECAY,
            "decoupled_weight_decay": True,  # AdamW
        }
        return torch.optim.Adam([adaptor, discriminator]), None

    @torch.no_grad()
    def on_train_start(self) -> None:
        # Whatever makes patches of maps is linear: the mean of patches is that of mean maps.
        self.center = self.model.adapt(self.mean_features)[0]  # (P, D)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        painted, mask = self.add_defects(batch.image)
        with torch.no_grad():
            painted_features = self.model.features(painted)

        normal = self.model.adapt(batch.features).flatten(0, 1)  # (N, D)
        local = self.model.adapt(painted_features).flatten(0, 1)
        noise = self.config.noise_std * torch.randn_like(normal)
        losses = self.losses(normal, local, mask.flatten(), noise)
        self.optimize(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}

    def losses(
        self, normal: Tensor, local: Tensor, mask: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Give the loss and its three terms.

        Args:
            normal: (N, D) adapted patches of whole images.
            local: (N, D), of the painted images.
            mask: (N,), 1 where a texture was painted, else 0.
            noise: (N, D), which global synthesis starts from.

        Returns:
            ``loss``, the sum of ``normal``, ``global`` and ``local``.
        """
        config = self.config
        discriminator = self.model.discriminator
        center = self.center.repeat(len(normal) // len(self.center), 1)  # (N, D)
        radius = self.radius(normal, local[mask == 0], center, center[mask == 0])

        def project(points: Tensor) -> Tensor:
            if self.is_sphere:
                return on_shell(points, center, radius)
            return on_shell(points, normal, _MANIFOLD_RADIUS)

        noisy = ascended(
            discriminator,
            normal,
            normal + noise,
            config.ascent_steps,
            config.ascent_rate,
            project,
        )
        if self.is_sphere:
            pushed = on_shell(local, center, 2 * radius)
            local = torch.where(mask.unsqueeze(1) > 0, pushed, local)

        # Batch norm sees normal and noisy patches together.
        logits = discriminator(torch.cat([normal, noisy]))
        truth = torch.cat([mask.new_zeros(len(normal)), mask.new_ones(len(noisy))])
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        terms = {
            "normal": entropy[: len(normal)].mean(),
            "global": entropy[len(normal) :].mean(),
            "local": hardest_focal_loss(discriminator(local), mask, config.hard_part),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def radius(
        self, normal: Tensor, unpainted: Tensor, center: Tensor, unpainted_center: Tensor
    ) -> Tensor:
        """Give the radius that holds most of the normal patches around their centres, a scalar.

        Args:
            normal: (N, D).
            unpainted: (M, D), the patches of painted images that were left alone.
            center: (N, D).
            unpainted_center: (M, D).
        """
        points = torch.cat([unpainted, normal]).detach()
        distance = (points - torch.cat([unpainted_center, center])).norm(dim=1)
        return torch.quantile(distance, self.config.radius_quantile)

    def add_defects(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Paint textures over patches of images.

        Args:
            image: (B, 3, S, S) normalised as imagenet.

        Returns:
            The painted images, and where their patches were painted, (B, 1, h, w) in {0, 1}.
        """
        count = len(image)
        size = image.shape[-1]
        device = image.device
        mask = draw_masks(count, size, device)
        drawn = draw_textures(self.textures, count, size, device)
        texture = torch.stack([augment_texture(one) for one in drawn]) / 255
        mean = texture.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)
        std = texture.new_tensor(_IMAGENET_STD).view(3, 1, 1)

        least, most = _OPACITY
        opacity = 0.5 + self.config.opacity_std * torch.randn(count, 1, 1, 1, device=device)
        painted = paint(image, (texture - mean) / std, mask, opacity.clamp(least, most))
        # A patch is anomalous with a single painted pixel.
        return painted, F.adaptive_max_pool2d(mask, self.model.grid)

    def notes(self) -> list[str]:
        return [f"hypothesis: {'hypersphere' if self.is_sphere else 'manifold'}"]

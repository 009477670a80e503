"""EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies.

K. Batzner et al., WACV 2024.

Paper: https://arxiv.org/abs/2303.14535
Reference: https://github.com/nelson1425/EfficientAD (unofficial, the authors published no code;
facts only) and anomalib's EfficientAd (Apache-2.0, facts only), whose teacher files are the
former's with other names.

A small network of four (six) convolutions, distilled from a large one, is the teacher: it describes
patches of 33 px. A student with twice its output channels learns on normal images to give the
teacher's features with the first half, and those of an autoencoder, which imitates the teacher
through a bottleneck of 64 numbers, with the second half. Where the first half fails the structure
is new, where the second half fails the composition is. Both maps are scaled by quantiles of normal
images that were held out, then averaged; the score is the maximum.

Differs from the paper: photographs for the penalty come from Imagenette or any folder, drawn with
replacement, instead of ImageNet. Quantiles are taken over the maps as the networks give them. The
margin of four cells that the networks do not see counts as no distance; the reference pads the
scaled map with zeros, the level of the lower quantile. For other sizes than 256 px the
autoencoder's maps scale along, and its last encoder layer spans all that is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import read_state_dict
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.efficientad import METHODS, EfficientadConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

CHANNELS = 384
"""C, output channels of teacher and autoencoder."""
_MARGIN = 4
"""Cells on each side of a map that the networks, which do not pad, leave out."""
_GRAY = 0.3
"""Part of the photographs that lose their colour."""
_JITTER = 0.2
"""Largest change of brightness, contrast or saturation."""
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def build_pdn(model_size: str, channels_out: int) -> nn.Sequential:
    """Build the patch description network (section 3.1): no padding, a stride of 4.

    Its receptive field is 33 px, and its modules have the numbers of the reference's file.
    """
    wide = 128 if model_size == "small" else 256
    layers: list[nn.Module] = [
        nn.Conv2d(3, wide, 4),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Conv2d(wide, 2 * wide, 4),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
    ]

    # The medium one has two convolutions more, of single cells, which keep the receptive field.
    if model_size == "medium":
        layers += [nn.Conv2d(2 * wide, 2 * wide, 1), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(2 * wide, 2 * wide, 3), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(2 * wide, channels_out, 4)]
    if model_size == "medium":
        layers += [nn.ReLU(inplace=True), nn.Conv2d(channels_out, channels_out, 1)]
    return nn.Sequential(*layers)


def pdn_side(input_size: int) -> int:
    """Give the side of the network's maps for square images of `input_size` pixels, 56 for 256."""
    return math.ceil(input_size / 4) - 2 * _MARGIN


class Teacher(FrozenNetwork):
    """The pretrained patch description network, which never changes.

    It needs no gradient, and is named rather than stored in checkpoints.

    Args:
        model_size: ``"small"`` or ``"medium"``.
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` leaves the
            initialisation.

    Raises:
        InputError: for a missing, broken or foreign weight file.
    """

    def __init__(self, model_size: str, weights: str) -> None:
        super().__init__()
        self.backbone = f"efficientad_teacher_{model_size}"
        self.net = build_pdn(model_size, CHANNELS)
        self.weight_file = chosen_weight_file(self.backbone, weights)
        if self.weight_file:
            self.net.load_state_dict(read_teacher(self.net, self.weight_file))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Describe the patches of (B, 3, H, W) in ImageNet's normalisation: (B, C, h, w)."""
        return self.net(image)


def read_teacher(net: nn.Sequential, path: Path) -> dict[str, Tensor]:
    """Read the tensors of a teacher file, in anomalib's layout or the reference's.

    Args:
        net: whose names the tensors get.
        path: of the file.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    # anomalib counts convolutions, conv1.weight, the reference all modules, 0.weight.
    numbers: dict[str, str] = {}
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d):
            numbers[f"conv{len(numbers) + 1}"] = name

    state = {}
    for key, tensor in read_state_dict(path).items():
        layer, _, kind = key.partition(".")
        state[f"{numbers.get(layer, layer)}.{kind}"] = tensor

    found = _shapes(state)
    wanted = _shapes(net.state_dict())
    for name in (*wanted, *found):
        if found.get(name) != wanted.get(name):
            raise InputError(
                Sentence.of(
                    "weights other shape",
                    path=str(path),
                    name=name,
                    shape=str(found.get(name, "missing")),
                    expected=str(wanted.get(name, "no such tensor")),
                )
            )
    return state


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


class Student(nn.Module):
    """A patch description network with two last layers.

    The published student has one with 2C outputs, of which a training image needs either half;
    apart they cost half.

    Args:
        model_size: ``"small"`` or ``"medium"``.
    """

    def __init__(self, model_size: str) -> None:
        super().__init__()
        net = build_pdn(model_size, 2 * CHANNELS)
        self.trunk = net[:-1]
        last = net[-1]
        assert isinstance(last, nn.Conv2d)
        self.teacher_head = nn.Conv2d(last.in_channels, CHANNELS, last.kernel_size[0])
        self.autoencoder_head = nn.Conv2d(last.in_channels, CHANNELS, last.kernel_size[0])


def build_autoencoder(input_size: int, dropout: float) -> nn.Sequential:
    """Build the autoencoder (section 3.3): (B, 3, H, W) to (B, 64, 1, 1) to the teacher's shape.

    Args:
        input_size: H and W.
        dropout: probability after the decoder's first six convolutions.
    """
    layers: list[nn.Module] = []
    for channels_in, channels_out in itertools.pairwise((3, 32, 32, 64, 64, 64)):
        convolution = nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)
        layers += [convolution, nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(64, 64, input_size // 32))  # all that is left, to (B, 64, 1, 1)

    for side in decoder_sides(input_size):
        layers += [nn.Upsample(size=side, mode="bilinear"), nn.Conv2d(64, 64, 4, padding=2)]
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]

    # To the side and the channels of the teacher's map.
    last = nn.Upsample(size=pdn_side(input_size), mode="bilinear")
    layers += [last, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(64, CHANNELS, 3, padding=1))
    return nn.Sequential(*layers)


def decoder_sides(input_size: int) -> list[int]:
    """Give the sides to which the decoder enlarges its maps one after the other.

    For 256 px these are 3, 8, 15, 32, 63 and 127.
    """
    steps = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))
    return [max(1, input_size // stride - less) for stride, less in steps]


class EfficientadModel(nn.Module):
    """Teacher, student, autoencoder, and the scales of their outputs.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    teacher_mean: Tensor
    """(C, 1, 1), of the teacher's map over the training images."""
    teacher_std: Tensor
    """(C, 1, 1), likewise."""
    quantiles: Tensor
    """(2, 2), lower and upper quantile of the student's and of the autoencoder's distances."""
    pixel_mean: Tensor
    """(3, 1, 1), of ImageNet."""
    pixel_std: Tensor
    """(3, 1, 1), of ImageNet."""

    def __init__(self, config: EfficientadConfig, input_size: int) -> None:
        super().__init__()
        self.teacher = Teacher(config.model_size, config.weights)
        self.student = Student(config.model_size)
        self.autoencoder = build_autoencoder(input_size, config.dropout)
        self.register_buffer("teacher_mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("teacher_std", torch.ones(CHANNELS, 1, 1))

        # Until the quantiles are known, `scale_maps` leaves a map as it is.
        self.register_buffer("quantiles", torch.tensor([[0.0, 0.1], [0.0, 0.1]]))
        mean = torch.tensor(_IMAGENET_MEAN).view(3, 1, 1)
        std = torch.tensor(_IMAGENET_STD).view(3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        """Bring pixels in [0, 1] to ImageNet's normalisation, which all three networks take."""
        return (image - self.pixel_mean) / self.pixel_std

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the teacher's map of (B, 3, H, W), (B, C, h, w), not yet scaled."""
        return (self.teacher(self.normalize(image)),)

    def targets(self, features: tuple[Tensor, ...]) -> Tensor:
        """Scale the teacher's map to mean 0 and variance 1 per channel, (B, C, h, w).

        The mean and variance are those over the training images.
        """
        return (features[0].float() - self.teacher_mean) / self.teacher_std

    def distances(
        self, image: Tensor, features: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Square the differences of student to teacher and to autoencoder, averaged over channels.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: what `features(image)` gives, or None.

        Returns:
            Two (B, 1, h, w) float32, at least 0.
        """
        normalized = self.normalize(image)
        patches = self.student.trunk(normalized)

        # A new structure, and a new composition of known ones.
        target = self.targets(self.features(image) if features is None else features)
        structure = target - self.student.teacher_head(patches).float()
        rebuilt = self.autoencoder(normalized).float()
        logic = rebuilt - self.student.autoencoder_head(patches).float()
        return structure.square().mean(1, keepdim=True), logic.square().mean(1, keepdim=True)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Show where the student fails.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: what `features(image)` gives, or None.

        Returns:
            The mean of both scaled maps, (B, 1, H, W), mostly below 0.1 on normal images, and its
            maximum, (B,).
        """
        maps = torch.cat(self.distances(image, features), dim=1)  # (B, 2, h, w)
        padded = F.pad(maps, [_MARGIN] * 4)  # zeros on all four sides
        combined = scale_maps(padded, self.quantiles).mean(1, keepdim=True)
        size = (image.shape[2], image.shape[3])
        anomaly_map = F.interpolate(combined, size, mode="bilinear", align_corners=False)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def scale_maps(maps: Tensor, quantiles: Tensor) -> Tensor:
    """Bring the lower quantile of each map to 0 and the upper one to 0.1 (section 3.4).

    Args:
        maps: (B, M, h, w).
        quantiles: (M, 2), lower and upper.
    """
    lower = quantiles[:, 0, None, None]  # (M, 1, 1)
    upper = quantiles[:, 1, None, None]
    return 0.1 * (maps - lower) / (upper - lower).clamp(min=1e-6)


def map_quantiles(maps: Iterable[Tensor], quantiles: tuple[float, float]) -> Tensor:
    """Take the quantiles of all pixels of normal images, however many these are.

    Args:
        maps: (B, M, h, w) each.
        quantiles: parts of the pixels that lie below.

    Returns:
        (M, 2) float32.
    """
    pixels = torch.cat([rearrange(batch, "b m h w -> m (b h w)").cpu() for batch in maps], dim=1)
    return torch.from_numpy(np.quantile(pixels.double().numpy(), quantiles, axis=1).T).float()


def channel_statistics(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Take mean and standard deviation of each channel over maps of one size.

    The variance is the mean of the images' own plus that of their means, where nothing cancels.

    Args:
        maps: (B, C, h, w) each.

    Returns:
        Two (C, 1, 1) float32.
    """
    variances = []
    means = []
    for batch in maps:
        variance, mean = torch.var_mean(batch, dim=(2, 3), correction=0)  # (B, C) each
        variances.append(variance)
        means.append(mean)

    image_means = torch.cat(means).double()  # (N, C)
    variance = torch.cat(variances).double().mean(0) + image_means.var(0, correction=0)
    mean = image_means.mean(0).float()
    std = variance.sqrt().float().clamp(min=1e-6)  # a channel may never vary
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)


def hard_feature_loss(teacher: Tensor, student: Tensor, quantile: float) -> Tensor:
    """Average the squared differences at or above their quantile, per image, then over the batch.

    That is the hard feature loss of section 3.2.

    Args:
        teacher: (B, C, h, w) float32.
        student: (B, C, h, w) float32.
        quantile: part of the differences that is left out.
    """
    squared = (teacher - student).square().flatten(1)  # (B, C*h*w)
    count = squared.shape[1] - math.ceil(quantile * (squared.shape[1] - 1))
    return squared.topk(count, dim=1, sorted=False).values.mean()


def random_adjust(image: Tensor) -> Tensor:
    """Change brightness, contrast or saturation by one factor of 0.8 to 1.2.

    Args:
        image: (B, 3, H, W) in [0, 1], of which all get the same change.
    """
    # This import takes over a second, which a plan does not pay.
    from torchvision.transforms.v2 import functional as transforms

    changes = (
        transforms.adjust_brightness,
        transforms.adjust_contrast,
        transforms.adjust_saturation,
    )
    factor = 1.0 + _JITTER * (2.0 * float(torch.rand(())) - 1.0)
    change = changes[int(torch.randint(len(changes), ()))]
    return change(image, factor)


def random_gray(image: Tensor) -> Tensor:
    """Take the colour from three in ten images of (B, 3, H, W)."""
    from torchvision.transforms.v2 import functional as transforms

    gray = (torch.rand(len(image), 1, 1, 1) < _GRAY).to(image.device, non_blocking=True)
    return torch.where(gray, transforms.rgb_to_grayscale(image, num_output_channels=3), image)


class EfficientadTrainer(BaseTrainer):
    """Trains student and autoencoder together, then takes quantiles of held-out normals' maps."""

    config: EfficientadConfig
    model: EfficientadModel
    method = METHODS["EfficientadTrainer"]

    @classmethod
    def check_weight_file(cls, config: EfficientadConfig, name: str, path: Path) -> None:
        with torch.device("meta"):
            net = build_pdn(config.model_size, CHANNELS)
        read_teacher(net, path)

    def build_model(self) -> EfficientadModel:
        return EfficientadModel(self.config, self.train_config.input_size)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        learnt = [*self.model.student.parameters(), *self.model.autoencoder.parameters()]
        adam = torch.optim.Adam(learnt, self.config.lr, weight_decay=self.config.weight_decay)
        milestone = max(1, int(0.95 * total_steps))
        return adam, torch.optim.lr_scheduler.MultiStepLR(adam, [milestone], gamma=0.1)

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Open the photographs and scale the teacher's channels."""
        size = self.train_config.input_size
        self.photographs = self.loaders.auxiliary(self.config.auxiliary, 2 * size, size)
        maps = (self.model.features(batch.image)[0] for batch in self.loaders.train)
        self.model.teacher_mean, self.model.teacher_std = channel_statistics(maps)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        model = self.model
        count = len(batch.image)

        # One pass of the student's trunk over images, photographs and adjusted images.
        adjusted = random_adjust(batch.image)
        photographs = self.draw_photographs(count)
        inputs = model.normalize(torch.cat((batch.image, photographs, adjusted)))  # (3B, 3, H, W)
        patches = model.student.trunk(inputs)

        # The first half imitates the teacher on images, and is to be silent on photographs.
        first_half = model.student.teacher_head(patches[: 2 * count]).float()
        on_images, on_photographs = first_half.chunk(2)
        targets = model.targets(batch.features)
        hard = hard_feature_loss(targets, on_images, self.config.hard_quantile)
        penalty = on_photographs.square().mean()

        # The autoencoder imitates the teacher on adjusted images, the second half the autoencoder.
        rebuilt = model.autoencoder(inputs[2 * count :]).float()
        second_half = model.student.autoencoder_head(patches[2 * count :]).float()
        autoencoder = F.mse_loss(rebuilt, model.targets(model.features(adjusted)))
        imitation = F.mse_loss(second_half, rebuilt)

        loss = torch.stack([hard, penalty, autoencoder, imitation]).sum()
        self.optimize(loss)
        return {
            "loss": loss.detach(),
            "loss_hard": hard.detach(),
            "loss_penalty": penalty.detach(),
            "loss_ae": autoencoder.detach(),
            "loss_stae": imitation.detach(),
        }

    def draw_photographs(self, count: int) -> Tensor:
        """Draw photographs for the penalty, some of them grey, (count, 3, H, W) in [0, 1]."""
        chosen = torch.randint(len(self.photographs), (count,))
        pixels = torch.from_numpy(self.photographs[chosen.numpy()])
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # or the copy would wait for the device
        return random_gray(pixels.to(self.device, non_blocking=True) / 255.0)

    @torch.no_grad()
    def on_fit_end(self, weight_path: Path | None) -> None:
        """Take the maps' quantiles on held-out normals, or on the training images without any."""
        loader = self.loaders.train if self.loaders.valid is None else self.loaders.valid
        maps = (torch.cat(self.model.distances(batch.image), dim=1) for batch in loader)
        self.model.quantiles = map_quantiles(maps, self.config.quantiles).to(self.device)

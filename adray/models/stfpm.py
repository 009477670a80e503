"""STFPM: Student-Teacher Feature Pyramid Matching for Anomaly Detection.

G. Wang et al., BMVC 2021.

Paper: https://arxiv.org/abs/2103.04257
Reference: https://github.com/gdwang08/STFPM (facts only).

A student with the teacher's architecture but random weights learns to give the teacher's features
on normal images, at three depths. It never saw defects, so there the two disagree: the map is the
product over the depths of half the squared distance between their unit-length features, and the
score of an image is the map's maximum.

Differs from the paper: the loss leaves out the factor one half of equation (1) and averages over
positions, as the reference does (a batch sum would multiply the step by the batch size; lr 0.4
belongs to the mean). The maps are multiplied at the size of the input; the reference does it at a
quarter and enlarges the product. The reference holds out a fifth of the training images and keeps
the epoch with their smallest distance; here the last epoch counts. Its code trains 100 epochs, as
here, the command of its README 200.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import TimmFeatureExtractor, build_resnet
from adray.methods.stfpm import METHODS, StfpmConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


class StfpmModel(nn.Module):
    """A frozen teacher and the student that imitates it.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: StfpmConfig) -> None:
        super().__init__()
        self.teacher = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        self.student = build_student(config.backbone, config.layers)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the teacher's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.teacher(image)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare student and teacher.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The product of the layers' distances, each in [0, 2], as (B, 1, H, W), and its maximum
            per image, (B,).
        """
        teacher = self.features(image) if features is None else features
        student = tuple(self.student(image))
        anomaly_map = distance_map(teacher, student, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def build_student(backbone: str, layers: tuple[str, ...]) -> nn.Module:
    """Build the untrained network beside a teacher, initialised as the paper's student is."""
    student = build_resnet(backbone, layers)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            # `ResNet` starts the last one of each residual block at zero, torchvision and so the
            # reference at one.
            nn.init.ones_(module.weight)
    return student


def unit_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Square the distance between features scaled to unit length at each position (equation 1).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).

    Returns:
        (B, h, w) float32 in [0, 4].
    """
    # float32: the product of three small distances underflows in half precision.
    difference = F.normalize(teacher.float(), dim=1) - F.normalize(student.float(), dim=1)
    return difference.square().sum(1)


def stfpm_loss(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...]) -> Tensor:
    """Average the squared distances over batch and positions, and sum them over layers.

    That is section 3.2 without its factor of a half.
    """
    pairs = zip(teacher, student, strict=True)
    per_layer = [unit_distance(of_teacher, of_student).mean() for of_teacher, of_student in pairs]
    return torch.stack(per_layer).sum()


def distance_map(
    teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], size: tuple[int, int]
) -> Tensor:
    """Multiply half the squared distances of all layers.

    Args:
        teacher: one (B, C, h, w) per layer.
        student: one (B, C, h, w) per layer.
        size: H and W, to which each layer's distance is enlarged.

    Returns:
        (B, 1, H, W) float32 in [0, 2] to the power of the number of layers.
    """
    product = torch.ones((), device=teacher[0].device)
    for of_teacher, of_student in zip(teacher, student, strict=True):
        half = 0.5 * unit_distance(of_teacher, of_student).unsqueeze(1)  # (B, 1, h, w)
        product = product * F.interpolate(half, size, mode="bilinear", align_corners=False)
    return product


class StfpmTrainer(BaseTrainer):
    """Trains the student on the teacher's cached features."""

    config: StfpmConfig
    model: StfpmModel
    method = METHODS["StfpmTrainer"]

    def build_model(self) -> StfpmModel:
        return StfpmModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        optimizer = torch.optim.SGD(
            self.model.student.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        return optimizer, None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = stfpm_loss(batch.features, tuple(self.model.student(batch.image)))
        self.optimize(loss)
        return {"loss": loss.detach()}

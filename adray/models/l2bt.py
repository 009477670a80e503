"""L2BT: Learning to Be a Transformer to Pinpoint Anomalies (A. Costanzino et al., IEEE Access 2025).

Paper: https://arxiv.org/abs/2407.04092
Reference: https://github.com/alex-costanzino/L2BT (non-commercial licence, facts only; it trains
VisA alone), and anomalib's port (Apache-2.0).

Two blocks of a frozen DINOv2, each with its last layer norm, describe each patch. Two small MLPs
learn on normal images to predict the later description from the earlier and the earlier from the
later: what attention makes of a patch, without attention. Where both fail, there is a defect. The
map is the product of both distances, smoothed. The score is the mean of its highest pixels.

Memory: 8 * P * D bytes are kept of each training image, 34 MB for ViT-B at 1036 px.

Differs from the paper: nothing in the method. Differs from the reference:

- Images are squeezed to a square. There their edges are repeated to one. `fit: pad` keeps the shape
  and leaves the room around out of map and score.
- The map is smoothed at the size that the model sees. There it is at the size of the image, so that
  large images are smoothed less.
- Beyond the border the smoothing sees zeros, as in the reference, so that defects at the rim count
  less.
- Tokens are rounded to float16, as they lie in the files that trials share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.dinov2_extractor import (
    Dinov2Extractor,
    check_dinov2_file,
    normed_patches,
)
from adray.components.inside import top_mean_inside
from adray.methods.l2bt import METHODS, L2btConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_BOXES = (5, 5, 5, 5, 5, 7, 7, 7)
"""Sides in pixels of the means that smooth the map one after the other."""
_COSINE_EPS = 1e-6
"""Least length of a patch that is compared."""


def build_student(width: int) -> nn.Sequential:
    """Build an MLP of three layers from (..., D) to (..., D)."""
    return nn.Sequential(
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, width),
    )


class L2btModel(nn.Module):
    """A frozen transformer, the teacher, and two students.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: L2btConfig) -> None:
        super().__init__()
        self.score_part = config.score_part
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        width = len(self.norm.weight)
        self.forward_student = build_student(width)
        self.backward_student = build_student(width)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W) after both blocks, (B, P, D) each."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the patches of both layers' (B, T, D) tokens, (B, P, D) float32 each."""
        prefix = self.extractor.num_prefix
        return tuple(normed_patches(tokens, self.norm, prefix) for tokens in maps)

    def predict(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Predict the earlier patches from the later and the later from the earlier, (B, P, D)."""
        earlier, later = features
        return self.backward_student(later), self.forward_student(earlier)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare what the students predict with what the teacher gives.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed products of both distances (B, 1, H, W) in [0, 4], and the mean of their
            highest part, (B,).
        """
        features = self.features(image) if features is None else features
        product: Tensor | None = None
        for given, predicted in zip(features, self.predict(features), strict=True):
            offset = F.normalize(predicted.float(), dim=2) - F.normalize(given.float(), dim=2)
            distance = offset.norm(dim=2)  # (B, P)
            product = distance if product is None else product * distance

        assert product is not None, "there are two blocks"
        height = image.shape[2]
        width = image.shape[3]
        small = product.unflatten(1, (1, height // DINOV2_PATCH, width // DINOV2_PATCH))
        enlarged = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
        anomaly_map = smoothed(enlarged)

        flat = anomaly_map.flatten(1)
        count = max(1, int(self.score_part * flat.shape[1]))
        return Prediction(flat.topk(count, dim=1).values.mean(1), anomaly_map)


def smoothed(anomaly_map: Tensor) -> Tensor:
    """Average (B, 1, H, W) over squares again and again, zeros beyond the border."""
    for side in _BOXES:
        anomaly_map = F.avg_pool2d(anomaly_map, side, stride=1, padding=side // 2)
    return anomaly_map


def l2bt_loss(features: tuple[Tensor, ...], predicted: tuple[Tensor, ...]) -> Tensor:
    """Add up one minus the mean cosine of both directions.

    Args:
        features: of the teacher, (B, P, D) each.
        predicted: by the students, (B, P, D) each.

    Returns:
        Scalar in [0, 4].
    """
    losses = []
    for given, guess in zip(features, predicted, strict=True):
        losses.append(1 - F.cosine_similarity(guess, given, dim=2, eps=_COSINE_EPS).mean())
    return torch.stack(losses).sum()


class L2btTrainer(BaseTrainer):
    """Trains both students on the teacher's cached patches."""

    config: L2btConfig
    model: L2btModel
    method = METHODS["L2btTrainer"]

    @classmethod
    def check_weight_file(cls, config: L2btConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> L2btModel:
        return L2btModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        learnt = [
            *self.model.forward_student.parameters(),
            *self.model.backward_student.parameters(),
        ]
        return torch.optim.Adam(learnt, self.config.lr), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = l2bt_loss(batch.features, self.model.predict(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return top_mean_inside(anomaly_map, inside, self.config.score_part)

    def notes(self) -> list[str]:
        return self.model.extractor.notes()

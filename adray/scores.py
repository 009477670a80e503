"""What a model said of a whole set of images, gathered batch by batch and measured as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adray.metrics import METRICS, check_finite, image_metrics, pixel_metrics
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class Scores:
    """Predictions of a whole loader, in its order."""

    pred_score: np.ndarray
    """(N,) float32, higher is more anomalous."""
    label: np.ndarray
    """(N,) int64, 0 normal, 1 anomalous."""
    anomaly_map: np.ndarray | None
    """(N, H, W) float32, or None where the model gives no maps or they were not asked for."""
    mask: np.ndarray | None
    """(N, H, W) uint8, or None where the loader has no masks or there are no maps."""
    has_mask: np.ndarray
    """(N,) bool, False for defective images without a mask, which pixel metrics leave out."""
    explanation: np.ndarray | None = None
    """(N,) texts of the model as objects, or None where it writes none."""
    inside: np.ndarray | None = None
    """(N, H, W) bool, true for the pixels that count; None where all do, or without maps."""
    highest: np.ndarray | None = None
    """(N,) float32, highest value of each map before it was made small; None where it was not."""

    def subset(self, chosen: np.ndarray) -> Scores:
        """Keep the images where `chosen`, (N,) bool, is true, or those at (n,) positions."""
        return Scores(
            self.pred_score[chosen],
            self.label[chosen],
            _rows(self.anomaly_map, chosen),
            _rows(self.mask, chosen),
            self.has_mask[chosen],
            _rows(self.explanation, chosen),
            _rows(self.inside, chosen),
            _rows(self.highest, chosen),
        )

    @property
    def peaks(self) -> np.ndarray | None:
        """Give the highest value of each map, (N,) float32, None without maps.

        What does not count has the lowest value of its map.
        """
        if self.highest is not None:
            return self.highest
        return None if self.anomaly_map is None else self.anomaly_map.max(axis=(1, 2))

    def check(self) -> None:
        """Refuse what is no number, before anything is computed of it.

        Raises:
            InputError: a score or a map holds NaN or infinity.
        """
        check_finite("pred_score", self.pred_score)
        if self.anomaly_map is not None:
            check_finite("anomaly_map", self.anomaly_map)

    def metrics(self) -> dict[str, float | None]:
        """Compute the metrics of `adray.metrics.METRICS` that scores, maps and masks alone give.

        `adray.results.evaluation` computes those that need more.

        Returns:
            A value per metric, None where it is undefined here or there are no masks.
        """
        found: dict[str, float | None] = dict.fromkeys(METRICS)
        found |= image_metrics(self.pred_score, self.label)
        if self.anomaly_map is None or self.mask is None:
            return found
        masked = self if self.has_mask.all() else self.subset(self.has_mask)
        return found | pixel_metrics(masked.anomaly_map, masked.mask, inside=masked.inside)


def _rows(values: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
    """Keep the chosen rows of what may not be there."""
    return None if values is None else values[chosen]


class ScoreGatherer:
    """Collects the predictions of one batch after the other on the host.

    Args:
        keep_maps: also collect anomaly maps and masks.
    """

    def __init__(self, keep_maps: bool) -> None:
        self.keep_maps = keep_maps
        self._scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._inside: list[np.ndarray] = []
        self._texts: list[str] = []

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Take what was predicted of a batch."""
        self._scores.append(prediction.pred_score.float().cpu().numpy())
        self._labels.append(batch.label.cpu().numpy())
        if prediction.explanation is not None:
            self._texts.extend(prediction.explanation)

        if self.keep_maps and prediction.anomaly_map is not None:
            self._maps.append(prediction.anomaly_map[:, 0].float().cpu().numpy())  # (B, H, W)
            if batch.inside is not None:
                self._inside.append(batch.inside[:, 0].cpu().numpy())
            if batch.mask is not None:
                self._masks.append(batch.mask[:, 0].cpu().numpy())

    def scores(self, has_mask: np.ndarray) -> Scores:
        """Put everything together.

        Args:
            has_mask: (N,) bool, see `Scores.has_mask`.
        """
        return Scores(
            np.concatenate(self._scores),
            np.concatenate(self._labels),
            np.concatenate(self._maps) if self._maps else None,
            np.concatenate(self._masks) if self._masks else None,
            np.asarray(has_mask),
            np.array(self._texts, dtype=object) if self._texts else None,
            np.concatenate(self._inside) if self._inside else None,
        )

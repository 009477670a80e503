"""Hyperparameters of DSR, and what is known before its network is loaded.

The method itself: `adray.models.dsr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method

STRIDE = 32
"""Pixels per position of the deepest map: the coarse codes are halved twice."""
SMALLEST = 2 * STRIDE
"""Least side of an image in pixels: the deepest map's norm needs two positions a side."""


@dataclass(frozen=True)
class DsrConfig:
    """Hyperparameters of DSR; defaults are the reference's."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the quantised autoencoder; everything else always starts at random."""
    width: int = option(64, low=1, high=512)
    """Channels of the detector and of the sharpening network at full size; the other trained
    networks' go with it."""
    lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 6e-4, "around the reference's 2e-4")
    )
    """Learning rate of Adam in both phases, x 0.1 at 80 % of the first, x 0.2 at 80 and 90 % of the
    second."""
    first_phase: float = option(
        2 / 3, low=0.01, high=0.99, search=uniform(0.5, 0.8, "around the reference's two thirds")
    )
    """Part of all steps that the first phase takes; the reference trains 100 000 + 50 000."""
    anomaly_probability: float = option(0.5, low=0, high=1)
    """Part of the training images that get an anomaly, in both phases."""
    perlin_threshold: float = option(0.5, low=-1, high=1, search=uniform(0.3, 0.7))
    """Of the noise that forms anomalous patches; higher gives fewer and smaller ones."""
    min_strength: float = option(
        0.2, low=0.01, high=1, search=uniform(0.1, 0.5, "small makes near, faint defects")
    )
    """Least part of the codebook from which a foreign code is drawn, nearest first."""
    skipped: float = option(0.05, low=0, high=0.99)
    """Part of the codebook, nearest first, that is too close to be an anomaly; below
    `min_strength`."""
    max_beta: float = option(0.8, low=0, high=1)
    """Largest share of the image that shows through a painted patch of the second phase."""
    rotation_probabilities: tuple[float, float] = option((0.4, 0.3), low=0, high=1)
    """Part of the training images that are turned by up to 90 degrees either way, per phase."""

    def __post_init__(self) -> None:
        """Check ranges, and what concerns two values."""
        check_fields(self)
        if self.skipped >= self.min_strength:
            raise InputError(
                Sentence.of(
                    "method skipped", skipped=str(self.skipped), min_strength=str(self.min_strength)
                )
            )
        if len(self.rotation_probabilities) != 2:
            raise InputError(
                Sentence.of(
                    "method rotation_probabilities",
                    rotation_probabilities=list(self.rotation_probabilities),
                )
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return ("dsr_vq_model",) if self.weights == "pretrained" else ()


def check_inputs(config: DsrConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    if size % STRIDE or size < SMALLEST:
        below = max(SMALLEST, size // STRIDE * STRIDE)
        near = f"{below} or {below + STRIDE}" if below < size else str(below)
        raise InputError(
            Sentence.of("method dsr size", size=size, stride=STRIDE, smallest=SMALLEST, near=near)
        )

    normalize = train_config.normalize
    if normalize != "none":
        raise InputError(Sentence.of("method dsr normalize", normalize=repr(normalize)))

    # Early stopping counts epochs of the first phase too.
    patience = train_config.patience
    if patience is not None:
        return [f"dsr: patience {patience} may end training before its second phase"]
    return []


METHODS = {
    "DsrTrainer": Method(DsrConfig, check_inputs=check_inputs),
}

"""Hyperparameters of MH-PatchCore, and what is known before its network is loaded.

The method itself: `adray.models.mhpatchcore`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import count_places
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class MhpatchcoreConfig:
    """Hyperparameters of MH-PatchCore; defaults are the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = option(
        ("layer2", "layer3"),
        search=choice(
            ("layer2", "layer3"),
            ("layer2",),
            ("layer3",),
            note="finer stages for small defects in texture, coarser ones for shape",
        ),
    )
    """Stages whose features are joined."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    variance: float = option(
        0.99,
        low=0.01,
        high=1,
        search=uniform(0.9, 0.999, "more keeps directions in which normal patches hardly vary"),
    )
    """Part of the training patches' variance that the kept components explain."""
    shrinkage: float = option(
        0.07,
        low=0,
        high=1,
        search=uniform(0.01, 0.5, "more trusts the small variances less"),
    )
    """How far the components' variances are moved towards their mean before patches are divided by
    their roots; 1 leaves Euclidean distances."""
    bank_size: int = option(
        1000,
        low=1,
        high=1_000_000,
        search=log_integers(250, 4000, "a larger bank remembers rarer normals and is slower"),
    )
    """Patches that the memory bank keeps, however many images there are."""
    num_neighbors: int = option(9, low=1, high=1000)
    """Bank neighbours of the nearest neighbour that weigh an image's score; 1 leaves it
    unweighted."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels")
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def fit_bytes(config: MhpatchcoreConfig, train_config: TrainConfig, images: int) -> int:
    """Count summaries, sums and one batch of patches, see `adray.method.Method.fit_bytes`.

    Only the number of summaries grows with the images, as their logarithm.
    """
    places, width = count_places(config.backbone, config.layers, train_config.input_shape)
    batches = -(-images // train_config.batch_size)
    # One for each binary digit, and the two that are merged.
    summaries = (batches.bit_length() + 2) * config.bank_size * width

    # A batch in float32 and in float64; its sums, those so far, their total, the directions.
    batch = min(images, train_config.batch_size) * places * width
    sums = 4 * width**2
    return 4 * summaries + (4 + 8) * batch + 8 * sums


METHODS = {
    "MhpatchcoreTrainer": Method(
        MhpatchcoreConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        updates="coreset",
        any_aspect=True,
        fit_bytes=fit_bytes,
    ),
}

"""Hyperparameters of SuperAD, and what is known before its network is loaded.

The method itself: `adray.models.superad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import DINOV2S, check_dinov2, count_patches, dinov2_blocks
from adray.components.input_checks import check_turned_views
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class SuperadConfig:
    """Hyperparameters of SuperAD."""

    backbone: str = "dinov2_vits14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layers: tuple[str, ...] = option(
        ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
        search=choice(
            ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
            ("blocks.5", "blocks.8", "blocks.11"),
            ("blocks.8", "blocks.11"),
            note="a quarter of the depth each as published, or the later ones",
        ),
    )
    """Blocks that have a memory bank each, of patches through the network's last layer norm. The last
    one's class token says which images are unlike each other."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    num_images: int = option(
        16,
        low=1,
        high=100_000,
        search=log_integers(4, 64, "fewer are faster and forget rarer normals"),
    )
    """Training images that the banks are made of, those most unlike each other; all where there are
    fewer. Where images come in tiles, tiles."""
    rotations: int = option(1, low=1, high=360)
    """Views of each of these images, turned by equal parts of a full turn, itself the first; the
    reference takes 8."""
    sigma: float = option(
        4.0, low=0.1, high=100, unit="pixels", search=uniform(1.0, 8.0, "moves the map alone")
    )
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges, and that the transformer has these blocks."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: SuperadConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    check_dinov2(config.backbone, config.layers, train_config.input_size)
    check_turned_views(config.rotations, train_config)
    return []


def fit_bytes(config: SuperadConfig, train_config: TrainConfig, images: int) -> int:
    """Count the patches of the chosen images' views, see `adray.method.Method.fit_bytes`.

    They are held twice when those of one block are joined.
    """
    per_block = count_patches(train_config.input_shape) * DINOV2S[config.backbone].width
    views = min(images, config.num_images) * config.rotations
    return 4 * views * (len(config.layers) + 1) * per_block


METHODS = {
    "SuperadTrainer": Method(
        SuperadConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        any_aspect=True,
        check_inputs=check_inputs,
        fit_bytes=fit_bytes,
    ),
}

"""Hyperparameters of MuSc, and what is known before its network is loaded.

The method itself: `adray.models.musc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import dinov2_blocks
from adray.components.input_checks import (
    all_patches_bytes,
    check_dinov2_inputs,
    check_kernel_sizes,
)
from adray.fields import check_fields, choice, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class MuscConfig:
    """Hyperparameters of MuSc; defaults are the reference's but for the transformer."""

    backbone: str = "dinov2_vits14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layers: tuple[str, ...] = option(
        ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
        search=choice(
            ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
            ("blocks.5", "blocks.11"),
            ("blocks.8", "blocks.11"),
            note="a quarter of the depth each as published, or fewer, which is faster",
        ),
    )
    """Blocks whose patches are compared, through the network's last layer norm."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    kernel_sizes: tuple[int, ...] = option(
        (1, 3, 5),
        search=choice((1,), (3,), (1, 3, 5), note="small ones for small defects"),
    )
    """Sides of the squares over which patches are averaged before they are compared; the map is the
    mean over all of them."""
    nearest_part: float = option(
        0.3,
        low=0.01,
        high=1,
        search=uniform(0.1, 0.6, "more where fewer images have defects at the same place"),
    )
    """Part of the other images, those that come nearest to a patch, whose mean distance scores it."""

    def __post_init__(self) -> None:
        """Check ranges, that the transformer has these blocks, and that squares have a middle."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)
        check_kernel_sizes(self.kernel_sizes, such_as="[1, 3, 5]")

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "MuscTrainer": Method(
        MuscConfig,
        single_pass=True,
        min_normals=2,
        shares_features=True,
        crosses=True,
        updates="exact",
        any_aspect=True,
        check_inputs=check_dinov2_inputs,
        fit_bytes=all_patches_bytes,
    ),
}

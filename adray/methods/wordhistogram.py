"""Hyperparameters of the word histogram, and what is known before its network is loaded.

The method itself: `adray.models.wordhistogram`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import (
    DINOV2_PATCH,
    DINOV2S,
    check_dinov2,
    count_patches,
    dinov2_blocks,
)
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class WordhistogramConfig:
    """Hyperparameters of the word histogram."""

    backbone: str = "dinov2_vits14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layer: str = option(
        "blocks.11",
        search=choice("blocks.8", "blocks.11", note="the last one for parts, earlier for texture"),
    )
    """Block whose patches are counted, through the network's last layer norm."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    num_words: int = option(
        64,
        low=2,
        high=1024,
        search=log_integers(16, 128, "more tell apart more kinds of parts, each rarer"),
    )
    """Visual words, the kinds of patches that are counted."""
    temperature: float = option(
        0.02,
        low=1e-4,
        high=10,
        search=log_uniform(0.005, 0.1, "more shares a patch among the words like it"),
    )
    """Difference of cosines at which a patch counts e times as much for the nearer of two words."""

    def __post_init__(self) -> None:
        """Check ranges, and that the transformer has this block."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the blocks that are tapped."""
        return (self.layer,)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: WordhistogramConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    check_dinov2(config.backbone, config.layers, size)
    if size < 2 * DINOV2_PATCH:
        raise InputError(Sentence.of("method quarters", size=size, least=2 * DINOV2_PATCH))
    return []


def fit_bytes(config: WordhistogramConfig, train_config: TrainConfig, images: int) -> int:
    """Count the patches of all images, see `adray.method.Method.fit_bytes`."""
    places = count_patches(train_config.input_shape)
    return 4 * images * places * DINOV2S[config.backbone].width


METHODS = {
    "WordhistogramTrainer": Method(
        WordhistogramConfig,
        single_pass=True,
        min_normals=2,
        shares_features=True,
        crosses=True,
        updates="exact",
        check_inputs=check_inputs,
        fit_bytes=fit_bytes,
    ),
}

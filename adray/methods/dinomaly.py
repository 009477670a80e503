"""Hyperparameters of Dinomaly, and what is known before its network is loaded.

The method itself: `adray.models.dinomaly`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import dinov2_blocks
from adray.components.input_checks import check_dinov2_inputs
from adray.errors import InputError
from adray.fields import check_fields, choice, log_integers, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class DinomalyConfig:
    """Hyperparameters of Dinomaly; defaults are the paper's and the reference's for a ViT-B."""

    backbone: str = "dinov2_vit_base_14"
    """Architecture of the encoder, one of `DINOV2S`; the decoder has its width and heads. The
    paper's has registers."""
    layers: tuple[str, ...] = tuple(f"blocks.{i}" for i in range(2, 10))
    """Encoder blocks to restore, an even number: either half makes a group (loose constraint). The
    decoder has as many blocks."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the encoder; bottleneck and decoder always start at random."""
    recenter: bool = option(False, later=True)
    """Subtract each block's class token from its patches, which alone are then restored (context
    recentring, Dinomaly2)."""
    dropout: float = option(
        0.2, low=0, high=0.99, search=uniform(0.1, 0.5, "more for products that vary more")
    )
    """Dropout in the bottleneck (noisy bottleneck); the paper takes 0.4 for Real-IAD."""
    easy_part: float = option(
        0.9,
        low=0,
        high=0.999,
        search=uniform(0.5, 0.95, "the paper drops the gradient of the best 90 %"),
    )
    """Part of the positions, those restored best, whose gradient is reduced (loose loss)."""
    easy_steps: int = option(1000, low=1, high=10_000_000)
    """Steps over which that part grows from 0."""
    easy_factor: float = option(0.1, low=0, high=1, search=choice(0.0, 0.1, 0.3))
    """What the gradient at these positions is multiplied by."""
    lr: float = option(
        2e-3, low=0, high=1, search=log_uniform(5e-4, 5e-3, "around the reference's 2e-3")
    )
    """Learning rate of StableAdamW after the warm-up."""
    final_lr: float = option(2e-4, low=0, high=1)
    """Learning rate at the end, reached along half a cosine."""
    warmup_steps: int = option(100, low=0, high=10_000_000)
    """Steps over which the learning rate rises; at most half of the training."""
    weight_decay: float = option(1e-4, low=0, high=1)
    """Weight decay of StableAdamW."""
    clip_norm: float = option(0.1, low=1e-6, high=1e6)
    """Largest norm of all gradients together."""

    def __post_init__(self) -> None:
        """Check ranges, and that the encoder has the blocks to restore."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)
        if len(self.layers) % 2:
            raise InputError(Sentence.of("method even layers", layers=str(list(self.layers))))

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "DinomalyTrainer": Method(
        DinomalyConfig,
        train_search={
            "max_steps": log_integers(
                1000, 10_000, "the authors take 5,000 for one category and 10,000 for merged ones"
            )
        },
        check_inputs=check_dinov2_inputs,
    ),
}

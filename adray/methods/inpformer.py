"""Hyperparameters of INP-Former, and what is known before its network is loaded.

The method itself: `adray.models.inpformer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import dinov2_blocks
from adray.components.input_checks import check_dinov2_inputs
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class InpformerConfig:
    """Hyperparameters of INP-Former; defaults are the reference's for a ViT-B."""

    backbone: str = "dinov2_vitb14_reg4"
    """Architecture of the encoder, one of `DINOV2S`; what is learnt has its width and heads."""
    layers: tuple[str, ...] = tuple(f"blocks.{i}" for i in range(2, 10))
    """Encoder blocks to restore, an even number: either half makes a group. The decoder has as many
    blocks."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the encoder; all that is learnt starts at random."""
    prototypes: int = option(
        6, low=1, high=1000, search=choice(2, 4, 6, 8, note="more for products that vary more")
    )
    """Normal prototypes that are drawn from each image (M)."""
    coherence_weight: float = option(
        0.2, low=0, high=100, search=log_uniform(0.05, 1.0, "around the paper's 0.2")
    )
    """Weight of the loss that keeps each token near a prototype (lambda)."""
    mining_exponent: float = option(
        3.0, low=0, high=20, search=uniform(1.0, 4.0, "0 leaves the gradient as it is")
    )
    """Power by which positions that are restored worse than the mean gain gradient (gamma)."""
    few_shot_views: bool = False
    """Learn turned, shifted, mirrored and grey views of the images, drawn anew for each step and as
    many as fill a batch; the reference does where there are a few images."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(3e-4, 3e-3, "around the reference's 1e-3")
    )
    """Learning rate of StableAdamW after the warm-up."""
    final_lr: float = option(1e-4, low=0, high=1)
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
    "InpformerTrainer": Method(
        InpformerConfig, shares_features=True, check_inputs=check_dinov2_inputs
    ),
}

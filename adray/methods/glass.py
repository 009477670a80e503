"""Hyperparameters of GLASS, and what is known before its network is loaded.

The method itself: `adray.models.glass`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class GlassConfig:
    """Hyperparameters of GLASS; defaults are the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen backbone; the noise's size is meant for torchvision's first (V1)
    weights."""
    layers: tuple[str, ...] = ("layer2", "layer3")
    """Stages whose features are joined, the largest first."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the backbone."""
    width: int = option(1536, low=1, high=65536)
    """Numbers that describe a patch, before and after the adaptor."""
    hidden: int = option(1024, low=1, high=65536)
    """Width of the discriminator's hidden layer."""
    auxiliary: str = "dtd"
    """Textures to paint with: the Describable Textures Dataset or any folder of images."""
    hypothesis: Literal["spectrum", "manifold", "hypersphere"] = option(
        "spectrum",
        search=choice("manifold", "hypersphere", note="the spectrum of the images chooses one"),
    )
    """How normal patches are taken to lie: ``manifold`` for each near its own image's, ``hypersphere``
    for all around the mean of their position. ``spectrum`` chooses by the mean training image, as the
    reference can."""
    noise_std: float = option(
        0.015, low=0, high=100, search=log_uniform(0.005, 0.05, "around the paper's 0.015")
    )
    """Standard deviation of the noise that global synthesis starts from."""
    ascent_steps: int = option(20, low=0, high=1000)
    """Steps of gradient ascent, each a pass of the discriminator."""
    ascent_rate: float = option(1e-3, low=0, high=100)
    """Length of one of these steps."""
    radius_quantile: float = option(
        0.75, low=0, high=1, search=uniform(0.5, 0.95, "around the reference's 0.75")
    )
    """Part of the normal patches that lie within the sphere's radius."""
    hard_part: float = option(0.5, low=0, high=0.99)
    """Part of the patches, those judged best, that the loss of local synthesis leaves out."""
    opacity_std: float = option(0.1, low=0, high=1)
    """Standard deviation of how much of the image shows through a texture, around one half."""
    adaptor_lr: float = option(
        1e-4, low=0, high=1, search=log_uniform(2e-5, 5e-4, "around the reference's 1e-4")
    )
    """Learning rate of Adam for the adaptor, constant."""
    discriminator_lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 1e-3, "around the reference's 2e-4")
    )
    """Learning rate of AdamW for the discriminator, constant."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(2.0, 8.0))
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: GlassConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    if train_config.normalize != "imagenet":
        raise InputError(
            Sentence.of("method glass normalize", normalize=repr(train_config.normalize))
        )
    return []


METHODS = {
    "GlassTrainer": Method(
        GlassConfig, without_auxiliary="glass paints with built-in noise", check_inputs=check_inputs
    ),
}

"""Hyperparameters of DRAEM, and what is known before its network is loaded.

The method itself: `adray.models.draem`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method

STRIDE = 32
"""Pixels per position of the deepest map."""
SMALLEST = 2 * STRIDE
"""Least side of an image in pixels: at one position a batch of one has no variance."""


@dataclass(frozen=True)
class DraemConfig:
    """Hyperparameters of DRAEM; defaults are the reference's."""

    auxiliary: str = "dtd"
    """Textures to paint with: the Describable Textures Dataset or any folder of images (section
    3.3)."""
    anomaly_probability: float = option(0.5, low=0, high=1, search=uniform(0.3, 0.8))
    """Part of the training images that get a synthetic anomaly."""
    max_beta: float = option(
        0.8, low=0, high=1, search=uniform(0.5, 0.95, "near 1 makes faint defects, harder to see")
    )
    """Upper bound of beta, the share of the image that shows through a texture (equation 4)."""
    perlin_threshold: float = option(0.5, low=-1, high=1, search=uniform(0.3, 0.7))
    """Of the noise that forms the patches; higher gives fewer and smaller ones."""
    rotation_probability: float = option(
        0.3,
        low=0,
        high=1,
        search=choice(0.0, 0.3, 0.7, note="products that lie straight need none"),
    )
    """Part of the training images that are turned by up to 90 degrees either way; the reference
    does, the paper not."""
    reconstructive_width: int = option(128, low=1, high=1024)
    """Channels of the reconstructive network at full resolution."""
    discriminative_width: int = option(64, low=1, high=1024)
    """Channels of the discriminative network at full resolution."""
    sspcab: bool = False
    """Whether an SSPCAB block takes the place of the reconstructive network's deepest
    convolutions."""
    sspcab_weight: float = option(0.1, low=0, high=100)
    """Weight of that block's own loss."""
    lr: float = option(
        1e-4, low=0, high=1, search=log_uniform(3e-5, 3e-4, "around the reference's 1e-4")
    )
    """Learning rate of Adam, times 0.2 at 80 % and at 90 % of the steps."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)


def check_inputs(config: DraemConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    if size % STRIDE or size < SMALLEST:
        below = size // STRIDE * STRIDE
        near = f"{below} or {below + STRIDE}" if below >= SMALLEST else str(SMALLEST)
        raise InputError(
            Sentence.of("method draem size", size=size, stride=STRIDE, smallest=SMALLEST, near=near)
        )

    # Textures are painted, and gamma is taken, in [0, 1].
    normalize = train_config.normalize
    if normalize != "none":
        raise InputError(Sentence.of("method draem normalize", normalize=repr(normalize)))
    return []


METHODS = {
    "DraemTrainer": Method(
        DraemConfig, without_auxiliary="draem paints with built-in noise", check_inputs=check_inputs
    ),
}

"""What a memory bank may ask of SoftPatch's weights. Importing this loads no torch.

The weights themselves: `adray.components.patch_outliers`.
"""

from __future__ import annotations

from typing import Protocol

from adray.config import TrainConfig
from adray.errors import InputError
from adray.language.sentence import Sentence

_LEAST_NORMALS = 3
"""Of two images each is as unlike the other."""
SOFT_NEIGHBORS = 6
"""The authors' number of neighbours."""
SOFT_REMOVED = 0.15
"""The authors' part of the patches that no bank keeps."""


class SoftBank(Protocol):
    """Hyperparameters of a method whose bank can have weights."""

    @property
    def soft_weights(self) -> str:
        """Name the measure, ``none`` for a plain bank."""

    @property
    def soft_neighbors(self) -> int:
        """Give the number of images that ``lof`` compares with."""

    @property
    def soft_removed(self) -> float:
        """Give the part of the patches that is left out."""


def check_soft(config: SoftBank) -> None:
    """Refuse what says nothing without weights, or of another measure.

    Raises:
        InputError: with the value.
    """
    if config.soft_weights == "none" and config.soft_removed != SOFT_REMOVED:
        raise InputError(Sentence.of("soft removed", soft_removed=str(config.soft_removed)))
    if config.soft_weights != "lof" and config.soft_neighbors != SOFT_NEIGHBORS:
        raise InputError(
            Sentence.of(
                "soft neighbors",
                soft_neighbors=config.soft_neighbors,
                soft_weights=config.soft_weights,
            )
        )


def check_soft_inputs(config: SoftBank, train_config: TrainConfig) -> None:
    """Refuse weights where patches at one place of the input are not at one place of the product.

    Raises:
        InputError: for images in tiles.
    """
    if config.soft_weights != "none" and train_config.tile is not None:
        raise InputError(
            Sentence.of("soft tiles", soft_weights=config.soft_weights, tile=train_config.tile)
        )


def soft_normals(config: SoftBank) -> int:
    """Give the number of training normals that a bank needs: ``lof`` has so many neighbours."""
    if config.soft_weights == "none":
        return 1
    return config.soft_neighbors + 1 if config.soft_weights == "lof" else _LEAST_NORMALS

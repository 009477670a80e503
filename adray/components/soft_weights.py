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
SOFT_BLOCK = 2**22
"""Numbers that are compared at once, in double precision."""
_SOFT_COPIES = 4
"""Of them that are held at once: a sum, two products and their difference."""
POOL_PART = 1 / 32
"""Of the patches of which `adray.components.k_center_greedy` copies the farthest."""
SOFT_NEIGHBORS = 6
"""The authors' number of neighbours."""
SOFT_REMOVED = 0.15
"""The authors' part of the patches that no bank keeps."""


class SoftBank(Protocol):
    """Hyperparameters of a method whose bank can have weights."""

    @property
    def coreset_ratio(self) -> float:
        """Give the part of the patches that the bank keeps."""

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


def bank_bytes(config: SoftBank, images: int, places: int, width: int) -> int:
    """Count the bytes that choosing a bank of all patches takes at most, these among them.

    Args:
        config: of the bank.
        images: number of images, or of views of them.
        places: patches of each.
        width: numbers of a patch, in float32.
    """
    patches = 4 * images * places * width
    chosen = max(config.coreset_ratio, POOL_PART)
    if config.soft_weights == "none":
        # All, and all less their mean, which are gone once the bank is taken.
        return int((2 + chosen) * patches)

    # The usual ones are copied before, and those of a block of places are compared before that.
    choosing = (1 + 2 * (1 - config.soft_removed) + chosen) * patches
    block = max(SOFT_BLOCK, images * (images + width))
    return int(max(choosing, patches + 8 * _SOFT_COPIES * block))


def soft_normals(config: SoftBank) -> int:
    """Give the number of training normals that a bank needs: ``lof`` has so many neighbours."""
    if config.soft_weights == "none":
        return 1
    return config.soft_neighbors + 1 if config.soft_weights == "lof" else _LEAST_NORMALS

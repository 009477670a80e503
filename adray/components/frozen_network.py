"""What all pretrained networks have in common that a method uses but does not train."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from adray.components.backbone import get_backbone_path
from adray.errors import InputError
from adray.fields import check_choice
from adray.files import file_sha256
from adray.language.sentence import Sentence
from adray.types import Json


class FrozenNetwork(nn.Module):
    """A network that never changes, and is named rather than stored in checkpoints."""

    backbone: str
    """Its name in `BACKBONE_WEIGHT_FILES`."""
    weight_file: Path | None
    """The file its weights came from, or None where they are random."""

    @property
    def identity(self) -> Json:
        """Say which weights these are, for a checkpoint in place of the tensors.

        Without a file the tensors themselves are stored.
        """
        file = self.weight_file
        return {
            "backbone": self.backbone,
            "file": file.name if file else None,
            "sha256": file_sha256(file) if file else None,
        }

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode: batch norm statistics of a frozen network must not follow the data."""
        return super().train(False)


def chosen_weight_file(backbone: str, weights: str) -> Path | None:
    """Find the file of ``"pretrained"`` weights, or give None for ``"random"`` ones.

    Raises:
        InputError: for another choice, and for a missing file.
    """
    check_choice("weights", weights, ("pretrained", "random"))
    return get_backbone_path(backbone) if weights == "pretrained" else None


def check_features(values: Tensor) -> None:
    """Refuse features of training images among which NaN or infinity is.

    Args:
        values: of any shape, or sums of their squares.

    Raises:
        InputError: with the remedies.
    """
    if values.numel() == 0:
        return
    # The ends tell of NaN too, and take no copy of what may be all patches of a training.
    ends = torch.stack([values.amin(), values.amax()])
    if not bool(torch.isfinite(ends).all()):
        raise InputError(Sentence.of("features not finite"))

"""What all pretrained networks have in common that a method uses but does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from adray.components.backbone import get_backbone_path
from adray.errors import InputError, nearest
from adray.files import file_sha256


class FrozenNetwork(nn.Module):
    """A network that never changes, and is named rather than stored in checkpoints.

    Attributes:
        backbone: its name in `BACKBONE_WEIGHT_FILES`.
        weight_file: the file its weights came from, or None where they are random.
    """

    backbone: str
    weight_file: Path | None

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint says in place of the tensors; without a file the tensors themselves are stored."""
        if self.weight_file is None:
            return {"backbone": self.backbone, "file": None, "sha256": None}
        return {
            "backbone": self.backbone,
            "file": self.weight_file.name,
            "sha256": file_sha256(self.weight_file),
        }

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode: batch norm statistics of a frozen network must not follow the data."""
        return super().train(False)


def chosen_weight_file(backbone: str, weights: str) -> Path | None:
    """The file of ``"pretrained"`` weights, None for ``"random"`` ones.

    Raises:
        InputError: for another choice, and for a missing file.
    """
    if weights not in ("pretrained", "random"):
        raise InputError(
            f"weights {weights!r} is not known; {nearest(weights, ('pretrained', 'random'))}"
        )
    return get_backbone_path(backbone) if weights == "pretrained" else None

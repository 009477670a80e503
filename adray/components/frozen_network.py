"""What all pretrained networks have in common that a method uses but does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

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
        return {"backbone": self.backbone, "file": self.weight_file.name, "sha256": file_sha256(self.weight_file)}

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode: batch norm statistics of a frozen network must not follow the data."""
        return super().train(False)

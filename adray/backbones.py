"""Which weight files are there, whose they are, and whether their networks can be built of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adray.components.architectures import DINOV2S
from adray.components.backbone import BACKBONE_WEIGHT_FILES, WeightFile, find_weights
from adray.errors import InputError
from adray.files import file_sha256
from adray.language.sentence import Sentence, nearest_of, sentence_of
from adray.model_specs import MODEL_SPECS
from adray.registry import ModelRegistry

_GOLDEN_LAYER = "layer3"
_PICTURE_SIDE = 64
"""Of the test picture, in pixels."""
_GOLDEN_TOLERANCE = 1e-3
"""Of a feature's length; files of the same weights differ by a hundredth of it."""


@dataclass(frozen=True)
class Backbone:
    """A weight file as it is here."""

    name: str
    """In `BACKBONE_WEIGHT_FILES`."""
    row: WeightFile
    """What is known of it."""
    path: Path | None
    """Where it lies, None where it is missing."""
    size: int
    """Bytes, of a folder those of all its files; 0 where it is missing."""
    sha256: str
    """See `adray.files.file_sha256`; empty where it is missing."""

    @property
    def is_published(self) -> bool | None:
        """Tell whether it is the published file, None where no hash is known of it."""
        has_its_ending = self.path is not None and self.path.suffix == Path(self.row.source).suffix
        if not self.row.sha256 or not has_its_ending:
            return None
        return self.sha256.startswith(self.row.sha256)


def find_backbones(backbone_dir: str | Path, patterns: Sequence[str] = ()) -> list[Backbone]:
    """Look for weight files, in the order of `BACKBONE_WEIGHT_FILES`.

    Args:
        backbone_dir: folder of pretrained weights.
        patterns: names or patterns of those that are meant, all where there are none.

    Raises:
        InputError: for a pattern that no name matches, and a file that cannot be read.
    """
    for pattern in patterns:
        if not fnmatch.filter(BACKBONE_WEIGHT_FILES, pattern):
            raise InputError(
                Sentence.of(
                    "backbone pattern",
                    pattern=repr(pattern),
                    nearest=nearest_of(pattern, BACKBONE_WEIGHT_FILES),
                )
            )

    found = []
    for name, row in BACKBONE_WEIGHT_FILES.items():
        is_meant = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if is_meant or not patterns:
            found.append(_look(name, row, find_weights(name, backbone_dir)))
    return found


def _look(name: str, row: WeightFile, path: Path | None) -> Backbone:
    """Measure and hash a weight file.

    Raises:
        InputError: for one that cannot be read.
    """
    if path is None:
        return Backbone(name, row, None, 0, "")
    try:
        size = path.stat().st_size
        if path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Backbone(name, row, path, size, file_sha256(path))
    except OSError as error:
        raise InputError(
            Sentence.of("weights unreadable", path=str(path), error=sentence_of(error))
        ) from error


def check_structure(backbone: Backbone) -> None:
    """Open a weight file and look whether its network can be built of it. This loads torch.

    What asks for most of the network is the check of a configuration that uses it. A DINOv2 is looked
    at to its last block.

    Raises:
        InputError: for a broken file, and for another network's.
    """
    assert backbone.path is not None, "it is there"
    if backbone.name in DINOV2S:
        from adray.components.dinov2_extractor import check_dinov2_file

        blocks = [f"blocks.{i}" for i in range(DINOV2S[backbone.name].depth)]
        check_dinov2_file(backbone.name, blocks, backbone.path)
        return

    for spec in MODEL_SPECS:
        resolved = ModelRegistry.resolve(spec.name)
        if backbone.name in resolved.weight_files:
            trainer_class = ModelRegistry.trainer_class(spec.name)
            trainer_class.check_weight_file(resolved.config, backbone.name, backbone.path)
            return


def has_published_features(backbone: Backbone) -> bool | None:
    """Tell whether a network sees the test picture as the published weights do. This loads torch.

    So the published weights are known in a file of another form, and others in a file whose
    structure is right. None where it is not known how they see it.

    Args:
        backbone: whose structure is right.
    """
    golden = np.array(backbone.row.golden)
    if not len(golden):
        return None
    assert backbone.path is not None, "it is there"
    found = feature_of(backbone.name, backbone.path)[: len(golden)]
    away = np.linalg.norm(found - golden) / np.linalg.norm(golden)
    return bool(away < _GOLDEN_TOLERANCE)


def feature_of(name: str, path: Path) -> NDArray[np.float64]:
    """Describe the test picture by a convolutional network: the mean of each channel of `layer3`.

    The picture rises from -2 to 2 downwards in its first channel, to the right in its second, and
    its third is half their product. These are the network's own numbers, no pixels.

    Args:
        name: of the network.
        path: of its weights.
    """
    import torch

    from adray.components.feature_extractor import load_network

    ramp = torch.linspace(-2, 2, _PICTURE_SIDE).expand(_PICTURE_SIDE, -1)
    picture = torch.stack([ramp.T, ramp, ramp.T * ramp / 2])[None]
    network = load_network(name, (_GOLDEN_LAYER,), path).eval()
    with torch.no_grad():
        (maps,) = network(picture)
    return maps.mean((0, 2, 3)).double().numpy()


def users_of(name: str) -> list[str]:
    """List the configurations that need a weight file."""
    users = []
    for spec in MODEL_SPECS:
        if name in ModelRegistry.resolve(spec.name).weight_files:
            users.append(spec.name)
    return users

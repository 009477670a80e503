"""What the verdicts of a trained model rest on: noted when it is trained, compared where it is used.

A weight file of the same name and another content, thresholds or calibration normals of another
model, or a program that scores otherwise give verdicts that look like any others. So each is known
by its hash or version, and a difference is refused unless somebody accepts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adray.config import TrainConfig
from adray.data.preprocessing import preprocessing_hash
from adray.errors import InputError
from adray.files import canonical_hash, file_sha256
from adray.language.sentence import Sentence
from adray.model_specs import CORE_VERSION
from adray.registry import ModelRegistry
from adray.types import Json, PixelRule, Roi

_NAMES = {
    "checkpoint": "the checkpoint file",
    "preprocessing": "the preprocessing",
    "thresholds": "the thresholds",
    "calibration": "the calibration",
    "calibration_peaks": "the calibration of maps",
}


def needs_of(
    checkpoint: Path | None,
    config: TrainConfig,
    pixels: PixelRule,
    thresholds: Json,
    calibration: Sequence[float],
    calibration_peaks: Sequence[float],
    roi: Roi | None = None,
) -> Json:
    """Give the hashes of what a verdict rests on, for `result.json` and `export.json`. JSON.

    Args:
        checkpoint: the file of the trained model, None where none is kept.
        config: how its images are prepared.
        pixels: how the numbers in its images become 8 bits.
        thresholds: as they are stored.
        calibration: scores of the calibration normals, rising.
        calibration_peaks: highest value of each one's map, rising.
        roi: the part of its images that counts, None for all of it.
    """
    return {
        "checkpoint": None if checkpoint is None else file_sha256(checkpoint),
        "preprocessing": preprocessing_hash(config, pixels, roi),
        "thresholds": canonical_hash(thresholds),
        "calibration": canonical_hash(list(calibration)),
        "calibration_peaks": canonical_hash(list(calibration_peaks)),
    }


def other_hashes(stored: Mapping[str, str | None], present: Mapping[str, str | None]) -> list[str]:
    """Say which hashes are not those of the training, one part of a sentence each.

    Args:
        stored: of `needs_of` when the model was trained. What it lacks is not compared.
        present: of `needs_of` now.
    """
    found = []
    for name, what in _NAMES.items():
        before = stored.get(name)
        now = present.get(name)
        if before is not None and before != now:
            found.append(difference(what, before, now))
    return found


def difference(what: str, before: object, now: object) -> str:
    """Say what differs between training and use."""
    return f"{what} differs: trained with {before}, here {now}"


def other_versions(configuration: str | None, versions: Mapping[str, int]) -> list[str]:
    """Say which version numbers that stand for changed scores are not those of the training.

    Args:
        configuration: name in the registry, None where it is not known.
        versions: ``model`` and ``core`` as the trial stored them.
    """
    present = {"core": CORE_VERSION}
    if configuration is not None and ModelRegistry.is_registered(configuration):
        present["model"] = ModelRegistry.get(configuration).version

    found = []
    for name, now in present.items():
        before = versions.get(name, now)
        if before != now:
            found.append(difference(f"the version of scores ({name})", before, now))
    return found


def check_differences(name: str, differences: Sequence[str]) -> None:
    """Refuse to use a model where something is not as it was trained.

    Raises:
        InputError: with all that differs.
    """
    if differences:
        raise InputError(
            Sentence.of("weights other", name=name, differences="; ".join(differences))
        )

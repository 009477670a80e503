"""A team of models for one product: the file that names them, their combined score and map.

The members' scores have different units, and are brought to one scale first, see
`adray.ensembles.calibration`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adray.config import build, to_plain
from adray.ensembles.calibration import MOST_FREEDOM, Calibration
from adray.errors import InputError
from adray.fields import check_fields, check_range, option
from adray.files import file_sha256, write_json
from adray.language.sentence import Sentence
from adray.results.store import TrialRecord, read_trial
from adray.results.trial_files import find_checkpoint
from adray.thresholds import FALSE_ALARMS, MOST_TRIED, check_rate

FORMAT = 1
"""Version of the file."""
MOST_MEMBERS = 20
"""More members than this are refused."""


@dataclass(frozen=True)
class Member:
    """One model of a team."""

    folder: str
    """Of its trial, relative to the ensemble file."""
    id: str
    """The trial's whole id."""
    configuration: str
    """Name of the configuration."""
    weight: float
    """Share of its calibrated score in the team's, above 0; those of a team sum to 1."""
    center: float
    """See `Calibration`."""
    scale: float
    """See `Calibration`."""
    freedom: float
    """See `Calibration`."""
    map_range: tuple[float, ...] | None = None
    """Smallest and almost largest value of its anomaly maps; None for a model without maps."""
    checkpoint_sha256: str | None = None
    """Of its checkpoint; None where none was kept."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("weight", "scale"):
            if getattr(self, name) <= 0:
                raise InputError(Sentence.of("team positive", name=name, value=getattr(self, name)))
        check_range("freedom", self.freedom, 1, MOST_FREEDOM)
        _check_map_range(self.map_range)
        if not self.folder or "\0" in self.folder:
            raise InputError(Sentence.of("team folder", folder=repr(self.folder)))

    @property
    def calibration(self) -> Calibration:
        """Give what brings the member's score to the team's scale."""
        return Calibration(self.center, self.scale, self.freedom)


def _check_map_range(map_range: tuple[float, ...] | None) -> None:
    """Refuse a range that is not two numbers."""
    if map_range is not None and len(map_range) != 2:
        raise InputError(Sentence.of("team map_range", number=len(map_range)))


@dataclass(frozen=True)
class Ensemble:
    """A team of models for one category, as it lies in a file."""

    dataset: str
    """Name of the data set."""
    category: str
    """Name of the category."""
    members: tuple[Member, ...]
    """The models, in the order in which they were chosen."""
    thresholds: dict[str, float]
    """Value on the combined score by rule, as `adray.thresholds.THRESHOLDS` has them."""
    map_range: tuple[float, ...] | None = (0.0, 1.0)
    """Of the combined map; None where no member has maps."""
    figures: dict[str, Any] | None = None
    """How the team was chosen and what that is worth; for readers, not needed to predict."""
    calibration: tuple[float, ...] = ()
    """Combined scores of the normals that no member trained on, rising; by them p-values and
    promises are made."""
    calibration_peaks: tuple[float, ...] = ()
    """What the combined maps of the same normals reach at most, rising; by them regions are found.
    Empty where a member with maps did not note its own."""
    rate: float = FALSE_ALARMS
    """Rate of false alarms that the threshold of the promise was asked for."""
    tried: int = option(1, low=1, high=MOST_TRIED)
    """Number of teams that there could have been, had the calibration normals chosen other settings
    of the members, see `adray.thresholds.make_promise`."""
    format: int = FORMAT
    """Version of the file."""

    def __post_init__(self) -> None:
        """Check the version, the number of members and their weights."""
        if self.format != FORMAT:
            raise InputError(Sentence.of("team format", format=self.format, readable=FORMAT))
        check_fields(self)
        check_rate("rate", self.rate)
        check_range("the number of members", len(self.members), 1, MOST_MEMBERS)
        _check_map_range(self.map_range)
        total = math.fsum(member.weight for member in self.members)
        if not math.isclose(total, 1, rel_tol=1e-6):
            raise InputError(Sentence.of("team weights", total=f"{total:g}"))


# The file


def write_ensemble(path: str | Path, ensemble: Ensemble) -> None:
    """Write the file that `python -m adray predict` runs."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, to_plain(ensemble))


def read_ensemble(path: str | Path) -> Ensemble:
    """Read a file that `write_ensemble` wrote.

    Raises:
        InputError: for a file that is missing, damaged, or holds something else.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return build(Ensemble, stored, f"ensemble {path}")
    except FileNotFoundError as error:
        raise InputError(Sentence.of("team no file", path=str(path))) from error
    except InputError:
        raise
    except (ValueError, OverflowError, RecursionError, OSError) as error:
        # A huge number, deep nesting, or a file that is no text: whatever it is, one sentence.
        cause = " ".join(str(error).split())[:120]
        raise InputError(Sentence.of("team damaged", path=str(path), cause=cause)) from error


def relative_folder(folder: Path, file: Path) -> str:
    """Give a trial's folder as seen from the ensemble file, so that a store can move as a whole."""
    return os.path.relpath(folder.resolve(), file.parent.resolve())


def member_folder(file: str | Path, member: Member) -> Path:
    """Find the folder of a member's trial, which is still the one that was chosen and can be run.

    Raises:
        InputError: for a folder that is gone, another trial in it, and a checkpoint that is missing
            or another one.
    """
    folder = Path(os.path.normpath(Path(file).resolve().parent / member.folder))
    name = f"ensemble {file}: {member.configuration} ({member.id[:8]})"
    record = _trial_at(folder)
    if record is None:
        raise InputError(Sentence.of("team member gone", name=name, folder=str(folder)))
    if record.trial.get("id") != member.id:
        raise InputError(Sentence.of("team member replaced", name=name, folder=str(folder)))

    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise InputError(Sentence.of("team no checkpoint", name=name, folder=str(folder)))
    if member.checkpoint_sha256 is not None and file_sha256(checkpoint) != member.checkpoint_sha256:
        raise InputError(
            Sentence.of("team checkpoint changed", name=name, checkpoint=str(checkpoint))
        )
    return folder


def _trial_at(folder: Path) -> TrialRecord | None:
    """Read the trial in a folder, None also for a path that cannot be, or may not be read."""
    try:
        return read_trial(folder)
    except OSError:
        return None


# What the team says of an image


def combine_scores(
    pred_scores: Sequence[np.ndarray | float], members: Sequence[Member]
) -> np.ndarray:
    """Average the members' calibrated scores by their weights.

    Args:
        pred_scores: by member, its own scores, (N,) or one number.
        members: in the same order.
    """
    calibrated = []
    for member, scores in zip(members, pred_scores, strict=True):
        calibrated.append(member.weight * member.calibration(scores))
    return np.sum(calibrated, axis=0)


@dataclass(frozen=True)
class MapPart:
    """The anomaly map of one member, and what it counts."""

    position: int
    """Of the member in its team."""
    values: np.ndarray
    """(H, W) float32, or for `combine_peaks` the highest value of each of several, (M,)."""
    map_range: Sequence[float]
    """Smallest and almost largest value of the member's maps, which become 0 and 1."""
    weight: float
    """Share of the map in the team's, above 0."""
    view: float
    """Side of the member's centre crop over the side of the resized image; 1 without a crop."""


def widest_part(parts: Sequence[MapPart]) -> MapPart:
    """Choose the part that sees the most of an image.

    That is the largest share, then the most pixels, then the first.
    """
    return max(parts, key=lambda part: (part.view, len(part.values)))


def place_in(widest: MapPart, view: float) -> tuple[slice, slice]:
    """Give the pixels of the widest view that a member of some view sees, in its middle."""
    ranges = []
    for side in widest.values.shape:
        inner = max(1, round(side * view / widest.view))
        start = round((side - inner) / 2)
        ranges.append(slice(start, start + inner))
    rows, columns = ranges
    return rows, columns


def combine_maps(parts: Sequence[MapPart]) -> np.ndarray:
    """Average maps by weight, each divided by its own range, with size and view of the widest.

    A member that crops its images says nothing of the border, and the others decide there.

    Args:
        parts: at least one; the sizes may differ, the aspect ratios hardly.

    Returns:
        (H, W) float32 of the widest, mostly between 0 and 1.
    """
    widest = widest_part(parts)
    total = np.zeros(widest.values.shape)
    seen = np.zeros(widest.values.shape)
    for part in parts:
        place = place_in(widest, part.view)
        total[place] += part.weight * _resized(_scaled(part), total[place].shape)
        seen[place] += part.weight
    return (total / seen).astype(np.float32)


def combine_peaks(parts: Sequence[MapPart]) -> np.ndarray:
    """Give what combined maps reach at most, by the highest values of the members' maps.

    A pixel is an average of the members that see it, and those see all that a narrower view does.
    So it is at most the same average of the peaks, of the members of some view or a wider one.

    Args:
        parts: at least one; `values` are peaks (M,) float32 of the same M images.

    Returns:
        (M,) float32. No pixel of `combine_maps` of these images is above it.
    """
    highest = np.full(len(parts[0].values), -np.inf, np.float32)
    for view in {part.view for part in parts}:
        # In the order and precision of `combine_maps`, so that nothing is lost by rounding.
        total = np.zeros(len(highest))
        seen = 0.0
        for part in parts:
            if part.view >= view:
                total += part.weight * _scaled(part)
                seen += part.weight
        highest = np.maximum(highest, (total / seen).astype(np.float32))
    return highest


def _scaled(part: MapPart) -> np.ndarray:
    """Bring the values of a member's map to those of its range, which become 0 to 1."""
    low, high = part.map_range
    return (part.values - low) / max(high - low, 1e-30)


def _resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize a map bilinearly."""
    if values.shape == shape:
        return values
    height, width = shape
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))  # mode F
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))

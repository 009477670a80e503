"""A trained trial or a team that gives verdicts as a bundle does, for `adray serve`.

It needs torch. A bundle does the same without.
"""

from __future__ import annotations

import io
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from adray.files import canonical_hash, file_sha256
from adray.language.catalogue import load_catalogue
from adray.predictor import Outcome, Predictor, own_map
from adray.promises import promise_text
from adray.regions import Region as TrialRegion
from adray.results.trial_files import checkpoint_of
from adray.runtime.judge import NamedModel
from adray.runtime.model import UNREADABLE, VERDICTS, Result
from adray.runtime.picture import MOST_PIXELS
from adray.runtime.regions import MOST_REGIONS, Region
from adray.thresholds import just_above


class ServedTrial:
    """Judges one image at a time.

    Args:
        predictor: of the trial or the team.
        false_alarms: rate that is to be promised; None for that of the trial.

    Raises:
        InputError: for a rate that is none, and without calibration normals, which leave no
            threshold.

    Attributes:
        dtype: of raw pixels, ``uint8`` or ``uint16``.
        See `adray.runtime.judge.Judge` for the others.
    """

    def __init__(self, predictor: Predictor, false_alarms: float | None = None) -> None:
        self._predictor = predictor
        self._rate = predictor.rate if false_alarms is None else false_alarms
        self._promise = predictor.promise(self._rate)
        assert self._promise.score is not None, "there are calibration normals"
        self.threshold = just_above(self._promise.score)
        self.promised = self._promise.promised
        self.tried = self._promise.tried
        self.calibration = predictor.calibration
        depths = {model.pixels.depth for model in predictor.models}
        self.dtype = "uint16" if depths == {"deep"} else "uint8"

        # What torch and the folder hold is one image's at a time.
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="adray-serve-")

    def predict(
        self,
        source: bytes | np.ndarray,
        with_map: bool = True,
        with_regions: bool = False,
        most_pixels: int = MOST_PIXELS,
    ) -> Result:
        """Judge an image, see `adray.runtime.model.Bundle.predict`."""
        if isinstance(source, bytes):
            problem = _too_large(source, most_pixels)
            if problem:
                return Result("array", UNREADABLE, reason=problem)
        with self._lock:
            outcome = self._outcome(source)
        return self._result(outcome, with_map, with_regions)

    def sentence(self, language: str) -> str:
        """Say what is promised of the verdicts."""
        return promise_text(self._promise, load_catalogue(language))

    def _outcome(self, source: bytes | np.ndarray) -> Outcome:
        """Score an image. A file is written, since the trial reads it as it read those of training."""
        if not isinstance(source, bytes):
            (outcome,) = self._predictor.predict([source])
            return outcome
        path = Path(self._folder.name) / "image"
        path.write_bytes(source)
        try:
            (outcome,) = self._predictor.predict([path])
        finally:
            path.unlink(missing_ok=True)
        return outcome

    def _result(self, outcome: Outcome, with_map: bool, with_regions: bool) -> Result:
        """Make a result of an outcome."""
        if outcome.pred_score is None:
            plain = outcome.reason.replace(f"{Path(self._folder.name) / 'image'}", "the image")
            return Result("array", UNREADABLE, reason=plain)
        regions = None
        if with_regions and self._predictor.peaks is not None and outcome.anomaly_map is not None:
            found = self._predictor.regions(outcome, rate=self._rate)
            regions = tuple(map(_plain, found[:MOST_REGIONS]))
        has_map = with_map and outcome.anomaly_map is not None
        return Result(
            "array",
            VERDICTS[int(outcome.pred_score >= self.threshold)],
            outcome.pred_score,
            outcome.p_value,
            own_map(outcome) if has_map else None,
            regions=regions,
        )


def named_trial_model(path: Path, judge: ServedTrial) -> NamedModel:
    """Name a trial or a team by what its files hold.

    Args:
        path: of a trial's folder, a checkpoint, or the file of an ensemble.
        judge: made of it.
    """
    file = path if path.suffix == ".json" and not path.is_dir() else checkpoint_of(path)
    sha256 = canonical_hash({"file": file_sha256(file), "threshold": judge.threshold})
    return NamedModel(judge, path.name, sha256)


def _too_large(data: bytes, most_pixels: int) -> str:
    """Say that a picture has too many pixels, empty where not, or where its reader will say more."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception:  # damaged files make Pillow fail in many ways, and the reader says how
        return ""
    if width * height <= most_pixels:
        return ""
    return f"the image has {width} x {height} pixels, at most {most_pixels} are allowed"


def _plain(region: TrialRegion) -> Region:
    """Give a region by the names of the runtime."""
    return Region(
        region.left,
        region.top,
        region.right,
        region.bottom,
        region.area,
        region.peak,
        region.center_x,
        region.center_y,
    )

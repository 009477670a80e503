"""Whether a bundle's graph judges as its trial does, on the trial's own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adray.ensembles.team import member_folder, read_ensemble
from adray.errors import InputError
from adray.export import TOLERANCE
from adray.predictor import Predictor, check_threshold
from adray.results.trial_files import read_scores
from adray.runtime.errors import BundleError
from adray.runtime.picture import read_picture
from adray.thresholds import PROMISE, Promise, check_rate, just_above, make_promise
from adray.types import Json

_SHOWN = 5
"""Images that a refusal names."""

Score = Callable[[np.ndarray], float]
"""From an image's pixels (H, W, 3) to the score of a graph."""


@dataclass(frozen=True)
class JudgedImage:
    """One image as the trial and the graph score it."""

    path: Path
    """The file."""
    split: str
    """``holdout`` for a calibration normal, or ``test``."""
    by_trial: float
    """Score by torch."""
    by_graph: float
    """Score by onnxruntime, from the image's own pixels."""


@dataclass(frozen=True)
class Wanted:
    """How somebody wants images to be judged."""

    false_alarms: float | None = None
    """Rate that is to be promised; None for that of the trial."""
    threshold: str | None = None
    """A rule's name or a number, in place of a promise."""
    tried: int | None = None
    """Number of trials of which the calibration normals chose this one; None for that of the trial."""


@dataclass(frozen=True)
class Cut:
    """Where scores are cut, by the trial and by the graph."""

    rule: str
    """`adray.thresholds.PROMISE`, the name of another rule, or a number."""
    of_trial: float
    """Threshold on the trial's scores."""
    of_graph: float
    """Threshold on the graph's scores."""
    promise: Promise | None
    """What the calibration normals promise by the graph's scores; None for another rule."""
    calibration: tuple[float, ...]
    """The graph's scores of the calibration normals, rising; empty where there are none."""


def team_images(file: Path) -> list[tuple[Path, str]]:
    """List the images that all members of a team held out, or were tested on, each with its split.

    Args:
        file: of the ensemble.

    Raises:
        InputError: as `checked_images`.
    """
    common: dict[tuple[Path, str], None] | None = None
    for member in read_ensemble(file).members:
        images = dict.fromkeys(checked_images(member_folder(file, member)))
        if common is None:
            common = images
        common = {image: None for image in common if image in images}
    if not common:
        raise InputError(
            f"the members of {file} have no image in common, so there is nothing to compare by"
        )
    return list(common)


def checked_images(trial: Path) -> list[tuple[Path, str]]:
    """List the held-out and the test images of a trial, each with its split.

    Raises:
        InputError: where nobody can say which images these are, or one is out of reach.
    """
    scores = read_scores(trial)
    if scores is None:
        raise InputError(
            f"{trial} has no scores.parquet, so there are no images to compare by; name a trial's "
            "folder in a store"
        )

    images = []
    for split, name in zip(scores["split"], scores["path"], strict=True):
        if split in ("holdout", "test"):
            images.append((Path(name), split))

    missing = [path for path, _ in images if not path.is_file()]
    if missing or not images:
        first = f", such as {missing[0]}" if missing else ""
        raise InputError(
            f"{len(missing)} of {len(images)} images of the trial are out of reach{first}; a "
            "bundle is checked on all of them, so put the data back where it was"
        )
    return images


def score_both(
    predictor: Predictor, score: Score, images: Sequence[tuple[Path, str]], dtype: str
) -> list[JudgedImage]:
    """Score images by torch and by a graph.

    Args:
        predictor: of the trial.
        score: of the graph.
        images: files with their split.
        dtype: of the pixels that the graph takes.

    Raises:
        InputError: for an image that one of the two cannot score.
    """
    outcomes = predictor.predict(path for path, _ in images)
    judged = []
    for (path, split), outcome in zip(images, outcomes, strict=True):
        if outcome.pred_score is None:
            raise InputError(f"the trial cannot score {path}: {outcome.reason}; take it out")
        try:
            by_graph = score(read_picture(path, dtype))
        except BundleError as error:
            raise InputError(f"a bundle cannot judge the trial's images: {error}") from error
        judged.append(JudgedImage(path, split, outcome.pred_score, by_graph))
    return judged


def choose_cut(
    predictor: Predictor, judged: Sequence[JudgedImage], wanted: Wanted, is_holdout: bool
) -> Cut:
    """Choose the threshold of a bundle.

    That of a promise is a score of a calibration normal, which torch gives with other last digits
    than the graph, and in other batches. So each side goes by its own scores of the same images.

    Args:
        predictor: of the trial.
        judged: its images.
        wanted: how images are to be judged.
        is_holdout: tells that the held-out images are the calibration normals. The scores of
            others are those that the trial noted.

    Raises:
        InputError: without calibration normals and without a threshold, and for a rate or a
            threshold that is none.
    """
    of_trial = list(predictor.calibration)
    of_graph = of_trial
    held_out = [image for image in judged if image.split == "holdout"]
    # Training normals were scored by fits without them, which the graph cannot do again.
    if held_out and is_holdout:
        of_trial = [image.by_trial for image in held_out]
        of_graph = [image.by_graph for image in held_out]
    calibration = tuple(sorted(of_graph))
    if wanted.threshold not in (None, PROMISE):
        value = check_threshold(predictor.threshold(str(wanted.threshold)))
        return Cut(str(wanted.threshold), value, _float32_from(value), None, calibration)

    rate = predictor.rate if wanted.false_alarms is None else wanted.false_alarms
    check_rate("--false-alarms", rate)
    promise = make_promise(np.array(calibration), rate, predictor.tried)
    same = make_promise(np.array(of_trial), rate, predictor.tried)
    assert promise.score is not None, "there are calibration normals"
    assert same.score is not None, "there are calibration normals"
    above = just_above(promise.score)
    if of_graph is of_trial:
        above = _float32_from(above)  # a team's scores are finer than those of its graph
    return Cut(PROMISE, just_above(same.score), above, promise, calibration)


def _float32_from(value: float) -> float:
    """Give the smallest float32 that is not below a threshold, at which the same scores are."""
    narrow = np.float32(value)
    return float(narrow if narrow >= value else np.nextafter(narrow, np.float32(np.inf)))


def compare(judged: Sequence[JudgedImage], cut: Cut) -> Json:
    """Compare scores and verdicts.

    Returns:
        Number of images, the largest difference of scores as a part of the largest score, and the
        tolerance. JSON.

    Raises:
        InputError: for an image with another verdict, or whose score is further off than
            `TOLERANCE`; names them.
    """
    by_trial = np.array([image.by_trial for image in judged])
    by_graph = np.array([image.by_graph for image in judged])
    error = np.abs(by_graph - by_trial) / max(float(np.abs(by_trial).max()), 1e-30)
    flips = (by_trial >= cut.of_trial) != (by_graph >= cut.of_graph)
    _refuse_some(judged, flips, "the verdict is another than the trial's")
    _refuse_some(judged, ~(error <= TOLERANCE), f"the score is off by more than {TOLERANCE:g}")
    return {
        "images": len(judged),
        "other_verdicts": 0,
        "largest_error": float(error.max()),
        "tolerance": TOLERANCE,
    }


def _refuse_some(judged: Sequence[JudgedImage], wrong: np.ndarray, what: str) -> None:
    """Refuse a bundle where some images are judged otherwise.

    Args:
        judged: all images.
        wrong: (N,) bool, which of them.
        what: is wrong with them.

    Raises:
        InputError: with the first of them.
    """
    if not wrong.any():
        return

    shown = []
    for place in np.flatnonzero(wrong)[:_SHOWN]:
        image = judged[place]
        shown.append(f"{image.path} (trial {image.by_trial:.9g}, graph {image.by_graph:.9g})")
    more = "" if wrong.sum() <= _SHOWN else ", ..."
    raise InputError(
        f"no bundle was written: of {len(judged)} images {what} on {int(wrong.sum())}: "
        f"{', '.join(shown)}{more}; another rate (--false-alarms) or threshold may lie clear of "
        "them, else predict with the trial itself"
    )


def clear_of_threshold(image: JudgedImage, cut: Cut, distance: float) -> bool:
    """Tell whether an image is so far from the threshold that no machine judges it otherwise.

    Args:
        image: one of them.
        cut: the threshold.
        distance: as a part of the threshold.
    """
    gap = abs(image.by_graph - cut.of_graph)
    return math.isfinite(gap) and gap > distance * abs(cut.of_graph)

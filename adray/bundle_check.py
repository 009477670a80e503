"""Whether a bundle's graph judges as its trial does, on the trial's own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adray.ensembles.team import member_folder, read_ensemble
from adray.errors import InputError
from adray.export_formats import PRECISIONS, TOLERANCE
from adray.language.sentence import Sentence, sentence_of
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


_MARGIN = 1e-5
"""Of a threshold above the calibration normal that it goes by, as a part of the largest score. It is
more than machines and backends differ by."""


@dataclass(frozen=True)
class CheckedImage:
    """One image that a bundle is checked on."""

    path: Path
    """The file."""
    split: str
    """``holdout`` for a calibration normal, or ``test``."""
    is_defect: bool
    """It shows one."""


@dataclass(frozen=True)
class JudgedImage:
    """One image as the trial and the graph score it."""

    path: Path
    """The file."""
    split: str
    """See `CheckedImage`."""
    by_trial: float
    """Score by torch."""
    by_graph: float
    """Score by the graph, from the image's own pixels."""
    is_defect: bool = False
    """It shows one."""


@dataclass(frozen=True)
class Wanted:
    """How somebody wants images to be judged."""

    false_alarms: float | None = None
    """Rate that is to be promised; None for that of the trial."""
    threshold: str | None = None
    """A rule's name or a number, in place of a promise."""
    precision: str = PRECISIONS[0]
    """What the network's layers count in, of `adray.export_formats.PRECISIONS`."""
    tried: int | None = None
    """Number of trials of which the calibration normals chose this one; None for that of the trial."""

    @property
    def is_exact(self) -> bool:
        """Tell whether the graph has to give the trial's own scores."""
        return self.precision == PRECISIONS[0]


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


def team_images(file: Path) -> list[CheckedImage]:
    """List the images that all members of a team held out, or were tested on.

    Args:
        file: of the ensemble.

    Raises:
        InputError: as `checked_images`.
    """
    common: dict[CheckedImage, None] | None = None
    for member in read_ensemble(file).members:
        images = dict.fromkeys(checked_images(member_folder(file, member)))
        if common is None:
            common = images
        common = {image: None for image in common if image in images}
    if not common:
        raise InputError(Sentence.of("bundle no common", file=str(file)))
    return list(common)


def checked_images(trial: Path) -> list[CheckedImage]:
    """List the held-out and the test images of a trial.

    Raises:
        InputError: where nobody can say which images these are, or one is out of reach.
    """
    scores = read_scores(trial)
    if scores is None:
        raise InputError(Sentence.of("bundle no scores", trial=str(trial)))

    images = []
    for split, name, label in zip(scores["split"], scores["path"], scores["label"], strict=True):
        if split in ("holdout", "test"):
            images.append(CheckedImage(Path(name), split, bool(label)))

    missing = [image.path for image in images if not image.path.is_file()]
    if missing or not images:
        first = Sentence.of("bundle such as", path=str(missing[0])) if missing else ""
        raise InputError(
            Sentence.of("bundle images gone", missing=len(missing), images=len(images), first=first)
        )
    return images


def score_by_trial(predictor: Predictor, images: Sequence[CheckedImage]) -> list[float]:
    """Score images by torch.

    Raises:
        InputError: for one that the trial cannot score.
    """
    scores = []
    outcomes = predictor.predict(image.path for image in images)
    for image, outcome in zip(images, outcomes, strict=True):
        if outcome.pred_score is None:
            raise InputError(
                Sentence.of("bundle image unscored", path=str(image.path), reason=outcome.reason)
            )
        scores.append(outcome.pred_score)
    return scores


def score_by_graph(score: Score, images: Sequence[CheckedImage], dtype: str) -> list[float]:
    """Score images by a graph.

    Args:
        score: of the graph.
        images: in any order.
        dtype: of the pixels that the graph takes.

    Raises:
        InputError: for one that no bundle can read.
    """
    scores = []
    for image in images:
        try:
            scores.append(score(read_picture(image.path, dtype)))
        except BundleError as error:
            raise InputError(
                Sentence.of("bundle cannot judge", error=sentence_of(error))
            ) from error
    return scores


def judged_images(
    images: Sequence[CheckedImage], by_trial: Sequence[float], by_graph: Sequence[float]
) -> list[JudgedImage]:
    """Put images and their scores together."""
    judged = []
    for image, own, of_graph in zip(images, by_trial, by_graph, strict=True):
        judged.append(JudgedImage(image.path, image.split, own, of_graph, image.is_defect))
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
    above = _clear_of_last_digits(just_above(promise.score), judged)
    return Cut(PROMISE, just_above(same.score), above, promise, calibration)


def _clear_of_last_digits(above: float, judged: Sequence[JudgedImage]) -> float:
    """Raise a threshold so far that the normal that it goes by stays below it on any machine.

    It is raised by `_MARGIN`, or half of the way to the next score of an image where that is
    nearer. No verdict on these images changes, and what is promised holds all the more.

    Args:
        above: the smallest threshold.
        judged: the images.
    """
    scores = np.array([image.by_graph for image in judged])
    margin = _MARGIN * float(np.abs(scores).max())
    higher = scores[scores >= above]
    if higher.size:
        margin = min(margin, (float(higher.min()) - above) / 2)
    return _float32_from(above + margin)  # a team's scores are finer than those of its graph


def _float32_from(value: float) -> float:
    """Give the smallest float32 that is not below a threshold, at which the same scores are."""
    narrow = np.float32(value)
    return float(narrow if narrow >= value else np.nextafter(narrow, np.float32(np.inf)))


@dataclass(frozen=True)
class Comparison:
    """How far a graph judges as the trial does."""

    judged: tuple[JudgedImage, ...]
    """All images."""
    flipped: NDArray[np.bool_]
    """(N,) those with another verdict."""
    errors: NDArray[np.float64]
    """(N,) differences of the scores as parts of the largest score. NaN stays NaN."""

    @property
    def reason(self) -> str:
        """Say why the graph does not stand for the trial, empty where it does."""
        flips = int(self.flipped.sum())
        if flips:
            return f"{flips} of {len(self.judged)} images get another verdict than the trial's"
        if not self.largest_error <= TOLERANCE:
            return f"scores differ by {self.largest_error:.1e} of the largest ({TOLERANCE:g} is allowed)"
        return ""

    @property
    def largest_error(self) -> float:
        """Give the largest difference."""
        return float(self.errors.max())

    @property
    def facts(self) -> Json:
        """Give number of images, other verdicts, largest difference and its tolerance. JSON."""
        return {
            "images": len(self.judged),
            "other_verdicts": int(self.flipped.sum()),
            "largest_error": self.largest_error,
            "tolerance": TOLERANCE,
        }


def compare(judged: Sequence[JudgedImage], cut: Cut) -> Comparison:
    """Compare scores and verdicts."""
    by_trial = np.array([image.by_trial for image in judged])
    by_graph = np.array([image.by_graph for image in judged])
    flipped = (by_trial >= cut.of_trial) != (by_graph >= cut.of_graph)
    errors = np.abs(by_graph - by_trial) / max(float(np.abs(by_trial).max()), 1e-30)
    return Comparison(tuple(judged), flipped, errors)


def refuse_other(found: Comparison) -> None:
    """Refuse a graph that does not judge as the trial does.

    Raises:
        InputError: for an image with another verdict, or whose score is further off than
            `TOLERANCE`; names them.
    """
    _refuse_some(found.judged, found.flipped, "the verdict is another than the trial's")
    far = ~(found.errors <= TOLERANCE)
    _refuse_some(found.judged, far, f"the score is off by more than {TOLERANCE:g}")


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
        Sentence.of(
            "bundle verdicts differ",
            number=len(judged),
            what=what,
            sum=int(wrong.sum()),
            shown=", ".join(shown),
            more=more,
        )
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

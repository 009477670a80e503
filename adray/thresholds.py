"""Where to cut between normal and anomalous scores, and what is promised of it.

A *promise* goes by *calibration normals*, normal images that the model did not train on. Whatever
the model, at most the promised part of new normals is reported, on average over sets of calibration
normals, as long as they come from the same production (split conformal prediction; V. Vovk 2012,
S. Bates et al., "Testing for outliers with conformal p-values", 2023). It is what verdicts go by.

Four rules of the specification stand beside it. Three chose their threshold by the labels of the
test set: an *oracle*, whose figures say what would be possible, not what a line in production gets.
Percentile-95 of held-out normals promises nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from adray.curves import Curve, curve
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.metrics import (
    Confusion,
    check_finite,
    check_scores,
    confusion,
    describe_problems,
)

PERCENTILES = np.linspace(0, 100, 1001)
"""Candidates of the F1-percentile rule."""
UNIFORM_STEPS = 1001
"""Number of candidates of the F1-uniform rule, both ends included."""
FEW_HOLDOUT = 20
"""With fewer normals than this the 95th percentile is little more than their maximum."""
FALSE_ALARMS = 0.05
"""Part of new normals that may be reported where nobody asks for another rate."""
CONFIDENCE = 0.95
"""Chance with which `Promise.bound` holds for the calibration set that there is."""
MOST_TRIED = 1_000_000
"""Most trials of which one may have been chosen."""
LEAST_GROUPS = 3
"""With fewer groups of calibration normals nothing is promised of a new one."""
PROMISE = "promise"
"""Name of the threshold that keeps a promise, beside those of `THRESHOLDS`."""
DEFAULT_THRESHOLD = PROMISE
"""Name of the one that verdicts go by where nothing else is asked for."""
PIXEL_PROMISE = "pixel_promise"
"""Name of the threshold of maps that keeps a promise."""
PROMISE_MEANING = "at most the promised part of new normals is above it (default; 5 % unless asked)"


# ---- the promise ----


@dataclass(frozen=True)
class Promise:
    """What a threshold of calibration normals promises of new ones from the same production."""

    rate: float
    """Part of new normals that may be reported, as it was asked for."""
    normals: int
    """Number n of calibration normals."""
    rank: int
    """Number r: the threshold is the r-th smallest of their scores; 0 without any."""
    score: float | None
    """That score; an image is anomalous where its own is above it. None without any."""
    promised: float | None
    """Part of new normals that is reported at most, on average over calibration sets; above `rate`
    where the normals are too few for that."""
    bound: float | None
    """Part that is reported at most at this very threshold, with a chance of `CONFIDENCE`."""
    tried: int = 1
    """Number of trials of which this one was chosen by scores of the same calibration normals.
    `promised` and `bound` hold whichever of them was chosen."""

    @property
    def is_kept(self) -> bool:
        """Tell whether what was asked for can be promised."""
        return self.promised is not None and self.promised <= self.rate


def check_rate(name: str, rate: float) -> None:
    """Refuse a rate of false alarms that is no part of the normals.

    Raises:
        InputError: with the name and the value.
    """
    if not 0 < rate < 1:
        raise InputError(Sentence.of("threshold rate", name=name, rate=f"{rate:g}"))


def check_threshold(value: float) -> float:
    """Give a threshold back that scores can be compared with.

    Raises:
        InputError: for NaN and infinity, at which every image would have the same verdict.
    """
    if not math.isfinite(value):
        raise InputError(Sentence.of("threshold finite", value=str(value)))
    return value


def make_promise(calibration: NDArray, rate: float, tried: int = 1) -> Promise:
    """Choose the threshold of calibration normals that keeps a rate of false alarms.

    With n of them it is the r-th smallest score, r = ceil((n + 1)(1 - rate)). Where r > n nothing
    can promise the rate, and the largest score serves with what it can. Where the trial is one of
    several that the calibration normals chose among, r is the smallest whose `promised_rate` is no
    larger than the rate.

    Args:
        calibration: (n,) their scores, in any order; ties and infinite ones may be among them.
        rate: part of new normals that may be reported, in (0, 1).
        tried: number of trials, at least 1, of which this one was chosen by such scores.

    Raises:
        InputError: for a rate outside (0, 1), and for scores that are NaN.
    """
    check_rate("the rate of false alarms", rate)
    scores = np.sort(np.asarray(calibration, dtype=np.float64))
    if np.isnan(scores).any():
        raise InputError(
            Sentence.of("threshold nan", sum=int(np.isnan(scores).sum()), size=scores.size)
        )

    normals = len(scores)
    if not normals:
        return Promise(rate, 0, 0, None, None, None, tried)
    at_or_above = max(_allowed_at_or_above(normals, rate, tried), 1)
    rank = normals + 1 - at_or_above
    return Promise(
        rate=rate,
        normals=normals,
        rank=rank,
        score=float(scores[rank - 1]),
        promised=promised_rate(normals, at_or_above, tried),
        bound=rate_to_be_sure(normals, at_or_above, tried),
        tried=tried,
    )


def _allowed_at_or_above(normals: int, rate: float, tried: int) -> int:
    """Give how many scores may be at or above a threshold that keeps a rate, 0 for none.

    For one trial it is floor((n + 1) rate) = n + 1 - ceil((n + 1)(1 - rate)), exactly for the rate
    as it is written in decimals: 0.07 of 100 are 7, which floats make 7.000000000000001.
    """
    most = math.floor((normals + 1) * _decimal(rate))
    if tried == 1:
        return most
    return bisect_right(range(1, most + 1), rate, key=lambda k: promised_rate(normals, k, tried))


def _decimal(rate: float) -> Fraction:
    """Give a rate as the decimal number that a person wrote."""
    return Fraction(repr(float(rate)))


def promised_rate(normals: int, at_or_above: int = 1, tried: int = 1) -> float:
    """Give the rate that a threshold keeps on average, whichever of several trials was chosen.

    The rate R of one trial is at most Beta(k, n + 1 - k) distributed over calibration sets, with
    mean k / (n + 1). However K trials depend on each other, some R exceeds t with a chance of at
    most min(1, K P(Beta > t)), the union bound. Its integral over t bounds the mean of the largest
    R, and so that of the chosen one: K k / (n + 1) P(Beta(k + 1, n + 1 - k) > t0), where
    K P(Beta > t0) = 1 (T. L. Lai and H. Robbins, "Maximally dependent random variables", 1976).

    Args:
        normals: n, at least 1.
        at_or_above: k, from 1 for the largest score to n.
        tried: K, at least 1.
    """
    mean = at_or_above / (normals + 1)
    if tried == 1:
        return mean
    from scipy.special import betaincc, betainccinv

    start = betainccinv(at_or_above, normals + 1 - at_or_above, 1 / tried)
    beyond = betaincc(at_or_above + 1, normals + 1 - at_or_above, start)
    return min(1.0, float(tried * mean * beyond))


def rate_to_be_sure(normals: int, at_or_above: int = 1, tried: int = 1) -> float:
    """Give the rate that a threshold keeps with a chance of `CONFIDENCE`, for the set that there is.

    Its rate is Beta(k, n + 1 - k) distributed over calibration sets, where k of n scores are at or
    above it, itself included (S. S. Wilks 1941). Of several trials each keeps it with a chance that
    is larger accordingly (C. E. Bonferroni).

    Args:
        normals: n, at least 1.
        at_or_above: k, from 1 for the largest score to n.
        tried: number of trials of which one was chosen, at least 1.
    """
    from scipy.special import betainccinv

    missed = (1 - CONFIDENCE) / tried
    return float(betainccinv(at_or_above, normals + 1 - at_or_above, missed))


def rate_ends(count: int, total: int) -> tuple[float, float]:
    """Find between which rates that lies of which `count` of `total` were seen.

    Each end is passed with a chance of 1 - `CONFIDENCE` at most (C. J. Clopper and E. S. Pearson,
    1934).

    Args:
        count: from 0 to `total`.
        total: at least 1.
    """
    from scipy.special import betaincinv

    low = 0.0
    if count:
        low = float(betaincinv(count, total - count + 1, 1 - CONFIDENCE))
    high = 1.0
    if count < total:
        high = float(betaincinv(count + 1, total - count, CONFIDENCE))
    return low, high


def normals_needed(rate: float, tried: int = 1) -> int:
    """Count the calibration normals without which nothing can promise a rate: 99 for 0.01.

    Args:
        rate: of false alarms, in (0, 1).
        tried: number of trials of which one was chosen, at least 1.
    """
    if tried == 1:
        return math.ceil(1 / _decimal(rate)) - 1
    # 1 - tried^(-1/n) + 1/n is above what n of them promise.
    numbers = range(1, math.ceil((math.log(tried) + 1) / rate) + 2)
    return numbers[bisect_left(numbers, True, key=lambda n: promised_rate(n, tried=tried) <= rate)]


def normals_to_be_sure(rate: float, tried: int = 1) -> int:
    """Count the normals whose largest score keeps a rate with a chance of `CONFIDENCE`.

    The chance that all n lie below a threshold of that rate is (1 - rate)^n: 299 for 0.01.

    Args:
        rate: of false alarms, in (0, 1).
        tried: number of trials of which one was chosen, at least 1.
    """
    return math.ceil(math.log((1 - CONFIDENCE) / tried) / math.log1p(-rate))


@dataclass(frozen=True)
class GroupPromise:
    """What a threshold of calibration normals in groups promises of a new group, such as a lot."""

    rate: float
    """Part of new groups that may have a normal image reported, as it was asked for."""
    groups: int
    """Number G of groups with calibration normals."""
    score: float
    """A group is above it where one of its images is."""
    promised: float
    """Part of new groups above `score` at most, on average over calibration sets."""
    bound: float
    """Part above this very score at most, with a chance of `CONFIDENCE`."""
    tried: int = 1
    """Number of trials of which the calibration normals chose this one."""


def promise_per_group(
    calibration: NDArray, groups: Sequence[str], rate: float, tried: int = 1
) -> GroupPromise | None:
    """Choose the score that at most a part of new groups exceeds with any normal image.

    Images of one lot or day resemble each other, so that only whole groups can be exchanged. The
    highest score of a group is one number of it, and a new group's is to those of G groups what a new
    image's score is to those of G images: the rule is that of `make_promise` (split conformal
    prediction for groups, R. Dunn, L. Wasserman, A. Ramdas, "Distribution-free prediction sets for
    two-layer hierarchical models", 2023). Groups may differ in size if a new one's is drawn as
    theirs were.

    Args:
        calibration: (n,) scores of calibration normals.
        groups: (n,) names, empty for an image without a group.
        rate: part of new groups, in (0, 1).
        tried: see `make_promise`.

    Returns:
        None for fewer than `LEAST_GROUPS` groups, and where an image has none.

    Raises:
        InputError: as `make_promise`.
    """
    highest: dict[str, float] = {}
    for name, score in zip(groups, calibration, strict=True):
        highest[name] = max(highest.get(name, -math.inf), float(score))
    if "" in highest or len(highest) < LEAST_GROUPS:
        return None

    found = make_promise(np.array(list(highest.values())), rate, tried)
    assert found.score is not None, "there are groups"
    assert found.promised is not None, "there are groups"
    assert found.bound is not None, "there are groups"
    return GroupPromise(rate, found.normals, found.score, found.promised, found.bound, tried)


def p_values(pred_score: NDArray, calibration: NDArray, tried: int = 1) -> NDArray[np.float64]:
    """Say how rare scores are among normals: (1 + calibration scores at or above it) / (n + 1).

    A new normal image has a p-value of at most p with a chance of at most p. A score is above the
    threshold of `make_promise` exactly where its p-value is at most the rate, if that is kept.

    Args:
        pred_score: (N,) scores, none of them NaN.
        calibration: (n,) scores of calibration normals.
        tried: number of trials of which this one was chosen by such scores, at least 1. Of several
            it is the `promised_rate` of a threshold just below the score.

    Returns:
        (N,) in (0, 1]; all 1 without calibration normals.
    """
    rising = np.sort(np.asarray(calibration, dtype=np.float64))
    below = np.searchsorted(rising, np.asarray(pred_score, dtype=np.float64), side="left")
    at_or_above = 1 + len(rising) - below
    if tried == 1:
        return at_or_above / (len(rising) + 1)

    rates = [promised_rate(len(rising), k, tried) for k in range(1, len(rising) + 1)]
    return np.array([*rates, 1.0])[at_or_above - 1]


def just_above(score: float) -> float:
    """Give the next number that a model's score can be, float32 unless the given one is finer.

    A verdict at that value, which it reaches, is one above the given score.
    """
    narrow = np.float32(score)
    if float(narrow) == score:
        return float(np.nextafter(narrow, np.float32(np.inf)))
    return float(np.nextafter(score, np.inf))


# ---- thresholds of a trial ----


@dataclass(frozen=True)
class Threshold:
    """One threshold on `pred_score`; scores >= `value` are anomalous."""

    name: str
    """`PROMISE`, or a key of `THRESHOLDS`."""
    value: float | None
    """In the unit of the scores; None (n/a) where the rule has nothing to go by, then `note` says
    why."""
    oracle: bool
    """Whether the labels of the test set chose it."""
    note: str = ""
    """What a reader must know, else empty."""
    promise: Promise | None = None
    """What is promised of it; None for the rules of `THRESHOLDS`."""


@dataclass(frozen=True)
class Rule:
    """How a threshold is found.

    An oracle goes by the curve of the test set, any other by that of held-out normals.
    """

    title: str
    """Its name in the thresholds file."""
    meaning: str
    """Half a sentence for tables."""
    oracle: bool
    """Whether it goes by the labels of the test set."""
    compute: Callable[[Curve], float]
    """Finds the threshold on a curve."""


def f1_percentile(curve: Curve) -> float:
    """Find the candidate with the best F1 among the percentiles 0, 0.1, ... 100 of the scores.

    Ties go to the highest.
    """
    return _best_f1(curve, np.percentile(_scores(curve), PERCENTILES))


def f1_uniform(curve: Curve) -> float:
    """Find the candidate with the best F1 among 1,001 evenly spaced from lowest to highest score.

    Ties go to the highest.
    """
    lowest = curve.threshold[-1]
    highest = curve.threshold[0]
    return _best_f1(curve, np.linspace(lowest, highest, UNIFORM_STEPS))


def roc_youden(curve: Curve) -> float:
    """Find the score with the largest J = sensitivity + specificity - 1 (W. J. Youden 1950).

    Ties go to the highest.
    """
    # Specificity is 1 - fp / negatives, so the ones cancel.
    youden = curve.tp / curve.positives - curve.fp / curve.negatives
    return float(curve.threshold[np.argmax(youden)])


def percentile_95(curve: Curve) -> float:
    """Give the 95th percentile of the scores, interpolated linearly.

    Of few normals it promises nothing: with 6 of them 18 % of new ones are above it.
    """
    return float(np.percentile(_scores(curve), 95))


def _best_f1(curve: Curve, candidates: NDArray[np.float64]) -> float:
    """Find the highest of the rising candidates that reach the best F1."""
    falling = candidates[::-1]
    # How many distinct scores each candidate reports, (C,); the curve's thresholds fall.
    reached = np.searchsorted(-curve.threshold, -falling, side="right")
    tp = np.append(0, curve.tp)[reached]
    fp = np.append(0, curve.fp)[reached]
    f1 = 2 * tp / (curve.positives + tp + fp)
    return float(falling[np.argmax(f1)])


def _scores(curve: Curve) -> NDArray[np.float64]:
    """Give the scores that a curve was made of, falling, with their repetitions."""
    counts = np.diff(curve.tp + curve.fp, prepend=0).astype(np.int64)
    return np.repeat(curve.threshold, counts)


THRESHOLDS: dict[str, Rule] = {
    "f1_percentile": Rule(
        "F1 (Percentile)", "best F1 among percentiles of the test scores", True, f1_percentile
    ),
    "f1_uniform": Rule("F1 (Uniform)", "best F1 among evenly spaced scores", True, f1_uniform),
    "roc_youden": Rule("ROC (Youden J)", "largest sensitivity + specificity - 1", True, roc_youden),
    "percentile_95": Rule(
        "Percentile (95%)",
        "95th percentile of held-out normals, without a promise",
        False,
        percentile_95,
    ),
}
"""Every rule by its name; the one place to add one."""


PIXEL_DEVIATIONS = 3
"""Standard deviations above the mean at which a pixel of a map is reported."""


@dataclass(frozen=True)
class PixelScale:
    """How high a model's maps are where nothing is wrong."""

    mean: float
    """Of all pixels of held-out normal images."""
    deviation: float
    """Standard deviation of the same."""


def pixel_scale(
    held_out_maps: Iterable[NDArray], inside: NDArray[np.bool_] | None = None
) -> PixelScale:
    """Take mean and deviation of the pixels of maps, one map after the other.

    Args:
        held_out_maps: maps (H, W) of held-out normals, of one size where `inside` is None, at least
            one. An image counts as much as any other.
        inside: (M, H, W), the pixels that count; None for all.
    """
    # No copy of all maps is made: the variance is that within images plus that between them.
    means = []
    variances = []
    for i, one in enumerate(held_out_maps):
        counted = one if inside is None else one[inside[i]]
        means.append(counted.mean(dtype=np.float64))
        variances.append(counted.var(dtype=np.float64))
    deviation = np.sqrt(np.mean(variances) + np.var(means))
    return PixelScale(float(np.mean(means)), float(deviation))


def pixel_threshold(
    held_out_map: NDArray | None, inside: NDArray[np.bool_] | None = None
) -> Threshold:
    """Find the threshold of pixels: mean + 3 standard deviations of the maps of held-out normals.

    It is that of the baselines of MVTec AD 2 (L. Heckler-Kram et al. 2025).

    Args:
        held_out_map: (M, H, W) maps of held-out normals, None or empty without any.
        inside: (M, H, W), the pixels that count; None for all.

    Raises:
        InputError: a map holds NaN or infinity.
    """
    if held_out_map is None or not len(held_out_map):
        return Threshold("mean_3std", None, False, "n/a: no maps of held-out normals")
    check_finite("anomaly_map of held-out normals", held_out_map)
    scale = pixel_scale(held_out_map, inside)
    value = scale.mean + PIXEL_DEVIATIONS * scale.deviation
    return Threshold("mean_3std", value, False, _note_on_count(len(held_out_map)))


def compute_thresholds(
    pred_score: NDArray,
    label: NDArray,
    holdout_score: NDArray | None = None,
    false_alarms: float = FALSE_ALARMS,
    tried: int = 1,
) -> dict[str, Threshold]:
    """Compute the threshold of the promise and all of `THRESHOLDS`.

    Args:
        pred_score: (N,) scores of the test set, higher is more anomalous.
        label: (N,) 0 normal, 1 anomalous.
        holdout_score: (M,) scores of held-out normals, which were neither trained on nor are in the
            test set; None or empty without any.
        false_alarms: rate that the promise is asked for, in (0, 1).
        tried: see `make_promise`.

    Raises:
        InputError: as `adray.metrics.image_metrics`; a held-out score that is NaN or infinite
            likewise.
    """
    scores, positive = check_scores(pred_score, label)
    held_out = np.empty(0) if holdout_score is None else np.asarray(holdout_score, dtype=np.float64)
    held_out, normal = check_scores(held_out, np.zeros(held_out.shape))

    found = {PROMISE: promised_threshold(make_promise(held_out, false_alarms, tried))}
    for name, rule in THRESHOLDS.items():
        if rule.oracle:
            found[name] = _by_labels(name, rule, scores, positive)
        else:
            found[name] = _by_holdout(name, rule, held_out, normal)
    return found


def promised_threshold(promise: Promise, name: str = PROMISE) -> Threshold:
    """Make a threshold of a promise, with a note where it is less than was asked for."""
    if promise.score is None:
        return Threshold(name, None, False, "n/a: no held-out normals (holdout: 0)", promise)
    note = "" if promise.is_kept else shortage(promise.rate, promise.normals, promise.tried)
    return Threshold(name, just_above(promise.score), False, note, promise)


def promised_pixels(peaks: NDArray | None, rate: float = FALSE_ALARMS, tried: int = 1) -> Threshold:
    """Find the threshold of maps that at most a part of new normal images reaches anywhere.

    It is the promise of `make_promise` on the highest value of each calibration normal's map. A
    map that is brought to another size by averages of its pixels reaches no higher.

    Args:
        peaks: (n,) highest value of each calibration normal's map, None for a model without maps.
        rate: part of new normals that may have any pixel at or above it, in (0, 1).
        tried: see `make_promise`.

    Raises:
        InputError: as `make_promise`.
    """
    if peaks is None:
        return Threshold(PIXEL_PROMISE, None, False, "n/a: no maps of held-out normals")
    return promised_threshold(make_promise(peaks, rate, tried), PIXEL_PROMISE)


def shortage(rate: float, normals: int, tried: int = 1) -> str:
    """Say how many calibration normals a rate needs, and what can be promised with those there are.

    Args:
        rate: of false alarms, in (0, 1).
        normals: that there are, at least 1 and fewer than `normals_needed`.
        tried: number of trials of which one was chosen by them, at least 1.
    """
    return _SHORTAGE.format(**shortage_figures(rate, normals, tried))


_SHORTAGE = (
    "{rate} needs {needed} normals to calibrate, {sure} to be sure; there are {normals}: the best "
    "that can be promised is {best} ({bound} with {confidence} confidence)"
)


def shortage_figures(rate: float, normals: int, tried: int = 1) -> dict[str, str]:
    """Give the figures of `shortage` as texts, for a sentence of another language."""
    return {
        "rate": percent(rate),
        "needed": str(normals_needed(rate, tried)),
        "sure": str(normals_to_be_sure(rate, tried)),
        "normals": str(normals),
        "best": percent(promised_rate(normals, tried=tried)),
        "bound": percent(rate_to_be_sure(normals, tried=tried)),
        "confidence": percent(CONFIDENCE),
    }


def percent(rate: float) -> str:
    """Write a rate in per cent with the digits that it deserves: ``1 %``, ``11.7 %``, ``0.25 %``."""
    return f"{100 * rate:.3g} %"


def chosen_threshold(thresholds: Mapping[str, Threshold]) -> Threshold | None:
    """Choose the threshold of verdicts and pictures.

    It is that of the promise, else the oracle F1, else none.
    """
    for name in (PROMISE, "f1_percentile"):
        if thresholds[name].value is not None:
            return thresholds[name]
    return None


def confusions(
    thresholds: Mapping[str, Threshold], pred_score: NDArray, label: NDArray
) -> dict[str, Confusion]:
    """Count right and wrong verdicts at each threshold that has a value, by the threshold's name.

    Args:
        thresholds: by name.
        pred_score: (N,) scores of the test set, higher is more anomalous.
        label: (N,) 0 normal, 1 anomalous.

    Raises:
        InputError: as `adray.metrics.image_metrics`.
    """
    found = {}
    for name, threshold in thresholds.items():
        if threshold.value is not None:
            found[name] = confusion(pred_score, label, threshold.value)
    return found


def _by_labels(
    name: str, rule: Rule, scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> Threshold:
    """Find an oracle's threshold on the test set, where both classes are there."""
    if not scores.size or positive.all() or not positive.any():
        return Threshold(name, None, rule.oracle, "; ".join(describe_problems(scores, positive)))
    value = rule.compute(curve(scores, positive))
    note = "every test image is reported at it" if value <= scores.min() else ""
    return Threshold(name, value, rule.oracle, note)


def _by_holdout(
    name: str, rule: Rule, scores: NDArray[np.float64], normal: NDArray[np.bool_]
) -> Threshold:
    """Find a threshold on the scores of held-out normals, where there are some."""
    if not scores.size:
        return Threshold(name, None, rule.oracle, "n/a: no held-out normals (holdout: 0)")
    value = rule.compute(curve(scores, normal))
    return Threshold(name, value, rule.oracle, _note_on_count(scores.size))


def _note_on_count(count: int) -> str:
    """Say where there are few held-out normals."""
    return f"from only {count} held-out normals" if count < FEW_HOLDOUT else ""

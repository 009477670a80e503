"""Scores of different models on one scale: how seldom a normal image scores that high.

Each model is calibrated on the held-out normals alone, so that no defect and no label is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from adray.errors import InputError
from adray.language.sentence import Sentence

LEAST_HOLDOUT = 5
"""Fewer held-out normals than this say nothing of a spread."""
MOST_FREEDOM = 1000
"""More degrees of freedom than this cannot be distinguished from a normal distribution."""
_SMALL_CHANCE = 1e-250  # below it logarithms are summed, since floats end at 1e-308


@dataclass(frozen=True)
class Calibration:
    """How the scores of one model are brought to the scale of all.

    A score becomes -log10 of the chance that a normal image scores higher. The chance is that of
    the predictive distribution of one more normal image, Student's t, as in the textbook interval
    for a new observation. With few held-out normals it has heavy tails, so that a model is trusted
    as far as its own evidence goes, and a model that raised a false alarm among them has a wide
    scale and counts less. A score of 2 is one normal image in a hundred. The mean over models is
    Fisher's way to combine independent tests: it lets a model that is sure decide, where a mean of
    compressed scores would outvote it. Strictly rising, and any change of the unit or the origin of
    the scores cancels.
    """

    center: float
    """Mean of the held-out normals."""
    scale: float
    """Their standard deviation, widened for the doubt about the mean; above 0."""
    freedom: float
    """Degrees of freedom, one less than there are held-out normals, but at most `MOST_FREEDOM`."""

    def __call__(self, pred_score: np.ndarray | float) -> np.ndarray:
        """Calibrate scores: float64, above 0, and 0.3 at the mean of the normals."""
        deviation = (np.asarray(pred_score, dtype=np.float64) - self.center) / self.scale
        tail = _log_tail(np.abs(deviation), self.freedom)
        below_center = np.log1p(-np.exp(tail))
        return np.where(deviation >= 0, -tail, -below_center) / math.log(10)


def _log_tail(deviation: np.ndarray, freedom: float) -> np.ndarray:
    """Compute log P(T > deviation) of Student's t, also far below the smallest float.

    Args:
        deviation: at least 0.
        freedom: degrees of freedom of T.
    """
    from scipy.special import betainc, betaln, hyp2f1

    half = freedom / 2
    # x = freedom / (freedom + deviation^2), by its logarithm
    log_x = -2 * np.log(np.hypot(1, deviation / math.sqrt(freedom)))
    x = np.exp(log_x)
    chance = betainc(half, 0.5, x)

    # The incomplete beta function as its series (DLMF 8.17.7), in logarithms; x is far below 0.9
    # where it is used.
    log_hypergeometric = np.log(hyp2f1(half, 0.5, half + 1, x.clip(0, 0.9)))
    series = half * log_x - math.log(half) - betaln(half, 0.5) + log_hypergeometric
    with np.errstate(divide="ignore"):
        both_tails = np.where(chance > _SMALL_CHANCE, np.log(chance), series)
    return both_tails - math.log(2)


def calibrate(holdout_score: np.ndarray) -> Calibration:
    """Find the predictive distribution of the scores of normal images.

    Args:
        holdout_score: (M,) scores of normal images that the model was not trained on, M >=
            `LEAST_HOLDOUT`.

    Raises:
        InputError: for too few scores, one that is not finite, or scores that are all equal.
    """
    scores = np.asarray(holdout_score, dtype=np.float64)
    count = len(scores)
    if count < LEAST_HOLDOUT:
        raise InputError(Sentence.of("team few held out", count=count, least_holdout=LEAST_HOLDOUT))
    if not np.isfinite(scores).all():
        raise InputError(Sentence.of("team not finite"))

    if np.ptp(scores) == 0:
        raise InputError(Sentence.of("team one score", count=count, scores=f"{scores[0]:g}"))
    return _predictive(scores)


def calibrate_each(holdout_score: np.ndarray) -> np.ndarray:
    """Calibrate each held-out normal by the others alone, as a new image is by all of them.

    By all of them, itself included, it would look less unusual than a new one does: of seven
    normals 20 % of new ones came to lie above the highest, where 12.5 % were promised.

    Args:
        holdout_score: (M,) scores, as `calibrate` takes them.

    Returns:
        (M,) float64.

    Raises:
        InputError: where all but one are equal.
    """
    scores = np.asarray(holdout_score, dtype=np.float64)
    calibrated = np.empty(len(scores))
    for i, score in enumerate(scores):
        others = np.delete(scores, i)
        if np.ptp(others) == 0:
            raise InputError(
                Sentence.of("team one other", number=len(scores), others=f"{others[0]:g}")
            )
        calibrated[i] = _predictive(others)(score)
    return calibrated


def _predictive(scores: np.ndarray) -> Calibration:
    """Find the predictive distribution of one more score.

    Raises:
        InputError: where their spread is beyond a float.
    """
    count = len(scores)
    scale = float(scores.std(ddof=1)) * math.sqrt(1 + 1 / count)
    if not 0 < scale < math.inf:
        raise InputError(Sentence.of("team spread", count=count, scale=f"{scale:g}"))
    return Calibration(float(scores.mean()), scale, float(min(count - 1, MOST_FREEDOM)))

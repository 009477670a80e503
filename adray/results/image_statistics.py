"""How sure the figures of trained models are: intervals and paired tests over their test images.

Does one trained model beat another on such images of these products? The test images are the
sample, so this works for a single product too. For other products the categories are the sample,
see `adray.results.category_statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adray.metrics import check_scores

ERROR = 0.05
"""Chance that any two configurations that do not differ are told apart (family-wise error)."""
LEVEL = 0.95
"""Of intervals."""
LEAST_IMAGES = 2
"""Test images of each class, without which nothing is known of their spread."""
_LEAST_VARIANCE = 0.5
_BLOCK = 1 << 22  # numbers worked on at a time

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Where a figure lies with a chance of `LEVEL`."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    standard_error: float
    """Standard error of the figure."""


class Difference(NamedTuple):
    """First minus second AUROC, and how sure it is."""

    difference: float
    """The estimate."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end of its interval."""
    standard_error: float
    """Standard error of the estimate."""
    p_value: float
    """Of the hypothesis that both are equal."""


@dataclass(frozen=True)
class PairedScores:
    """Scores of two models of one seed on the same test images."""

    scores_a: NDArray
    """(N,) higher is more anomalous."""
    scores_b: NDArray
    """(N,) of the other model; the unit may differ."""
    labels: NDArray
    """(N,) 0 normal, 1 anomalous."""
    images: NDArray
    """(N,) names, the same for the same image in other seeds."""


# Intervals of one model


def bootstrap_interval(scores: NDArray, labels: NDArray, draws: int = 2000) -> Interval | None:
    """Bound the image AUROC of a trained model over test images, drawn again within their class.

    The percentiles of the draws are not used: near 1, where good detectors are, they cover far too
    rarely (60 % and less for an AUROC of 0.995 on 40 images) and shrink to nothing at 1. Instead
    the variance of the draws scales the score interval of R. G. Newcombe, "Confidence intervals for
    an effect size measure based on the Mann-Whitney statistic, part 2", 2006 (method 5), which
    holds up to 1, see `score_interval`.

    Args:
        scores: (N,) higher is more anomalous.
        labels: (N,) 0 normal, 1 anomalous.
        draws: how often the images are drawn.

    Returns:
        None where a class has fewer than two images.

    Raises:
        InputError: for scores that are NaN or infinite, and labels other than 0 and 1.
    """
    values, positive = check_scores(scores, labels)
    if not enough_images(positive):
        return None

    anomalous = values[positive]
    normal = values[~positive]
    aurocs = _drawn_aurocs(anomalous, normal, draws, np.random.default_rng(0))
    variance = float(aurocs.var(ddof=1))

    # The draws give the variance alone: the interval is about the estimate on all images.
    auroc = float(auroc_influence(values[None], positive)[0][0])
    low, high = score_interval(auroc, variance, len(anomalous), len(normal))
    return Interval(low, high, math.sqrt(variance))


def _drawn_aurocs(
    anomalous: Floats, normal: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """Compute the AUROC of images drawn with replacement within each class, (draws,)."""
    found = []
    block = max(1, _BLOCK // (len(anomalous) + len(normal)))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        of_anomalous = draw_counts(count, len(anomalous), rng)
        of_normal = draw_counts(count, len(normal), rng)
        found.append(weighted_aurocs(anomalous, normal, of_anomalous, of_normal))
    return np.concatenate(found)


def weighted_aurocs(
    anomalous: Floats, normal: Floats, of_anomalous: NDArray, of_normal: NDArray
) -> Floats:
    """Compute the AUROC of images that count as often as their weights say, a row each.

    How often an image was drawn is its weight. Cumulated over the sorted normal images the weights
    are the wins of each anomalous one, so no draw needs to be sorted.

    Args:
        anomalous: (m,) scores.
        normal: (n,) scores.
        of_anomalous: (draws, m) weights, whole numbers.
        of_normal: (draws, n) weights, whole numbers.

    Returns:
        (draws,), NaN where all weights of a class are zero.
    """
    order = np.argsort(normal, kind="stable")
    ordered = normal[order]
    left = np.searchsorted(ordered, anomalous, "left")
    right = np.searchsorted(ordered, anomalous, "right")
    below = np.zeros((len(of_normal), len(normal) + 1), dtype=np.int64)
    np.cumsum(of_normal[:, order], axis=1, out=below[:, 1:])

    # A tie counts half: the mean of what lies below with and without the equal ones.
    twice_wins = below[:, left] + below[:, right]
    pairs = of_anomalous.sum(1) * below[:, -1]
    with np.errstate(invalid="ignore"):
        return (twice_wins * of_anomalous).sum(1) / (2 * pairs)


def draw_counts(draws: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Count how often each of `size` things comes up in as many draws, (draws, size)."""
    # Each draw counts in a range of its own, so that one call of bincount serves all.
    places = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size)


def score_interval(auroc: float, variance: float, m: int, n: int) -> tuple[float, float]:
    """Find the ends of those AUROCs whose distance from the estimate their variance explains.

    Newcombe's variance is that of one shape of score distributions. It is multiplied by what the
    estimated variance is to it at the estimate, but by no less than a half: a variance seen in a
    few images that happen to stand in the right order is too small. Where the estimate is 0 or 1
    nothing can be estimated and Newcombe's variance stands.

    Args:
        auroc: the estimate.
        variance: the estimated one of the estimate.
        m: anomalous images, at least two.
        n: normal images, at least two.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    ratio = 1.0
    if 0 < auroc < 1:
        ratio = max(variance / _newcombe_variance(auroc, m, n), _LEAST_VARIANCE)
    factor = ratio * float(stdtrit(min(m, n) - 1, (1 + LEVEL) / 2)) ** 2

    def excess(value: float) -> float:
        return (auroc - value) ** 2 - factor * _newcombe_variance(value, m, n)

    # Each end is a root; at an estimate of 0 or 1 the bracket must not begin on the estimate,
    # itself a root.
    tiny = 1e-9
    low = brentq(excess, 0.0, min(auroc, 1 - tiny)) if auroc > 0 else 0.0
    high = brentq(excess, max(auroc, tiny), 1.0) if auroc < 1 else 1.0
    return float(low), float(high)


def _newcombe_variance(auroc: float, m: int, n: int) -> float:
    """Give an AUROC's variance by Hanley and McNeil 1982, balanced as in Newcombe's method 5."""
    size = (m + n) / 2 - 1
    against = size * (1 - auroc) / (2 - auroc)
    in_favour = size * auroc / (1 + auroc)
    return auroc * (1 - auroc) * (1 + against + in_favour) / (m * n)


# Differences of two models


def mean_paired_difference(pairs: Sequence[PairedScores]) -> Difference | None:
    """Estimate the mean over seeds of AUROC of a minus AUROC of b.

    The variance is that of E. R. DeLong et al., "Comparing the areas under two or more correlated
    receiver operating characteristic curves", 1988, with t instead of the normal distribution and
    the degrees of freedom of Welch. Near 1 it errs on the safe side.

    Args:
        pairs: by seed, at least one; images may be shared by seeds or not.

    Returns:
        None where a class of a seed has fewer than two images.

    Raises:
        InputError: for scores that are NaN or infinite, and labels other than 0 and 1.
    """
    import pandas as pd

    differences = []
    parts = []
    for pair in pairs:
        a, positive = check_scores(pair.scores_a, pair.labels)
        b, _ = check_scores(pair.scores_b, pair.labels)
        if not enough_images(positive):
            return None

        auroc, influence = auroc_influence(np.stack([a, b]), positive)
        differences.append(auroc[0] - auroc[1])
        index = pd.MultiIndex.from_arrays([positive, pair.images])
        parts.append(pd.Series((influence[0] - influence[1]) / len(pairs), index))

    # What an image adds is summed over the seeds that share it, which correlates them as they are.
    influence = parts[0] if len(parts) == 1 else pd.concat(parts).groupby(level=[0, 1]).sum()
    positive = influence.index.get_level_values(0).to_numpy(dtype=bool)
    values = influence.to_numpy()
    of_anomalous = np.sum(values[positive] ** 2)
    of_normal = np.sum(values[~positive] ** 2)

    variances = np.array([[of_anomalous], [of_normal]])
    counts = np.array([positive.sum(), (~positive).sum()])
    return welch(np.array([np.mean(differences)]), variances, counts)[0]


def pairwise_differences(values: Floats, covariances: Floats, counts: NDArray) -> list[Difference]:
    """Test each two of K figures, in the order of `numpy.triu_indices`.

    Args:
        values: (K,).
        covariances: (parts, K, K) of the classes of images, which vary independently.
        counts: (parts,) images.
    """
    i, j = np.triu_indices(len(values), 1)
    variances = covariances[:, i, i] + covariances[:, j, j] - 2 * covariances[:, i, j]
    return welch(values[i] - values[j], variances.clip(min=0), counts)


def welch(differences: Floats, variances: Floats, counts: NDArray) -> list[Difference]:
    """Test P differences whose variance is a sum of parts, by t with Welch's degrees of freedom.

    Args:
        differences: (P,).
        variances: (parts, P) of the classes of images.
        counts: (parts,) images.
    """
    from scipy.special import stdtr, stdtrit

    differences = np.round(differences, 12)
    variance = variances.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (variances**2 / (counts[:, None] - 1)).sum(0)
        error = np.sqrt(variance)
        p_value = 2 * stdtr(freedom, -np.abs(differences) / error)
        half = stdtrit(freedom, (1 + LEVEL) / 2) * error

    # All images agree: as improbable as equal signs in the smallest class, had each been decided by
    # a coin.
    agree = variance < 1e-20
    by_coin = np.where(differences == 0, 1.0, 2.0 ** (1 - counts.min()))
    p_value = np.where(agree, by_coin, p_value)
    half = np.where(agree, 0.0, half)

    low = np.maximum(differences - half, -1)
    high = np.minimum(differences + half, 1)
    columns = (differences, low, high, error, p_value)
    return [Difference(*map(float, row)) for row in zip(*columns, strict=True)]


def holm(p_values: NDArray) -> Floats:
    """Adjust p values for their number by S. Holm 1979, apart from NaN ones, which stay."""
    p = np.asarray(p_values, dtype=np.float64)
    count = np.isfinite(p).sum()
    order = np.argsort(p)[:count]  # NaN is sorted to the end

    adjusted = p.copy()
    stepped = p[order] * (count - np.arange(count))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


# What both are made of


def auroc_of_rows(scores: NDArray, positive: NDArray[np.bool_]) -> Floats:
    """Compute the AUROC of each row of scores at once, by ranks (Mann and Whitney).

    Args:
        scores: (K, N) of K models, higher is more anomalous; ties count half.
        positive: (N,) true for anomalous; at least one of each class.

    Returns:
        (K,).
    """
    import pandas as pd

    count = int(positive.sum())
    pairs = count * (len(positive) - count)
    ranks = pd.DataFrame(scores).rank(axis=1).to_numpy()[:, positive].sum(axis=1)
    return (ranks - count * (count + 1) / 2) / pairs


def auroc_influence(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Compute the AUROC of K models, and what each image adds to their errors.

    Args:
        scores: (K, N) finite.
        positive: (N,) true for anomalous; at least two of each class.

    Returns:
        AUROC (K,) and influence (K, N). `influence @ influence.T` is DeLong's covariance matrix of
        the K AUROCs, and so is any sum of influences over seeds or categories that of their sum.
    """
    above = scores[:, positive]
    below = scores[:, ~positive]
    m = above.shape[1]
    n = below.shape[1]

    # A win is a pair of images in the right order. An image adds what its own share differs by from
    # that of all.
    aurocs = np.empty(len(scores))
    influence = np.empty(scores.shape)
    for k in range(len(scores)):
        wins = _share_below(np.sort(below[k]), above[k])
        losses = 1 - _share_below(np.sort(above[k]), below[k])
        aurocs[k] = wins.mean()
        influence[k, positive] = (wins - aurocs[k]) / math.sqrt(m * (m - 1))
        influence[k, ~positive] = (losses - aurocs[k]) / math.sqrt(n * (n - 1))
    return aurocs, influence


def _share_below(ordered: Floats, values: Floats) -> Floats:
    """Give for each value the share of the ordered ones below it, where ties count half."""
    left = np.searchsorted(ordered, values, "left")
    right = np.searchsorted(ordered, values, "right")
    return (left + right) / (2 * len(ordered))


def enough_images(positive: NDArray[np.bool_]) -> bool:
    """Tell whether each class has so many images that something is known of its spread."""
    return min(int(positive.sum()), int((~positive).sum())) >= LEAST_IMAGES

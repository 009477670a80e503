"""What figures can bear: intervals, differences, and groups that cannot be told apart instead of a third digit.

Two questions, which need different data. *Does one configuration beat another on products of this kind?* The products
(categories) are the sample: `ranking`, `paired_differences`. *Does one trained model beat another on such images of
these products?* The test images are the sample: `bootstrap_interval`, `paired_difference`, `ranking_on_images`; this
also works for a single product. `seed_spread` says what another seed changes.

Pairs of configurations are compared over categories by Wilcoxon's signed ranks, and all pairs together by the
step-down maximum of P. H. Westfall and S. S. Young, "Resampling-Based Multiple Testing", 1993 (algorithm 4.1), with the
signs of each category's differences flipped together. For two configurations that is Wilcoxon's test; for many it
needs no price per pair. With Holm's method 44 configurations (946 pairs) ask for p < 0.00005, which Wilcoxon's test
cannot reach on the 15 categories of MVTec AD: its smallest value there is 0.00006.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adray.metrics import METRICS, check_scores
from adray.results.groups import group_letters

if TYPE_CHECKING:
    import pandas as pd

ERROR = 0.05
"""Chance that any two configurations that do not differ are told apart (family-wise error)."""
LEVEL = 0.95
"""Of intervals."""
LEAST_CELLS = 6
"""With fewer common categories no signed-rank test reaches 5 %."""
LEAST_IMAGES = 2
"""Test images of each class, without which nothing is known of their spread."""
RANKING_COLUMNS = (
    "configuration", "mean", "low", "high", "seed_sd", "mean_rank", "coverage", "cells", "common", "group",
)  # fmt: skip
CELL = ["dataset", "category"]
_LEAST_VARIANCE = 0.5
_DRAWS = 10_000
_EXACT_CELLS = 15  # up to here all 2**14 patterns of signs are tried
_BLOCK = 1 << 22  # numbers worked on at a time
_DIGITS = 9  # values that agree so far are tied, whatever the order of summation left behind

Floats = NDArray[np.float64]


# ---- test images of one category ----


class Interval(NamedTuple):
    """Where a figure lies: `low` to `high` at the asked level, and its standard error."""

    low: float
    high: float
    standard_error: float


class Difference(NamedTuple):
    """First minus second AUROC, its interval and standard error, and p of the hypothesis that they are equal."""

    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float


def bootstrap_interval(
    scores: NDArray, labels: NDArray, *, draws: int = 2000, level: float = LEVEL, seed: int = 0
) -> Interval | None:
    """Interval of the image AUROC of a trained model over test images, drawn again within their class.

    The percentiles of the draws are not used: near 1, where good detectors are, they cover far too rarely (60 % and
    less for an AUROC of 0.995 on 40 images) and shrink to nothing at 1. Instead the variance of the draws scales the
    score interval of R. G. Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2", 2006 (method 5), which holds up to 1; see `score_interval`.

    Args:
        scores: (N,) higher is more anomalous.
        labels: (N,) 0 normal, 1 anomalous.
        draws: how often the images are drawn.
        level: of the interval.
        seed: of the draws.

    Returns:
        None where a class has fewer than two images.

    Raises:
        InputError: for scores that are NaN or infinite, and labels other than 0 and 1.
    """
    values, positive = check_scores(scores, labels)
    if not enough_images(positive):
        return None
    rng = np.random.default_rng(seed)
    variance = float(_drawn_aurocs(values[positive], values[~positive], draws, rng).var(ddof=1))
    auroc = float(auroc_influence(values[None], positive)[0][0])
    low, high = score_interval(auroc, variance, int(positive.sum()), int((~positive).sum()), level)
    return Interval(low, high, math.sqrt(variance))


def paired_difference(
    scores_a: NDArray, scores_b: NDArray, labels: NDArray, *, level: float = LEVEL
) -> Difference | None:
    """AUROC of a minus that of b, two trained models on the same test images.

    Variance by E. R. DeLong et al., "Comparing the areas under two or more correlated receiver operating
    characteristic curves", 1988; t instead of the normal distribution, with the degrees of freedom of Welch. Near 1 it
    errs on the safe side.

    Args:
        scores_a: (N,) higher is more anomalous.
        scores_b: (N,) of the same images; the unit may differ.
        labels: (N,) 0 normal, 1 anomalous.
        level: of the interval.

    Returns:
        None where a class has fewer than two images.

    Raises:
        InputError: for scores that are NaN or infinite, and labels other than 0 and 1.
    """
    images = np.arange(len(labels))
    return mean_paired_difference([PairedScores(scores_a, scores_b, labels, images)], level=level)


@dataclass(frozen=True)
class PairedScores:
    """Scores of two models of one seed on the same test images.

    Attributes:
        scores_a: (N,) higher is more anomalous.
        scores_b: (N,) of the other model.
        labels: (N,) 0 normal, 1 anomalous.
        images: (N,) names, the same for the same image in other seeds.
    """

    scores_a: NDArray
    scores_b: NDArray
    labels: NDArray
    images: NDArray


def mean_paired_difference(
    pairs: Sequence[PairedScores], *, level: float = LEVEL
) -> Difference | None:
    """Mean over seeds of AUROC of a minus AUROC of b; images may be shared by seeds or not.

    Args:
        pairs: by seed, at least one.
        level: of the interval.

    Returns:
        None where a class of a seed has fewer than two images.
    """
    import pandas as pd

    differences, parts = [], []
    for pair in pairs:
        (a, positive), (b, _) = (
            check_scores(pair.scores_a, pair.labels),
            check_scores(pair.scores_b, pair.labels),
        )
        if not enough_images(positive):
            return None
        auroc, influence = auroc_influence(np.stack([a, b]), positive)
        differences.append(auroc[0] - auroc[1])
        index = pd.MultiIndex.from_arrays([positive, pair.images])
        parts.append(pd.Series((influence[0] - influence[1]) / len(pairs), index))
    influence = parts[0] if len(parts) == 1 else pd.concat(parts).groupby(level=[0, 1]).sum()
    positive = influence.index.get_level_values(0).to_numpy(dtype=bool)
    values = influence.to_numpy()
    variances = np.array([[np.sum(values[side] ** 2)] for side in (positive, ~positive)])
    counts = np.array([positive.sum(), (~positive).sum()])
    return welch(np.array([np.mean(differences)]), variances, counts, level)[0]


def auroc_influence(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """AUROC of K models, and what each image adds to their errors.

    Args:
        scores: (K, N) finite.
        positive: (N,) whether anomalous; at least two of each.

    Returns:
        AUROC (K,) and influence (K, N); `influence @ influence.T` is DeLong's covariance matrix of the K AUROCs, and
        so is any sum of influences over seeds or categories that of their sum.
    """
    above, below = scores[:, positive], scores[:, ~positive]
    m, n = above.shape[1], below.shape[1]
    influence = np.empty(scores.shape)
    aurocs = np.empty(len(scores))
    for k in range(len(scores)):
        wins = _share_below(np.sort(below[k]), above[k])
        losses = 1 - _share_below(np.sort(above[k]), below[k])
        aurocs[k] = wins.mean()
        influence[k, positive] = (wins - aurocs[k]) / math.sqrt(m * (m - 1))
        influence[k, ~positive] = (losses - aurocs[k]) / math.sqrt(n * (n - 1))
    return aurocs, influence


def _share_below(ordered: Floats, values: Floats) -> Floats:
    """For each value the share of the ordered ones below it; ties count half."""
    return (
        np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    ) / (2 * len(ordered))


def enough_images(positive: NDArray[np.bool_]) -> bool:
    """Whether each class has so many that something is known of its spread."""
    return min(int(positive.sum()), int((~positive).sum())) >= LEAST_IMAGES


def _drawn_aurocs(
    positives: Floats, negatives: Floats, draws: int, rng: np.random.Generator
) -> Floats:
    """(draws,) AUROC of images drawn with replacement within each class.

    How often an image was drawn is its weight; cumulated over the sorted normal images these are the wins of each
    anomalous one, so no draw needs to be sorted.
    """
    m, n = len(positives), len(negatives)
    ordered = np.sort(negatives)
    left, right = (
        np.searchsorted(ordered, positives, "left"),
        np.searchsorted(ordered, positives, "right"),
    )
    block = max(1, _BLOCK // (m + n))
    found = []
    for start in range(0, draws, block):
        count = min(block, draws - start)
        weight = _draw_counts(count, m, rng)
        below = np.zeros((count, n + 1), dtype=np.int64)
        np.cumsum(_draw_counts(count, n, rng), axis=1, out=below[:, 1:])
        found.append(((below[:, left] + below[:, right]) * weight).sum(1) / (2 * m * n))
    return np.concatenate(found)


def _draw_counts(draws: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, size) how often each of `size` things came up in `size` draws with replacement."""
    places = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * size).reshape(draws, size)


def score_interval(
    auroc: float, variance: float, m: int, n: int, level: float = LEVEL
) -> tuple[float, float]:
    """All AUROCs whose distance from the estimate their own variance explains.

    Newcombe's variance is that of one shape of score distributions; it is multiplied by what the estimated variance is
    to it at the estimate, but by no less than a half: a variance seen in a few images that happen to stand in the right
    order is too small. Where the estimate is 0 or 1 nothing can be estimated and Newcombe's variance stands.

    Args:
        auroc: the estimate.
        variance: the estimated one of the estimate.
        m: anomalous images, at least two.
        n: normal images, at least two.
        level: of the interval.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    expected = _newcombe_variance(auroc, m, n)
    ratio = max(variance / expected, _LEAST_VARIANCE) if 0 < auroc < 1 else 1.0
    factor = ratio * float(stdtrit(min(m, n) - 1, (1 + level) / 2)) ** 2

    def excess(value: float) -> float:
        return (auroc - value) ** 2 - factor * _newcombe_variance(value, m, n)

    tiny = 1e-9
    low = brentq(excess, 0.0, min(auroc, 1 - tiny)) if auroc > 0 else 0.0
    high = brentq(excess, max(auroc, tiny), 1.0) if auroc < 1 else 1.0
    return float(low), float(high)


def _newcombe_variance(auroc: float, m: int, n: int) -> float:
    """Variance of an AUROC by J. A. Hanley and B. J. McNeil 1982 for exponential scores, balanced as in method 5."""
    size = (m + n) / 2 - 1
    return (
        auroc
        * (1 - auroc)
        * (1 + size * (1 - auroc) / (2 - auroc) + size * auroc / (1 + auroc))
        / (m * n)
    )


def welch(
    differences: Floats, variances: Floats, counts: NDArray, level: float
) -> list[Difference]:
    """Test P differences whose variance is a sum of parts, by t with Welch's degrees of freedom.

    Args:
        differences: (P,).
        variances: (parts, P) of the classes of images.
        counts: (parts,) images.
        level: of the intervals.
    """
    from scipy.special import stdtr, stdtrit

    differences = np.round(differences, 12)
    variance = variances.sum(0)
    sure = variance < 1e-20  # every image says the same
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (variances**2 / (counts[:, None] - 1)).sum(0)
        error = np.sqrt(variance)
        p = 2 * stdtr(freedom, -np.abs(differences) / error)
        half = stdtrit(freedom, (1 + level) / 2) * error
    # All images agree: as improbable as equal signs in the smallest class, had each been decided by a coin.
    p = np.where(sure, np.where(differences == 0, 1.0, 2.0 ** (1 - counts.min())), p)
    half = np.where(sure, 0.0, half)
    columns = (
        differences,
        np.maximum(differences - half, -1),
        np.minimum(differences + half, 1),
        error,
        p,
    )
    return [Difference(*map(float, row)) for row in zip(*columns, strict=True)]


def holm(p_values: NDArray) -> Floats:
    """Adjust p values for their number by the method of S. Holm 1979; NaN ones do not count and stay."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = p.copy()
    adjusted[order] = np.minimum(
        np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order)))), 1
    )
    return adjusted


# ---- categories ----


def ranking(frame: pd.DataFrame, metric: str = "image_auroc") -> pd.DataFrame:
    """Configurations by their mean over the categories that all the compared ones finished, the best first.

    A configuration that finished too few categories would empty the common ones. So as long as these are fewer than
    half of what the median configuration finished, the one whose absence gives most of them back is left out; it keeps
    its row, without mean and group, and a note names it.

    Args:
        frame: finished trials with ``configuration``, ``dataset``, ``category``, ``seed`` and the metric, which may be
            missing; seeds of a category are averaged first.
        metric: a name of `adray.metrics.METRICS`.

    Returns:
        One row per configuration.

        mean: over the common categories. low, high: 95 % interval of the mean over *other* products of this kind, from
        the spread over categories; skewness-corrected t of P. Hall, "On the removal of skewness by transformation",
        1992. Most of that spread is shared by all configurations: overlapping intervals say nothing on differences,
        the groups do. NaN for a single category.

        seed_sd: see `seed_spread`. mean_rank: over the common categories, 1 is best, ties share. coverage: categories
        finished; cells: of all; common: of the mean, 0 where left out.

        group: configurations that share a letter cannot be told apart with a family-wise error of 5 %
        (`paired_differences`); a letter further down the list means worse.

        ``attrs["notes"]``: sentences a reader must know.
    """
    compared = comparable(cell_values(frame, metric))
    figures = compared.figures
    sign = -1 if metric in METRICS and not METRICS[metric].higher_is_better else 1
    limits = None if metric == "separation" else (0.0, 1.0)
    intervals = _mean_intervals(figures, limits)
    p_adjusted = _signed_rank_tests(figures)[1]
    table = ranking_table(
        compared, intervals, p_adjusted, seed_spread(frame, metric)["configurations"], sign
    )
    count = len(compared.cells)
    if len(compared.names) > 1 and count < LEAST_CELLS:
        table.attrs["notes"].append(
            f"{count} {'category' if count == 1 else 'categories'} in common cannot tell configurations apart, at "
            f"least {LEAST_CELLS} are needed: so all share one group. Test images can tell trained models apart even "
            "on a single category."
        )
    return table


def paired_differences(frame: pd.DataFrame, metric: str = "image_auroc") -> pd.DataFrame:
    """Every two of the configurations that `ranking` compares, the surest difference first.

    Args:
        frame: as for `ranking`.
        metric: as for `ranking`.

    Returns:
        ``first``, ``second``; ``difference``: mean of first minus second over the common categories, positive where
        first has the larger mean; ``low``, ``high``: its 95 % interval, of this pair alone; ``p_value``: of Wilcoxon's
        signed-rank test of this pair alone; ``p_adjusted``: for all pairs together; ``n``: common categories.
    """
    import pandas as pd

    compared = comparable(cell_values(frame, metric))
    figures, configurations = compared.figures, np.array(compared.names, dtype=object)
    if len(figures):
        order = np.argsort(-figures.mean(1), kind="stable")
        figures, configurations = figures[order], configurations[order]
    i, j = np.triu_indices(len(figures), 1)
    differences = figures[i] - figures[j]
    alone, together = _signed_rank_tests(figures)
    low, high = np.reshape(_mean_intervals(differences, None), (-1, 2)).T
    columns = {
        "first": configurations[i],
        "second": configurations[j],
        "difference": differences.mean(1),
        "low": low,
        "high": high,
        "p_value": alone,
        "p_adjusted": together,
        "n": len(compared.cells),
    }
    return pd.DataFrame(columns).sort_values(
        ["p_adjusted", "p_value"], kind="stable", ignore_index=True
    )


def seed_spread(frame: pd.DataFrame, metric: str = "image_auroc") -> dict[str, Any]:
    """What another seed changes: standard deviation over seeds, pooled over the categories that have several.

    Args:
        frame: as for `ranking`.
        metric: as for `ranking`.

    Returns:
        ``overall``: of all configurations together, NaN without a category that has several seeds;
        ``configurations``: by name, only those that have one.
    """
    values = _seed_values(frame, metric)
    groups = values.groupby(["configuration", *CELL])
    squares = ((values - groups.transform("mean")) ** 2).groupby("configuration").sum()
    freedom = (groups.size() - 1).groupby("configuration").sum()
    known = freedom > 0
    overall = math.sqrt(squares.sum() / freedom.sum()) if known.any() else math.nan
    pooled = np.sqrt(squares[known] / freedom[known])
    return {
        "overall": overall,
        "configurations": {str(name): float(value) for name, value in pooled.items()},
    }


def _seed_values(frame: pd.DataFrame, metric: str) -> pd.Series:
    """The metric by configuration, data set, category and seed, finite values only."""
    import pandas as pd

    numbers = pd.to_numeric(frame[metric]).astype(np.float64)
    known = frame.assign(**{metric: numbers})[np.isfinite(numbers)]
    return known.groupby(["configuration", *CELL, "seed"])[metric].mean()


def cell_values(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over seeds: a row per configuration of the frame, a column per category with a value, NaN in the gaps."""
    means = _seed_values(frame, metric).groupby(["configuration", *CELL]).mean()
    return means.unstack(CELL).reindex(sorted(set(frame["configuration"])))


@dataclass(frozen=True)
class Compared:
    """Configurations that are compared, and the categories that they have in common.

    Attributes:
        values: of all configurations and categories, as `cell_values` makes it.
        names: K configurations.
        cells: C columns of `values`.
    """

    values: pd.DataFrame
    names: list[str]
    cells: list[Any]

    @property
    def figures(self) -> Floats:
        """(K, C) without gaps."""
        return self.values.loc[self.names, self.cells].to_numpy(dtype=np.float64)


def comparable(values: pd.DataFrame) -> Compared:
    """Choose what is compared so that one broken configuration costs nobody a category; see `ranking`."""
    has = values.notna().to_numpy()
    coverage = has.sum(1)
    chosen = coverage > 0
    if not chosen.any():
        return Compared(values, [], [])
    wanted = float(np.median(coverage[chosen])) / 2
    while (common := has[chosen].all(0)).sum() < wanted:
        lacking = (~has[chosen]).sum(0) == 1  # categories that only one of them lacks
        gain = np.where(chosen, (~has & lacking).sum(1), -1)
        chosen[max(range(len(gain)), key=lambda i: (gain[i], -coverage[i]))] = False
    return Compared(values, list(values.index[chosen]), list(values.columns[common]))


def ranking_table(
    compared: Compared,
    intervals: Sequence[tuple[float, float]],
    p_adjusted: Floats,
    seed_sd: Mapping[str, float],
    sign: int = 1,
) -> pd.DataFrame:
    """What `ranking` returns.

    Args:
        compared: K configurations on C categories, and those left out.
        intervals: (K,) of their means.
        p_adjusted: (K * (K - 1) / 2,) of each two of them, in the order of `numpy.triu_indices`.
        seed_sd: by configuration.
        sign: -1 where less is better.
    """
    import pandas as pd
    from scipy.stats import rankdata

    values, figures, count = compared.values, compared.figures, len(compared.cells)
    low, high = np.reshape(intervals, (-1, 2)).T
    ranks = rankdata(-sign * np.round(figures, _DIGITS), axis=0).mean(1) if count else []
    known = {"mean": figures.mean(1) if count else [], "low": low, "high": high, "mean_rank": ranks}
    table = pd.DataFrame(known, compared.names, dtype=np.float64).reindex(values.index)
    table["seed_sd"] = pd.Series(seed_sd, dtype=np.float64)
    table["coverage"] = values.notna().sum(axis=1)
    table["cells"] = values.shape[1]
    table["common"] = np.where(table["mean"].notna(), count, 0)
    best_first = table.assign(
        order=-sign * table["mean"], lacking=-table["coverage"], name=table.index
    )
    table = table.loc[best_first.sort_values(["order", "lacking", "name"]).index]
    table["group"] = pd.Series(_groups(compared.names, p_adjusted, list(table.index)), dtype=object)
    table["group"] = table["group"].fillna("")
    table = table.rename_axis("configuration").reset_index()[list(RANKING_COLUMNS)]
    table.attrs["notes"] = _coverage_notes(table, count)
    return table


def _groups(names: list[str], p_adjusted: Floats, order: list[str]) -> dict[str, str]:
    """Letters of the configurations, those of the first in `order` first."""
    same = np.ones((len(names), len(names)), dtype=bool)
    i, j = np.triu_indices(len(names), 1)
    same[i, j] = same[j, i] = p_adjusted >= ERROR
    ranked = [name for name in order if name in names]
    places = [names.index(name) for name in ranked]
    return dict(zip(ranked, group_letters(same[np.ix_(places, places)]), strict=True))


def _coverage_notes(table: pd.DataFrame, common: int) -> list[str]:
    notes = []
    left_out = table[table["common"] == 0]
    if len(left_out):
        names = ", ".join(
            f"{row.configuration} ({row.coverage} of {row.cells})" for row in left_out.itertuples()
        )
        notes.append(
            f"Left out of means, ranks and groups, since they finished too few of the categories: {names}."
        )
    if 0 < common < table["cells"].max():
        notes.append(
            f"Compared on the {common} of {table['cells'].max()} categories that all compared ones finished."
        )
    return notes


def _signed_rank_tests(values: Floats) -> tuple[Floats, Floats]:
    """Wilcoxon's p of each two rows alone, and adjusted for all (top of this file), in the order of triu_indices.

    The signs of all differences within a category are flipped together: with every pattern for up to 15 categories,
    else with 10,000 random ones, of which what was observed is one.

    Args:
        values: (K, C) of K configurations on C categories.
    """
    i, j = np.triu_indices(len(values), 1)
    if not len(i):
        return np.empty(0), np.empty(0)
    statistic = _signed_ranks(np.round(values[i] - values[j], _DIGITS)).T
    observed = np.abs(statistic.sum(0))
    order = np.argsort(observed, kind="stable")
    statistic, observed = statistic[:, order], observed[order] * (1 - 1e-9)
    signs = _sign_patterns(len(statistic))
    alone, together = np.zeros(len(i)), np.zeros(len(i))
    block = max(1, _BLOCK // len(i))
    for start in range(0, len(signs), block):
        flipped = np.abs(signs[start : start + block] @ statistic)
        alone += (flipped >= observed).sum(0)
        np.maximum.accumulate(flipped, axis=1, out=flipped)  # over all pairs that are no surer
        together += (flipped >= observed).sum(0)
    together = np.maximum.accumulate(together[::-1])[::-1]
    place = np.argsort(order, kind="stable")
    return alone[place] / len(signs), together[place] / len(signs)


def _signed_ranks(differences: Floats) -> Floats:
    """(P, C) ranks of the sizes with the signs of the differences, of length 1 in each row; zeros have no rank."""
    from scipy.stats import rankdata

    zeros = (differences == 0).sum(1, keepdims=True)
    ranks = np.sign(differences) * (rankdata(np.abs(differences), axis=1) - zeros)
    length = np.sqrt((ranks**2).sum(1, keepdims=True))
    return ranks / np.where(length > 0, length, 1)


def _sign_patterns(cells: int) -> Floats:
    """(S, cells) of -1 and 1, the first row all 1; patterns and their opposites count once, for sizes are compared."""
    if cells <= _EXACT_CELLS:
        bits = (np.arange(1 << max(cells - 1, 0))[:, None] >> np.arange(cells)) & 1
        return 1 - 2 * bits.astype(np.float64)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWS, cells))
    signs[0] = 1
    return signs


def _mean_intervals(
    values: Floats, limits: tuple[float, float] | None
) -> list[tuple[float, float]]:
    """Skewness-corrected t interval of the mean of each row of (K, C), NaN for C < 2 and cut at the limits.

    Hall's transformation T + g (T**2 / 3 + 1 / (6 C)) + g**2 T**3 / 27, with T the mean's distance in standard
    deviations and g the skewness, is nearly symmetric; its inverse is closed.
    """
    from scipy.special import stdtrit

    count = values.shape[1]
    if count < 2:
        return [(math.nan, math.nan)] * len(values)
    mean, deviation = values.mean(1), values.std(1)
    centered = values - mean[:, None]
    flat = deviation <= 1e-12
    skewness = (centered**3).mean(1) / np.where(flat, 1, deviation) ** 3
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) / math.sqrt(count)
    spread = np.where(flat, 0, values.std(1, ddof=1))
    low, high = (
        mean - _hall(reach, skewness, count) * spread,
        mean - _hall(-reach, skewness, count) * spread,
    )
    if limits is not None:
        low, high = np.clip(low, *limits), np.clip(high, *limits)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _hall(value: float, skewness: Floats, count: int) -> Floats:
    """The inverse of Hall's transformation."""
    safe = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    roots: Floats = np.cbrt(1 + safe * (value - safe / (6 * count)))
    return 3 / safe * (roots - 1)

"""Which models make the best team, and what that is worth on images that did not choose it.

Greedy forward selection (R. Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004) on the mean of
calibrated scores, without replacement: each model is taken once and counts the same. The labels of the test images
choose, so the value of the chosen team on the same images is optimistic. The honest value comes from repeated
stratified cross-validation: the whole choice (members, number of members, and the best single model that it is
compared with) is made again without a fold and judged on that fold alone. Values are averaged over folds and not
computed of pooled scores, which came from different teams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adray.errors import InputError
from adray.metrics import METRICS, curve

FOLDS = 5
REPEATS = 10
SIZE_REPEATS = 2
"""Repetitions of the inner cross-validation that chooses the number of members."""
LEAST_IMAGES = 4
"""Images of each class without which nothing can be cross-validated."""
METRIC_NAMES = tuple(
    name for name, m in METRICS.items() if m.level == "image" and name != "separation"
)
_DIGITS = 9  # metrics that agree so far are a tie, whatever the order of summation left behind


@dataclass(frozen=True)
class Cell:
    """What K candidates say of the N test images of one category.

    Attributes:
        scores: (K, N) calibrated scores.
        label: (N,) bool, true for anomalous.
    """

    scores: NDArray[np.float64]
    label: NDArray[np.bool_]

    def images(self, chosen: NDArray[np.bool_]) -> Cell:
        """The images where `chosen`, (N,) bool, is true."""
        return Cell(self.scores[:, chosen], self.label[chosen])


@dataclass(frozen=True)
class Rules:
    """What a team may be.

    Attributes:
        smallest: least number of members.
        largest: largest number of members.
        metric: one of `METRIC_NAMES`, the mean over the categories counts.
        costs: (L, K) what each candidate costs, per limit.
        limits: (L,) what a team may cost.
    """

    smallest: int = 3
    largest: int = 5
    metric: str = "image_auroc"
    costs: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    limits: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Honest:
    """Values on images that did not choose, means over folds.

    Attributes:
        team: of the teams chosen without the fold.
        single: of the best single models chosen without the fold.
        gain: their difference.
        error: standard error of the gain, with the correction of C. Nadeau and Y. Bengio, "Inference for the
            Generalization Error", 2003, for training sets that overlap.
        folds: number of folds.
        repeats: how often the images were divided into folds.
        chosen: (K,) share of the folds without which a candidate was chosen into the team.
    """

    team: float
    single: float
    gain: float
    error: float
    folds: int
    repeats: int
    chosen: NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """A team and the best single model, chosen with all test images.

    Attributes:
        team: candidates in the order of choice.
        single: the candidate that is best alone.
        team_value: of the team on the images that chose it: optimistic.
        single_value: of the single model on the images that chose it: optimistic, though less.
        honest: the cross-validated values.
    """

    team: tuple[int, ...]
    single: int
    team_value: float
    single_value: float
    honest: Honest


def select(cells: Sequence[Cell], rules: Rules, seed: int = 0) -> Selection:
    """Choose a team and find out what it is worth.

    Args:
        cells: of one category, or of several that shall have the same team.
        rules: what the team may be.
        seed: of the folds.

    Raises:
        InputError: for too few candidates or test images, and where the limits allow no team.
    """
    _check(cells, rules)
    team = choose(cells, rules, np.random.default_rng(seed))
    if len(team) < rules.smallest:
        raise InputError(
            f"no team of {rules.smallest} of the {len(cells[0].scores)} candidates was found within the limits; allow "
            "more or ask for fewer members"
        )
    single, value = best_single(cells, rules.metric), values_of(cells, rules.metric)
    honest = cross_validate(cells, rules, seed)
    return Selection(
        team, single, team_value(cells, team, rules.metric), float(value[single]), honest
    )


def greedy(cells: Sequence[Cell], rules: Rules) -> list[int]:
    """Candidates in the order of choice, up to the largest team; the first n are the team of n.

    Each step takes the candidate with the best metric together with those before it; among equals the one that
    separates the classes best, then the first.
    """
    count = len(cells[0].scores)
    totals = [np.zeros_like(cell.label, dtype=np.float64) for cell in cells]
    team: list[int] = []
    while len(team) < min(rules.largest, count):
        allowed = _affordable(team, count, rules)
        if not allowed.any():
            break
        rows = np.flatnonzero(allowed)
        trial = [
            Cell(t + cell.scores[rows], cell.label) for t, cell in zip(totals, cells, strict=True)
        ]
        best = int(rows[best_single(trial, rules.metric)])
        totals = [t + cell.scores[best] for t, cell in zip(totals, cells, strict=True)]
        team.append(best)
    return team


def choose(cells: Sequence[Cell], rules: Rules, rng: np.random.Generator) -> tuple[int, ...]:
    """The greedy team whose number of members, of those allowed, is best in cross-validation; among equals fewer."""
    path = greedy(cells, rules)
    sizes = range(rules.smallest, len(path) + 1)
    if len(sizes) < 2:
        return tuple(path)
    values = []
    for training, rest in _splits(cells, SIZE_REPEATS, rng):
        inner = greedy(training, rules)
        values.append([team_value(rest, inner[:size], rules.metric) for size in sizes])
    mean = np.round(np.mean(values, axis=0), _DIGITS)
    return tuple(path[: sizes[int(np.argmax(mean))]])


def cross_validate(
    cells: Sequence[Cell], rules: Rules, seed: int = 0, repeats: int = REPEATS
) -> Honest:
    """Choose again without each fold, and judge the choice on that fold."""
    rng = np.random.default_rng([seed, 1])
    team_values, single_values = [], []
    chosen = np.zeros(len(cells[0].scores))
    for training, rest in _splits(cells, repeats, rng):
        team = choose(training, rules, rng)
        chosen[list(team)] += 1
        team_values.append(team_value(rest, team, rules.metric))
        single_values.append(team_value(rest, [best_single(training, rules.metric)], rules.metric))
    gains, folds = np.subtract(team_values, single_values), _fold_count(cells)
    error = np.sqrt(np.var(gains, ddof=1) * (1 / len(gains) + 1 / (folds - 1)))
    return Honest(
        float(np.mean(team_values)),
        float(np.mean(single_values)),
        float(gains.mean()),
        float(error),
        folds,
        repeats,
        chosen / len(gains),
    )


def best_single(cells: Sequence[Cell], metric: str) -> int:
    """The candidate that is best alone; among equals the one that separates the classes best, then the first."""
    values = np.round(values_of(cells, metric), _DIGITS)
    separations = np.mean([_separation(cell) for cell in cells], axis=0)
    return max(range(len(values)), key=lambda i: (values[i], separations[i], -i))


def values_of(cells: Sequence[Cell], metric: str) -> NDArray[np.float64]:
    """(K,) metric of each candidate alone, mean over the categories."""
    return np.mean([_metric(cell, metric) for cell in cells], axis=0)


def team_value(cells: Sequence[Cell], team: Sequence[int], metric: str) -> float:
    """Metric of the mean score of a team, mean over the categories."""
    together = [Cell(cell.scores[list(team)].mean(0, keepdims=True), cell.label) for cell in cells]
    return float(values_of(together, metric)[0])


def _metric(cell: Cell, metric: str) -> NDArray[np.float64]:
    """(K,) values; AUROC of all candidates at once by ranks (Mann and Whitney), which a selection asks for most."""
    if metric != "image_auroc":
        compute = METRICS[metric].compute
        return np.array([compute(curve(row, cell.label)) for row in cell.scores], dtype=np.float64)
    from scipy.stats import rankdata

    positives = int(cell.label.sum())
    pairs = positives * (len(cell.label) - positives)
    return (
        rankdata(cell.scores, axis=1)[:, cell.label].sum(1) - positives * (positives + 1) / 2
    ) / pairs


def _separation(cell: Cell) -> NDArray[np.float64]:
    """(K,) difference of the class means over the pooled standard deviation; 0 where scores do not vary at all."""
    anomalous, normal = cell.scores[:, cell.label], cell.scores[:, ~cell.label]
    freedom = max(cell.scores.shape[1] - 2, 1)
    pooled = (anomalous.var(1) * anomalous.shape[1] + normal.var(1) * normal.shape[1]) / freedom
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((anomalous.mean(1) - normal.mean(1)) / np.sqrt(pooled))


def _affordable(team: Sequence[int], count: int, rules: Rules) -> NDArray[np.bool_]:
    """(K,) which candidates may join: the cheapest that then complete the smallest team must fit the limits too."""
    free = np.ones(count, dtype=bool)
    free[list(team)] = False
    allowed = free.copy()
    missing = max(rules.smallest - len(team) - 1, 0)
    for cost, limit in zip(rules.costs, rules.limits, strict=True):
        cheapest = np.sort(cost[free])[: missing + 1]
        # Whoever is among the cheapest that would complete the team makes room for the next one.
        rest = (
            np.where(cost <= cheapest[-1], cheapest.sum() - cost, cheapest[:missing].sum())
            if missing
            else 0.0
        )
        allowed &= cost[list(team)].sum() + cost + rest <= limit * (1 + 1e-9)
    return allowed


def _splits(
    cells: Sequence[Cell], repeats: int, rng: np.random.Generator
) -> Iterator[tuple[list[Cell], list[Cell]]]:
    """Training and left-out images of each fold; each class of each category is spread evenly over the folds."""
    folds = _fold_count(cells)
    for _ in range(repeats):
        places = [_fold_of_images(cell.label, folds, rng) for cell in cells]
        for fold in range(folds):
            together = list(zip(cells, places, strict=True))
            yield (
                [cell.images(place != fold) for cell, place in together],
                [cell.images(place == fold) for cell, place in together],
            )


def _fold_of_images(
    label: NDArray[np.bool_], folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    places = np.empty(len(label), dtype=np.int64)
    for members in (np.flatnonzero(label), np.flatnonzero(~label)):
        places[rng.permutation(members)] = np.arange(len(members)) % folds
    return places


def _fold_count(cells: Sequence[Cell]) -> int:
    return min(FOLDS, *(min(int(cell.label.sum()), int((~cell.label).sum())) for cell in cells))


def _check(cells: Sequence[Cell], rules: Rules) -> None:
    count = len(cells[0].scores)
    if count < rules.smallest:
        raise InputError(
            f"it has {count} usable candidates, but a team needs {rules.smallest}; ask for fewer members"
        )
    for cell in cells:
        anomalous = int(cell.label.sum())
        normal = len(cell.label) - anomalous
        if min(normal, anomalous) < LEAST_IMAGES:
            raise InputError(
                f"it has {normal} normal and {anomalous} anomalous test images, but a choice that can be "
                f"cross-validated needs {LEAST_IMAGES} of each"
            )

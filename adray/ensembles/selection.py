"""Which models make the best team, and what that is worth on images that did not choose it.

Greedy forward selection (R. Caruana et al., "Ensemble Selection from Libraries of Models", ICML
2004) on the mean of calibrated scores, without replacement: each model is taken once and counts the
same. The labels of the test images choose, so the value of the chosen team on the same images is
optimistic. The honest value comes from repeated stratified cross-validation: the whole choice
(members, number of members, and the best single model that it is compared with) is made again
without a fold and judged on that fold alone. Images that show the same thing are in one fold: one
of them in the choice would tell what the other is. Values are averaged over folds and not computed
of pooled scores, which came from different teams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from adray.curves import curve
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.metrics import METRICS
from adray.results.image_statistics import auroc_of_rows

FOLDS = 5
REPEATS = 10
SIZE_REPEATS = 2
"""Repetitions of the inner cross-validation that chooses the number of members."""
LEAST_UNITS = 4
"""Units with images of each class without which nothing can be cross-validated."""
METRIC_NAMES = tuple(
    name
    for name, metric in METRICS.items()
    if (metric.level, metric.of) == ("image", "curve") and name != "separation"
)
_DIGITS = 9  # metrics that agree so far are a tie, whatever the order of summation left behind


@dataclass(frozen=True)
class Cell:
    """What K candidates say of the N test images of one category."""

    scores: NDArray[np.float64]
    """(K, N) calibrated scores."""
    label: NDArray[np.bool_]
    """(N,) true for anomalous."""
    unit: NDArray[np.int64]
    """(N,) the same number for images that stay together, see `adray.results.image_units`."""

    def images(self, chosen: NDArray[np.bool_]) -> Cell:
        """Keep the images where `chosen`, (N,) bool, is true."""
        return Cell(self.scores[:, chosen], self.label[chosen], self.unit[chosen])

    def class_sizes(self) -> NDArray[np.int64]:
        """Count the normal and the anomalous images of each unit, (U, 2)."""
        numbers = np.unique(self.unit, return_inverse=True)[1]
        normal = np.bincount(numbers, ~self.label)
        anomalous = np.bincount(numbers, self.label)
        return np.stack([normal, anomalous], axis=1).astype(np.int64)


@dataclass(frozen=True)
class Rules:
    """What a team may be."""

    smallest: int = 3
    """Least number of members."""
    largest: int = 5
    """Largest number of members."""
    metric: str = "image_auroc"
    """One of `METRIC_NAMES`, of which the mean over the categories counts."""
    costs: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    """(L, K) what each candidate costs, per limit."""
    limits: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(L,) what a team may cost."""


@dataclass(frozen=True)
class Honest:
    """Values on images that did not choose, means over folds."""

    team: float
    """Of the teams chosen without the fold."""
    single: float
    """Of the best single models chosen without the fold."""
    gain: float
    """Their difference."""
    error: float
    """Standard error of the gain, with the correction of C. Nadeau and Y. Bengio, "Inference for
    the Generalization Error", 2003, for training sets that overlap."""
    folds: int
    """Number of folds."""
    repeats: int
    """How often the images were divided into folds."""
    chosen: NDArray[np.float64]
    """(K,) share of the folds without which a candidate was chosen into the team."""


@dataclass(frozen=True)
class Selection:
    """A team and the best single model, chosen with all test images."""

    team: tuple[int, ...]
    """Candidates in the order of choice."""
    single: int
    """The candidate that is best alone."""
    team_value: float
    """Of the team on the images that chose it: optimistic."""
    single_value: float
    """Of the single model on the images that chose it: optimistic, though less."""
    honest: Honest
    """The cross-validated values."""


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
            Sentence.of("team within limits", smallest=rules.smallest, number=len(cells[0].scores))
        )

    single = best_single(cells, rules.metric)
    return Selection(
        team=team,
        single=single,
        team_value=team_value(cells, team, rules.metric),
        single_value=float(values_of(cells, rules.metric)[single]),
        honest=cross_validate(cells, rules, seed),
    )


def _check(cells: Sequence[Cell], rules: Rules) -> None:
    """Refuse what no team can be chosen from."""
    count = len(cells[0].scores)
    if count < rules.smallest:
        raise InputError(Sentence.of("team few candidates", count=count, smallest=rules.smallest))

    for cell in cells:
        normal, anomalous = _units_by_class(cell)
        if min(normal, anomalous) < LEAST_UNITS:
            raise InputError(
                Sentence.of(
                    "team few images", normal=normal, anomalous=anomalous, least_units=LEAST_UNITS
                )
            )


def _units_by_class(cell: Cell) -> tuple[int, int]:
    """Count the units that hold a normal image, and those that hold an anomalous one."""
    normal, anomalous = (cell.class_sizes() > 0).sum(axis=0).tolist()
    return normal, anomalous


# The choice


def choose(cells: Sequence[Cell], rules: Rules, rng: np.random.Generator) -> tuple[int, ...]:
    """Choose the greedy team of the size that is best in cross-validation, of equal ones the smallest."""
    path = greedy(cells, rules)
    sizes = range(rules.smallest, len(path) + 1)
    if len(sizes) < 2:
        return tuple(path)

    # The path with all images is taken; those without a fold only say how far to follow it.
    values = []
    for training, rest in _splits(cells, SIZE_REPEATS, rng):
        inner = greedy(training, rules)
        values.append([team_value(rest, inner[:size], rules.metric) for size in sizes])
    mean = np.round(np.mean(values, axis=0), _DIGITS)
    best_size = sizes[int(np.argmax(mean))]
    return tuple(path[:best_size])


def greedy(cells: Sequence[Cell], rules: Rules) -> list[int]:
    """Order candidates by choice, up to the largest team, so that the first n are the team of n.

    Each step takes the candidate with the best metric together with those before it. Among equals
    it is the one that separates the classes best, then the first.
    """
    count = len(cells[0].scores)
    totals = [np.zeros(len(cell.label)) for cell in cells]
    team: list[int] = []
    while len(team) < min(rules.largest, count):
        rows = np.flatnonzero(_affordable(team, count, rules))
        if not len(rows):
            break

        # The sum ranks images as the mean does.
        together = []
        for cell, total in zip(cells, totals, strict=True):
            together.append(replace(cell, scores=total + cell.scores[rows]))
        best = int(rows[best_single(together, rules.metric)])
        team.append(best)
        for cell, total in zip(cells, totals, strict=True):
            total += cell.scores[best]
    return team


def teams_compared(candidates: int, members: int) -> int:
    """Count the teams that a greedy choice compares at most, until it has so many members."""
    return sum(range(candidates - members + 1, candidates + 1))


def _affordable(team: Sequence[int], count: int, rules: Rules) -> NDArray[np.bool_]:
    """Tell which candidates may join, (K,).

    The cheapest ones that would then complete the smallest team must fit the limits too.
    """
    free = np.ones(count, dtype=bool)
    free[list(team)] = False
    missing = max(rules.smallest - len(team) - 1, 0)

    allowed = free.copy()
    for cost, limit in zip(rules.costs, rules.limits, strict=True):
        rest: NDArray[np.float64] | float = 0.0
        if missing:
            # Whoever is among the cheapest that would complete the team makes room for the next
            # one.
            cheapest = np.sort(cost[free])[: missing + 1]
            is_cheap = cost <= cheapest[-1]
            rest = np.where(is_cheap, cheapest.sum() - cost, cheapest[:missing].sum())
        total = cost[list(team)].sum() + cost + rest
        allowed &= total <= limit * (1 + 1e-9)
    return allowed


# What it is worth


def cross_validate(
    cells: Sequence[Cell], rules: Rules, seed: int = 0, repeats: int = REPEATS
) -> Honest:
    """Choose again without each fold, and judge the choice on that fold."""
    rng = np.random.default_rng([seed, 1])
    team_values = []
    single_values = []
    chosen = np.zeros(len(cells[0].scores))
    for training, rest in _splits(cells, repeats, rng):
        team = choose(training, rules, rng)
        single = best_single(training, rules.metric)
        chosen[list(team)] += 1
        team_values.append(team_value(rest, team, rules.metric))
        single_values.append(team_value(rest, [single], rules.metric))

    gains = np.subtract(team_values, single_values)
    folds = _fold_count(cells)
    # Nadeau and Bengio 2003: a fold is 1 / (folds - 1) of what the choice saw.
    error = np.sqrt(np.var(gains, ddof=1) * (1 / len(gains) + 1 / (folds - 1)))
    return Honest(
        team=float(np.mean(team_values)),
        single=float(np.mean(single_values)),
        gain=float(gains.mean()),
        error=float(error),
        folds=folds,
        repeats=repeats,
        chosen=chosen / len(gains),
    )


def _splits(
    cells: Sequence[Cell], repeats: int, rng: np.random.Generator
) -> Iterator[tuple[list[Cell], list[Cell]]]:
    """Give training and left-out images of each fold.

    Units stay whole, and each class of each category is spread over the folds.
    """
    folds = _fold_count(cells)
    for _ in range(repeats):
        places = [fold_of_images(cell, folds, rng) for cell in cells]
        for fold in range(folds):
            training = []
            rest = []
            for cell, place in zip(cells, places, strict=True):
                training.append(cell.images(place != fold))
                rest.append(cell.images(place == fold))
            yield training, rest


def _fold_count(cells: Sequence[Cell]) -> int:
    """Count the folds: fewer than `FOLDS` where a class has fewer units."""
    smallest = FOLDS
    for cell in cells:
        smallest = min(smallest, *_units_by_class(cell))
    return smallest


def fold_of_images(cell: Cell, folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal the images out to the folds at random, whole units, (N,).

    Each unit goes to the fold that has the least of its classes. Units with images of both classes
    come first, so that every fold has images of each class where there are as many units as folds.
    """
    sizes = cell.class_sizes()  # (U, 2)
    order = rng.permutation(len(sizes))
    has_one_class = (sizes[order] == 0).any(axis=1)
    order = order[np.argsort(has_one_class, kind="stable")]

    share = sizes / np.maximum(sizes.sum(axis=0), 1)
    filled = np.zeros((folds, 2))
    fold_of_unit = np.empty(len(sizes), dtype=np.int64)
    for unit in order:
        fold = int(np.argmin(filled @ share[unit]))
        fold_of_unit[unit] = fold
        filled[fold] += share[unit]
    return fold_of_unit[np.unique(cell.unit, return_inverse=True)[1]]


# Values of candidates and teams


def best_single(cells: Sequence[Cell], metric: str) -> int:
    """Choose the candidate that is best alone.

    Among equals it is the one that separates the classes best, then the first.
    """
    values = np.round(values_of(cells, metric), _DIGITS)
    separations = np.mean(list(map(_separation, cells)), axis=0)
    return max(range(len(values)), key=lambda i: (values[i], separations[i], -i))


def values_of(cells: Sequence[Cell], metric: str) -> NDArray[np.float64]:
    """Compute the metric of each candidate alone, mean over the categories, (K,)."""
    return np.mean([_metric(cell, metric) for cell in cells], axis=0)


def team_value(cells: Sequence[Cell], team: Sequence[int], metric: str) -> float:
    """Compute the metric of the mean score of a team, mean over the categories."""
    together = []
    for cell in cells:
        mean = cell.scores[list(team)].mean(0, keepdims=True)  # (1, N)
        together.append(replace(cell, scores=mean))
    return float(values_of(together, metric)[0])


def _metric(cell: Cell, metric: str) -> NDArray[np.float64]:
    """Compute a metric of each candidate, (K,)."""
    # What is asked for most is computed of all at once.
    if metric == "image_auroc":
        return auroc_of_rows(cell.scores, cell.label)
    compute = METRICS[metric].compute
    return np.array([compute(curve(row, cell.label)) for row in cell.scores], dtype=np.float64)


def _separation(cell: Cell) -> NDArray[np.float64]:
    """Divide the difference of the class means by the pooled deviation, (K,).

    It is 0 where scores do not vary at all.
    """
    anomalous = cell.scores[:, cell.label]
    normal = cell.scores[:, ~cell.label]
    freedom = max(cell.scores.shape[1] - 2, 1)
    squares = anomalous.var(1) * anomalous.shape[1] + normal.var(1) * normal.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (anomalous.mean(1) - normal.mean(1)) / np.sqrt(squares / freedom)
    return np.nan_to_num(apart)

"""Which of several models is best on test images, and how sure that is.

A model is the mean over its seeds. Two answers are given. *How often does each win* where the test
images are drawn again, with replacement within their class? *Which can be told apart* by the paired
test of `adray.results.image_statistics`, adjusted for all pairs? The first is easy to read, the
second decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adray.results.image_statistics import (
    ERROR,
    auroc_influence,
    draw_counts,
    enough_images,
    holm,
    pairwise_differences,
    weighted_aurocs,
)

DRAWS = 1000
"""How often the test images are drawn: a share of wins is known to 3 points of a hundred."""

Floats = NDArray[np.float64]


class Figure(Protocol):
    """A figure of one trial on N test images, more of which is better."""

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Give the anomalous images, (N,) true for each."""

    def value(self) -> float:
        """Compute it on all images."""

    def influence(self) -> Floats:
        """Compute what each image adds to its error, (N,), as `auroc_influence` does."""

    def of_draws(self, weights: NDArray) -> Floats:
        """Compute it where images count by (draws, N) weights, (draws,)."""


@dataclass(frozen=True)
class RankFigure:
    """Image AUROC."""

    positive: NDArray[np.bool_]
    """(N,) true for anomalous images, some of each class."""
    scores: Floats
    """(N,) higher is more anomalous."""

    def value(self) -> float:
        """Compute it on all images."""
        return float(self.of_draws(np.ones((1, len(self.scores)), dtype=np.int64))[0])

    def influence(self) -> Floats:
        """Compute what each image adds to its error, (N,)."""
        return auroc_influence(self.scores[None], self.positive)[1][0]

    def of_draws(self, weights: NDArray) -> Floats:
        """Compute it where images count by (draws, N) weights, (draws,)."""
        anomalous = self.positive
        return weighted_aurocs(
            self.scores[anomalous],
            self.scores[~anomalous],
            weights[:, anomalous],
            weights[:, ~anomalous],
        )


@dataclass(frozen=True)
class RateFigure:
    """A weighted sum of two rates: of anomalous images that are hit, and of normal ones."""

    positive: NDArray[np.bool_]
    """(N,) true for anomalous images, some of each class that counts."""
    hit: NDArray[np.bool_]
    """(N,) the images that the rates count."""
    of_anomalous: float
    """Factor of the rate of anomalous images."""
    of_normal: float
    """Factor of the rate of normal images."""

    def value(self) -> float:
        """Compute it on all images."""
        return float(self.of_draws(np.ones((1, len(self.hit)), dtype=np.int64))[0])

    def influence(self) -> Floats:
        """Compute what each image adds to its error, (N,)."""
        found = np.empty(len(self.hit))
        for chosen, factor in self._classes():
            hit = self.hit[chosen].astype(np.float64)
            count = len(hit)
            found[chosen] = factor * (hit - hit.mean()) / np.sqrt(count * (count - 1))
        return found

    def of_draws(self, weights: NDArray) -> Floats:
        """Compute it where images count by (draws, N) weights, (draws,)."""
        total = np.zeros(len(weights))
        for chosen, factor in self._classes():
            if factor:
                of_class = weights[:, chosen]
                with np.errstate(invalid="ignore"):
                    total += factor * (of_class @ self.hit[chosen]) / of_class.sum(1)
        return total

    def _classes(self) -> tuple[tuple[NDArray[np.bool_], float], ...]:
        """Give the images of each class, (N,) bool, and the factor of its rate."""
        return (self.positive, self.of_anomalous), (~self.positive, self.of_normal)


@dataclass(frozen=True)
class WorstFigure:
    """The least of several figures of the same images, such as under several conditions."""

    figures: tuple[Figure, ...]
    """At least one."""

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Give the anomalous images, (N,) true for each."""
        return self.figures[0].positive

    @cached_property
    def worst(self) -> int:
        """Give the number of the figure with the lowest value."""
        return int(np.argmin([figure.value() for figure in self.figures]))

    def value(self) -> float:
        """Compute it on all images."""
        return self.figures[self.worst].value()

    def influence(self) -> Floats:
        """Compute what each image adds to its error, (N,): that of the figure which is lowest."""
        return self.figures[self.worst].influence()

    def of_draws(self, weights: NDArray) -> Floats:
        """Compute it where images count by (draws, N) weights, (draws,)."""
        return np.min([figure.of_draws(weights) for figure in self.figures], axis=0)


@dataclass(frozen=True)
class Judged:
    """One trial, and by which images it is judged."""

    images: tuple[str, ...]
    """N names, the same for the same image in other trials."""
    figure: Figure
    """Of these images."""

    @cached_property
    def value(self) -> float:
        """Compute the figure once, more is better."""
        return self.figure.value()


@dataclass(frozen=True)
class Contest:
    """What test images say of K models."""

    values: Floats
    """(K,) means over seeds of the figure, more is better."""
    leader: int
    """Number of the model with the highest one."""
    wins: Floats
    """(K,) part of the draws in which a model is best, ties shared; NaN for too few images, and
    without draws."""
    p_values: Floats
    """(K,) of the hypothesis that a model is as good as the leader, adjusted for all pairs; 1 for
    the leader."""
    images_factor: Floats
    """(K,) how many times as many test images would tell a model from the leader, if what was found
    were the truth; NaN where that is not known."""

    @property
    def is_tied(self) -> NDArray[np.bool_]:
        """Tell which models cannot be told from the leader, itself included, (K,)."""
        return self.p_values >= ERROR


def hold_contest(models: Sequence[Sequence[Judged]], draws: int = DRAWS) -> Contest:
    """Compare models on their test images.

    Args:
        models: K of them, each with its trials, one per seed; seeds may have other images.
        draws: how often the images are drawn.
    """
    values = np.array(list(map(_mean_value, models)))
    leader = int(np.argmax(values))
    if not all(map(_has_enough, chain.from_iterable(models))):
        unknown = np.full(len(models), np.nan)
        return Contest(values, leader, unknown, np.ones(len(models)), unknown)

    together = _together(models)
    tests = _tests_of(leader, values, _influences(models, together), together.positive)
    return Contest(
        values=values,
        leader=leader,
        wins=_win_shares(models, together, draws),
        p_values=tests.p_values,
        images_factor=tests.images_factor,
    )


def _mean_value(trials: Sequence[Judged]) -> float:
    """Average the figure over seeds."""
    total = 0.0
    for trial in trials:
        total += trial.value
    return total / len(trials)


def _has_enough(trial: Judged) -> bool:
    """Tell whether a trial has so many images that their spread is known."""
    return enough_images(trial.figure.positive)


@dataclass(frozen=True)
class _Together:
    """The images of all trials, U of them."""

    place: dict[str, int]
    """Number of each image by its name."""
    positive: NDArray[np.bool_]
    """(U,) true for anomalous."""

    def places(self, images: tuple[str, ...]) -> NDArray[np.int64]:
        """Give the numbers of some images."""
        return np.fromiter(map(self.place.__getitem__, images), np.int64, len(images))


def _together(models: Sequence[Sequence[Judged]]) -> _Together:
    """Number the images of all trials."""
    labels: dict[str, bool] = {}
    seen = set()
    for trials in models:
        for trial in trials:
            # Most trials have the same images.
            if trial.images not in seen:
                seen.add(trial.images)
                labels.update(zip(trial.images, trial.figure.positive.tolist(), strict=True))
    place = dict(zip(labels, range(len(labels)), strict=True))
    return _Together(place, np.array(list(labels.values()), dtype=bool))


# How often each wins


def _win_shares(models: Sequence[Sequence[Judged]], together: _Together, draws: int) -> Floats:
    """Count in which part of the draws each model is best, (K,)."""
    if not draws:
        return np.full(len(models), np.nan)

    rng = np.random.default_rng(0)
    positive = together.positive
    weights = np.zeros((draws, len(positive)), dtype=np.int32)
    weights[:, positive] = draw_counts(draws, int(positive.sum()), rng)
    weights[:, ~positive] = draw_counts(draws, int((~positive).sum()), rng)

    # Most trials have the same images, of which one copy serves all.
    of_images: dict[tuple[str, ...], NDArray] = {}
    figures = np.zeros((len(models), draws))
    for number, trials in enumerate(models):
        for trial in trials:
            if trial.images not in of_images:
                of_images[trial.images] = weights[:, together.places(trial.images)]
            figures[number] += trial.figure.of_draws(of_images[trial.images]) / len(trials)

    # A draw without any image of a class says nothing.
    figures = np.round(figures[:, np.isfinite(figures).all(0)], 12)
    if not figures.size:
        return np.full(len(models), np.nan)
    best = figures == figures.max(0)
    return (best / best.sum(0)).mean(1)


# Which can be told apart


@dataclass(frozen=True)
class _Tests:
    """Each of K models against the leader."""

    p_values: Floats
    """As `Contest.p_values`."""
    images_factor: Floats
    """As `Contest.images_factor`."""


def _influences(models: Sequence[Sequence[Judged]], together: _Together) -> Floats:
    """Compute what each image adds to the error of each model's mean over seeds, (K, U)."""
    found = np.zeros((len(models), len(together.positive)))
    for number, trials in enumerate(models):
        for trial in trials:
            places = together.places(trial.images)
            np.add.at(found[number], places, trial.figure.influence() / len(trials))
    return found


def _tests_of(
    leader: int, values: Floats, influence: Floats, positive: NDArray[np.bool_]
) -> _Tests:
    """Test all pairs, and give those of the leader."""
    count = len(values)
    p_values = np.ones(count)
    factors = np.full(count, np.nan)
    if count == 1:
        return _Tests(p_values, factors)

    # Images of both classes vary independently.
    of_anomalous = influence[:, positive]
    of_normal = influence[:, ~positive]
    covariances = np.stack([of_anomalous @ of_anomalous.T, of_normal @ of_normal.T])
    counts = np.array([positive.sum(), (~positive).sum()])
    tests = pairwise_differences(values, covariances, counts)
    adjusted = holm(np.array(list(map(attrgetter("p_value"), tests))))

    # All pairs are adjusted together, since the leader is the best of all.
    for number, (i, j) in enumerate(zip(*np.triu_indices(count, 1), strict=True)):
        if leader in (i, j):
            other = j if i == leader else i
            p_values[other] = adjusted[number]
            if tests[number].difference:
                # A difference is told apart where it is twice its error, which falls with the root.
                ratio = 2 * tests[number].standard_error / tests[number].difference
                factors[other] = ratio**2
    return _Tests(p_values, factors)

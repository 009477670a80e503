"""What corruptions and shifts do to trials: loss of AUROC, false alarms, misses, and the ranking.

All of it is computed of stored scores. Verdicts go by the threshold of the trial's promise, which
stays as it was: a line does not know that its lamp has aged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from adray.conditions import KINDS, SEVERITIES, Corruption, corruptions_of
from adray.results.contest import RankFigure
from adray.results.corrupted_scores import CorruptedScores, read_corrupted, stored_corruptions
from adray.results.image_statistics import LEVEL, draw_counts
from adray.results.leaderboard import trial_row
from adray.results.store import TrialRecord, done_of, tested_of
from adray.results.trial_files import JudgedImages, read_judged_images, read_test_groups
from adray.thresholds import PROMISE, rate_ends

PLAIN_SEVERITY = 0
"""Severity of the images as they are."""
DRAWS = 400
"""Times that the test images are drawn again, for the interval of a rank correlation."""
_MOST_GROUPS = 30
"""More groups than this are single objects, and no shifts."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StressFigure:
    """What a trial does under one condition of the test."""

    condition: str
    """Its name, the same in all languages."""
    kind: str
    """Kind of the corruption, ``plain`` for the images as they are, ``group`` for a shift."""
    severity: int | None
    """Of the corruption, 0 for the images as they are; None for a shift."""
    normals: int
    """Normal images."""
    defects: int
    """Defective images, without those whose defect was moved out of the image."""
    gone: int
    """Defective images whose defect was moved out of the image."""
    image_auroc: float | None
    """Of these images; None where there are none of a class."""
    drop: float | None
    """That of the same images as they are less this one; of a shift that of all test images."""
    alarms: int | None
    """Normal images above the threshold of the promise; None without one."""
    misses: int | None
    """Defective images that are not above it; None without one."""
    low: float | None
    """Rate of false alarms that is exceeded with 95 % confidence (Clopper-Pearson)."""
    high: float | None
    """Rate that is not exceeded with 95 % confidence."""
    is_broken: bool | None
    """Whether more rings than the promise allows, with 95 % confidence; None without a promise."""

    @property
    def alarm_rate(self) -> float | None:
        """Give the part of the normal images that rings, None where that is not known."""
        return None if self.alarms is None or not self.normals else self.alarms / self.normals

    @property
    def miss_rate(self) -> float | None:
        """Give the part of the defective images that passes, None where that is not known."""
        return None if self.misses is None or not self.defects else self.misses / self.defects


@dataclass(frozen=True)
class TrialStress:
    """A trial under all conditions of the test that it was scored under."""

    record: TrialRecord
    """The trial."""
    promised: float | None
    """Part of new normals that may be reported; None where nothing is promised."""
    plain: StressFigure
    """The images as they are."""
    figures: tuple[StressFigure, ...]
    """By kind and severity, shifts last."""

    def breaks(self) -> dict[str, int | None]:
        """Give for each kind the least severity at which the promise is broken, None for none.

        0 is the severity of the images as they are.
        """
        found: dict[str, int | None] = {}
        for figure in self.figures:
            if figure.severity is None:
                continue
            found.setdefault(figure.kind, PLAIN_SEVERITY if self.plain.is_broken else None)
            if figure.is_broken and found[figure.kind] is None:
                found[figure.kind] = figure.severity
        return found

    @property
    def worst(self) -> StressFigure | None:
        """Give the condition with the lowest image AUROC, None where there is none."""
        known = [figure for figure in self.figures if figure.image_auroc is not None]
        return min(known, key=lambda figure: figure.image_auroc or 0.0, default=None)


# One trial


def trial_stress(record: TrialRecord) -> TrialStress | None:
    """Compute what conditions of the test do to a trial.

    Returns:
        None for a trial that was scored under none, is judged by drawn defects, or whose scores
        cannot be read.
    """
    if record.result is None or record.is_drawn:
        return None
    under = _corrupted_of(record)
    groups = read_test_groups(record.folder)
    if not under and not groups:
        return None
    images = read_judged_images(record.folder, is_drawn=False)
    if images is None:
        return None

    threshold = record.result.get("thresholds", {}).get(PROMISE, {})
    judge = _Judge(threshold.get("value"), threshold.get("promised"))
    everything = np.ones(len(images.scores), dtype=bool)
    plain = judge.figure("plain", "plain", PLAIN_SEVERITY, images, everything, None)
    figures = []
    for corruption, scores in under.items():
        if scores.paths == images.paths:
            figures.append(judge.corrupted(corruption, scores, images))
    figures += _shifts(judge, images, groups, plain)
    if not figures:
        return None
    return TrialStress(record, judge.promised, plain, tuple(figures))


def _corrupted_of(record: TrialRecord) -> dict[Corruption, CorruptedScores]:
    """Read the scores of all corruptions that a trial has."""
    found = {}
    for corruption in stored_corruptions(record.folder):
        scores = read_corrupted(record, corruption)
        if scores is not None:
            found[corruption] = scores
    return found


def _shifts(
    judge: _Judge, images: JudgedImages, groups: Sequence[str], plain: StressFigure
) -> list[StressFigure]:
    """Judge each group of the test images by itself, such as a light or a view."""
    found = []
    for name, inside in _groups(images, groups).items():
        found.append(judge.figure(name, "group", None, images, inside, plain.image_auroc))
    return found


def _groups(images: JudgedImages, groups: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Tell which of N images each group holds, (N,) each; none where they are single objects."""
    names = sorted(set(groups) - {""})
    if len(groups) != len(images.scores) or not 1 < len(names) <= _MOST_GROUPS:
        return {}
    of_images = np.array(groups, dtype=object)
    return {f"group={name}": of_images == name for name in names}


@dataclass(frozen=True)
class _Judge:
    """What a trial's verdicts go by."""

    threshold: float | None
    """An image is anomalous above it; None for none."""
    promised: float | None
    """Part of new normals that may be reported; None where nothing is promised."""

    def corrupted(
        self, corruption: Corruption, scores: CorruptedScores, images: JudgedImages
    ) -> StressFigure:
        """Judge the images under a corruption, beside the same images as they are."""
        stays = ~scores.gone
        plain = _auroc(images.positive[stays], images.scores[stays])
        return self.figure(
            corruption.label, corruption.kind, corruption.severity, scores, stays, plain
        )

    def figure(
        self,
        condition: str,
        kind: str,
        severity: int | None,
        images: JudgedImages | CorruptedScores,
        counted: NDArray[np.bool_],
        before: float | None,
    ) -> StressFigure:
        """Judge some of the images.

        Args:
            condition: name of what happened to them.
            kind: of it.
            severity: of it.
            images: N of them.
            counted: (N,) those that count.
            before: image AUROC to compare with, None for none.
        """
        positive = images.positive[counted]
        scores = images.scores[counted]
        normals = int((~positive).sum())
        auroc = _auroc(positive, scores)
        drop = None if auroc is None or before is None else before - auroc

        alarms = misses = low = high = is_broken = None
        if self.threshold is not None:
            reported = scores > self.threshold
            misses = int((~reported & positive).sum())
            alarms = int((reported & ~positive).sum())
        if alarms is not None and normals:
            low, high = rate_ends(alarms, normals)
            is_broken = None if self.promised is None else low > self.promised
        return StressFigure(
            condition=condition,
            kind=kind,
            severity=severity,
            normals=normals,
            defects=len(positive) - normals,
            gone=int((~counted & images.positive).sum()) if severity is not None else 0,
            image_auroc=auroc,
            drop=drop,
            alarms=alarms,
            misses=misses,
            low=low,
            high=high,
            is_broken=is_broken,
        )


def _auroc(positive: NDArray[np.bool_], scores: Floats) -> float | None:
    """Compute the image AUROC, None where there are no images of a class."""
    if not positive.any() or positive.all():
        return None
    return RankFigure(positive, scores).value()


# Several models


@dataclass(frozen=True)
class ModelUnder:
    """What a model does under a condition, over the cells that all models have."""

    configuration: str
    """Name, with its setting where there are several."""
    condition: str
    """Its name."""
    kind: str
    """Of the condition."""
    severity: int | None
    """Of the condition."""
    image_auroc: float
    """Mean over seeds, then over cells."""
    drop: float
    """Mean of the loss of image AUROC likewise."""
    alarms: float | None
    """Mean part of the normal images that rings; None without a threshold."""
    misses: float | None
    """Mean part of the defective images that passes; None without a threshold."""
    broken: int
    """Cells in which the promise is broken with 95 % confidence, in any seed."""
    gone: int
    """Most images of a cell whose defect was moved out of them."""


@dataclass(frozen=True)
class RankUnder:
    """What a condition does to the ranking."""

    condition: str
    """Its name."""
    correlation: float
    """Rank correlation (Spearman) of the models with the images as they are, over `models`."""
    low: float
    """Lower end of its 95 % interval, over draws of the test images."""
    high: float
    """Upper end."""
    best: str
    """The model with the highest mean under the condition."""
    plain_best: str
    """The model with the highest mean on the images as they are."""
    is_sure: bool
    """Whether the best one here is better than the best one there, for more than chance."""


@dataclass(frozen=True)
class Robustness:
    """Several models under the conditions of the test that all of them have."""

    cells: tuple[str, ...]
    """Data set and category of the cells that all models have."""
    conditions: tuple[str, ...]
    """Names of the conditions, in their order."""
    models: tuple[ModelUnder, ...]
    """By model and condition."""
    plain: Mapping[str, float]
    """Mean image AUROC of each model on the images as they are."""
    ranks: tuple[RankUnder, ...]
    """By condition; none for a single model."""
    safest: str
    """The model whose worst condition is best."""
    safest_worst: float
    """Its mean image AUROC there."""
    safest_where: str
    """That condition."""
    left_out: tuple[str, ...]
    """Models that lack the cells or conditions that the others have."""


@dataclass(frozen=True)
class _Scored:
    """One trial: its images as they are, and under each condition."""

    stress: TrialStress
    """Its figures."""
    images: JudgedImages
    """The images as they are."""
    under: Mapping[str, CorruptedScores]
    """By the name of the condition."""


def robustness_of(records: Iterable[TrialRecord]) -> Robustness | None:
    """Compare models under the corruptions that all of them were scored under.

    Args:
        records: trials of the plain case of training, that count.

    Returns:
        None where no trial was scored under any.
    """
    return _compared(_scored_of(records, _corruptions_of_trial))


def shifts_of(records: Iterable[TrialRecord]) -> Robustness | None:
    """Compare models on each group of the test images, such as a light or a view.

    Args:
        records: trials of the plain case of training, that count.

    Returns:
        None where there are no groups. What `StressFigure.drop` says of them is against all test
        images.
    """
    return _compared(_scored_of(records, _groups_of_trial))


def _compared(scored: Mapping[str, _ByCell]) -> Robustness | None:
    """Compare models under the conditions that they have in common, None where there are none."""
    models, cells, conditions = _common(scored)
    if not conditions:
        return None

    figures = []
    for name in models:
        for condition in conditions:
            figures.append(_model_under(name, condition, [scored[name][cell] for cell in cells]))
    plain = {name: _mean_plain([scored[name][cell] for cell in cells]) for name in models}
    worst = {name: _worst_of(name, figures) for name in models}
    safest = max(models, key=lambda name: (worst[name].image_auroc, plain[name]))
    return Robustness(
        cells=tuple(cells),
        conditions=tuple(conditions),
        models=tuple(figures),
        plain=plain,
        ranks=tuple(_ranks(models, cells, conditions, scored)),
        safest=safest,
        safest_worst=worst[safest].image_auroc,
        safest_where=worst[safest].condition,
        left_out=tuple(sorted(set(scored) - set(models))),
    )


_ByCell = dict[str, list[_Scored]]


_Under = Mapping[str, CorruptedScores]


def _corruptions_of_trial(record: TrialRecord) -> _Under:
    """Read the scores of a trial under each corruption, by its name."""
    return {one.label: scores for one, scores in _corrupted_of(record).items()}


def _groups_of_trial(record: TrialRecord) -> _Under:
    """Give the scores of each group of a trial's test images, where all others count for nothing."""
    # Most trials have none, and their scores need not be opened.
    if not (record.result or {}).get("per_group"):
        return {}
    groups = read_test_groups(record.folder)
    images = read_judged_images(record.folder, is_drawn=False)
    if images is None:
        return {}
    found = {}
    for name, inside in _groups(images, groups).items():
        found[name] = CorruptedScores(images.paths, images.positive, images.scores, ~inside)
    return found


def _scored_of(
    records: Iterable[TrialRecord], read: Callable[[TrialRecord], _Under]
) -> dict[str, _ByCell]:
    """Read the trials that have conditions, by model and cell, a list of seeds each."""
    found: dict[str, _ByCell] = defaultdict(lambda: defaultdict(list))
    for record in tested_of(done_of(list(records))):
        under = read(record)
        stress = trial_stress(record) if under else None
        images = read_judged_images(record.folder, is_drawn=False) if under else None
        if stress is None or images is None or stress.plain.image_auroc is None:
            continue
        row = trial_row(record)
        cell = f"{row.dataset}/{row.category}"
        found[row.name][cell].append(_Scored(stress, images, under))
    return found


def _conditions_of(of_model: _ByCell) -> set[str]:
    """List the conditions with an AUROC in every trial of a model."""
    sets = []
    for trials in of_model.values():
        for trial in trials:
            known = [figure.condition for figure in trial.stress.figures if figure.drop is not None]
            sets.append(set(known) & set(trial.under))
    return set.intersection(*sets) if sets else set()


def _common(scored: Mapping[str, _ByCell]) -> tuple[list[str], list[str], list[str]]:
    """Choose models, and the cells and conditions that all of these have.

    A model that has none of what most have would leave nothing to compare, and is left out.
    """
    models: list[str] = []
    cells: set[str] = set()
    conditions: set[str] = set()
    # Those with most cells and conditions first, so that one with few costs the others nothing.
    order = sorted(scored, key=lambda n: (-len(scored[n]), -len(_conditions_of(scored[n])), n))
    for name in order:
        its_conditions = _conditions_of(scored[name])
        joint_cells = cells & set(scored[name]) if models else set(scored[name])
        joint = conditions & its_conditions if models else its_conditions
        if 2 * len(joint_cells) >= len(cells) and 2 * len(joint) >= len(conditions) and joint:
            models.append(name)
            cells = joint_cells
            conditions = joint
    everything = [one.label for one in corruptions_of(KINDS, SEVERITIES)]
    ordered = [name for name in everything if name in conditions]
    return models, sorted(cells), [*ordered, *sorted(conditions - set(ordered))]


def _mean_plain(by_cell: Sequence[Sequence[_Scored]]) -> float:
    """Average the image AUROC over seeds, then over cells."""
    plain = []
    for trials in by_cell:
        plain.append([trial.stress.plain for trial in trials])
    mean = _mean_of(plain, attrgetter("image_auroc"))
    assert mean is not None, "trials without an AUROC are left out"
    return mean


def _model_under(name: str, condition: str, by_cell: Sequence[Sequence[_Scored]]) -> ModelUnder:
    """Average what a model does under a condition over seeds, then over cells."""
    cells = []
    for trials in by_cell:
        of_cell = []
        for trial in trials:
            of_cell += [one for one in trial.stress.figures if one.condition == condition]
        cells.append(of_cell)

    everywhere = list(chain.from_iterable(cells))
    auroc = _mean_of(cells, attrgetter("image_auroc"))
    drop = _mean_of(cells, attrgetter("drop"))
    assert auroc is not None, "conditions without an AUROC are left out"
    assert drop is not None, "conditions without an AUROC are left out"
    return ModelUnder(
        configuration=name,
        condition=condition,
        kind=everywhere[0].kind,
        severity=everywhere[0].severity,
        image_auroc=auroc,
        drop=drop,
        alarms=_mean_of(cells, attrgetter("alarm_rate")),
        misses=_mean_of(cells, attrgetter("miss_rate")),
        broken=sum(any(figure.is_broken for figure in of_cell) for of_cell in cells),
        gone=max(figure.gone for figure in everywhere),
    )


def _mean_of(
    cells: Sequence[Sequence[StressFigure]], value_of: Callable[[StressFigure], float | None]
) -> float | None:
    """Average a value over seeds, then over cells. None where one is not known."""
    means = []
    for figures in cells:
        values = list(map(value_of, figures))
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        means.append(sum(known) / len(known))
    return float(np.mean(means))


def _worst_of(name: str, figures: Iterable[ModelUnder]) -> ModelUnder:
    """Find the condition in which a model's mean is lowest."""
    own = [figure for figure in figures if figure.configuration == name]
    return min(own, key=lambda figure: figure.image_auroc)


# The ranking under each condition


def _ranks(
    models: Sequence[str],
    cells: Sequence[str],
    conditions: Sequence[str],
    scored: Mapping[str, _ByCell],
) -> list[RankUnder]:
    """Compare the ranking under each condition with that of the images as they are."""
    if len(models) < 2:
        return []
    weights = {cell: _weights(scored[models[0]][cell][0].images) for cell in cells}
    plain = _drawn(models, cells, scored, weights, None)
    return [
        _rank_under(models, condition, plain, _drawn(models, cells, scored, weights, condition))
        for condition in conditions
    ]


def _weights(images: JudgedImages) -> NDArray[np.int64]:
    """Draw the images of a cell again within their class, (1 + DRAWS, N); the first are they all."""
    rng = np.random.default_rng(0)
    weights = np.ones((1 + DRAWS, len(images.positive)), dtype=np.int64)
    for chosen in (images.positive, ~images.positive):
        weights[1:, chosen] = draw_counts(DRAWS, int(chosen.sum()), rng)
    return weights


def _drawn(
    models: Sequence[str],
    cells: Sequence[str],
    scored: Mapping[str, _ByCell],
    weights: Mapping[str, NDArray[np.int64]],
    condition: str | None,
) -> Floats:
    """Compute each model's mean AUROC over seeds and cells in each draw, (K, 1 + DRAWS)."""
    found = np.zeros((len(models), 1 + DRAWS))
    for number, name in enumerate(models):
        for cell in cells:
            trials = scored[name][cell]
            for trial in trials:
                drawn = _aurocs_of(trial, condition, weights[cell])
                found[number] += drawn / (len(trials) * len(cells))
    return found


def _aurocs_of(trial: _Scored, condition: str | None, weights: NDArray[np.int64]) -> Floats:
    """Compute the AUROC of a trial in each draw, (1 + DRAWS,)."""
    images: JudgedImages | CorruptedScores = trial.images
    counted = np.ones(len(trial.images.scores), dtype=bool)
    if condition is not None:
        images = trial.under[condition]
        counted = ~trial.under[condition].gone
    # A seed of its own split has other images, which are drawn for themselves.
    if weights.shape[1] != len(counted):
        weights = _weights(trial.images)
    figure = RankFigure(images.positive[counted], images.scores[counted])
    return figure.of_draws(weights[:, counted])


def _rank_under(models: Sequence[str], condition: str, plain: Floats, under: Floats) -> RankUnder:
    """Compare two rankings of K models, (K, 1 + DRAWS) each, the first column of which is all."""
    known = np.isfinite(plain).all(0) & np.isfinite(under).all(0)
    correlations = _spearman(plain[:, known], under[:, known])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(correlations[1:], [tail, 1 - tail])
    best = int(np.argmax(under[:, 0]))
    plain_best = int(np.argmax(plain[:, 0]))
    gains = (under[best] - under[plain_best])[known][1:]
    return RankUnder(
        condition=condition,
        correlation=float(correlations[0]),
        low=float(low),
        high=float(high),
        best=models[best],
        plain_best=models[plain_best],
        is_sure=best != plain_best and float(np.quantile(gains, tail)) > 0,
    )


def _spearman(first: Floats, second: Floats) -> Floats:
    """Correlate the ranks of two tables (K, D) column by column, (D,).

    A column in which all values of a table are equal has no ranking, and 0 for a correlation.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(np.round(table, 12), axis=0) for table in (first, second)]
    centered = [table - table.mean(0) for table in ranks]
    norms = np.sqrt((centered[0] ** 2).sum(0) * (centered[1] ** 2).sum(0))
    products = (centered[0] * centered[1]).sum(0)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)

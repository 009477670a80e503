"""Which configuration is best, with groups that do not differ for sure instead of a third digit.

Two questions, which need different data. *Does one configuration beat another on products of this
kind?* The products (categories) are the sample, see `ranking`. *Does one trained model beat another
on such images of these products?* The test images are the sample, see `ranking_on_images`, which
also works for a single product. `seed_spread` says what another seed changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adray.language.sentence import Sentence
from adray.metrics import METRICS, check_scores
from adray.results.category_statistics import (
    DIGITS,
    LEAST_CELLS,
    adjusted_p_values,
    mean_intervals,
)
from adray.results.groups import group_letters
from adray.results.image_statistics import (
    ERROR,
    auroc_influence,
    enough_images,
    holm,
    pairwise_differences,
    score_interval,
)
from adray.results.leaderboard import (
    by_setting,
    comparable,
    drawn_notes,
    is_drawn,
    repetition_of,
    trial_row,
)
from adray.results.trial_files import read_score_table

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

    from adray.results.store import TrialRecord

RANKING_COLUMNS = (
    "configuration", "mean", "low", "high", "seed_sd", "mean_rank", "coverage", "cells", "common", "group",
)  # fmt: skip
_CELL = ["dataset", "category"]
_TRIAL = ["configuration", *_CELL, "seed"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Configurations by their mean over the categories that all the compared ones finished."""

    table: pd.DataFrame
    """One row per configuration, the best first, with the columns `RANKING_COLUMNS`.

    mean: over the common categories. low, high: its 95 % interval. seed_sd: see `seed_spread`.
    mean_rank: over the common categories, 1 is best, ties share. coverage: categories finished.
    cells: of all. common: of the mean, 0 where left out. group: configurations that share a letter
    cannot be told apart with a family-wise error of 5 %, and a later letter means worse.
    """
    notes: tuple[Sentence, ...]
    """What a reader must know."""


# By categories, by images, or by what there is


def ranking(frame: pd.DataFrame, metric: str = "image_auroc") -> Ranking:
    """Rank configurations for other products of this kind, of which the categories are a sample.

    A configuration that finished too few categories would empty the common ones. So as long as
    these are fewer than half of what the median configuration finished, the one whose absence gives
    most of them back is left out. It keeps its row, without mean and group, and a note names it.

    Args:
        frame: finished trials with ``configuration``, ``dataset``, ``category``, ``seed`` and the
            metric, which may be missing; seeds of a category are averaged first.
        metric: a name of `adray.metrics.METRICS`.

    Returns:
        With intervals of the mean over *other* products, from the spread over categories, see
        `mean_intervals`. Most of that spread is shared by all configurations: overlapping intervals
        say nothing on differences, the groups do. NaN for a single category.
    """
    compared = _comparable(_cell_values(frame, metric))
    limits = (-np.inf, np.inf) if metric == "separation" else (0.0, 1.0)
    table = _ranking_table(
        compared,
        mean_intervals(compared.figures, limits),
        adjusted_p_values(compared.figures),
        seed_spread(frame, metric),
        sign=1 if METRICS[metric].higher_is_better else -1,
    )

    notes = _coverage_notes(table)
    count = len(compared.cells)
    if len(compared.names) > 1 and count < LEAST_CELLS:
        notes.append(Sentence.of("ranking few", number=count, least=LEAST_CELLS))
    return Ranking(table, tuple(notes))


def ranking_on_images(scores: pd.DataFrame) -> Ranking:
    """Rank trained models by their mean image AUROC for more images of these products.

    It answers for such images of *these* categories and for the seeds that ran, `ranking` for other
    categories. Differences are tested by DeLong's covariance of all models, which shared images
    correlate, and adjusted by Holm's method.

    Args:
        scores: test images of finished trials, one trial per configuration, category and seed:
            ``configuration``, ``dataset``, ``category``, ``seed``, ``path``, ``label`` and
            ``pred_score``. A trial with fewer than two images of a class counts as not finished.

    Returns:
        With intervals over test images.
    """
    # Every configuration keeps its row, also one whose trials have too few images.
    trials, images = _influences(scores)
    values = _cell_values(trials, "image_auroc").reindex(sorted(set(scores["configuration"])))
    compared = _comparable(values)
    parts = _class_parts(images, compared)
    spread = seed_spread(trials)
    table = _ranking_table(
        compared, _image_intervals(compared, parts), _image_p_values(compared, parts), spread
    )

    notes = _coverage_notes(table)
    if len(compared.names) > 1 and not spread:
        notes.append(Sentence.of("ranking one seed"))
    return Ranking(table, tuple(notes))


def rank_trials(done: pd.DataFrame, metric: str, records: Sequence[TrialRecord]) -> Ranking:
    """Rank over categories, or over their test images where these are too few to tell any apart.

    Each setting of a configuration stands for itself.

    Args:
        done: rows of finished trials of one condition, of `adray.results.leaderboard.table`.
        metric: a name of `adray.metrics.METRICS`; only image AUROC can be ranked by images.
        records: the same trials, whose scores are read where images decide.
    """
    compared = by_setting(comparable(done))
    # Image AUROC alone can be computed again from the stored scores, and of test images only.
    few = len(compared.groupby(_CELL)) < LEAST_CELLS
    by_images = few and metric == "image_auroc" and not is_drawn(compared).any()
    scores = _image_scores(records) if by_images else None
    ranked = ranking(compared, metric) if scores is None else ranking_on_images(scores)
    return Ranking(ranked.table, (*ranked.notes, *drawn_notes(done)))


def _image_scores(records: Sequence[TrialRecord]) -> pd.DataFrame | None:
    """Read the scores of the test images of all finished trials, one trial per cell and seed.

    Returns:
        None where a file is missing, and where no trial is finished.
    """
    import pandas as pd
    import pyarrow

    tables: dict[tuple[Any, ...], pyarrow.Table] = {}
    for record in records:
        if record.status != "done":
            continue
        scores = read_score_table(record.folder)
        if scores is None:
            return None
        row = trial_row(record)
        trial = (row.name, row.dataset, row.category, repetition_of(row))
        tables.setdefault(trial, scores.drop_columns(_CELL))
    if not tables:
        return None

    # One frame of all is made from the joined tables, which is faster than one of each.
    together = pyarrow.concat_tables(tables.values()).replace_schema_metadata(None).to_pandas()
    names = pd.DataFrame(list(tables), columns=_TRIAL)
    counts = [table.num_rows for table in tables.values()]
    repeated = names.loc[names.index.repeat(counts)].reset_index(drop=True)
    return pd.concat([repeated, together], axis=1)[together["split"] == "test"]


# What is compared, and the table of it


@dataclass(frozen=True)
class _Compared:
    """Configurations that are compared, and the categories that they have in common."""

    values: pd.DataFrame
    """Of all configurations and categories, as `_cell_values` makes it."""
    names: list[str]
    """K configurations."""
    cells: list[Any]
    """C columns of `values`; none only where there is no configuration either."""

    @property
    def figures(self) -> Floats:
        """Give the compared values, (K, C) without gaps."""
        return self.values.loc[self.names, self.cells].to_numpy(dtype=np.float64)

    @property
    def means(self) -> Floats:
        """Give the means over the common categories, (K,)."""
        return self.figures.mean(1) if self.cells else np.empty(0)


def seed_spread(frame: pd.DataFrame, metric: str = "image_auroc") -> dict[str, float]:
    """Estimate what another seed changes: the deviation over seeds, pooled over categories.

    Args:
        frame: as for `ranking`.
        metric: as for `ranking`.

    Returns:
        By configuration, only those that have a category with several seeds.
    """
    values = _seed_values(frame, metric)
    groups = values.groupby(["configuration", *_CELL])
    squares = ((values - groups.transform("mean")) ** 2).groupby("configuration").sum()
    freedom = (groups.size() - 1).groupby("configuration").sum()

    known = freedom > 0
    pooled = np.sqrt(squares[known] / freedom[known])
    return {str(name): float(value) for name, value in pooled.items()}


def _seed_values(frame: pd.DataFrame, metric: str) -> pd.Series:
    """Give the metric by configuration, data set, category and seed, finite values only."""
    import pandas as pd

    numbers = pd.to_numeric(frame[metric]).astype(np.float64)
    known = frame.assign(**{metric: numbers})[np.isfinite(numbers)]
    return known.groupby(_TRIAL)[metric].mean()


def _cell_values(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Average over seeds, a row per configuration and a column per category, NaN in the gaps."""
    means = _seed_values(frame, metric).groupby(["configuration", *_CELL]).mean()
    return means.unstack(_CELL).reindex(sorted(set(frame["configuration"])))


def _comparable(values: pd.DataFrame) -> _Compared:
    """Choose what is compared, so that a broken configuration costs nobody a category."""
    has = values.notna().to_numpy()
    coverage = has.sum(1)
    chosen = coverage > 0
    if not chosen.any():
        return _Compared(values, [], [])

    wanted = float(np.median(coverage[chosen])) / 2
    common = has[chosen].all(0)
    while common.sum() < wanted:
        # Leaving a configuration out gives back the categories that only it lacks.
        lacked_by_one = (~has[chosen]).sum(0) == 1
        gain = np.where(chosen, (~has & lacked_by_one).sum(1), -1)
        worst = max(range(len(gain)), key=lambda i: (gain[i], -coverage[i]))
        chosen[worst] = False
        common = has[chosen].all(0)
    return _Compared(values, list(values.index[chosen]), list(values.columns[common]))


def _ranking_table(
    compared: _Compared,
    intervals: Floats,
    p_adjusted: Floats,
    seed_sd: Mapping[str, float],
    sign: int = 1,
) -> pd.DataFrame:
    """Make the table of a `Ranking`.

    Args:
        compared: K configurations on C categories, and those left out.
        intervals: (K, 2) of their means.
        p_adjusted: (K * (K - 1) / 2,) of each two of them, in the order of `numpy.triu_indices`.
        seed_sd: by configuration.
        sign: -1 where less is better.
    """
    import pandas as pd

    values = compared.values
    known = pd.DataFrame(index=compared.names, dtype=np.float64)
    known["mean"] = compared.means
    known["low"] = intervals[:, 0]
    known["high"] = intervals[:, 1]
    known["mean_rank"] = _mean_ranks(compared, sign)

    table = known.reindex(values.index)
    table["seed_sd"] = pd.Series(seed_sd, dtype=np.float64)
    table["coverage"] = values.notna().sum(axis=1)
    table["cells"] = values.shape[1]
    table["common"] = np.where(table["mean"].notna(), len(compared.cells), 0)

    # The best first; those left out have no mean and come last, by what they finished.
    place = pd.DataFrame({"mean": -sign * table["mean"], "lacking": -table["coverage"]})
    place["name"] = table.index
    table = table.loc[place.sort_values(["mean", "lacking", "name"]).index]

    ranked = table.index[table["mean"].notna()]
    letters = pd.Series(_groups(compared.names, p_adjusted, ranked), dtype=object)
    table["group"] = letters.reindex(table.index, fill_value="")
    return table.rename_axis("configuration").reset_index()[list(RANKING_COLUMNS)]


def _mean_ranks(compared: _Compared, sign: int) -> Floats:
    """Average the ranks over the common categories, (K,), where 1 is best and ties share."""
    import pandas as pd

    if not compared.cells:
        return np.empty(0)
    worse = -sign * np.round(compared.figures, DIGITS)
    return pd.DataFrame(worse).rank().mean(axis=1).to_numpy()


def _groups(names: list[str], p_adjusted: Floats, ranked: pd.Index) -> dict[str, str]:
    """Give each configuration its letters.

    Args:
        names: K configurations.
        p_adjusted: of each two of them, as in `_ranking_table`.
        ranked: the same configurations, the best, who gets the first letter, first.
    """
    same = np.ones((len(names), len(names)), dtype=bool)
    i, j = np.triu_indices(len(names), 1)
    same[i, j] = p_adjusted >= ERROR
    same[j, i] = same[i, j]

    places = list(map(names.index, ranked))
    return dict(zip(ranked, group_letters(same[np.ix_(places, places)]), strict=True))


def _coverage_notes(table: pd.DataFrame) -> list[Sentence]:
    """Say which configurations were left out, and how many categories the others share."""
    notes: list[Sentence] = []
    left_out = table[table["common"] == 0]
    if len(left_out):
        parts = []
        for row in left_out.itertuples():
            parts.append(f"{row.configuration} ({row.coverage}/{row.cells})")
        notes.append(Sentence.of("ranking left out", names=", ".join(parts)))

    if len(table):
        common = table["common"].max()
        cells = table["cells"].max()
        if 0 < common < cells:
            notes.append(Sentence.of("ranking common", common=int(common), cells=int(cells)))
    return notes


# Test images as the sample


@dataclass(frozen=True)
class _ClassParts:
    """Covariances of mean AUROCs, one part per class of images of a category."""

    covariances: Floats
    """(parts, K, K), anomalous and normal in turn by category."""
    counts: NDArray[np.int64]
    """(parts,) images."""


def _influences(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute each trial's AUROC, and each image's influence on the mean over seeds."""
    import pandas as pd

    predicted = scores["pred_score"].to_numpy()
    labels = scores["label"].to_numpy()
    trials = []
    influence = np.full(len(scores), np.nan)
    for key, rows in sorted(scores.groupby(_TRIAL).indices.items()):
        values, positive = check_scores(predicted[rows], labels[rows])
        if enough_images(positive):
            auroc, of_images = auroc_influence(values[None], positive)
            trials.append((*key, float(auroc[0])))
            influence[rows] = of_images[0]

    # The mean over seeds gives each of them its part.
    images = scores[[*_TRIAL, "path", "label"]].assign(influence=influence)
    images = images.dropna(subset="influence")
    seeds = images.groupby(["configuration", *_CELL])["seed"].transform("nunique")
    images = images.assign(influence=images["influence"] / seeds)
    return pd.DataFrame(trials, columns=[*_TRIAL, "image_auroc"]), images


def _class_parts(images: pd.DataFrame, compared: _Compared) -> _ClassParts:
    """Split the covariance of the models' means into the parts of each class and category."""
    covariances = []
    counts = []
    by_cell = dict(iter(images[images["configuration"].isin(compared.names)].groupby(_CELL)))
    for cell in compared.cells:
        table = by_cell[cell].pivot_table(
            index=["label", "path"],
            columns="configuration",
            values="influence",
            aggfunc="sum",
            fill_value=0.0,
        )

        # Images of both classes vary independently: DeLong's covariance is the sum of both parts.
        for label in (1, 0):
            influence = table.loc[label][compared.names].to_numpy()  # (images, K)
            covariances.append(influence.T @ influence / len(compared.cells) ** 2)
            counts.append(len(influence))
    return _ClassParts(np.array(covariances), np.array(counts, dtype=np.int64))


def _image_p_values(compared: _Compared, parts: _ClassParts) -> Floats:
    """Test each two models, adjusted by Holm's method, in the order of `numpy.triu_indices`."""
    if len(compared.names) < 2:
        return np.empty(0)
    tests = pairwise_differences(compared.means, parts.covariances, parts.counts)
    return holm(np.array([test.p_value for test in tests]))


def _image_intervals(compared: _Compared, parts: _ClassParts) -> Floats:
    """Bound means over categories, (K, 2), by the intervals of each (G. Y. Zou, A. Donner 2008)."""
    count = len(compared.cells)
    classes = parts.counts.reshape(count, 2)
    found = []
    for k, aurocs in enumerate(compared.figures):
        # The variance on one category alone, of both classes together.
        variances = count**2 * parts.covariances[:, k, k].reshape(count, 2).sum(1)
        ends = []
        for auroc, variance, (m, n) in zip(aurocs, variances, classes, strict=True):
            ends.append(score_interval(auroc, variance, m, n))

        # Distances of the ends add up as standard errors do.
        below, above = np.sqrt(((np.array(ends) - aurocs[:, None]) ** 2).sum(0)) / count
        mean = aurocs.mean()
        found.append((mean - below, mean + above))
    return np.reshape(found, (-1, 2))

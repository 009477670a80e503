"""Trained models told apart by their test images: for few categories, or a single one, where categories cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adray.metrics import check_scores
from adray.results.statistics import (
    CELL,
    LEVEL,
    Compared,
    auroc_influence,
    cell_values,
    comparable,
    enough_images,
    holm,
    ranking_table,
    score_interval,
    seed_spread,
    welch,
)

if TYPE_CHECKING:
    import pandas as pd

_TRIAL = ["configuration", *CELL, "seed"]


def ranking_on_images(scores: pd.DataFrame) -> pd.DataFrame:
    """Trained models by their mean image AUROC, told apart by test images.

    It answers for such images of *these* categories and for the seeds that ran; `adray.results.statistics.ranking` for
    other categories. Differences are tested by DeLong's covariance of all models, which shared images correlate, and
    adjusted by Holm's method.

    Args:
        scores: test images of finished trials, one trial per configuration, category and seed: ``configuration``,
            ``dataset``, ``category``, ``seed``, ``path``, ``label`` and ``pred_score``. A trial with fewer than two
            images of a class counts as not finished.

    Returns:
        As `adray.results.statistics.ranking` does, but ``low`` and ``high`` are over test images.
    """
    trials, images = _influences(scores)
    compared = comparable(
        cell_values(trials, "image_auroc").reindex(sorted(set(scores["configuration"])))
    )
    parts = _variances(images, compared)
    means = compared.figures.mean(1) if compared.cells else np.empty(0)
    i, j = np.triu_indices(len(means), 1)
    variances = np.array([c[i, i] + c[j, j] - 2 * c[i, j] for c in parts.covariances]).clip(min=0)
    tests = welch(means[i] - means[j], variances, parts.counts, LEVEL) if len(i) else []
    p_adjusted = holm(np.array([test.p_value for test in tests]))
    spread = seed_spread(trials)["configurations"]
    table = ranking_table(compared, _intervals(compared, parts), p_adjusted, spread)
    if len(i) and not spread:
        table.attrs["notes"].append(
            "Groups hold for these trained models on such test images; what another seed would change is not known."
        )
    return table


def _influences(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """By trial its AUROC, and by image its influence on the mean over the trial's seeds."""
    import pandas as pd

    trials, influence = [], np.full(len(scores), np.nan)
    predicted, labels = scores["pred_score"].to_numpy(), scores["label"].to_numpy()
    for key, rows in sorted(scores.groupby(_TRIAL).indices.items()):
        values, positive = check_scores(predicted[rows], labels[rows])
        if enough_images(positive):
            auroc, of_images = auroc_influence(values[None], positive)
            trials.append((*key, float(auroc[0])))
            influence[rows] = of_images[0]
    together = (
        scores[[*_TRIAL, "path", "label"]].assign(influence=influence).dropna(subset="influence")
    )
    seeds = together.groupby(["configuration", *CELL])["seed"].transform("nunique")
    found = pd.DataFrame(trials, columns=[*_TRIAL, "image_auroc"])
    return found, together.assign(influence=together["influence"] / seeds)


@dataclass(frozen=True)
class _Parts:
    """Covariances of AUROCs averaged over categories, one part per class of images of a category.

    Attributes:
        covariances: (parts, K, K), anomalous and normal in turn by category.
        counts: (parts,) images.
    """

    covariances: NDArray[np.float64]
    counts: NDArray[np.int64]


def _variances(images: pd.DataFrame, compared: Compared) -> _Parts:
    covariances, counts = [], []
    by_cell = dict(list(images[images["configuration"].isin(compared.names)].groupby(CELL)))
    for cell in compared.cells:
        table = by_cell[cell].pivot_table(
            index=["label", "path"],
            columns="configuration",
            values="influence",
            aggfunc="sum",
            fill_value=0.0,
        )
        for label in (1, 0):
            influence = table.loc[label][compared.names].to_numpy()
            covariances.append(influence.T @ influence / len(compared.cells) ** 2)
            counts.append(len(influence))
    return _Parts(np.array(covariances), np.array(counts, dtype=np.int64))


def _intervals(compared: Compared, parts: _Parts) -> Sequence[tuple[float, float]]:
    """(K,) intervals of means over categories, from those of each (G. Y. Zou and A. Donner 2008)."""
    figures, count = compared.figures, len(compared.cells)
    found = []
    for k, values in enumerate(figures):
        variance = count**2 * parts.covariances[:, k, k].reshape(count, 2).sum(1)
        classes = parts.counts.reshape(count, 2)
        ends = [
            score_interval(v, s, m, n)
            for v, s, (m, n) in zip(values, variance, classes, strict=True)
        ]
        below, above = np.sqrt(((np.array(ends) - values[:, None]) ** 2).sum(0)) / count
        found.append((float(values.mean() - below), float(values.mean() + above)))
    return found

"""What conditions of training change: means of each, and curves over the number of images.

Each draw, with its seed, is one repetition: a mean over the categories, on the same images for every
configuration. So a curve is as sure as its repetitions agree.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from adray.conditions import PLAIN_LABEL, Step, step_of
from adray.results.image_statistics import LEVEL
from adray.results.leaderboard import by_setting, comparable, conditions_of, repetition_of
from adray.results.saturation import Saturation, saturation_of

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.01
"""Loss against all images up to which fewer images are enough: one point of AUROC."""
_SIZES = ("k_shot", "train_fraction")
"""Axes at whose end all images train."""
_GROUP = ["condition", "configuration", "cell", "repetition"]


@dataclass(frozen=True)
class ConditionMean:
    """What a configuration does under a condition."""

    condition: str
    """Name that all draws of it have in common."""
    configuration: str
    """Name, with its setting where there are several."""
    mean: float | None
    """Over repetitions, then over the categories that all configurations finished under it."""
    spread: float | None
    """Standard deviation of the repetitions; None for less than two."""
    repetitions: int
    """Seeds times draws."""
    cells: int
    """Categories of the mean."""
    failed: int
    """Trials that failed or were skipped."""


@dataclass(frozen=True)
class Point:
    """One condition on a curve."""

    value: float
    """On the axis; at the end of a size, the number of images that train on average, or 1."""
    condition: str
    """Its name."""
    mean: float
    """Over repetitions and the categories of the curve."""
    spread: float | None
    """Standard deviation of the repetitions; None for less than two."""
    repetitions: int
    """Seeds times draws."""
    loss: float | None
    """Mean of the plain case less this one, seed by seed; None without a plain case."""
    low: float | None
    """Lower end of its 95 % interval over repetitions; None for less than two."""
    high: float | None
    """Upper end likewise."""


@dataclass(frozen=True)
class Curve:
    """A configuration along an axis."""

    axis: str
    """``k_shot``, ``train_fraction`` or ``contamination``."""
    rest: str
    """What else its conditions have in common."""
    configuration: str
    """Name, with its setting where there are several."""
    cells: int
    """Categories that all its points have."""
    points: tuple[Point, ...]
    """Rising on the axis, the plain case among them where it belongs there."""
    enough: float | None
    """Least value from which on the loss is at most `TOLERANCE`; None where there is none."""
    surely: float | None
    """Least value from which on even the upper end of the loss's interval is."""
    saturation: Saturation | None = None
    """Where it would end with ever more images; None for other axes and for few points."""


# Means


def condition_means(frame: pd.DataFrame, metric: str) -> list[ConditionMean]:
    """Average a metric for each condition and configuration.

    Args:
        frame: of `adray.results.leaderboard.table`.
        metric: one of its columns.

    Returns:
        By condition, the plain case first, the best configuration first.
    """
    named = _named(frame)
    values = _values(named, metric)
    failed = named[named["status"].isin(["failed", "skipped"])]
    failures = failed.groupby(["condition", "configuration"]).size().to_dict()

    found = []
    for condition in conditions_of(named["condition"]):
        names = sorted(set(named[named["condition"] == condition]["configuration"]))
        tables = {name: values[condition, name] for name in names if (condition, name) in values}
        cells = _common(list(tables.values()))
        rows = []
        for name in names:
            known = tables.get(name)
            summary = _Summary.of(None if known is None else known.reindex(columns=cells))
            count = int(failures.get((condition, name), 0))
            rows.append(
                ConditionMean(
                    condition,
                    name,
                    summary.mean,
                    summary.spread,
                    summary.repetitions,
                    len(cells),
                    count,
                )
            )
        found += sorted(rows, key=lambda row: -math.inf if row.mean is None else -row.mean)
    return found


@dataclass(frozen=True)
class _Summary:
    """What the repetitions of one condition and configuration say together."""

    mean: float | None
    """Over repetitions, then over categories; None where there is none."""
    spread: float | None
    """Standard deviation of the repetitions that have all categories; None for less than two."""
    repetitions: int
    """Number of these."""

    @classmethod
    def of(cls, table: pd.DataFrame | None) -> _Summary:
        """Summarise a table of repetitions (R, C) by category, or none."""
        if table is None or table.empty:
            return cls(None, None, 0)
        whole = table.dropna().mean(axis=1)
        spread = float(whole.std(ddof=1)) if len(whole) > 1 else None
        mean = float(table.mean().mean())
        return cls(None if math.isnan(mean) else mean, spread, len(whole))


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Name configurations without their condition, and give cells and repetitions a column."""
    names = by_setting(frame.assign(condition=PLAIN_LABEL))["configuration"]
    repetitions = [repetition_of(row) for row in frame.itertuples()]
    cell = frame["dataset"] + "/" + frame["category"]
    return frame.assign(configuration=names, cell=cell, repetition=repetitions)


def _values(named: pd.DataFrame, metric: str) -> dict[tuple[str, str], pd.DataFrame]:
    """Give a table of repetitions (R, C) by category for each condition and configuration."""
    import pandas as pd

    done = comparable(named[named["status"] == "done"])
    numbers = done.assign(value=pd.to_numeric(done[metric])).dropna(subset="value")
    means = numbers.groupby(_GROUP)["value"].mean()
    tables = {}
    for key, values in means.groupby(["condition", "configuration"]):
        tables[key] = values.droplevel(["condition", "configuration"]).unstack("cell")
    return tables


def _common(tables: Sequence[pd.DataFrame]) -> list[str]:
    """List the categories that all of some tables have."""
    if not tables:
        return []
    return sorted(set.intersection(*(set(table.columns) for table in tables)))


# Curves


def learning_curves(frame: pd.DataFrame, metric: str) -> list[Curve]:
    """Follow each configuration along the numbers of its conditions.

    Args:
        frame: of `adray.results.leaderboard.table`.
        metric: one of its columns, of which more is better.

    Returns:
        Curves with at least two points, by axis and configuration.
    """
    named = _named(frame)
    values = _values(named, metric)
    sizes = _mean_sizes(named)

    lines: dict[tuple[str, str, str], dict[str, Step]] = defaultdict(dict)
    for condition, configuration in values:
        step = step_of(condition)
        if step is not None:
            lines[step.axis, step.rest, configuration][condition] = step

    curves = []
    for (axis, rest, configuration), steps in sorted(lines.items()):
        # Other conditions along the whole curve have no plain end.
        has_plain = (PLAIN_LABEL, configuration) in values
        if has_plain and (axis == "contamination" or not rest):
            size = sizes.get(configuration, math.nan)
            ends = {"k_shot": size, "train_fraction": 1.0, "contamination": 0.0}
            steps = {**steps, PLAIN_LABEL: Step(axis, ends[axis], rest)}
        if len(steps) > 1:
            tables = {name: values[name, configuration] for name in steps}
            curves.append(_curve(configuration, steps, tables))
    return [curve for curve in curves if curve.cells]


def _mean_sizes(named: pd.DataFrame) -> dict[str, float]:
    """Average the number of images that train in the plain case, by configuration."""
    plain = named[(named["condition"] == PLAIN_LABEL) & (named["status"] == "done")]
    sizes = plain.astype({"train_images": "float64"}).groupby("configuration")["train_images"]
    return sizes.mean().to_dict()


def _curve(configuration: str, steps: dict[str, Step], tables: dict[str, pd.DataFrame]) -> Curve:
    """Make the curve of a configuration from its steps and their tables of repetitions."""
    cells = _common(list(tables.values()))
    plain = tables[PLAIN_LABEL][cells] if PLAIN_LABEL in tables else None

    points = []
    for condition, step in sorted(steps.items(), key=lambda item: item[1].value):
        table = tables[condition][cells]
        summary = _Summary.of(table)
        loss = _losses(plain, table) if condition != PLAIN_LABEL else None
        points.append(
            Point(
                step.value,
                condition,
                math.nan if summary.mean is None else summary.mean,
                summary.spread,
                summary.repetitions,
                *_interval(loss),
            )
        )

    one = next(iter(steps.values()))
    enough = surely = None
    if one.axis in _SIZES and plain is not None:
        enough = _least([(point.value, point.loss) for point in points])
        surely = _least([(point.value, point.high) for point in points])
    saturation = _saturation(points) if one.axis in _SIZES else None
    return Curve(
        one.axis, one.rest, configuration, len(cells), tuple(points), enough, surely, saturation
    )


def _saturation(points: Sequence[Point]) -> Saturation | None:
    """Estimate where the points of a curve over sizes end."""
    return saturation_of(
        list(map(attrgetter("value"), points)),
        list(map(attrgetter("mean"), points)),
        list(map(attrgetter("spread"), points)),
        list(map(attrgetter("repetitions"), points)),
        TOLERANCE,
    )


def _losses(plain: pd.DataFrame | None, table: pd.DataFrame) -> np.ndarray | None:
    """Subtract each repetition's mean over categories from that of the plain case of its seed.

    Returns:
        (R,), or None without a plain case. A seed that the plain case lacks is compared with its
        mean over seeds.
    """
    if plain is None:
        return None
    of_seeds = plain.dropna().mean(axis=1)
    whole = table.dropna().mean(axis=1)
    losses = []
    for repetition, value in whole.items():
        seed = str(repetition).partition(" draw")[0]
        losses.append(of_seeds.get(seed, of_seeds.mean()) - value)
    return np.array(losses)


def _interval(losses: np.ndarray | None) -> tuple[float | None, float | None, float | None]:
    """Give the mean of some losses (R,), and its 95 % t interval where there are two or more."""
    from scipy.special import stdtrit

    if losses is None or not len(losses) or math.isnan(losses.mean()):
        return None, None, None
    mean = float(losses.mean())
    if len(losses) < 2:
        return mean, None, None
    reach = float(stdtrit(len(losses) - 1, (1 + LEVEL) / 2))
    half = reach * float(losses.std(ddof=1)) / math.sqrt(len(losses))
    return mean, mean - half, mean + half


def _least(losses: Sequence[tuple[float, float | None]]) -> float | None:
    """Find the least value from which on no loss is above `TOLERANCE`.

    Args:
        losses: value and loss of each point, rising; a point without a loss tells nothing.
    """
    least = None
    for value, loss in reversed(losses):
        if loss is None:
            continue
        if loss > TOLERANCE:
            break
        least = value
    return least

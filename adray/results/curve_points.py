"""`curves.parquet`: ROC, precision over recall, and overlap, at a few hundred thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adray.curves import Curve

CURVES_FILE = "curves.parquet"
MOST_POINTS = 200
"""Points of a curve that are kept, more are thinned out."""
_LOWEST_RATE = 1e-5  # below it false positive rates are not told apart by their logarithm


def write_curves(folder: str | Path, curves: Mapping[str, Curve]) -> None:
    """Write at most `MOST_POINTS` points of each curve.

    The columns are curve, threshold, recall, precision, false_positive_rate, and overlap where
    regions or defects were counted.
    """
    import pandas as pd

    columns = ["curve", "threshold", "recall", "precision", "false_positive_rate", "overlap"]
    frames = [pd.DataFrame(columns=columns)]
    for name, curve in curves.items():
        kept = spread_points(curve)
        tp = curve.tp[kept]
        fp = curve.fp[kept]
        overlap = np.nan if curve.overlap is None else curve.overlap[kept]
        values = {
            "curve": name,
            "threshold": curve.threshold[kept].astype(np.float64),
            "recall": tp / curve.positives,
            "precision": tp / (tp + fp),
            "false_positive_rate": fp / curve.negatives,
            "overlap": overlap,
        }
        frames.append(pd.DataFrame(values))
    types = dict.fromkeys(columns, "float64") | {"curve": "string"}
    table = pd.concat([frame.astype(types) for frame in frames])
    table.to_parquet(Path(folder) / CURVES_FILE, index=False)


def read_curves(folder: str | Path) -> dict[str, Curve]:
    """Read the curves of a trial by name, with rates in place of counts.

    What is computed of them differs a little from what the trial's own figures say, since points
    were thinned out.
    """
    import pandas as pd

    table = pd.read_parquet(Path(folder) / CURVES_FILE)
    curves = {}
    for name, points in table.groupby("curve", sort=False):
        overlap = points["overlap"].to_numpy()
        curves[str(name)] = Curve(
            points["threshold"].to_numpy(),
            points["recall"].to_numpy(),
            points["false_positive_rate"].to_numpy(),
            None if np.isnan(overlap).all() else overlap,
            exact=False,
        )
    return curves


def spread_points(curve: Curve) -> NDArray[np.int64]:
    """Choose points of a curve that lie evenly along it, the first and the last among them.

    Far left, where small limits are, the logarithm of the false positive rate spreads them.
    """
    rate = curve.fp / curve.negatives
    # All of these rise, so their sum is the way that was gone along the curve.
    way = curve.tp / curve.positives + rate + np.log10(np.maximum(rate, _LOWEST_RATE))
    if curve.overlap is not None:
        way = way + curve.overlap
    wanted = np.linspace(way[0], way[-1], MOST_POINTS)
    return np.unique([*np.searchsorted(way, wanted[:-1]).tolist(), way.size - 1])

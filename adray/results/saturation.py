"""How far a learning curve would still rise, and with how many images it is nearly there.

A curve of means over the number of images is fitted by y(k) = a - b k^-c (a power law, which curves
of image models follow well; J. Hestness et al., 2017, https://arxiv.org/abs/1712.00409). `a` is where
it saturates. The uncertainty is that of the points: each is drawn again around its mean by Student's t of
its repetitions, and the curve fitted to the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.results.image_statistics import LEVEL

LEAST_POINTS = 4
"""Points from which a curve of three numbers can be fitted and doubted."""
BEYOND = 10.0
"""Times the largest number of images beyond which nothing is said of a number that is needed."""
_DRAWS = 400
_POWERS = np.geomspace(0.1, 4.0, 300)
"""The powers c that are tried: slower ones cannot be told from no saturation."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Saturation:
    """Where a curve ends, each with its 95 % interval where the points have repetitions."""

    ceiling: float
    """Value that it would reach with ever more images."""
    ceiling_low: float | None
    """Lower end of the interval; None without repetitions."""
    ceiling_high: float | None
    """Upper end."""
    needed: float | None
    """Images from which on less than `tolerance` is missing to the ceiling; None for more than
    `BEYOND` times as many as there were."""
    needed_low: float | None
    """Lower end of the interval, None likewise and without repetitions."""
    needed_high: float | None
    """Upper end, None likewise."""
    gain: float
    """What is still missing to the ceiling with the most images that there were."""
    tolerance: float
    """For `needed`."""


def saturation_of(
    sizes: Sequence[float],
    means: Sequence[float],
    spreads: Sequence[float | None],
    repetitions: Sequence[int],
    tolerance: float,
) -> Saturation | None:
    """Estimate where a curve saturates.

    Args:
        sizes: images of each point, or parts of them, above 0.
        means: value of each point, such as a mean AUROC, at most 1.
        spreads: standard deviation of the repetitions of each point; None for less than two.
        repetitions: their number.
        tolerance: what may be missing to the ceiling, above 0.

    Returns:
        None for fewer than `LEAST_POINTS` points.
    """
    x = np.array(sizes, np.float64)
    y = np.array(means, np.float64)
    if len(x) < LEAST_POINTS or not np.isfinite(y).all() or not np.isfinite(x).all():
        return None
    fitted = _fit(x, y[None])
    most = BEYOND * float(x.max())
    needed = _needed(fitted, tolerance, float(x.min()))
    low = high = needed_low = needed_high = None

    drawn = _drawn(y, spreads, repetitions)
    if drawn is not None:
        fits = _fit(x, drawn)
        tail = (1 - LEVEL) / 2
        low, high = map(float, np.quantile(fits[0], [tail, 1 - tail]))
        counts = np.minimum(_needed(fits, tolerance, float(x.min())), 2 * most)
        needed_low, needed_high = _within(np.quantile(counts, [tail, 1 - tail]), most)
    ceiling = float(fitted[0][0])
    return Saturation(
        ceiling=ceiling,
        ceiling_low=low,
        ceiling_high=high,
        needed=_within(needed, most)[0],
        needed_low=needed_low,
        needed_high=needed_high,
        gain=max(0.0, ceiling - float(_curve(fitted, float(x.max()))[0])),
        tolerance=tolerance,
    )


def _within(counts: Floats, most: float) -> list[float | None]:
    """Give numbers of images, None for those that are too many to say anything of."""
    return [float(count) if count <= most else None for count in counts]


def _fit(x: Floats, curves: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit y = a - b x^-c by least squares, with b at least 0 and a at most 1.

    Args:
        x: (K,) of all curves.
        curves: (B, K).

    Returns:
        a, b and c, each (B,).
    """
    best = np.full(len(curves), np.inf)
    found = np.zeros((3, len(curves)))
    for power in _POWERS:
        basis = -(x**-power)  # (K,)
        centered = basis - basis.mean()
        slope = np.maximum(curves @ centered / (centered @ centered), 0.0)
        ceiling = curves.mean(1) - slope * basis.mean()

        # Where the ceiling would be above 1 it is 1, and the slope alone is fitted.
        is_above = ceiling > 1
        bounded = np.maximum((curves - 1) @ basis / (basis @ basis), 0.0)
        slope = np.where(is_above, bounded, slope)
        ceiling = np.where(is_above, 1.0, ceiling)

        rest = curves - ceiling[:, None] - slope[:, None] * basis
        error = (rest**2).sum(1)
        is_better = error < best
        best = np.where(is_better, error, best)
        found[:, is_better] = np.stack([ceiling, slope, np.full_like(slope, power)])[:, is_better]
    return found[0], found[1], found[2]


def _curve(fitted: tuple[Floats, Floats, Floats], size: float) -> Floats:
    """Give the value of each fitted curve at a size, (B,)."""
    ceiling, slope, power = fitted
    return ceiling - slope * size**-power


def _needed(fitted: tuple[Floats, Floats, Floats], tolerance: float, least: float) -> Floats:
    """Give the size from which on less than a tolerance is missing to each ceiling, (B,)."""
    _, slope, power = fitted
    # b k^-c = tolerance
    with np.errstate(over="ignore"):
        size = (slope / tolerance) ** (1 / power)
    return np.maximum(size, least)


def _drawn(
    means: Floats, spreads: Sequence[float | None], repetitions: Sequence[int]
) -> Floats | None:
    """Draw all points again, (B, K). None where no point has repetitions.

    A point without repetitions has the largest standard error of the others.
    """
    from scipy.stats import t

    rng = np.random.default_rng(0)
    errors: list[float | None] = []
    for spread, count in zip(spreads, repetitions, strict=True):
        errors.append(None if spread is None else spread / count**0.5)
    known = [error for error in errors if error is not None]
    if not known:
        return None

    columns = []
    for mean, error, count in zip(means, errors, repetitions, strict=True):
        scale = max(known) if error is None else error
        freedom = max(1, (min(repetitions) if error is None else count) - 1)
        columns.append(mean + scale * t.rvs(freedom, size=_DRAWS, random_state=rng))
    return np.stack(columns, axis=1)

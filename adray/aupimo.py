"""AUPIMO: how much of each defect is found while hardly a pixel of a normal image is reported.

J. Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low
Tolerance", BMVC 2024: for each defective image the area under its recall of pixels over the
logarithm of the false positive rate, which is counted on normal images alone.

All maps have one size, so the mean rate over normal images is that of their pixels together. The
recall at a rate is that of the lowest threshold that keeps to it, where the reference interpolates
between thresholds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adray.curves import Floats
from adray.metrics import check_finite

LOWEST_RATE = 1e-5
"""False positive rate from which the area counts."""
HIGHEST_RATE = 1e-4
"""False positive rate up to which the area counts."""
LEAST_PIXELS = round(1 / LOWEST_RATE)
"""Pixels of normal images, with fewer of which the lowest rate cannot be told from none."""


def image_aupimo(
    anomaly_map: Floats,
    mask: NDArray,
    normal: NDArray,
    inside: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Compute the AUPIMO, 0..1, of each image.

    A defective pixel is found at the rate at which normal pixels score at least as much as it does.
    So it counts for the part of the area from that rate on, and an image for the mean of its
    defective pixels.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool.
        normal: (N,) bool, true for normal images, which have `LEAST_PIXELS` together.
        inside: (N, H, W), the pixels that count, all defective ones among them; None for all.

    Returns:
        (N,) areas, NaN for images without a defective pixel.

    Raises:
        InputError: a map holds NaN or infinity.
    """
    check_finite("anomaly_map", anomaly_map)
    of_normal = anomaly_map[normal]
    if inside is not None:
        of_normal = of_normal[inside[normal]]
    highest = _highest_scores(of_normal)
    pixels = of_normal.size
    decades = math.log(HIGHEST_RATE / LOWEST_RATE)

    areas = np.full(len(mask), np.nan)
    for i in np.flatnonzero(mask.any(axis=(1, 2))):
        scores = anomaly_map[i][mask[i]]
        reported = highest.size - np.searchsorted(highest, scores)
        rate = np.maximum(reported / pixels, LOWEST_RATE)
        areas[i] = np.mean(np.maximum(np.log(HIGHEST_RATE / rate), 0)) / decades
    return areas


def _highest_scores(anomaly_map: Floats) -> Floats:
    """Give the highest scores, rising, as many as reach `HIGHEST_RATE`."""
    scores = anomaly_map.ravel()
    count = math.ceil(HIGHEST_RATE * scores.size) + 1
    return np.sort(np.partition(scores, scores.size - count)[-count:])

"""The law of alarms among new normals, where some calibration normals set the threshold."""

from __future__ import annotations

import math


def alarm_chance(alarms: int, images: int, above: int, below: int) -> float:
    """Give the chance of so many alarms or more among new normals that are as those calibrated with.

    Of n calibration normals k - 1 are at or above the threshold. Then the alarms among m new ones
    are beta-binomial (m, k, n + 1 - k) distributed.

    Args:
        alarms: at most `images`.
        images: number m of new normals.
        above: k, at least 1.
        below: n + 1 - k; with 0 every new normal may be an alarm.
    """
    if not alarms or not below:
        return 1.0

    # Sums of the law's logarithms, since its factors are far beyond what a float holds.
    logs = []
    for count in range(alarms, images + 1):
        choices = _log_beta(count + 1, images - count + 1) + math.log(images + 1)
        logs.append(_log_beta(count + above, images - count + below) - choices)
    whole = _log_beta(above, below)
    return math.fsum(math.exp(value - whole) for value in logs)


def _log_beta(first: float, second: float) -> float:
    """Give the logarithm of the beta function."""
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)

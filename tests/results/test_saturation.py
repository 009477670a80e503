"""Where a learning curve saturates, against scipy's fit and simulated repetitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from adray.results.saturation import saturation_of

SIZES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 64.0])
CEILING, SLOPE, POWER = 0.95, 0.3, 0.8
TOLERANCE = 0.01


def law(k, a=CEILING, b=SLOPE, c=POWER):
    return a - b * k**-c


def estimate(means, spreads=(None,) * 6, repetitions=(1,) * 6):
    return saturation_of(SIZES, means, spreads, repetitions, TOLERANCE)


def test_a_curve_without_noise_ends_where_its_law_does():
    found = estimate(law(SIZES))
    assert found.ceiling == pytest.approx(CEILING, abs=1e-3)
    assert found.needed == pytest.approx((SLOPE / TOLERANCE) ** (1 / POWER), rel=0.05)
    assert found.gain == pytest.approx(SLOPE * 64**-POWER, abs=1e-3)
    assert (found.ceiling_low, found.needed_high) == (None, None)


def test_the_ceiling_is_that_of_scipys_least_squares():
    rng = np.random.default_rng(5)
    for _ in range(5):
        noisy = law(SIZES) + rng.normal(0, 0.004, 6)
        bounds = ([0, 0, 0.1], [1, 5, 4])
        (ceiling, *_), _ = curve_fit(law, SIZES, noisy, p0=(0.9, 0.3, 1.0), bounds=bounds)
        assert estimate(noisy).ceiling == pytest.approx(ceiling, abs=2e-3)


def test_the_interval_holds_the_true_ceiling_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        values = law(SIZES) + rng.normal(0, 0.02, (5, 6))
        found = estimate(values.mean(0), values.std(0, ddof=1), (5,) * 6)
        inside += found.ceiling_low <= CEILING <= found.ceiling_high
    assert inside >= 52  # of 60, 95 % of which is 57


def test_a_flat_curve_needs_no_more_than_its_least_images_and_a_steep_one_more_than_can_be_said():
    flat = estimate((0.9,) * 6)
    assert (flat.needed, flat.gain) == (1.0, 0.0)
    steep = estimate(0.5 + 0.05 * np.log2(SIZES))
    assert steep.needed is None


def test_no_ceiling_is_above_one_and_few_points_say_nothing():
    rising = estimate(1 - 0.4 * SIZES**-0.2)
    assert rising.ceiling <= 1
    assert saturation_of(SIZES[:3], law(SIZES[:3]), (None,) * 3, (1,) * 3, TOLERANCE) is None

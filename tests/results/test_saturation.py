"""Where a learning curve saturates, against scipy's fit and simulated repetitions."""

from __future__ import annotations

import numpy as np
import pytest
from fake_parts import part_trial
from scipy.optimize import curve_fit

from adray.decide import decide
from adray.decisions.text import decision_text
from adray.language.catalogue import load_catalogue
from adray.results.current import view_store
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


@pytest.mark.parametrize("language", ["en", "ko"])
def test_decide_says_how_many_images_are_enough(tmp_path, language):
    part_trial(tmp_path, "padim", 3.0, 0)
    for k, distance in ((1, 0.5), (2, 1.5), (4, 2.4), (8, 2.9)):
        for draw in (1, 2, 3):
            condition = {"k_shot": k, "draw": draw}
            part_trial(tmp_path, "padim", distance, 10 * k + draw, condition=condition)
    (decision,) = decide(view_store(tmp_path).shown(everything=False), draws=0)
    found = decision.saturation
    assert 1 < found.needed < 200
    assert found.ceiling_low <= found.ceiling <= found.ceiling_high <= 1.01
    text = decision_text(decision, load_catalogue(language))
    assert {"en": "images that are enough", "ko": "충분한 이미지 수"}[language] in text
    assert f"{found.ceiling:.3f}" in text


def test_a_store_without_few_images_says_nothing_of_them(tmp_path):
    part_trial(tmp_path, "padim", 3.0, 0)
    (decision,) = decide(view_store(tmp_path).shown(everything=False), draws=0)
    assert decision.saturation is None

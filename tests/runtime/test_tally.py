"""Counts are what Prometheus reads, and the chance of the last alarms is that of the audit."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from adray.runtime.judge import NamedModel
from adray.runtime.tally import WINDOW, Tally, chance_of_alarms


def named(normals, threshold, tried=1, sha256="a" * 64, name="part"):
    judge = SimpleNamespace(
        calibration=tuple(normals), threshold=threshold, promised=0.1, tried=tried
    )
    return NamedModel(judge, name, sha256)


@pytest.mark.parametrize(("images", "alarms"), [(1, 0), (1, 1), (20, 3), (1000, 12), (1000, 400)])
@pytest.mark.parametrize("above", [0, 1, 9])
def test_the_chance_of_alarms_is_the_beta_binomial_tail(images, alarms, above):
    normals = np.arange(99)
    model = named(normals, threshold=99 - above)
    law = stats.betabinom(images, above + 1, 99 - above)
    assert chance_of_alarms(images, alarms, model) == pytest.approx(law.sf(alarms - 1), rel=1e-6)


def test_of_several_models_that_the_normals_chose_among_the_chance_is_the_sum():
    one = chance_of_alarms(50, 6, named(range(99), 95))
    assert chance_of_alarms(50, 6, named(range(99), 95, tried=3)) == pytest.approx(3 * one)
    assert chance_of_alarms(50, 6, named(range(99), 95, tried=10**9)) == 1


def test_the_last_images_are_those_of_the_model_in_use_and_at_most_a_thousand():
    tally = Tally()
    for number in range(WINDOW + 50):
        tally.add_image("anomalous" if number < 50 else "normal", 0.01, "a" * 64)
    assert tally.recent("a" * 64) == (WINDOW, 0)
    tally.add_image("unreadable", 0.01, "a" * 64)
    assert tally.recent("a" * 64) == (WINDOW, 0)
    assert tally.recent("b" * 64) == (0, 0)
    tally.add_image("anomalous", 0.01, "b" * 64)
    assert tally.recent("b" * 64) == (1, 1)


LINE = re.compile(r'[a-z_]+(\{([a-z0-9_]+="([^"\\\n]|\\.)*",?)*\})? [-+0-9.e]+(inf|nan)?')


def test_every_line_is_prometheus_text_whatever_the_model_is_called():
    tally = Tally()
    for seconds in (0.001, 0.3, 100):
        tally.add_image("normal", seconds, "a" * 64)
    tally.add_request(200)
    text = tally.text(named([1], 2, name='a"b\\c\nd\udcff 한글'), in_flight=2, model_failures=1)
    types = {}
    for line in text.encode("utf-8").decode().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP"):
            assert LINE.fullmatch(line), line
            name = re.match("[a-z_]+", line)[0]
            family = re.sub("_(bucket|sum|count)$", "", name)
            assert types.get(name) or types.get(family) == "histogram", line
    assert 'adray_predict_seconds_bucket{le="+Inf"} 3' in text
    assert 'adray_predict_seconds_bucket{le="0.005"} 1' in text
    assert 'name="a\\"b\\\\c\\nd' in text

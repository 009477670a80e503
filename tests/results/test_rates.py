"""What the page says of other rates of false alarms, and of the trial that is to be deployed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_parts import part_trial

from adray.decide import decide
from adray.decisions.text import page_summaries
from adray.results.rates import outcomes_by_rate
from adray.results.report import report_data
from adray.results.trial_files import read_scores


@pytest.mark.parametrize("held_out", [1, 2, 19, 99, 300])
def test_each_place_counts_as_numpy_does_at_the_score_of_that_rank(held_out, tmp_path):
    record = part_trial(tmp_path, "padim", 1.0, held_out=held_out)
    found = outcomes_by_rate(record)
    table = read_scores(record.folder)
    test = table[table["split"] == "test"]
    falling = np.sort(table[table["split"] == "holdout"]["pred_score"])[::-1]
    seen = set()
    for promised, _, alarms, *missed in found["rows"]:
        place = round(promised * (held_out + 1))
        seen.add(place)
        reported = test["pred_score"] > falling[place - 1]
        assert alarms == int((reported & (test["label"] == 0)).sum())
        assert sum(missed) == int((~reported & (test["label"] == 1)).sum())
    assert 1 in seen
    assert sum(found["images"]) == 40


def test_the_place_of_the_trials_own_rate_says_what_the_decision_says(tmp_path):
    record = part_trial(tmp_path, "padim", 1.5)
    (decision,) = decide([record], draws=0)
    found = outcomes_by_rate(record)
    promised, _, alarms, *missed = found["rows"][found["own"]]
    verdicts = decision.chosen.verdicts
    assert (alarms, sum(missed)) == (verdicts.alarms, verdicts.missed)
    assert promised == pytest.approx(decision.chosen.promise.promised, rel=1e-3)
    assert dict(zip(found["types"], missed, strict=True)) == {
        one.name: one.missed for one in verdicts.by_type
    }


def test_more_false_alarms_never_miss_more(tmp_path):
    rows = np.array(outcomes_by_rate(part_trial(tmp_path, "padim", 1.0))["rows"])
    assert (np.diff(rows[:, :3], axis=0) >= 0).all()
    assert (np.diff(rows[:, 3:], axis=0) <= 0).all()


def test_without_calibration_normals_or_scores_there_is_no_slider(tmp_path):
    assert outcomes_by_rate(part_trial(tmp_path, "padim", 1.0, held_out=0)) is None
    record = part_trial(tmp_path, "stfpm", 1.0)
    (record.folder / "scores.parquet").write_bytes(b"torn")
    assert outcomes_by_rate(record) is None
    (record.folder / "scores.parquet").unlink()
    assert outcomes_by_rate(record) is None


def test_drawn_defects_have_misses_and_no_false_alarms(tmp_path):
    found = outcomes_by_rate(part_trial(tmp_path, "padim", 1.0, is_drawn=True))
    assert found["normals"] is None
    assert sum(found["images"]) == 40


def test_promise_slider_and_counts_are_of_the_decided_trial_and_not_of_the_luckiest_seed(tmp_path):
    trials = [
        part_trial(tmp_path, "padim", distance, seed)
        for seed, distance in enumerate((0.5, 3.0, 1.0))
    ]
    (decision,) = decide(trials, draws=0)
    assert decision.chosen.seed == 2, "the median of three"
    data = report_data("s", trials, base=tmp_path, decisions=page_summaries([decision]))
    assert [promise["s"] for promise in data["promises"]] == [2]
    (shown,) = data["decisions"]
    assert shown["counts"] == [200, 99, 40, 40]
    assert shown["rates"] == outcomes_by_rate(trials[2])


def test_a_decision_for_a_trial_that_is_not_there_shows_no_numbers(tmp_path):
    trial = part_trial(tmp_path, "padim", 1.0)
    summaries = page_summaries(decide([trial], draws=0))
    other = replace(trial, folder=tmp_path / "elsewhere")
    (shown,) = report_data("s", [other], base=tmp_path, decisions=summaries)["decisions"]
    assert "rates" not in shown

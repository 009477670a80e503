"""Corruptions in a sweep: what the plan says, which ids stay, and what a worker leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.conditions import Corruption
from adray.config import SweepConfig, build, to_plain
from adray.errors import InputError
from adray.files import read_json
from adray.results.corrupted_scores import corrupted_file, stored_corruptions
from adray.settings import absolute_settings
from adray.sweep.assignment import assign, assignment_from
from adray.sweep.plan import make_plan
from adray.sweep.sweep import RunOptions, Sweep
from adray.sweep.worker import run_assignment

LIGHT = {"corruption": ["gamma", "noise"], "severity": [1, 4]}
FOUR = (
    Corruption("gamma", 1),
    Corruption("gamma", 4),
    Corruption("noise", 1),
    Corruption("noise", 4),
)


@pytest.fixture
def sweep_of(tmp_path):
    """Plan a sweep of a toy model on a category of ten training images."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=10, good=2, defects=4, size=32)

    def sweep(conditions=None, keep="all", **grid):
        values = {"models": ["toy-ok"], "datasets": {"mvtec": ["bottle"]}, **grid}
        if conditions is not None:
            values["conditions"] = conditions
        whole = {"name": "s", "settings": toy_settings(tmp_path), "grid": values, "keep": keep}
        config = build(SweepConfig, whole, "")
        settings = absolute_settings(config.settings)
        return Sweep(config, settings, RunOptions(), make_plan(config, settings))

    return sweep


def run(sweep):
    outcomes = []
    for trial in sweep.wanted():
        plain = to_plain(assign(trial, sweep.settings, limit_seconds=3600.0, save_maps=0))
        outcomes.append(run_assignment(assignment_from(plain), "cpu"))
    return outcomes


def test_a_corruption_moves_no_id_and_brings_the_plain_case_with_it(sweep_of):
    (plain,) = sweep_of().plan.trials
    (trial,) = sweep_of({"light": LIGHT}).plan.trials
    assert trial.identity == plain.identity
    assert trial.id8 == plain.id8
    assert (plain.lacking, trial.lacking) == ((), FOUR)
    (named,) = sweep_of({"as_is": {}, "light": LIGHT}).plan.trials
    assert (named.id8, named.lacking) == (plain.id8, FOUR)


def test_conditions_of_training_stay_beside_it_and_are_not_corrupted(sweep_of):
    trials = sweep_of({"few": {"k_shot": 2}, "light": LIGHT}).plan.trials
    assert [(t.job.condition.title, len(t.lacking)) for t in trials] == [
        ("plain", 4),
        ("k_shot=2 draw 1", 0),
    ]


def test_names_that_overlap_count_once_and_all_means_all(sweep_of):
    (trial,) = sweep_of({"a": LIGHT, "b": {"corruption": "all"}}).plan.trials
    assert len(trial.lacking) == len(set(trial.lacking)) == 70


def test_a_rule_leaves_a_corruption_out_by_its_name_or_by_what_it_is_called(sweep_of):
    by_name = [{"conditions": ["light"]}]
    (trial,) = sweep_of(
        {"light": LIGHT, "dirt": {"corruption": "dust"}}, exclude=by_name
    ).plan.trials
    assert {one.kind for one in trial.lacking} == {"dust"}
    by_label = [{"conditions": ["noise *"]}]
    (trial,) = sweep_of({"light": LIGHT}, exclude=by_label).plan.trials
    assert trial.lacking == FOUR[:2]


def test_a_worker_leaves_result_and_scores_and_the_next_plan_has_nothing_to_do(sweep_of):
    sweep = sweep_of({"light": LIGHT})
    (outcome,) = run(sweep)
    (trial,) = sweep.plan.trials
    assert (outcome.status, outcome.reason) == ("done", "")
    assert tuple(stored_corruptions(trial.folder)) == FOUR
    assert sweep.lacking() == 0
    again = sweep_of({"light": LIGHT})
    assert again.wanted() == []
    assert "corruptions" not in read_json(trial.folder / "trial.json")["assignment"]


def test_a_trial_that_was_done_before_is_scored_and_not_trained_again(sweep_of):
    run(sweep_of())
    sweep = sweep_of({"light": LIGHT})
    (trial,) = sweep.wanted()
    assert trial.state == "done"
    before = (trial.folder / "result.json").read_bytes()
    run(sweep)
    assert (trial.folder / "result.json").read_bytes() == before
    assert sweep.lacking() == 0


def test_only_what_lacks_is_scored(sweep_of):
    sweep = sweep_of({"light": LIGHT})
    run(sweep)
    (trial,) = sweep.plan.trials
    corrupted_file(trial.folder, FOUR[2]).unlink()
    kept = corrupted_file(trial.folder, FOUR[0]).stat().st_mtime_ns
    again = sweep_of({"light": LIGHT})
    assert again.plan.trials[0].lacking == (FOUR[2],)
    run(again)
    assert corrupted_file(trial.folder, FOUR[0]).stat().st_mtime_ns == kept
    assert again.lacking() == 0


def test_a_failure_under_a_corruption_costs_no_result_and_is_said(sweep_of):
    sweep = sweep_of({"light": LIGHT})
    run(sweep_of())
    (trial,) = sweep.plan.trials
    # Nothing can be written where a folder is expected.
    (trial.folder / "stress").write_text("in the way")
    (outcome,) = run(sweep)
    assert outcome.status == "done"
    assert "not scored under all corruptions" in outcome.reason
    assert "not scored under all corruptions" in (trial.folder / "log.txt").read_text()
    assert sweep.lacking() == 4
    assert (trial.folder / "result.json").is_file()


def test_a_trial_without_its_checkpoint_is_left_as_it_is_with_a_remark(sweep_of):
    sweep = sweep_of()
    run(sweep)
    for file in Path(sweep.plan.trials[0].folder).glob("model_*.pth"):
        file.unlink()
    again = sweep_of({"light": LIGHT})
    assert again.wanted() == []
    assert any("no checkpoint" in remark for remark in again.plan.remarks)


def test_a_plan_says_how_many_scores_are_wanted_and_there(sweep_of):
    sweep = sweep_of({"light": LIGHT}, seeds=[1, 2])
    assert any("2 trials are scored under 4 corruptions" in one for one in sweep.plan.remarks)
    run(replace(sweep, plan=replace(sweep.plan, trials=sweep.plan.trials[:1])))
    again = sweep_of({"light": LIGHT}, seeds=[1, 2])
    assert any("4 of these scores are there" in one for one in again.plan.remarks)


def test_a_sweep_that_keeps_no_model_is_refused_before_it_starts(sweep_of):
    with pytest.raises(InputError, match="keep: none keeps none"):
        sweep_of({"light": LIGHT}, keep="none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corruption": "blur"}, "'blur'"),
        ({"corruption": ["noise"], "severity": 6}, "between 1 and 5"),
        ({"corruption": ["noise"], "severity": []}, "empty list"),
        ({"corruption": ["noise", "noise"]}, "twice"),
        ({"corruption": ["noise"], "k_shot": 4}, "a name of its own"),
        ({"corruption": ["noise"], "leave_out": "group"}, "a name of its own"),
        ({"severity": [1]}, "nothing happens"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(sweep_of, values, message):
    with pytest.raises(InputError, match=message) as refused:
        sweep_of({"light": values})
    assert "grid.conditions.light" in str(refused.value)

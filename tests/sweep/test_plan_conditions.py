"""Conditions in a plan: ids, names, what cannot be, and what is said of them."""

from __future__ import annotations

import sys

import pytest
import yaml
from fake_datasets import save, write_mvtec
from toy_sweep import toy_settings

from adray.conditions import Condition
from adray.config import TILE_DEFAULTS, SweepConfig, build, to_plain
from adray.errors import InputError
from adray.files import canonical_hash, write_json
from adray.job import job_identity
from adray.model_specs import CORE_VERSION
from adray.results.store import partial_folder, publish
from adray.settings import absolute_settings, get_globals
from adray.sweep.assignment import assign, assignment_from
from adray.sweep.plan import make_plan


@pytest.fixture
def plan_of(tmp_path):
    """Plan a sweep of a toy model on a category of ten training images, one of which is held out."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=10, good=2, defects=8, size=32)

    def plan(conditions=None, **grid):
        values = {"models": ["toy-ok"], "datasets": {"mvtec": ["bottle"]}, **grid}
        if conditions is not None:
            values["conditions"] = conditions
        whole = {"name": "s", "settings": toy_settings(tmp_path), "grid": values}
        config = build(SweepConfig, whole, "")
        return make_plan(config, absolute_settings(config.settings))

    return plan


def titles(plan):
    return [trial.job.condition.title for trial in plan.trials]


def test_a_plain_trial_has_the_id_that_it_had_before_there_were_conditions(plan_of):
    (trial,) = plan_of().trials
    train = to_plain(trial.job.resolved.train_config)
    del train["eval_batch_size"]
    del train["calibration"]
    for name in ("fit", "aspect", *TILE_DEFAULTS):
        del train[name]
    # Written out as version 0.1 hashed it.
    before = {
        "configuration": "toy-ok",
        "trainer": "toy_plugin.ToyTrainer",
        "versions": {"model": 1, "core": CORE_VERSION},
        "datasets": ["mvtec"],
        "categories": ["bottle"],
        "data": trial.identity["data"],
        "model": to_plain(trial.job.resolved.config),
        "train": train,
        "weights": {},
        "seed": 42,
        "source": trial.identity["source"],
    }
    assert trial.id8 == canonical_hash(before)[:8]


def test_the_plain_case_has_one_id_under_whatever_name(plan_of):
    (plain,) = plan_of().trials
    same = {"a": {}, "b": {"train_fraction": 1.0}}
    (trial,) = plan_of(same).trials
    assert trial.id8 == plain.id8


def test_each_draw_of_each_condition_is_a_trial_of_its_own_and_is_found_again(plan_of):
    plan = plan_of({"plain": {}, "few": {"k_shot": [1, 4], "draws": 2}}, seeds=[1, 2])
    few = ["k_shot=1 draw 1", "k_shot=1 draw 2", "k_shot=4 draw 1", "k_shot=4 draw 2"]
    wanted = ["plain", *few]
    assert titles(plan) == [title for title in wanted for _ in range(2)]
    assert len({trial.id8 for trial in plan.trials}) == 10
    renamed = plan_of({"other": {"k_shot": 4, "draws": 2}}, seeds=[1, 2])
    assert {t.id8 for t in renamed.trials} < {t.id8 for t in plan.trials}


def test_a_worker_gets_the_condition_and_counts_the_same_id(plan_of):
    (trial,) = plan_of({"few": {"k_shot": 4}}).trials
    settings = get_globals()
    plain = to_plain(assign(trial, settings, limit_seconds=1.0))
    job = assignment_from(plain).job()
    assert job.condition == Condition(k_shot=4)
    assert canonical_hash(job_identity(job, settings, trial.identity["data"]))[:8] == trial.id8


def test_the_plan_says_how_many_images_each_condition_trains_on(plan_of):
    plan = plan_of({"plain": {}, "few": {"k_shot": [1, 4], "draws": 2}})
    for line in (
        "plain: 1 trials, 9 training images each",
        "k_shot=1: 2 trials, 1 training images each",
        "k_shot=4: 2 trials, 4 training images each",
    ):
        assert line in plan.remarks
    assert not [remark for remark in plan_of().remarks if "training images each" in remark]


def test_a_condition_that_the_data_cannot_give_is_one_problem_and_costs_no_other(plan_of):
    plan = plan_of({"few": {"k_shot": [4, 10], "draws": 3}}, seeds=[1, 2])
    assert len(plan.of("new")) == 6
    assert len(plan.of("impossible")) == 6
    (problem,) = plan.problems
    assert problem.startswith("mvtec/bottle: k_shot 10 is more than the 9 normal training images")


def test_a_rule_leaves_models_out_of_conditions_by_name_or_label(plan_of):
    conditions = {"plain": {}, "few": {"k_shot": [1, 4]}}
    by_name = plan_of(conditions, exclude=[{"models": ["toy-ok"], "conditions": ["few"]}])
    assert titles(by_name) == ["plain"]
    by_label = plan_of(conditions, exclude=[{"conditions": ["k_shot=1"]}])
    assert titles(by_label) == ["plain", "k_shot=4 draw 1"]


def test_a_model_that_needs_two_images_is_told_how_to_leave_one_shot_out(plan_of, monkeypatch):
    few = {"few": {"k_shot": [1, 2]}}
    assert not plan_of(few).problems
    monkeypatch.setattr(sys.modules["toy_plugin"].ToyTrainer, "min_normals", 2)
    (problem,) = plan_of(few).problems
    assert "toy-ok needs at least 2 normal training images and has 1" in problem
    (rule,) = yaml.safe_load(problem.partition("grid.exclude: ")[2])
    plan = plan_of(few, exclude=[rule])
    assert (titles(plan), plan.problems) == (["k_shot=2 draw 1"], ())


def test_costs_are_of_the_images_that_a_condition_reads(plan_of):
    plain, few = plan_of({"plain": {}, "few": {"k_shot": 4}}).trials
    assert plain.images == 10 + 10
    assert few.images == 4 + 1 + 10


def test_a_stored_trial_of_another_condition_is_not_replaced(plan_of):
    (few,) = plan_of({"few": {"k_shot": 4}}).trials
    partial = partial_folder(few.folder)
    write_json(partial / "trial.json", {"id": few.id8, "identity": few.identity})
    write_json(partial / "result.json", {})
    publish(partial, few.folder)
    (plain,) = plan_of().trials
    assert (plain.state, plain.reason) == ("new", "")
    (same,) = plan_of({"few": {"k_shot": 4}}).trials
    assert same.state == "done"


@pytest.fixture
def lots(tmp_path):
    """Three lots of training images beside those of `plan_of`, and one that alone tests."""
    good = tmp_path / "datasets" / "mvtec" / "bottle"
    for number, lot in enumerate(("lot_2", "lot_10", "lot_1")):
        for i in range(3):
            save(good / "train" / "good" / lot / f"{i}.png", 50 + 10 * number + i, 32)
    return good


def test_each_lot_is_left_out_in_turn(plan_of, lots):
    plan = plan_of({"plain": {}, "lots": {"leave_out": "group"}})
    assert titles(plan) == ["plain", *(f"leave_out group=lot_{n}" for n in (1, 2, 10))]
    assert not plan.problems
    for trial in plan.trials[1:]:
        assert trial.identity["condition"]["leave_out"] == "group"
        assert "draw" not in trial.identity["condition"]


def test_groups_that_are_not_there_are_a_problem_with_the_remedy(plan_of):
    plan = plan_of({"plain": {}, "lots": {"leave_out": "group"}})
    assert titles(plan) == ["plain"]
    (problem,) = plan.problems
    assert problem.startswith("grid.conditions.lots: mvtec/bottle has 0 values of group")
    assert "settings.data.mvtec.group" in problem
    (problem,) = plan_of({"a": {}, "cameras": {"leave_out": "camera"}}).problems
    assert "allowed: group" in problem


def test_defects_that_are_too_few_are_one_problem_with_the_largest_share(plan_of):
    dirty = {"contamination": [0.0, 0.1, 0.5], "draws": 2}
    plan = plan_of({"dirty": dirty}, seeds=[1, 2], models=["toy-ok", "toy-positional"])
    assert len(plan.of("new")) == 2 * 2 * 3  # without contamination one draw is like another
    (problem,) = plan.problems
    assert "the test has 8, of which 6 may leave the test; ask for at most 0.37" in problem
    assert "contamination=0.1 no_overlap: 8 trials, 10 training images each, 1 of them defects" in (
        plan.remarks
    )


def test_no_condition_at_all_and_a_search_under_one_are_refused(tmp_path):
    grid = {"datasets": {"mvtec": "all"}, "conditions": {}}
    with pytest.raises(InputError, match=r"grid.conditions is empty"):
        build(SweepConfig, {"name": "s", "grid": grid}, "")
    grid["conditions"] = {"few": {"k_shot": 1}}
    with pytest.raises(InputError, match="do not go together"):
        build(SweepConfig, {"name": "s", "grid": grid, "search": {}}, "")

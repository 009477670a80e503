from __future__ import annotations

import os
import shutil
import time

import pytest
from fake_datasets import save, write_custom, write_mvtec, write_visa
from toy_sweep import toy_settings

import adray.job
from adray.config import SweepConfig, build
from adray.errors import InputError
from adray.files import write_json
from adray.results.store import partial_folder, publish
from adray.settings import absolute_settings
from adray.sweep.plan import difference, make_plan


@pytest.fixture
def plan_of(tmp_path):
    """Plan a sweep of toy models over two categories, with parts of the configuration changed."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec",
        categories=("bottle", "wood"),
        train=4,
        good=2,
        defects=2,
        size=32,
    )

    def plan(only=(), **changes):
        values = {
            "name": "s",
            "settings": toy_settings(tmp_path),
            "grid": {
                "models": ["toy-ok"],
                "datasets": {"mvtec": "each"},
                **changes.pop("grid", {}),
            },
            **changes,
        }
        config = build(SweepConfig, values, "")
        return make_plan(config, absolute_settings(config.settings), only)

    return plan


def finish(trial, **files):
    partial = partial_folder(trial.folder)
    write_json(partial / "trial.json", {"id": trial.id8, "identity": trial.identity})
    for name, value in files.items():
        write_json(partial / f"{name}.json", value)
    publish(partial, trial.folder)


def cells(plan):
    return sorted("/".join(trial.job.names[1:]) for trial in plan.trials)


def test_each_all_lists_and_merges_expand_as_written(plan_of):
    assert cells(plan_of()) == ["bottle/toy-ok", "wood/toy-ok"]
    assert cells(plan_of(grid={"datasets": {"mvtec": "all"}})) == ["all/toy-ok"]
    assert cells(plan_of(grid={"datasets": {"mvtec": ["wood"]}})) == ["wood/toy-ok"]
    assert cells(plan_of(grid={"datasets": {"mvtec": [["bottle", "wood"], "wood"]}})) == [
        "bottle+wood/toy-ok",
        "wood/toy-ok",
    ]


def test_the_plan_counts_the_images_of_each_part_once(plan_of):
    plan = plan_of(grid={"seeds": [1, 2]}, overrides={"*": {"train": {"holdout": 0.25}}})
    assert plan.images == tuple(
        f"mvtec/{part}: 3 images train, 1 good ones set the threshold; 2 good and 2 defective ones "
        "test (hole 1, scratch 1), 2 of them with a mask"
        for part in ("bottle", "wood")
    )


def test_seeds_multiply_and_patterns_select_and_exclude(plan_of):
    assert len(plan_of(grid={"seeds": [0, 1, 2]}).trials) == 6
    grid = {
        "models": ["toy-*"],
        "exclude": [{"models": ["toy-[!op]*"]}, {"models": ["toy-ok"], "categories": ["wood"]}],
    }
    assert cells(plan_of(grid=grid)) == [
        "bottle/toy-ok",
        "bottle/toy-positional",
        "wood/toy-positional",
    ]


def test_ids_depend_on_all_that_decides_the_result_and_on_nothing_else(plan_of, tmp_path):
    def ids(**changes):
        return {trial.id8 for trial in plan_of(**changes).trials}

    base = ids()
    assert ids() == base
    assert ids(overrides={"toy-ok": {"train": {"eval_batch_size": 3}}}) == base
    assert ids(resources=[{"cpu": 2}]) == base
    assert not ids(overrides={"toy-ok": {"model": {"gain": 2.0}}}) & base
    assert not ids(overrides={"*": {"train": {"holdout": 0.0}}}) & base
    assert not ids(grid={"seeds": [1]}) & base
    for path in (tmp_path / "datasets").rglob("*.png"):
        os.utime(path, (1, 1))
    assert ids() == base
    time.sleep(0.02)
    image = next((tmp_path / "datasets" / "mvtec" / "wood" / "train").rglob("*.png"))
    other = next((tmp_path / "datasets" / "mvtec" / "bottle" / "train").rglob("*.png"))
    image.write_bytes(other.read_bytes())
    assert len(ids() & base) == 1
    (tmp_path / "datasets" / "mvtec").rename(tmp_path / "datasets" / "kept")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "datasets" / "kept").rename(tmp_path / "datasets" / "mvtec")
    assert len(ids() & base) == 1


def test_states_come_from_the_store_alone(plan_of):
    first, second = plan_of().trials
    finish(first, result={})
    finish(second, failure={"reason": "went wrong", "attempts": 2})
    planned = {trial.job.names[1]: trial for trial in plan_of().trials}
    assert planned["bottle"].state == "done"
    assert (planned["wood"].state, planned["wood"].reason, planned["wood"].attempts) == (
        "failed",
        "went wrong",
        2,
    )


def test_a_changed_field_makes_only_its_model_stale_and_is_named(plan_of):
    grid = {"models": ["toy-ok", "toy-positional"]}
    for trial in plan_of(grid=grid).trials:
        finish(trial, result={})
    plan = plan_of(grid=grid, overrides={"toy-ok": {"model": {"gain": 5.0}}})
    assert {t.job.configuration for t in plan.of("stale")} == {"toy-ok"}
    assert {t.reason for t in plan.of("stale")} == {"model.gain: 1.0 -> 5.0"}
    assert len(plan.of("done")) == 2


def test_a_try_of_a_search_makes_no_trial_stale(plan_of):
    tried = plan_of(overrides={"toy-ok": {"model": {"gain": 5.0}}}).trials[0]
    tried.identity["evaluation"] = "synthetic"
    finish(tried, result={})
    stored = {"id": tried.id8, "identity": tried.identity, "assignment": {"search": "s"}}
    write_json(tried.folder / "trial.json", stored)
    assert [trial.state for trial in plan_of().trials] == ["new", "new"]


def test_another_seed_is_new_and_not_stale(plan_of):
    for trial in plan_of().trials:
        finish(trial, result={})
    plan = plan_of(grid={"seeds": [42, 43]})
    assert (len(plan.of("done")), len(plan.of("new")), len(plan.of("stale"))) == (2, 2, 0)


def test_only_takes_patterns_and_ids(plan_of):
    trial = plan_of().trials[0]
    assert len(plan_of(only=["mvtec/wood/*"]).trials) == 1
    assert [t.id8 for t in plan_of(only=[trial.id8[:6]]).trials] == [trial.id8]


def test_custom_data_sets_lie_below_custom(plan_of, tmp_path):
    write_custom(tmp_path / "datasets" / "custom" / "dataset_A")
    plan = plan_of(grid={"datasets": {"dataset_A": "each"}})
    assert all("/outputs/custom/dataset_A/" in str(trial.folder) for trial in plan.trials)


def test_a_data_set_that_is_missing_is_a_problem_and_leaves_the_others(plan_of):
    plan = plan_of(grid={"datasets": {"mvtec": "each", "visa": "each"}})
    assert len(plan.of("new")) == 2
    assert len(plan.problems) == 1
    assert "visa" in plan.problems[0]


def test_values_that_a_model_cannot_take_are_a_problem_of_the_plan(plan_of):
    plan = plan_of(
        grid={"models": ["autoencoder", "toy-ok"]},
        overrides={"autoencoder": {"train": {"img_size": 100}}},
    )
    assert [trial.state for trial in plan.trials] == ["impossible", "new"] * 2
    assert plan.problems == (
        "autoencoder: input size 100 does not suit the autoencoder: img_size (or crop_size) must be a multiple of 32; "
        "use 96 or 128",
    )


def test_auxiliary_images_that_are_needed_are_a_problem_and_those_that_are_not_a_remark(
    plan_of, tmp_path
):
    needed, optional = (
        plan_of(grid={"models": ["auxiliary-toy"]}),
        plan_of(grid={"models": ["noise-toy"]}),
    )
    assert [trial.state for trial in needed.trials] == ["impossible"] * 2
    assert "auxiliary images 'textures' are missing" in needed.problems[0]
    assert [trial.state for trial in optional.trials] == ["new"] * 2
    assert any(text.endswith("without them it draws noise") for text in optional.remarks)
    before = [trial.id8 for trial in optional.trials]
    write_mvtec(
        tmp_path / "datasets" / "textures",
        categories=("cloth",),
        train=2,
        good=1,
        defects=1,
        size=16,
    )
    again = plan_of(grid={"models": ["auxiliary-toy", "noise-toy"]})
    assert again.problems == ()
    assert not any("auxiliary" in text for text in again.remarks)
    assert not {trial.id8 for trial in again.trials} & set(before), "other images, another result"


def test_supervised_training_without_labelled_defects_is_a_problem_of_the_plan(plan_of):
    plan = plan_of(grid={"models": ["supervised-toy", "toy-ok"], "datasets": {"mvtec": ["wood"]}})
    assert [trial.state for trial in plan.trials] == ["new", "impossible"]
    assert plan.trials[1].job.configuration == "supervised-toy"
    assert len(plan.problems) == 1
    assert "mvtec/wood: the training split has no labelled defects" in plan.problems[0]


def test_defects_that_train_no_unsupervised_model_are_remarked_once(plan_of, tmp_path):
    write_visa(tmp_path / "datasets" / "visa", ("candle",), train=4, good=2, defects=6, size=32)
    plan = plan_of(
        grid={
            "models": ["supervised-toy", "toy-ok", "toy-positional"],
            "datasets": {"visa": "each"},
        },
        overrides={"*": {"train": {"split_mode": "2cls_highshot"}}},
    )
    assert (plan.problems, {trial.state for trial in plan.trials}) == ((), {"new"})
    assert len({trial.identity["data"] for trial in plan.trials}) == 1
    text = "visa/candle: 3 labelled defects of the training split are not used"
    assert sum(remark.startswith(text) for remark in plan.remarks) == 1


def test_what_would_change_a_result_is_a_problem_of_its_data_alone_until_it_is_accepted(
    plan_of, tmp_path
):
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.copy(bottle / "train/good/000.png", bottle / "test/good/copy.png")
    plan = plan_of(grid={"seeds": [0, 1]})
    states = {(trial.job.names[1], trial.state) for trial in plan.trials}
    assert states == {("bottle", "impossible"), ("wood", "new")}
    assert len(plan.problems) == 1
    assert "settings.data.mvtec.accept: [identical_pictures]" in plan.problems[0]

    accepted = {"data": {"mvtec": {"accept": ["identical_pictures"]}}}
    plan = plan_of(settings={**toy_settings(tmp_path), **accepted})
    assert plan.problems == ()
    assert any("accepted" in remark for remark in plan.remarks)


def test_accepting_a_finding_changes_no_id(plan_of, tmp_path):
    accepted = {"data": {"mvtec": {"accept": ["shared_mask"]}}}
    plan = plan_of(settings={**toy_settings(tmp_path), **accepted})
    assert [trial.id8 for trial in plan.trials] == [trial.id8 for trial in plan_of().trials]


def test_normals_alone_are_judged_by_drawn_defects_and_the_plan_says_so(plan_of, tmp_path):
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.rmtree(bottle / "test")
    shutil.rmtree(bottle / "ground_truth")
    plan = plan_of()
    assert plan.problems == ()
    evaluations = {trial.job.names[1]: trial.job.evaluation for trial in plan.trials}
    assert evaluations == {"bottle": "synthetic", "wood": "test"}
    assert any(
        "mvtec/bottle has no defective test images" in text and "1 held-out normals" in text
        for text in plan.remarks
    )


def test_a_rate_of_false_alarms_that_too_few_normals_keep_is_remarked_before_training(plan_of):
    remarks = plan_of(verdict={"false_alarms": 0.01}).remarks
    assert [text for text in remarks if "to calibrate" in text] == [
        f"mvtec/{category}: 1 % needs 99 normals to calibrate, 299 to be sure; there are 1: the best "
        "that can be promised is 50 % (95 % with 95 % confidence)"
        for category in ("bottle", "wood")
    ]
    enough = plan_of(verdict={"false_alarms": 0.5})
    assert not [text for text in enough.remarks if "to calibrate" in text]


def test_a_plan_without_a_hold_out_promises_nothing(plan_of):
    none_held = {"toy-ok": {"train": {"holdout": 0.0}}}
    remarks = plan_of(overrides=none_held, verdict={"false_alarms": [0.05]}).remarks
    assert any("5 % needs 19 of them" in text for text in remarks)


def test_a_rate_of_false_alarms_changes_no_id(plan_of):
    plans = (plan_of(), plan_of(verdict={"per_day": 2, "parts_per_day": 1000}))
    assert [t.id8 for t in plans[0].trials] == [t.id8 for t in plans[1].trials]
    assert {t.job.verdict.rates for t in plans[1].trials} == {(0.002,)}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"false_alarms": 1.5}, "1.5"),
        ({"false_alarms": []}, "empty"),
        ({"per_day": 3}, "parts_per_day"),
        ({"per_day": 3, "parts_per_day": 2}, "per_day is 3 of parts_per_day 2"),
        ({"per_day": 2, "parts_per_day": 2}, "fewer than the parts"),
        ({"per_day": 1, "parts_per_day": 9, "false_alarms": 0.01}, "both say how many"),
        ({"falsealarms": 0.1}, "false_alarms"),
    ],
)
def test_verdicts_that_cannot_be_meant_are_refused_with_their_value(verdict, said, plan_of):
    with pytest.raises(InputError, match=said):
        plan_of(verdict=verdict)


def test_normals_alone_without_a_hold_out_read_not_available_or_cannot_be_scored(plan_of, tmp_path):
    none_held = {"toy-ok": {"train": {"holdout": 0.0}}}
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.rmtree(bottle / "ground_truth")
    for kind in ("hole", "scratch"):
        shutil.rmtree(bottle / "test" / kind, ignore_errors=True)
    plan = plan_of(overrides=none_held)
    assert plan.problems == ()
    assert any("reads n/a" in text for text in plan.remarks)

    shutil.rmtree(bottle / "test")
    plan = plan_of(overrides=none_held)
    assert any("nothing can be scored" in text for text in plan.problems)


def test_fewer_normals_than_a_configuration_needs_are_a_problem_of_that_alone(plan_of, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"datasets/mvtec/bottle/train/good/00{number}.png").unlink()
    plan = plan_of(
        grid={"models": ["padim", "toy-ok"], "datasets": {"mvtec": ["bottle"]}}, weights="random"
    )
    states = {trial.job.configuration: trial.state for trial in plan.trials}
    assert states == {"padim": "impossible", "toy-ok": "new"}
    assert "padim needs at least 2 normal training images and has 1" in plan.problems[0]


def test_difference_names_nested_fields():
    assert (
        difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
        == "a.c: 2 -> 3, d: None -> 4"
    )


@pytest.mark.slow
def test_ten_thousand_trials_are_planned_in_seconds(plan_of):
    began = time.process_time()
    plan = plan_of(grid={"seeds": list(range(5000))})
    assert len(plan.trials) == 10_000
    assert time.process_time() - began < 60


def test_images_are_looked_at_once_for_all_seeds_that_move_none(plan_of, monkeypatch):
    looked_at = []

    def job_samples(job, settings):
        looked_at.append((job.categories, job.seed))
        return adray.job.job_samples(job, settings)

    monkeypatch.setattr("adray.sweep.plan.job_samples", job_samples)
    plan = plan_of(grid={"seeds": [0, 1, 2]})
    assert looked_at == [(("bottle",), 0), (("wood",), 0)]
    assert len({trial.id8 for trial in plan.trials}) == 6


def test_a_grid_of_nothing_is_an_error(plan_of):
    with pytest.raises(InputError, match="the grid leaves no trial"):
        plan_of(grid={"exclude": [{"models": ["*"]}]})


def test_cross_calibration_of_a_method_that_cannot_is_refused_and_named_beside_those_that_can(
    plan_of,
):
    plan = plan_of(overrides={"*": {"train": {"calibration": "cross"}}})
    assert {trial.state for trial in plan.trials} == {"impossible"}
    (problem,) = plan.problems
    assert problem.startswith("toy-ok: calibration: cross")
    assert "padim" in problem
    assert "patchcore-resnet18" in problem
    assert "stfpm" not in problem


@pytest.fixture
def crossing(monkeypatch):
    """Let the toy methods say that they can."""
    import toy_plugin

    monkeypatch.setattr(toy_plugin.ToyTrainer, "crosses", True)


CROSS = {"*": {"train": {"calibration": "cross"}}}


def test_cross_calibration_has_an_id_of_its_own_whatever_the_hold_out_that_it_leaves_out(
    plan_of, crossing
):
    usual = plan_of().trials
    plan = plan_of(overrides=CROSS)
    assert plan.problems == ()
    assert not {t.id8 for t in usual} & {t.id8 for t in plan.trials}
    assert all("calibration" not in t.identity["train"] for t in usual)
    other = {"*": {"train": {"calibration": "cross", "holdout": 0.4}}}
    assert [t.id8 for t in plan_of(overrides=other).trials] == [t.id8 for t in plan.trials]
    explicit = {"*": {"train": {"calibration": "holdout"}}}
    assert [t.id8 for t in plan_of(overrides=explicit).trials] == [t.id8 for t in usual]


def test_cross_calibration_promises_by_all_training_normals_before_anything_runs(plan_of, crossing):
    remarks = plan_of(overrides=CROSS, verdict={"false_alarms": 0.01}).remarks
    assert sum("there are 4: the best" in text for text in remarks) == 2


def test_validation_images_of_a_category_calibrate_it_exactly_also_where_cross_was_asked(
    plan_of, crossing, tmp_path
):
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.copytree(bottle / "test/good", bottle / "validation/good")
    for number, path in enumerate(sorted((bottle / "validation/good").iterdir())):
        save(path, 700 + number, 32)
    crossed = plan_of(overrides=CROSS).trials
    usual = plan_of().trials
    assert [trial.job.names[1] for trial in usual] == ["bottle", "wood"]
    assert [a.id8 == b.id8 for a, b in zip(crossed, usual, strict=True)] == [True, False]
    remarks = plan_of(overrides=CROSS).remarks
    assert any("by the 2 validation images" in text and "bottle" in text for text in remarks)


def test_a_hold_out_may_be_a_number_of_images_and_one_too_many_is_a_problem(plan_of):
    plan = plan_of(overrides={"*": {"train": {"holdout": 2}}}, verdict={"false_alarms": 0.01})
    assert plan.problems == ()
    assert sum("there are 2: the best" in text for text in plan.remarks) == 2
    plan = plan_of(overrides={"*": {"train": {"holdout": 3}}})
    assert len(plan.problems) == 2
    assert "of 4 normal training images at most 2 can be held out" in plan.problems[0]

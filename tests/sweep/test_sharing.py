"""What a plan says of work that its trials share."""

from __future__ import annotations

import pytest
from fake_datasets import write_mvtec

from adray.config import SweepConfig, build
from adray.settings import absolute_settings
from adray.sweep.plan import make_plan
from adray.sweep.sharing import frozen_key, sharings, spread


@pytest.fixture
def trials_of(tmp_path):
    """The planned trials of some configurations on one category, by configuration and seed."""
    write_mvtec(tmp_path / "datasets" / "mvtec", categories=("bottle",), train=3, good=2, defects=2)
    settings = {"dataset_dir": str(tmp_path / "datasets"), "output_dir": str(tmp_path / "outputs")}

    def trials(models, weights="random", seeds=(0,), **overrides):
        grid = {"models": list(models), "datasets": {"mvtec": "each"}, "seeds": list(seeds)}
        values = {
            "name": "s",
            "settings": settings,
            "grid": grid,
            "weights": weights,
            "overrides": overrides,
        }
        config = build(SweepConfig, values, "")
        plan = make_plan(config, absolute_settings(config.settings), ())
        return {(trial.job.configuration, trial.job.seed): trial for trial in plan.trials}

    return trials


def test_trials_of_one_backbone_and_image_size_share_the_union_of_their_layers(trials_of):
    small = {"train": {"img_size": 128}}
    names = ("padim", "dfkde", "patchcore-resnet18", "dfm-resnet18")
    trials = trials_of((*names, "padim-wide-resnet50", "vae"), **{"dfm-resnet18": small})
    shared = sharings(trials.values())
    assert set(shared) == {trials[name, 0].id8 for name in names if name != "dfm-resnet18"}
    assert frozen_key(trials["padim", 0]) == frozen_key(trials["dfkde", 0])
    assert {sharing.layers for sharing in shared.values()} == {
        ("layer1", "layer2", "layer3", "layer4")
    }
    assert {sharing.coreset_ratio for sharing in shared.values()} == {0.0, 0.1}


def test_random_weights_are_shared_by_trials_of_one_seed_only(trials_of):
    trials = trials_of(("padim", "dfkde"), seeds=(0, 1))
    keys = [frozen_key(trials[name, seed]) for name in ("padim", "dfkde") for seed in (0, 1)]
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


def test_models_whose_features_are_not_a_frozen_backbones_share_nothing(trials_of):
    trials = trials_of(("vae", "stfpm", "supersimplenet"))
    assert {frozen_key(trial) for trial in trials.values()} == {""}
    assert sharings(trials.values()) == {}


def test_whoever_waits_for_a_builder_starts_when_other_work_has_started():
    ordered = ["a1", "a2", "a3", "b1", "b2", "-1", "-2", "-3"]
    found = spread(ordered, lambda name: name[0].strip("-"), 3)
    assert sorted(found) == sorted(ordered)
    assert found == ["a1", "b1", "-1", "a2", "a3", "b2", "-2", "-3"]
    assert spread(["a1", "a2", "a3"], lambda name: name[0], 2) == ["a1", "a2", "a3"]
    assert spread(ordered, lambda name: "", 3) == ordered

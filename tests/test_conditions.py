"""Trials under a condition: what they train on, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec

from adray.conditions import PLAIN, Condition
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.settings import get_globals, set_globals
from adray.train import train


@pytest.fixture(autouse=True)
def site(tmp_path):
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=10, good=3, defects=12, size=32)
    set_globals(plugins=("toy_plugin",))


def toy(condition=None, name="toy-ok", **more):
    result = train("mvtec", "bottle", name, condition=condition, seed=1, **more)
    folder = Path(result["folder"])
    record = json.loads((folder / "trial.json").read_text())
    images = folder / "images.json"
    names = json.loads(images.read_text()) if images.is_file() else None
    return result, record["identity"], names, pd.read_parquet(folder / "scores.parquet")


def test_a_plain_trial_leaves_nothing_of_conditions():
    result, identity, names, _ = toy()
    assert names is None
    assert "condition" not in result
    assert "condition" not in identity
    assert set(identity["versions"]) == {"model", "core"}


def test_a_trial_of_few_images_says_which_and_scores_all_of_the_test():
    result, identity, names, scores = toy({"k_shot": 2, "draw": 3})
    assert identity["condition"] == {"k_shot": 2, "draw": 3}
    assert result["condition"]["label"] == "k_shot=2"
    assert result["counts"]["train"] == 2
    home = Path(get_globals().dataset_dir)
    assert len(names["train"]) == 2
    assert all((home / name).is_file() for part in names.values() for name in part)
    assert rows_by_split(scores) == {"test": 15, "holdout": 1}
    assert len(names["test"]) == 15
    assert not set(names["train"]) & {*names["holdout"], *names["test"]}


def rows_by_split(scores):
    return scores["split"].value_counts().to_dict()


def test_a_dirty_trial_says_which_defects_trained_and_does_not_test_on_them():
    plain = toy()[3]
    result, identity, names, scores = toy({"contamination": 0.2})
    assert identity["condition"]["contamination"] == 0.2
    assert result["condition"]["train_defects"] == len(names["train_defects"]) == 2
    assert set(names["train_defects"]) < set(names["train"])
    assert not set(names["train_defects"]) & set(names["test"])
    assert len(scores) == len(plain) - 2
    assert scores["label"].sum() == 10
    assert any("misses" in note for note in result["verdict"]["notes"])


def test_with_overlap_the_same_picture_trains_and_tests_and_no_finding_stops_it():
    _, _, names, scores = toy({"contamination": 0.2, "test_defects": "overlap"})
    assert set(names["train_defects"]) < set(names["test"])
    assert rows_by_split(scores)["test"] == 15


def test_the_pixels_of_defects_reach_the_training():
    seen = []

    def count(loader):
        batches = list(loader)
        assert not any(batch.label.any() for batch in batches)
        assert all(batch.mask is None for batch in batches)
        seen.append(np.sort([float(image.std()) for batch in batches for image in batch.image]))

    for condition in (PLAIN, Condition(contamination=0.2)):
        loaders = get_dataloaders(
            "mvtec", "bottle", img_size=32, normalize="none", seed=1, condition=condition
        )
        count(loaders.train)
        test = np.array([image.std() for batch in loaders.test for image in batch.image])
    # A bright square makes the values of a defect spread further than those of any normal image.
    assert seen[0].max() < test[-10:].min()
    assert (seen[1] > seen[0].max()).sum() == 2


def test_supervised_configurations_are_not_contaminated():
    with pytest.raises(InputError, match=r"learns from defects that are labelled.*exclude"):
        toy({"contamination": 0.2}, "supervised-toy")


def test_a_clean_hold_out_is_refused_where_the_training_images_calibrate():
    dirty = {"contamination": 0.2, "hold_out": "clean"}
    with pytest.raises(InputError, match=r"hold_out: clean .* calibration: cross"):
        toy(dirty, "dfkde", weights="random", train={"calibration": "cross"})


def test_all_models_get_the_same_images():
    assert toy({"k_shot": 3})[2] == toy({"k_shot": 3}, "toy-positional")[2]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"k_shot": 99}, "k_shot 99 is more than the 9 normal training images"),
        ({"k_shot": 0}, "condition.k_shot is 0, but must be at least 1"),
        ({"contamination": 0.5}, "takes 10 defects, and the test has 12, of which"),
        ({"shots": 1}, "unknown key 'condition.shots'"),
        ({"leave_out": "group"}, "go together"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(condition, message):
    with pytest.raises(InputError, match=message):
        toy(condition)
    assert not Path(get_globals().output_dir).exists()

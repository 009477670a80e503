"""Trials under a condition: what they train on, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_datasets import write_mvtec

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


def test_all_models_get_the_same_images():
    assert toy({"k_shot": 3})[2] == toy({"k_shot": 3}, "toy-positional")[2]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"k_shot": 99}, "k_shot 99 is more than the 9 normal training images"),
        ({"k_shot": 0}, "condition.k_shot is 0, but must be at least 1"),
        ({"shots": 1}, "unknown key 'condition.shots'"),
        ({"leave_out": "group"}, "go together"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(condition, message):
    with pytest.raises(InputError, match=message):
        toy(condition)
    assert not Path(get_globals().output_dir).exists()

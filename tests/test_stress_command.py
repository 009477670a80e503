"""`python -m adray stress TRIAL`: what it prints and leaves, and what it refuses."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from fake_datasets import write_mvtec
from PIL import Image

from adray.__main__ import main
from adray.config import SweepConfig, build
from adray.settings import absolute_settings, get_globals, set_globals
from adray.sweep.assignment import assign
from adray.sweep.plan import make_plan
from adray.sweep.worker import run_assignment


@pytest.fixture
def trial(tmp_path):
    """A trial of a toy model in a store."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=30, good=6, defects=6, size=32)
    here = get_globals()
    settings = {name: getattr(here, name) for name in ("dataset_dir", "output_dir", "cache_dir")}
    grid = {"models": ["toy-ok"], "datasets": {"mvtec": "each"}}
    overrides = {"toy-ok": {"train": {"holdout": 20}}}
    whole = {"name": "s", "settings": {**settings, "plugins": ["toy_plugin"]}, "grid": grid}
    config = build(SweepConfig, {**whole, "overrides": overrides}, "")
    absolute = absolute_settings(config.settings)
    (planned,) = make_plan(config, absolute).trials
    run_assignment(assign(planned, absolute, limit_seconds=3600.0, save_maps=0), "cpu")
    set_globals(plugins=())
    return planned.folder


SHORT = ("--corruption", "noise", "shift", "--severity", "1", "5")


def stress(trial, *more):
    return main(["stress", str(trial), "--device", "cpu", *more])


def test_it_prints_a_row_for_each_condition_and_leaves_table_scores_and_pictures(trial, capsys):
    assert stress(trial, *SHORT, "--lang", "en") == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].split()[:2] == ["condition", "image"]
    named = [line.split("  ")[0].strip() for line in lines[1:6]]
    assert named == ["plain", "noise 1", "noise 5", "shift 1", "shift 5"]
    assert "4.76 %" in printed  # of twenty held-out normals
    with (trial / "stress" / "figures.csv").open(encoding="utf-8-sig") as file:
        assert [row["condition"] for row in csv.DictReader(file)] == named
    with Image.open(trial / "stress" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 6 * 128


def test_it_speaks_korean_and_asks_by_name(trial, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    store = str(trial.parents[3])
    assert main(["stress", "bottle/toy-ok", "--store", store, "--device", "cpu", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert "과검" in printed
    assert "미검" in printed
    assert "약속" in printed


def test_a_second_run_scores_nothing_again_and_says_the_same(trial, capsys):
    stress(trial, *SHORT)
    first = capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in (trial / "stress").glob("*.parquet")}
    stress(trial, *SHORT)
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_images_that_were_moved_are_named_by_dataset_dir(trial, tmp_path, capsys):
    shutil.move(tmp_path / "datasets", tmp_path / "옮긴 곳")
    assert stress(trial, *SHORT) == 2
    assert str(tmp_path / "datasets") in capsys.readouterr().err
    assert stress(trial, *SHORT, "--dataset-dir", str(tmp_path / "옮긴 곳")) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--corruption", "blur"), "'blur' is not known"),
        (("--corruption", "nois"), "did you mean 'noise'"),
        (("--severity", "0"), "between 1 and 5"),
        (("--severity", "6"), "between 1 and 5"),
    ],
)
def test_what_is_not_known_is_refused_before_anything_is_loaded(trial, capsys, options, said):
    assert stress(trial, *options) == 2
    assert said in capsys.readouterr().err
    assert not (trial / "stress").exists()


def test_a_folder_that_is_no_trial_is_refused_in_one_sentence(trial, tmp_path, capsys):
    assert stress(tmp_path / "nothing") == 2
    assert stress(tmp_path) == 2
    (trial / "result.json").unlink()
    assert stress(trial, *SHORT) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") for line in errors)


def test_a_trial_without_its_checkpoint_says_how_to_get_one(trial, capsys):
    for file in Path(trial).glob("model_*"):
        file.unlink()
    assert stress(trial, *SHORT) == 2
    assert "keep: all" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_sentence(trial, capsys):
    (trial / "stress").write_text("in the way")
    assert stress(trial, *SHORT) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert "Traceback" not in error

"""Hyperparameter search: proposals, resuming, the winner, and what a gain is worth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_datasets import write_mvtec
from sklearn.metrics import roc_auc_score

from adray.config import SearchConfig, load_yaml
from adray.results.search_gain import CellScores, auroc_of_rows, search_gain
from adray.search_space import Domain, SearchSpace
from adray.sweep.search import Journal
from adray.sweep.searchers import make_searcher

SPACE = SearchSpace(
    {
        "model.gain": Domain("log_uniform", 0.1, 10.0),
        "model.kind": Domain("choice", choices=([1, 2], [3])),
        "train.num_epochs": Domain("int", 1, 5),
    }
)


def test_the_same_seed_proposes_the_same_settings_and_none_twice():
    first, again, other = (make_searcher(SearchConfig(seed=seed), SPACE).ask(50) for seed in (1, 1, 2))
    assert first == again != other
    assert len({repr(values) for values in first}) == 50


def test_an_exhausted_space_proposes_no_more():
    space = SearchSpace({"model.n": Domain("int", 1, 3)})
    assert sorted(v["model.n"] for v in make_searcher(SearchConfig(), space).ask(10)) == [1, 2, 3]
    assert len(make_searcher(SearchConfig(searcher="grid"), space).ask(10)) == 3


def test_optuna_proposes_near_what_it_was_told_is_good():
    pytest.importorskip("optuna")
    space = SearchSpace({"x": Domain("uniform", -10.0, 10.0)})
    taught, fresh = (make_searcher(SearchConfig(searcher="optuna", seed=3), space) for _ in range(2))
    for x in np.linspace(-9, 9, 19):
        taught.tell({"x": float(x)}, -abs(x - 3))
    near, anywhere = (np.mean([abs(v["x"] - 3) for v in searcher.ask(10)]) for searcher in (taught, fresh))
    assert near < anywhere / 2


def test_a_half_written_journal_line_and_another_search_are_passed_over(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", "a" * 64)
    journal.ask({"model.x": 1})
    journal.ask({"model.x": 1})
    journal.stop("12345678", {"objective": 0.5})
    Journal(tmp_path / "j.jsonl", "b" * 64).ask({"model.x": 2})
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"search": "aaaa')
    assert journal.asked() == [{"model.x": 1}]
    assert list(journal.stopped()) == ["12345678"]


def test_auroc_of_rows_is_scikit_learns():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    scores = rng.integers(0, 20, (5, 60)).astype(float)
    assert np.allclose(auroc_of_rows(scores, label), [roc_auc_score(label, row) for row in scores])


def test_choosing_among_equal_tries_gains_nothing_although_the_best_looks_better():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 40)
    gains, apparent = [], []
    for _ in range(30):
        scores = rng.normal(size=(20, 80)) + label
        found = search_gain([CellScores(scores, label, np.arange(80))], default=0, splits=60)
        auroc = auroc_of_rows(scores, label)
        apparent.append(auroc.max() - auroc[0])
        gains.append(found)
    assert np.mean(apparent) > 0.05
    assert abs(np.mean([gain.value for gain in gains])) < 0.02
    assert np.mean([gain.low <= 0 <= gain.high for gain in gains]) >= 0.85


def test_a_better_try_is_found_to_be_better():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], 60)
    scores = rng.normal(size=(5, 120)) + label * np.array([[0.5], [0.5], [3.0], [0.5], [0.5]])
    gain = search_gain([CellScores(scores, label, np.arange(120))], default=0)
    truth = auroc_of_rows(scores, label)
    assert gain.low > 0
    assert abs(gain.value - (truth[2] - truth[0])) < 0.02


def test_an_image_and_its_twins_stay_on_one_side_and_too_few_images_give_no_gain():
    label = np.tile([0, 1, 1], 3)
    scores = np.zeros((2, 9))
    assert search_gain([CellScores(scores, label, np.repeat(np.arange(3), 3))], default=0) is None


@pytest.fixture
def site(tmp_path):
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("bottle", "wood", "tile"), train=30, good=3, defects=4, size=48
    )
    return tmp_path


def write(site: Path, **search: object) -> Path:
    file = site / "s.yaml"
    config = {
        "name": "s",
        "settings": {
            "dataset_dir": str(site / "datasets"),
            "output_dir": str(site / "outputs"),
            "cache_dir": str(site / "cache"),
            "plugins": ["toy_plugin"],
        },
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": "each"}},
        "overrides": {"toy-*": {"model": {"marks": str(site / "marks")}, "train": {"holdout": 0.4}}},
        "search": search,
    }
    file.write_text(yaml.safe_dump(config))
    return file


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adray.sweep", str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def starts(site: Path) -> int:
    return len((site / "marks").read_text().splitlines())


@pytest.mark.ray
def test_a_killed_search_goes_on_and_its_winner_runs_as_a_normal_sweep(site):
    space = {"model.gain": {"uniform": [0.5, 2.0]}, "model.pause": {"choice": [0.1, 0.2]}}
    file = write(site, space=space, num_samples=5, scheduler="asha")
    driver = subprocess.Popen([sys.executable, "-m", "adray.sweep", str(file)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((site / "outputs").rglob("result.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    visible = {path.parent.name for path in (site / "outputs").rglob("result.json")}
    assert visible

    outcome = run(file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    folder = site / "outputs" / "sweeps" / "s"
    data = (folder / "report.html").read_text()
    assert '"configuration":"toy-ok"' in data
    # 5 settings begin on one category, 2 and the defaults at most go on to three; each trial ran once, or was killed.
    results = list((site / "outputs").rglob("result.json"))
    assert 7 <= len(results) <= 11
    assert starts(site) <= len(results) + 2
    again = run(file)
    assert starts(site) <= len(results) + 2
    assert again.stdout.split("toy-ok: best")[1].split(";")[0] == outcome.stdout.split("toy-ok: best")[1].split(";")[0]

    winner = folder / "best_toy-ok.yaml"
    assert "search" not in load_yaml(winner)
    normal = run(winner)
    assert normal.returncode == 0, normal.stdout + normal.stderr
    board = (site / "outputs" / "sweeps" / "s_best_toy-ok" / "leaderboard.csv").read_text()
    assert board.count(",done,") == 3
    assert "LEAKY" not in winner.read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_asha_stops_what_falls_behind_and_a_rerun_leaves_it_stopped(site):
    space = {"model.lr": {"log_uniform": [1e-9, 1e-2]}}
    file = write(site, space=space, num_samples=6, scheduler="asha")
    config = load_yaml(file)
    config["grid"] = {"models": ["autoencoder"], "datasets": {"mvtec": ["bottle"]}}
    small = {"base_channels": 4, "latent_channels": 4}
    config["overrides"] = {"autoencoder": {"model": small, "train": {"num_epochs": 12, "img_size": 32, "holdout": 0.3}}}
    file.write_text(yaml.safe_dump(config))
    outcome = run(file, "--num-cpus", "1")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    journal = [
        json.loads(line) for line in (site / "outputs/sweeps/s/search-autoencoder.jsonl").read_text().splitlines()
    ]
    stopped = {line["stopped"] for line in journal if "stopped" in line}
    done = {path.parent.name for path in (site / "outputs").rglob("result.json")}
    assert stopped
    assert not stopped & done
    assert len(stopped | done) == 6
    before = {path: path.stat().st_mtime_ns for path in (site / "outputs").rglob("result.json")}
    assert run(file, "--num-cpus", "1").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (site / "outputs").rglob("result.json")} == before


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_on_the_test_set_says_so_everywhere_and_the_defaults_stay_an_ordinary_trial(site):
    file = write(site, space={"model.gain": {"choice": [1.0, 1.5]}}, num_samples=2, objective="test", searcher="grid")
    outcome = run(file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "LEAKY" in outcome.stdout
    folder = site / "outputs" / "sweeps" / "s"
    assert "LEAKY" in (folder / "best_toy-ok.yaml").read_text()
    marked = [json.loads(p.read_text()).get("message", {}).get("leaky") for p in (site / "outputs").rglob("trial.json")]
    assert sorted(map(bool, marked)) == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": {"model.gian": {"uniform": [0, 1]}}}, "model.gain"),
        ({"space": "nowhere.yaml"}, "nowhere.yaml"),
        ({"space": {"model.gain": {"uniform": [0, 1]}}, "metric": "image_aurok"}, "image_auroc"),
        (
            {"space": {"model.gain": {"uniform": [0, 1]}}, "objective": "held_out_categories", "categories": ["botle"]},
            "bottle",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused_with_the_nearest_name(site, search, words):
    outcome = run(write(site, **search))
    assert outcome.returncode == 2
    assert words in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not os.path.exists(site / "outputs")  # noqa: PTH110

"""Hyperparameter search: proposals, resuming, the winner, and what a gain is worth."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.cli.sweep import main
from adray.config import SearchConfig, SweepConfig, build
from adray.config_file import load_sweep, load_yaml
from adray.errors import InputError
from adray.files import canonical_hash, read_json, write_json
from adray.job import job_identity, trial_record
from adray.language.catalogue import load_catalogue
from adray.predict import load_predictor
from adray.registry import ModelRegistry
from adray.results.image_statistics import auroc_of_rows
from adray.results.search_gain import CellScores, search_gain
from adray.search_space import Domain, SearchSpace, values_of, with_values
from adray.settings import absolute_settings, use_settings
from adray.sweep import plan
from adray.sweep import search as search_module
from adray.sweep import winner as winner_module
from adray.sweep.assignment import assign
from adray.sweep.plan import make_plan
from adray.sweep.preflight import prepare_data
from adray.sweep.resources import Site
from adray.sweep.search import Search
from adray.sweep.search_journal import Journal
from adray.sweep.searchers import make_searcher
from adray.sweep.sweep import RunOptions
from adray.sweep.winner import Tried, best_of, write_winner
from adray.sweep.worker import run_assignment

EN = load_catalogue("en")
SPACE = SearchSpace(
    {
        "model.gain": Domain("log_uniform", 0.1, 10.0),
        "model.kind": Domain("choice", choices=([1, 2], [3])),
        "train.num_epochs": Domain("int", 1, 5),
    }
)


def test_the_same_seed_proposes_the_same_settings_and_none_twice():
    first, again, other = (
        make_searcher(SearchConfig(seed=seed), SPACE).ask(50) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len({repr(values) for values in first}) == 50


def test_an_exhausted_space_proposes_no_more():
    space = SearchSpace({"model.n": Domain("int", 1, 3)})
    assert sorted(v["model.n"] for v in make_searcher(SearchConfig(), space).ask(10)) == [1, 2, 3]
    assert len(make_searcher(SearchConfig(searcher="grid"), space).ask(10)) == 3


def test_optuna_proposes_near_what_it_was_told_is_good():
    pytest.importorskip("optuna")
    space = SearchSpace({"x": Domain("uniform", -10.0, 10.0)})
    taught, fresh = (
        make_searcher(SearchConfig(searcher="optuna", seed=3), space) for _ in range(2)
    )
    for x in np.linspace(-9, 9, 19):
        taught.tell({"x": float(x)}, -abs(x - 3))
    near, anywhere = (
        np.mean([abs(v["x"] - 3) for v in searcher.ask(10)]) for searcher in (taught, fresh)
    )
    assert near < anywhere / 2


@pytest.mark.parametrize(
    ("domain", "default"),
    [
        (Domain("uniform", 1.5, 2.0), 1.0),
        (Domain("int", 1, 5), None),
        (Domain("choice", choices=(1, 3)), 9),
        (Domain("uniform", 1.00012, 1.00018), 1.00015),  # four digits of it lie outside
    ],
)
def test_optuna_goes_on_where_the_defaults_are_no_point_of_the_space(domain, default):
    pytest.importorskip("optuna")
    searcher = make_searcher(SearchConfig(searcher="optuna"), SearchSpace({"x": domain}))
    searcher.tell({"x": default}, 0.5)
    for values in searcher.ask(12):
        assert values["x"] in domain.choices or domain.low <= values["x"] <= domain.high
        searcher.tell(values, 0.5)
        searcher.tell(values, 0.5)


def test_a_half_written_journal_line_and_another_search_are_passed_over(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", "a" * 64)
    journal.ask([{"model.x": 1}])
    journal.ask([{"model.x": 1}])
    journal.stop("12345678", 0.5, 25.0)
    Journal(tmp_path / "j.jsonl", "b" * 64).ask([{"model.x": 2}])
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"search": "aaaa')
    assert journal.asked() == [[{"model.x": 1}]]
    assert list(journal.stopped()) == ["12345678"]
    journal.ask([{"model.x": 3}, {"model.x": 4}])
    assert journal.asked() == [[{"model.x": 1}], [{"model.x": 3}, {"model.x": 4}]]


def test_choosing_among_equal_tries_gains_nothing_although_the_best_looks_better():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 40)
    gains, apparent = [], []
    for _ in range(30):
        scores = rng.normal(size=(20, 80)) + label
        found = search_gain([CellScores(scores, label, np.arange(80))], default=0, splits=60)
        auroc = auroc_of_rows(scores, label == 1)
        apparent.append(auroc.max() - auroc[0])
        gains.append(found)
    assert np.mean(apparent) > 0.05
    assert abs(np.mean([gain.value for gain in gains])) < 0.02
    assert np.mean([gain.low <= 0 <= gain.high for gain in gains]) >= 0.85


def test_an_image_that_chose_with_one_seed_does_not_judge_with_another():
    rng = np.random.default_rng(4)
    label, gains = np.repeat([0, 1], 30), []
    for _ in range(25):
        taste = rng.normal(size=(15, 60))  # what a try makes of an image, whatever the seed
        cells = [
            CellScores(taste + 0.2 * rng.normal(size=taste.shape) + label, label, np.arange(60))
            for _ in "abc"
        ]
        gains.append(search_gain(cells, default=0, splits=40).value)
    assert abs(np.mean(gains)) < 3 * np.std(gains) / 5


def test_a_better_try_is_found_to_be_better():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], 60)
    scores = rng.normal(size=(5, 120)) + label * np.array([[0.5], [0.5], [3.0], [0.5], [0.5]])
    gain = search_gain([CellScores(scores, label, np.arange(120))], default=0)
    truth = auroc_of_rows(scores, label == 1)
    assert gain.low > 0
    assert abs(gain.value - (truth[2] - truth[0])) < 0.02


def test_an_image_and_its_twins_stay_on_one_side_and_too_few_images_give_no_gain():
    label = np.tile([0, 1, 1], 3)
    scores = np.zeros((2, 9))
    assert search_gain([CellScores(scores, label, np.repeat(np.arange(3), 3))], default=0) is None


@pytest.fixture
def site(tmp_path):
    write_mvtec(
        tmp_path / "datasets" / "mvtec",
        categories=("bottle", "wood", "tile"),
        train=30,
        good=3,
        defects=4,
        size=48,
    )
    return tmp_path


def write(site: Path, **search: object) -> Path:
    file = site / "s.yaml"
    config = {
        "name": "s",
        "settings": toy_settings(site),
        "grid": {"models": ["toy-ok"], "datasets": {"mvtec": "each"}},
        "overrides": {
            "toy-*": {"model": {"marks": str(site / "marks")}, "train": {"holdout": 0.4}}
        },
        "search": search,
    }
    file.write_text(yaml.safe_dump(config))
    return file


class Killed(BaseException):
    """The driver's process is gone."""


class Store:
    """Stands in for Ray: writes what trials would leave in the store, and may be killed after some of them.

    Args:
        bend: category and settings to the AUROC, and the pred_score of the 12 defects, that a trial gets.
    """

    def __init__(self, bend):
        self.bend, self.ran, self.left, self.fails = bend, [], -1, False

    def run_rounds(self, sweep, site):
        for trial in sweep.wanted():
            if self.left == len(self.ran):
                raise Killed
            self.ran.append(trial.id8)
            self._write(trial)
        return SimpleNamespace(unread={}, stopped_early={}, stops=self.fails)

    def _write(self, trial):
        trial.folder.mkdir(parents=True)
        write_json(trial.folder / "trial.json", trial_record(trial.identity, {}))
        auroc, defects = self.bend(trial.job.categories[0], trial.job.resolved.config.gain)
        score = np.concatenate([np.arange(12) / 12, defects])
        split = np.repeat(["holdout", "synthetic"], 12)
        path = [f"{trial.job.categories[0]}/{i}" for i in range(12)]
        rows = {
            "dataset": "mvtec",
            "category": "c",
            "split": split,
            "path": [*path, *(f"{p}#0" for p in path)],
        }
        table = pd.DataFrame({**rows, "label": np.repeat([0, 1], 12), "pred_score": score})
        table.to_parquet(trial.folder / "scores.parquet")
        write_json(trial.folder / "result.json", {"metrics": {"image_auroc": auroc}})


def at_random(category, gain):
    """The same settings always fare the same, and others otherwise."""
    rng = np.random.default_rng(int(canonical_hash([category, gain])[:8], 16))
    return float(rng.uniform()), rng.uniform(0, 2, 12)


def searched(file: Path, store: Store, monkeypatch) -> Search:
    """A search that has run on the stand-in, if it was not killed."""
    monkeypatch.setattr(search_module, "run_rounds", store.run_rounds)
    config = load_sweep(str(file))
    settings = prepare_data(config)
    use_settings(settings)
    search = Search(config, settings, RunOptions(), "toy-ok")
    search.run(Site(0, 2, 8.0))
    return search


GAIN = {"model.gain": {"uniform": [0.5, 2.0]}}


@pytest.mark.parametrize(
    "how", [{"scheduler": "asha"}, {"searcher": "optuna"}], ids=["asha", "optuna"]
)
def test_a_search_killed_after_any_trial_computes_nothing_twice_and_is_complete_in_the_end(
    site, monkeypatch, how
):
    if "searcher" in how:
        pytest.importorskip("optuna")
    file, whole = write(site, space=GAIN, num_samples=6, **how), Store(at_random)
    wanted = searched(file, whole, monkeypatch).summary()
    kills = range(1, len(whole.ran), 2 if "scheduler" in how else 6)
    assert len(kills) >= 3
    for kill in kills:
        (site / "outputs").rename(site / f"before-{kill}")
        store = Store(at_random)
        store.left = kill
        with pytest.raises(Killed):
            searched(file, store, monkeypatch)
        store.left = -1
        found = searched(file, store, monkeypatch).summary()
        assert len(set(store.ran)) == len(store.ran)
        assert found["num_trials"] == 6
        if "scheduler" in how:
            assert found == wanted


def test_more_samples_change_nothing_of_what_was_found_before(site, monkeypatch):
    def states(num_samples):
        search = searched(
            write(site, space=GAIN, num_samples=num_samples, scheduler="asha"), store, monkeypatch
        )
        return [(found.values, found.status, found.score) for found in search.known]

    tried: dict[float, int] = {}

    def later_is_better(category, gain):
        return tried.setdefault(gain, len(tried)) / 20, np.zeros(12)

    store = Store(later_is_better)
    few, many = states(5), states(14)
    ran = len(store.ran)
    assert many[:5] == few
    assert {status for _, status, _ in many} == {"done", "stopped"}
    assert states(14) == many
    assert len(store.ran) == ran


def test_images_that_stopped_settings_do_not_judge_the_gain(site, monkeypatch):
    def only_on_bottle(category, gain):
        if category != "bottle":
            return 0.5, np.arange(12) / 12
        return (gain, np.arange(12) / 12 + (gain > 1)) if gain != 1 else (0.1, np.arange(12) / 12)

    early, full = (
        searched(
            write(site, space=GAIN, num_samples=8, scheduler=s), Store(only_on_bottle), monkeypatch
        ).summary()
        for s in ("asha", "none")
    )
    assert early["best_score"] > early["default_score"]
    assert early["gain"] == early["low"] == early["high"] == 0
    assert full["gain"] > 0.1


OVERLAPPING = {
    "a later pattern wins": {
        "toy-ok": {"train": {"img_size": 24, "holdout": 0.2}, "model": {"gain": 0.7}},
        "*": {"train": {"img_size": 40, "holdout": 0.4}},
    },
    "a later name wins": {
        "toy-*": {"train": {"holdout": 0.3, "num_epochs": 3}},
        "toy-ok": {"train": {"holdout": 0.4}, "model": {"gain": 1.5}},
    },
    "back to the value of the row": {
        "toy-ok": {"train": {"holdout": 0.3, "img_size": 24}},
        "all": {"train": {"img_size": 32}},
    },
}


@pytest.mark.parametrize("how", [{}, {"scheduler": "asha"}, {"searcher": "grid"}], ids=str)
@pytest.mark.parametrize("overrides", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_the_winners_file_trains_just_as_the_best_setting_did(site, monkeypatch, overrides, how):
    file = write(site, space=GAIN, num_samples=4, **how)
    config = load_yaml(file)
    config["overrides"] = overrides
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    search = searched(file, Store(at_random), monkeypatch)
    assert write_winner(search.tries(), search.folder, EN)

    winner = load_sweep(str(search.folder / "best_toy-ok.yaml"))
    resolved = plan.resolve(winner, "toy-ok")
    best = best_of(search.tries())
    for cell, folder in zip(search.cells, best.folders, strict=True):
        identity = read_json(folder / "trial.json")["identity"]
        again = job_identity(replace(cell, resolved=resolved), search.settings, identity["data"])
        assert canonical_hash(again)[:8] == folder.name


def longer(num_epochs, max_steps, values):
    """What a stand-in for a trained model runs for under some values of a space."""
    base = ModelRegistry.resolve(
        "autoencoder", train={"num_epochs": num_epochs, "max_steps": max_steps}
    )
    config = with_values(base, values).train_config
    return config.num_epochs, config.max_steps


def test_epochs_of_a_space_win_over_steps_but_for_the_defaults_which_keep_theirs():
    space = SearchSpace({"train.num_epochs": Domain("int", 1, 50)})
    base = ModelRegistry.resolve("autoencoder", train={"num_epochs": 3, "max_steps": 700})
    assert values_of(space, base) == {"train.num_epochs": None}
    assert with_values(base, values_of(space, base)) == base
    assert longer(3, 700, {"train.num_epochs": 3}) == (3, None)
    assert longer(3, None, {"train.num_epochs": 9}) == (9, None)
    assert longer(3, None, {"train.num_epochs": 9, "train.max_steps": 80}) == (9, 80)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"num_epochs": 4},
        {"max_steps": 90},
        {"num_epochs": 4, "max_steps": 90},
        {"num_epochs": 4, "max_steps": None},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "values",
    [{}, {"train.num_epochs": 7}, {"train.max_steps": 50}, {"train.max_steps": None}],
    ids=str,
)
@pytest.mark.parametrize("name", ["dinomaly-small-224", "autoencoder"])  # by steps, by epochs
def test_the_winners_overrides_resolve_to_what_the_search_ran(name, asked, values):
    config = build(
        SweepConfig,
        {
            "name": "s",
            "grid": {"datasets": {"x": "all"}},
            "overrides": {"*": {"train": {"img_size": 280}}, name: {"train": asked}},
        },
        "",
    )
    tries = SimpleNamespace(config=config, configuration=name, base=plan.resolve(config, name))
    found = winner_module._overrides_of(tries, Tried(values))
    again = replace(config, overrides={name: found})
    assert plan.resolve(again, name) == with_values(tries.base, values)


def test_page_file_and_console_count_the_same_settings_and_name_one_best(site, monkeypatch, capsys):
    file, store = write(site, space=GAIN, num_samples=5), Store(at_random)
    store.left = 7
    with pytest.raises(Killed):
        searched(file, store, monkeypatch)
    store.left = -1
    search = searched(file, store, monkeypatch)
    search.known.append(Tried({"model.gain": 9.0}))  # it has not ended
    summary = search.summary()
    assert write_winner(search.tries(), search.folder, EN)
    text = (search.folder / "best_toy-ok.yaml").read_text()
    assert summary["num_trials"] == len(summary["trials"]) == 5
    assert "# Best of 5 settings" in text
    assert load_sweep(str(search.folder / "best_toy-ok.yaml")).verdict.tried == 5
    scores = {trial["values"]["model.gain"]: trial["score"] for trial in summary["trials"]}
    assert summary["best_score"] == max(scores.values()) == scores[summary["best"]["model.gain"]]
    assert f"{summary['best_score']:.4f}" in capsys.readouterr().out


class Telling(Store):
    """Keeps what the console says of each trial."""

    def __init__(self, bend):
        super().__init__(bend)
        self.said, self.tried = [], []

    def run_rounds(self, sweep, site):
        for trial in sweep.wanted():
            self._write(trial)
            self.tried.append((trial.job.categories[0], trial.job.resolved.config.gain))
            self.said.append(sweep.said_of(SimpleNamespace(folder=str(trial.folder))))
        return SimpleNamespace(unread={}, stopped_early={}, stops=False)


def test_the_console_counts_settings_over_all_batches_and_names_the_best_of_all_so_far(
    site, monkeypatch
):
    store = Telling(at_random)
    searched(write(site, space=GAIN, num_samples=4), store, monkeypatch)
    assert len(store.said) == 12
    gains, figures = [], {}
    for said, (category, gain) in zip(store.said, store.tried, strict=True):
        gains += [gain] if gain not in gains else []
        figures.setdefault(gain, []).append(at_random(category, gain)[0])
        means = [np.mean(found) for found in figures.values() if len(found) == 3]
        best = f"{max(means):.4f}" if means else "n/a"
        values = "the defaults" if gain == gains[0] else f"model.gain={gain}"
        assert said == f"setting {len(gains)}/4: {values}; best so far {best}"


def test_where_the_defaults_are_the_best_no_gain_is_stated(site, monkeypatch, capsys):
    def falling(category, gain):
        return (0.9 if gain == 1.0 else 0.4), np.arange(12) / 12

    search = searched(write(site, space=GAIN, num_samples=4), Store(falling), monkeypatch)
    for language, words in (
        ("en", "keep them; image_auroc on drawn defects 0.9000"),
        ("ko", "가상 결함 image_auroc 0.9000"),
    ):
        assert write_winner(search.tries(), search.folder, load_catalogue(language))
        said = capsys.readouterr().out
        assert words in said
        assert "gain" not in said
        assert "->" not in said
    assert "->" not in (search.folder / "best_toy-ok.yaml").read_text().splitlines()[1]


def test_a_better_setting_states_its_gain_by_the_name_of_what_it_was_judged_on(
    site, monkeypatch, capsys
):
    def rising(category, gain):
        return (0.4 if gain == 1.0 else 0.9), np.arange(12) / 12 + (gain != 1.0)

    search = searched(write(site, space=GAIN, num_samples=4), Store(rising), monkeypatch)
    assert write_winner(search.tries(), search.folder, EN)
    said = capsys.readouterr().out
    assert "image_auroc on drawn defects 0.4000 (defaults) -> 0.9000" in said
    assert "gain on images that did not choose +" in said


@pytest.mark.parametrize(("objective", "tried"), [("synthetic", 3), ("test", 1)])
def test_a_winner_counts_the_settings_where_its_calibration_normals_chose(
    site, monkeypatch, objective, tried
):
    file = write(site, space=GAIN, num_samples=3, objective=objective)
    search = searched(file, Store(at_random), monkeypatch)
    assert write_winner(search.tries(), search.folder, EN)
    winner = search.folder / "best_toy-ok.yaml"
    assert load_sweep(str(winner)).verdict.tried == tried
    assert ("verdict.tried" in winner.read_text()) == (tried > 1)


def test_what_a_winners_file_trains_promises_for_all_settings_and_so_does_its_prediction(
    site, monkeypatch
):
    search = searched(write(site, space=GAIN, num_samples=3), Store(at_random), monkeypatch)
    assert write_winner(search.tries(), search.folder, EN)
    winner = load_sweep(str(search.folder / "best_toy-ok.yaml"))
    settings = absolute_settings(winner.settings)
    trial = next(t for t in make_plan(winner, settings).trials if t.job.categories == ("bottle",))
    outcome = run_assignment(assign(trial, settings, limit_seconds=600.0, save_maps=0), "cpu")
    assert outcome.status == "done", outcome

    folder = trial.folder
    result = read_json(folder / "result.json")
    alone = pd.read_parquet(folder / "scores.parquet").query("split == 'holdout'")
    promise = result["thresholds"]["promise"]
    assert promise["tried"] == result["pixel_promise"]["tried"] == 3
    assert promise["promised"] > 1 / (len(alone) + 1)
    predictor = load_predictor(folder, "cpu")
    assert predictor.promise(0.05).promised == pytest.approx(promise["promised"])
    assert predictor.pixel_promise().promise.tried == 3


def test_an_interval_holds_its_estimate_also_where_gains_are_few_and_large():
    label = np.repeat([0, 1], 8)
    scores = np.zeros((2, 16))
    scores[1, 15] = 1.0  # one image of sixteen makes all the difference
    for seed in range(20):
        gain = search_gain([CellScores(scores, label, np.arange(16))], 0, seed, splits=9)
        assert gain.low <= gain.value <= gain.high


def test_the_plan_says_what_set_changed_with_and_without_a_search(site, capsys):
    file = str(write(site, space=GAIN, num_samples=3))
    pairs = ["budget=quick", f"settings.output_dir={site}/x #1"]
    for search in ([], ["search=null"]):
        main([file, "--dry-run", "--set", *pairs, "--set", f"save_maps={1 + len(search)}", *search])
        printed = capsys.readouterr().out
        assert 'set budget = "quick"' in printed
        assert f'set settings.output_dir = "{site}/x #1"' in printed
        assert f"set save_maps = {1 + len(search)}" in printed


def test_a_search_whose_results_cannot_be_read_ends_and_calls_none_of_them_failed(
    site, monkeypatch, capsys
):
    def run_rounds(sweep, site):
        unread = {trial.id8: "Stale file handle" for trial in sweep.wanted()}
        return SimpleNamespace(unread=unread, stopped_early={}, stops=False)

    monkeypatch.setattr(search_module, "run_rounds", run_rounds)
    monkeypatch.setattr(search_module, "workers", lambda sweep: nullcontext(Site(0, 2, 8.0)))
    with pytest.raises(InputError, match=r"3 tries .* could not be read \(Stale file handle\)"):
        main([str(write(site, space=GAIN, num_samples=3))])
    assert "failed" not in capsys.readouterr().out


def test_fail_fast_ends_a_search_and_only_is_refused(site, monkeypatch, capsys):
    store = Store(at_random)
    store.fails = True
    monkeypatch.setattr(search_module, "run_rounds", store.run_rounds)
    monkeypatch.setattr(search_module, "workers", lambda sweep: nullcontext(Site(0, 2, 8.0)))
    file = str(write(site, space=GAIN, num_samples=3))
    assert main([file, "--fail-fast"]) == 1
    assert "stopped at the first failure" in capsys.readouterr().err
    assert len(store.ran) == 3
    with pytest.raises(InputError, match=r"grid\.models"):
        main([file, "--only", "*/bottle/*"])


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adray.sweep", str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def starts(site: Path) -> int:
    return len((site / "marks").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_search_goes_on_and_its_winner_runs_as_a_normal_sweep(site):
    space = {"model.gain": {"uniform": [0.5, 2.0]}, "model.pause": {"choice": [0.1, 0.2]}}
    file = write(site, space=space, num_samples=5, scheduler="asha")
    driver = subprocess.Popen(
        [sys.executable, "-m", "adray.sweep", str(file)], stdout=subprocess.DEVNULL
    )
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
    assert (
        again.stdout.split("toy-ok: best")[1].split(";")[0]
        == outcome.stdout.split("toy-ok: best")[1].split(";")[0]
    )

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
    config["overrides"] = {
        "autoencoder": {"model": small, "train": {"num_epochs": 12, "img_size": 32, "holdout": 0.3}}
    }
    file.write_text(yaml.safe_dump(config))
    outcome = run(file, "--num-cpus", "1")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    journal = [
        json.loads(line)
        for line in (site / "outputs/sweeps/s/search-autoencoder.jsonl").read_text().splitlines()
    ]
    stopped = {line["stopped"] for line in journal if "stopped" in line}
    done = {path.parent.name for path in (site / "outputs").rglob("result.json")}
    assert stopped
    assert not stopped & done
    assert len(stopped | done) == 6
    before = {path: path.stat().st_mtime_ns for path in (site / "outputs").rglob("result.json")}
    assert run(file, "--num-cpus", "1").returncode == 0
    assert {
        path: path.stat().st_mtime_ns for path in (site / "outputs").rglob("result.json")
    } == before


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_on_the_test_set_says_so_everywhere_and_the_defaults_stay_an_ordinary_trial(site):
    file = write(
        site,
        space={"model.gain": {"choice": [1.0, 1.5]}},
        num_samples=2,
        objective="test",
        searcher="grid",
    )
    outcome = run(file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "LEAKY" in outcome.stdout
    folder = site / "outputs" / "sweeps" / "s"
    assert "LEAKY" in (folder / "best_toy-ok.yaml").read_text()
    marked = [
        json.loads(p.read_text()).get("assignment", {}).get("leaky")
        for p in (site / "outputs").rglob("trial.json")
    ]
    assert sorted(map(bool, marked)) == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"space": {"model.gian": {"uniform": [0, 1]}}}, "model.gain"),
        ({"space": "nowhere.yaml"}, "nowhere.yaml"),
        ({"space": {"model.gain": {"uniform": [0, 1]}}, "metric": "image_aurok"}, "image_auroc"),
        (
            {
                "space": {"model.gain": {"uniform": [0, 1]}},
                "objective": "held_out_categories",
                "categories": ["botle"],
            },
            "bottle",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused_with_the_nearest_name(site, search, words):
    with pytest.raises(InputError, match=words):
        main([str(write(site, **search))])
    assert not (site / "outputs").exists()

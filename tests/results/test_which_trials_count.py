"""Stores that grew in odd ways: every command agrees on which trials count, and none is a mean over changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_store import write_record
from test_current import NEW, OLD, trial, write_test_scores

from adray.__main__ import main
from adray.ensembles.candidates import Wanted, find_candidates
from adray.results.current import view_store
from adray.results.diff import compare_stores
from adray.results.store import TrialRecord
from adray.results.summaries import read_summaries

Grown = Callable[[Path], list[TrialRecord]]
GROWN: dict[str, Grown] = {}
"""What happened to a store, by its name; each writes it and gives the trials that count."""


def grown(happened: Grown) -> Grown:
    GROWN[happened.__name__] = happened
    return happened


def failed(record: TrialRecord, day: int) -> TrialRecord:
    (record.folder / "result.json").unlink()
    failure = {"reason": "no", "finished": f"2026-05-{day:02d}T00:00:00+00:00"}
    found = replace(record, result=None, failure=failure)
    write_record(found)
    return found


def unfinished(record: TrialRecord) -> None:
    (record.folder / "result.json").unlink()


def searched(record: TrialRecord) -> None:
    record.trial["assignment"] = {"search": "tune"}
    write_record(record)


@grown
def a_seed_was_added(store):
    return [trial(store, seed=0, day=1), trial(store, seed=1, day=2)]


@grown
def one_of_two_seeds_was_changed(store):
    trial(store, seed=0, day=1, model__lr=0.1)
    trial(store, seed=1, day=2, model__lr=0.1)
    return [trial(store, auroc=0.5, seed=0, day=3, model__lr=0.2)]


@grown
def a_change_was_interrupted(store):
    trial(store, seed=0, day=1, model__lr=0.1)
    trial(store, seed=1, day=1, model__lr=0.1)
    unfinished(trial(store, seed=1, day=3, model__lr=0.2))
    return [trial(store, auroc=0.5, seed=0, day=2, model__lr=0.2)]


@grown
def a_change_has_not_finished_anything(store):
    unfinished(trial(store, seed=0, day=3, model__lr=0.2))
    return [trial(store, seed=0, day=1, model__lr=0.1)]


@grown
def a_change_failed(store):
    failed(trial(store, day=2, model__lr=0.2), 2)
    return [trial(store, day=1, model__lr=0.1)]


@grown
def a_failure_was_mended_by_a_change(store):
    failed(trial(store, day=1, model__lr=0.1), 1)
    return [trial(store, day=2, model__lr=0.2)]


@grown
def the_images_and_the_setting_were_put_back(store):
    trial(store, NEW, day=1, model__lr=0.1)
    return [trial(store, OLD, auroc=0.5, day=2, model__lr=0.2)]


@grown
def the_split_was_changed(store):
    trial(store, day=1, train__split_mode="1cls")
    return [trial(store, "c" * 32, auroc=0.5, day=2, train__split_mode="2cls")]


@grown
def the_version_was_raised(store):
    trial(store, day=1, versions__core=2)
    return [trial(store, auroc=0.5, day=2, versions__core=3)]


@grown
def the_configuration_was_renamed(store):
    return [trial(store, day=1), trial(store, auroc=0.5, day=2, configuration="padim-new")]


@grown
def the_trainer_was_moved(store):
    trial(store, day=1, trainer="before.Padim")
    return [trial(store, auroc=0.5, day=2, trainer="after.Padim")]


@grown
def a_number_is_written_otherwise(store):
    trial(store, day=1, model__lr=1)
    return [trial(store, auroc=0.5, day=2, model__lr=1.0)]


@grown
def a_failure_was_mended_by_moving_the_trainer(store):
    failed(trial(store, day=1, trainer="before.Padim"), 1)
    return [trial(store, auroc=0.5, day=2, trainer="after.Padim")]


@grown
def a_search_ended_last(store):
    searched(trial(store, auroc=0.5, day=9, model__lr=0.2))
    searched(trial(store, auroc=0.5, day=9, model__lr=0.1, evaluation="synthetic"))
    return [trial(store, day=1, model__lr=0.1)]


@grown
def drawn_defects_were_replaced_by_a_test(store):
    trial(store, day=1, evaluation="synthetic", versions__core=3, versions__defects=1)
    return [trial(store, auroc=0.5, day=2, versions__core=3)]


@grown
def a_condition_was_changed_and_the_plain_case_was_not(store):
    plain = trial(store, day=1, model__lr=0.1)
    trial(store, auroc=0.6, day=2, model__lr=0.1, condition={"k_shot": 4, "draw": 0})
    return [
        plain,
        trial(store, auroc=0.5, day=3, model__lr=0.2, condition={"k_shot": 4, "draw": 0}),
    ]


@grown
def other_draws_and_shots_were_added(store):
    drawn = [trial(store, day=1 + k, condition={"k_shot": 4, "draw": k}) for k in range(3)]
    return [
        trial(store, day=1),
        *drawn,
        trial(store, day=9, condition={"k_shot": 8, "draw": 0}),
    ]


@grown
def the_images_of_a_condition_were_changed(store):
    trial(store, OLD, day=1, condition={"k_shot": 4, "draw": 0})
    return [trial(store, NEW, auroc=0.5, day=2)]


@grown
def a_copy_of_the_data_sets_folder_lies_beside_it(store):
    kept = [trial(store, seed=0, day=1), trial(store, seed=1, day=2)]
    for record in kept:
        write_test_scores(record, map(str, range(8)))
    shutil.copytree(store / "mvtec", store / "a_copy")
    return kept


@grown
def two_stores_were_merged(store):
    trial(store, seed=0, day=1, model__lr=0.1)
    shutil.move(store / "mvtec", store / "of_kim")
    return [trial(store, auroc=0.5, seed=0, day=2, model__lr=0.2)]


@grown
def two_settings_ended_in_the_same_second(store):
    both = [trial(store, day=1, model__lr=rate) for rate in (0.1, 0.2)]
    return [max(both, key=lambda record: record.id8)]


@pytest.mark.parametrize("happened", GROWN.values(), ids=GROWN)
def test_every_command_takes_the_trials_that_count_and_each_of_them_once(
    happened, tmp_path, capsys
):
    store = tmp_path / "store"
    counted = sorted(record.id8 for record in happened(store))
    for record in view_store(store).records:
        if record.result is not None and not (record.folder / "scores.parquet").exists():
            write_test_scores(record, map(str, range(8)))
    everything = {record.id8 for record in view_store(store).records}

    for read in ({}, {"read": read_summaries}):
        shown = view_store(store, **read).shown(everything=False)
        assert sorted(record.id8 for record in shown if record.result) == counted

    main(["status", str(store)])
    listed = re.findall(r"^done +([0-9a-f]{8}) ", capsys.readouterr().out, re.M)
    assert sorted(listed) == counted

    table = tmp_path / "report.csv"
    main(["report", str(store), "--format", "csv", "--out", str(table)])
    rows = pd.read_csv(table, dtype={"id": str})
    assert sorted(rows[rows["status"] == "done"]["id"].str[:8]) == counted

    main(["decide", str(store), "--format", "json"])
    named = set(re.findall(r"\b[0-9a-f]{8}\b", capsys.readouterr().out)) & everything
    assert named
    assert named <= set(counted)

    found = find_candidates(store, Wanted())
    team = {one.record.id8 for some in found.by_category.values() for one in some}
    assert team <= set(counted)

    table = tmp_path / "all.csv"
    main(["report", str(store), "--all", "--format", "csv", "--out", str(table)])
    rows_of_all = pd.read_csv(table, dtype={"id": str})
    assert rows_of_all["id"].is_unique
    current = rows_of_all[rows_of_all["status"] == "done"].fillna("")
    repetition = current.groupby(["configuration", "condition", "setting", "seed", "draw"])
    assert repetition.size().max() == 1

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    cells = compare_stores(store, copy).cells
    assert set(cells["id_a"]) == set(cells["id_b"]) <= set(counted)
    means = rows[rows["status"] == "done"].groupby("configuration")["image_auroc"].mean()
    for name, of_cell in cells.groupby("configuration")["a"]:
        if len(of_cell) == 1 and name in means:
            assert of_cell.iloc[0] == pytest.approx(means[name])

"""What changed between two stores, with stores that were made for it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fake_store import fake_record, write_record
from sklearn.metrics import roc_auc_score

from adray.results.diff import compare_stores, main

COUNT = 60
LABEL = np.repeat([0, 1], COUNT // 2)


def write_trial(store, configuration="padim", category="bottle", seed=0, shift=3.0, move=0.0, **environment):
    """A finished trial whose scores come from a fixed draw per cell and seed, then moved by noise of size `move`."""
    rng = np.random.default_rng([seed, len(category)])
    score = rng.normal(size=COUNT) + shift * LABEL + move * np.random.default_rng(99).normal(size=COUNT)
    record = fake_record(store, configuration, category, seed, roc_auc_score(LABEL, score))
    record.trial["environment"] |= environment
    write_record(record)
    images = {
        "dataset": "mvtec",
        "category": category,
        "split": "test",
        "path": [f"{store}/images/{i:03d}.png" for i in range(COUNT)],
        "label": LABEL,
        "pred_score": score,
    }
    pd.DataFrame(images).to_parquet(record.folder / "scores.parquet")
    return record


@pytest.fixture
def stores(tmp_path):
    """Two stores of one sweep of two categories and three seeds, before and after an upgrade."""
    a, b = tmp_path / "a", tmp_path / "b"
    for store, torch in ((a, "2.9"), (b, "2.14")):
        for category in ("bottle", "wood"):
            for seed in range(3):
                write_trial(store, category=category, seed=seed, torch=torch)
    return a, b


def test_equal_stores_have_not_changed_and_the_upgrade_is_named(stores, capsys):
    assert main([str(store) for store in stores]) == 0
    out = capsys.readouterr().out
    assert "2 cells in both stores, 0 changed, 2 did not" in out
    assert "torch 2.9 -> 2.14 (6 trials)" in out


def test_scores_that_move_less_than_seeds_do_are_no_change(stores):
    a, b = stores
    for seed in range(3):
        write_trial(b, category="wood", seed=seed, move=0.05)
    found = compare_stores(a, b)
    assert not found.has_changed
    assert found.cells.set_index("category").loc["wood", "score_shift"] > 0


def test_a_detector_that_broke_is_found_and_named(stores, capsys):
    a, b = stores
    for seed in range(3):
        write_trial(b, category="wood", seed=seed, shift=0.2)
    assert main([str(a), str(b), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    verdicts = {cell["category"]: cell["verdict"] for cell in found["cells"]}
    assert verdicts == {"bottle": "same", "wood": "changed"}
    wood = next(cell for cell in found["cells"] if cell["category"] == "wood")
    assert wood["change"] < -0.2
    assert wood["p_adjusted"] < 0.05


def test_random_upgrades_are_seldom_called_a_change(tmp_path):
    """Nine cells whose scores are drawn anew with other seeds: a false alarm in at most 5 % of all comparisons."""
    alarms = 0
    for repetition in range(20):
        stores = (tmp_path / f"a{repetition}", tmp_path / f"b{repetition}")
        for side, store in enumerate(stores):
            for cell in range(3):
                for seed in range(3):
                    record = write_trial(store, category="c" * (cell + 1), seed=seed)
                    draw = np.random.default_rng([repetition, side, cell, seed])
                    score = draw.normal(size=COUNT) + 1.5 * LABEL
                    record.result["metrics"]["image_auroc"] = roc_auc_score(LABEL, score)
                    write_record(record)
                    file = record.folder / "scores.parquet"
                    pd.read_parquet(file).assign(pred_score=score).to_parquet(file)
        alarms += compare_stores(*stores).has_changed
    assert alarms <= 4  # with 5 % each, more than that happens once in 400 test runs


def test_cells_of_one_store_only_are_listed_and_a_failure_is_a_change(stores, capsys):
    a, b = stores
    write_trial(a, "stfpm")
    assert main([str(a), str(b)]) == 0
    assert "A: mvtec/bottle/stfpm seed 0: not finished in B" in capsys.readouterr().out
    write_record(fake_record(b, "stfpm", "bottle", 0, None))
    assert main([str(a), str(b)]) == 1
    assert "failed in B: stfpm failed on purpose" in capsys.readouterr().out


def test_other_hyperparameters_are_no_partner(stores, capsys):
    a, b = stores
    one, other = write_trial(a, "stfpm"), write_trial(b, "stfpm")
    one.trial["identity"]["model"], other.trial["identity"]["model"] = {"lr": 0.4}, {"lr": 0.1}
    write_record(one)
    write_record(other)
    assert main([str(a), str(b)]) == 0
    assert "other hyperparameters in B: model.lr 0.4 and 0.1" in capsys.readouterr().out


def test_stores_that_cannot_be_compared_are_refused_in_one_sentence(stores, tmp_path, capsys):
    from adray.__main__ import main as adray

    assert adray(["diff", str(stores[0]), str(tmp_path / "none")]) == 2
    write_trial(tmp_path / "c", "stfpm")
    assert adray(["diff", str(stores[0]), str(tmp_path / "c")]) == 2
    errors = capsys.readouterr().err
    assert "does not exist" in errors
    assert "two runs of the same sweep" in errors


def test_the_table_can_be_read_by_a_program(stores, capsys):
    assert main([str(store) for store in stores] + ["--format", "csv"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("dataset,category,configuration,seeds,a,b,change")
    assert len(lines) == 2

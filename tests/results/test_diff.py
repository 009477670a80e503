"""What changed between two stores, with stores that were made for it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fake_store import fake_record, write_record
from scipy import stats
from sklearn.metrics import roc_auc_score

from adray.cli.diff import main
from adray.results.diff import CHANGED_OR_SEED, compare_stores
from adray.results.image_statistics import holm
from adray.results.seed_noise import SeedSpread

COUNT = 60
LABEL = np.repeat([0, 1], COUNT // 2)


def write_trial(
    store, configuration="padim", category="bottle", seed=0, shift=3.0, move=0.0, **environment
):
    """A finished trial whose scores come from a fixed draw per cell and seed, then moved by noise of size `move`."""
    rng = np.random.default_rng([seed, len(category)])
    score = (
        rng.normal(size=COUNT) + shift * LABEL + move * np.random.default_rng(99).normal(size=COUNT)
    )
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
    assert "2 cells in both stores, 0 changed, 2 did not (a cell is a model on a part)" in out
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


@pytest.mark.slow
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


@pytest.mark.parametrize("unequal", [0.0, 1.0])
def test_seeds_that_are_drawn_anew_are_called_a_change_in_at_most_five_percent_of_all_comparisons(
    tmp_path, unequal
):
    """Fifteen cells, two seeds in each store, cells alike or not; 400 repetitions know 5 % to within 1.1 %."""
    rng, alarms = np.random.default_rng(1), 0
    records = [
        [fake_record(tmp_path / store, "padim", f"c{cell}", seed) for seed in range(2)]
        for cell in range(15)
        for store in "ab"
    ]
    for _ in range(400):
        deviation = 0.01 * np.exp(unequal * rng.normal(size=15))
        values = rng.normal(size=(15, 2, 2)) * deviation[:, None, None]
        for group, numbers in zip(records, values.reshape(30, 2), strict=True):
            for record, value in zip(group, numbers, strict=True):
                record.result["metrics"]["image_auroc"] = value
        spread = SeedSpread([record for group in records for record in group], "image_auroc")
        found = [spread.of((records[2 * cell][0], records[2 * cell + 1][0])) for cell in range(15)]
        changes = values.mean(2) @ [-1, 1]
        p = [
            2 * stats.t.sf(abs(change) / sd, df)
            for change, (sd, df) in zip(changes, found, strict=True)
        ]
        alarms += (holm(np.array(p)) < 0.05).any()
    assert alarms / 400 <= 0.05 + 3 * 0.011


def test_the_spread_of_seeds_is_within_stores_and_between_the_cells_own_and_that_of_all(tmp_path):
    def spread_of(values):
        records = []
        for cell, numbers in values.items():
            for store, move in (
                ("a", 0.0),
                ("b", 0.3),
            ):  # an upgrade that moves everything is no spread
                for seed, number in enumerate(numbers):
                    records.append(
                        fake_record(tmp_path / store, "padim", cell, seed, number + move)
                    )
        spread = SeedSpread(records, "image_auroc")
        return {
            cell: spread.of(
                (
                    fake_record(tmp_path / "a", "padim", cell, 0),
                    fake_record(tmp_path / "b", "padim", cell, 0),
                )
            )
            for cell in values
        }

    one = spread_of({"x": [0.5, 0.52]})
    assert one["x"] == (pytest.approx(np.std([0.5, 0.52], ddof=1)), 2)
    several = spread_of({"calm": [0.5, 0.501], "usual": [0.5, 0.51], "wild": [0.5, 0.6]})
    assert (
        0.001 / np.sqrt(2)
        < several["calm"][0]
        < several["usual"][0]
        < several["wild"][0]
        < 0.1 / np.sqrt(2)
    )
    assert np.isnan(spread_of({"x": [0.5]})["x"][0])
    assert spread_of({"x": [0.5, 0.5], "y": [0.5, 0.5]})["x"][0] == 0


def test_with_one_seed_a_change_is_told_but_marked(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    write_trial(a)
    write_trial(b, shift=0.2)
    assert main([str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert CHANGED_OR_SEED in out
    assert "Run several seeds" in out
    assert main([str(a), str(a)]) == 0
    assert "seeds" not in capsys.readouterr().out


def test_metrics_without_stored_maps_are_judged_by_their_seeds_alone(stores, tmp_path):
    a, b = stores
    for category, auroc in (("bottle", 0.9), ("wood", 0.5)):
        for store in (a, b):
            for seed in range(3):
                value = (0.9 if store == a else auroc) + 0.01 * seed
                record = fake_record(store, "padim", category, seed, value)
                write_record(record)
    found = compare_stores(a, b, "pixel_aupro").cells.set_index("category")
    assert dict(found["verdict"]) == {"bottle": "same", "wood": "changed"}
    assert found["image_noise"].isna().all()
    write_record(fake_record(tmp_path / "c", "padim", "bottle", 0, 0.9))
    write_record(fake_record(tmp_path / "d", "padim", "bottle", 0, 0.8))
    single = compare_stores(tmp_path / "c", tmp_path / "d", "pixel_aupro")
    assert "run several seeds" in single.cells["verdict"][0]
    assert not single.has_changed


def test_other_test_images_and_torn_scores_are_no_change(stores):
    a, b = stores
    for seed in range(3):
        file = write_trial(b, category="wood", seed=seed, shift=0.2).folder / "scores.parquet"
        pd.read_parquet(file).iloc[1:].to_parquet(file)
        (write_trial(b, seed=seed).folder / "scores.parquet").write_bytes(b"PAR1")
    found = compare_stores(a, b)
    assert dict(found.cells.set_index("category")["verdict"]) == {
        "bottle": "same",
        "wood": "not compared: other test images",
    }
    assert not found.has_changed


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

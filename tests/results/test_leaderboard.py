from __future__ import annotations

import codecs
import csv

import numpy as np
import pandas as pd
import pytest

from adray.language.catalogue import load_catalogue
from adray.results.leaderboard import (
    METRIC_COLUMNS,
    TrialRow,
    format_summary,
    skipped_row,
    summary,
    table,
    write_tables,
)
from adray.results.markdown import format_markdown

EN = load_catalogue("en")


def row(configuration, category, auroc=None, status="done", seed=42, weights="pretrained", **more):
    metrics = {"image_auroc": auroc}
    return TrialRow(
        "mvtec", category, configuration, seed, status, "", metrics, weights=weights, **more
    )


def test_means_are_over_the_categories_that_all_finished():
    frame = table(
        [
            row("a", "bottle", 0.9),
            row("a", "wood", 0.5),
            row("b", "bottle", 0.8),
            row("b", "wood", status="failed"),
        ]
    )
    means = summary(frame).set_index("configuration")
    assert means.loc["a", "image_auroc"] == 0.9
    assert means.loc["b", "image_auroc"] == 0.8
    assert means.loc["a", "done"] == "2/2"
    assert means.loc["b", "done"] == "1/2"
    assert means.loc["b", "failed"] == 1
    assert "means are over the categories that every configuration finished" in format_summary(
        frame, EN
    )


def test_seeds_are_averaged_within_a_category_first():
    frame = table(
        [row("a", "bottle", 0.8, seed=0), row("a", "bottle", 1.0, seed=1), row("a", "wood", 0.5)]
    )
    assert summary(frame)["image_auroc"][0] == pytest.approx(0.7)


def test_figures_of_drawn_defects_are_never_averaged_with_those_of_test_images():
    rows = [
        row("a", "bottle", 0.8, evaluation="test"),
        row("a", "wood", 0.4, evaluation="synthetic"),
        row("b", "bottle", 0.7, evaluation="test"),
        row("b", "wood", 0.9, evaluation="synthetic"),
    ]
    frame = table(rows)
    assert summary(frame)["image_auroc"].tolist() == [0.8, 0.7]
    assert "figures of mvtec/wood are of defects drawn on held-out normals" in format_summary(
        frame, EN
    )


def test_where_all_figures_are_of_drawn_defects_they_rank_and_that_is_said():
    frame = table([row("a", "wood", 0.4, evaluation="synthetic")])
    assert summary(frame)["image_auroc"].tolist() == [0.4]
    text = format_summary(frame, EN)
    assert "the ranking is by these" in text
    assert "image AUROC (drawn)" in text


def test_a_table_of_categories_marks_figures_of_drawn_defects_and_mixes_them_with_no_others():
    rows = [
        row("a", "bottle", 0.8, evaluation="test", seed=0),
        row("a", "bottle", 0.2, evaluation="synthetic", seed=1),
        row("a", "wood", 0.4, evaluation="synthetic"),
    ]
    text = format_markdown(table(rows), [])
    assert "| a | 0.8000 | 0.4000 (drawn) |" in text


def test_untrained_backbones_are_said_loudly():
    text = format_summary(table([row("a", "bottle", 0.9, weights="random")]), EN)
    assert "a (UNTRAINED)" in text
    assert "UNTRAINED BACKBONES" in text


def test_skipped_and_failed_rows_stay_and_come_last(tmp_path):
    rows = [
        skipped_row(("mvtec", "bottle", "c"), 42, "missing weights"),
        row("a", "bottle", 0.7),
        row("b", "bottle", 0.8),
    ]
    frame = table(rows)
    assert list(frame["configuration"]) == ["b", "a", "c"]
    write_tables(tmp_path, frame)
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert list(board["status"]) == ["done", "done", "skipped"]
    assert board["reason"][2] == "missing weights"
    stored = pd.read_parquet(tmp_path / "results.parquet")
    assert all(stored[name].dtype == np.float64 for name in METRIC_COLUMNS)
    assert len(stored) == 3


def test_a_table_opens_in_a_spreadsheet_and_no_cell_of_it_computes(tmp_path):
    names = ["=1+1", "-병", "@sum(a1)", "+x", "plain"]
    frame = table([row("a", name, 0.5) for name in names])
    frame["metric_that_falls"] = -0.25
    write_tables(tmp_path, frame)

    assert (tmp_path / "leaderboard.csv").read_bytes().startswith(codecs.BOM_UTF8)
    with (tmp_path / "leaderboard.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["category"].removeprefix("'") for row in rows) == sorted(names)
    for found in rows:
        computed = [cell for cell in found.values() if cell.startswith(("=", "+", "-", "@"))]
        assert computed == ["-0.25"]

    # Programs read the names as they are.
    stored = pd.read_parquet(tmp_path / "results.parquet")
    assert sorted(stored["category"]) == sorted(names)
    assert list(pd.read_csv(tmp_path / "leaderboard.csv").columns) == list(frame.columns)


def test_nothing_finished_is_said():
    assert "no trial has finished" in format_summary(table([]), EN)
    assert "n/a" in format_summary(table([row("a", "bottle", status="failed")]), EN)


def test_the_shares_of_all_who_used_it_add_up_to_what_the_common_work_took():
    def work(key, seconds, built):
        return {"kind": "features", "key": key, "build_seconds": seconds, "built": built}

    decoding, maps = work("d", 3.0, True), work("f", 8.0, False)
    frame = table(
        [
            row("a", "bottle", 0.9, shared_work=[decoding, maps]),
            row("b", "bottle", 0.8, shared_work=[decoding]),
            row("c", "bottle", 0.7, shared_work=[decoding, maps, maps]),
            row("of an older version", "bottle", 0.6),
            row("unknown", "bottle", 0.5, shared_work=[work("x", None, False)]),
        ]
    )
    shares = frame["shared_seconds"].tolist()
    assert sum(shares[:2]) + shares[2] - 4.0 == pytest.approx(
        3 + 8
    )  # c used the maps of two parts of one key
    assert shares[1] == 1.0
    assert frame["shared_seconds"].isna().tolist() == [False] * 3 + [True] * 2

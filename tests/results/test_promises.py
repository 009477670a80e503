"""What the report says of promises, against the scores and thresholds of trials made here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from fake_store import fake_record
from test_report import page_data

from adray.language.catalogue import LANGUAGES
from adray.metrics import confusion
from adray.results.leaderboard import trial_row
from adray.results.promises import (
    MOST_DOTS,
    RATES,
    dots_of,
    normals_by_rate,
    page_sentences,
    promised_whichever,
)
from adray.results.report import render, report_data
from adray.results.trial_files import ScoreRow, write_scores
from adray.results.trial_report import threshold_json
from adray.thresholds import make_promise, promised_threshold


def trial(root, normals=24, rate=0.05, images=40, category="bottle", seed=0, auroc=0.9):
    """A trial with its scores, and these as they were drawn."""
    rng = np.random.default_rng(seed)
    scores = {
        ("holdout", 0): rng.normal(size=normals).astype(np.float32),
        ("test", 0): rng.normal(size=images).astype(np.float32),
        ("test", 1): rng.normal(2, size=images).astype(np.float32),
    }
    record = fake_record(root, "padim", category, seed, auroc)
    threshold = promised_threshold(make_promise(scores["holdout", 0], rate))
    test = np.concatenate([scores["test", 0], scores["test", 1]])
    counts = confusion(test, np.repeat([0, 1], images), threshold.value)
    record.result["thresholds"]["promise"] = threshold_json(threshold, counts)
    rows = []
    for (split, label), values in scores.items():
        for i, value in enumerate(values):
            name = f"/data/{split}/{label}/{i}.png"
            rows.append(ScoreRow("mvtec", category, split, name, label, "x", float(value)))
    record.folder.mkdir(parents=True, exist_ok=True)
    write_scores(record.folder, rows)
    return record, scores


def test_the_picture_has_every_score_on_its_side_of_the_threshold(tmp_path):
    record, scores = trial(tmp_path)
    cut = np.sort(scores["holdout", 0])[23]
    dots = dots_of(record)
    kinds = {"calibration": ("holdout", 0), "normal": ("test", 0), "defect": ("test", 1)}
    for kind, key in kinds.items():
        for half, is_above in zip(dots[kind], (False, True), strict=True):
            expected = np.sort(scores[key][(scores[key] > cut) == is_above])
            np.testing.assert_allclose(half, expected, rtol=1e-4)
    assert dots["calibration"][1] == []


def test_of_many_images_the_ends_are_drawn(tmp_path):
    record, scores = trial(tmp_path, images=4000)
    below, above = dots_of(record)["normal"]
    assert len(below) == MOST_DOTS
    assert below[0] == pytest.approx(scores["test", 0].min(), rel=1e-4)
    assert above[-1] == pytest.approx(scores["test", 0].max(), rel=1e-4)


def test_each_trial_has_its_sentence_and_each_cell_the_picture_of_its_best_trial(tmp_path):
    records = []
    for category in ("bottle", "wood"):
        for seed in (0, 1, 2):
            found, _ = trial(tmp_path, category=category, seed=seed, auroc=0.8 + 0.05 * seed)
            records.append(found)
    data = page_data(render(report_data("s", records, base=tmp_path)))
    for one in data["trials"]:
        assert one["p"] == [24, 0.05, pytest.approx(1 / 25), pytest.approx(0.11735, rel=1e-4)]
    assert [(one["c"], one["s"]) for one in data["promises"]] == [(0, 2), (1, 2)]


def test_what_promises_nothing_or_lost_its_scores_has_no_picture(tmp_path):
    found, _ = trial(tmp_path)
    nothing = fake_record(tmp_path, "padim", "wood", 0, 0.9)
    nothing.result["thresholds"]["promise"] = threshold_json(
        promised_threshold(make_promise(np.empty(0), 0.05))
    )
    data = report_data("s", [found, nothing], base=tmp_path)
    assert [one["c"] for one in data["promises"]] == [0]
    assert [one["p"] is None for one in data["trials"]] == [False, True]
    (found.folder / "scores.parquet").unlink()
    assert report_data("s", [found], base=tmp_path)["promises"] == []


def test_drawn_defects_and_what_weakens_a_promise_are_marked(tmp_path):
    record, _ = trial(tmp_path)
    identity = {**record.identity, "evaluation": "synthetic"}
    notes = ["the calibration normals also decided when training stopped"]
    drawn = replace(
        record,
        trial={**record.trial, "identity": identity},
        result={**record.result, "evaluation": "synthetic", "verdict": {"notes": notes}},
    )
    assert drawn.is_drawn
    (promise,) = report_data("s", [drawn], base=tmp_path)["promises"]
    assert promise["y"] == 1
    assert promise["z"] == {"en": notes, "ko": notes}  # of a trial of before


def test_the_table_says_the_least_numbers_that_do_for_usual_rates_and_those_asked_for():
    rows = normals_by_rate([0.03, 0.05])
    assert [rate for rate, _, _ in rows] == sorted({*RATES, 0.03}, reverse=True)
    for rate, needed, sure in rows:
        assert next(n for n in range(1, 2000) if (n + 1) * rate >= 1 - 1e-12) == needed
        assert (1 - rate) ** sure <= 0.05 < (1 - rate) ** (sure - 1)


def test_every_text_that_the_page_asks_for_is_there_in_each_language():
    folder = resources.files("adray.results").joinpath("report_assets")
    script = folder.joinpath("report.js").read_text(encoding="utf-8")
    page = folder.joinpath("report.html").read_text(encoding="utf-8")
    asked = set(re.findall(r'\b(?:t|say|note)\("([^"]+)"', script))
    asked |= set(re.findall(r'data-text="([^"]+)"', page))
    assert "promise given" in asked
    for language in LANGUAGES:
        sentences = page_sentences()[language]
        assert asked <= sentences.keys(), language
        assert json.loads(json.dumps(sentences)) == sentences


def test_the_best_of_a_cell_says_what_holds_whichever_of_its_trials_was_chosen(tmp_path):
    """By drawing the largest of so many rates, each Beta distributed and by itself."""
    records = []
    for seed in range(6):
        records.append(trial(tmp_path, seed=seed)[0])
    (promise,) = report_data("s", records, base=tmp_path)["promises"]
    assert promise["tried"] == 6
    rates = np.random.default_rng(0).beta(1, 24, size=(20_000, 6)).max(axis=1)
    promised, bound = promise["whichever"]
    assert rates.mean() <= promised <= 1.2 * rates.mean()
    assert np.mean(rates <= bound) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(rates))

    few = trial(tmp_path, normals=9, seed=9)[0]
    largest = np.maximum(rates, np.random.default_rng(1).beta(1, 9, size=20_000))
    promised, bound = promised_whichever([*records, few])
    assert largest.mean() <= promised
    assert np.mean(largest <= bound) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(rates))


def test_a_row_of_the_tables_has_the_threshold_of_verdicts_and_what_is_promised_of_it(tmp_path):
    record, scores = trial(tmp_path, rate=0.1)
    promise = make_promise(scores["holdout", 0], 0.1)
    row = trial_row(record)
    assert (row.promised, row.promised_bound) == (promise.promised, promise.bound)
    assert row.threshold_promise == np.nextafter(np.float32(promise.score), np.float32(np.inf))


def test_what_is_promised_of_new_groups_stands_beside_and_notes_are_in_both_languages(tmp_path):
    record = trial(tmp_path)[0]
    groups = {"groups": 9, "rate": 0.1, "score": 2.5, "promised": 0.1, "bound": 0.283}
    said = {"en": ["one"], "ko": ["하나"]}
    record.result["verdict"] = {"group_promises": [groups], "notes": ["one"], "sentences": said}
    (promise,) = report_data("s", [record], base=tmp_path)["promises"]
    assert (promise["g"], promise["z"]) == ([9, 2.5, 0.1, 0.283], said)


def test_a_trial_that_was_chosen_among_others_before_counts_them(tmp_path):
    alone = trial(tmp_path)[0]
    winner = trial(tmp_path)[0]
    winner.result["thresholds"]["promise"]["tried"] = 40
    assert promised_whichever([alone])[0] == pytest.approx(1 / 25)
    assert promised_whichever([winner])[0] == pytest.approx(0.177, abs=1e-3)
    lacking = fake_record(tmp_path, "stfpm", "bottle", 0, 0.8)
    assert promised_whichever([alone, lacking]) is None

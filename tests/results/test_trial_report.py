"""What the scores of a trial say, from scores made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adray.data.base import Sample
from adray.errors import InputError
from adray.metrics import image_metrics
from adray.results.evaluation import ScoredImages
from adray.results.trial_files import read_scores, write_scores
from adray.results.trial_report import make_trial_report
from adray.scores import Scores

SCORE = np.array([0.1, 0.2, 0.4, 0.3, 0.8, 0.9], np.float32)
LABEL = np.array([0, 0, 0, 1, 1, 1])


def images(score, label, split="test", categories=("bottle",)):
    samples = []
    for i, anomalous in enumerate(label):
        category = categories[i % len(categories)]
        path = Path(f"/data/mvtec/{category}/{i}.png")
        kind = "hole" if anomalous else "good"
        samples.append(Sample(path, (), int(anomalous), kind, "mvtec", category, split))
    return ScoredImages(samples, Scores(score, label, None, None, np.ones(len(label), bool)))


def held_out():
    return images(np.array([0.1, 0.2], np.float32), np.zeros(2, int), split="train")


def test_thresholds_come_with_the_counts_at_them():
    report = make_trial_report(images(SCORE, LABEL), held_out(), "test")
    found = report.thresholds_json()
    assert report.chosen_threshold.name == "promise"
    assert (found["promise"]["rank"], found["promise"]["normals"]) == (2, 2)
    assert found["promise"]["score"] == pytest.approx(0.2)
    assert found["percentile_95"]["value"] == pytest.approx(0.195)
    counts = {name: found["f1_percentile"][name] for name in ("tp", "fn", "tn", "fp")}
    assert counts == {"tp": 3, "fn": 0, "tn": 2, "fp": 1}
    assert found["f1_percentile"]["f1"] == pytest.approx(6 / 7)


def test_a_threshold_without_a_value_has_no_counts():
    found = make_trial_report(images(SCORE, LABEL), None, "test").thresholds_json()
    assert set(found["percentile_95"]) == {"value", "oracle", "note"}
    assert found["percentile_95"]["value"] is None


def test_several_categories_have_metrics_each_and_one_alone_has_not():
    assert make_trial_report(images(SCORE, LABEL), None, "test").per_category == {}
    both = images(SCORE, LABEL, categories=("bottle", "wood"))
    found = make_trial_report(both, None, "test").per_category
    assert list(found) == ["mvtec/bottle", "mvtec/wood"]
    wood = image_metrics(SCORE[1::2], LABEL[1::2])
    assert found["mvtec/wood"]["image_auroc"] == wood["image_auroc"]


def test_rows_are_of_test_and_held_out_images():
    rows = make_trial_report(images(SCORE, LABEL), held_out(), "test").rows
    assert [row.split for row in rows] == ["test"] * 6 + ["holdout"] * 2
    assert [row.pred_score for row in rows[:6]] == [float(score) for score in SCORE]
    assert rows[5].path == "/data/mvtec/bottle/5.png"


def test_rows_of_synthetic_defects_are_named_by_their_image_and_number():
    test = images(SCORE, LABEL, split="train")
    drawn = []
    for number, sample in enumerate(test.samples[3:]):
        drawn.append(replace(sample, split="synthetic", relative_path=f"a/0.png#{number}"))
    test = replace(test, samples=[*test.samples[:3], *drawn])
    report = make_trial_report(test, None, "synthetic")
    assert [row.split for row in report.rows] == ["synthetic"] * 3
    assert [row.path.rpartition("#")[2] for row in report.rows] == ["0", "1", "2"]
    assert report.notes[0].startswith("figures are of synthetic defects")
    assert "only 3 normals are held out" in report.notes[1]


def test_what_cannot_be_computed_is_said_in_the_notes():
    report = make_trial_report(images(SCORE[:3], LABEL[:3]), None, "test")
    assert report.metrics["image_auroc"] is None
    assert report.image_auroc_interval is None
    assert report.chosen_threshold is None
    assert any(note.startswith("image metrics n/a") for note in report.notes)
    assert any(note.startswith("pixel metrics n/a") for note in report.notes)


def test_groups_with_both_classes_have_metrics_each_and_a_note_counts_the_others():
    test = images(SCORE, LABEL)
    groups = ("monday", "tuesday", "tuesday", "tuesday", "monday", "sunday")
    samples = [
        replace(sample, group=name) for sample, name in zip(test.samples, groups, strict=True)
    ]
    report = make_trial_report(replace(test, samples=samples), None, "test")
    assert list(report.per_group) == ["monday", "tuesday"]
    tuesday = image_metrics(SCORE[1:4], LABEL[1:4])
    assert report.per_group["tuesday"]["image_auroc"] == tuesday["image_auroc"]
    assert any(note.startswith("1 of 3 groups") for note in report.notes)


def test_types_of_several_categories_stand_behind_the_name_of_their_category():
    both = images(SCORE, LABEL, categories=("bottle", "wood"))
    report = make_trial_report(both, None, "test")
    assert list(report.per_defect_type) == ["mvtec/bottle/hole", "mvtec/wood/hole"]
    assert report.per_defect_type["mvtec/wood/hole"] == report.per_category["mvtec/wood"]


def test_pixels_are_judged_at_mean_plus_three_deviations_of_held_out_maps():
    rng = np.random.default_rng(0)
    maps = rng.random((6, 8, 8)).astype(np.float32)
    masks = np.zeros((6, 8, 8), np.uint8)
    masks[3:, 2:5, 2:5] = 1
    maps += 2 * masks
    test = images(SCORE, LABEL)
    test = replace(test, scores=replace(test.scores, anomaly_map=maps, mask=masks))
    held = held_out()
    normal = (rng.random((2, 8, 8)) * np.array([1, 2])[:, None, None]).astype(np.float32)
    held = replace(held, scores=replace(held.scores, anomaly_map=normal))

    found = make_trial_report(test, held, "test").pixel_threshold_json()
    cut = normal.mean(dtype=float) + 3 * normal.std(dtype=float)
    assert found["value"] == pytest.approx(cut)
    assert not found["oracle"]
    assert found["tp"] == np.sum((maps >= cut) & (masks == 1))
    assert found["fp"] == np.sum((maps >= cut) & (masks == 0))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN or infinite"):
        make_trial_report(images(np.full(6, np.nan, np.float32), LABEL), None, "test")


@pytest.mark.parametrize("texts", [None, ["because"] * 6])
def test_the_file_has_a_column_of_explanations_only_where_the_model_writes_some(tmp_path, texts):
    test = images(SCORE, LABEL)
    if texts:
        explanation = np.array(texts, dtype=object)
        test = replace(test, scores=replace(test.scores, explanation=explanation))
    write_scores(tmp_path, make_trial_report(test, None, "test").rows)
    stored = pd.read_parquet(tmp_path / "scores.parquet")
    assert ("explanation" in stored) == bool(texts)
    assert read_scores(tmp_path)["pred_score"].tolist() == [float(score) for score in SCORE]

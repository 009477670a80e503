from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from adray.metrics import image_metrics
from adray.results.figures import Picture, draw_histogram, draw_picture, telling_images, verdict
from adray.results.text import format_results
from adray.thresholds import Threshold, compute_thresholds, confusions

SCORE = np.array([0.1, 0.2, 0.4, 0.3, 0.8, 0.9])
LABEL = np.array([0, 0, 0, 1, 1, 1])


def results_text(score, label, holdout_score=None):
    thresholds = compute_thresholds(score, label, holdout_score)
    counts = confusions(thresholds, score, label)
    return format_results(image_metrics(score, label), thresholds, counts)


def test_the_text_agrees_with_counts_made_by_hand():
    text = results_text(SCORE, LABEL, np.array([0.1, 0.2]))
    assert "AUROC: 0.889 (88.9%)" in text  # 8 of 9 pairs are in order
    # at 0.8: both found, none false; F1 = 4/5. At 0.3: all found, one false; F1 = 6/7, the best.
    assert "F1 (Percentile): 0.3 | F1: 0.857 *" in text
    assert "TP=3, FN=0, TN=2, FP=1\nAccuracy: 0.833, Precision: 0.750, Recall: 1.000" in text
    assert "Percentile (95%): 0.195\n" in text


def test_what_cannot_be_computed_reads_n_a():
    text = results_text(SCORE[:3], LABEL[:3])
    assert "AUROC: n/a" in text
    assert "Percentile (95%): n/a" in text
    assert "F1 (Percentile): n/a" in text


def test_the_pictures_are_of_the_worst_misses_and_false_alarms_and_a_quarter_of_sure_cases():
    score = np.arange(40.0)
    label = np.tile([0, 1], 20)
    chosen = telling_images(score, label, 8)
    assert chosen["normal"].tolist() == [38, 36, 34, 32, 30, 28, 2, 0]
    assert chosen["anomaly"].tolist() == [1, 3, 5, 7, 9, 11, 37, 39]
    assert {name: len(indices) for name, indices in telling_images(SCORE, LABEL, 8).items()} == {
        "normal": 3,
        "anomaly": 3,
    }
    assert telling_images(SCORE, LABEL, 0)["normal"].size == 0


def test_a_picture_shows_image_mask_map_and_overlay_on_the_scale_it_is_given(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 64, 64), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    heat = np.linspace(0, 10, 64 * 64, dtype=np.float32).reshape(64, 64)
    threshold = Threshold("percentile_95", 0.7, oracle=False)
    draw_picture(tmp_path / "a.png", Picture("a", 1, 0.5, image, heat, mask), (0.0, 5.0), threshold)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape == (64 + 2 * 16, 4 * 68 - 4, 3)
    shown = [pixels[32:, k * 68 : k * 68 + 64] for k in range(4)]
    assert np.array_equal(shown[0], np.moveaxis(image, 0, -1))
    assert np.array_equal(shown[1][..., 0] > 0, mask > 0)
    hot = (np.array(colormaps["inferno"](1.0)[:3]) * 255).astype(np.uint8)
    assert (shown[2][40:] == hot).all()  # above the top of the scale
    assert not (shown[2][:24] == hot).all()
    draw_picture(tmp_path / "b.png", Picture("b", 0, 0.5, image, None, None), None, None)
    assert Image.open(tmp_path / "b.png").size == (64, 96)


def test_what_the_map_marks_is_outlined_on_the_image_and_nothing_else_of_it_changes(tmp_path):
    image = np.full((3, 64, 64), 90, dtype=np.uint8)
    heat = np.zeros((64, 64), dtype=np.float32)
    heat[20:40, 20:40] = 5.0
    threshold = Threshold("promise", 0.7, oracle=False)
    picture = Picture("a", 1, 0.5, image, heat, None, region=5.0)
    draw_picture(tmp_path / "a.png", picture, (0.0, 5.0), threshold)
    marked = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[32:, -64:]
    rows, columns = np.nonzero((marked != 90).any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 41, 18, 41)
    assert (marked[20:40, 20:40] == 90).all()
    unmarked = replace(picture, region=6.0)
    draw_picture(tmp_path / "b.png", unmarked, (0.0, 5.0), threshold)
    assert (np.asarray(Image.open(tmp_path / "b.png").convert("RGB"))[32:, -64:] == 90).all()


@pytest.mark.parametrize(
    ("label", "score", "threshold", "words"),
    [
        (1, 2.0, 2.0, "found"),
        (1, 1.9, 2.0, "miss"),
        (0, 2.0, 2.0, "false alarm"),
        (0, 1.9, 2.0, "passed"),
        (0, 1, None, "normal"),
    ],
)
def test_a_score_on_the_threshold_is_reported(label, score, threshold, words):
    assert verdict(label, score, threshold) == words


def test_a_histogram_of_equal_scores_or_one_class_is_drawn(tmp_path):
    draw_histogram(tmp_path / "a.png", np.ones(4), np.array([0, 0, 1, 1]))
    draw_histogram(tmp_path / "b.png", SCORE, np.zeros(6))
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size

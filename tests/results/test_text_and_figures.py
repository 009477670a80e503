from __future__ import annotations

import numpy as np
from PIL import Image

from adray.results.figures import draw_histogram, draw_maps
from adray.results.text import format_results

SCORE = np.array([0.1, 0.2, 0.4, 0.3, 0.8, 0.9])
LABEL = np.array([0, 0, 0, 1, 1, 1])


def test_the_text_agrees_with_counts_made_by_hand():
    text = format_results(SCORE, LABEL, np.array([0.1, 0.2]))
    assert "AUROC: 0.889 (88.9%)" in text  # 8 of 9 pairs are in order
    # at 0.8: both found, none false; F1 = 4/5. At 0.3: all found, one false; F1 = 6/7, the best.
    assert "F1 (Percentile): 0.3 | F1: 0.857 *" in text
    assert "TP=3, FN=0, TN=2, FP=1\nAccuracy: 0.833, Precision: 0.750, Recall: 1.000" in text
    assert "Percentile (95%): 0.195\n" in text


def test_what_cannot_be_computed_reads_n_a():
    text = format_results(SCORE[:3], LABEL[:3], None)
    assert "AUROC: n/a" in text
    assert "Percentile (95%): n/a" in text
    assert "F1 (Percentile): n/a" in text


def test_pictures_are_written_for_both_classes_up_to_the_count(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 3, 20, 20), dtype=np.uint8)
    maps = rng.random((6, 20, 20)).astype(np.float32)
    mask = np.zeros((6, 20, 20), np.uint8)
    written = draw_maps(tmp_path / "image_a", maps, LABEL, mask, lambda i: images[i], 2)
    names = [f"image_a_{kind}_000{i}.png" for kind in ("normal", "anomaly") for i in (1, 2)]
    assert [p.name for p in written] == names
    with Image.open(written[0]) as picture:
        assert picture.size == (4 * 24, 36)
        pasted = np.asarray(picture.convert("RGB"))[16:, :20]
    assert np.array_equal(pasted, np.moveaxis(images[0], 0, -1))


def test_a_histogram_of_equal_scores_or_one_class_is_drawn(tmp_path):
    draw_histogram(tmp_path / "a.png", np.ones(4), np.array([0, 0, 1, 1]))
    draw_histogram(tmp_path / "b.png", SCORE, np.zeros(6))
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size

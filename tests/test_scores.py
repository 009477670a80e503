"""Scores of a whole loader: gathered in order, cut down to some images, measured where there are masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adray.errors import InputError
from adray.metrics import METRICS, image_metrics, pixel_metrics
from adray.scores import ScoreGatherer, Scores
from adray.types import Batch, Prediction

SIZE = 8


def gathered(keep_maps=True, masks=True, texts=False, has_mask=None):
    """Six images in three batches, of which the odd ones are anomalous."""
    rng = torch.Generator().manual_seed(0)
    gatherer = ScoreGatherer(keep_maps)
    for index in torch.arange(6).split(2):
        maps = torch.rand(2, 1, SIZE, SIZE, generator=rng, dtype=torch.float64).bfloat16()
        mask = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8)
        mask[1, :, 2:5, 3:6] = 1
        batch = Batch(torch.zeros(2, 3, SIZE, SIZE), index % 2, mask if masks else None, index)
        words = tuple(f"image {i}" for i in index.tolist()) if texts else None
        gatherer.add(batch, Prediction(index.bfloat16(), maps, words))
    return gatherer.scores(np.ones(6, bool) if has_mask is None else np.array(has_mask))


def test_batches_are_gathered_in_order_and_in_float32():
    scores = gathered(texts=True)
    assert scores.pred_score.tolist() == [0, 1, 2, 3, 4, 5]
    assert scores.label.tolist() == [0, 1, 0, 1, 0, 1]
    assert scores.explanation.tolist() == [f"image {i}" for i in range(6)]
    assert scores.anomaly_map.shape == scores.mask.shape == (6, SIZE, SIZE)
    assert scores.pred_score.dtype == scores.anomaly_map.dtype == np.float32


def test_maps_and_masks_are_left_out_where_they_are_not_wanted_or_not_there():
    assert gathered(keep_maps=False).anomaly_map is None
    assert gathered(keep_maps=False).mask is None
    assert gathered(masks=False).anomaly_map is not None
    assert gathered(masks=False).mask is None
    assert gathered().explanation is None


def test_a_subset_keeps_all_that_is_known_of_the_chosen_images():
    chosen = np.array([True, False, False, True, True, False])
    scores = replace(
        gathered(texts=True),
        inside=np.arange(6 * SIZE * SIZE).reshape(6, SIZE, SIZE) % 3 > 0,
        highest=np.arange(6, dtype=np.float32),
    )
    part = scores.subset(chosen)
    for name in Scores.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(part, name), getattr(scores, name)[chosen])
    assert gathered(keep_maps=False).subset(chosen).anomaly_map is None


def test_pixels_of_images_without_a_mask_are_left_out():
    has_mask = [True, True, False, True, True, True]
    scores = gathered(has_mask=has_mask)
    expected = dict.fromkeys(METRICS) | image_metrics(scores.pred_score, scores.label)
    expected |= pixel_metrics(scores.anomaly_map[has_mask], scores.mask[has_mask])
    assert scores.metrics() == expected
    assert scores.metrics()["pixel_auroc"] != gathered().metrics()["pixel_auroc"]


def test_scores_and_maps_that_are_no_numbers_are_refused():
    scores = gathered()
    scores.check()
    scores.anomaly_map[2, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"anomaly_map: 1 of 384 .* index \(2, 0, 0\)"):
        scores.check()
    scores = gathered(keep_maps=False)
    scores.pred_score[3] = np.inf
    with pytest.raises(InputError, match=r"pred_score: 1 of 6 .* index \(3,\)"):
        scores.check()


@pytest.mark.parametrize("scores", [gathered(keep_maps=False), gathered(masks=False)])
def test_without_maps_or_masks_pixel_metrics_are_not_available(scores):
    metrics = scores.metrics()
    assert set(metrics) == set(METRICS)
    for name, metric in METRICS.items():
        of_scores = (metric.level, metric.of) == ("image", "curve")
        assert (metrics[name] is not None) == of_scores

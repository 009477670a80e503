"""Mask files of MVTec LOCO: which defect each shows, and how much of it is enough."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from adray.data.base import Sample
from adray.data.defect_channels import (
    Saturation,
    check_defect_masks,
    check_defects_config,
    open_defects,
)
from adray.errors import InputError
from adray.results.evaluation import ScoredImages, kind_of
from adray.results.trial_report import make_trial_report
from adray.scores import Scores
from adray.spro import count_spro

CONFIG = [
    {
        "defect_name": "missing_screw",
        "pixel_value": 255,
        "saturation_threshold": 30,
        "relative_saturation": False,
    },
    {
        "defect_name": "scratch",
        "pixel_value": 254,
        "saturation_threshold": 0.5,
        "relative_saturation": True,
    },
]


def write_category(root, config=CONFIG, value=254):
    """A good image, one with two defects that overlap, and one without masks."""
    home = root / "loco" / "box"
    masks = home / "ground_truth" / "logical_anomalies" / "000"
    masks.mkdir(parents=True)
    (home / "defects_config.json").write_text(json.dumps(config))
    for i, number in enumerate((255, value)):
        mask = np.zeros((20, 30), np.uint8)
        mask[2 : 7 + 4 * i, 3:13] = number
        Image.fromarray(mask).save(masks / f"00{i}.png")
    samples = []
    for i, kind in enumerate(("good", "logical_anomalies", "logical_anomalies")):
        path = home / f"{i}.png"
        Image.new("L", (30, 20)).save(path)
        files = tuple(sorted(masks.glob("*"))) if i == 1 else ()
        samples.append(Sample(path, files, int(i > 0), kind, "loco", "box", "test"))
    return samples


def test_each_mask_file_is_one_defect_with_its_saturation_area(tmp_path):
    good, logical, bare = open_defects(write_category(tmp_path))
    assert bare is None
    assert (good.height, good.width, tuple(good.defects)) == (20, 30, ())
    assert (logical.height, logical.width) == (20, 30)
    assert [int(defect.pixels.sum()) for defect in logical.defects] == [50, 90]
    assert [defect.saturation for defect in logical.defects] == [30, 45]


def test_a_mask_in_colors_with_an_opacity_says_the_same(tmp_path):
    samples = write_category(tmp_path)
    for path in samples[1].mask_paths:
        with Image.open(path) as mask:
            grey = np.asarray(mask)
        Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(path)
    check_defect_masks(samples)
    _, logical, _ = open_defects(samples)
    assert [int(defect.pixels.sum()) for defect in logical.defects] == [50, 90]


@pytest.mark.parametrize(
    ("threshold", "relative", "pixels", "area"),
    [
        (30, False, 50, 30),
        (30, False, 20, 20),
        (0.29, True, 10, 2),
        (1.0, True, 10, 10),
        (0.1, True, 5, 1),
    ],
)
def test_the_saturation_area_is_that_of_the_published_evaluation(threshold, relative, pixels, area):
    assert Saturation(threshold, relative).area(pixels) == area


def test_data_without_the_file_are_not_judged_so(tmp_path):
    samples = write_category(tmp_path)
    (tmp_path / "loco" / "box" / "defects_config.json").unlink()
    assert open_defects(samples) is None
    check_defects_config(samples)
    check_defect_masks(samples)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "no list of defects"),
        ([{"pixel_value": 255}], "saturation_threshold"),
        ([CONFIG[0] | {"pixel_value": 300}], "1 to 255"),
        ([CONFIG[1] | {"saturation_threshold": 1.5}], "at most 1"),
        ([CONFIG[0] | {"saturation_threshold": 0}], "above 0"),
    ],
)
def test_a_file_that_is_not_as_published_is_refused_by_name(tmp_path, config, words):
    samples = write_category(tmp_path, config)
    with pytest.raises(InputError, match=r"defects_config\.json.*" + words):
        check_defects_config(samples)


def test_a_mask_with_a_value_that_is_not_listed_is_refused_by_name(tmp_path):
    samples = write_category(tmp_path, value=7)
    with pytest.raises(InputError, match=r"001\.png has the value 7.*lists 254, 255"):
        check_defect_masks(samples)


def test_a_trial_on_such_data_reports_the_saturated_overlap(tmp_path):
    samples = write_category(tmp_path)[:2]
    maps = np.zeros((2, 20, 20), np.float32)
    maps[1, 2:7, 2:9] = 1  # of the image squeezed from 30 to 20 pixels
    masks = (maps > 0).astype(np.uint8)
    label = np.array([0, 1])
    scores = Scores(label.astype(np.float32), label, maps, masks, np.ones(2, bool))

    kinds = list(map(kind_of, samples))
    spro = count_spro(maps, masks, kinds, open_defects(samples), 20)
    report = make_trial_report(ScoredImages(samples, scores), None, "test", spro)
    assert 0.9 < report.metrics["au_spro_05"] <= 1
    assert report.per_defect_type["logical_anomalies"]["au_spro_05"] == report.metrics["au_spro_05"]
    assert (
        "au_spro_05"
        in make_trial_report(ScoredImages(samples, scores), None, "test").evaluation.undefined
    )

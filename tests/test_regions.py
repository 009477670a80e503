"""Regions of maps and what is promised of them, against flood fill, loops and drawn images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image

from adray.cli.predict import main
from adray.errors import InputError
from adray.export import export_trial
from adray.files import read_json
from adray.predict import Outcome, load_predictor
from adray.prediction_files import REGION_COLUMNS, RegionRule, write_predictions, write_regions
from adray.predictor import own_map, regions_of
from adray.regions import Region, find_regions
from adray.settings import set_globals
from adray.thresholds import make_promise, promised_pixels
from adray.train import train


def flood(anomaly_map, threshold):
    """Regions by a walk from pixel to pixel, in no order."""
    left = {(int(y), int(x)) for y, x in np.argwhere(anomaly_map >= threshold)}
    found = []
    while left:
        pending = [left.pop()]
        region = []
        while pending:
            y, x = pending.pop()
            region.append((y, x))
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = (y + dy, x + dx)
                    if near in left:
                        left.remove(near)
                        pending.append(near)
        found.append(region)
    return found


def described(anomaly_map, pixels):
    """A region by loops over its pixels."""
    rows = [y for y, _ in pixels]
    columns = [x for _, x in pixels]
    return Region(
        min(columns),
        min(rows),
        max(columns) + 1,
        max(rows) + 1,
        len(pixels),
        max(float(anomaly_map[y, x]) for y, x in pixels),
        pytest.approx(sum(columns) / len(pixels)),
        pytest.approx(sum(rows) / len(pixels)),
    )


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("smallest_area", [1, 4])
def test_regions_are_those_of_a_flood_fill_with_the_highest_peak_first(threshold, smallest_area):
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 30), (23, 17), (40, 40)):
        anomaly_map = rng.random(shape).astype(np.float32)
        expected = []
        for pixels in flood(anomaly_map, np.float32(threshold)):
            if len(pixels) >= smallest_area:
                expected.append(described(anomaly_map, pixels))
        expected.sort(key=lambda region: -region.peak)
        assert find_regions(anomaly_map, threshold, smallest_area) == expected


def test_a_map_below_the_threshold_has_no_region_and_one_at_it_is_a_whole_region():
    flat = np.full((5, 7), 0.5, np.float32)
    assert find_regions(flat, 0.6) == []
    assert find_regions(flat, 0.5) == [Region(0, 0, 7, 5, 35, 0.5, 3.0, 2.0)]
    assert find_regions(flat, 0.5, smallest_area=36) == []


@pytest.mark.parametrize("area", [0, -3])
def test_an_area_that_no_region_has_is_refused(area):
    with pytest.raises(InputError, match=f"smallest_area is {area}"):
        find_regions(np.zeros((2, 2)), 0.0, area)


def fields(rng, count):
    """Smooth maps of normal images, some of them with a spot."""
    maps = rng.normal(size=(count, 6, 6)).cumsum(axis=1).cumsum(axis=2)
    maps[rng.random(count) < 0.1, 2, 3] += 20
    return maps.astype(np.float32)


@pytest.mark.parametrize(("normals", "rate"), [(19, 0.05), (24, 0.2), (8, 0.05)])
def test_new_normals_have_a_region_no_more_often_than_promised(normals, rate):
    """Images of twice the size, whose pixels lie between those of the map."""
    rng = np.random.default_rng(normals)
    shares = []
    for _ in range(60):
        threshold = promised_pixels(fields(rng, normals).max(axis=(1, 2)), rate)
        images = [Outcome("a", 0.0, one, size=(12, 12)) for one in fields(rng, 60)]
        found = [bool(regions_of(outcome, threshold.value)) for outcome in images]
        shares.append(np.mean(found))
    noise = 3 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= threshold.promise.promised + noise


def test_a_map_that_only_ties_with_a_calibration_normal_has_no_region():
    flat = np.full((8, 8), np.float32(0.1))
    threshold = promised_pixels(np.full(20, np.float32(0.1)), 0.05).value
    assert regions_of(Outcome("a", 0.0, flat, size=(37, 53)), threshold) == []
    flat[3, 3] = np.nextafter(np.float32(0.1), np.float32(1))
    assert len(regions_of(Outcome("a", 0.0, flat), threshold)) == 1


# A trained model


@pytest.fixture(autouse=True)
def trained(tmp_path_factory, own_settings, own_registry):
    """A trial with ten held-out normals, and the folder of its category."""
    root = tmp_path_factory.mktemp("regions")
    write_mvtec(root / "datasets" / "mvtec", ("bottle",), train=20, good=3, defects=3, size=48)
    set_globals(
        dataset_dir=root / "datasets",
        output_dir=root / "outputs",
        cache_dir=root / "cache",
        plugins=("toy_plugin",),
    )
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.5})
    return Path(result["folder"]), root / "datasets" / "mvtec" / "bottle"


def read_table(out):
    with (out / "regions.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def held_out(folder):
    return pd.read_parquet(folder / "scores.parquet").query("split == 'holdout'")


def test_as_many_calibration_normals_have_a_region_as_the_rank_leaves_above(trained):
    folder, _ = trained
    rows = held_out(folder)
    predictor = load_predictor(folder, "cpu")
    outcomes = list(predictor.predict(rows["path"]))
    assert [float(o.anomaly_map.max()) for o in outcomes] == pytest.approx(list(rows["peak"]))
    for rate, above in ((0.05, 0), (0.2, 1), (0.5, 4)):
        # r = ceil(11 (1 - rate)), but at most 10, and 10 - r normals lie above the r-th.
        # At the size of the map itself; pixels between those of the map may reach less high.
        found = [o for o in outcomes if predictor.regions(replace(o, size=None), rate=rate)]
        assert len(found) == above
        at_own_size = [o.name for o in outcomes if predictor.regions(o, rate=rate)]
        assert set(at_own_size) <= {o.name for o in found}


def test_the_table_has_the_regions_of_the_images_own_pixels(trained, tmp_path, capsys):
    folder, category = trained
    wide = tmp_path / "in" / "=wide.png"
    wide.parent.mkdir()
    picture = Image.open(next((category / "test").rglob("*.png"))).convert("RGB")
    picture.resize((90, 61)).save(wide)
    out = tmp_path / "out"
    arguments = [str(folder), str(category / "test"), str(wide.parent), "--out", str(out)]
    assert main([*arguments, "--device", "cpu", "--maps", "none", "--false-alarms", "0.5"]) == 0

    predictor = load_predictor(folder, "cpu")
    threshold = make_promise(held_out(folder)["peak"].to_numpy(), 0.5).score
    rows = read_table(out)
    expected = []
    for outcome in predictor.predict([*sorted((category / "test").rglob("*.png")), wide]):
        whole = own_map(outcome)
        assert whole.shape == (Image.open(outcome.name).height, Image.open(outcome.name).width)
        found = flood(whole, np.nextafter(np.float32(threshold), np.float32(9)))
        regions = [described(whole, pixels) for pixels in found]
        for number, region in enumerate(sorted(regions, key=lambda r: -r.peak), start=1):
            expected.append((outcome.name, number, region))
    assert rows
    assert tuple(rows[0]) == REGION_COLUMNS
    assert len(rows) == len(expected)
    for row, (name, number, region) in zip(rows, expected, strict=True):
        assert (row["image"], int(row["region"])) == (name, number)
        box = [int(row[key]) for key in ("x0", "y0", "x1", "y1", "area")]
        assert box == [region.left, region.top, region.right, region.bottom, region.area]
        assert float(row["peak"]) == pytest.approx(region.peak, rel=1e-6)
        assert float(row["centroid_x"]) == pytest.approx(region.center_x.expected, rel=1e-6)
        assert float(row["centroid_y"]) == pytest.approx(region.center_y.expected, rel=1e-6)
    images = len({row["image"] for row in rows})
    printed = capsys.readouterr().out
    assert f"{len(rows)} regions in {images} images" in printed
    assert "at most 45.5 % of new normals have a region" in printed


def test_small_regions_are_left_out_and_a_table_of_before_goes(trained, tmp_path):
    folder, category = trained
    arguments = [str(folder), str(category / "test"), "--out", str(tmp_path), "--maps", "none"]
    arguments += ["--false-alarms", "0.5", "--device", "cpu"]
    main(arguments)
    areas = sorted(int(row["area"]) for row in read_table(tmp_path))
    assert len(set(areas)) > 1
    main([*arguments, "--smallest-area", str(areas[-1])])
    assert {int(row["area"]) for row in read_table(tmp_path)} == {areas[-1]}
    with pytest.raises(InputError, match="--smallest-area is 0"):
        main([*arguments, "--smallest-area", "0"])


def test_result_checkpoint_and_export_bring_the_same_threshold(trained, tmp_path):
    folder, _ = trained
    peaks = held_out(folder)["peak"].to_numpy()
    promise = make_promise(peaks, 0.05)
    value = float(np.nextafter(np.float32(promise.score), np.float32(9)))
    result = read_json(folder / "result.json")
    assert result["pixel_promise"]["value"] == value
    assert result["pixel_promise"]["promised"] == pytest.approx(1 / 11)
    test = pd.read_parquet(folder / "scores.parquet").query("split == 'test'")
    above = test["peak"] > promise.score
    assert result["pixel_promise"]["fp"] == int((above & (test["label"] == 0)).sum())
    assert result["pixel_promise"]["tp"] == int((above & (test["label"] == 1)).sum())
    assert result["verdict"]["pixel_promises"][0]["score"] == promise.score

    about = export_trial(folder, tmp_path / "export", "safetensors")
    assert about["pixel_promise"]["value"] == value
    (checkpoint,) = folder.glob("model_*.pth")
    alone = tmp_path / "alone.pth"
    alone.write_bytes(checkpoint.read_bytes())
    for place in (folder, tmp_path / "export", alone):
        assert load_predictor(place, "cpu").pixel_promise().value == value


def test_a_trial_of_before_and_a_model_without_maps_say_so(trained, tmp_path, capsys):
    folder, category = trained
    frame = pd.read_parquet(folder / "scores.parquet")
    frame.drop(columns="peak").to_parquet(folder / "scores.parquet", index=False)
    (checkpoint,) = folder.glob("model_*.pth")
    stored = torch.load(checkpoint, weights_only=True)
    del stored["calibration_peaks"]
    torch.save(stored, checkpoint)
    result = read_json(folder / "result.json")
    del result["needs"]
    (folder / "result.json").write_text(json.dumps(result))

    arguments = [str(folder), str(category / "test"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu", "--maps", "none"]) == 0
    assert "no regions: the model gives no maps" in capsys.readouterr().out
    assert not (tmp_path / "out" / "regions.csv").exists()
    predictor = load_predictor(folder, "cpu")
    with pytest.raises(InputError, match="no regions can be found"):
        predictor.regions(Outcome("a", 0.0))


def test_a_run_that_breaks_off_leaves_no_half_table(tmp_path):
    def outcomes():
        yield Outcome("부품.png", 0.5, np.ones((4, 4), np.float32))
        raise KeyboardInterrupt

    counts = []
    followed = write_regions(outcomes(), tmp_path, RegionRule(0.5), counts)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(followed, tmp_path, None, "none", None)
    assert counts == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_the_table_opens_in_a_spreadsheet_as_it_is(tmp_path):
    names = ["=cmd.png", "@x.png", "부품.png", "a,b.png"]
    outcomes = [Outcome(name, 0.5, np.ones((4, 4), np.float32)) for name in names]
    list(write_regions(outcomes, tmp_path, RegionRule(0.5), []))
    assert (tmp_path / "regions.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    rows = read_table(tmp_path)
    for row in rows:
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@"))
    assert [Path(row["image"]).name for row in rows] == names

"""Trials whose images are padded, cut or have a region of interest: nothing outside of it counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image
from sklearn.metrics import roc_auc_score
from wide_pictures import HEIGHT, WIDTH, scores_of, use_pictures, write_wide_pictures

from adray.__main__ import main
from adray.aupimo import image_aupimo
from adray.checkpoints import read_checkpoint
from adray.components.inside import (
    highest_inside,
    highest_local_mean,
    mean_inside,
    top_mean_inside,
    with_lowest_outside,
)
from adray.data.geometry import own_cells, pack_cells
from adray.data.roi import fill_polygon
from adray.errors import InputError
from adray.export import export_trial
from adray.metrics import pixel_metrics, pixel_verdicts
from adray.pixel_curves import binned_curve, sorted_curve
from adray.predict import load_predictor
from adray.predictor import own_map
from adray.results.trial_files import find_checkpoint
from adray.settings import DataOptions, set_globals
from adray.thresholds import pixel_threshold
from adray.train import train

LEFT_HALF = (0, 0, 0.5, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Wide pictures; the test images' right halves are noise of their own."""
    return write_wide_pictures(tmp_path_factory.mktemp("geometry"), defects=4)


@pytest.fixture(autouse=True)
def settings(root, tmp_path, own_settings, own_registry, one_thread):
    use_pictures(root, tmp_path)


def run(**options):
    options = {"img_size": 32, "holdout": 0.4, **options}
    result = train("mvtec", "bottle", "toy-ok", train=options)
    return Path(result["folder"]), result


def with_roi(roi):
    set_globals(data={"mvtec": DataOptions(roi=roi)})


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_new_images_score_as_in_the_trial_by_predict_and_by_an_export(fit, tmp_path):
    folder, result = run(fit=fit)
    assert result["metrics"]["image_auroc"] is not None
    rows = scores_of(folder)
    out = tmp_path / "export"
    about = export_trial(folder, out)
    assert about["onnx"]["exact"], about["onnx"]
    assert about["preprocessing"]["fit"]["name"] == fit
    for place in (folder, out):
        outcomes = list(load_predictor(place, "cpu").predict(rows.path))
        found = [outcome.pred_score for outcome in outcomes]
        np.testing.assert_allclose(found, rows.pred_score, rtol=1e-5)
        assert own_map(outcomes[0]).shape == (HEIGHT, WIDTH)


def test_the_room_around_an_image_is_in_no_score_map_or_metric():
    folder, result = run(fit="pad")
    test = scores_of(folder).query("split == 'test'")
    predictor = load_predictor(folder, "cpu")
    maps, masks = [], []
    for path, outcome in zip(test.path, predictor.predict(test.path), strict=True):
        inside = outcome.inside
        assert inside.sum() == 32 * 18  # 91 x 50 in 32 x 32
        shown = outcome.anomaly_map[inside]
        assert outcome.pred_score == shown.max()
        assert (outcome.anomaly_map[~inside] == shown.min()).all()
        name = Path(path)
        mask = name.parents[2] / "ground_truth" / name.parent.name / f"{name.stem}_mask.png"
        marked = np.zeros((32, 32), bool)
        if mask.is_file():
            marked = predictor.models[0].geometry.apply_to_defect(np.asarray(Image.open(mask)) > 0)
        maps.append(shown)
        masks.append(marked[inside] > 0)
    expected = roc_auc_score(np.concatenate(masks), np.concatenate(maps))
    assert result["metrics"]["pixel_auroc"] == pytest.approx(expected, abs=1e-9)


def test_what_lies_outside_of_a_region_changes_nothing_at_all(root, tmp_path):
    """Images that differ only there give the same model, scores and figures, bit for bit."""
    with_roi(LEFT_HALF)
    folder, result = run(fit="pad")
    before = scores_of(folder)
    weights = read_checkpoint(find_checkpoint(folder)).model

    other = tmp_path / "datasets"
    shutil.copytree(root / "datasets", other)
    rng = np.random.default_rng(0)
    outside = ~own_cells(pack_cells(fill_polygon([(0, 0), (0.5, 0), (0.5, 1), (0, 1)])), 50, 91)
    for path in other.rglob("*.png"):
        pixels = np.array(Image.open(path))
        if pixels.ndim == 3:
            pixels[outside] = rng.integers(0, 256, (outside.sum(), 3))
            Image.fromarray(pixels).save(path)
    set_globals(dataset_dir=other)
    folder, again = run(fit="pad")
    assert np.array_equal(before.pred_score, scores_of(folder).pred_score)
    for name, value in read_checkpoint(find_checkpoint(folder)).model.items():
        assert torch.equal(value, weights[name])
    assert again["metrics"] == result["metrics"]
    (outcome,) = load_predictor(folder, "cpu").predict([before.path.iloc[-1]])
    whole = own_map(outcome)
    assert (whole[outside] == whole.min()).all()


@pytest.mark.parametrize("roi", [(20, 5, 80, 45), ((0.2, 0.1), (0.9, 0.2), (0.5, 0.9))])
def test_a_bundle_counts_what_its_trial_counts(roi, tmp_path):
    pytest.importorskip("onnxscript")
    from adray.bundle import write_bundle
    from adray.bundle_check import Wanted
    from adray.runtime import load

    with_roi(roi)
    folder, _ = run(fit="pad")
    write_bundle(folder, tmp_path / "a.adray", Wanted(false_alarms=0.2))
    rows = scores_of(folder)
    bundle = load(tmp_path / "a.adray")
    for row, outcome in zip(
        rows.itertuples(), load_predictor(folder, "cpu").predict(rows.path), strict=True
    ):
        result = bundle.predict(row.path)
        assert result.pred_score == pytest.approx(row.pred_score, rel=1e-5)
        np.testing.assert_allclose(result.anomaly_map, own_map(outcome), atol=1e-4)


def test_a_plain_trial_keeps_its_identity_and_another_geometry_is_another_trial(tmp_path):
    def identity():
        return json.loads((run()[0] / "trial.json").read_text())["identity"]

    plain = identity()
    assert "fit" not in plain["train"]
    with_roi(LEFT_HALF)
    cut = identity()
    assert cut["data"] != plain["data"]
    with_roi([[0, 0], [0.5, 0], [0.5, 1], [0, 1]])
    assert identity()["data"] == cut["data"]  # the same region, said otherwise
    folder, _ = run(fit="pad")
    padded = json.loads((folder / "trial.json").read_text())["identity"]
    assert padded["train"]["fit"] == "pad"


def test_the_region_of_a_category_is_a_rectangle_corners_or_a_picture(root, tmp_path):
    found = []
    picture = np.zeros((30, 60), np.uint8)
    picture[:, :30] = 255
    Image.fromarray(picture).save(root / "datasets" / "bottle_roi.png")
    for said in (LEFT_HALF, {"bottle": LEFT_HALF}, "{category}_roi.png"):
        with_roi(said)
        folder, _ = run()
        found.append(read_checkpoint(find_checkpoint(folder)).roi)
    assert found[0] == found[1] == found[2]
    with_roi({"cable": LEFT_HALF})
    assert read_checkpoint(find_checkpoint(run()[0])).roi is None


def test_a_learned_region_is_where_the_product_stands_before_its_background(tmp_path, caplog):
    """Squares that move a little on a dark background; a texture has no background."""
    home = tmp_path / "d" / "mvtec" / "bottle"
    rng = np.random.default_rng(0)
    for i in range(12):
        name = f"train/good/{i:02d}.png" if i < 10 else f"test/bad/{i:02d}.png"
        pixels = rng.integers(0, 20, (60, 120, 3))
        left = 40 + int(rng.integers(0, 5))
        pixels[20:45, left : left + 40] += 150
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(home / name)
    set_globals(dataset_dir=tmp_path / "d")
    with_roi("auto")
    folder, _ = run()
    roi = read_checkpoint(find_checkpoint(folder)).roi
    counts = own_cells(roi, 60, 120)
    assert counts[20:45, 44:80].all()
    rows, columns = np.nonzero(counts)
    assert 16 <= rows.min() <= 20
    assert 45 <= rows.max() + 1 <= 49
    assert 34 <= columns.min() <= 40
    assert 84 <= columns.max() + 1 <= 92
    assert "the roi covers" in caplog.text

    set_globals(dataset_dir=tmp_path / "t")
    write_mvtec(tmp_path / "t" / "mvtec", categories=("bottle",), train=8, good=2, defects=2)
    folder, _ = run()
    assert own_cells(read_checkpoint(find_checkpoint(folder)).roi, 64, 64).all()


@pytest.mark.parametrize(
    ("roi", "words"),
    [
        ("missing.png", "missing.png does not exist"),
        ((10, 10, 500, 20), "lies outside of the images of 91 x 50 pixels"),
        (((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)), "has no area"),
    ],
)
def test_a_region_that_cannot_be_is_refused_before_anything_starts(roi, words):
    with_roi(roi)
    with pytest.raises(InputError, match=words):
        run()


@pytest.mark.parametrize("roi", [(1, 2, 3), (5, 0, 1, 1), {"a": {"b": 1}}, 3, ((0, 0), (1, 1)), ""])
def test_what_is_no_region_is_refused_where_it_is_written(roi):
    with pytest.raises(InputError, match="roi"):
        DataOptions(roi=roi)


def test_pixels_of_images_of_several_sizes_are_no_region(root, tmp_path):
    other = tmp_path / "datasets"
    shutil.copytree(root / "datasets", other)
    path = next(other.rglob("train/good/*.png"))
    Image.open(path).resize((40, 40)).save(path)
    set_globals(dataset_dir=other)
    with_roi((10, 10, 30, 20))
    with pytest.raises(InputError, match="its images have several sizes"):
        run()


def test_the_plan_counts_the_defects_that_a_crop_or_a_region_cuts_away(root, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        f"""
name: cut
settings: {{dataset_dir: {root}/datasets, output_dir: {tmp_path}/o, plugins: [toy_plugin]}}
grid: {{models: [toy-ok], datasets: {{mvtec: each}}}}
overrides: {{"*": {{train: {{fit: crop, img_size: 32}}}}}}
"""
    )
    masks = sorted((root / "datasets").rglob("*_mask.png"))
    marked = [np.argwhere(np.asarray(Image.open(path)) > 0) for path in masks]
    middle = range((WIDTH - HEIGHT) // 2, (WIDTH - HEIGHT) // 2 + HEIGHT)
    lost = sum(not any(column in middle for column in part[:, 1]) for part in marked)
    main(["sweep", str(tmp_path / "s.yaml"), "--dry-run"])
    out = capsys.readouterr().out
    if lost:
        assert f"{lost} of {len(masks)} defect regions lie outside of the square" in out

    roi = "settings.data.mvtec={roi: [0, 0, 0.01, 0.01]}"
    main(["sweep", str(tmp_path / "s.yaml"), "--dry-run", "--set", roi, "overrides={}"])
    out = capsys.readouterr().out
    assert f"{len(masks)} of {len(masks)} defect regions lie outside of the roi" in out


# What counts, in scores and figures


def test_scores_of_what_counts_are_those_of_numpy():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 1, 20, 20)).astype(np.float32)
    inside = rng.random((3, 1, 20, 20)) < 0.4
    args = (torch.from_numpy(maps), torch.from_numpy(inside))
    for i in range(3):
        values = maps[i][inside[i]]
        assert highest_inside(*args)[i] == values.max()
        assert float(mean_inside(*args)[i]) == pytest.approx(values.mean(), rel=1e-5)
        most = np.sort(values)[-max(1, int(0.1 * len(values))) :]
        assert float(top_mean_inside(*args, 0.1)[i]) == pytest.approx(most.mean(), rel=1e-5)
        filled = with_lowest_outside(*args)[i].numpy()
        assert (filled[~inside[i]] == values.min()).all()
        assert np.array_equal(filled[inside[i]], values)

        local = []
        for y, x in np.argwhere(inside[i, 0]):
            window = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            local.append(maps[i, 0][window][inside[i, 0][window]].mean())
        assert float(highest_local_mean(*args, 3)[i]) == pytest.approx(max(local), rel=1e-5)


def test_pixel_figures_of_what_counts_are_those_of_the_other_pixels_taken_away():
    """A region of whole columns can be cut out; its figures are those of the smaller maps."""
    rng = np.random.default_rng(0)
    maps = rng.random((6, 300, 200)).astype(np.float32)
    mask = np.zeros(maps.shape, bool)
    mask[3:, 50:70, 40:60] = True
    maps[mask] += 0.2
    inside = np.zeros(maps.shape, bool)
    inside[:, :, 30:130] = True
    cut = np.s_[:, :, 30:130]
    expected = pixel_metrics(maps[cut], mask[cut])
    for name, value in pixel_metrics(maps, mask, inside=inside).items():
        assert value == pytest.approx(expected[name], abs=1e-4), name
    for make in (sorted_curve, binned_curve):
        found = make(maps, mask, inside)
        assert (found.tp[-1], found.fp[-1]) == (mask.sum(), (~mask[cut]).sum())

    normal = np.arange(6) < 3
    areas = image_aupimo(maps, mask, normal, inside)
    np.testing.assert_allclose(areas, image_aupimo(maps[cut], mask[cut], normal))
    found = pixel_verdicts(maps, mask, 0.9, inside)
    assert np.array_equal(found, pixel_verdicts(maps[cut], mask[cut], 0.9))
    threshold = pixel_threshold(maps[:3], inside[:3]).value
    assert threshold == pytest.approx(pixel_threshold(maps[:3][cut]).value)

"""Trials whose input is no square: everything that reads them again sees the same rectangle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from wide_pictures import HEIGHT, WIDTH, scores_of, use_pictures, write_wide_pictures

from adray.__main__ import main
from adray.conditions import Corruption
from adray.data.corruptions import corrupt
from adray.data.geometry import Geometry
from adray.errors import InputError
from adray.export import export_trial
from adray.measure import Request, measure_trial
from adray.predict import load_predictor
from adray.predictor import own_map
from adray.results.corrupted_scores import corrupted_file
from adray.settings import DataOptions, get_globals, set_globals
from adray.stress import open_test_images, stress_trial
from adray.thresholds import promised_threshold
from adray.train import train
from adray.update import update_trial

LAYERS = ("blocks.0", "blocks.1")
SUPERAD = {"layers": LAYERS, "num_images": 4, "rotations": 2}
LEFT_HALF = (0, 0, 0.5, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of 91 to 50 pixels."""
    return write_wide_pictures(tmp_path_factory.mktemp("aspect"), defects=4)


@pytest.fixture(autouse=True)
def settings(root, tmp_path, own_settings, own_registry, one_thread):
    use_pictures(root, tmp_path)


def run(name="superad-small-448", model=None, **options):
    options = {"img_size": 56, "aspect": 1.5, "holdout": 0.4, "batch_size": 4, **options}
    model = SUPERAD if model is None else model
    result = train("mvtec", "bottle", name, train=options, model=model, weights="random")
    return Path(result["folder"]), result


def mask_of(path):
    """The mask of a test image, as its file has it."""
    image = Path(path)
    mask = image.parents[2] / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    return np.asarray(Image.open(mask)) > 0 if mask.is_file() else np.zeros((HEIGHT, WIDTH), bool)


OTHER_FITS = [pytest.param(fit, marks=pytest.mark.slow) for fit in ("pad", "crop")]


@pytest.mark.parametrize("fit", ["squeeze", *OTHER_FITS])
def test_new_images_score_as_in_the_trial_by_predict_and_by_an_export(fit, tmp_path):
    folder, _ = run(fit=fit)
    rows = scores_of(folder)
    about = export_trial(folder, tmp_path / "export")
    assert about["input"]["shape"] == ["batch", 3, 56, 84]
    assert about["preprocessing"]["resize"]["size"] == [56, 84]
    for place in (folder, tmp_path / "export"):
        outcomes = list(load_predictor(place, "cpu").predict(rows.path))
        found = [outcome.pred_score for outcome in outcomes]
        np.testing.assert_allclose(found, rows.pred_score, rtol=1e-5)
        for outcome in outcomes:
            assert outcome.anomaly_map.shape == (56, 84)
            assert own_map(outcome).shape == (HEIGHT, WIDTH)


def test_pixel_figures_are_those_of_the_masks_in_the_rectangle():
    folder, result = run(fit="pad")
    test = scores_of(folder).query("split == 'test'")
    geometry = Geometry(56, fit="pad", aspect=1.5)
    values, marked = [], []
    for path, outcome in zip(
        test.path, load_predictor(folder, "cpu").predict(test.path), strict=True
    ):
        inside = outcome.inside
        assert inside.sum() == 46 * 84  # 91 x 50 in 84 x 56
        values.append(outcome.anomaly_map[inside])
        marked.append(geometry.apply_to_defect(mask_of(path))[inside] > 0)
    expected = roc_auc_score(np.concatenate(marked), np.concatenate(values))
    assert result["metrics"]["pixel_auroc"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fit", ["squeeze", *OTHER_FITS])
@pytest.mark.parametrize(
    ("name", "model"),
    [("superad-small-448", SUPERAD), ("patchcore-resnet18", {"coreset_ratio": 0.2})],
)
def test_a_bundle_judges_a_rectangle_as_its_trial(name, model, fit, tmp_path):
    pytest.importorskip("onnxscript")
    from adray.bundle import write_bundle
    from adray.bundle_check import Wanted
    from adray.runtime import load

    folder, _ = run(name, model, fit=fit)
    write_bundle(folder, tmp_path / "a.adray", Wanted(false_alarms=0.2))
    rows = scores_of(folder)
    predictor = load_predictor(folder, "cpu")
    threshold = promised_threshold(predictor.promise(0.2)).value
    bundle = load(tmp_path / "a.adray")
    for row, outcome in zip(rows.itertuples(), predictor.predict(rows.path), strict=True):
        result = bundle.predict(row.path)
        assert result.pred_score == pytest.approx(row.pred_score, rel=1e-4)
        assert (result.verdict == "anomalous") == (row.pred_score >= threshold)
        whole = own_map(outcome)
        np.testing.assert_allclose(result.anomaly_map, whole, atol=1e-4 * np.abs(whole).max())


def test_a_region_counts_in_a_rectangle_as_in_a_square():
    set_globals(data={"mvtec": DataOptions(roi=LEFT_HALF)})
    folder, _ = run()
    rows = scores_of(folder)
    for row, outcome in zip(
        rows.itertuples(), load_predictor(folder, "cpu").predict(rows.path), strict=True
    ):
        assert outcome.pred_score == pytest.approx(row.pred_score, rel=1e-5)
        assert np.array_equal(outcome.inside, np.indices((56, 84))[1] < 42)
        whole = own_map(outcome)
        assert (whole[:, WIDTH // 2 + 1 :] == whole.min()).all()


def test_squares_cut_out_of_large_images_do_not_suit_a_model_of_rectangles():
    folder, _ = run()
    predictor = load_predictor(folder, "cpu")
    with pytest.raises(InputError, match="aspect other than 1 sees rectangles; predict whole"):
        predictor.predict_tiled([np.zeros((200, 200, 3), np.uint8)], 64)


def test_only_another_aspect_is_named_by_the_trial_and_makes_another_one():
    def identity(**options):
        return json.loads((run(**options)[0] / "trial.json").read_text())["identity"]

    plain = identity(aspect=1.0)
    assert "aspect" not in plain["train"]
    wide = identity()
    assert wide["train"].pop("aspect") == 1.5
    assert wide["train"] == plain["train"]
    assert wide["data"] == plain["data"]


@pytest.mark.parametrize("name", ["superad-small-448", "patchcore-resnet18", "dfm-resnet18"])
def test_training_normals_calibrate_in_a_rectangle(name):
    model = {**SUPERAD, "rotations": 1} if name.startswith("superad") else {}
    folder, result = run(name, model, calibration="cross")
    assert result["counts"]["train"] == 16
    assert len(load_predictor(folder, "cpu").calibration) == 16


def test_corrupted_images_are_corrupted_in_the_rectangle_image_by_image():
    folder, _ = run(fit="pad")
    noise = Corruption("noise", 5)
    stress_trial(folder, [noise])
    table = pd.read_parquet(corrupted_file(folder, noise))
    predictor = load_predictor(folder, "cpu")
    geometry = Geometry(56, fit="pad", aspect=1.5)
    for row in table.itertuples():
        image = Image.open(row.path).convert("RGB")
        framed = np.moveaxis(np.asarray(geometry.apply(image)), 2, 0).copy()
        placed = geometry.place(image.height, image.width)
        part = np.s_[:, placed.rows, placed.columns]
        name = f"mvtec/bottle/bottle/{Path(row.path).relative_to(Path(row.path).parents[2])}"
        framed[part] = corrupt(framed[part], None, noise, name).pixels
        model = predictor.models[0]
        outcome = model.read(row.path, 0)
        object.__setattr__(outcome, "image", framed)
        (judged,) = model.score([outcome])
        assert judged.pred_score == pytest.approx(row.pred_score, rel=1e-4)


def test_the_test_images_of_a_stress_have_the_shape_of_the_input():
    from adray.results.store import read_trial

    folder, _ = run(fit="crop")
    record = read_trial(folder)
    images = open_test_images(record, load_predictor(folder, "cpu").trainer)
    pixels, _ = images.picture(0)
    assert pixels.shape == (3, 56, 84)
    seen = images.read(0, Corruption("shift", 3))
    assert seen.pixels.shape == (3, 56, 84)
    assert seen.mask.shape == (56, 84)


def test_an_update_of_a_rectangle_learns_the_new_images(root, tmp_path):
    model = {"layers": LAYERS}
    folder, _ = run("subspacead-small-448", model)
    more = tmp_path / "more"
    more.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(more / f"{number}.png")
    added = sorted(more.iterdir())
    made = update_trial(folder, added, [], "cpu", tmp_path / "new")
    before = list(load_predictor(folder, "cpu").predict(added))
    after = list(load_predictor(made.folder, "cpu").predict(added))
    for one, other in zip(before, after, strict=True):
        assert other.anomaly_map.shape == (56, 84)
        assert other.pred_score < one.pred_score  # it knows them now


def test_speed_is_measured_on_the_rectangle():
    folder, _ = run()
    found = measure_trial(Request(folder, "cpu", 1, 5, 0.1, get_globals()))
    assert found["latency_ms"] > 0
    assert found["input_size"] == 56


def test_the_plan_names_the_value_that_suits_the_images_once(root, tmp_path, capsys):
    file = tmp_path / "s.yaml"
    file.write_text(
        f"""
name: shape
settings: {{dataset_dir: {root}/datasets, output_dir: {tmp_path}/o}}
grid: {{models: [dfm-resnet18, patchcore-resnet18, padim], datasets: {{mvtec: each}}}}
weights: random
"""
    )
    said = r"images are 1\.82 times as wide as high, and (dfm|patchcore)-resnet18 sees them in"
    main(["sweep", str(file), "--dry-run"])
    out = capsys.readouterr().out
    assert out.count("times as wide as high") == 1
    assert re.search(said, " ".join(out.split()))
    assert "train.aspect: 1.82" in out

    wide = 'overrides={"[dp][fa]*-resnet18": {train: {aspect: 1.82}}}'
    main(["sweep", str(file), "--dry-run", "--set", wide])
    assert "times as wide as high" not in capsys.readouterr().out


def test_a_survey_of_the_data_names_the_value_too(root, capsys):
    main(["data", str(root / "datasets" / "mvtec")])
    assert "train.aspect: 1.82" in capsys.readouterr().out


def test_what_takes_squares_alone_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match=r"aspect 1\.5 does not suit padim.*fit: pad"):
        run("padim", {"num_features": 20})
    assert not (tmp_path / "outputs").exists()

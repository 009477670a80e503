"""All training normals calibrate verdicts, each scored by a model that was fitted without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import save, write_mvtec

from adray.components.k_center_greedy import k_center_greedy
from adray.cross import cross_scores
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.export import export_trial
from adray.predict import load_predictor
from adray.registry import ModelRegistry
from adray.settings import DataOptions, get_globals, set_globals
from adray.train import train

SIZE = 64
METHODS = {
    "padim": {"num_features": 20},
    "patchcore-resnet18": {"coreset_ratio": 1.0},  # whatever the order of the images
    "dfm-resnet18": {},
    "dfkde": {"layers": ["layer2"]},
}


@pytest.fixture
def bottle(one_thread):
    return write_mvtec(Path(get_globals().dataset_dir) / "mvtec", ("bottle",), train=12)


def trainer_of(name, **changes):
    train = {"img_size": SIZE, "batch_size": 5, "calibration": "cross", **changes}
    found = ModelRegistry.resolve(name, train=train, model=METHODS[name], weights="random")
    return ModelRegistry.trainer_class(name)(found.config, found.train_config, "cpu", 7)


def loaders_of(holdout=0.0):
    return get_dataloaders("mvtec", "bottle", img_size=SIZE, batch_size=5, holdout=holdout)


def run(name="padim", **changes):
    train_config = {"img_size": SIZE, "calibration": "cross"} | changes
    return train("mvtec", "bottle", name, train=train_config, model=METHODS[name], weights="random")


@pytest.mark.parametrize("name", METHODS)
def test_each_image_has_the_score_of_a_model_that_never_saw_its_fold(bottle, name):
    loaders = loaders_of()
    fold = np.arange(12) % 3
    scores = cross_scores(trainer_of(name), loaders, fold)
    assert scores.anomaly_map is None or scores.anomaly_map.shape == (12, SIZE, SIZE)

    # By hand: the images of a fold are taken away, and a fresh model is fitted on the rest.
    for number in range(3):
        homes = [sample.path for sample in np.array(loaders.train.samples)[fold == number]]
        aside = [path.rename(path.with_suffix(".aside")) for path in homes]
        other = trainer_of(name)
        other.fit(loaders_of())
        for path in aside:
            path.rename(path.with_suffix(".png"))
        found = other.predict(loaders.train)  # in the order of a shuffled pass
        order = loaders.train.order()
        inside = fold[order] == number
        np.testing.assert_allclose(
            scores.pred_score[order][inside], found.pred_score[inside], rtol=1e-4
        )
        if found.anomaly_map is not None:
            np.testing.assert_allclose(
                scores.anomaly_map[order][inside], found.anomaly_map[inside], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("name", METHODS)
def test_the_model_that_is_kept_is_that_of_all_normals_bit_by_bit(bottle, name):
    loaders = loaders_of()
    crossed = trainer_of(name)
    cross_scores(crossed, loaders, np.arange(12) % 4)
    crossed.fit(loaders)
    plain = trainer_of(name)
    plain.fit(loaders_of())
    found = crossed.model.state_dict()
    for key, values in plain.model.state_dict().items():
        assert torch.equal(found[key], values), key
    assert len(crossed.history) == len(plain.history) == 1


def test_the_coreset_of_all_normals_is_chosen_once(bottle, monkeypatch):
    chosen = []

    def choose(patches, *arguments):
        chosen.append(len(patches))
        return k_center_greedy(patches, *arguments)

    monkeypatch.setattr("adray.models.patchcore.k_center_greedy", choose)
    loaders = loaders_of()
    found = ModelRegistry.get_trainer(
        "patchcore-resnet18",
        train={"img_size": SIZE, "batch_size": 5, "calibration": "cross"},
        model={"coreset_ratio": 0.2, "weights": "random"},
        seed=7,
    )
    cross_scores(found, loaders, np.arange(12) % 4)
    found.fit(loaders)
    assert chosen == []
    # Another training is of other images, so that it chooses anew.
    bank = found.model.memory_bank
    found.fit(loaders_of())
    assert chosen == [12 * 64]
    assert torch.equal(found.model.memory_bank, bank)


@pytest.mark.parametrize("name", METHODS)
def test_the_backbone_sees_each_image_once(bottle, name):
    loaders = loaders_of()
    trainer = trainer_of(name)
    seen = []
    trainer.model.extractor.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    cross_scores(trainer, loaders, np.arange(12) % 4)
    trainer.fit(loaders)
    assert sum(seen) == 12
    trainer.predict(loaders.test)
    assert sum(seen) == 12 + len(loaders.test.samples)


def test_a_trial_is_calibrated_by_all_its_training_normals_and_says_how(bottle):
    result = run()
    assert result["counts"]["train"] == 12
    assert result["counts"]["holdout"] == 0
    verdict = result["verdict"]
    assert (verdict["calibration"], verdict["approximate"]) == ("cross", True)
    assert verdict["folds"] == 10
    assert "approximate" in verdict["notes"][0]
    assert verdict["promises"][0]["normals"] == 12

    folder = Path(result["folder"])
    rows = pd.read_parquet(folder / "scores.parquet").query("split == 'cross'")
    assert sorted(Path(path).name for path in rows["path"]) == [f"{i:03d}.png" for i in range(12)]
    promise = result["thresholds"]["promise"]
    assert promise["score"] == rows["pred_score"].max()
    assert result["thresholds"]["percentile_95"]["value"] == pytest.approx(
        np.percentile(rows["pred_score"], 95)
    )
    assert result["pixel_threshold"]["value"] is not None
    identity = json.loads((folder / "trial.json").read_text())["identity"]
    assert identity["train"]["calibration"] == "cross"
    assert "holdout" not in identity["train"]


def test_what_loads_the_model_has_its_calibration_and_an_export_names_the_kind(bottle, tmp_path):
    folder = Path(run("dfm-resnet18")["folder"])
    rows = pd.read_parquet(folder / "scores.parquet").query("split == 'cross'")
    expected = sorted(rows["pred_score"].tolist())
    predictor = load_predictor(folder, "cpu")
    assert list(predictor.calibration) == expected
    assert predictor.accepted == ()

    export_trial(folder, tmp_path / "export", "safetensors")
    about = json.loads((tmp_path / "export" / "export.json").read_text())
    peaks = sorted(rows["peak"].tolist())
    assert about["calibration"] == {"kind": "cross", "scores": expected, "peaks": peaks}
    exported = load_predictor(tmp_path / "export", "cpu")
    assert list(exported.calibration) == expected
    assert predictor.is_crossed
    assert exported.is_crossed


def test_scores_of_training_normals_are_far_above_those_of_a_model_that_knows_them(bottle):
    """Else a threshold of theirs would promise what it cannot keep."""
    loaders = loaders_of()
    trainer = trainer_of("dfm-resnet18")
    crossed = cross_scores(trainer, loaders, np.arange(12))
    trainer.fit(loaders)
    known = trainer.predict(loaders.train)
    assert crossed.pred_score.min() > known.pred_score.max()


def test_the_images_of_a_lot_are_left_out_together_and_new_lots_have_a_promise(bottle):
    set_globals(data={"mvtec": DataOptions(group=r"(lot\d|test/.*)")})
    homes = sorted((bottle / "bottle/train/good").iterdir())
    for i, path in enumerate(homes):
        path.rename(path.with_name(f"lot{i % 4}_{i}.png"))
    result = run("dfm-resnet18")
    assert result["verdict"]["folds"] == 4
    rows = pd.read_parquet(Path(result["folder"]) / "scores.parquet").query("split == 'cross'")
    highest = rows.groupby("group")["pred_score"].max()
    (promise,) = result["verdict"]["group_promises"]
    assert promise["groups"] == len(highest) == 4
    assert promise["score"] == highest.max()
    assert promise["promised"] == pytest.approx(1 / 5)


def test_a_method_that_trains_is_refused_with_those_that_can(bottle):
    with pytest.raises(InputError, match=r"frozen features can: padim, .*patchcore.*dfkde.*dfm"):
        train("mvtec", "bottle", "autoencoder", train={"calibration": "cross"}, weights="random")
    assert not (Path(get_globals().output_dir) / "mvtec").exists()


def test_validation_images_of_the_data_calibrate_and_the_trial_is_the_usual_one(bottle, caplog):
    for i in range(5):
        save(bottle / "bottle/validation/good" / f"{i:03d}.png", 900 + i, 64)
    crossed = run("dfm-resnet18")
    assert "verdicts are calibrated by the 5 validation images" in caplog.text
    usual = run("dfm-resnet18", calibration="holdout")
    assert crossed["verdict"] == usual["verdict"]
    assert crossed["verdict"]["calibration"] == "holdout"
    assert not crossed["verdict"]["approximate"]
    assert crossed["verdict"]["promises"][0]["normals"] == 5
    assert crossed["counts"] == usual["counts"]
    assert crossed["counts"]["train"] == 12


def test_without_test_images_cross_calibration_is_refused_before_anything_runs(bottle):
    shutil.rmtree(bottle / "bottle/test")
    shutil.rmtree(bottle / "bottle/ground_truth")
    with pytest.raises(InputError, match="holds no normals out to draw defects on"):
        run("dfm-resnet18")


def test_too_few_images_beside_the_largest_lot_are_refused_by_their_numbers(bottle):
    set_globals(data={"mvtec": DataOptions(group=r"(train/good/0\d|test/.*)")})
    homes = sorted((bottle / "bottle/train/good").iterdir())
    for path in homes[1:10]:
        path.unlink()
    with pytest.raises(InputError, match=r"leaves 1 of 3 .* needs at least 2"):
        run("dfm-resnet18")

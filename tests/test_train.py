"""`train`, `train_models` and the other names of the specification's train.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import save, write_custom, write_mvtec, write_visa
from PIL import Image

import adray.cli.train
import adray.train
from adray.errors import InputError
from adray.predict import load_predictor
from adray.settings import DataOptions, FolderLayout, get_globals, set_globals
from adray.train import count_parameters, run_experiment, train, train_models


@pytest.fixture(autouse=True)
def site(tmp_path):
    categories = ("bottle", "wood", "grid")
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=categories, train=8, good=3, defects=4, size=48
    )
    set_globals(plugins=("toy_plugin",))


def test_the_specifications_names_exist():
    names = "train train_models set_globals get_globals print_globals set_seed count_parameters clear_dataloader"
    for name in [*names.split(), "clear_memory", "print_memory", "run_experiment"]:
        assert callable(getattr(adray.train, name)), name


def test_outputs_carry_the_specifications_names_and_text():
    result = train("mvtec", "bottle", "toy-ok", num_epochs=1)
    folder = Path(get_globals().output_dir) / "mvtec" / "bottle" / "toy-ok"
    assert result["folder"] == str(folder)
    names = {p.name for p in folder.iterdir()}
    stem = "mvtec_bottle_toy-ok"
    assert {
        f"model_{stem}_epochs-1.pth",
        f"results_{stem}_thresholds.txt",
        f"histogram_{stem}_scores.png",
        f"image_{stem}_normal_0001.png",
        f"image_{stem}_anomaly_0001.png",
        "trial.json",
        "result.json",
        "scores.parquet",
    } <= names
    text = (folder / f"results_{stem}_thresholds.txt").read_text()
    for line in (
        r"=== Image-level Results ===",
        r"AUROC: \d\.\d{3} \(\d+\.\d%\)",
        r"AUPR: \d\.\d{3} \(\d+\.\d%\)",
        r"=== Thresholds ===",
        r"F1 \(Percentile\): \S+ \| F1: \d\.\d{3}",
        r"F1 \(Uniform\): \S+ \| F1: \d\.\d{3}",
        r"ROC \(Youden J\): \S+ \| Sensitivity: \d\.\d{3}, Specificity: \d\.\d{3}",
        r"Percentile \(95%\): \S+",
        r"=== Confusion Matrix \(F1 Threshold\) ===",
        r"TP=\d+, FN=\d+, TN=\d+, FP=\d+",
        r"Accuracy: \d\.\d{3}, Precision: \d\.\d{3}, Recall: \d\.\d{3}",
    ):
        assert re.search(line, text), line


def write_loco(home: Path) -> None:
    """A category as MVTec LOCO has them: two defects in each anomalous image, half of each enough."""
    counts = {
        "train/good": 8,
        "validation/good": 4,
        "test/good": 4,
        "test/logical_anomalies": 3,
        "test/structural_anomalies": 3,
    }
    for number, (folder, count) in enumerate(counts.items()):
        for i in range(count):
            path = home / folder / f"{i:03d}.png"
            is_bad = path.parent.name.endswith("anomalies")
            masks = home / "ground_truth" / path.parent.name / path.stem
            for k in range(2 * is_bad):
                # The image is of the second defect, the first one cannot be seen.
                save(path, 100 * number + 10 * i + k, 48, True, masks / f"00{k}.png")
            if not is_bad:
                save(path, 100 * number + i, 48)
    entry = {"defect_name": "any", "pixel_value": 255}
    entry |= {"saturation_threshold": 0.5, "relative_saturation": True}
    (home / "defects_config.json").write_text(json.dumps([entry]))


def test_loco_is_judged_by_saturated_overlap_and_by_both_kinds_of_anomalies():
    from sklearn.metrics import roc_auc_score

    write_loco(Path(get_globals().dataset_dir) / "mvtec_loco" / "box")
    result = train("mvtec_loco", "box", "toy-ok", num_epochs=1)
    assert result["counts"]["holdout"] == 4

    scores = pd.read_parquet(Path(result["folder"]) / "scores.parquet")
    test = scores[scores["split"] == "test"]
    areas = []
    aurocs = []
    for kind in ("logical_anomalies", "structural_anomalies"):
        rows = test[test["defect_type"].isin(["good", kind])]
        aurocs.append(roc_auc_score(rows["label"], rows["pred_score"]))
        areas.append(result["per_defect_type"][kind]["au_spro_05"])
    assert result["metrics"]["image_auroc_kinds"] == pytest.approx(np.mean(aurocs))
    assert result["metrics"]["au_spro_05"] == pytest.approx(np.mean(areas))
    assert 0 < result["metrics"]["au_spro_05"] < 1


def test_stored_scores_give_the_stored_metrics_by_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    result = train("mvtec", "bottle", "toy-ok")
    scores = pd.read_parquet(Path(result["folder"]) / "scores.parquet")
    assert set(scores["split"]) == {"test", "holdout"}
    test = scores[scores["split"] == "test"]
    assert len(test) == 7
    expected = roc_auc_score(test["label"], test["pred_score"])
    assert result["metrics"]["image_auroc"] == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(test["label"], test["pred_score"])
    assert result["metrics"]["image_aupr"] == pytest.approx(expected, abs=1e-12)
    held_out = scores[scores["split"] == "holdout"]["pred_score"]
    assert result["thresholds"]["percentile_95"]["value"] == pytest.approx(
        np.percentile(held_out, 95)
    )
    assert not result["thresholds"]["percentile_95"]["oracle"]
    assert result["thresholds"]["promise"]["score"] == pytest.approx(held_out.max())
    assert result["thresholds"]["f1_percentile"]["oracle"]


def test_without_holdout_what_needs_it_is_not_available():
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.0})
    assert result["thresholds"]["percentile_95"]["value"] is None
    assert result["counts"]["holdout"] == 0
    assert "n/a" in next(Path(result["folder"]).glob("results_*")).read_text()


def test_several_rates_are_promised_and_the_first_gives_the_verdicts():
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.5}, false_alarms=(0.4, 0.01))
    first, second = result["verdict"]["promises"]
    assert (first["rate"], second["rate"]) == (0.4, 0.01)
    assert result["thresholds"]["promise"]["score"] == first["score"]
    assert first["promised"] <= 0.4
    assert second["promised"] > 0.01
    assert result["verdict"]["calibration"] == "holdout"


def test_a_hold_out_that_stopped_the_training_makes_the_promise_approximate():
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.5, "patience": 3})
    assert "approximate" in result["verdict"]["notes"][0]


def test_the_last_run_wins_and_leaves_no_files_of_the_one_before():
    folder = Path(train("mvtec", "bottle", "toy-ok", train={"holdout": 0.0})["folder"])
    train("mvtec", "bottle", "toy-ok")
    assert json.loads((folder / "result.json").read_text())["counts"]["holdout"] == 1
    assert not [p for p in folder.parent.iterdir() if p != folder]


def test_what_would_change_a_result_is_refused_before_anything_is_written(tmp_path):
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.copy(bottle / "test/hole/000.png", bottle / "train/good/copy.png")
    with pytest.raises(InputError, match="identical_pictures"):
        train("mvtec", "bottle", "toy-ok", num_epochs=1)
    assert not Path(get_globals().output_dir).exists()

    set_globals(data={"mvtec": DataOptions(accept=("identical_pictures",))})
    assert train("mvtec", "bottle", "toy-ok", num_epochs=1)["metrics"]["image_auroc"] is not None


def test_normals_alone_train_calibrate_and_are_judged_by_defects_that_are_marked_as_drawn(tmp_path):
    bottle = tmp_path / "datasets" / "mvtec" / "bottle"
    shutil.copytree(bottle / "train" / "good", tmp_path / "datasets" / "alone")
    set_globals(folders={"alone": FolderLayout("alone", normal=(".",))})
    result = train("alone", "all", "toy-ok", num_epochs=1)
    assert result["evaluation"] == "synthetic"
    assert any("synthetic defects" in note for note in result["notes"])
    assert result["thresholds"]["percentile_95"]["value"] is not None
    assert 0 <= result["metrics"]["image_auroc"] <= 1


def test_defects_alone_train_and_read_no_auroc(tmp_path):
    shutil.rmtree(tmp_path / "datasets" / "mvtec" / "bottle" / "test" / "good")
    result = train("mvtec", "bottle", "toy-ok", num_epochs=1)
    assert result["metrics"]["image_auroc"] is None
    assert result["counts"]["test_anomalous"] == 4


def test_several_categories_train_one_model_with_figures_per_category():
    result = train("mvtec", ["bottle", "wood"], "toy-ok")
    assert result["folder"].endswith("mvtec/bottle+wood/toy-ok")
    assert set(result["per_category"]) == {"mvtec/bottle", "mvtec/wood"}
    assert train("mvtec", "all", "toy-ok")["folder"].endswith("mvtec/all/toy-ok")


def test_custom_data_sets_go_below_custom_and_can_be_merged(tmp_path):
    for name in ("dataset_A", "dataset_B"):
        write_custom(tmp_path / "datasets" / "custom" / name)
    assert "/custom/dataset_A/" in train("dataset_A", "pattern1", "toy-ok")["folder"]
    merged = train(["dataset_A", "dataset_B"], ["pattern1", "pattern2"], "toy-ok")
    assert "/custom/dataset_A+dataset_B/pattern1+pattern2/" in merged["folder"]


def test_supervised_training_is_refused_without_labelled_defects_before_anything_is_written():
    with pytest.raises(
        InputError, match="mvtec/bottle: the training split has no labelled defects"
    ):
        train("mvtec", "bottle", "supervised-toy")
    assert not Path(get_globals().output_dir).exists()


def test_labelled_defects_train_supervised_configurations_and_no_others(tmp_path, caplog):
    write_visa(tmp_path / "datasets" / "visa", ("candle",), train=8, good=3, defects=6, size=48)
    split = {"split_mode": "2cls_highshot"}
    supervised = train("visa", "candle", "supervised-toy", train=split)
    assert "labelled defects" not in caplog.text
    plain = train("visa", "candle", "toy-ok", train=split)
    assert "visa/candle: 3 labelled defects of the training split are not used" in caplog.text
    assert (supervised["counts"]["train"], plain["counts"]["train"]) == (10, 7)
    assert supervised["counts"]["test_anomalous"] == plain["counts"]["test_anomalous"] == 3


def test_train_models_trains_each_apart_and_goes_on_after_a_failure():
    outcomes = train_models(
        dataset_type="mvtec", categories=["bottle", "wood"], models=["toy-raise", "toy-ok"]
    )
    assert set(outcomes) == {(c, m) for c in ("bottle", "wood") for m in ("toy-raise", "toy-ok")}
    assert outcomes["wood", "toy-raise"]["error"] == "ValueError: toy went wrong"
    assert outcomes["wood", "toy-ok"]["metrics"]["image_auroc"] is not None


def test_run_experiment_takes_a_mapping_or_a_file(tmp_path):
    by_mapping = run_experiment(
        {"dataset_type": "mvtec", "category": "bottle", "model_type": "toy-ok"}
    )
    (tmp_path / "e.yaml").write_text("{dataset_type: mvtec, category: bottle, model_type: toy-ok}")
    assert run_experiment(tmp_path / "e.yaml")["metrics"] == by_mapping["metrics"]
    with pytest.raises(InputError, match="the keys are the arguments of train"):
        run_experiment(
            {"dataset_type": "mvtec", "category": "bottle", "model_type": "toy-ok", "epochs": 3}
        )


def test_one_trial_from_the_command_line(capsys):
    changes = ["--set", "model.gain=2", "train.img_size=16"]
    code = adray.cli.train.main(["mvtec", "bottle", "toy-ok", *changes, "--device", "cpu"])
    assert code == 0
    assert "image_auroc" in capsys.readouterr().out
    trial = json.loads(
        (Path(get_globals().output_dir) / "mvtec/bottle/toy-ok/trial.json").read_text()
    )
    assert trial["identity"]["model"]["gain"] == 2.0
    assert trial["identity"]["train"]["img_size"] == 16


def test_a_failing_run_leaves_nothing_behind():
    with pytest.raises(ValueError, match="toy went wrong"):
        train("mvtec", "bottle", "toy-raise")
    assert not [p for p in Path(get_globals().output_dir).rglob("*") if p.is_file()]


def test_count_parameters_counts_all_or_only_trainable():
    net = torch.nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    assert (count_parameters(net), count_parameters(net, trainable_only=True)) == (8, 6)


def test_a_changed_image_size_keeps_the_proportion_of_the_crop():
    from adray.train import _scale_crop

    assert _scale_crop("patchcore", {"img_size": 512}) == {"img_size": 512, "crop_size": 448}
    assert _scale_crop("padim", {"img_size": 512}) == {"img_size": 512}


def test_defects_of_a_validation_split_are_left_out_with_a_word(tmp_path, caplog):
    root = write_mvtec(tmp_path / "datasets" / "checked", ("bottle",), train=8, size=48)
    for kind in ("good", "hole"):
        brought = root / "bottle" / "validation" / kind
        brought.mkdir(parents=True)
        for place in range(3):
            pixels = np.random.default_rng(place + 10 * (kind == "good")).integers(
                0, 255, (48, 48, 3)
            )
            Image.fromarray(pixels.astype(np.uint8)).save(brought / f"{place}.png")
    found = train("checked", "bottle", "toy-ok")
    assert "3 defects of the validation split are not used" in caplog.text
    assert found["counts"]["holdout"] == 3


def test_a_checkpoint_alone_promises_what_its_trial_does(tmp_path):
    """Only the file of the model may travel to the line."""
    write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=40, good=4, size=48)
    found = train("mvtec", "bottle", "toy-ok", false_alarms=[0.3, 0.1], train={"holdout": 20})
    folder = Path(found["folder"])
    (model,) = folder.glob("model_*.pth")
    whole = load_predictor(folder, "cpu")
    alone = load_predictor(shutil.copy(model, tmp_path / "model.pth"), "cpu")
    assert alone.rate == whole.rate == 0.3
    assert alone.thresholds["promise"] == whole.thresholds["promise"]
    assert alone.promise(alone.rate) == whole.promise(whole.rate)

    chosen = alone.trainer
    chosen.tried = 41
    chosen.save_model(tmp_path / "chosen.pth")
    winner = load_predictor(tmp_path / "chosen.pth", "cpu")
    assert winner.promise(0.3).tried == 41
    assert winner.promise(0.3).score > alone.promise(0.3).score

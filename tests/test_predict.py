from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image

from adray.cli.predict import main
from adray.errors import InputError
from adray.predict import COLUMNS, Outcome, expand_images, load_predictor, write_predictions
from adray.settings import set_globals
from adray.train import train


@pytest.fixture(autouse=True)
def trained(tmp_path_factory, own_settings, own_registry):
    """A finished trial, the folder of its test images, and where both lie."""
    root = tmp_path_factory.mktemp("predict")
    write_mvtec(
        root / "datasets" / "mvtec", categories=("bottle",), train=10, good=3, defects=3, size=48
    )
    set_globals(
        dataset_dir=root / "datasets",
        output_dir=root / "outputs",
        cache_dir=root / "cache",
        plugins=("toy_plugin",),
    )
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.2})
    return Path(result["folder"]), root / "datasets" / "mvtec" / "bottle" / "test", root


def read_rows(out):
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_trial_from_paths_arrays_and_tensors(trained):
    folder, images, _ = trained
    predictor = load_predictor(folder, "cpu")
    paths = sorted(images.rglob("*.png"))
    outcomes = list(predictor.predict(paths, batch_size=4))
    stored = sorted(pd.read_parquet(folder / "scores.parquet").query("split == 'test'").pred_score)
    assert sorted(o.pred_score for o in outcomes) == pytest.approx(stored, rel=1e-6)
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    tensors = [torch.from_numpy(array.copy()).movedim(-1, 0) for array in arrays]
    for sources in (arrays, tensors):
        assert [o.pred_score for o in predictor.predict(sources)] == pytest.approx(
            [o.pred_score for o in outcomes]
        )
    assert outcomes[0].anomaly_map.shape == (32, 32)


def test_a_bad_image_is_a_row_with_its_reason_and_the_run_goes_on(trained, tmp_path, capsys):
    folder, images, _ = trained
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))[:3]):
        (mixed / f"{number}.png").write_bytes(path.read_bytes())
    (mixed / "1.png").write_bytes(b"no image")
    assert main([str(folder), str(mixed), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    rows = read_rows(tmp_path / "out")
    assert [bool(row["reason"]) for row in rows] == [False, True, False]
    assert rows[1]["pred_score"] == ""
    assert "1 could not be read" in capsys.readouterr().out
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [tuple(line) for line in lines] == [COLUMNS] * 3
    assert [line["pred_score"] for line in lines][::2] == [
        float(row["pred_score"]) for row in rows[::2]
    ]


def test_verdicts_follow_the_threshold_asked_for(trained, tmp_path):
    folder, images, _ = trained
    predictor = load_predictor(folder, "cpu")
    for wanted in (None, "roc_youden", "0.05"):
        out = tmp_path / str(wanted)
        chosen = [] if wanted is None else ["--threshold", wanted]
        assert main([str(folder), str(images), "--out", str(out), "--maps", "none", *chosen]) == 0
        limit = predictor.threshold(wanted or "promise")
        for row in read_rows(out):
            assert row["verdict"] == (
                "anomalous" if float(row["pred_score"]) >= limit else "normal"
            )
    assert not (tmp_path / "0.05" / "maps").exists()
    with pytest.raises(
        InputError,
        match="threshold 'roc_yuden' is not known for this model; did you mean 'roc_youden'",
    ):
        predictor.threshold("roc_yuden")


def judged(trained, out, *words):
    """The rows of a prediction of all test images, by arguments of the command."""
    folder, images, _ = trained
    arguments = [str(folder), str(images), "--out", str(out), "--maps", "none", "--device", "cpu"]
    assert main([*arguments, *words]) == 0
    return read_rows(out)


def held_out_scores(folder):
    return pd.read_parquet(folder / "scores.parquet").query("split == 'holdout'").pred_score


def test_every_image_carries_its_p_value_among_the_held_out_normals(trained, tmp_path):
    calibration = held_out_scores(trained[0])
    for row in judged(trained, tmp_path):
        at_or_above = int((calibration >= float(row["pred_score"])).sum())
        expected = (1 + at_or_above) / (len(calibration) + 1)
        assert float(row["p_value"]) == pytest.approx(expected)


def test_a_rate_of_false_alarms_judges_by_the_held_out_normals_alone(trained, tmp_path, capsys):
    calibration = sorted(held_out_scores(trained[0]))
    assert len(calibration) == 2
    for rate, rank in ((0.01, 2), (0.7, 1)):
        rows = judged(trained, tmp_path / str(rate), "--false-alarms", str(rate))
        for row in rows:
            above = np.float32(row["pred_score"]) > np.float32(calibration[rank - 1])
            assert row["verdict"] == ("anomalous" if above else "normal")
    printed = capsys.readouterr().out
    assert "at most 33.3 % of new normals" in printed
    assert "1 % needs 99 normals to calibrate, 299 to be sure; there are 2" in printed


def test_the_promise_is_said_in_korean_too(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    judged(trained, tmp_path)
    assert "33.3 %" in capsys.readouterr().out.split("이하입니다")[0]


def test_what_lies_between_two_rates_is_unsure(trained, tmp_path):
    low, high = sorted(held_out_scores(trained[0]))
    rows = judged(trained, tmp_path, "--false-alarms", "0.4", "--unsure", "0.7")
    for row in rows:
        score = np.float32(row["pred_score"])
        expected = "normal"
        if score > np.float32(high):
            expected = "anomalous"
        elif score > np.float32(low):
            expected = "unsure"
        assert row["verdict"] == expected


def test_a_batch_is_judged_at_a_false_discovery_rate_as_by_hand(trained, tmp_path, capsys):
    rows = judged(trained, tmp_path, "--fdr", "0.5")
    p_values = sorted(float(row["p_value"]) for row in rows)
    # Benjamini and Hochberg: the largest i with p_(i) <= i * rate / m.
    passed = [p for i, p in enumerate(p_values, start=1) if p <= i * 0.5 / len(rows)]
    limit = max(passed, default=0.0)
    for row in rows:
        assert row["verdict"] == ("anomalous" if float(row["p_value"]) <= limit else "normal")
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == [row["verdict"] for row in rows]
    assert "at most 50 % of those called anomalous" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--false-alarms", "--fdr", "--unsure"])
@pytest.mark.parametrize("rate", ["0", "1", "nan"])
def test_a_rate_that_is_none_is_refused_by_its_name(option, rate, trained, tmp_path):
    with pytest.raises(InputError, match=f"{option} is {rate}"):
        judged(trained, tmp_path, option, rate)


def test_a_trial_of_before_has_a_promise_by_its_stored_scores(trained, tmp_path):
    folder = trained[0]
    result = json.loads((folder / "result.json").read_text())
    value = result["thresholds"].pop("promise")["value"]
    (folder / "result.json").write_text(json.dumps(result))
    assert load_predictor(folder, "cpu").thresholds["promise"] == value


def test_a_checkpoint_alone_brings_its_calibration(trained, tmp_path):
    folder = trained[0]
    (checkpoint,) = folder.glob("model_*.pth")
    alone = tmp_path / "alone.pth"
    alone.write_bytes(checkpoint.read_bytes())
    predictor = load_predictor(alone, "cpu")
    assert list(predictor.calibration) == sorted(held_out_scores(folder))
    assert predictor.thresholds["promise"] == load_predictor(folder, "cpu").thresholds["promise"]


def test_a_map_is_read_back_from_its_16_bit_png(trained, tmp_path):
    folder, images, _ = trained
    path = sorted(images.rglob("*.png"))[0]
    assert main([str(folder), str(path), "--out", str(tmp_path), "--device", "cpu"]) == 0
    (row,) = read_rows(tmp_path)
    low, high = float(row["map_low"]), float(row["map_high"])
    with Image.open(tmp_path / row["map"]) as picture:
        read = low + np.asarray(picture, dtype=np.float64) / 65535 * (high - low)
    (outcome,) = load_predictor(folder, "cpu").predict([path])
    assert np.abs(read - outcome.anomaly_map).max() <= (high - low) / 65535
    with Image.open(tmp_path / row["map"].replace(".png", "_overlay.png")) as picture:
        assert picture.size == (32, 32)


def test_files_folders_and_patterns_are_expanded_once_each(tmp_path):
    for name in ("a.png", "b.jpg", "sub/c.png", "[d].png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = expand_images(
        [str(tmp_path), f"{tmp_path}/*.png", f"{tmp_path}/[d].png", f"{tmp_path}/gone.png"]
    )
    assert [path.name for path in found] == ["[d].png", "a.png", "b.jpg", "c.png", "gone.png"]
    with pytest.raises(InputError, match="holds no images"):
        list(expand_images([f"{tmp_path}/*.bmp"]))


def test_a_folder_without_checkpoint_and_a_foreign_array_are_named(trained, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_predictor(tmp_path)
    with pytest.raises(
        InputError, match=r"floating-point \(float32\), but the training normals are 8-bit"
    ):
        list(load_predictor(trained[0], "cpu").predict([np.zeros((4, 4), np.float32)]))


def test_a_trial_without_held_out_images_gives_scores_without_verdicts(trained, tmp_path, caplog):
    _, images, root = trained
    set_globals(dataset_dir=root / "datasets", output_dir=tmp_path / "outputs")
    result = train("mvtec", "bottle", "toy-ok", train={"holdout": 0.0})
    assert main([result["folder"], str(images), "--out", str(tmp_path / "out")]) == 0
    assert {row["verdict"] for row in read_rows(tmp_path / "out")} == {""}
    assert "give --threshold" in caplog.text
    with pytest.raises(InputError, match=r"no rate of false alarms can be promised"):
        main([result["folder"], str(images), "--out", str(tmp_path), "--false-alarms", "0.1"])


def test_a_large_image_in_tiles_is_its_tiles_side_by_side(trained, tmp_path):
    folder, images, _ = trained
    predictor = load_predictor(folder, "cpu")
    paths = sorted(images.rglob("*.png"))[:4]
    parts = [np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in paths]
    large = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    alone = list(predictor.predict(parts))
    (whole,) = predictor.predict_tiled([large], 32, overlap=0.0)
    assert whole.pred_score == max(outcome.pred_score for outcome in alone)
    assert whole.anomaly_map.shape == (64, 64)
    for outcome, (y, x) in zip(alone, [(0, 0), (0, 32), (32, 0), (32, 32)], strict=True):
        assert np.allclose(
            whole.anomaly_map[y : y + 32, x : x + 32], outcome.anomaly_map, atol=1e-6
        )
    (overlapping,) = predictor.predict_tiled([torch.from_numpy(large.copy()).movedim(-1, 0)], 32)
    assert overlapping.anomaly_map.shape == (64, 64)


def test_tiles_from_the_command_and_an_image_smaller_than_a_tile(trained, tmp_path):
    folder, images, _ = trained
    large = tmp_path / "large.png"
    Image.effect_noise((100, 70), 60).save(large)
    small = sorted(images.rglob("*.png"))[0]
    out = tmp_path / "out"
    assert (
        main(
            [
                str(folder),
                str(large),
                str(small),
                "--out",
                str(out),
                "--device",
                "cpu",
                "--tile",
                "64",
            ]
        )
        == 1
    )
    rows = read_rows(out)
    assert rows[0]["pred_score"]
    assert "tiles of 64 pixels do not fit into 48" in rows[1]["reason"]
    assert Image.open(out / rows[0]["map"]).size == (100, 70)


@pytest.mark.parametrize(
    "stem", ["x" * 251, "불" * 83, "teil_\udce4"], ids=["ascii", "korean", "bytes"]
)
def test_maps_of_images_with_any_name_are_written(tmp_path, stem):
    pixels = np.zeros((3, 8, 8), np.uint8)
    outcomes = [Outcome(f"/x/{stem}.png", 0.5, np.zeros((8, 8), np.float32), pixels)] * 2
    rows = write_predictions(outcomes, tmp_path, 0.1, "all", None)
    assert all((tmp_path / row["map"]).is_file() for row in rows)
    assert len(list((tmp_path / "maps").iterdir())) == 4
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("anomalous") == 2
    first = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first)["image"] == f"/x/{stem}.png"

"""A deep data set from training to prediction: one rule all the way."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image

from adray.checkpoints import read_checkpoint
from adray.cli.predict import main as predict
from adray.data.preprocessing import describe_preprocessing
from adray.predict import load_predictor
from adray.settings import Settings, get_globals, use_settings
from adray.train import train
from adray.types import BY_TYPE, PixelRule


@pytest.fixture(scope="module")
def deep_trial(tmp_path_factory):
    """A trial on 12-bit images in 16-bit files, one of whose test images is far too bright."""
    home = tmp_path_factory.mktemp("deep")
    write_mvtec(home / "my", categories=("part",), train=8, good=3, defects=3, size=64)
    for path in (home / "my").rglob("*.png"):
        if "ground_truth" not in path.parts:
            pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16
            if path.parts[-3:] == ("test", "good", "000.png"):
                pixels[:8, :8] = 60_000
            path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))

    before = get_globals()
    use_settings(
        Settings(dataset_dir=str(home), output_dir=str(home / "out"), cache_dir=str(home / "cache"))
    )
    try:
        result = train("my", "part", "padim", img_size=64, weights="random", device="cpu")
    finally:
        use_settings(before)
    return result, home


def test_the_checkpoint_reads_new_images_as_the_trial_read_its_own(deep_trial):
    result, _ = deep_trial
    rows = pq.read_table(Path(result["folder"]) / "scores.parquet").to_pylist()
    predictor = load_predictor(result["folder"], "cpu")
    outcomes = list(predictor.predict(row["path"] for row in rows))
    np.testing.assert_allclose(
        [outcome.pred_score for outcome in outcomes], [row["pred_score"] for row in rows], rtol=1e-4
    )

    array = imagecodecs.png_decode(Path(rows[0]["path"]).read_bytes())
    (same,) = predictor.predict([array])
    assert same.pred_score == pytest.approx(outcomes[0].pred_score, rel=1e-5)


def test_the_result_says_how_many_test_images_were_clipped(deep_trial):
    result, home = deep_trial
    rule = load_predictor(result["folder"], "cpu").models[0].pixels
    parts = []
    for path in (home / "my/part/test").rglob("*.png"):
        pixels = imagecodecs.png_decode(path.read_bytes())
        outside = (pixels < rule.low) | (pixels > rule.high)
        parts.append(np.atleast_3d(outside).any(axis=2).mean())

    said = [note for note in result["notes"] if "outside of the range" in note]
    assert len(said) == 1
    assert said[0].startswith(f"{np.count_nonzero(parts)} of {len(parts)} test images")
    assert f"at most {100 * max(parts):.2g} %" in said[0]


def test_predict_gives_a_reason_for_another_depth_and_counts_what_is_clipped(
    deep_trial, tmp_path, capsys
):
    result, home = deep_trial
    Image.new("L", (64, 64), 100).save(tmp_path / "eight.png")
    bright = home / "my/part/test/good/000.png"
    names = [str(bright), str(tmp_path / "eight.png")]
    options = ["--out", str(tmp_path / "out"), "--maps", "none", "--device", "cpu"]
    assert predict([result["folder"], *names, *options]) == 1
    assert "1 images have pixels outside of the range" in capsys.readouterr().out

    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open(encoding="utf-8-sig")))
    assert rows[0]["pred_score"]
    assert "is 8-bit (L), but the training normals are 16-bit" in rows[1]["reason"]


def test_tiles_are_read_by_the_same_rule_as_the_whole(deep_trial):
    result, home = deep_trial
    predictor = load_predictor(result["folder"], "cpu")
    path = home / "my/part/test/good/001.png"
    (whole,) = predictor.predict([path])
    (tiled,) = predictor.predict_tiled([path], 64)
    assert tiled.pred_score == pytest.approx(whole.pred_score, rel=1e-5)


def test_an_export_says_the_rule(deep_trial):
    result, _ = deep_trial
    trainer = load_predictor(result["folder"], "cpu").trainer
    about = describe_preprocessing(trainer.train_config, trainer.pixels)
    assert about["pixels"]["depth"] == "deep"
    assert "become 0 to 255" in about["decode"]


def test_a_checkpoint_from_before_there_were_rules_scales_by_type(deep_trial, tmp_path):
    result, _ = deep_trial
    (checkpoint,) = Path(result["folder"]).glob("model_*.pth")
    assert read_checkpoint(checkpoint).pixels.depth == "deep"
    stored = torch.load(checkpoint, weights_only=True)
    del stored["pixels"]
    torch.save(stored, tmp_path / "old.pth")
    assert read_checkpoint(tmp_path / "old.pth").pixels == BY_TYPE
    assert load_predictor(tmp_path / "old.pth", "cpu").models[0].pixels == BY_TYPE


def test_a_rule_survives_safetensors(deep_trial, tmp_path):
    result, _ = deep_trial
    trainer = load_predictor(result["folder"], "cpu").trainer
    trainer.pixels = replace(trainer.pixels, channels=(2, 1, 0))
    trainer.save_model(tmp_path / "m.safetensors")
    found = read_checkpoint(tmp_path / "m.safetensors").pixels
    assert found == trainer.pixels
    assert isinstance(found, PixelRule)

"""A trial is served with the verdicts, p-values, maps and regions that predict gives."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec
from PIL import Image

from adray.errors import InputError
from adray.predict import load_predictor
from adray.predictor import own_map
from adray.served_trial import ServedTrial, named_trial_model
from adray.settings import set_globals
from adray.thresholds import just_above
from adray.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    write_mvtec(
        root / "datasets" / "mvtec", categories=("bottle",), train=24, good=4, defects=4, size=48
    )
    return root


_made = {}


@pytest.fixture(autouse=True)
def trial(root, own_settings, own_registry, one_thread):
    set_globals(
        dataset_dir=root / "datasets",
        output_dir=root / "outputs",
        cache_dir=root / "cache",
        plugins=("toy_plugin",),
    )
    if not _made:
        _made["trial"] = Path(train("mvtec", "bottle", "toy-ok", train={"holdout": 0.4})["folder"])
    return _made["trial"]


def test_every_test_image_is_judged_as_by_predict(trial):
    predictor = load_predictor(trial, "cpu")
    served = ServedTrial(predictor, 0.2)
    promise = predictor.promise(0.2)
    assert served.threshold == just_above(promise.score)
    assert served.promised == promise.promised
    rows = pd.read_parquet(trial / "scores.parquet").query("split == 'test'")
    seen = set()
    for outcome in predictor.predict(rows.path):
        result = served.predict(Path(outcome.name).read_bytes(), True, True)
        assert result.pred_score == outcome.pred_score
        assert result.p_value == outcome.p_value
        assert np.array_equal(result.anomaly_map, own_map(outcome))
        assert result.verdict == ("anomalous" if outcome.pred_score > promise.score else "normal")
        expected = predictor.regions(outcome, rate=0.2)
        assert [region.area for region in result.regions] == [region.area for region in expected]
        assert [region.x1 for region in result.regions] == [region.right for region in expected]
        seen.add(result.verdict)
    assert seen == {"normal", "anomalous"}


def test_what_cannot_be_judged_has_a_reason_without_a_path_of_this_machine(trial):
    served = ServedTrial(load_predictor(trial, "cpu"))
    large = io.BytesIO()
    Image.new("L", (300, 200)).save(large, format="PNG")
    for data, most, said in (
        (b"no image", 10**6, "the image"),
        (b"", 10**6, "the image"),
        (large.getvalue(), 50_000, "300 x 200 pixels, at most 50000"),
    ):
        result = served.predict(data, True, True, most)
        assert result.verdict == "unreadable"
        assert said in result.reason
        assert "/tmp" not in result.reason
        assert result.pred_score is None


def test_the_name_of_a_served_trial_changes_with_its_threshold(trial):
    predictor = load_predictor(trial, "cpu")
    names = {named_trial_model(trial, ServedTrial(predictor, rate)).sha256 for rate in (0.2, 0.5)}
    assert len(names) == 2
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        ServedTrial(predictor, 1.5)


def test_a_folder_is_watched_with_a_trial_as_predict_judges_its_images(trial, tmp_path, capsys):
    from adray.__main__ import main

    rows = pd.read_parquet(trial / "scores.parquet").query("split == 'test'")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    wanted = {}
    for number, (path, score) in enumerate(zip(rows.path, rows.pred_score, strict=True)):
        shutil.copy(path, inbox / f"{number}.png")
        wanted[f"{number}.png"] = score
    (inbox / "broken.png").write_bytes(b"no image")
    command = ["watch", str(inbox), "--model", str(trial), "--out", str(tmp_path / "out"), "--once"]
    command += ["--plugins", "toy_plugin"]
    assert main([*command, "--false-alarms", "0.2", "--settle", "0", "--patience", "0"]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["image"]: row for row in map(json.loads, lines)}
    broken = found.pop("broken.png")
    assert broken["verdict"] == "unreadable"
    assert str(tmp_path) not in broken["reason"]
    assert {name: row["pred_score"] for name, row in found.items()} == pytest.approx(wanted, 1e-6)
    threshold = ServedTrial(load_predictor(trial, "cpu"), 0.2).threshold
    for row in found.values():
        is_anomalous = row["pred_score"] >= threshold
        assert row["verdict"] == ("anomalous" if is_anomalous else "normal")

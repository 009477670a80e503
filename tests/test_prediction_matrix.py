"""Every configuration says the same of a picture wherever and however it is asked.

`pytest -m slow tests/test_prediction_matrix.py`, before each release; with ADRAY_WRITE_MATRIX=1 it writes
`docs/prediction_matrix.csv`, of which chapter 8 has the table (`python docs/make_tables.py`).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_subject, write_site

from adray.errors import InputError
from adray.export import export_trial
from adray.model_specs import MODEL_SPECS
from adray.predict import DEFAULT_THRESHOLD, load_predictor
from adray.prediction_files import write_predictions
from adray.settings import Settings, use_settings
from adray.train import train

pytestmark = pytest.mark.slow

NAMES = [spec.name for spec in MODEL_SPECS]
TABLE = Path(__file__).parents[1] / "docs" / "prediction_matrix.csv"
WAYS = ("copy", "export", "process", "batch 1", "batch 32", "2 threads")
"""Ways to ask, each compared with the trial in its store, in batches of 7, with one thread."""
TOLERANCE = 1e-5

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(autouse=True)
def settings(site, own_settings, one_thread):
    use_settings(site)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Ten pictures of ten sizes and modes; a model of 8-bit images refuses the one of 16 bits."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)

    def noise(width, height):
        soft = rng.integers(60, 200, (6, 6, 3), np.uint8)
        return Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC)

    deep = (np.asarray(noise(70, 90).convert("L")).astype(np.uint16) + 1) * 250
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(64, 64).save(folder / "0_rgb.png")
    noise(100, 70).save(folder / "1_rgb.jpg", quality=95)
    noise(128, 128).convert("L").save(folder / "2_grey.png")
    noise(80, 60).convert("LA").save(folder / "3_grey_and_opacity.png")
    noise(64, 48).convert("RGBA").save(folder / "4_rgba.png")
    noise(90, 90).convert("P").save(folder / "5_palette.gif")
    noise(72, 40).convert("1").save(folder / "6_black_and_white.png")
    noise(33, 200).convert("CMYK").save(folder / "7_cmyk.jpg", quality=95)
    noise(50, 120).save(folder / "8_turned.jpg", quality=95, exif=exif)
    Image.fromarray(deep).save(folder / "9_deep.png")
    return sorted(folder.iterdir())


class Elsewhere:
    """Another process that predicts."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("predict_elsewhere.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def ask(self, **request: Any) -> Rows:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def elsewhere():
    other = Elsewhere()
    yield other
    other.process.stdin.close()
    other.process.wait(60)


def ask(folder: Path, pictures: Sequence[Path], out: Path, batch_size: int = 7) -> Rows:
    predictor = load_predictor(folder, "cpu")
    outcomes = predictor.predict(pictures, batch_size=batch_size)
    return write_predictions(outcomes, out, predictor.thresholds[DEFAULT_THRESHOLD], "none", None)


def ask_export(
    folder: Path, pictures: Sequence[Path], tmp_path: Path, site: Settings
) -> Rows | str:
    """Predict with an export where no weight file is, or give the sentence why there is none."""
    try:
        export_trial(folder, tmp_path / "export", "safetensors")
    except InputError as error:
        return str(error)
    use_settings(replace(site, backbone_dir=str(tmp_path / "no weights")))
    try:
        return ask(tmp_path / "export", pictures, tmp_path)
    finally:
        use_settings(site)


def distance(wanted: Rows, found: Rows) -> float:
    """Largest difference of a score, as a part of the largest; verdicts and reasons are the same."""
    largest = max(abs(row["pred_score"]) for row in wanted if row["pred_score"] is not None)
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        assert Path(one["image"]).name == Path(other["image"]).name
        assert one["reason"] == other["reason"]
        if one["pred_score"] is None:
            assert other["pred_score"] is None
            continue
        gap = abs(one["pred_score"] - other["pred_score"]) / largest
        worst = max(worst, gap)
        is_tie = abs(one["pred_score"] - one["threshold"]) <= TOLERANCE * largest
        assert is_tie or one["verdict"] == other["verdict"]
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_the_same_scores_and_verdicts_in_every_way(name, site, pictures, elsewhere, tmp_path):
    tiny = tiny_subject(name)
    sizes = {"batch_size": 4, **tiny.train, "holdout": 0.2}
    result = train(tiny.dataset, tiny.category, name, train=sizes, model=tiny.model)
    folder = Path(result["folder"])
    wanted = ask(folder, pictures, tmp_path)
    assert [bool(row["reason"]) for row in wanted] == [False] * 9 + [True]
    assert {row["verdict"] for row in wanted[:9]} <= {"normal", "anomalous"}

    found: dict[str, Rows | str] = {}
    copy = shutil.copytree(folder, tmp_path / "another place" / "trial")
    found["copy"] = ask(copy, pictures, tmp_path)
    found["export"] = ask_export(folder, pictures, tmp_path, site)
    places = {"folder": str(folder), "backbone_dir": site.backbone_dir, "out": str(tmp_path)}
    found["process"] = elsewhere.ask(**places, pictures=list(map(str, pictures)))
    for size in (1, 32):
        found[f"batch {size}"] = ask(folder, pictures, tmp_path, size)
    torch.set_num_threads(2)
    found["2 threads"] = ask(folder, pictures, tmp_path)

    distances = {
        way: rows if isinstance(rows, str) else distance(wanted, rows)
        for way, rows in found.items()
    }
    if os.environ.get("ADRAY_WRITE_MATRIX"):
        write_row(name, distances)
    for way, far in distances.items():
        assert isinstance(far, str) or far <= TOLERANCE, way


def write_row(name: str, distances: Mapping[str, float | str]) -> None:
    """Write the row of a configuration into the table, in the order of the registry."""
    rows = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            rows = {row["configuration"]: row for row in csv.DictReader(file)}
    cells = {way: far if isinstance(far, str) else f"{far:.1e}" for way, far in distances.items()}
    rows[name] = {"configuration": name, **cells}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["configuration", *WAYS])
        writer.writeheader()
        writer.writerows(rows[known] for known in NAMES if known in rows)

"""A bundle judges as its trial does, under onnxruntime alone, and is refused where it would not."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec
from PIL import Image

from adray.__main__ import main
from adray.bundle import write_bundle
from adray.bundle_check import Cut, JudgedImage, Wanted, choose_cut, compare, refuse_other
from adray.errors import InputError
from adray.predict import load_predictor
from adray.predictor import map_of_image
from adray.runtime import load
from adray.runtime.doctor import check_machine
from adray.settings import set_globals
from adray.thresholds import make_promise, p_values, percent
from adray.train import train
from adray.types import PixelRule

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures that are not square, so that they are resized."""
    root = tmp_path_factory.mktemp("bundle")
    write_mvtec(
        root / "datasets" / "mvtec", categories=("bottle",), train=24, good=4, defects=4, size=48
    )
    for path in root.rglob("*.png"):
        Image.open(path).resize((60, 91), Image.Resampling.NEAREST).save(path)
    return root


_made = {}


@pytest.fixture(autouse=True)
def made(root, own_settings, own_registry, one_thread):
    """A trial and its bundle, made once."""
    set_globals(
        dataset_dir=root / "datasets",
        output_dir=root / "outputs",
        cache_dir=root / "cache",
        plugins=("toy_plugin",),
    )
    if not _made:
        trial = Path(train("mvtec", "bottle", "toy-ok", train={"holdout": 0.4})["folder"])
        about = write_bundle(trial, root / "part_a.adray", Wanted(false_alarms=0.2))
        _made.update(trial=trial, about=about, path=root / "part_a.adray")
    return _made["trial"], _made["path"], _made["about"]


def scores_of(trial, split):
    return pd.read_parquet(trial / "scores.parquet").query(f"split == '{split}'")


def rewritten(path, out, change):
    """The bundle with another manifest."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "manifest.json":
                manifest = json.loads(data)
                change(manifest)
                data = json.dumps(manifest)
            new.writestr(name, data)
    return out


def test_every_image_gets_the_score_p_value_and_map_of_the_trial(made):
    trial, path, about = made
    bundle = load(path, threads=1)
    predictor = load_predictor(trial, "cpu")
    normals = np.array(about["calibration"]["scores"])
    assert len(normals) == len(scores_of(trial, "holdout"))
    for outcome in predictor.predict(scores_of(trial, "test").path):
        result = bundle.predict(outcome.name)
        assert result.pred_score == pytest.approx(outcome.pred_score, rel=1e-5)
        assert result.p_value == p_values(np.array([result.pred_score]), normals)[0]
        height, width = outcome.size
        whole = map_of_image(outcome.anomaly_map, None, width, height)
        assert np.allclose(result.anomaly_map, whole, atol=1e-4 * whole.max())


def test_the_calibration_normals_ring_as_often_as_the_promise_of_their_scores_says(made):
    trial, path, about = made
    bundle = load(path, threads=1)
    paths = scores_of(trial, "holdout").path
    results = [bundle.predict(path, with_map=False) for path in paths]
    promise = make_promise(np.array([result.pred_score for result in results]), 0.2)
    rung = [result for result in results if result.verdict == "anomalous"]
    assert len(rung) == promise.normals - promise.rank
    assert about["threshold"]["promise"]["rank"] == promise.rank
    assert all(result.anomaly_map is None for result in results)


def test_arrays_and_files_get_the_same_verdict_and_what_is_no_image_has_a_reason(made, tmp_path):
    trial, path, _ = made
    bundle = load(path)
    name = scores_of(trial, "test").path.iloc[0]
    pixels = np.asarray(Image.open(name).convert("RGB"))
    assert bundle.predict(pixels).pred_score == bundle.predict(name).pred_score
    (tmp_path / "no.png").write_bytes(b"no image")
    for source in (tmp_path / "no.png", tmp_path / "none.png", pixels / 255, pixels[..., :2]):
        result = bundle.predict(source)
        assert result.verdict == "unreadable"
        assert result.pred_score is None
        assert result.reason


def test_the_manifest_says_what_the_file_is_and_has_the_promise_in_both_languages(made):
    trial, path, about = made
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
        assert json.loads(file.read("manifest.json")) == about
    assert names == {"manifest.json", *about["files"]}
    assert {"model.onnx", "run_onnx.py", "golden/0.png"} <= names
    assert about["source"]["trial"] == json.loads((trial / "trial.json").read_text())["id"]
    assert about["class_names"] == ["normal", "anomalous"]
    assert about["check"]["images"] == len(scores_of(trial, "test")) + len(
        scores_of(trial, "holdout")
    )
    assert about["versions"]["onnxruntime"] == onnxruntime.__version__
    assert platform.node() not in json.dumps(about["versions"])
    promised = percent(about["threshold"]["promise"]["promised"])
    for language, word in (("en", "normal"), ("ko", "정상")):
        assert promised in load(path).sentence(language)
        assert word in load(path).sentence(language)


def test_predict_judges_a_bundle_as_the_verdicts_of_its_figures(made, tmp_path, capsys):
    trial, path, _ = made
    images = tmp_path / "images"
    shutil.copytree(Path(scores_of(trial, "test").path.iloc[0]).parents[1], images)
    (images / "broken.png").write_bytes(b"no image")
    command = ["predict", str(path), str(images), "--out", str(tmp_path / "found")]
    assert main(command) == 1
    assert "1 unreadable" in capsys.readouterr().out
    with (tmp_path / "found" / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / "found" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(lines) == len(scores_of(trial, "test")) + 1
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        assert list(row) == list(line)
        if row["verdict"] == "unreadable":
            assert row["reason"]
            continue
        is_anomalous = float(row["pred_score"]) >= float(row["threshold"])
        assert row["verdict"] == ("anomalous" if is_anomalous else "normal")
        low, high = float(row["map_low"]), float(row["map_high"])
        levels = np.asarray(Image.open(tmp_path / "found" / row["map"]))
        whole = load(path).predict(row["image"]).anomaly_map
        assert levels.dtype == np.uint16
        assert np.allclose(low + levels / 65535 * (high - low), whole, atol=(high - low) / 65535)

    assert main(command) == 2
    assert "holds predictions; name another folder" in capsys.readouterr().err


def test_doctor_finds_nothing_here_and_a_score_that_was_other_elsewhere(made, tmp_path, capsys):
    _, path, _ = made
    assert main(["doctor", str(path)]) == 0
    assert "this machine judges as the one that made the bundle" in capsys.readouterr().out
    assert check_machine(path).largest_error == 0.0

    def other_score(manifest):
        manifest["golden"][0]["pred_score"] *= 1.01
        manifest["golden"][1]["pixels_sha256"] = "0" * 64
        manifest["golden"][2]["verdict"] = "unreadable"

    other = rewritten(path, tmp_path / "other.adray", other_score)
    assert main(["doctor", str(other)]) == 1
    printed = capsys.readouterr().out
    assert "golden/0.png has the score" in printed
    assert "golden/1.png is decoded to other pixels" in printed
    assert "golden/2.png is " in printed
    for golden in (
        None,
        [1],
        [{"file": "golden/0.png"}],
        [{**made[2]["golden"][0], "pred_score": "x"}],
    ):
        rewritten(path, other, lambda manifest: manifest.update(golden=golden))  # noqa: B023
        assert main(["doctor", str(other)]) == 2
        assert "no proper list of golden images" in capsys.readouterr().err


def test_a_bundle_that_is_none_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "a.adray"
    path.write_bytes(b"PK")
    for command in ("doctor", "predict"):
        more = [str(tmp_path), "--out", str(tmp_path / "out")] if command == "predict" else []
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        assert main([command, str(path), *more]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_manifest_without_threshold_or_input_is_refused(made, tmp_path):
    _, path, _ = made
    for section, value in (("threshold", {}), ("threshold", {"value": True}), ("input", None)):
        other = rewritten(path, tmp_path / "other.adray", lambda m: m.update({section: value}))  # noqa: B023
        with pytest.raises(ValueError, match=f"{section}[.]"):
            load(other)


# What is refused when a bundle is made


def test_a_name_that_is_taken_or_no_bundles_is_refused_before_anything_is_loaded(made, tmp_path):
    _, path, _ = made
    before = path.read_bytes()
    for out, said in (
        (path, "exists; name a new file"),
        (tmp_path / "a.zip", "must end in .adray"),
        (tmp_path / "no" / "a.adray", "does not exist; make it first"),
    ):
        with pytest.raises(InputError, match=said):
            write_bundle("no such trial", out, Wanted())
    assert path.read_bytes() == before


def test_a_trial_whose_images_are_out_of_reach_is_refused(made, tmp_path):
    trial, _, _ = made
    copy = shutil.copytree(trial, tmp_path / "copy")
    table = pd.read_parquet(copy / "scores.parquet")
    table.loc[table.index[0], "path"] = str(tmp_path / "gone.png")
    table.to_parquet(copy / "scores.parquet")
    with pytest.raises(InputError, match=r"1 of \d+ images .* such as .*gone.png"):
        write_bundle(copy, tmp_path / "a.adray", Wanted(), accept_other_weights=True)
    (copy / "scores.parquet").unlink()
    with pytest.raises(InputError, match=r"no scores\.parquet|no scores of held-out normals"):
        write_bundle(copy, tmp_path / "a.adray", Wanted(), accept_other_weights=True)
    assert not list(tmp_path.glob("*.adray"))


def judged(by_trial, by_graph):
    return [
        JudgedImage(Path(f"{i}.png"), "test", a, b)
        for i, (a, b) in enumerate(zip(by_trial, by_graph, strict=True))
    ]


CUT = Cut("promise", 5.0, 5.0, None, ())


def test_one_other_verdict_refuses_a_bundle_and_names_the_image():
    images = judged([1.0, 4.99999, 9.0], [1.0, 5.00001, 9.0])
    with pytest.raises(InputError, match=r"the verdict is another than the trial's on 1: 1\.png"):
        refuse_other(compare(images, CUT))
    assert compare(images, CUT).reason.startswith("1 of 3 images get another verdict")
    refuse_other(compare(images, replace(CUT, of_trial=5.5, of_graph=5.5)))


@pytest.mark.parametrize("wrong", [1.002, np.nan, np.inf])
def test_a_score_that_is_further_off_than_the_tolerance_refuses_a_bundle(wrong):
    cut = replace(CUT, of_trial=100.0, of_graph=1e9)
    with pytest.raises(InputError, match=r"0\.png"):
        refuse_other(compare(judged([1.0, 9.0], [wrong, 9.0]), cut))
    assert compare(judged([1.0, 9.0], [wrong, 9.0]), cut).reason
    found = compare(judged([1.0, 9.0], [1.0005, 9.0]), cut)
    refuse_other(found)
    assert not found.reason
    assert found.facts["largest_error"] == pytest.approx(0.0005 / 9)


def test_the_promise_is_made_of_the_graphs_own_scores(made):
    """Its threshold is a calibration normal's score, which would ring by a last digit otherwise."""
    trial, _, _ = made
    predictor = load_predictor(trial, "cpu")
    rows = scores_of(trial, "holdout")
    images = [
        JudgedImage(Path(path), "holdout", score, score * (1 + 5e-5))
        for path, score in zip(rows.path, rows.pred_score, strict=True)
    ]
    cut = choose_cut(predictor, images, Wanted(false_alarms=0.3), True)
    refuse_other(compare(images, cut))
    other_batch = [replace(image, by_trial=image.by_trial * (1 + 1e-6)) for image in images]
    other_cut = choose_cut(predictor, other_batch, Wanted(false_alarms=0.3), True)
    refuse_other(compare(other_batch, other_cut))
    stored = choose_cut(predictor, images, Wanted(false_alarms=0.3), False)
    with pytest.raises(InputError, match="the verdict is another"):
        refuse_other(compare(images, stored))
    number = choose_cut(predictor, images, Wanted(threshold="1.5"), True)
    assert (number.of_trial, number.of_graph, number.promise) == (1.5, 1.5, None)
    between = choose_cut(predictor, images, Wanted(threshold="0.1"), True)
    assert (
        np.float32(between.of_graph) == between.of_graph >= 0.1 > np.nextafter(np.float32(0.1), -1)
    )
    with pytest.raises(InputError, match="--false-alarms is 2"):
        choose_cut(predictor, images, Wanted(false_alarms=2.0), True)


def test_no_last_digit_of_another_machine_or_backend_makes_a_calibration_normal_ring(made):
    """The threshold lies clear of the normal that it goes by, and of the next score."""
    trial, _, _ = made
    predictor = load_predictor(trial, "cpu")
    scores = scores_of(trial, "holdout").pred_score
    images = [JudgedImage(Path("a"), "holdout", score, score) for score in scores]
    cut = choose_cut(predictor, images, Wanted(false_alarms=0.3), True)
    for digits in (1 - 3e-6, 1 + 3e-6):
        elsewhere = [replace(image, by_graph=image.by_graph * digits) for image in images]
        refuse_other(compare(elsewhere, cut))
    assert cut.of_graph - cut.of_trial <= 1e-5 * scores.max() * 1.01

    # One more image, right above the threshold of the trial, stays anomalous.
    near = JudgedImage(Path("b"), "test", cut.of_trial, cut.of_trial)
    with_near = choose_cut(predictor, [*images, near], Wanted(false_alarms=0.3), True)
    refuse_other(compare([*images, near], with_near))


def test_float_pixels_and_chosen_channels_have_no_graph(made, tmp_path, monkeypatch):
    trial, _, _ = made
    for rule in (PixelRule("float", 0.0, 1.0), PixelRule("eight", channels=(2, 1, 0))):
        predictor = load_predictor(trial, "cpu")
        predictor.trainer.pixels = rule
        monkeypatch.setattr("adray.bundle.load_predictor", lambda *_, **__: predictor)  # noqa: B023
        with pytest.raises(InputError, match="a bundle takes 8-bit pixels"):
            write_bundle(trial, tmp_path / "a.adray", Wanted())


# The machine on the line


def linked_site(folder, names):
    """A folder of modules that has only these distributions of this environment."""
    folder.mkdir()
    for name in names:
        for file in metadata.files(name):
            top = Path(file.parts[0])
            if top.parts[0] not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(metadata.distribution(name).locate_file(top))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_machine_with_numpy_pillow_and_onnxruntime_alone_judges_as_the_trial(made, tmp_path):
    trial, path, _ = made
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = linked_site(tmp_path / "site", ("numpy", "pillow", "onnxruntime"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("adray-*.whl")
    into = ["--no-deps", "--no-index", "--target", tmp_path / "package"]
    subprocess.run([*pip, "install", *into, wheel], check=True, capture_output=True)

    def run(*command):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        environment["PYTHONPATH"] = f"{tmp_path / 'package'}{os.pathsep}{site}"
        return subprocess.run(
            [python, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    for absent in ("torch", "ray", "yaml", "scipy", "pandas"):
        assert "ModuleNotFoundError" in run("-c", f"import {absent}").stderr
    shutil.copy(path, tmp_path / "part_a.adray")
    rows = scores_of(trial, "test")
    done = run("-m", "adray", "predict", "part_a.adray", *rows.path, "--out", "found")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "found" / "predictions.jsonl").read_text().splitlines()
    found = {line["image"]: line["pred_score"] for line in map(json.loads, lines)}
    assert found == pytest.approx(dict(zip(rows.path, rows.pred_score, strict=True)), rel=1e-5)
    done = run("-m", "adray", "doctor", "part_a.adray")
    assert done.returncode == 0, done.stdout + done.stderr

    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "part_a")
    done = run("-I", "-c", "import adray")
    assert done.returncode == 1
    done = run("part_a/run_onnx.py", rows.path.iloc[0])
    assert done.returncode == 0, done.stderr
    score = float(done.stdout.splitlines()[-1].split()[-2])
    assert score == pytest.approx(rows.pred_score.iloc[0], rel=1e-5)

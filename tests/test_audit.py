"""`adray audit`: fresh normals against a promise, and a new threshold of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec
from scipy import stats

from adray.__main__ import main as adray
from adray.audit import FreshScores, audit
from adray.errors import InputError
from adray.files import read_json, write_json
from adray.predict import load_predictor
from adray.settings import set_globals
from adray.thresholds import make_promise
from adray.train import train


def with_alarms(alarms, images, promise):
    """Scores of fresh normals, so many of them above the threshold."""
    scores = np.full(images, promise.score)
    scores[:alarms] += 1
    return scores


CALIBRATION = np.random.default_rng(0).normal(size=99)
PROMISE = make_promise(CALIBRATION, 0.01)


@pytest.mark.parametrize("alarms", [0, 1, 3, 14, 240])
def test_the_ends_are_those_of_clopper_and_pearson_by_the_beta_distribution(alarms):
    found = audit(with_alarms(alarms, 240, PROMISE), CALIBRATION, PROMISE)
    assert found.alarms == alarms
    low = stats.beta.ppf(0.05, alarms, 241 - alarms) if alarms else 0.0
    high = stats.beta.ppf(0.95, alarms + 1, 240 - alarms) if alarms < 240 else 1.0
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_three_of_240_hold_one_per_cent_and_fourteen_break_it():
    assert not audit(with_alarms(3, 240, PROMISE), CALIBRATION, PROMISE).is_broken
    assert audit(with_alarms(14, 240, PROMISE), CALIBRATION, PROMISE).is_broken


def test_more_than_promised_by_a_calibration_set_that_is_small_is_not_broken():
    few = make_promise(CALIBRATION[:24], 0.05)
    found = audit(with_alarms(20, 240, few), CALIBRATION[:24], few)
    assert found.is_above
    assert not found.is_broken


def test_a_promise_that_holds_is_called_broken_one_time_in_twenty_at_most():
    """Calibration and fresh normals of one law, drawn anew each time."""
    rng = np.random.default_rng(1)
    broken = 0
    drifted = 0
    for _ in range(1000):
        calibration = rng.standard_t(2, size=59)
        found = audit(rng.standard_t(2, size=100), calibration, make_promise(calibration, 0.05))
        broken += found.is_broken
        drifted += found.has_drifted
    assert broken <= 50 + 3 * np.sqrt(1000 * 0.05 * 0.95)
    assert drifted <= 20 + 3 * np.sqrt(1000 * 0.02 * 0.98)


def test_a_shift_and_a_trend_are_drift():
    rng = np.random.default_rng(2)
    for fresh in (rng.normal(size=200) - 1, np.sort(rng.normal(size=200))):
        assert audit(fresh, CALIBRATION, PROMISE).has_drifted


def test_scores_lower_than_those_of_calibration_normals_that_trained_are_no_drift():
    rng = np.random.default_rng(2)
    for shift, drifts in ((-2.0, (True, False)), (0.0, (False, False)), (2.0, (True, True))):
        fresh = rng.normal(shift, size=100)
        for is_crossed, drifted in zip((False, True), drifts, strict=True):
            assert audit(fresh, CALIBRATION, PROMISE, is_crossed).has_drifted == drifted


def test_too_few_images_are_refused_with_their_number():
    with pytest.raises(InputError, match="2 fresh normals"):
        audit(np.zeros(2), CALIBRATION, PROMISE)


@pytest.fixture
def trial(tmp_path):
    """A trial, and a folder of twenty fresh normals."""
    root = write_mvtec(
        tmp_path / "datasets" / "mvtec", ("bottle",), train=20, good=20, defects=3, size=48
    )
    set_globals(plugins=("toy_plugin",))
    folder = Path(train("mvtec", "bottle", "toy-ok", train={"holdout": 0.5})["folder"])
    return folder, root / "bottle" / "test" / "good", root / "bottle" / "train" / "good"


def run(folder, *words):
    return adray(
        ["audit", str(folder), *map(str, words), "--device", "cpu", "--plugins", "toy_plugin"]
    )


def test_fresh_normals_are_counted_and_the_exit_code_says_what_came_of_it(trial, capsys):
    folder, fresh, _ = trial
    code = run(folder, fresh)
    printed = capsys.readouterr().out
    assert "of 20 rang" in printed
    assert code == int("broken" in printed or "drifted" in printed)


@pytest.mark.parametrize(
    ("alarms", "code", "words"),
    [(10, 0, "holds"), (40, 0, "more than the 9.09 % promised on average"), (120, 1, "broken")],
)
def test_more_alarms_than_promised_end_with_1_only_where_chance_does_not_explain_them(
    trial, capsys, monkeypatch, alarms, code, words
):
    folder, fresh, _ = trial
    calibration = np.array(load_predictor(folder, "cpu").calibration)
    scores = np.random.default_rng(0).permutation(
        np.append(np.resize(calibration, 240 - alarms), np.full(alarms, calibration.max() + 1))
    )
    given = FreshScores(tuple(scores), (), ())
    monkeypatch.setattr("adray.cli.audit.scores_of", lambda predictor, paths: given)
    monkeypatch.setattr("adray.audit.DRIFT", 0.0)
    assert run(folder, fresh) == code
    assert words in capsys.readouterr().out
    chance = stats.betabinom(240, 1, 10).sf(alarms - 1)
    assert (chance < 0.05) == bool(code)


def test_images_that_the_trial_learnt_from_are_left_out_under_any_name(trial, tmp_path, capsys):
    folder, fresh, known = trial
    mixed = tmp_path / "mixed"
    shutil.copytree(fresh, mixed)
    for number, path in enumerate(sorted(known.iterdir())[:5]):
        shutil.copy(path, mixed / f"renamed_{number}.png")
    run(folder, mixed)
    printed = capsys.readouterr().out
    assert "5 images are left out" in printed
    assert "of 20 rang" in printed


def test_images_that_calibrate_a_trial_are_no_fresh_ones_but_may_calibrate_it_again(trial, capsys):
    folder, fresh, _ = trial
    run(folder, fresh, "--recalibrate", "--false-alarms", "0.1")
    capsys.readouterr()
    assert run(folder, fresh) == 2
    said = capsys.readouterr()
    assert "20 images are left out" in said.out
    assert "0 fresh normals" in said.err

    run(folder, fresh, "--recalibrate", "--false-alarms", "0.2")
    assert "20 of these images calibrated the trial before" in capsys.readouterr().out
    predictor = load_predictor(folder, "cpu")
    assert (predictor.rate, len(predictor.calibration)) == (0.2, 20)


def test_where_nobody_knows_the_training_images_the_audit_says_so(trial, capsys):
    folder, fresh, _ = trial
    about = read_json(folder / "trial.json")
    write_json(folder / "trial.json", about | {"assignment": {}})
    run(folder, fresh)
    assert "the training images are out of reach" in capsys.readouterr().out


def test_a_model_without_calibration_normals_is_calibrated_by_fresh_ones(tmp_path, capsys):
    root = write_mvtec(tmp_path / "datasets" / "mvtec", ("bottle",), train=6, good=20, size=48)
    set_globals(plugins=("toy_plugin",))
    folder = Path(train("mvtec", "bottle", "toy-ok", train={"holdout": 0})["folder"])
    fresh = root / "bottle" / "test" / "good"
    assert run(folder, fresh) == 2
    assert "--recalibrate makes these images its calibration" in capsys.readouterr().err

    few = sorted(fresh.iterdir())[:2]
    assert run(folder, *few, "--recalibrate") == 2
    assert not list(folder.glob("recalibration_*"))
    assert run(folder, fresh, "--recalibrate", "--false-alarms", "0.1") == 0
    predictor = load_predictor(folder, "cpu")
    assert len(predictor.calibration) == len(predictor.calibration_peaks) == 20
    assert predictor.promise(predictor.rate).is_kept


@pytest.mark.parametrize("command", ["export", "bundle"])
def test_a_bundle_is_refused_by_its_kind_where_a_trial_is_wanted(command, tmp_path, capsys):
    bundle = tmp_path / "line.adray"
    bundle.write_bytes(b"PK")
    assert adray([command, str(bundle), "--out", str(tmp_path / "out.adray")]) == 2
    assert (
        "is a bundle, which predict, serve, watch, audit and doctor take" in capsys.readouterr().err
    )


def test_recalibrating_makes_a_threshold_of_the_fresh_images_and_keeps_the_old_record(
    trial, capsys
):
    folder, fresh, _ = trial
    before = (folder / "result.json").read_bytes()
    run(folder, fresh, "--recalibrate", "--false-alarms", "0.1")
    assert (folder / "result.json").read_bytes() == before
    predictor = load_predictor(folder, "cpu")
    scores = sorted(outcome.pred_score for outcome in predictor.predict(sorted(fresh.iterdir())))
    assert list(predictor.calibration) == scores
    assert predictor.promise(0.1).score == scores[18]  # of 20 the 19th: ceil(21 * 0.9)
    assert predictor.thresholds["promise"] > scores[18]
    assert predictor.rate == 0.1
    peaks = sorted(float(o.anomaly_map.max()) for o in predictor.predict(sorted(fresh.iterdir())))
    assert list(predictor.calibration_peaks) == peaks
    assert predictor.pixel_promise().promise.score == peaks[18]
    assert pd.read_parquet(folder / "scores.parquet").query("split == 'holdout'").shape[0] == 10


def test_the_promise_goes_into_an_export(trial, tmp_path):
    from adray.export import export_trial

    folder = trial[0]
    about = export_trial(folder, tmp_path / "out", "safetensors")
    exported = load_predictor(tmp_path / "out", "cpu")
    ours = load_predictor(folder, "cpu")
    assert exported.calibration == ours.calibration
    assert exported.thresholds["promise"] == ours.thresholds["promise"]
    assert about["promise"]["promises"][0]["normals"] == 10


def test_the_calibration_of_an_audit_goes_into_an_export(trial, tmp_path):
    from adray.export import export_trial

    folder, fresh, _ = trial
    run(folder, fresh, "--recalibrate", "--false-alarms", "0.1")
    about = export_trial(folder, tmp_path / "out", "safetensors")
    exported = load_predictor(tmp_path / "out", "cpu")
    ours = load_predictor(folder, "cpu")
    assert len(exported.calibration) == 20
    assert exported.calibration == ours.calibration
    assert exported.thresholds == ours.thresholds
    assert exported.rate == ours.rate == 0.1
    assert exported.calibration_peaks == ours.calibration_peaks
    assert about["pixel_promise"]["value"] == ours.pixel_promise().value
    assert about["calibration"]["kind"] == "fresh normals"
    assert about["promise"]["promises"][0]["normals"] == 20


def test_a_damaged_record_of_an_audit_is_refused_by_its_name(trial):
    folder, fresh, _ = trial
    run(folder, fresh, "--recalibrate")
    (record,) = folder.glob("recalibration_*.json")
    record.write_text(record.read_text()[:50])
    with pytest.raises(InputError, match=record.name):
        load_predictor(folder, "cpu")


# Regions


@pytest.mark.parametrize(
    ("reached", "code", "words"),
    [(10, 0, "regions: 10 of 240 have one; up to 9.09 %"), (120, 1, "regions: broken: 120 of 240")],
)
def test_the_maps_of_fresh_normals_are_held_against_the_promise_of_regions(
    trial, capsys, monkeypatch, reached, code, words
):
    """Their scores are those of the calibration normals, so that only regions can break."""
    folder, fresh, _ = trial
    predictor = load_predictor(folder, "cpu")
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.resize(predictor.calibration, 240))
    highest = predictor.peaks.max()
    peaks = np.append(np.full(reached, highest + 1), np.full(240 - reached, highest))
    given = FreshScores(tuple(scores), (), (), tuple(peaks))
    monkeypatch.setattr("adray.cli.audit.scores_of", lambda predictor, paths: given)
    assert run(folder, fresh) == code
    printed = capsys.readouterr().out
    assert words in printed
    assert "10 of 240 rang" not in printed
    assert (stats.betabinom(240, 1, 10).sf(reached - 1) < 0.05) == bool(code)


def test_as_many_images_have_a_region_in_an_audit_as_in_the_table_of_predict(
    trial, tmp_path, capsys
):
    folder, fresh, _ = trial
    images = sorted(fresh.parent.iterdir())  # good ones and defects
    out = tmp_path / "found"
    words = ["predict", folder, *images, "--out", out, "--maps", "none", "--false-alarms", "0.3"]
    adray([*map(str, words), "--device", "cpu", "--plugins", "toy_plugin"])
    with_region = pd.read_csv(out / "regions.csv")["image"].nunique()
    capsys.readouterr()
    run(folder, *images, "--false-alarms", "0.3")
    printed = capsys.readouterr().out
    number = int(printed.partition("regions: ")[2].removeprefix("broken: ").split(" of ")[0])
    assert number == with_region > 0


# The log of predict


@pytest.fixture
def log(trial, tmp_path, capsys):
    """A trial, the folder of fresh normals, and what predict wrote of these."""
    folder, fresh, _ = trial
    out = tmp_path / "found"
    words = ["predict", folder, fresh, "--out", out, "--device", "cpu", "--plugins", "toy_plugin"]
    adray(list(map(str, words)))
    capsys.readouterr()
    return folder, fresh, out


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.jsonl"])
def test_an_audit_of_a_log_says_what_one_of_its_images_says(log, name, capsys):
    folder, fresh, out = log
    code = run(folder, fresh)
    of_images = capsys.readouterr().out.splitlines()
    assert run(folder, out / name) == code
    of_log = capsys.readouterr().out.splitlines()
    assert of_log[0].endswith(": 20")
    assert of_log[-len(of_images) :] == of_images


def test_alarms_of_a_log_are_its_rows_that_are_anomalous_whatever_the_rounding(
    log, tmp_path, capsys
):
    """Every image comes with the score of a calibration normal, as a table rounds it."""
    folder, _, out = log
    predictor = load_predictor(folder, "cpu")
    rows = pd.read_csv(out / "predictions.csv")
    scores = np.resize(predictor.calibration, len(rows))
    rows["pred_score"] = [float(f"{score:.7g}") for score in scores]
    rows["p_value"] = [(1 + sum(c >= s for c in predictor.calibration)) / 11 for s in scores]
    rows.to_csv(tmp_path / "log.csv", index=False)
    run(folder, tmp_path / "log.csv")
    assert "0 of 20 rang" in capsys.readouterr().out


def test_pictures_of_a_log_that_the_trial_learnt_from_are_left_out(trial, tmp_path, capsys):
    folder, fresh, known = trial
    out = tmp_path / "found"
    words = ["predict", folder, fresh, known, "--out", out, "--maps", "none"]
    adray([*map(str, words), "--device", "cpu", "--plugins", "toy_plugin"])
    capsys.readouterr()
    run(folder, out / "predictions.csv")
    printed = capsys.readouterr().out
    assert "20 images are left out" in printed
    assert "of 20 rang" in printed


def test_a_log_whose_last_line_is_torn_is_read_up_to_there(log, capsys):
    folder, _, out = log
    lines = out / "predictions.jsonl"
    lines.write_text(lines.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    run(folder, lines)
    assert "of 19 rang" in capsys.readouterr().out


def _other_model(rows):
    rows["p_value"] = rows["p_value"].clip(upper=0.5) / 2


def _in_tiles(rows):
    rows["p_value"] = None


def _no_number(rows):
    rows["pred_score"] = "high"


def _other_table(rows):
    del rows["p_value"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_other_model, "the log is of another model"),
        (_in_tiles, "has no p-value in the log"),
        (_no_number, "row 2: pred_score is 'high'"),
        (_other_table, "column 'p_value' is missing"),
    ],
)
def test_a_table_that_is_no_log_of_this_model_is_refused(log, spoil, words, tmp_path, capsys):
    folder, _, out = log
    rows = pd.read_csv(out / "predictions.csv")
    spoil(rows)
    rows.to_csv(tmp_path / "log.csv", index=False)
    assert run(folder, tmp_path / "log.csv") == 2
    assert words in capsys.readouterr().err


def test_logs_beside_images_and_a_new_calibration_of_a_log_are_refused(log, capsys):
    folder, fresh, out = log
    assert run(folder, out / "predictions.csv", fresh) == 2
    assert "the others are images" in capsys.readouterr().err
    assert run(folder, out / "predictions.csv", "--recalibrate") == 2
    assert "--recalibrate needs the images" in capsys.readouterr().err

"""`python -m adray ensemble` on a store of real small trials, and `predict` on what it writes."""

from __future__ import annotations

import csv
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec

from adray.__main__ import main as adray
from adray.audit import known_images
from adray.bundle import write_bundle
from adray.bundle_check import Wanted as BundleWanted
from adray.cli.ensemble import main, parse_size
from adray.config import SweepConfig, build
from adray.ensembles.calibration import calibrate
from adray.ensembles.team import Member, combine_scores, read_ensemble
from adray.errors import InputError
from adray.files import read_json, write_json
from adray.predict import load_predictor
from adray.predictor import own_map
from adray.registry import ModelRegistry
from adray.results.measurements import add_measurement
from adray.results.store import all_trials
from adray.runtime import load
from adray.runtime.doctor import check_machine
from adray.settings import Settings, absolute_settings, set_globals, use_settings
from adray.sweep.assignment import assign
from adray.sweep.plan import make_plan
from adray.sweep.worker import run_assignment
from adray.thresholds import make_promise, p_values

MODELS = ("toy-ok", "toy-positional", "padim", "dfm-resnet18")
OVERRIDES = {
    "toy-ok": {"train": {"holdout": 0.2}},
    "toy-positional": {"train": {"img_size": 48, "crop_size": 40, "holdout": 0.2}},
    "padim": {
        "train": {"img_size": 64, "holdout": 0.2},
        "model": {"num_features": 20, "weights": "random"},
    },
    "dfm-resnet18": {"train": {"img_size": 64, "holdout": 0.2}, "model": {"weights": "random"}},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store with four models on two categories, of four sizes of images and with seven held-out normals each."""
    root = tmp_path_factory.mktemp("ensemble")
    write_mvtec(root / "dataset" / "mvtec", train=35, good=6, defects=8, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRegistry, "_specs", dict(ModelRegistry._specs))
        patch.setattr(ModelRegistry, "_plugins", set())
        sweep(root)
        sys.modules.pop("toy_plugin", None)
    use_settings(Settings())
    return root


def sweep(root):
    settings = {f"{name}_dir": str(root / name) for name in ("dataset", "output", "cache")}
    config = build(
        SweepConfig,
        {
            "name": "s",
            "settings": {**settings, "plugins": ["toy_plugin"]},
            "grid": {"models": list(MODELS), "datasets": {"mvtec": "each"}},
            "overrides": OVERRIDES,
        },
        "",
    )
    absolute = absolute_settings(config.settings)
    for trial in make_plan(config, absolute).trials:
        outcome = run_assignment(assign(trial, absolute, limit_seconds=3600.0, save_maps=0), "cpu")
        assert outcome.status == "done", outcome


@pytest.fixture
def store(built, tmp_path):
    """A copy of the store that a test may change."""
    set_globals(plugins=("toy_plugin",))
    return shutil.copytree(built / "output", tmp_path / "outputs")


@pytest.fixture
def images(built):
    """The test images of the first category, in the order of their names."""
    return sorted((built / "dataset" / "mvtec" / "bottle" / "test").rglob("*.png"))


def trial(store, configuration, category="bottle"):
    """The folder of the only trial of a configuration."""
    (record,) = [r for r in all_trials(store) if r.folder.parts[-3:-1] == (category, configuration)]
    return record.folder


def rewrite(folder, change):
    """Change what a trial has scored."""
    frame = pd.read_parquet(folder / "scores.parquet")
    change(frame).to_parquet(folder / "scores.parquet", index=False)


def make_noise(store, category="bottle", signal=1.0):
    """Scores with errors of their own in place of the real ones, in the same order of paths for all."""
    for number, name in enumerate(MODELS):
        rng = np.random.default_rng(number)
        rewrite(
            trial(store, name, category),
            lambda f, rng=rng: f.assign(
                pred_score=rng.standard_normal(len(f)) + signal * f["label"]
            ),
        )


def test_scores_are_the_mean_of_the_calibrated_scores_of_the_sweep(store, images):
    assert main([str(store), "--size", "4"]) == 0
    file = store / "ensembles" / "mvtec_bottle.json"
    team = read_ensemble(file)
    assert sorted(member.configuration for member in team.members) == sorted(MODELS)
    by_path = [
        pd.read_parquet(trial(store, member.configuration) / "scores.parquet").set_index("path")
        for member in team.members
    ]
    wanted = [
        combine_scores([frame.pred_score[str(path)] for frame in by_path], team.members)
        for path in images
    ]
    outcomes = list(load_predictor(file, "cpu").predict(images, batch_size=4))
    assert [outcome.pred_score for outcome in outcomes] == pytest.approx(wanted, rel=1e-5)
    # Each held-out normal as a new image is: by a scale that does not know it.
    held_out = by_path[0].index[by_path[0].split == "holdout"]
    reached = []
    for path in held_out:
        combined = 0.0
        for member, frame in zip(team.members, by_path, strict=True):
            others = frame.pred_score[held_out.drop(path)].to_numpy()
            combined += member.weight * float(calibrate(others)(frame.pred_score[path]))
        reached.append(combined)
    assert list(team.calibration) == pytest.approx(sorted(reached))
    assert team.thresholds["promise"] == pytest.approx(max(reached))
    assert team.thresholds["percentile_95"] == pytest.approx(np.percentile(reached, 95))


def test_maps_are_the_mean_of_the_members_over_their_own_ranges(store, images):
    main([str(store), "--size", "4", "--categories", "bottle"])
    predictor = load_predictor(store / "ensembles" / "mvtec_bottle.json", "cpu")
    (outcome,) = predictor.predict(images[:1])
    assert outcome.anomaly_map.shape == (64, 64)
    assert outcome.image.shape == (3, 64, 64)  # of those who see the whole image, the largest
    assert predictor.map_range == (0, 1)
    total, seen = np.zeros((64, 64)), np.zeros((64, 64))
    for member, model in zip(predictor.team, predictor.models, strict=True):
        (alone,) = load_predictor(trial(store, member.configuration), "cpu").predict(images[:1])
        assert alone.image.shape[1:] == (model.geometry.side,) * 2
        if len(alone.anomaly_map) == 64:
            low, high = member.map_range
            total += (alone.anomaly_map - low) / (high - low)
            seen += 1
    assert seen[0, 0] == 2
    # The corner is seen by the two of this size and a smaller one; its part is what is left.
    rest = 3 * outcome.anomaly_map[:2, :2] - total[:2, :2]
    assert np.abs(rest).max() < 2
    assert np.corrcoef(outcome.anomaly_map.ravel(), (total / seen).ravel())[0, 1] > 0.5


def test_a_team_finds_regions_by_what_its_maps_reach_on_its_held_out_normals(store, images):
    main([str(store), "--size", "4", "--categories", "bottle"])
    predictor = load_predictor(store / "ensembles" / "mvtec_bottle.json", "cpu")
    frame = pd.read_parquet(trial(store, "padim") / "scores.parquet")
    normals = frame[frame.split == "holdout"].path
    reached = sorted(float(one.anomaly_map.max()) for one in predictor.predict(normals))
    assert len(predictor.calibration_peaks) == len(normals) == 7
    assert all(np.array(reached) <= np.array(predictor.calibration_peaks) * (1 + 1e-5))
    threshold = predictor.pixel_promise().value
    assert threshold > predictor.calibration_peaks[-1]
    for outcome in predictor.predict(images):
        assert bool(predictor.regions(outcome)) == bool(outcome.anomaly_map.max() >= threshold)


def test_a_team_with_a_member_of_before_has_no_threshold_of_maps(store):
    rewrite(trial(store, "padim"), lambda frame: frame.drop(columns="peak"))
    main([str(store), "--size", "4", "--categories", "bottle"])
    team = read_ensemble(store / "ensembles" / "mvtec_bottle.json")
    assert len(team.calibration) == 7
    assert team.calibration_peaks == ()


def test_the_command_predicts_with_verdicts_maps_and_reasons_like_a_trial(
    store, images, tmp_path, capsys
):
    main(
        [
            str(store),
            "--size",
            "3..4",
            "--out",
            str(tmp_path / "team.json"),
            "--categories",
            "mvtec/bottle",
        ]
    )
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = [
        str(tmp_path / "team.json"),
        *map(str, images[-3:]),
        str(tmp_path / "bad.png"),
        "--out",
        str(out),
    ]
    assert adray(["predict", *arguments, "--plugins", "toy_plugin", "--device", "cpu"]) == 1
    with (out / "predictions.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    threshold = read_ensemble(tmp_path / "team.json").thresholds["promise"]
    for row in rows[:3]:
        assert row["verdict"] == (
            "anomalous" if float(row["pred_score"]) >= threshold else "normal"
        )
        assert (out / row["map"]).is_file()
    assert "cannot be decoded" in rows[3]["reason"]
    assert "3 anomalous at" in capsys.readouterr().out


def test_arrays_and_members_without_maps_give_scores(store, images):
    from PIL import Image

    main([str(store), "--size", "2", "--categories", "bottle"])
    predictor = load_predictor(store / "ensembles" / "mvtec_bottle.json", "cpu")
    paths = [outcome.pred_score for outcome in predictor.predict(images[:3])]
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in images[:3]]
    mapless = replace(
        predictor, team=tuple(replace(member, map_range=None) for member in predictor.team)
    )
    outcomes = list(mapless.predict(arrays))
    assert [outcome.pred_score for outcome in outcomes] == pytest.approx(paths, rel=1e-6)
    assert {outcome.anomaly_map for outcome in outcomes} == {None}
    with pytest.raises(InputError, match="an ensemble of 2 models is no single trial"):
        _ = predictor.trainer


def test_a_store_moves_as_a_whole_and_what_is_missing_is_one_sentence(
    store, images, tmp_path, capsys
):
    main([str(store), "--size", "4"])
    moved = store.rename(tmp_path / "elsewhere")
    file = moved / "ensembles" / "mvtec_bottle.json"
    assert len(list(load_predictor(file, "cpu").predict(images[:1]))) == 1

    def refusal(path):
        arguments = [
            str(path),
            str(images[0]),
            "--out",
            str(tmp_path / "out"),
            "--plugins",
            "toy_plugin",
        ]
        capsys.readouterr()
        assert adray(["predict", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1
        return printed.err

    alone = shutil.copy(file, tmp_path / "alone.json")
    assert "move the file together with its store" in refusal(alone)
    next(trial(moved, "toy-ok").glob("model_*")).unlink()
    assert "toy-ok" in (words := refusal(file))
    assert "kept no checkpoint" in words
    file.write_text(file.read_text()[:200])
    assert "is damaged" in refusal(file)
    assert "does not exist" in refusal(moved / "gone.json")
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_the_report_says_what_chose_and_shows_the_honest_gain_beside_the_optimistic_one(
    store, capsys
):
    make_noise(store)
    assert main([str(store), "--size", "2..3", "--categories", "bottle"]) == 0
    printed = capsys.readouterr().out
    figures = read_ensemble(store / "ensembles" / "mvtec_bottle.json").figures
    assert (
        "selected with the test labels: 6 normal and 8 anomalous images, 4 candidates, calibrated on 7"
        in printed
    )
    honest, optimistic = figures["cross_validated"], figures["in_sample_optimistic"]
    assert (
        f"cross-validated gain {honest['gain']:+.4f} (standard error {honest['gain_standard_error']:.4f})"
        in printed
    )
    assert f"optimistic, on the images that chose: {optimistic['gain']:+.4f}" in printed
    assert honest["team"] < optimistic["team"]
    assert honest["best_single"] < optimistic["best_single"]
    assert honest["gain"] == pytest.approx(honest["team"] - honest["best_single"])
    assert "labels of the test images" in figures["chosen_by"]
    assert "(UNTRAINED)" in printed
    assert "not beyond its error" in printed


def test_a_team_promises_what_its_members_were_asked_for_and_counts_who_chose_them(store, images):
    """Two of the members were chosen by the calibration normals before, of three and of five settings."""
    asked = {"toy-ok": (0.25, 3), "padim": (0.3, 5), "dfm-resnet18": (0.3, 1)}
    for name, (rate, tried) in asked.items():
        about = read_json(trial(store, name) / "result.json")
        about["thresholds"]["promise"] |= {"rate": rate, "tried": tried}
        write_json(trial(store, name) / "result.json", about)
    file = store / "team.json"
    main(
        [
            str(store),
            "--size",
            "3",
            "--categories",
            "bottle",
            "--models",
            *asked,
            "--out",
            str(file),
        ]
    )

    team = read_ensemble(file)
    assert (team.rate, team.tried) == (0.25, 15)
    promise = make_promise(np.array(team.calibration), 0.25, 15)
    assert team.figures["promise"]["promise"] == asdict(promise)
    assert team.figures["promise"]["whichever_chosen"]["tried"] == 15 * (3 + 2 + 1)
    # The promises of the members were written anew above, which is noticed.
    predictor = load_predictor(file, "cpu", accept_other_weights=True)
    assert predictor.promise(predictor.rate) == promise
    (outcome,) = predictor.predict(images[:1])
    calibration = np.array(team.calibration)
    assert outcome.p_value == p_values(np.array([outcome.pred_score]), calibration, 15)[0]


def test_a_team_of_the_usual_trials_is_asked_for_the_usual_rate(store):
    main([str(store), "--size", "2", "--categories", "bottle"])
    team = read_ensemble(store / "ensembles" / "mvtec_bottle.json")
    assert (team.rate, team.tried) == (0.05, 1)


def test_what_is_said_of_a_team_is_in_korean_too(store, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    main([str(store), "--size", "2", "--categories", "bottle"])
    printed = capsys.readouterr().out
    assert "새 정상 이미지 가운데 불량으로 판정되는 비율은 12.5 % 이하" in printed
    assert "anomalous" not in printed


def test_an_audit_knows_what_the_members_of_a_team_learnt_from(store, built):
    main([str(store), "--size", "2", "--categories", "bottle"])
    known = known_images(store / "ensembles" / "mvtec_bottle.json")
    bottle = built / "dataset" / "mvtec" / "bottle"
    assert all(map(known.has_learnt, (bottle / "train" / "good").iterdir()))
    assert not any(map(known.has_learnt, (bottle / "test" / "good").iterdir()))


def test_limits_are_kept_by_what_was_measured_alone(store, capsys):
    for number, name in enumerate(MODELS):
        measured = {"kind": "cpu", "device": "a CPU", "threads": 1, "host_base_mb": 200.0}
        add_measurement(
            trial(store, name),
            {**measured, "latency_ms": 10.0 + number, "host_peak_mb": 250.0 + 100 * number},
        )
    assert (
        main(
            [
                str(store),
                "--size",
                "2..4",
                "--categories",
                "bottle",
                "--max-ms",
                "34",
                "--max-mb",
                "250",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    cost = read_ensemble(store / "ensembles" / "mvtec_bottle.json").figures["cost"]
    assert sum(row["ms_per_image"] for row in cost) <= 34
    assert sum(row["mb"] for row in cost) <= 250  # that is 50 and 150 MB
    assert len(cost) == 2
    assert "members together 21.0 ms per image, 200.0 MB: measured on a CPU" in printed
    assert "dfm-resnet18" in printed
    assert "it alone takes more than 250 MB" in printed
    assert main([str(store), "--size", "2", "--categories", "wood"]) == 0
    assert (
        "what the members cost is not known; `python -m adray measure`" in capsys.readouterr().out
    )


def test_trials_that_cannot_be_compared_are_left_out_with_their_reason(store, capsys):
    rewrite(trial(store, "padim"), lambda f: f[f["split"] == "test"])
    rewrite(trial(store, "dfm-resnet18"), lambda f: f[f["path"] != f["path"].iloc[0]])
    assert main([str(store), "--size", "2..3"]) == 0
    printed = capsys.readouterr().out
    assert "mvtec/bottle: toy-" in printed
    assert "left out: mvtec/bottle/padim" in printed
    assert "it held no normal images out (holdout: 0)" in printed
    assert "its test images or held-out normals are not those of the others" in printed
    (trial(store, "padim", "wood") / "scores.parquet").write_bytes(b"PAR1")
    assert main([str(store), "--size", "2..3"]) == 0
    assert "its scores.parquet cannot be read" in capsys.readouterr().out


def test_without_held_out_normals_nothing_is_chosen_and_the_remedy_is_said(store, capsys):
    for record in all_trials(store):
        rewrite(record.folder, lambda f: f[f["split"] == "test"])
    assert adray(["ensemble", str(store)]) == 2
    assert "run it with train: {holdout: 0.1, calibration: holdout}" in capsys.readouterr().err
    assert not (store / "ensembles").exists()


def test_trials_of_data_in_another_place_still_count_as_the_same_images(store):
    rewrite(
        trial(store, "padim"),
        lambda f: f.assign(path=f["path"].str.replace("/dataset/", "/mnt/other/")),
    )
    assert main([str(store), "--size", "4", "--categories", "bottle"]) == 0


def test_several_seeds_are_never_in_one_team(store, capsys):
    for name in MODELS:  # the same trials again as of another seed, which holds other images out
        for category in ("bottle", "wood"):
            folder = trial(store, name, category)
            again = shutil.copytree(folder, folder.with_name(folder.name[::-1]))
            record = read_json(again / "trial.json")
            record["identity"]["seed"], record["id"] = 43, record["id"][:8][::-1] + record["id"][8:]
            write_json(again / "trial.json", record)
            rewrite(
                again,
                lambda f: f.assign(path=f["path"].where(f["split"] == "test", f["path"] + "x")),
            )
    for seed, chosen in ((42, []), (43, ["--seed", "43"])):
        assert main([str(store), "--size", "3", *chosen]) == 0
        team = read_ensemble(store / "ensembles" / "mvtec_bottle.json").members
        assert len({member.configuration for member in team}) == 3
        folders = [store / "ensembles" / member.folder for member in team]
        assert {read_json(folder / "trial.json")["identity"]["seed"] for folder in folders} == {
            seed
        }
    assert adray(["ensemble", str(store), "--seed", "7"]) == 2
    assert "--seed 7 has no finished trial; allowed: 42, 43" in capsys.readouterr().err


def test_together_the_categories_get_the_same_configurations(store, capsys):
    make_noise(store)
    make_noise(store, "wood", signal=0.5)
    assert main([str(store), "--size", "2..3", "--together"]) == 0
    printed = capsys.readouterr().out
    teams = [
        read_ensemble(store / "ensembles" / f"mvtec_{category}.json")
        for category in ("bottle", "wood")
    ]
    assert [m.configuration for m in teams[0].members] == [
        m.configuration for m in teams[1].members
    ]
    assert all(
        member.folder.split("/")[2] == team.category for team in teams for member in team.members
    )
    assert "mvtec/bottle, mvtec/wood: " in printed
    assert "12 normal and 16 anomalous images, 4 candidates" in printed
    shutil.rmtree(trial(store, "padim", "wood").parent)
    assert main([str(store), "--size", "2..3", "--together"]) == 0
    assert "3 candidates" in capsys.readouterr().out


def test_a_team_that_cannot_run_is_said_and_can_be_avoided(store, capsys):
    make_noise(store, signal=0.0)
    for name in ("toy-ok", "padim"):
        next(trial(store, name).glob("model_*")).unlink()
    assert main([str(store), "--size", "4", "--categories", "bottle"]) == 0
    assert "predict cannot run it, since " in capsys.readouterr().out
    assert main([str(store), "--size", "2..4", "--categories", "bottle", "--with-checkpoint"]) == 0
    team = read_ensemble(store / "ensembles" / "mvtec_bottle.json").members
    assert {member.configuration for member in team} == {"toy-positional", "dfm-resnet18"}
    assert "it kept no checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--size", "5..3"],
            "--size '5..3' is no number of members; give one from 2 to 20, or 3..5",
        ),
        (
            ["--models", "padimm"],
            "--models 'padimm' matches no finished trial; did you mean 'padim'?",
        ),
        (["--categories", "mvtec/screw"], "--categories mvtec/screw matches nothing"),
        (["--max-ms", "nan"], "--max-ms is nan, but must be above 0"),
        (
            ["--out", "team.json", "--size", "2"],
            "--out team.json is one file, but 2 categories get one each",
        ),
        (["--size", "9"], "it has 4 usable candidates, but a team needs 9; ask for fewer members"),
    ],
)
def test_bad_options_get_one_sentence(arguments, words, store, capsys):
    assert adray(["ensemble", str(store), *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_an_empty_or_missing_store_is_named(tmp_path, capsys):
    assert adray(["ensemble", str(tmp_path)]) == 2
    assert "holds no finished trial; run a sweep first" in capsys.readouterr().err
    assert adray(["ensemble", str(tmp_path / "gone")]) == 2
    assert "does not exist; name the output_dir of a sweep" in capsys.readouterr().err


def test_sizes_are_one_number_or_a_range():
    assert (parse_size("4"), parse_size("3..5")) == ((4, 4), (3, 5))
    for text in ("", "1", "3-5", "3..", "2..99", "²"):
        with pytest.raises(InputError, match="is no number of members"):
            parse_size(text)


# As one file for the line


def test_a_bundle_of_a_team_judges_as_the_team(store, images, tmp_path):
    pytest.importorskip("onnxscript")
    main([str(store), "--size", "4", "--categories", "bottle"])
    file = store / "ensembles" / "mvtec_bottle.json"
    predictor = load_predictor(file, "cpu")
    about = write_bundle(file, tmp_path / "team.adray", BundleWanted(false_alarms=0.2))
    bundle = load(tmp_path / "team.adray", threads=1)
    normals = np.array(predictor.calibration)
    verdicts = set()
    for outcome in predictor.predict(images):
        result = bundle.predict(outcome.name, with_regions=True)
        assert result.pred_score == pytest.approx(outcome.pred_score, rel=1e-5)
        assert result.p_value == p_values(np.array([outcome.pred_score]), normals)[0]
        assert result.verdict == (
            "anomalous" if outcome.pred_score > predictor.promise(0.2).score else "normal"
        )
        whole = own_map(outcome)
        assert np.allclose(result.anomaly_map, whole, atol=1e-4 * whole.max())
        verdicts.add(result.verdict)
    assert len(verdicts) == 2
    assert len(about["preprocessing"]) == 4
    assert {one["configuration"] for one in about["source"]["members"]} == set(MODELS)
    assert about["threshold"]["promise"]["normals"] == len(normals) == 7
    assert not check_machine(tmp_path / "team.adray").problems


@pytest.mark.parametrize("freedom", [4, 6, 99, 1000])
def test_the_table_of_a_calibration_is_straight_to_a_millionth(freedom):
    pytest.importorskip("onnxscript")
    from adray.bundle_team_graph import _FURTHEST, _KNOTS, calibration_table

    member = Member("a", "b", "c", 1.0, center=3.0, scale=0.5, freedom=freedom)
    deviation = np.concatenate([np.linspace(-8, 40, 4001), [1e3, 1e5, 3e7]])
    far = np.sign(deviation) * np.log1p(np.abs(deviation))
    place = (far + _FURTHEST) * (_KNOTS - 1) / (2 * _FURTHEST)
    knot = np.clip(np.floor(place).astype(int), 0, _KNOTS - 2)
    table = calibration_table(member)
    found = table[knot] + (place - knot) * (table[knot + 1] - table[knot])
    exact = member.calibration(3.0 + 0.5 * deviation)
    inside = deviation < 1e6
    assert np.abs(found - exact)[inside] == pytest.approx(0, abs=1e-6 * max(1, exact[inside].max()))
    assert np.all(np.diff(found) > 0)

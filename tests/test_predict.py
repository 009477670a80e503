from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import write_mvtec
from matplotlib import colormaps
from PIL import Image

from adray.cli.predict import main
from adray.data.geometry import Geometry
from adray.errors import InputError
from adray.export import export_trial
from adray.files import read_json, readable_name, write_json
from adray.found_images import find_images
from adray.model_specs import CORE_VERSION
from adray.predict import Outcome, load_predictor
from adray.prediction_files import figure_above, open_folder, write_predictions
from adray.prediction_log import read_logs
from adray.prediction_table import COLUMNS
from adray.registry import ModelRegistry
from adray.settings import set_globals
from adray.thresholds import make_promise, p_values
from adray.train import train
from adray.types import EIGHT_BITS, Prediction


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
    with (out / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
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
    assert rows[1]["verdict"] == "unreadable"
    assert "1 unreadable" in capsys.readouterr().out
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
            assert float(row["threshold"]) == pytest.approx(limit, rel=1e-6)
            is_anomalous = float(row["pred_score"]) >= float(row["threshold"])
            assert row["verdict"] == ("anomalous" if is_anomalous else "normal")
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


def test_one_of_several_trials_is_judged_so_that_the_promise_holds_whichever_was_chosen(
    trained, tmp_path, capsys
):
    rows = judged(trained, tmp_path, "--false-alarms", "0.7", "--tried", "3")
    assert "it was chosen among 3 settings by these calibration normals" in capsys.readouterr().out
    calibration = np.array(load_predictor(trained[0], "cpu").calibration)
    promise = make_promise(calibration, 0.7, 3)
    assert promise.score > make_promise(calibration, 0.7).score
    assert {float(row["threshold"]) for row in rows} == {figure_above(promise.score)}
    scores = np.array([float(row["pred_score"]) for row in rows])
    found = [float(row["p_value"]) for row in rows]
    assert found == pytest.approx(p_values(scores, calibration, 3))


def test_a_predictor_counts_the_larger_number_of_trials(trained):
    predictor = load_predictor(trained[0], "cpu")
    assert predictor.chosen_among(None) is predictor
    three = predictor.chosen_among(3)
    assert three.chosen_among(2) is three
    assert three.thresholds["promise"] > three.promise(three.rate).score


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


@pytest.mark.parametrize("rates", [("0.7", "0.4"), ("0.7", "0.7"), ("0.01", "0.3")])
def test_a_rate_at_which_nothing_could_be_unsure_is_refused(trained, tmp_path, rates):
    """Two calibration normals give 1 % and 30 % the same threshold, their larger score."""
    certain, unsure = rates
    with pytest.raises(InputError, match=f"--unsure {unsure} begins at"):
        judged(trained, tmp_path, "--false-alarms", certain, "--unsure", unsure)


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


def test_unreadable_images_stay_so_in_a_batch_that_is_judged_together(trained, tmp_path):
    folder, images, _ = trained
    (tmp_path / "broken.png").write_bytes(b"no image")
    command = [str(folder), str(images), f"{tmp_path}/broken.png", "--out", str(tmp_path / "out")]
    assert main([*command, "--fdr", "0.5", "--maps", "none"]) == 1
    rows = read_rows(tmp_path / "out")
    assert [row["verdict"] for row in rows if row["reason"]] == ["unreadable"]
    assert {row["verdict"] for row in rows if not row["reason"]} <= {"normal", "anomalous"}


@pytest.mark.parametrize("more", [["--tile", "20"], ["--unsure", "0.2"]])
def test_what_says_nothing_beside_a_false_discovery_rate_is_refused(trained, tmp_path, more):
    with pytest.raises(InputError, match="--fdr"):
        judged(trained, tmp_path, "--fdr", "0.5", *more)


def test_no_calibration_normal_of_the_rank_rings_where_scores_are_rounded(trained, tmp_path):
    folder = trained[0]
    scores = pd.read_parquet(folder / "scores.parquet").query("split == 'holdout'")
    paths = list(map(str, scores.path))
    command = [str(folder), *paths, "--out", str(tmp_path), "--maps", "none"]
    assert main(command) == 0
    assert {row["verdict"] for row in read_rows(tmp_path)} == {"normal"}


def test_a_figure_above_is_the_first_that_the_table_writes_higher():
    rng = np.random.default_rng(0)
    scores = [*rng.lognormal(0, 20, 200).astype(np.float32), 0.0, 1.0, 3.0, 9.9999995, 0.5]
    for score in [*scores, *np.negative(scores)]:
        limit = figure_above(float(score))
        written = float(f"{score:.7g}")
        assert limit > max(written, score)
        assert float(f"{limit:.7g}") == limit
        if written:
            middle = (written + limit) / 2
            assert float(f"{middle:.7g}") in (written, limit)


def test_a_trial_of_before_has_a_promise_by_its_stored_scores(trained, tmp_path):
    folder = trained[0]
    result = json.loads((folder / "result.json").read_text())
    value = result["thresholds"].pop("promise")["value"]
    del result["needs"]
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


@pytest.mark.parametrize("wanted", ["nan", "inf", "-inf", "NaN"])
def test_a_threshold_that_is_no_number_is_refused_before_anything_is_written(
    trained, tmp_path, wanted
):
    folder, images, _ = trained
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"threshold {wanted.lower()} is no finite number"):
        main([str(folder), str(images), "--out", str(out), f"--threshold={wanted}"])
    assert not out.exists()
    with pytest.raises(InputError, match="no finite number"):
        write_predictions([], tmp_path, float(wanted), "none", None)


def test_a_map_of_the_images_own_size_is_read_back_from_its_16_bit_png(trained, tmp_path):
    folder, images, _ = trained
    path = tmp_path / "wide.png"
    Image.open(sorted(images.rglob("*.png"))[0]).resize((150, 70)).save(path)
    assert main([str(folder), str(path), "--out", str(tmp_path), "--device", "cpu"]) == 0
    (row,) = read_rows(tmp_path)
    low, high = float(row["map_low"]), float(row["map_high"])
    with Image.open(tmp_path / row["map"]) as picture:
        read = low + np.asarray(picture, dtype=np.float64) / 65535 * (high - low)
    (outcome,) = load_predictor(folder, "cpu").predict([path])
    assert outcome.size == (70, 150)
    small = torch.from_numpy(outcome.anomaly_map)[None, None]
    enlarged = torch.nn.functional.interpolate(small, (70, 150), mode="bilinear")[0, 0].numpy()
    assert np.abs(read - enlarged).max() <= 1.1 * (high - low) / 65535
    with Image.open(tmp_path / row["map"].replace(".png", "_overlay.png")) as picture:
        assert picture.size == (150, 70)


def test_an_overlay_is_the_mean_of_the_picture_itself_and_its_colours(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    flat = np.zeros((8, 8), np.float32)
    outcome = Outcome(
        str(path), 0.5, flat, np.zeros((3, 8, 8), np.uint8), size=(30, 50), pixels=EIGHT_BITS
    )
    (row,) = write_predictions([outcome], tmp_path, None, "all", (0.0, 1.0))
    drawn = np.asarray(Image.open(tmp_path / row["map"].replace(".png", "_overlay.png")))
    coldest = (np.array(colormaps["inferno"](0.0)[:3]) * 255).astype(np.uint8)
    assert np.abs(drawn.astype(float) - (pixels / 2 + coldest / 2)).max() <= 1


def test_what_a_crop_does_not_see_is_the_lowest_value_of_the_map(tmp_path):
    inner = np.full((8, 8), 0.5, np.float32)
    inner[0, 0] = 0.25
    placement = Geometry(16, 8).place(32, 48)
    image = np.ones((3, 8, 8), np.uint8)
    outcome = Outcome("image 0", 1.0, inner, image, size=(32, 48), placement=placement)
    (row,) = write_predictions([outcome], tmp_path, None, "all", None)
    read = np.asarray(Image.open(tmp_path / row["map"]))
    assert read.shape == (32, 48)
    assert not read[:8].any()
    assert not read[:, :12].any()
    assert (read[12:20, 20:30] == 65535).all()


def test_files_folders_and_patterns_are_found_once_each(tmp_path):
    for name in ("a.png", "b.jpg", "sub/c.png", "[d].png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    found = find_images(
        [
            *(str(tmp_path), f"{tmp_path}/*.png", f"{tmp_path}/[d].png", f"{tmp_path}/gone.png"),
            *(f"{tmp_path}/./a.png", f"{tmp_path}/sub/../b.jpg"),
        ]
    )
    names = [path.name for path in found.paths]
    assert names == ["[d].png", "a.png", "b.jpg", "c.png", "gone.png"]
    assert found.repeated == 7
    with pytest.raises(InputError, match="holds no images"):
        find_images([f"{tmp_path}/*.bmp"])


def test_outputs_never_become_inputs_and_a_second_run_replaces_the_first(trained, tmp_path, capsys):
    folder, images, _ = trained
    place = tmp_path / "images"
    (place / "maps").mkdir(parents=True)
    for number, path in enumerate(sorted(images.rglob("*.png"))[:3]):
        (place / f"{number}.png").write_bytes(path.read_bytes())
    (place / "maps" / "mine.png").write_bytes(path.read_bytes())

    # Among the pictures, below them, and by a pattern that finds all.
    for out in (place, place / "found", place / "found"):
        for given in (str(place), f"{place}/**/*.png"):
            assert main([str(folder), given, "--out", str(out), "--device", "cpu"]) == 0
            names = sorted(Path(row["image"]).name for row in read_rows(out))
            assert names == ["0.png", "1.png", "2.png", "mine.png"]
    said = capsys.readouterr().out
    assert "held predictions of 4 images, which these replace" in said
    assert "left out: 16 maps and overlays of earlier predictions" in said
    with pytest.raises(InputError, match="only maps of earlier predictions"):
        main([str(folder), str(place / "found" / "maps"), "--out", str(tmp_path / "other")])


def test_maps_of_a_watched_folder_are_no_images_either(tmp_path):
    part = tmp_path / "part.png"
    part.write_bytes(b"x")
    (tmp_path / "results" / "maps").mkdir(parents=True)
    (tmp_path / "results" / "maps" / "000001_part.png").write_bytes(b"x")
    (tmp_path / "results" / "results.jsonl").write_text("")
    found = find_images([str(tmp_path)])
    assert (found.paths, found.outputs, found.ignored) == ((part,), 1, ())


def test_a_run_on_fewer_images_leaves_no_map_of_the_one_before(trained, tmp_path):
    folder, images, _ = trained
    out = tmp_path / "out"
    main([str(folder), str(images), "--out", str(out)])
    (out / "maps" / "own.png").write_bytes(b"x")
    main([str(folder), str(sorted(images.rglob("*.png"))[0]), "--out", str(out), "--maps", "none"])
    assert [path.name for path in (out / "maps").iterdir()] == ["own.png"]
    assert len(read_rows(out)) == 1


def test_a_folder_that_cannot_be_made_gets_a_sentence(trained, tmp_path):
    folder, images, _ = trained
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written as a folder"):
        main([str(folder), str(images), "--out", str(tmp_path / "file")])


def test_a_folder_without_checkpoint_and_a_foreign_array_are_named(trained, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_predictor(tmp_path)
    (outcome,) = load_predictor(trained[0], "cpu").predict([np.zeros((4, 4), np.float32)])
    assert "floating-point (float32), but the training normals are 8-bit" in outcome.reason


STRANGE = {
    "missing": "/gone.png",
    "a null in its name": "a\0b.png",
    "no image": None,
    "channels first": np.zeros((3, 40, 50), np.uint8),
    "four channels": np.zeros((40, 50, 4), np.uint8),
    "floats": np.zeros((40, 50, 3)),
    "yes and no": np.zeros((40, 50), bool),
    "empty": np.zeros((0, 50, 3), np.uint8),
    "a tensor with channels last": torch.zeros(40, 50, 3, dtype=torch.uint8),
    "a tensor of floats": torch.zeros(3, 40, 50),
    "a tensor of half floats": torch.zeros(3, 40, 50, dtype=torch.bfloat16),
}


def test_whatever_is_wrong_with_an_image_it_costs_its_own_outcome_only(trained):
    folder, images, _ = trained
    good = sorted(images.rglob("*.png"))[0]
    predictor = load_predictor(folder, "cpu")
    (alone,) = predictor.predict([good])
    sources = []
    for source in STRANGE.values():
        sources += [source, good]
    outcomes = list(predictor.predict(iter(sources), batch_size=5))
    assert len(outcomes) == len(sources)
    for name, outcome in zip(STRANGE, outcomes[::2], strict=True):
        assert outcome.pred_score is None, name
        assert outcome.reason, name
    assert [outcome.pred_score for outcome in outcomes[1::2]] == [
        pytest.approx(alone.pred_score)
    ] * len(STRANGE)
    assert "red first" in outcomes[2 * list(STRANGE).index("channels first")].reason


def test_grey_images_in_memory_are_taken_with_and_without_their_one_channel(trained):
    predictor = load_predictor(trained[0], "cpu")
    grey = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    same = [grey, grey[..., None], np.repeat(grey[..., None], 3, 2), torch.from_numpy(grey)[None]]
    scores = [outcome.pred_score for outcome in predictor.predict([*same, torch.from_numpy(grey)])]
    assert scores == [scores[0]] * 5
    assert scores[0] is not None


@pytest.mark.parametrize(
    "images",
    ["a.png", Path("a.png"), np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8)],
    ids=repr,
)
def test_one_image_in_place_of_several_is_refused_instead_of_taken_apart(trained, images):
    with pytest.raises(InputError, match="give a list of"):
        load_predictor(trained[0], "cpu").predict(images)


def test_a_stream_that_breaks_off_has_the_outcomes_before_it(trained):
    folder, images, _ = trained

    def stream():
        yield from sorted(images.rglob("*.png"))[:3]
        raise ConnectionError("the camera is away")

    outcomes = []
    found = load_predictor(folder, "cpu").predict(stream(), batch_size=2)
    with pytest.raises(ConnectionError):
        outcomes.extend(found)
    assert len(outcomes) == 3


class Moody(torch.nn.Module):
    """Fails on a batch that holds a bright image, and gives NaN, infinity or a torn map for others."""

    def forward(self, image, features=None):
        mean = image.mean((1, 2, 3))
        if (mean > 0.9).any():
            raise RuntimeError("too bright\nto look at")
        anomaly_map = image.mean(1, keepdim=True).clone()
        score = torch.where(mean < 0.1, float("nan"), torch.where(mean < 0.3, float("inf"), mean))
        anomaly_map[(mean > 0.5) & (mean < 0.7), :, 0, 0] = float("nan")
        return Prediction(score, anomaly_map)


def test_a_score_that_is_no_number_is_unreadable_with_its_reason_and_never_normal(
    trained, tmp_path
):
    predictor = load_predictor(trained[0], "cpu")
    predictor.models[0].trainer.model = Moody()
    levels = {"nan": 0, "infinite": 50, "good": 110, "torn": 150, "bright": 250}
    arrays = [np.full((20, 20), level, np.uint8) for level in levels.values()]
    outcomes = list(predictor.predict(arrays))
    rows = write_predictions(outcomes, tmp_path, 0.1, "all", None)
    verdicts = dict(zip(levels, [row["verdict"] for row in rows], strict=True))
    assert verdicts == dict.fromkeys(levels, "unreadable") | {"good": "anomalous"}
    assert [bool(row["reason"]) for row in rows] == [name != "good" for name in levels]
    assert "its score is nan" in rows[0]["reason"]
    assert "too bright to look at" in rows[4]["reason"]
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=pytest.fail)

    (tiled,) = predictor.predict_tiled([np.zeros((40, 40), np.uint8)], 20)
    assert tiled.pred_score is None
    assert "one of its tiles: its score is nan" in tiled.reason


def test_tables_open_in_a_spreadsheet_as_they_are(tmp_path):
    names = ["=cmd.png", "+1.png", "@x.png", "-2.png", "부품.png", "a,b.png"]
    outcomes = [Outcome(name, 1 / 3, explanation="=1+1") for name in names]
    outcomes.append(Outcome("teil_\udce4.png", reason="\udce4 cannot be read"))
    write_predictions(outcomes, tmp_path, 0.1234567891234, "none", None)
    content = (tmp_path / "predictions.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = read_rows(tmp_path)
    for row in rows:
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@"))
    assert [Path(row["image"]).name for row in rows[:6]] == names
    assert rows[0]["pred_score"] == "0.3333333"
    assert rows[0]["threshold"] == "0.1234568"


def other_checkpoint(folder, **changes):
    """Write other values into the checkpoint of a trial."""
    (path,) = folder.glob("model_*.pth")
    stored = torch.load(path, weights_only=True)
    torch.save(stored | changes, path)


def other_json(folder, name, change):
    content = read_json(folder / name)
    change(content)
    write_json(folder / name, content)


def other_calibration(folder):
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.loc[scores["split"] == "holdout", "pred_score"] += 1
    scores.to_parquet(folder / "scores.parquet")


DIFFERENCES = {
    "the checkpoint file differs": lambda folder: other_checkpoint(folder, optimizer=1),
    "the thresholds differs": lambda folder: other_json(
        folder, "result.json", lambda r: r["thresholds"]["percentile_95"].update(value=9.0)
    ),
    "the calibration differs": other_calibration,
    "the preprocessing differs": lambda folder: other_json(
        folder, "result.json", lambda r: r["needs"].update(preprocessing="0" * 64)
    ),
    "the version of scores (core) differs": lambda folder: other_json(
        folder, "trial.json", lambda t: t["identity"]["versions"].update(core=CORE_VERSION + 1)
    ),
    "the version of scores (model) differs": lambda folder: other_json(
        folder, "trial.json", lambda t: t["identity"]["versions"].update(model=7)
    ),
    "code of toy_plugin differs": lambda folder: other_checkpoint(folder, source="0" * 64),
}


@pytest.mark.parametrize("words", DIFFERENCES)
def test_what_is_not_as_it_was_trained_is_refused_or_accepted_in_every_row(
    trained, tmp_path, words, capsys
):
    folder, images, _ = trained
    DIFFERENCES[words](folder)
    out = tmp_path / "out"
    command = [str(folder), str(images), "--out", str(out), "--maps", "none", "--plugins"]
    with pytest.raises(InputError, match="--accept-other-weights") as refused:
        main([*command, "toy_plugin"])
    assert words in str(refused.value)
    assert "trained with" in str(refused.value)
    assert not out.exists()

    assert main([*command, "toy_plugin", "--accept-other-weights"]) == 0
    rows = read_rows(out)
    assert len(rows) == 6
    assert all(words in row["accepted"] for row in rows)
    assert words in capsys.readouterr().out


def test_an_export_says_what_was_accepted_and_so_does_each_of_its_outcomes(trained, tmp_path):
    folder, images, _ = trained
    words = "the version of scores (core) differs"
    DIFFERENCES[words](folder)
    with pytest.raises(InputError, match="the version of scores"):
        export_trial(folder, tmp_path / "out", "safetensors")
    about = export_trial(folder, tmp_path / "out", "safetensors", accept_other_weights=True)
    assert words in about["accepted"][0]
    predictor = load_predictor(tmp_path / "out", "cpu", accept_other_weights=True)
    for outcome in predictor.predict(sorted(images.rglob("*.png"))):
        assert words in outcome.accepted


def test_the_checkpoint_of_another_configuration_beside_a_trial_is_refused(trained):
    folder, _, _ = trained
    other_json(folder, "trial.json", lambda trial: trial["identity"]["model"].update(gain=3.0))
    with pytest.raises(InputError, match=r"another configuration .*model\.gain is 1\.0, .*3\.0"):
        load_predictor(folder, "cpu", accept_other_weights=True)


@pytest.mark.parametrize("name", ["trial.json", "result.json"])
@pytest.mark.parametrize("text", ["", '{"identity": {', "[1]"])
def test_a_torn_file_beside_a_checkpoint_is_named_and_not_passed_over(trained, name, text):
    folder, _, _ = trained
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is torn"):
        load_predictor(folder, "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "xpu", ""])
def test_a_device_that_is_not_here_is_refused_by_its_name(trained, tmp_path, device):
    folder, images, _ = trained
    sentence = f"--device {device}: torch finds no such device here"
    with pytest.raises(InputError, match=sentence):
        main([str(folder), str(images), "--out", str(tmp_path / "out"), f"--device={device}"])
    with pytest.raises(InputError, match=sentence):
        train("mvtec", "bottle", "toy-ok", device=device)


def test_a_stored_threshold_that_is_no_number_is_refused(trained):
    folder, _, _ = trained
    text = (folder / "result.json").read_text()
    value = json.loads(text)["thresholds"]["percentile_95"]["value"]
    (folder / "result.json").write_text(text.replace(f'"value": {value}', '"value": NaN'))
    with pytest.raises(InputError, match="threshold percentile_95 is nan"):
        load_predictor(folder, "cpu")


PLUGIN = """
from adray.models.autoencoder import AutoencoderConfig, AutoencoderModel as _Model
from adray.models.autoencoder import AutoencoderTrainer as _Trainer
from adray.registry import ModelRegistry
from adray.types import Prediction


class AutoencoderModel(_Model):
    def forward(self, image, features=None):
        before = super().forward(image)
        return Prediction(before.pred_score.sqrt() + 10, before.anomaly_map.sqrt())


class AutoencoderTrainer(_Trainer):
    config_class = AutoencoderConfig

    def build_model(self):
        return AutoencoderModel(self.config)


ModelRegistry.register("rooted", "own_rooted.AutoencoderTrainer", {}, {"img_size": 64, "normalize": "none"})
"""


def test_a_plug_in_whose_class_is_called_as_a_built_in_one_predicts_with_itself(
    trained, tmp_path, monkeypatch
):
    (tmp_path / "own_rooted.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    set_globals(plugins=("own_rooted",))
    small = {"base_channels": 4, "latent_channels": 4}
    result = train("mvtec", "bottle", "rooted", num_epochs=1, train={"holdout": 0.2}, model=small)
    stored = pd.read_parquet(f"{result['folder']}/scores.parquet").query("split == 'test'")
    scores = [o.pred_score for o in load_predictor(result["folder"], "cpu").predict(stored.path)]
    assert min(scores) > 10
    assert scores == pytest.approx(list(stored.pred_score), rel=1e-5)
    identity = read_json(f"{result['folder']}/trial.json")["identity"]
    assert identity["trainer"] == "own_rooted.AutoencoderTrainer"
    assert len(identity["source"]) == 64

    # Without the plug-in there is nothing that may stand in for it.
    set_globals(plugins=())
    monkeypatch.setattr(ModelRegistry, "_specs", {})
    with pytest.raises(InputError, match=r"is of own_rooted\.AutoencoderTrainer, which no model"):
        load_predictor(result["folder"], "cpu")


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


def test_tiles_from_the_command_and_an_image_smaller_than_a_tile(trained, tmp_path, capsys):
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
    assert rows[0]["verdict"] in ("anomalous", "normal")
    printed = capsys.readouterr().out
    assert "with --tile it promises nothing" in printed
    assert "of new normals" not in printed
    assert Image.open(out / rows[0]["map"]).size == (100, 70)


@pytest.mark.parametrize(
    "stem",
    ["x" * 251, "불" * 83, "teil_\udce4", 'a:b?"<|>*\n\tc', "a\u2028b\x85c"],
    ids=["ascii", "korean", "bytes", "signs", "ends of lines"],
)
def test_maps_of_images_with_any_name_are_written(tmp_path, stem):
    pixels = np.zeros((3, 8, 8), np.uint8)
    outcomes = [Outcome(f"/x/{stem}.png", 0.5, np.zeros((8, 8), np.float32), pixels)] * 2
    rows = write_predictions(outcomes, tmp_path, 0.1, "all", None)
    assert all((tmp_path / row["map"]).is_file() for row in rows)
    assert len(list((tmp_path / "maps").iterdir())) == 4
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("anomalous") == 2
    assert all(len(path.name.encode()) <= 143 for path in (tmp_path / "maps").iterdir())
    first = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[0]
    assert json.loads(first)["image"] == f"/x/{stem}.png"
    assert read_logs([tmp_path / "predictions.jsonl"])[0].image == f"/x/{stem}.png"
    assert read_logs([tmp_path / "predictions.csv"])[0].image == readable_name(f"/x/{stem}.png")
    assert "held predictions of 2 images" in open_folder(tmp_path)
    assert not list((tmp_path / "maps").iterdir())

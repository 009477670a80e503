"""Calibration, the combined map and the file of a team."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t as student

from adray.ensembles.calibration import Calibration, calibrate, calibrate_each
from adray.ensembles.team import (
    Ensemble,
    MapPart,
    Member,
    combine_maps,
    combine_peaks,
    combine_scores,
    member_folder,
    read_ensemble,
    relative_folder,
    widest_part,
    write_ensemble,
)
from adray.errors import InputError
from adray.files import write_json

ID = "0123abcd" + "0" * 56


def member(**changes):
    return replace(Member("../a/b/m/0123abcd", ID, "m", 1.0, 0.0, 1.0, 9.0, (0.0, 1.0)), **changes)


@pytest.mark.parametrize("count", [5, 8, 20, 60, 400, 3000])
def test_calibrated_scores_keep_the_order_without_ties_even_far_above_the_normals(count):
    rng = np.random.default_rng(0)
    calibration = calibrate(rng.normal(3, 0.01, count))
    scores = np.sort(
        np.concatenate([rng.normal(3, 0.03, 100), rng.normal(3, 1, 100), 10.0 ** np.arange(1, 300)])
    )
    scores = scores[scores > 2.9]
    assert (np.diff(calibration(scores)) > 0).all()
    assert np.isfinite(calibration(scores)).all()


@pytest.mark.parametrize("count", [5, 12, 100, 900])
def test_calibrated_scores_are_tail_probabilities_of_one_more_normal_image(count):
    normals = np.random.default_rng(1).normal(7, 2, count)
    scores = np.linspace(0, 60, 200)
    scale = normals.std(ddof=1) * np.sqrt(1 + 1 / count)
    expected = -student.logsf((scores - normals.mean()) / scale, count - 1) / np.log(10)
    np.testing.assert_allclose(calibrate(normals)(scores), expected, rtol=1e-6)


def test_one_normal_image_in_ten_scores_above_1_however_few_were_held_out():
    rng = np.random.default_rng(2)
    for count in (5, 10, 40):
        above = [
            calibrate(rng.standard_normal(count))(rng.standard_normal(20)) > 1 for _ in range(2000)
        ]
        assert np.mean(above) == pytest.approx(0.1, abs=0.012)


@pytest.mark.parametrize(("factor", "offset"), [(1e-6, 0.0), (1e4, -7e3), (0.3, 40.0)])
def test_calibration_does_not_feel_the_unit_or_the_origin_of_scores(factor, offset):
    rng = np.random.default_rng(1)
    normals, scores = rng.gamma(2, 1, 12), rng.gamma(2, 3, 50)
    moved = calibrate(factor * normals + offset)(factor * scores + offset)
    np.testing.assert_allclose(moved, calibrate(normals)(scores), rtol=1e-9, atol=1e-8)


def test_a_model_with_a_false_alarm_among_the_held_out_normals_counts_less():
    ten = np.random.default_rng(3).standard_normal(10)
    spoiled = np.append(ten[:-1], 30.0)
    assert calibrate(spoiled)(5.0) < calibrate(ten)(5.0) / 2


def test_scores_that_are_mostly_equal_are_calibrated_and_those_that_all_are_are_refused():
    assert calibrate(np.array([1.0] * 9 + [2.0]))(2.0) > 1
    with pytest.raises(InputError, match=r"all 6 held-out normals score 0\.1"):
        calibrate(np.full(6, 0.1))
    with pytest.raises(
        InputError, match="it has 4 held-out normals, but calibration needs at least 5"
    ):
        calibrate(np.arange(4.0))
    with pytest.raises(InputError, match="NaN or infinite"):
        calibrate(np.array([1, 2, 3, 4, np.nan]))


def test_each_held_out_normal_is_calibrated_as_if_it_were_new_to_the_others():
    scores = np.random.default_rng(0).gamma(2, 1, 9)
    each = calibrate_each(scores)
    for i, score in enumerate(scores):
        assert each[i] == pytest.approx(float(calibrate(np.delete(scores, i))(score)))
    with pytest.raises(InputError, match="all but one of its 6"):
        calibrate_each(np.array([1.0] * 5 + [2.0]))


@pytest.mark.parametrize("law", ["standard_normal", "standard_cauchy", "standard_exponential"])
def test_a_team_calibrated_so_keeps_its_promise_on_new_normals(law):
    """Scales of three members and the threshold are of the same seven normals."""
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(150):
        held_out = np.zeros(7)
        fresh = np.zeros(100)
        for _ in range(3):
            scores = getattr(rng, law)(107)
            held_out += calibrate_each(scores[:7])
            fresh += calibrate(scores[:7])(scores[7:])
        rates.append(np.mean(fresh > held_out.max()))
    assert np.mean(rates) <= 1 / 8 + 3 * np.std(rates) / np.sqrt(len(rates))


def test_the_combined_score_is_the_weighted_mean_of_calibrated_scores():
    team = [member(weight=0.25, center=1.0, scale=2.0), member(weight=0.75, center=-3.0, scale=0.5)]
    first, second = np.array([0.0, 5.0]), np.array([-3.0, 8.0])
    tails = student.sf((first - 1) / 2, 9), student.sf((second + 3) / 0.5, 9)
    expected = -0.25 * np.log10(tails[0]) - 0.75 * np.log10(tails[1])
    np.testing.assert_allclose(combine_scores([first, second], team), expected)
    assert float(combine_scores([5.0, 8.0], team)) == pytest.approx(expected[1])


def test_maps_are_brought_to_their_own_range_before_they_are_averaged():
    rng = np.random.default_rng(3)
    first, second = rng.random((8, 8)).astype(np.float32), rng.random((8, 8)).astype(np.float32)
    parts = [
        MapPart(0, 100 + 50 * first, (100, 150), 0.5, 1.0),
        MapPart(1, second / 9, (0, 1 / 9), 0.5, 1.0),
    ]
    np.testing.assert_allclose(combine_maps(parts), (first + second) / 2, atol=1e-6)


def test_maps_of_other_sizes_and_crops_lie_on_the_same_part_of_the_image():
    def blob(side, view):  # a bump at 60 % of the way down and 40 % to the right of the whole image
        at = (np.arange(side) + 0.5) / side * view + (1 - view) / 2
        return np.exp(
            -(((at[:, None] - 0.6) / 0.08) ** 2) - (((at[None] - 0.4) / 0.08) ** 2)
        ).astype(np.float32)

    parts = [
        MapPart(0, blob(56, 56 / 64), (0, 1), 0.2, 56 / 64),
        MapPart(1, blob(96, 1.0), (0, 1), 0.5, 1.0),
        MapPart(2, blob(48, 1.0), (0, 1), 0.3, 1.0),
    ]
    assert widest_part(parts).position == 1
    combined = combine_maps(parts)
    assert combined.shape == (96, 96)
    assert np.abs(combined - blob(96, 1.0)).max() < 0.05
    cropped = combine_maps([parts[0], replace(parts[0], position=1)])
    np.testing.assert_allclose(cropped, blob(56, 56 / 64), atol=1e-6)


def test_maps_of_rectangles_are_averaged_at_the_size_of_the_largest():
    rng = np.random.default_rng(3)
    small = rng.random((28, 42)).astype(np.float32)
    large = rng.random((56, 84)).astype(np.float32)
    parts = [MapPart(0, small, (0, 1), 0.25, 1.0), MapPart(1, large, (0, 1), 0.75, 1.0)]
    assert widest_part(parts).position == 1
    enlarged = np.asarray(Image.fromarray(small).resize((84, 56), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(combine_maps(parts), 0.25 * enlarged + 0.75 * large, atol=1e-6)


def test_a_border_that_one_member_does_not_see_is_decided_by_the_others():
    ones, zeros = np.ones((8, 8), np.float32), np.zeros((16, 16), np.float32)
    combined = combine_maps(
        [MapPart(0, ones, (0, 1), 0.5, 0.5), MapPart(1, zeros, (0, 1), 0.5, 1.0)]
    )
    assert (combined[4:12, 4:12] == 0.5).all()
    assert combined.sum() == 0.5 * 64


@pytest.mark.parametrize("views", [(1.0, 1.0, 1.0), (1.0, 0.9, 0.7), (0.5, 1.0, 0.5)])
def test_no_pixel_of_a_combined_map_is_above_what_the_peaks_of_the_members_give(views):
    rng = np.random.default_rng(0)
    weights = (0.2, 0.5, 0.3)
    ranges = ((0.0, 1.0), (-3.0, 2.0), (10.0, 11.0))
    for _ in range(40):
        maps = []
        peaks = []
        for i, side in enumerate(rng.integers(3, 40, size=3)):
            values = (ranges[i][0] + rng.random((side, side)) ** 4).astype(np.float32)
            maps.append(MapPart(i, values, ranges[i], weights[i], views[i]))
            peaks.append(replace(maps[-1], values=values.max(keepdims=True).ravel()))
        (highest,) = combine_peaks(peaks)
        assert combine_maps(maps).max() <= highest

        # Maps that are the same everywhere reach it.
        flat = []
        for part in maps:
            flat.append(replace(part, values=np.full((64, 64), part.values.max())))
        assert combine_maps(flat).max() == highest


def test_an_ensemble_is_read_as_it_was_written(tmp_path):
    team = Ensemble(
        "mvtec", "bottle", (member(weight=0.5), member(weight=0.5)), {"percentile_95": 1.5}
    )
    write_ensemble(tmp_path / "e.json", team)
    assert read_ensemble(tmp_path / "e.json") == team
    assert team.members[0].calibration == Calibration(0.0, 1.0, 9.0)


def broken(path, value):
    stored = json.loads(json.dumps(GOOD))
    place = stored
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return stored


GOOD = {
    "dataset": "d",
    "category": "c",
    "members": [
        {
            "folder": "x",
            "id": ID,
            "configuration": "m",
            "weight": 1.0,
            "center": 0.0,
            "scale": 1.0,
            "freedom": 9,
            "map_range": [0, 1],
        }
    ],
    "thresholds": {"percentile_95": 1.0},
}


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (broken(["members"], []), "number of members is 0"),
        (broken(["members"], GOOD["members"] * 500), "number of members is 500"),
        (broken(["members", 0, "scale"], 0), "scale is 0.0, but must be above 0"),
        (broken(["members", 0, "scale"], "1"), "scale must be a finite number"),
        (broken(["members", 0, "center"], float("nan")), "center must be a finite number"),
        (broken(["members", 0, "center"], 10**400), "is damaged"),
        (broken(["members", 0, "freedom"], 0), "freedom is 0.0, but must be between 1 and 1000"),
        (broken(["members", 0, "weight"], 0.5), "weights of the members sum to 0.5"),
        (broken(["members", 0, "map_range"], [1]), "map_range has 1 values"),
        (broken(["members", 0, "folder"], "a\0b"), "is no path of a trial"),
        (broken(["members", 0, "run"], "rm"), "unknown key"),
        (broken(["thresholds"], {"percentile_95": None}), "percentile_95 must be a finite number"),
        (broken(["format"], 2), "format is 2, but this version of adray reads 1"),
        ([], "must be a mapping"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_in_one_sentence(stored, words, tmp_path):
    path = tmp_path / "e.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=words) as caught:
        read_ensemble(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"members": ', b"\xff\xfe", b"[" * 200_000])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged .* write it again"):
        read_ensemble(tmp_path / "e.json")
    with pytest.raises(InputError, match="does not exist"):
        read_ensemble(tmp_path / "gone.json")


def test_a_member_is_found_after_the_whole_store_moved_and_checked_before_it_runs(tmp_path):
    folder, file = (
        tmp_path / "old" / "a" / "b" / "m" / "0123abcd",
        tmp_path / "old" / "ensembles" / "e.json",
    )
    folder.mkdir(parents=True)
    write_json(folder / "trial.json", {"id": ID, "identity": {"seed": 0}})
    (folder / "model_a_b_m_epochs-1.pth").write_bytes(b"weights")
    one = member(folder=relative_folder(folder, file))
    assert member_folder(file, one) == folder
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(InputError, match="move the file together with its store"):
        member_folder(file, one)
    file = tmp_path / "new" / "ensembles" / "e.json"
    folder = member_folder(file, one)
    with pytest.raises(InputError, match="changed since the file was written"):
        member_folder(file, replace(one, checkpoint_sha256="0" * 64))
    with pytest.raises(InputError, match="was replaced by another trial"):
        member_folder(file, replace(one, id="f" * 64))
    with pytest.raises(InputError, match="is not at"):
        member_folder(file, replace(one, folder="x" * 5000))
    (folder / "model_a_b_m_epochs-1.pth").unlink()
    with pytest.raises(InputError, match=r"kept no checkpoint .* keep: all"):
        member_folder(file, one)

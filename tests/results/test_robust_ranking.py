"""What corruptions do to trials: figures held against other libraries, and the safest model."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_parts import corrupted, part_trial
from PIL import Image
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import roc_auc_score

from adray.__main__ import main
from adray.conditions import Corruption
from adray.decide import decide, decide_safest
from adray.decisions.decision import DECIDED, NOT_JUDGED, Wishes
from adray.decisions.text import decision_json, decision_text, page_summaries, summary
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.results.contest import RankFigure, WorstFigure
from adray.results.current import view_store
from adray.results.report import render, report_data
from adray.results.robustness import DRAWS, _spearman, robustness_of, shifts_of, trial_stress
from adray.results.stress_text import FIGURES_FILE, stress_lines, write_stress_csv
from adray.results.trial_files import ScoreRow, read_judged_images, write_scores
from adray.thresholds import rate_ends

MILD = Corruption("noise", 1)
STRONG = Corruption("noise", 4)
LIGHT = Corruption("gamma", 3)


def scores_of(record):
    return read_judged_images(record.folder, is_drawn=False)


def shaken(record, corruption, noise, shift=0.0, gone=(), seed=7):
    """Score a trial under a corruption: all scores higher, and less certain."""
    images = scores_of(record)
    rng = np.random.default_rng(seed)
    scores = images.scores + shift + noise * rng.normal(size=len(images.scores))
    corrupted(record, corruption, scores, gone)
    return scores


def records_of(root):
    return view_store(root).shown(everything=False)


# One trial


def test_the_figures_of_a_condition_are_those_of_scikit_learn_and_scipy(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    scores = shaken(record, STRONG, 1.0, 1.5)
    images = scores_of(record)
    stress = trial_stress(record)
    (figure,) = stress.figures
    threshold = record.result["thresholds"]["promise"]["value"]
    auroc = roc_auc_score(images.positive, scores)
    assert figure.image_auroc == pytest.approx(auroc)
    assert figure.drop == pytest.approx(roc_auc_score(images.positive, images.scores) - auroc)
    assert figure.alarms == (scores[~images.positive] > threshold).sum()
    assert figure.misses == (scores[images.positive] <= threshold).sum()
    ends = [binomtest(figure.alarms, 40, alternative=side) for side in ("greater", "less")]
    assert figure.low == pytest.approx(ends[0].proportion_ci(0.95, "exact").low)
    assert figure.high == pytest.approx(ends[1].proportion_ci(0.95, "exact").high)
    assert figure.is_broken == (figure.low > record.result["thresholds"]["promise"]["promised"])


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 41), (0, 1), (1, 1)])
def test_the_ends_of_a_rate_are_those_of_clopper_and_pearson(count, total):
    low, high = rate_ends(count, total)
    above = binomtest(count, total, alternative="greater").proportion_ci(0.95, "exact")
    below = binomtest(count, total, alternative="less").proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((above.low, below.high))


def test_the_promise_breaks_at_the_least_severity_at_which_chance_does_not_explain_the_alarms(
    tmp_path,
):
    record = part_trial(tmp_path, "padim", 3.0)
    images = scores_of(record)
    for severity, shift in enumerate((0, 0, 1.0, 2.0, 3.0), start=1):
        corrupted(record, Corruption("noise", severity), images.scores + shift)
        corrupted(record, Corruption("gamma", severity), images.scores)
    stress = trial_stress(record)
    assert not stress.plain.is_broken
    breaks = stress.breaks()
    assert breaks["gamma"] is None
    broken = {figure.severity for figure in stress.figures if figure.is_broken}
    assert breaks["noise"] == min(broken)
    rates = {f.severity: f.low for f in stress.figures if f.kind == "noise"}
    promised = stress.promised
    assert rates[breaks["noise"] - 1] <= promised < rates[breaks["noise"]]


def test_a_promise_that_is_broken_on_the_images_as_they_are_breaks_at_severity_0(tmp_path):
    record = part_trial(tmp_path, "padim", normal=[9.0] * 40, defects=[10.0] * 40)
    corrupted(record, MILD, scores_of(record).scores)
    assert trial_stress(record).breaks() == {"noise": 0}
    (line,) = [
        one for one in stress_lines(trial_stress(record), load_catalogue("en")) if "already" in one
    ]
    assert "before any corruption" in line


def test_images_whose_defect_left_count_neither_before_nor_after(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    gone = (41, 50, 79)
    scores = shaken(record, STRONG, 1.0, gone=gone)
    images = scores_of(record)
    stays = np.ones(80, dtype=bool)
    stays[list(gone)] = False
    (figure,) = trial_stress(record).figures
    assert (figure.gone, figure.defects, figure.normals) == (3, 37, 40)
    assert figure.image_auroc == pytest.approx(roc_auc_score(images.positive[stays], scores[stays]))
    before = roc_auc_score(images.positive[stays], images.scores[stays])
    assert figure.drop == pytest.approx(before - figure.image_auroc)


def test_without_calibration_normals_there_are_aurocs_and_no_verdicts(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0, held_out=0)
    shaken(record, STRONG, 1.0)
    stress = trial_stress(record)
    (figure,) = stress.figures
    assert figure.image_auroc is not None
    assert (figure.alarms, figure.misses, figure.is_broken, stress.promised) == (None,) * 4
    for language in LANGUAGES:
        text = "\n".join(stress_lines(stress, load_catalogue(language)))
        assert "n/a" in text
        assert "train.holdout" in text


def test_normal_images_alone_still_count_false_alarms(tmp_path):
    record = part_trial(tmp_path, "padim", defects=[])
    corrupted(record, STRONG, scores_of(record).scores + 9)
    (figure,) = trial_stress(record).figures
    assert (figure.image_auroc, figure.drop) == (None, None)
    assert (figure.alarms, figure.is_broken) == (40, True)
    assert stress_lines(trial_stress(record), load_catalogue("ko"))
    assert robustness_of([record]) is None


def test_groups_of_the_test_are_shifts_judged_each_by_itself(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    images = scores_of(record)
    groups = ["dim" if number % 3 else "낮" for number in range(80)]
    rows = []
    for number, path in enumerate(images.paths):
        label = int(images.positive[number])
        score = float(images.scores[number])
        rows.append(ScoreRow("mvtec", "cup", "test", path, label, "x", score, group=groups[number]))
    write_scores(record.folder, rows)
    stress = trial_stress(record)
    assert [figure.condition for figure in stress.figures] == ["group=dim", "group=낮"]
    inside = np.array(groups) == "dim"
    auroc = roc_auc_score(images.positive[inside], images.scores[inside])
    assert stress.figures[0].image_auroc == pytest.approx(auroc)
    assert stress.figures[0].drop == pytest.approx(stress.plain.image_auroc - auroc)
    assert stress.figures[0].normals + stress.figures[1].normals == 40
    assert stress.breaks() == {}
    assert shifts_of([record]) is None
    result = {**record.result, "per_group": {"dim": {}}}
    shifts = shifts_of([replace(record, result=result)])
    assert shifts.conditions == ("group=dim", "group=낮")
    assert shifts.models[0].drop == pytest.approx(stress.figures[0].drop)
    assert robustness_of([record]) is None


def test_a_trial_without_conditions_says_nothing(tmp_path):
    assert trial_stress(part_trial(tmp_path, "padim", 2.0)) is None
    assert robustness_of(records_of(tmp_path)) is None


def test_the_table_is_what_the_figures_are_and_no_formula(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    shaken(record, MILD, 0.1)
    shaken(record, STRONG, 2.0)
    stress = trial_stress(record)
    path = write_stress_csv(stress)
    assert path == record.folder / FIGURES_FILE
    with path.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["plain", "noise 1", "noise 4"]
    for row, figure in zip(rows, (stress.plain, *stress.figures), strict=True):
        assert float(row["image_auroc"]) == pytest.approx(figure.image_auroc, abs=1e-6)
        assert float(row["alarm_rate"]) == pytest.approx(figure.alarms / figure.normals, abs=1e-6)
    assert pd.read_csv(path)["severity"].tolist() == [0, 1, 4]
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "a spreadsheet reads Hangul"


# Several models


def two_models(root, **more):
    """One that is better on the images as they are, and one that noise does nothing to."""
    sharp = part_trial(root, "sharp", 3.5, **more)
    sound = part_trial(root, "sound", 2.0, **more)
    shaken(sharp, MILD, 0.1)
    shaken(sound, MILD, 0.1)
    shaken(sharp, STRONG, 8.0)
    shaken(sound, STRONG, 0.1)
    return sharp, sound


def test_means_ranks_and_the_safest_model_are_those_of_the_scores(tmp_path):
    sharp, sound = two_models(tmp_path)
    third = part_trial(tmp_path, "third", 0.5)
    shaken(third, MILD, 0.1)
    shaken(third, STRONG, 0.1)
    found = robustness_of(records_of(tmp_path))
    assert found.conditions == ("noise 1", "noise 4")
    assert found.cells == ("mvtec/cup",)
    by_name = {(one.configuration, one.condition): one for one in found.models}
    for record, name in ((sharp, "sharp"), (sound, "sound"), (third, "third")):
        figures = {figure.condition: figure for figure in trial_stress(record).figures}
        for condition, figure in figures.items():
            assert by_name[name, condition].image_auroc == pytest.approx(figure.image_auroc)
            assert by_name[name, condition].alarms == pytest.approx(figure.alarms / 40)
    ranks = {one.condition: one for one in found.ranks}
    models = ("sharp", "sound", "third")
    plain = [found.plain[name] for name in models]
    for condition, rank in ranks.items():
        under = [by_name[name, condition].image_auroc for name in models]
        assert rank.correlation == pytest.approx(spearmanr(plain, under).statistic)
        assert -1 <= rank.low <= rank.high <= 1
    assert (ranks["noise 1"].best, ranks["noise 1"].is_sure) == ("sharp", False)
    assert (ranks["noise 4"].best, ranks["noise 4"].plain_best) == ("sound", "sharp")
    assert ranks["noise 4"].is_sure
    assert found.safest == "sound"
    assert found.safest_worst == min(by_name["sound", c].image_auroc for c in found.conditions)


def test_the_ranks_of_many_draws_are_those_of_scipy_with_ties(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, (5, 30)).astype(float)
    second = rng.integers(0, 4, (5, 30)).astype(float)
    found = _spearman(first, second)
    for column in range(30):
        wanted = spearmanr(first[:, column], second[:, column]).statistic
        assert found[column] == pytest.approx(0.0 if np.isnan(wanted) else wanted)


def test_models_that_noise_leaves_alone_keep_their_ranks_for_sure(tmp_path):
    for name, distance in (("a", 0.0), ("b", 1.5), ("c", 4.0)):
        record = part_trial(tmp_path, name, distance)
        corrupted(record, MILD, scores_of(record).scores)
    (rank,) = robustness_of(records_of(tmp_path)).ranks
    assert (rank.correlation, rank.low, rank.high) == (1, 1, 1)
    assert not rank.is_sure
    assert DRAWS >= 200


def test_only_conditions_and_cells_that_all_have_are_compared(tmp_path):
    two_models(tmp_path)
    sharp, _ = two_models(tmp_path, category="plate")
    shaken(sharp, LIGHT, 5.0)
    poor = part_trial(tmp_path, "poor", 1.0)
    shaken(poor, LIGHT, 1.0)
    found = robustness_of(records_of(tmp_path))
    assert found.cells == ("mvtec/cup", "mvtec/plate")
    assert found.conditions == ("noise 1", "noise 4")
    assert found.left_out == ("poor",)


def test_a_mean_is_over_seeds_and_then_over_cells(tmp_path):
    for seed in (0, 1, 2):
        shaken(part_trial(tmp_path, "padim", 2.0, seed), STRONG, 1.0, seed=seed)
    shaken(part_trial(tmp_path, "padim", 1.0, 0, category="plate"), STRONG, 1.0)
    found = robustness_of(records_of(tmp_path))
    figures = {}
    for record in records_of(tmp_path):
        (figure,) = trial_stress(record).figures
        figures.setdefault(record.identity["categories"][0], []).append(figure.image_auroc)
    wanted = np.mean([np.mean(values) for values in figures.values()])
    assert found.models[0].image_auroc == pytest.approx(wanted)
    assert found.ranks == ()


# Which to deploy


def test_the_worst_of_figures_is_least_in_every_draw_and_pulls_as_the_worst_does():
    rng = np.random.default_rng(0)
    positive = np.repeat([False, True], 20)
    figures = [RankFigure(positive, rng.normal(size=40) + d * positive) for d in (2.0, 1.0, 3.0)]
    worst = WorstFigure(tuple(figures))
    assert worst.value() == min(figure.value() for figure in figures)
    assert (worst.influence() == figures[worst.worst].influence()).all()
    weights = rng.integers(0, 3, (50, 40))
    each = np.stack([figure.of_draws(weights) for figure in figures])
    assert (worst.of_draws(weights) == each.min(0)).all()


def test_decide_takes_the_best_and_decide_robust_the_safest(tmp_path):
    sharp, sound = two_models(tmp_path)
    (best,) = decide(records_of(tmp_path))
    (safest,) = decide(records_of(tmp_path), Wishes(robust=True))
    assert best.chosen.place == sharp.folder
    assert best.chosen.worst is None
    assert (safest.chosen.place, safest.state) == (sound.folder, DECIDED)
    figures = trial_stress(sound)
    worst = min((figures.plain, *figures.figures), key=lambda one: one.image_auroc)
    assert safest.chosen.worst.condition == worst.condition
    assert safest.chosen.value == pytest.approx(worst.image_auroc)
    assert safest.chosen.worst.conditions == 3
    for language in LANGUAGES:
        say = load_catalogue(language)
        assert worst.condition in decision_text(safest, say)
        assert worst.condition in "\n".join(summary(safest, say))
        assert "noise" not in decision_text(best, say)
    assert decision_json(safest, load_catalogue("en"))["chosen"]["worst"]["conditions"] == 3


def test_a_model_that_reports_everything_under_noise_is_not_the_safest_by_what_errors_cost(
    tmp_path,
):
    """It misses nothing, but what it rejects costs more."""
    loud = part_trial(tmp_path, "loud", 6.0)
    calm = part_trial(tmp_path, "calm", 3.0)
    corrupted(loud, STRONG, scores_of(loud).scores + 50)
    corrupted(calm, STRONG, scores_of(calm).scores)
    costs = {"miss_cost": 1.0, "alarm_cost": 1.0}
    (plain,) = decide(records_of(tmp_path), Wishes(**costs))
    (robust,) = decide(records_of(tmp_path), Wishes(**costs, robust=True))
    assert plain.chosen.name == "loud"
    assert robust.chosen.name == "calm"
    assert "cost" in decision_text(robust, load_catalogue("en"))


def test_trials_that_nobody_scored_under_corruptions_are_named_and_not_compared(tmp_path):
    part_trial(tmp_path, "other", 9.0)
    (nothing,) = decide(records_of(tmp_path), Wishes(robust=True))
    assert nothing.state == NOT_JUDGED
    two_models(tmp_path)
    (decision,) = decide(records_of(tmp_path), Wishes(robust=True))
    assert decision.chosen.name == "sound"
    assert ["other" in one.name for one in decision.left_out] == [True]


def test_the_command_says_the_same(tmp_path, capsys):
    _, sound = two_models(tmp_path)
    assert main(["decide", str(tmp_path), "--robust", "--lang", "en"]) == 0
    printed = capsys.readouterr().out
    assert "sound" in printed.splitlines()[0]
    assert str(sound.folder) in printed
    assert "at worst image AUROC" in printed


# The page


def test_the_page_has_the_figures_of_each_model_and_condition_and_the_safest_of_each_part(tmp_path):
    sharp, sound = two_models(tmp_path)
    records = records_of(tmp_path)
    safest = page_summaries(decide_safest(records))
    data = report_data("s", records, base=tmp_path, safest=safest)
    found = data["robustness"]["corruptions"]
    assert found["columns"] == {"noise 1": ["noise", 1], "noise 4": ["noise", 4]}
    rows = {row["m"]: row for row in found["models"]}
    for record, name in ((sharp, "sharp"), (sound, "sound")):
        for figure in trial_stress(record).figures:
            auroc, drop, alarms, misses, broken, gone = rows[name]["u"][figure.condition]
            assert auroc == pytest.approx(figure.image_auroc, abs=1e-4)
            assert drop == pytest.approx(figure.drop, abs=1e-4)
            assert (alarms, misses) == pytest.approx((figure.alarms / 40, figure.misses / 40))
            assert (broken, gone) == (int(figure.is_broken), 0)
    assert found["safest"][0] == "sound"
    (said,) = data["robustness"]["safest"]
    assert said["trial"] == str(sound.folder)
    page = render(data)
    assert "NaN" not in json.dumps(data, allow_nan=False)
    assert "noise 4" in page


def test_a_store_without_corruptions_or_shifts_has_no_such_section(tmp_path):
    records = [part_trial(tmp_path, "padim", 2.0)]
    assert decide_safest(records) == []
    assert report_data("s", records, base=tmp_path)["robustness"] is None


def test_contact_sheets_are_in_the_page_and_torn_ones_are_linked(tmp_path):
    for category in ("cup", "plate"):
        two_models(tmp_path, category=category)
    records = records_of(tmp_path)
    sheets = {}
    for record in records:
        sheet = record.folder / "stress" / "contact_sheet.jpg"
        category = record.identity["categories"][0]
        sheets[category] = sheet
        Image.new("RGB", (8, 8)).save(sheet)
        if category == "plate":
            sheet.write_bytes(sheet.read_bytes()[:40])
    shown = report_data("s", records, base=tmp_path)["robustness"]["sheets"]
    assert [one["cell"] for one in shown] == ["mvtec/cup", "mvtec/plate"]
    assert shown[0]["image"].startswith("data:image/jpeg;base64,")
    assert shown[1]["image"] is None
    assert (tmp_path / shown[1]["href"]).is_file()

"""Which model to deploy: what is chosen, under which limits, and that every surface says the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import write_mvtec
from fake_parts import measured, part_trial
from fake_store import fake_record, write_record

from adray.__main__ import main
from adray.audit import FreshScores, recalibrate
from adray.config_file import load_sweep
from adray.decide import decide
from adray.decisions.decision import (
    DECIDED,
    NO_WISHES,
    NOT_JUDGED,
    NOTHING_FITS,
    ONLY,
    TEAM,
    UNDECIDED,
    Wishes,
)
from adray.decisions.teams import StoredTeam, read_teams
from adray.decisions.text import decision_json, decision_text, summary
from adray.ensembles.build import TeamRequest, build_team, pools_of
from adray.ensembles.candidates import Wanted, find_candidates
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.results.current import view_store
from adray.results.store import read_trial
from adray.results.trial_files import read_judged_images, read_scores
from adray.settings import absolute_settings, get_globals
from adray.sweep.assignment import assign
from adray.sweep.plan import make_plan
from adray.sweep.worker import run_assignment
from adray.thresholds import make_promise, normals_needed

ENGLISH = load_catalogue("en")


def decided(root, wishes=NO_WISHES, **more):
    """The one decision of a store."""
    (decision,) = decide(view_store(root).shown(everything=False), wishes, **more)
    return decision


def text_of(decision, language="en"):
    return decision_text(decision, load_catalogue(language))


# What is chosen


def test_a_model_is_its_seeds_and_the_median_one_is_deployed(tmp_path):
    lucky = [part_trial(tmp_path, "lucky", distance, s) for s, distance in enumerate((6, 0, 0))]
    steady = [part_trial(tmp_path, "steady", distance, s) for s, distance in enumerate((4, 6, 5))]
    decision = decided(tmp_path)
    assert decision.state == DECIDED
    assert decision.chosen.name == "steady"
    aurocs = [record.result["metrics"]["image_auroc"] for record in steady]
    assert decision.chosen.place == steady[int(np.argsort(aurocs)[1])].folder
    assert decision.chosen.value == pytest.approx(np.mean(aurocs))
    best = max(lucky + steady, key=lambda record: record.result["metrics"]["image_auroc"])
    assert best.result["metrics"]["image_auroc"] >= max(aurocs)


def test_of_two_seeds_the_lower_is_deployed_and_one_without_a_checkpoint_never(tmp_path):
    part_trial(tmp_path, "padim", 2.0, 0, checkpoint=False)
    part_trial(tmp_path, "padim", 1.0, 1)
    part_trial(tmp_path, "padim", 3.0, 2)
    assert decided(tmp_path).chosen.seed in (1, 2)
    part_trial(tmp_path / "two", "padim", 3.0, 0)
    part_trial(tmp_path / "two", "padim", 1.0, 1)
    assert decided(tmp_path / "two").chosen.seed == 1


def test_what_cannot_be_told_apart_is_undecided_and_the_cheaper_is_named(tmp_path):
    measured(part_trial(tmp_path, "padim", 1.5), 40)
    measured(part_trial(tmp_path, "patchcore", 1.6), 90)
    part_trial(tmp_path, "poor", -0.5)
    decision = decided(tmp_path)
    assert decision.state == UNDECIDED
    assert {option.name for option in decision.tied} == {"padim", "patchcore"}
    assert decision.chosen.name == "patchcore"
    assert decision.cheaper.name == "padim"
    assert sum(option.wins for option in decision.options) == pytest.approx(1)
    text = text_of(decision)
    assert "padim is cheaper: 40 ms an image instead of 90" in text


def test_an_undecided_part_says_how_many_more_images_would_settle_it(tmp_path):
    for name, ms in (("padim", 40), ("patchcore", 90)):
        measured(part_trial(tmp_path, name, 1.5), ms)
    decision = decided(tmp_path)
    assert decision.state == UNDECIDED
    assert decision.images.normal == decision.images.anomalous == 40
    settled = replace(decision, images_factor=2.51)
    assert "About 61 more good and 61 more defective test images" in summary(settled, ENGLISH)[0]
    hopeless = replace(decision, images_factor=100.0)
    assert "more good and" not in summary(hopeless, ENGLISH)[0]


def test_one_candidate_is_deployed_as_the_only_one(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    decision = decided(tmp_path)
    assert decision.state == ONLY
    assert decision.chosen.place == record.folder
    text = text_of(decision)
    assert "the only candidate" in text
    assert "how sure" not in text
    assert "another one may change the order" in text


def test_counts_are_those_of_scores_above_the_promised_threshold_by_type(tmp_path):
    part_trial(tmp_path, "padim", 2.0)
    decision = decided(tmp_path)
    scores = read_scores(decision.chosen.place)
    test = scores[scores["split"] == "test"]
    held_out = scores[scores["split"] == "holdout"]["pred_score"].sort_values().to_list()
    limit = held_out[94]  # the 95th of 99: r = ceil(100 * 0.95)
    passes = test["pred_score"] <= limit
    verdicts = decision.chosen.verdicts
    assert verdicts.missed == (passes & (test["label"] == 1)).sum()
    assert verdicts.alarms == (~passes & (test["label"] == 0)).sum()
    assert sum(one.missed for one in verdicts.by_type) == verdicts.missed
    assert {one.name: one.images for one in verdicts.by_type} == {"hole": 20, "scratch": 20}


def test_older_settings_and_failed_trials_are_no_candidates(tmp_path):
    part_trial(tmp_path, "padim", 2.0)
    write_record(fake_record(tmp_path, "stfpm", "cup", auroc=None))
    decision = decided(tmp_path)
    assert [option.name for option in decision.options] == ["padim"]
    assert (decision.trials, decision.failed) == (1, 1)
    assert "1 failed" in text_of(decision)


def test_two_settings_of_one_model_are_two_candidates(tmp_path):
    records = []
    for seed, (lr, distance) in enumerate(((0.1, 1.0), (0.2, 6.0))):
        records.append(part_trial(tmp_path, "padim", distance, seed, model={"lr": lr}))
    (decision,) = decide(records)
    assert len(decision.options) == 2
    assert "model.lr=0.2" in decision.chosen.name


# Limits and costs


def test_a_limit_of_time_leaves_the_slow_one_out_and_says_why(tmp_path):
    measured(part_trial(tmp_path, "fast", 1.0), 20)
    measured(part_trial(tmp_path, "slow", 5.0), 80)
    decision = decided(tmp_path, Wishes(latency_ms=50))
    assert (decision.state, decision.chosen.name) == (ONLY, "fast")
    text = text_of(decision)
    assert "the only one of 2 candidates" in text
    assert "slow: it takes 80 ms an image and 50 are allowed" in text


def test_where_nothing_fits_the_nearest_is_named_with_the_limit_to_relax(tmp_path):
    measured(part_trial(tmp_path, "near", 1.0), 60, 200)
    measured(part_trial(tmp_path, "far", 5.0), 200, 200)
    measured(part_trial(tmp_path, "two", 5.0), 55, 2000)
    decision = decided(tmp_path, Wishes(latency_ms=50, memory_mb=500))
    assert (decision.state, decision.chosen.name) == (NOTHING_FITS, "near")
    assert "relax --latency-ms to 60" in text_of(decision)
    assert not decision.is_answer


def test_what_was_not_measured_on_the_device_is_not_said_to_be_fast_enough(tmp_path):
    measured(part_trial(tmp_path, "padim", 2.0), 1, kind="cuda")
    decision = decided(tmp_path, Wishes(latency_ms=50, kind="cpu"))
    assert decision.state == NOTHING_FITS
    assert "was not measured there" in text_of(decision)
    assert decided(tmp_path, Wishes(latency_ms=50, kind="cuda")).state == ONLY


def test_the_same_model_of_another_part_stands_for_one_that_was_not_measured(tmp_path):
    measured(part_trial(tmp_path, "padim", 2.0, category="plate"), 30)
    part_trial(tmp_path, "padim", 2.0, category="cup")
    part_trial(tmp_path, "stfpm", 2.0, category="cup")
    cup, _ = decide(view_store(tmp_path).shown(everything=False))
    costs = {option.name: (option.cost.ms, option.cost_of) for option in cup.options}
    assert costs == {"padim": (30, "mvtec/plate"), "stfpm": (None, "")}


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_a_rate_of_false_alarms_is_promised_by_the_calibration_normals(rate, tmp_path):
    record = part_trial(tmp_path, "padim", 3.0)
    decision = decided(tmp_path, Wishes(false_alarms=rate))
    calibration = read_judged_images(record.folder, is_drawn=False).calibration
    assert decision.chosen.promise == make_promise(calibration, rate)
    assert f"--false-alarms {rate:g}" in text_of(decision)


def test_at_a_rate_the_model_that_catches_more_wins_whatever_its_auroc_is(tmp_path):
    normal = np.linspace(-1, 1, 40)
    # One finds 30 of 40 for sure and the rest worse than nothing, the other all of them a little.
    steep = np.r_[np.full(30, 9.0), np.full(10, -9.0)]
    flat = np.full(40, 1.5)
    part_trial(tmp_path, "steep", normal=normal, defects=steep)
    part_trial(tmp_path, "flat", normal=normal, defects=flat)
    assert decided(tmp_path).chosen.name == "flat"
    assert decided(tmp_path, Wishes(false_alarms=0.01)).chosen.name == "steep"


def test_too_few_calibration_normals_for_the_rate_say_how_many_are_missing(tmp_path):
    part_trial(tmp_path, "padim", 2.0, held_out=30)
    decision = decided(tmp_path, Wishes(false_alarms=0.01))
    assert decision.state == NOTHING_FITS
    assert decision.normals_missing == 99 - 30
    text = text_of(decision)
    assert "69 more, held out, let 1 % be promised, 269 more with confidence" in text


@pytest.mark.parametrize(
    "wishes",
    [Wishes(false_alarms=0.1), Wishes(miss_cost=1, alarm_cost=1), NO_WISHES],
    ids=["caught", "cost", "drawn"],
)
def test_where_calibration_normals_choose_the_promise_holds_for_all_that_were_compared(
    wishes, tmp_path
):
    """Thresholds stand on them, and what drawn defects are told from is nothing else."""
    is_drawn = wishes is NO_WISHES
    for seed in (0, 1):
        part_trial(tmp_path, "padim", 2.0, seed, is_drawn=is_drawn)
    record = part_trial(tmp_path, "stfpm", 1.0, is_drawn=is_drawn)
    retried(record, 40)  # a search chose it before
    decision = decided(tmp_path, wishes)
    place = decision.chosen.place
    calibration = read_judged_images(place, is_drawn=is_drawn).calibration
    rate = wishes.false_alarms or 0.05
    assert decision.chosen.promise == make_promise(calibration, rate, 42)
    assert decision.normals_missing == max(0, normals_needed(rate, 42) - 99)
    text = text_of(decision)
    assert "whichever of the 42 trials they chose among" in text
    assert text.count("--tried 42") == 2
    assert "42개 가운데" in text_of(decision, "ko")


def retried(record, tried):
    """Let a trial on disk be the chosen one of several."""
    thresholds = record.result["thresholds"]
    thresholds["promise"] = {**thresholds["promise"], "tried": tried}
    write_record(record)


def test_labels_of_the_test_choose_without_touching_a_promise(tmp_path):
    for name, distance in (("padim", 2.0), ("stfpm", 1.0)):
        part_trial(tmp_path, name, distance)
    decision = decided(tmp_path)
    assert decision.chosen.promise.tried == 1
    assert "--tried" not in text_of(decision)


def test_a_trial_that_a_search_chose_stays_so_at_another_rate(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    retried(record, 40)
    assert decided(tmp_path, Wishes(false_alarms=0.2)).chosen.promise.tried == 40


def test_costs_of_errors_decide_and_are_what_a_person_would_count(tmp_path):
    normal = np.zeros(40)
    part_trial(tmp_path, "careful", normal=np.r_[normal[:20], np.full(20, 9.0)], defects=[9.0] * 40)
    part_trial(tmp_path, "lax", normal=normal, defects=[9.0] * 30 + [-9.0] * 10)
    dear = decided(tmp_path, Wishes(miss_cost=20, alarm_cost=1))
    assert dear.chosen.name == "careful"
    # Half of the test is normal, of which half is rejected at a cost of 1.
    assert dear.chosen.value == pytest.approx(-0.25)
    cheap = decided(tmp_path, Wishes(miss_cost=1, alarm_cost=20))
    assert cheap.chosen.name == "lax"
    assert cheap.chosen.value == pytest.approx(-0.125)
    rare = decided(tmp_path, Wishes(miss_cost=20, alarm_cost=1, defect_rate=0.01))
    assert rare.chosen.name == "lax"
    assert rare.chosen.value == pytest.approx(-0.01 * 20 * 0.25)


# What cannot be judged, and honesty


def test_normals_alone_decide_nothing_and_say_what_is_lacking(tmp_path):
    part_trial(tmp_path, "padim", defects=())
    decision = decided(tmp_path)
    assert (decision.state, decision.chosen) == (NOT_JUDGED, None)
    assert "no defective images" in summary(decision, ENGLISH)[0]
    assert not decision.is_answer


def test_drawn_defects_judge_where_there_are_no_others_and_it_says_so(tmp_path):
    part_trial(tmp_path, "padim", 2.0, is_drawn=True)
    decision = decided(tmp_path)
    assert decision.chosen.verdicts.alarms is None
    assert "drawn on held-out normals" in text_of(decision)
    assert "drawn defects" in summary(decision, ENGLISH)[1]


def test_trials_of_drawn_defects_are_not_compared_with_those_of_real_ones(tmp_path):
    part_trial(tmp_path, "padim", 1.0)
    part_trial(tmp_path, "stfpm", 9.0, is_drawn=True)
    assert decided(tmp_path).chosen.name == "padim"


def test_without_calibration_normals_nothing_is_promised(tmp_path):
    part_trial(tmp_path, "padim", 2.0, held_out=0)
    decision = decided(tmp_path)
    assert decision.chosen.verdicts is None
    assert "nothing is promised" in text_of(decision)
    assert decided(tmp_path, Wishes(false_alarms=0.05)).state == NOT_JUDGED


def test_doubts_are_said(tmp_path):
    settings = {"data": {"mvtec": {"accept": ["identical_pictures"]}}}
    for name, distance in (("padim", 0.2), ("stfpm", 0.1)):
        record = part_trial(tmp_path, name, distance, images=8, held_out=12, checkpoint=False)
        record = replace(
            record,
            trial={**record.trial, "assignment": {"settings": settings, "leaky": True}},
            result={**record.result, "weights": "random", "image_auroc_interval": [0.3, 0.8]},
        )
        write_record(record)
    decision = decided(tmp_path)
    keys = {note.key.removeprefix("decide note ") for note in decision.notes}
    assert keys == {
        "untrained",
        "accepted",
        "leaky",
        "chosen",
        "few calibration",
        "chance",
        "few normals",
        "one seed",
        "no checkpoint",
    }
    assert "predict" not in text_of(decision)
    assert "UNTRAINED" in summary(decision, ENGLISH)[2]


def test_more_false_alarms_than_promised_are_said_unless_chance_explains_them(tmp_path):
    part_trial(tmp_path, "padim", normal=[9.0] * 8 + [-9.0] * 32, defects=[9.0] * 40)
    assert "8 of 40 good test images ring" in text_of(decided(tmp_path))
    part_trial(tmp_path / "b", "padim", normal=[9.0] * 3 + [-9.0] * 37, defects=[9.0] * 40)
    assert "ring" not in text_of(decided(tmp_path / "b"))


def test_a_trial_that_an_audit_calibrated_anew_says_that_its_promise_is_older(tmp_path):
    record = part_trial(tmp_path, "padim", 2.0)
    assert "calibrated it anew" not in text_of(decided(tmp_path))
    recalibrate(record.folder, FreshScores((0.0,) * 30, (), ()), 0.1)
    assert "calibrated it anew" in text_of(decided(tmp_path))


def test_scores_that_cannot_be_read_cost_their_model_its_place_and_nobody_else(tmp_path):
    part_trial(tmp_path, "padim", 2.0)
    broken = part_trial(tmp_path, "stfpm", 2.0)
    (broken.folder / "scores.parquet").write_bytes(b"torn")
    decision = decided(tmp_path)
    assert decision.chosen.name == "padim"
    assert f"stfpm {broken.id8}: scores.parquet is missing" in text_of(decision)
    assert decision.models == 2


# Teams


def team_of(root, gain, error):
    """The team of two trials, with a gain that was made up."""
    request = TeamRequest(root, Wanted(), 2, 2, "image_auroc", False, root / "ensembles")
    (pool,) = pools_of(find_candidates(root, Wanted()), together=False)
    build_team(pool, request)
    (team,) = read_teams(root)
    figures = {"cross_validated": {"gain": gain, "gain_standard_error": error}}
    return StoredTeam(team.file, replace(team.ensemble, figures=figures))


def test_a_team_is_deployed_where_its_gain_is_more_than_its_error(tmp_path):
    for name, ms in (("padim", 40), ("stfpm", 30)):
        measured(part_trial(tmp_path, name, 1.0), ms)
    team = team_of(tmp_path, 0.05, 0.01)
    decision = decided(tmp_path, teams=[team])
    assert (decision.state, decision.chosen.place) == (TEAM, team.file)
    assert decision.chosen.cost.ms == 70
    assert not decision.single.is_team
    scores = json.loads(team.file.read_text())["calibration"]
    assert decision.chosen.promise == make_promise(np.array(scores), 0.05)

    within = decided(tmp_path, teams=[team_of(tmp_path, 0.01, 0.05)])
    assert within.state == UNDECIDED
    assert "not worth its cost" in text_of(within)
    slow = decided(tmp_path, Wishes(latency_ms=50), teams=[team])
    assert slow.state == UNDECIDED
    assert "does not keep to the limits" in text_of(slow)


def test_the_team_of_a_plain_folder_is_a_candidate_for_its_only_part(tmp_path):
    for name in ("padim", "stfpm"):
        part_trial(tmp_path, name, 1.0, category="all")
    team = team_of(tmp_path, 0.05, 0.01)
    folder = replace(team.ensemble, dataset="mvtec", category="mvtec")
    (decision,) = decide(
        view_store(tmp_path).shown(everything=False),
        teams=[StoredTeam(team.file, folder)],
    )
    assert (decision.part, decision.state) == ("mvtec", TEAM)


def test_a_team_of_trials_that_count_no_more_is_not_deployed(tmp_path):
    part_trial(tmp_path, "padim", 1.0)
    part_trial(tmp_path, "stfpm", 1.0)
    team = team_of(tmp_path, 0.05, 0.01)
    other = replace(team.ensemble.members[0], id="f" * 64)
    members = (other, *team.ensemble.members[1:])
    stale = StoredTeam(team.file, replace(team.ensemble, members=members))
    decision = decided(tmp_path, teams=[stale])
    assert not decision.chosen.is_team
    assert "not the trials of today" in text_of(decision)


# How it is said


@pytest.fixture
def store(tmp_path):
    """A store of two parts, one undecided and one decided."""
    for name, distance in (("padim", 1.5), ("patchcore", 1.6)):
        part_trial(tmp_path / "store", name, distance, category="cup")
    for name, distance in (("padim", 4.0), ("patchcore", 0.0)):
        part_trial(tmp_path / "store", name, distance, category="plate")
    return tmp_path / "store"


def printed(capsys, *words, code=0):
    assert main(list(words)) == code
    return capsys.readouterr().out


@pytest.mark.parametrize("language", LANGUAGES)
def test_status_page_and_command_say_the_same(language, store, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", f"{language}_KR.UTF-8")
    decisions = decide(view_store(store).shown(everything=False))
    status = printed(capsys, "status", str(store)).splitlines()
    page = Path(printed(capsys, "report", str(store)).strip()).read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    long = printed(capsys, "decide", str(store))
    values = json.loads(printed(capsys, "decide", str(store), "--format", "json"))

    said = []
    for decision in decisions:
        said += summary(decision, load_catalogue(language))
    assert status[-len(said) :] == said
    on_page = [line for one in data["decisions"] for line in one[language]["lines"]]
    assert on_page == said
    assert [line for one in values for line in one["summary"]] == said
    for line in said:
        assert all(part in long for part in line.strip().split("; "))
    assert [one["trial"] for one in data["decisions"]] == [str(d.chosen.place) for d in decisions]


def test_the_pictures_of_the_page_are_of_the_trial_that_is_decided_for(tmp_path):
    from adray.decisions.text import page_summaries
    from adray.results.report import report_data

    records = []
    for seed, distance in enumerate((6.0, 1.0, 0.9)):
        record = part_trial(tmp_path, "padim", distance, seed)
        picture = {"file": f"{seed}.png", "path": "a/b/c.png", "verdict": "miss", "pred_score": 1.0}
        records.append(replace(record, result={**record.result, "pictures": [picture]}))
    decisions = decide(records)
    data = report_data("s", records, base=tmp_path, decisions=page_summaries(decisions))
    shown = [Path(picture["href"]).stem for picture in data["linked"] + data["pictures"]]
    assert shown == [str(decisions[0].chosen.seed)]
    assert shown != ["0"]


def test_each_language_has_a_sentence_for_whatever_is_decided(tmp_path, store):
    part_trial(tmp_path / "odd", "padim", defects=())
    wishes = Wishes(false_alarms=0.001, latency_ms=1, memory_mb=1)
    decisions = decide(view_store(store).shown(everything=False), wishes)
    decisions += decide(view_store(tmp_path / "odd").shown(everything=False))
    for language in LANGUAGES:
        for decision in decisions:
            assert "{" not in text_of(decision, language)
            assert re.search("[가-힣]", text_of(decision, language)) or language == "en"
            json.dumps(decision_json(decision, load_catalogue(language)), default=str)


def test_a_watched_status_shows_what_finished_since_and_ends_when_interrupted(
    store, capsys, monkeypatch
):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt
        part_trial(store, "stfpm", 1.0, category="cup")

    monkeypatch.setattr("adray.cli.status.time.sleep", sleep)
    text = printed(capsys, "status", str(store), "--watch", "3")
    assert looks == [3, 3]
    assert re.findall(r"^(\d) done$", text, re.M) == ["4", "5"]
    assert "\x1b" not in text


def test_markdown_has_a_section_for_each_part(store, capsys):
    text = printed(capsys, "decide", str(store), "--format", "markdown", "--lang", "ko")
    assert re.findall("^## (.*)$", text, re.M) == ["mvtec/cup", "mvtec/plate"]
    assert "미검" in text
    assert "과검" in text


def test_one_part_may_be_asked_for_by_its_category(store, capsys):
    text = printed(capsys, "decide", str(store), "--category", "plate")
    assert text.startswith("mvtec/plate: use padim")
    assert "mvtec/cup" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--category", "mvtec/plat"], "did you mean 'mvtec/plate'"),
        (["--false-alarms", "5"], "--false-alarms is 5"),
        (["--latency-ms", "0"], "--latency-ms is 0"),
        (["--miss-cost", "20"], "give both"),
        (["--defect-rate", "0.1"], "--miss-cost and --alarm-cost"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(words, sentence, store, capsys):
    assert main(["decide", str(store), *words]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.out == ""


def test_an_answer_that_keeps_to_no_limit_ends_with_1(store, capsys, monkeypatch):
    monkeypatch.setattr("adray.cli.measure.main", lambda words: 1)  # measures nothing
    text = printed(capsys, "decide", str(store), "--latency-ms", "1", code=1)
    assert "not measured" in text


@pytest.mark.parametrize("asked_for", [[], ["--measure"]])
def test_a_limit_measures_the_candidates_that_nobody_measured(
    store, capsys, monkeypatch, asked_for
):
    asked = []

    def measure(words):
        asked.append(words)
        print("a table")
        for record in view_store(store).records:
            if record.id8 in words:
                measured(record, 5)
        return 0

    monkeypatch.setattr("adray.cli.measure.main", measure)
    words = ("--latency-ms", "9", "--device", "cpu", *asked_for, "--format", "json")
    values = json.loads(printed(capsys, "decide", str(store), *words))
    assert asked[0][-2:] == ["--device", "cpu"]
    assert set(asked[0][2:-2]) == {record.id8 for record in view_store(store).records}
    assert [value["chosen"]["cost"]["ms"] for value in values] == [5, 5]


def test_neither_torch_nor_ray_is_loaded_to_decide(store):
    code = (
        "import sys; from adray.__main__ import main; "
        f"assert main(['decide', {str(store)!r}]) == 0; "
        "assert not {'torch', 'ray', 'timm', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_folder_of_the_choice_is_a_trial_that_predict_would_take(store):
    for decision in decide(view_store(store).shown(everything=False)):
        assert read_trial(decision.chosen.place) is not None


def test_the_last_lines_of_a_sweep_are_what_status_and_the_page_say(tmp_path, capsys):
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("cup",), train=9, good=4, defects=4, size=32
    )
    here = get_globals()
    names = ("dataset_dir", "output_dir", "cache_dir")
    file = tmp_path / "s.yaml"
    settings = {name: getattr(here, name) for name in names} | {"plugins": ["toy_plugin"]}
    grid = {"models": ["toy-ok"], "datasets": {"mvtec": "each"}, "seeds": [0, 1, 2]}
    file.write_text(json.dumps({"name": "s", "settings": settings, "grid": grid, "keep": "best"}))
    config = load_sweep(str(file), [])
    absolute = absolute_settings(config.settings)
    for planned in make_plan(config, absolute).trials:
        run_assignment(assign(planned, absolute, limit_seconds=3600.0, save_maps=0), "cpu")
    capsys.readouterr()

    # Nothing is left to run, so that no Ray starts.
    console = printed(capsys, "sweep", str(file), "--num-gpus", "0").splitlines()
    status = printed(capsys, "status", here.output_dir).splitlines()
    page = Path(here.output_dir, "sweeps", "s", "report.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    (on_page,) = data["decisions"]
    assert on_page["en"]["lines"][0].startswith("mvtec/cup: use toy-ok")
    lines = on_page["en"]["lines"]
    assert console[-len(lines) :] == status[-len(lines) :] == lines

    # The checkpoint that stays is that of the trial which all of them name.
    (checkpoint,) = Path(here.output_dir).rglob("model_*.pth")
    assert str(checkpoint.parent) == on_page["trial"]
    assert str(checkpoint.parent) in console[-1]

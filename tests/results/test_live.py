"""The table of a sweep that runs, as the console and `status --watch` show it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from fake_store import fake_record, write_record

from adray.files import write_json
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.language.columns import display_width, fit, pad
from adray.results.live import (
    LiveReader,
    LiveTrial,
    duration,
    end_news,
    live_lines,
    look_from_afar,
    planned_trials,
    row_names,
    running_sweeps,
    summary_line,
    write_news,
)

EN = load_catalogue("en")


def planned(root, parts=("bottle", "wood"), models=("padim", "stfpm"), seeds=(1,)):
    """Records of trials that could be there, with their places in the table."""
    records = [fake_record(root, m, p, s) for p in parts for m in models for s in seeds]
    return records, [
        LiveTrial(r.identity["categories"][0], r.identity["configuration"], r.folder)
        for r in records
    ]


def run(record, log):
    """Let a trial run: its working folder is there, with a log."""
    partial = record.folder.with_name(f".{record.folder.name}.host-{12345}.partial")
    partial.mkdir(parents=True)
    (partial / "trial.json").write_text("{}")
    (partial / "log.txt").write_text(
        "".join(f"2026-01-01 00:00:00,000 INFO {line}\n" for line in log)
    )


def test_each_state_stands_in_its_cell(tmp_path):
    (done, failed, running, _), trials = planned(tmp_path)
    write_record(done)
    write_record(fake_record(tmp_path, "stfpm", "bottle", 1, auroc=None))
    assert failed.folder.is_dir()
    run(running, ["stage loading", "stage fitting", "epoch 3/50  loss 0.1"])
    head, padim, stfpm, *rest = live_lines(LiveReader(trials).look(80.0, 50.0), 100, 30, EN)
    assert head.split() == ["bottle", "wood"]
    assert padim.split()[:2] == ["padim", "0.900"]
    assert "> epoch 3/50 0 s" in padim
    assert stfpm.split() == ["stfpm", "failed", "."]
    assert rest == [
        "1/4 done, 1 failed · 1 min 20 s gone · about 50 s left",
        "failed: 1 x stfpm failed on purpose",
    ]


def test_failures_of_one_cause_are_one_line(tmp_path):
    for part in "abcde":
        write_record(fake_record(tmp_path, "stfpm", part, 1, auroc=None))
    _, trials = planned(tmp_path, tuple("abcde"), ("stfpm",))
    lines = live_lines(LiveReader(trials).look(1.0, None), 100, 30, EN)
    assert lines[-1] == "failed: 5 x stfpm failed on purpose"


def test_seeds_are_one_figure_with_how_many_are_done(tmp_path):
    records, trials = planned(tmp_path, ("bottle",), ("padim",), (1, 2, 3))
    for record, auroc in zip(records[:2], (0.5, 0.7), strict=True):
        write_record(fake_record(tmp_path, "padim", "bottle", record.identity["seed"], auroc))
    lines = live_lines(LiveReader(trials).look(1.0, None), 100, 30, EN)
    assert lines[1].split() == ["padim", "0.600", "2/3"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (81, 10), (120, 50), (250, 24)])
def test_a_table_of_any_size_fits_into_the_terminal(tmp_path, width, height, language):
    trials = []
    for part in range(30):
        for model in range(44):
            folder = tmp_path / "store" / f"{100 * part + model:08x}"
            name = f"제품_{part}_아주 긴 이름을 가진 부품"
            trials.append(LiveTrial(name, f"model-with-a-long-name-{model}", folder))
    run(trials[-1], ["stage fitting", "features 12345/99999"])
    lines = live_lines(LiveReader(trials).look(1e6, 1e6), width, height, load_catalogue(language))
    assert len(lines) <= height
    assert max(map(display_width, lines)) < width
    # What runs is shown, whatever gives way.
    assert any("12345/99999" in line or "…" in line for line in lines)
    assert any("43" in line for line in lines)


def test_hangul_takes_two_columns_and_is_cut_between_letters():
    assert display_width("양품 ok") == 7
    assert fit("양품입니다", 6) == "양품…"
    assert display_width(pad("양품", 7)) == 7
    assert [fit("abc", n) for n in (0, 1, 2, 3)] == ["", "…", "a…", "abc"]


def test_a_duration_has_its_units():
    assert [duration(s, EN) for s in (0.4, 73, 3599.6, 7500)] == [
        "0 s", "1 min 13 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert duration(73, load_catalogue("ko")) == "1분 13초"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe torn", b"x" * 10_000, None])
def test_a_log_that_says_nothing_shows_a_trial_that_runs(tmp_path, text):
    (record,), trials = planned(tmp_path, ("bottle",), ("padim",))
    run(record, [])
    log = next(record.folder.parent.glob(".*.partial")) / "log.txt"
    log.unlink() if text is None else log.write_bytes(text)
    view = LiveReader(trials).look(1.0, None)
    assert live_lines(view, 80, 24, EN)


def test_another_machine_reads_plan_and_note_and_sees_the_same(tmp_path):
    records, trials = planned(tmp_path)
    write_record(records[0])
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    rows = []
    for record in records:
        place = record.folder.relative_to(tmp_path).as_posix()
        rows.append({"cell": "/".join(place.split("/")[:3]), "state": "new", "folder": place})
    write_json(folder / "plan.json", {"trials": rows})
    write_news(folder, 10.0, 60.0)
    assert list(running_sweeps(tmp_path)) == [folder]
    view = look_from_afar(LiveReader(planned_trials(folder, tmp_path)), folder)
    here = LiveReader(trials).look(10.0, 60.0)
    assert (view.done, view.trials) == (here.done, here.trials) == (1, 4)
    assert 59 <= view.left <= 60
    end_news(folder)
    assert not list(running_sweeps(tmp_path))
    assert look_from_afar(LiveReader([]), folder) is None


def test_a_note_that_is_old_says_that_the_sweep_may_have_ended(tmp_path):
    write_json(tmp_path / "now.json", {"at": time.time() - 1000, "gone": 1.0, "left": 5.0})
    view = look_from_afar(LiveReader([]), tmp_path)
    assert "may have ended" in summary_line(view, EN)


def test_a_plan_of_an_older_version_shows_no_table(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"trials": [{"cell": "a/b/c", "state": "new"}]}))
    assert planned_trials(tmp_path, tmp_path) == []
    assert planned_trials(tmp_path / "nowhere", tmp_path) == []


def test_a_part_has_one_name_and_a_condition_stands_with_its_model():
    assert row_names("my part/all/padim", "") == ("my part", "padim")
    assert row_names("screw/screw/padim", "") == ("screw", "padim")
    assert row_names("mvtec/wood/padim", "k_shot=4") == ("mvtec/wood", "padim k_shot=4")


def test_status_watch_ends_with_ctrl_c_and_prints_plain_lines_without_a_terminal(tmp_path):
    records, _ = planned(tmp_path, ("bottle",), ("padim",))
    folder = tmp_path / "sweeps" / "s"
    folder.mkdir(parents=True)
    place = records[0].folder.relative_to(tmp_path).as_posix()
    trial = {"cell": "mvtec/bottle/padim", "state": "new", "folder": place}
    write_json(folder / "plan.json", {"trials": [trial]})
    write_news(folder, 10.0, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "adray", "status", str(tmp_path), "--watch", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A test run in the background of a shell ignores it, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines = [process.stdout.readline().rstrip("\n") for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "0/1 done, 0 failed" in lines[2]
    assert max(map(len, lines)) <= 80
    assert (process.returncode, errors) == (0, "")

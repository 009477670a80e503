"""What is printed, the events, the tables and the report agree with the store, whatever its file system fails at.

Ray and the models are left out: a trial copies the files of one that ran.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from failing_calls import CALLS, CODES, fail
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray import file_system
from adray.config import SweepConfig, build
from adray.errors import InputError
from adray.language.catalogue import load_catalogue
from adray.results.store import all_trials
from adray.settings import absolute_settings
from adray.sweep import tuner, worker
from adray.sweep.assignment import Assignment, Outcome
from adray.sweep.driver import _finish
from adray.sweep.plan import make_plan
from adray.sweep.resources import Site
from adray.sweep.rounds import Rounds, run_rounds
from adray.sweep.sweep import RunOptions, Sweep
from adray.sweep.tuner import Source

SITE = Site(gpus=0, cpus=2, memory=8 * 10**9)
USUAL = [
    ("rename", "EIO"),
    ("fsync of files", "ENOSPC"),
    ("fsync of folders", "ESTALE"),
]
OTHERS = [(call, code) for call in CALLS for code in CODES if (call, code) not in USUAL]
FAULTS = [
    *([fault] for fault in USUAL),
    [("rename", "ENOSYS"), ("fsync of folders", "EIO")],
    *(pytest.param([fault], marks=pytest.mark.slow) for fault in OTHERS),
]


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """The files that one trial has left."""
    root = tmp_path_factory.mktemp("products")
    sweep = sweep_in(root)
    assignment = next(trial for trial in Rounds(sweep, SITE).next_round() if "toy-ok" in trial.cell)
    partial = root / "partial"
    partial.mkdir()
    worker.use_settings(sweep.settings)
    worker._run(assignment, partial, "cpu", None)
    return partial


@pytest.fixture
def copied(products, monkeypatch):
    """Trials that copy these files, or fail."""

    def run(assignment: Assignment, partial: Path, device: str, report: object) -> None:
        if assignment.configuration == "toy-raise":
            raise ValueError("toy went wrong")
        for file in products.iterdir():
            if file.name not in ("trial.json", "log.txt"):
                shutil.copy(file, partial / file.name)

    monkeypatch.setattr(worker, "_run", run)


def sweep_in(root: Path) -> Sweep:
    """A sweep of two trials that work and two that fail, with its store opened."""
    write_mvtec(
        root / "datasets" / "mvtec",
        categories=("bottle", "wood"),
        train=6,
        good=3,
        defects=4,
        size=48,
    )
    values = {
        "name": "s",
        "save_maps": 0,
        "settings": toy_settings(root) | {"backbone_dir": str(root / "backbones")},
        "grid": {"models": ["toy-ok", "toy-raise"], "datasets": {"mvtec": "each"}},
    }
    config = build(SweepConfig, values, "")
    settings = absolute_settings(config.settings)
    sweep = Sweep(config, settings, RunOptions(), make_plan(config, settings))
    sweep.open_store()
    return sweep


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch):
    monkeypatch.setattr(tuner, "run_trials", run_here)


def run_here(source: Source, count: int, scratch: Path, *, watched: bool) -> None:
    """Run trials one after the other in this process, as `adray.sweep.tuner.run_trials` does on Ray."""
    while placed := source.next_trial():
        source.ended(placed.assignment, worker.run_assignment(placed.assignment, "cpu"))


def check_that_all_agree(sweep: Sweep, printed: str) -> Counter:
    """Compare all that a sweep says with its store, and give the number of trials in each state."""
    records = list(all_trials(sweep.settings.output_dir))
    done = {"/".join(record.folder.parts[-4:-1]) for record in records if record.status == "done"}
    for record in records:
        names = {file.name for file in record.folder.iterdir()}
        assert ("scores.parquet" in names) == (record.status == "done")

    said: dict[str, str] = {}
    for line in printed.splitlines():
        if line.startswith(("done ", "FAILED ")):
            state, cell = line.split()[:2]
            said[cell.rstrip(":")] = state.lower()
    events = [json.loads(line) for line in (sweep.folder / "events.jsonl").read_text().splitlines()]
    happened = {event["cell"]: event["event"] for event in events if "cell" in event}
    cells = {trial.cell for trial in sweep.plan.trials}
    expected = {cell: "done" if cell in done else "failed" for cell in cells}
    assert said == expected
    assert happened == expected

    counts = Counter(expected.values())
    end = {name: events[-1].get(name, 0) for name in counts}
    assert end == counts
    frame = pd.read_csv(sweep.folder / "leaderboard.csv")
    assert Counter(frame["status"]) == counts
    page = (sweep.folder / "report.html").read_text()
    assert page.count('"x":"done"') == counts["done"]
    assert page.count('"x":"failed"') == counts["failed"]
    assert printed.count("\nfailed: ") == counts["failed"]
    return counts


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_all_agree_on_a_file_system_that_fails_from_some_moment_on(
    faults, copied, tmp_path, monkeypatch, capsys
):
    sweep = sweep_in(tmp_path)
    with monkeypatch.context() as patch:
        for fault in faults:
            fail(patch, *fault)
        run_rounds(sweep, SITE)
    check_that_all_agree(sweep, "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys))


@pytest.mark.parametrize(
    "call", ["rename", *(pytest.param(call, marks=pytest.mark.slow) for call in CALLS[1:])]
)
def test_all_agree_and_all_is_done_on_a_file_system_that_does_not_know_a_call(
    call, copied, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(file_system, "_known", {})
    fail(monkeypatch, call, "ENOSYS")
    sweep = sweep_in(tmp_path)
    run_rounds(sweep, SITE)
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


def test_a_rename_that_was_done_and_reported_as_failed_is_a_result(
    copied, tmp_path, monkeypatch, capsys
):
    """As NFS may, where the answer of the server is lost."""
    sweep = sweep_in(tmp_path)
    rename = os.rename

    def lost(source, target):
        rename(source, target)
        if str(source).endswith(".partial"):
            raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lost)
        run_rounds(sweep, SITE)
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


@pytest.mark.parametrize("kind", ["crashed", pytest.param("failed", marks=pytest.mark.slow)])
def test_a_worker_that_dies_after_its_result_is_visible_has_a_result(
    kind, copied, tmp_path, monkeypatch, capsys
):
    run = worker.run_assignment

    def die(assignment: Assignment, device: str) -> Outcome:
        outcome = run(assignment, device)
        if outcome.status == "done":
            return Outcome(kind, "explained", "something happened on the way out")
        return outcome

    monkeypatch.setattr(worker, "run_assignment", die)
    sweep = sweep_in(tmp_path)
    run_rounds(sweep, SITE)
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


def test_what_ended_unheard_is_read_off_the_store(copied, tmp_path, monkeypatch, capsys):
    def end_everything(source: Source, count: int, scratch: Path, *, watched: bool) -> Exception:
        while (placed := source.next_trial()) is not None:
            worker.run_assignment(placed.assignment, "cpu")
        return RuntimeError("Ray ended everything")

    monkeypatch.setattr(tuner, "run_trials", end_everything)
    sweep = sweep_in(tmp_path)
    rounds = run_rounds(sweep, SITE)
    assert rounds.next_round() == []
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


def test_a_result_that_is_reported_and_not_in_the_store_is_computed_again(
    copied, tmp_path, monkeypatch, capsys
):
    run = worker.run_assignment
    lost = set()

    def lose(assignment: Assignment, device: str) -> Outcome:
        outcome = run(assignment, device)
        if outcome.status == "done" and assignment.cell not in lost:
            lost.add(assignment.cell)
            shutil.rmtree(assignment.folder)
        return outcome

    monkeypatch.setattr(worker, "run_assignment", lose)
    sweep = sweep_in(tmp_path)
    run_rounds(sweep, SITE)
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert len(lost) == 2
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


def test_what_cannot_be_decided_costs_neither_the_tables_nor_a_checkpoint(
    copied, tmp_path, monkeypatch, capsys
):
    def fail_to_decide(*_arguments, **_options):
        raise ValueError("a score that nobody foresaw")

    monkeypatch.setattr("adray.sweep.sweep.decide", fail_to_decide)
    sweep = sweep_in(tmp_path)
    sweep.config = replace(sweep.config, keep="best")
    run_rounds(sweep, SITE)
    before = set(tmp_path.rglob("model_*.pth"))
    capsys.readouterr()

    assert _finish(sweep, load_catalogue("en")) == 1

    assert "a score that nobody foresaw" in capsys.readouterr().err
    assert Counter(pd.read_csv(sweep.folder / "leaderboard.csv")["status"]) == {
        "done": 2,
        "failed": 2,
    }
    assert (sweep.folder / "report.html").read_text().count('"x":"done"') == 2
    assert before
    assert set(tmp_path.rglob("model_*.pth")) == before


class Refused:
    """Reads below a folder that the file system refuses, as `open` sees them."""

    def __init__(self, patch: pytest.MonkeyPatch, where: str, code: str) -> None:
        self.is_on = False
        before = open

        def refuse(path, *rest, **options):
            if self.is_on and re.search(where, str(path)) and Path(path).exists():
                number = getattr(errno, code)
                raise OSError(number, os.strerror(number), str(path))
            return before(path, *rest, **options)

        patch.setattr("builtins.open", refuse)


OF_TRIALS = r"/mvtec/[^/]+/toy-[a-z]+/[0-9a-f]{8}/"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the driver has waited, none of which pass."""
    waited = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: waited[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.__setitem__(0, waited[0] + seconds))
    return waited


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EACCES", "ENOSYS"])
def test_what_cannot_be_read_for_a_while_is_neither_lost_nor_failed(
    code, copied, tmp_path, monkeypatch, clock, capsys
):
    sweep = sweep_in(tmp_path)
    refused = Refused(monkeypatch, OF_TRIALS, code)

    def run_refused(source: Source, count: int, scratch: Path, *, watched: bool) -> None:
        refused.is_on = True
        run_here(source, count, scratch, watched=watched)

    def back(seconds: float) -> None:
        clock[0] += seconds
        refused.is_on = clock[0] < 10

    monkeypatch.setattr(time, "sleep", back)
    monkeypatch.setattr(tuner, "run_trials", run_refused)
    run_rounds(sweep, SITE)
    printed = "\n" + capsys.readouterr().out + said_at_the_end(sweep, capsys)
    assert check_that_all_agree(sweep, printed) == {"done": 2, "failed": 2}


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EACCES"])
@pytest.mark.parametrize("where", [OF_TRIALS, OF_TRIALS + "result"])
def test_what_can_never_be_read_is_said_to_be_unread_and_not_to_have_failed(
    where, code, copied, tmp_path, monkeypatch, clock, capsys
):
    sweep = sweep_in(tmp_path)
    refused = Refused(monkeypatch, where, code)

    def run_refused(source: Source, count: int, scratch: Path, *, watched: bool) -> None:
        refused.is_on = True
        run_here(source, count, scratch, watched=watched)

    monkeypatch.setattr(tuner, "run_trials", run_refused)
    run_rounds(sweep, SITE)
    printed = capsys.readouterr().out + said_at_the_end(sweep, capsys)
    frame = pd.read_csv(sweep.folder / "leaderboard.csv")
    page = (sweep.folder / "report.html").read_text()
    refused.is_on = False

    records = list(all_trials(sweep.settings.output_dir))
    done = {"/".join(record.folder.parts[-4:-1]) for record in records if record.status == "done"}
    assert len(done) == 2
    lines = [line.split() for line in printed.splitlines() if line.startswith("NOT READ ")]
    unread = {words[2] for words in lines}
    assert done <= unread
    for cell in done:
        assert f"FAILED {cell}" not in printed
    assert "\ndone " not in printed
    events = [json.loads(line) for line in (sweep.folder / "events.jsonl").read_text().splitlines()]
    assert {event["cell"] for event in events if event["event"] == "unread"} == unread
    assert events[-1]["unread"] == len(unread)
    assert Counter(frame["status"])["unread"] == len(unread)
    assert page.count('"x":"unread"') == len(unread)
    assert printed.count("\nnot read: ") == len(unread)
    assert 60 < clock[0] < 600


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EACCES"])
def test_a_trial_of_before_that_cannot_be_read_is_named_and_not_run_again(
    code, copied, tmp_path, monkeypatch
):
    run_rounds(sweep_in(tmp_path), SITE)
    (result,) = tmp_path.glob("outputs/mvtec/bottle/toy-ok/*/result.json")
    refused = Refused(monkeypatch, re.escape(str(result.parent)), code)
    refused.is_on = True
    monkeypatch.setattr(sys.modules[__name__], "write_mvtec", lambda *_, **__: None)
    (trial,) = sweep_in(tmp_path).plan.of("impossible")
    assert trial.cell == "mvtec/bottle/toy-ok"
    assert str(result.parent) in trial.reason


def said_at_the_end(sweep: Sweep, capsys) -> str:
    """Finish a sweep that has failures, and give what it prints."""
    assert _finish(sweep, load_catalogue("en")) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize("gpus", [0, 2])
def test_few_short_trials_wait_for_the_worker_of_the_first_but_never_for_a_gpu(
    gpus, copied, tmp_path, monkeypatch
):
    at_once = []

    def run_two_at_a_time(source: Source, count: int, scratch: Path, *, watched: bool) -> None:
        while first := source.next_trial():
            source.started(first.assignment)
            running = [first, source.next_trial()]
            at_once.append(sum(trial is not None for trial in running))
            for trial in filter(None, running):
                outcome = worker.run_assignment(trial.assignment, "cpu")
                source.ended(trial.assignment, outcome)

    monkeypatch.setattr(tuner, "run_trials", run_two_at_a_time)
    sweep = sweep_in(tmp_path)
    run_rounds(sweep, replace(SITE, gpus=gpus))
    assert max(at_once) == (2 if gpus else 1)
    assert len(list(all_trials(sweep.settings.output_dir))) == 4


def test_a_disk_that_is_full_for_rays_own_files_is_one_sentence(copied, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(tuner, "run_trials", lambda *_, **__: full)
    with pytest.raises(InputError, match=r"no room for Ray's own files in .*TMPDIR"):
        run_rounds(sweep_in(tmp_path), SITE)

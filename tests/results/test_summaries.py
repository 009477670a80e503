"""What is kept of a large store is what its files say, or is not used."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from results.fake_store import fake_record, write_record

from adray.__main__ import main
from adray.files import read_json, write_json
from adray.results import summaries
from adray.results.current import view_store
from adray.results.leaderboard import trial_row
from adray.results.store import Unread, read_store
from adray.results.summaries import FILE, read_summaries, whole_of


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with done, failed, changed and torn trials, of which all is kept that may be."""
    monkeypatch.setattr(summaries, "MANY", 1)
    monkeypatch.setattr(summaries, "_SETTLED_NS", -(10**12))  # as if all had lain there for long
    for seed in range(4):
        for category in ("bolt", "볼트"):
            write_record(fake_record(tmp_path, "padim", category, seed, 0.5 + seed / 10))
    write_record(fake_record(tmp_path, "stfpm", "bolt", auroc=None))
    changed = fake_record(tmp_path, "padim", "bolt", 9, finished="2027-01-01T00:00:00+00:00")
    changed.identity["model"] = {"num_features": 7}
    write_record(changed)
    torn = fake_record(tmp_path, "dfm", "bolt")
    write_record(torn)
    (torn.folder / "result.json").write_text('{"metrics": {"image_auroc": 0.')
    return tmp_path


def folders(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.rglob("result.json"))


def same_as_whole(store: Path) -> bool:
    """Compare rows, marks and what is not read with those of a store that is read whole."""
    short = view_store(store, read=read_summaries)
    whole = view_store(store)
    rows = [trial_row(record) for record in short.records]
    assert rows == [trial_row(record) for record in whole.records]
    assert [r.superseded for r in short.records] == [r.superseded for r in whole.records]
    assert short.shown(everything=True)[0].setting == whole.shown(everything=True)[0].setting
    assert short.notes(everything=False) == whole.notes(everything=False)
    return True


def test_rows_and_marks_are_those_of_the_files_the_first_time_and_later(store):
    assert same_as_whole(store)
    assert (store / FILE).is_file()
    assert same_as_whole(store)


def test_what_is_kept_is_used_and_no_file_that_it_stands_for_is_opened(store, monkeypatch):
    first = read_summaries(store)
    monkeypatch.setattr("adray.results.store.read_entry", lambda *_: None)
    again = [entry for entry in read_summaries(store) if not isinstance(entry, Unread)]
    assert again == [entry for entry in first if not isinstance(entry, Unread)]
    assert len(again) == 10


def test_a_file_that_was_changed_is_read_again_though_size_and_time_are_set_back(store):
    read_summaries(store)
    file = folders(store)[0] / "result.json"
    status = file.stat()
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"image_auroc": 0.5', '"image_auroc": 0.4'), encoding="utf-8")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert same_as_whole(store)


@pytest.mark.parametrize("what", ["result gone", "folder gone", "failed since", "torn", "closed"])
def test_whatever_became_of_a_trial_is_seen(store, what):
    read_summaries(store)
    folder = folders(store)[0]
    if what == "result gone":
        (folder / "result.json").unlink()
    elif what == "folder gone":
        folder.rename(store / "away")
    elif what == "failed since":
        (folder / "result.json").unlink()
        write_json(folder / "failure.json", {"kind": "error", "reason": "since", "attempts": 1})
    elif what == "torn":
        (folder / "trial.json").write_text("{")
    else:
        folder.chmod(0)
    assert same_as_whole(store)
    if what == "closed":
        folder.chmod(0o755)


@pytest.mark.parametrize("harm", ["cut", "changed", "other version", "empty", "folder"])
def test_a_file_that_was_harmed_is_passed_over(store, harm):
    read_summaries(store)
    file = store / FILE
    text = file.read_bytes()
    file.unlink()
    if harm == "folder":
        file.mkdir()
    else:
        other = {
            "cut": text[: len(text) // 2],
            "changed": text.replace(b'"image_auroc": 0.5', b'"image_auroc": 0.9'),
            "other version": b"adray 0.0.1" + text[text.index(b" ", 6) :],
            "empty": b"",
        }
        assert other[harm] != text
        file.write_bytes(other[harm])
    assert same_as_whole(store)


def test_a_trial_that_just_changed_is_not_kept_since_its_time_may_come_again(store, monkeypatch):
    monkeypatch.setattr(summaries, "_SETTLED_NS", 5 * 10**9)
    read_summaries(store)
    _, _, body = (store / FILE).read_bytes().partition(b"\n")
    assert json.loads(body)["trials"] == {}


def test_few_trials_leave_nothing_in_the_store(store, monkeypatch):
    monkeypatch.setattr(summaries, "MANY", 500)
    read_summaries(store)
    assert not (store / FILE).exists()


def test_what_is_read_whole_again_keeps_its_marks(store):
    records = view_store(store, read=read_summaries).shown(everything=True)
    marked = [replace(record, setting="mine") for record in records]
    for record, whole in zip(records, whole_of(marked), strict=True):
        assert whole.setting == "mine"
        assert whole.superseded == record.superseded
        assert whole.result == read_json(record.folder / "result.json")


def test_status_says_the_same_with_and_without_what_is_kept(store, capsys):
    printed = []
    for _ in range(2):
        assert main(["status", str(store)]) == 0
        printed.append(capsys.readouterr().out)
    (store / FILE).unlink()
    assert main(["status", str(store)]) == 0
    assert [capsys.readouterr().out] * 2 == printed


def test_both_ways_to_read_give_the_same_trials_in_the_same_order(store):
    places = [entry.folder for entry in read_summaries(store)]
    assert places == [entry.folder for entry in read_store(store)]

"""Publishing on file systems that refuse or fail calls: a trial is done where it is visible, and whole, or is not.

Each call fails in each way, singly and in pairs; from the start, so that the probe has met it, or
from the moment at which a trial is published.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from pathlib import Path

import pytest
from failing_calls import CALLS, CODES, fail

from adray.file_system import ORDINARY, probe
from adray.files import REFUSALS, write_json
from adray.results import store
from adray.results.store import all_trials, dead_partials, partial_folder, publish, read_trial

FAULTS = [(call, code) for call in CALLS for code in CODES]
PAIRS = [pair for pair in itertools.combinations(FAULTS, 2) if pair[0][0] != pair[1][0]]
USUAL_PAIRS = [pair for pair in PAIRS if {code for _, code in pair} <= {"EPERM", "EIO"}]
SETS = [
    pytest.param([[fault] for fault in FAULTS], id="singly"),
    pytest.param(USUAL_PAIRS, id="usual pairs"),
    pytest.param(PAIRS, id="all pairs", marks=pytest.mark.slow),
]
FILES = ("trial.json", "scores.parquet", "log.txt")


@pytest.fixture
def stores(tmp_path):
    """A folder in memory where there is one, since thousands of files are flushed."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="adray-test-") as folder:
        yield Path(folder)


def make(final: Path, end: str = "result") -> Path:
    """A working folder with all that a trial leaves."""
    partial = partial_folder(final)
    write_json(partial / "trial.json", {"id": final.name, "identity": {"seed": 0}})
    for name in FILES[1:]:
        (partial / name).write_text(name * 1000)
    write_json(partial / f"{end}.json", {"metrics": {}, "reason": "x"})
    return partial


def cell_of(store: Path) -> Path:
    cell = store / "mvtec" / "bottle" / "padim"
    cell.mkdir(parents=True)
    return cell


def published(partial: Path, final: Path, file_system) -> bool:
    """Publish, and say whether nothing was raised."""
    try:
        return publish(partial, final, file_system)
    except OSError:
        return False


def check_what_is_there(final: Path, is_published: bool) -> None:
    record = read_trial(final)
    is_done = record is not None and record.status == "done"
    assert is_done == is_published
    if is_done:
        assert all((final / name).is_file() for name in FILES)
        assert (final / "log.txt").read_text() == "log.txt" * 1000
        assert not list(final.parent.glob(".*"))


@pytest.mark.parametrize("before", ["nothing", "failure"])
@pytest.mark.parametrize("sets", SETS)
def test_a_store_opened_with_faults_has_whole_results_or_none(before, sets, stores, monkeypatch):
    opened = 0
    for number, faults in enumerate(sets):
        store = stores / str(number)
        final = cell_of(store) / "0123abcd"
        if before == "failure":
            assert publish(make(final, "failure"), final)
        partial = make(final)
        with monkeypatch.context() as patch:
            for fault in faults:
                fail(patch, *fault)
            try:
                file_system = probe(store)
            except OSError:
                continue  # nothing starts
            opened += 1
            assert published(partial, final, file_system), faults
        check_what_is_there(final, True)
        assert [record.status for record in all_trials(store)] == ["done"]
    assert opened > len(sets) // 4


@pytest.mark.parametrize("before", ["nothing", "failure"])
@pytest.mark.parametrize("sets", SETS)
def test_faults_that_begin_later_leave_a_result_whole_or_unseen_and_never_lose_it(
    before, sets, stores, monkeypatch
):
    for number, faults in enumerate(sets):
        final = cell_of(stores / str(number)) / "0123abcd"
        if before == "failure":
            assert publish(make(final, "failure"), final)
        partial = make(final)
        with monkeypatch.context() as patch:
            for fault in faults:
                fail(patch, *fault)
            is_published = published(partial, final, ORDINARY)
        check_what_is_there(final, is_published)
        if not is_published:
            # What is finished waits in its working folder, and is published once the faults are over.
            assert published(partial, final, ORDINARY), faults
            check_what_is_there(final, True)


@pytest.mark.parametrize("code", CODES)
def test_a_name_that_cannot_be_flushed_is_visible_all_the_same(code, tmp_path, monkeypatch):
    final = cell_of(tmp_path) / "0123abcd"
    partial = make(final)
    fail(monkeypatch, "fsync of folders", code)
    assert publish(partial, final)
    check_what_is_there(final, True)


@pytest.mark.parametrize("code", [code for code in CODES if getattr(errno, code) not in REFUSALS])
def test_a_file_that_did_not_reach_the_disk_is_not_published(code, tmp_path, monkeypatch):
    final = cell_of(tmp_path) / "0123abcd"
    partial = make(final)
    fail(monkeypatch, "fsync of files", code)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, code))):
        publish(partial, final)
    assert read_trial(final) is None


FILE_BY_FILE = type(ORDINARY)(**{**vars(ORDINARY), "moves_folders": False})


def test_file_by_file_the_first_wins_and_the_other_leaves_nothing(tmp_path):
    final = cell_of(tmp_path) / "0123abcd"
    first = make(final)
    first = first.rename(first.with_name(".0123abcd.elsewhere-1.partial"))
    second = make(final)
    assert publish(first, final, FILE_BY_FILE)
    assert not publish(second, final, FILE_BY_FILE)
    check_what_is_there(final, True)


@pytest.mark.parametrize("moved", range(len(FILES) + 1))
def test_a_process_that_dies_while_it_moves_files_leaves_no_result_and_no_obstacle(
    moved, tmp_path, monkeypatch
):
    final = cell_of(tmp_path) / "0123abcd"
    partial = make(final)
    move_over = store.move_over
    left = moved

    def die(source: Path, target: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        move_over(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(store, "move_over", die)
        with pytest.raises(KeyboardInterrupt):
            publish(partial, final, FILE_BY_FILE)
    record = read_trial(final)
    assert record is None or record.status == "unfinished"

    gone = partial.rename(partial.with_name(partial.name.replace(f"-{os.getpid()}.", "-99999999.")))
    assert dead_partials(final.parent) == [gone]
    for folder in dead_partials(final.parent):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert publish(make(final), final, FILE_BY_FILE)
    check_what_is_there(final, True)


def test_a_failure_in_the_lower_layer_of_an_overlay_makes_room(tmp_path, monkeypatch):
    """There a folder is moved with EXDEV, though a new one moves well."""
    final = cell_of(tmp_path) / "0123abcd"
    assert publish(make(final, "failure"), final)
    rename = os.rename

    def overlay(source, target):
        if Path(source) == final:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", overlay)
    assert publish(make(final), final)
    check_what_is_there(final, True)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adray.files import write_json
from adray.results.store import (
    all_trials,
    cell_folder,
    cell_trials,
    dead_partials,
    find_trial,
    merged_name,
    partial_folder,
    publish,
    read_store,
    read_trial,
)


def make(cell, name, **files):
    partial = partial_folder(cell / name)
    identity = {"configuration": "m", "datasets": ["d"], "categories": ["c"], "seed": 0}
    write_json(partial / "trial.json", {"id": name + "0" * 56, "identity": identity})
    for stem, value in files.items():
        write_json(partial / f"{stem}.json", value)
    return partial


def test_the_first_of_two_rivals_wins_and_the_other_leaves_nothing(tmp_path):
    cell = cell_folder(tmp_path, "mvtec", "bottle", "padim", custom=False)
    first = make(cell, "0123abcd", result={"who": 1})
    first = first.rename(first.with_name(".0123abcd.elsewhere-1.partial"))
    second = make(cell, "0123abcd", result={"who": 2})
    assert publish(first, cell / "0123abcd")
    assert not publish(second, cell / "0123abcd")
    assert read_trial(cell / "0123abcd").result == {"who": 1}
    assert [p.name for p in cell.iterdir()] == ["0123abcd"]


def test_a_success_replaces_a_failure_and_a_failure_never_a_success(tmp_path):
    final = tmp_path / "0123abcd"
    assert publish(make(tmp_path, "0123abcd", failure={"reason": "x"}), final)
    assert read_trial(final).status == "failed"
    assert publish(make(tmp_path, "0123abcd", result={}), final)
    assert read_trial(final).status == "done"
    assert not (final / "failure.json").exists()
    assert not publish(make(tmp_path, "0123abcd", failure={"reason": "x"}), final)
    assert read_trial(final).status == "done"


def test_a_torn_result_does_not_count(tmp_path):
    final = tmp_path / "0123abcd"
    publish(make(tmp_path, "0123abcd", result={}), final)
    (final / "result.json").write_text('{"metrics": ')
    assert read_trial(final).status == "unfinished"


def test_only_working_folders_of_dead_processes_of_this_host_are_cleaned(tmp_path):
    mine = make(tmp_path, "0123abcd")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}.", "-99999999."))
    mine.rename(dead)
    alive = make(tmp_path, "0123abcd")
    (tmp_path / ".0123abcd.otherhost-99999999.partial").mkdir()
    (tmp_path / f".0123abcd.{os.uname().nodename}.000000-99999999.partial").mkdir()
    assert dead_partials(tmp_path) == [dead]
    assert alive.exists()


def test_trials_are_found_by_the_beginning_of_their_id_in_ordinary_and_custom_cells(tmp_path):
    for custom, name in ((False, "0123abcd"), (True, "4567abcd")):
        cell = cell_folder(tmp_path, "d", "c", "m", custom=custom)
        publish(make(cell, name, result={}), cell / name)
        (cell / "model_d_c_m_epochs-1.pth").touch()  # what train() writes beside them is no trial
        assert [r.id8 for r in cell_trials(cell)] == [name]
    assert len(list(all_trials(tmp_path))) == 2
    assert find_trial(tmp_path, "45").folder.name == "4567abcd"


def test_merged_names_stay_readable_and_short():
    assert merged_name(["a", "b"]) == "a+b"
    assert merged_name(["all"]) == "all"
    long = merged_name([f"category_{i}" for i in range(15)])
    assert long.startswith("merged-")
    assert len(long) == 13


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_another_user_has_closed_is_named_and_all_else_is_read(tmp_path, caplog):
    cell = cell_folder(tmp_path, "d", "c", "m", custom=False)
    for name in ("0123abcd", "4567abcd"):
        publish(make(cell, name, result={}), cell / name)
    (cell / "0123abcd").chmod(0)
    assert [record.id8 for record in all_trials(tmp_path)] == ["4567abcd"]
    assert str(cell / "0123abcd") in caplog.text
    (cell / "0123abcd").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_named_and_all_else_is_read(
    tmp_path, caplog, monkeypatch
):
    cells = [cell_folder(tmp_path, "d", name, "m", custom=False) for name in ("a", "b")]
    for cell in cells:
        publish(make(cell, "0123abcd", result={}), cell / "0123abcd")
    listed = Path.iterdir

    def refuse(path):
        if path == cells[0]:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    closed, read = read_store(tmp_path)
    assert (closed.folder, closed.is_unreachable) == (cells[0], True)
    assert read.folder.parent == cells[1]
    assert [record.folder.parent for record in all_trials(tmp_path)] == [cells[1]]
    assert str(cells[0]) in caplog.text
    assert "chmod" in caplog.text

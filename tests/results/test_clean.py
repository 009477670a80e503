"""`adray clean`: shows and removes what nothing refers to, and nothing that counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from test_current import NEW, OLD, trial

from adray.__main__ import main
from adray.ensembles.team import Ensemble, Member, write_ensemble
from adray.machine import host_identity
from adray.results.store import all_trials
from adray.settings import get_globals

GONE = 99_999_999
"""A process that is not there."""


def fill(path, size=1000, days=0.0):
    """Write a file that was changed some days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


@pytest.fixture
def store(tmp_path):
    """A store with an outdated trial, one of an older setting, the one that counts, and scratch."""
    root = tmp_path / "store"
    trial(root, OLD, day=1)
    trial(root, NEW, day=2, model__lr=0.1)
    counts = trial(root, NEW, day=3, model__lr=0.2)
    cell = counts.folder.parent
    fill(cell / f".0123abcd.{host_identity()}-{GONE}.partial" / "log.txt")
    fill(cell / f".0123abcd.elsewhere-{GONE}.partial" / "log.txt", days=8)
    fill(cell / f".{counts.id8}.progress.pth", days=2)
    fill(cell / ".leaderboard.0123abcd.tmp.csv", days=2)
    fill(cell.parent / f".padim.{GONE}.running" / "log.txt", days=2)
    fill(counts.folder / f".updated_0123abcd.{host_identity()}-{GONE}.partial" / "log.txt")
    return root


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_without_yes_it_only_shows_what_and_how_much(words, store, capsys):
    before = names(store)
    assert main(["clean", str(store), *words]) == 0
    printed = capsys.readouterr().out
    assert names(store) == before
    assert "outdated trial: 1" in printed
    assert "scratch: 6" in printed
    assert "aaaaaaaa, now bbbbbbbb" in printed
    assert "--yes" in printed


def test_with_yes_the_outdated_trial_and_scratch_go_and_every_other_result_stays(store, capsys):
    (outdated,) = (r for r in all_trials(store) if r.identity["data"] == OLD)
    stay = {r.id8 for r in all_trials(store)} - {outdated.id8}
    assert main(["clean", str(store), "--yes"]) == 0
    assert {r.id8 for r in all_trials(store)} == stay
    assert not [name for name in names(store) if "/." in name]
    assert main(["clean", str(store)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_scratch_that_somebody_may_still_use_stays(tmp_path, capsys):
    cell = trial(tmp_path).folder.parent
    used = [
        fill(cell / f".0123abcd.{host_identity()}-{os.getpid()}.partial" / "log.txt", days=30),
        fill(cell / f".0123abcd.elsewhere-{GONE}.partial" / "log.txt"),
        fill(cell / "0123abcd" / f".updated_0123abcd.{host_identity()}-{os.getpid()}.partial/a"),
        fill(cell / ".0123abcd.progress.pth", days=30),  # its trial is not done
        fill(cell / ".leaderboard.0123abcd.tmp.csv"),
        fill(cell.parent / f".padim.{os.getpid()}.running" / "log.txt", days=30),
        fill(cell.parent / f".padim.{GONE}.running" / "log.txt"),
    ]
    assert main(["clean", str(tmp_path), "--yes"]) == 0
    assert all(file.exists() for file in used)


def test_an_outdated_trial_that_a_team_names_stays_and_is_named(store, capsys):
    (outdated,) = (r for r in all_trials(store) if r.identity["data"] == OLD)
    folder = os.path.relpath(outdated.folder, store / "ensembles")
    member = Member(folder, outdated.trial["id"], "padim", 1.0, 0.0, 1.0, 5.0)
    write_ensemble(store / "ensembles" / "cup.json", Ensemble("mvtec", "cup", (member,), {}))
    assert main(["clean", str(store), "--yes"]) == 0
    assert outdated.folder.exists()
    assert "a team's file names it" in capsys.readouterr().out


def test_an_outdated_trial_of_which_models_were_made_stays_and_is_named(store, capsys):
    (outdated,) = (r for r in all_trials(store) if r.identity["data"] == OLD)
    made = fill(outdated.folder / "updated_0123abcd" / "result.json")
    assert main(["clean", str(store), "--yes"]) == 0
    assert made.exists()
    assert "models that update made lie in it" in capsys.readouterr().out


def test_caches_go_on_request_only(store, capsys):
    decoded = fill(Path(get_globals().cache_dir).expanduser() / "decoded" / f"{'a' * 32}.arrow")
    assert main(["clean", str(store), "--yes"]) == 0
    assert decoded.exists()
    assert main(["clean", str(store), "--yes", "--caches"]) == 0
    assert not decoded.exists()


def test_a_store_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["clean", str(tmp_path / "nowhere"), "--yes"]) == 2
    assert "does not exist" in capsys.readouterr().err

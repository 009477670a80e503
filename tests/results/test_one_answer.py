"""One cell, one answer: every command takes the same trials of a store that holds all kinds of them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_store import write_record
from test_current import NEW, OLD, trial, write_test_scores

from adray.__main__ import main
from adray.ensembles.candidates import Wanted, find_candidates
from adray.files import write_json
from adray.results.current import Images, view_store
from adray.results.diff import compare_stores
from adray.results.record_shape import TRIAL_FORMAT
from adray.results.trial_names import named_trial

ANSWERS = {"padim": 0.8125, "stfpm": 0.6875}
"""What the cells of `store` answer."""


@pytest.fixture
def store(tmp_path):
    """Two cells, each with outdated data, another hyperparameter, other weights, an older version, a
    search's try and a failure before the trial that counts."""
    root = tmp_path / "store"
    for name, answer in ANSWERS.items():
        shared = {"configuration": name, "weights__net": "b" * 64, "versions__core": 3}
        now = {**shared, "model__lr": 0.2}
        trial(root, OLD, 0.9901, day=1, **now)
        trial(root, NEW, 0.9902, day=2, **{**now, "model__lr": 0.1})
        trial(root, NEW, 0.9903, day=3, **{**now, "weights__net": "a" * 64})
        trial(root, NEW, 0.9904, day=4, **{**now, "versions__core": 2})
        searched = trial(root, NEW, 0.9905, day=9, **{**now, "model__lr": 0.3})
        searched.trial["assignment"] = {"search": "tune"}
        write_record(searched)
        failed = trial(root, NEW, 0.5, day=4, **{**now, "model__lr": 0.4})
        (failed.folder / "result.json").unlink()
        write_record(
            replace(failed, result=None, failure={"reason": "no", "finished": "2026-05-01"})
        )
        trial(root, NEW, answer - 0.0625, seed=0, day=5, **now)
        trial(root, NEW, answer + 0.0625, seed=1, day=6, **now)
    for record in view_store(root).records:
        if record.result is not None:
            write_test_scores(record, map(str, range(8)))
    return root


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_status_report_page_ensemble_and_diff_take_the_same_trials(store, tmp_path, capsys):
    counted = {r.id8 for r in view_store(store).shown(everything=False)}
    assert len(counted) == 4

    listed = re.findall(r"^done +([0-9a-f]{8}) ", printed(capsys, "status", str(store)), re.M)
    assert set(listed) == counted

    table = tmp_path / "report.csv"
    printed(capsys, "report", str(store), "--format", "csv", "--out", str(table))
    assert {name[:8] for name in pd.read_csv(table, dtype={"id": str})["id"]} == counted

    page = Path(printed(capsys, "report", str(store)).strip()).read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert {one["id"] for one in data["trials"]} == counted

    found = find_candidates(store, Wanted())
    (candidates,) = found.by_category.values()
    assert {candidate.record.id8 for candidate in candidates} == counted

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    difference = compare_stores(store, copy)
    assert set(difference.cells["id_a"]) < counted
    names = difference.cells["configuration"].str.split().str[0]
    assert dict(zip(names, difference.cells["a"], strict=True)) == ANSWERS


def test_decide_and_a_name_take_the_same_trials_and_say_where_the_rest_is_shown(store, capsys):
    counted = {r.id8 for r in view_store(store).shown(everything=False)}
    main(["decide", str(store), "--format", "json"])
    said = capsys.readouterr()
    named = set(re.findall(r"\b[0-9a-f]{8}\b", said.out))
    everything = {r.id8 for r in view_store(store).records}
    assert named & everything
    assert named & everything <= counted
    assert "0.990" not in said.out
    assert "2 outdated trials are left out" in said.err
    assert "status --all shows them" in said.err

    records = view_store(store).shown(everything=False)
    for name in ANSWERS:
        category = records[0].identity["categories"][0]
        assert named_trial(records, f"{category}/{name}").id8 in counted


def test_decide_with_all_lists_the_rest_and_chooses_as_before(store, capsys):
    view = view_store(store)
    rest = {r.id8 for r in view.records if r.outdated or (r.superseded and r.result)}
    assert len(rest) == 8
    before = json.loads(decided(capsys, store, "--format", "json"))
    after = json.loads(decided(capsys, store, "--format", "json", "--all"))
    listed = []
    for without, one in zip(before, after, strict=True):
        assert without.pop("uncounted") == []
        listed += one.pop("uncounted")
        assert one == without
    assert {name["name"][-8:] for name in listed} == rest
    reasons = Counter(one["reason"] for one in listed)
    assert reasons == {"its images have changed since": 2, "a later setting of its cell counts": 6}
    assert any("model.lr=0.1" in one["name"] for one in listed)
    for lang, words in (("en", "does not count: padim"), ("ko", "집계에서 제외: padim")):
        text = decided(capsys, store, "--all", "--lang", lang)
        assert words in text
        assert all(id8 in text for id8 in rest)


def decided(capsys, store, *words):
    """What decide prints, whatever it has to say of the cells."""
    main(["decide", str(store), *words])
    return capsys.readouterr().out


def test_decide_of_a_store_whose_images_all_changed_says_so(tmp_path, capsys, monkeypatch):
    record = trial(tmp_path)
    write_test_scores(record, map(str, range(8)))
    changed = {Images.of(record): "c" * 32}
    monkeypatch.setattr("adray.cli.decide.present_fingerprints", lambda records: changed)
    assert main(["decide", str(tmp_path)]) == 2
    assert "holds outdated trials alone" in capsys.readouterr().err
    assert main(["decide", str(tmp_path), "--all"]) == 1
    printed = capsys.readouterr().out
    assert "nothing can be compared: its images have changed since" in printed
    assert record.id8 in printed


@pytest.mark.parametrize(
    "words", [["status"], ["report", "--format", "markdown"], ["report", "--format", "csv"]]
)
def test_no_command_shows_a_figure_of_a_trial_that_does_not_count(words, store, capsys):
    text = printed(capsys, words[0], str(store), *words[1:])
    assert not re.search(r"0\.990\d", text)


@pytest.mark.parametrize("words", [["status"], ["report", "--format", "csv"]])
def test_all_shows_the_rest_and_says_what_tells_it_apart(words, store, capsys):
    text = printed(capsys, words[0], str(store), *words[1:], "--all")
    for figure in ("0.9901", "0.9902", "0.9903", "0.9904"):
        assert figure in text
    assert "0.9905" not in text
    assert "model.lr=0.1" in text
    assert "aaaaaaaa, now bbbbbbbb" in text


def test_what_is_left_out_is_counted_and_the_team_says_why(store, capsys):
    text = printed(capsys, "status", str(store))
    assert "2 outdated trials are left out" in text
    assert "8 trials of older settings are left out" in text
    assert "2 trials of searches" in text
    reasons = [one.reason for one in find_candidates(store, Wanted()).left_out]
    assert any("model.lr 0.1 -> 0.2" in reason for reason in reasons)
    assert any("versions.core 2 -> 3" in reason for reason in reasons)


def test_a_team_may_ask_for_older_settings(store):
    (found,) = find_candidates(store, Wanted(everything=True)).by_category.values()
    assert len(found) == 10
    assert all(not candidate.record.outdated for candidate in found)


def test_a_trial_that_failed_after_the_one_that_counts_is_still_seen(tmp_path, capsys):
    trial(tmp_path, day=1, model__lr=0.1)
    failed = trial(tmp_path, day=1, model__lr=0.2)
    (failed.folder / "result.json").unlink()
    write_record(replace(failed, result=None, failure={"reason": "no", "finished": "2026-05-02"}))
    assert [r.status for r in view_store(tmp_path).shown(everything=False)].count("failed") == 1


def test_a_mean_over_cells_of_several_settings_says_so(tmp_path):
    trial(tmp_path, category="cup", train__img_size=256)
    trial(tmp_path, category="plate", train__img_size=512)
    (note,) = view_store(tmp_path).notes(everything=False)
    assert "train.img_size=256 | train.img_size=512" in str(note)


def test_status_lists_the_best_model_first_and_no_lucky_seed_above_it(tmp_path, capsys):
    for seed, (steady, lucky) in enumerate(((0.75, 0.5), (0.75, 0.875))):
        trial(tmp_path, auroc=steady, seed=seed, configuration="padim")
        trial(tmp_path, auroc=lucky, seed=seed, configuration="stfpm")
    listed = re.findall(r"^done .*/(\w+) seed (\d)", printed(capsys, "status", str(tmp_path)), re.M)
    assert listed == [("padim", "0"), ("padim", "1"), ("stfpm", "0"), ("stfpm", "1")]


def test_status_speaks_the_language_of_its_reader(store, capsys):
    text = printed(capsys, "status", str(store), "--lang", "ko")
    assert "오래된 실험 2건" in text
    assert "이미지 AUROC" in text
    assert "완료 " in text


def test_a_setting_of_ones_own_that_all_cells_have_needs_no_word(tmp_path):
    for category in ("cup", "plate"):
        trial(tmp_path, category=category, train__img_size=128)
    assert view_store(tmp_path).notes(everything=False) == []


def test_an_upgrade_is_compared_with_the_trial_that_counts_and_not_with_its_copy(tmp_path):
    """The store went along: after the upgrade it holds the old trial and the new one."""
    for root, versions in (("a", [2]), ("b", [2, 3])):
        for core in versions:
            record = trial(tmp_path / root, auroc=core / 4, day=core, versions__core=core)
            write_test_scores(record, map(str, range(8)))
    (cell,) = compare_stores(tmp_path / "a", tmp_path / "b").cells.to_dict("records")
    assert (cell["a"], cell["b"]) == (0.5, 0.75)


# What cannot be read


def spoil(store, name, text):
    """Write a file of the only trial of a store anew."""
    (folder,) = store.glob("mvtec/cup/padim/*")
    (folder / name).write_text(text, encoding="utf-8")


def retyped(store, **changes):
    (folder,) = store.glob("mvtec/cup/padim/*")
    value = json.loads((folder / "trial.json").read_text())
    write_json(folder / "trial.json", value | changes)


BROKEN = {
    "torn trial": lambda store: spoil(store, "trial.json", '{"id": '),
    "empty result": lambda store: spoil(store, "result.json", ""),
    "list": lambda store: spoil(store, "trial.json", "[]"),
    "foreign": lambda store: spoil(store, "trial.json", '{"id": "x", "identity": {"lr": 1}}'),
    "text for a figure": lambda store: spoil(
        store, "result.json", '{"metrics": {"image_auroc": "good"}}'
    ),
    "text for a promise": lambda store: spoil(
        store, "result.json", '{"thresholds": {"promise": {"normals": "many"}}}'
    ),
    "NaN": lambda store: spoil(store, "result.json", '{"metrics": {"image_auroc": NaN}}'),
    "newer": lambda store: retyped(store, format=TRIAL_FORMAT + 1),
    "text for a list": lambda store: retyped(
        store,
        identity={
            "configuration": "padim",
            "datasets": "mvtec",
            "categories": ["cup"],
            "seed": 1,
            "train": {},
        },
    ),
    "another trial": lambda store: retyped(store, id="0123abcd" * 8),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("words", [["status"], ["report", "--format", "csv"]])
def test_a_record_that_cannot_be_read_costs_its_own_row_and_is_named(kind, words, tmp_path, capsys):
    bad = trial(tmp_path, auroc=0.25)
    good = trial(tmp_path, auroc=0.75, category="plate")
    BROKEN[kind](tmp_path)
    assert main([words[0], str(tmp_path), *words[1:]]) == 0
    shown = capsys.readouterr()
    assert good.id8 in shown.out
    assert "0.25" not in shown.out
    assert str(bad.folder) in shown.out + shown.err


def test_a_newer_record_names_both_versions(tmp_path):
    trial(tmp_path)
    retyped(tmp_path, format=7)
    (note,) = view_store(tmp_path).notes(everything=False)
    assert "format 7" in str(note)
    assert f"up to {TRIAL_FORMAT}" in str(note)


def test_a_copy_beside_its_trial_is_named_and_counted_nowhere(tmp_path):
    record = trial(tmp_path)
    shutil.copytree(record.folder, record.folder.with_name(f"{record.id8} - Copy"))
    view = view_store(tmp_path)
    assert [found.id8 for found in view.records] == [record.id8]
    assert "Copy" in str(view.unread[0].folder)
    assert record.id8 in view.unread[0].reason


@pytest.mark.parametrize("cell", ["mvtec/cup/padim", "custom/line/cup/padim"])
def test_what_train_wrote_is_named_once_as_no_part_of_the_store(cell, tmp_path):
    record = trial(tmp_path / "other")
    folder = tmp_path / "store" / cell
    shutil.copytree(record.folder, folder)
    view = view_store(tmp_path / "store")
    assert view.records == []
    assert [found.folder for found in view.unread] == [folder]
    assert "train()" in view.unread[0].reason


def test_a_store_that_was_moved_or_copied_in_part_says_the_same_of_what_is_there(store, tmp_path):
    before = [(r.id8, r.status) for r in view_store(store).shown(everything=False)]
    moved = tmp_path / "moved"
    shutil.move(store, moved)
    assert [(r.id8, r.status) for r in view_store(moved).shown(everything=False)] == before

    for name in ("scores.parquet", "history.csv", "log.txt"):
        for file in moved.glob(f"*/*/*/*/{name}"):
            file.unlink()
    assert [(r.id8, r.status) for r in view_store(moved).shown(everything=False)] == before
    shutil.rmtree(moved / "mvtec" / "cup" / "stfpm")
    assert {r.identity["configuration"] for r in view_store(moved).records} == {"padim"}


def test_files_that_windows_rewrote_are_read_as_before(tmp_path):
    record = trial(tmp_path, auroc=0.75)
    for file in record.folder.glob("*.json"):
        text = file.read_text(encoding="utf-8").replace("\n", "\r\n")
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (record.folder / "desktop.ini").write_text("[.ShellClassInfo]")
    (record.folder.parent / "Thumbs.db").write_bytes(b"\xd0\xcf")
    record.folder.rename(record.folder.with_name(record.id8.upper()))
    view = view_store(tmp_path)
    assert view.unread == []
    assert [(r.id8, r.result["metrics"]["image_auroc"]) for r in view.records] == [
        (record.id8, 0.75)
    ]


def test_categories_that_differ_in_capitals_alone_stay_two_cells_in_one_folder(tmp_path):
    """On a file system without capitals their trials lie in the same folder."""
    lower = trial(tmp_path, auroc=0.25, category="cup")
    upper = trial(tmp_path, auroc=0.75, category="Cup", day=2)
    shutil.move(upper.folder, lower.folder.parent / upper.id8)
    shown = view_store(tmp_path).shown(everything=False)
    assert sorted(r.identity["categories"][0] for r in shown) == ["Cup", "cup"]


def test_a_store_is_read_while_folders_come_and_go(tmp_path, monkeypatch):
    gone = trial(tmp_path, category="cup")
    trial(tmp_path, category="plate")
    real = Path.iterdir

    def iterdir(path):
        if path == gone.folder.parent:
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert [r.identity["categories"] for r in view_store(tmp_path).records] == [["plate"]]

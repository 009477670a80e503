"""Stores with trials of several batches of images and of several settings: no figure is a mean over them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec
from fake_store import fake_record, write_record

from adray import changed_data
from adray.__main__ import main
from adray.changed_data import present_fingerprints
from adray.config import to_plain
from adray.data.facts_memo import MEMO_NAME
from adray.data.inspect_files import fingerprint
from adray.data.readers import list_samples
from adray.ensembles.candidates import Wanted, find_candidates
from adray.files import canonical_hash
from adray.results.current import mark_outdated, mark_settings
from adray.results.diff import compare_stores
from adray.results.leaderboard import summary, table, trial_row
from adray.results.ranking import rank_trials
from adray.results.report import report_data
from adray.results.store import read_store
from adray.settings import get_globals

OLD, NEW = "a" * 32, "b" * 32


def trial(store, data=NEW, auroc=0.9, seed=0, day=1, configuration="padim", category="cup", **more):
    """A finished trial of images with a fingerprint, which ended on a day of May."""
    record = fake_record(store, configuration, category, seed, auroc)
    identity = {**record.identity, "data": data}
    for name, value in more.items():
        part, _, field = name.partition("__")
        identity[part] = {**identity.get(part, {}), field: value} if field else value
    key = canonical_hash(identity)
    result = {**record.result, "finished": f"2026-05-{day:02d}T00:00:00+00:00"}
    folder = record.folder.with_name(key[:8])
    found = replace(
        record,
        folder=folder,
        trial={**record.trial, "id": key, "identity": identity},
        result=result,
    )
    write_record(found)
    return found


def write_test_scores(record, names, score=None):
    """Scores of test images by name, the first half of them normal, and of six held-out normals."""
    names = list(names)
    label = np.arange(len(names)) * 2 // len(names)
    rng = np.random.default_rng(len(record.id8))
    rows = {
        "dataset": "mvtec",
        "category": record.identity["categories"][0],
        "split": ["test"] * len(names) + ["holdout"] * 6,
        "path": [f"/data/test/{name}" for name in names]
        + [f"/data/train/{i}.png" for i in range(6)],
        "label": [*label, *[0] * 6],
        "pred_score": rng.normal(size=len(names) + 6) if score is None else score,
    }
    pd.DataFrame(rows).to_parquet(record.folder / "scores.parquet")


def marked(*records):
    return mark_settings(mark_outdated(records))


def means(records):
    """The image AUROC of each row of the summary."""
    frame = summary(table(map(trial_row, records)))
    return dict(zip(frame["configuration"], frame["image_auroc"], strict=True))


def figures(text):
    return set(re.findall(r"0\.\d{4}", text))


# Outdated trials


def test_of_two_batches_of_images_the_one_that_ended_last_counts(tmp_path):
    old = trial(tmp_path, OLD, 0.9, day=1)
    new = trial(tmp_path, NEW, 0.5, day=2)
    found = marked(new, old)
    assert [record.status for record in found] == ["done", "outdated"]
    assert "aaaaaaaa, now bbbbbbbb" in found[1].reason
    assert means(found) == {"padim": 0.5}


def test_what_the_folder_gives_now_decides_before_the_time_does(tmp_path):
    old = trial(tmp_path, OLD, 0.9, day=1)
    new = trial(tmp_path, NEW, 0.5, day=2)
    from adray.results.current import Images

    put_back = mark_outdated([old, new], {Images.of(old): OLD})
    assert [record.status for record in put_back] == ["done", "outdated"]
    neither = mark_outdated([old, new], {Images.of(old): "c" * 32})
    assert [record.status for record in neither] == ["outdated", "outdated"]


def test_other_seeds_of_the_old_images_are_outdated_where_the_data_have_a_split(tmp_path):
    records = [
        trial(tmp_path, OLD, 0.9, seed=1, day=1),
        trial(tmp_path, OLD, 0.8, seed=2, day=1),
        trial(tmp_path, NEW, 0.5, seed=1, day=2),
    ]
    assert means(marked(*records)) == {"padim": 0.5}


def test_seeds_that_split_the_images_each_keep_their_fingerprint(tmp_path):
    one = trial(tmp_path, OLD, 0.9, seed=1, day=1)
    two = trial(tmp_path, NEW, 0.5, seed=2, day=2)
    write_test_scores(one, ["a", "b", "x", "y"])
    write_test_scores(two, ["b", "c", "x", "y"])
    assert means(marked(one, two)) == {"padim": pytest.approx(0.7)}


def test_seeds_that_test_images_of_the_same_names_are_of_two_batches(tmp_path):
    one = trial(tmp_path, OLD, 0.9, seed=1, day=1)
    two = trial(tmp_path, NEW, 0.5, seed=2, day=2)
    for record in (one, two):
        write_test_scores(record, ["a", "b", "x", "y"])
    assert means(marked(one, two)) == {"padim": 0.5}


def test_another_configuration_on_the_old_images_is_outdated_too(tmp_path):
    stale = trial(tmp_path, OLD, 0.9, configuration="stfpm", day=1)
    new = trial(tmp_path, NEW, 0.5, day=2)
    other = trial(tmp_path, OLD, 0.7, category="plate", day=1)
    assert [record.status for record in marked(stale, new, other)] == ["outdated", "done", "done"]


def test_a_failure_on_the_new_images_dates_the_old_result(tmp_path):
    old = trial(tmp_path, OLD, 0.9, day=1)
    new = trial(tmp_path, NEW, 0.5, day=2)
    failed = replace(new, result=None, failure={"reason": "no", "finished": "2026-05-03"})
    found = marked(old, failed)
    assert [record.status for record in found] == ["outdated", "failed"]
    assert means(found)["padim"] != 0.9


def test_the_folder_is_looked_at_and_a_changed_image_dates_the_trial(tmp_path):
    root = write_mvtec(Path(get_globals().dataset_dir) / "mvtec", ("cup",), train=4, size=32)
    settings = get_globals()
    samples = list_samples("mvtec", "cup", settings)
    record = trial(tmp_path, fingerprint(samples, settings.cache_dir), seed=42)
    record.trial["assignment"] = {"settings": to_plain(settings)}
    # The facts of files that are older than two seconds are remembered: without any nobody looks.
    assert present_fingerprints([record]) == {}
    (Path(settings.cache_dir)).mkdir(exist_ok=True)
    (Path(settings.cache_dir) / MEMO_NAME).write_text("")
    assert mark_outdated([record], present_fingerprints([record]))[0].status == "done"

    first, second, *_ = sorted((root / "cup" / "train" / "good").iterdir())
    shutil.copy(second, first)
    assert mark_outdated([record], present_fingerprints([record]))[0].status == "outdated"
    shutil.rmtree(root)
    assert mark_outdated([record], present_fingerprints([record]))[0].status == "done"


def test_seeds_that_were_given_the_same_images_are_looked_at_once(tmp_path, monkeypatch):
    root = write_mvtec(Path(get_globals().dataset_dir) / "mvtec", ("cup",), train=4, size=32)
    settings = get_globals()
    Path(settings.cache_dir).mkdir(exist_ok=True)
    (Path(settings.cache_dir) / MEMO_NAME).write_text("")
    data = fingerprint(list_samples("mvtec", "cup", settings), settings.cache_dir)
    records = [trial(tmp_path, data, seed=seed) for seed in range(5)]
    for record in records:
        record.trial["assignment"] = {"settings": to_plain(settings)}

    looks = []

    def list_and_count(*args, **more):
        looks.append(more["seed"])
        return list_samples(*args, **more)

    monkeypatch.setattr(changed_data, "list_samples", list_and_count)
    assert set(present_fingerprints(records).values()) == {data}
    assert len(present_fingerprints(records)) == 5
    assert len(looks) == 2

    (root / "cup" / "test" / "good").rename(root / "cup" / "test" / "crack")
    assert set(present_fingerprints(records).values()) != {data}


# Settings


def test_two_settings_of_a_cell_have_a_row_each_that_names_what_differs(tmp_path):
    one = trial(tmp_path, auroc=0.9, model__lr=0.1, train__num_epochs=5)
    two = trial(tmp_path, auroc=0.5, model__lr=0.2, train__num_epochs=5)
    assert means(marked(one, two)) == {"padim (model.lr=0.1)": 0.9, "padim (model.lr=0.2)": 0.5}


@pytest.mark.parametrize(
    "field", ["train__img_size", "weights__resnet18", "versions__core", "auxiliary", "fit"]
)
def test_whatever_decides_a_result_makes_a_setting(field, tmp_path):
    one = trial(tmp_path, auroc=0.9, **{field: "1"})
    two = trial(tmp_path, auroc=0.5, **{field: "2"})
    assert sorted(means(marked(one, two)).values()) == [0.5, 0.9]


def test_seeds_of_one_setting_are_averaged_and_those_of_another_are_not(tmp_path):
    records = [
        trial(tmp_path, auroc=0.9, seed=1, model__lr=0.1),
        trial(tmp_path, auroc=0.7, seed=2, model__lr=0.1),
        trial(tmp_path, auroc=0.1, seed=3, model__lr=0.2),
    ]
    assert means(marked(*records)) == {
        "padim (model.lr=0.1)": pytest.approx(0.8),
        "padim (model.lr=0.2)": 0.1,
    }


def test_a_setting_of_each_category_is_one_configuration(tmp_path):
    records = [
        trial(tmp_path, auroc=0.9, category="cup", train__img_size=256),
        trial(tmp_path, auroc=0.7, category="plate", train__img_size=512),
    ]
    assert means(marked(*records)) == {"padim": pytest.approx(0.8)}


def test_settings_with_many_differences_have_names_of_their_own(tmp_path):
    records = []
    for number in range(5):
        many = {f"model__f{k}": number == 4 or 0 for k in range(9)}
        records.append(trial(tmp_path, auroc=0.9, **many, weights__net=f"{number}" * 64))
    names = [record.setting for record in marked(*records)]
    assert len(set(names)) == 5
    assert all(len(name) < 100 for name in names)


# What people read


@pytest.fixture
def store(tmp_path):
    """A cell of old and new images, and one of two settings; .6250 and .8125 would be their means."""
    root = tmp_path / "store"
    trial(root, OLD, 0.75, day=1)
    trial(root, NEW, 0.5, day=2)
    trial(root, NEW, 0.875, category="plate", model__lr=0.1)
    trial(root, NEW, 0.7501, category="plate", model__lr=0.2)
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--all"],
        ["report", "--all", "--format", "markdown"],
        ["report", "--all", "--format", "csv"],
    ],
)
def test_no_command_prints_a_mean_over_batches_or_settings(words, store, capsys):
    assert main([words[0], str(store), *words[1:]]) == 0
    printed = capsys.readouterr().out
    assert not {"0.6250", "0.8125", "0.8126"} & figures(printed)
    assert "outdated" in printed
    assert "model.lr=0.1" in printed


def test_the_page_lists_outdated_trials_and_ranks_none_of_them(store, capsys):
    assert main(["report", str(store), "--all"]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [trial["v"][0] for trial in data["outdated"]] == [0.75]
    assert {trial["x"] for trial in data["trials"]} == {"done"}
    assert len({trial["m"] for trial in data["trials"]}) == len(data["configurations"]) == 3
    assert "0.625" not in json.dumps(data["rankings"])


def test_a_page_of_outdated_trials_alone_ranks_nothing(store):
    records = [replace(record, outdated="changed") for record in read_store(store)]
    data = report_data("s", records, base=store)
    assert len(data["outdated"]) == 4
    assert (data["trials"], data["rankings"], data["machines"]) == ([], {}, [])


def test_images_rank_each_setting_by_itself(tmp_path):
    records = []
    for rate in (0.1, 0.2):
        record = trial(tmp_path, model__lr=rate)
        score = np.r_[np.arange(8.0), np.zeros(6)]
        write_test_scores(record, map(str, range(8)), score if rate == 0.1 else -score)
        records.append(record)
    records = marked(*records)
    done = table(map(trial_row, records))
    ranked = rank_trials(done, "image_auroc", records).table
    assert list(ranked["mean"]) == [1.0, 0.0]
    assert list(ranked["configuration"]) == ["padim (model.lr=0.1)", "padim (model.lr=0.2)"]


def test_a_team_is_of_one_batch_and_the_others_are_named(tmp_path):
    store = tmp_path / "store"
    for name in ("padim", "stfpm", "dfm"):
        for data, day in ((OLD, 1), (NEW, 2)):
            write_test_scores(trial(store, data, configuration=name, day=day), map(str, range(8)))
    found = find_candidates(store, Wanted())
    (candidates,) = found.by_category.values()
    assert {candidate.record.identity["data"] for candidate in candidates} == {NEW}
    assert len(found.left_out) == 3
    assert all("aaaaaaaa, now bbbbbbbb" in trial.reason for trial in found.left_out)


def test_a_team_of_more_than_the_batch_has_is_refused_and_both_batches_are_named(tmp_path, capsys):
    store = tmp_path / "store"
    for name in ("padim", "stfpm"):
        for data, day in ((OLD, 1), (NEW, 2)):
            write_test_scores(trial(store, data, configuration=name, day=day), map(str, range(8)))
    assert main(["ensemble", str(store), "--size", "3"]) == 2
    printed = capsys.readouterr().err
    assert "aaaaaaaa" in printed
    assert "bbbbbbbb" in printed


# Two stores


def test_trials_of_other_images_stand_beside_each_other_without_a_verdict(tmp_path):
    for name, data, auroc in (("a", OLD, 0.9), ("b", NEW, 0.5)):
        write_test_scores(trial(tmp_path / name, data, auroc), map(str, range(8)))
    difference = compare_stores(tmp_path / "a", tmp_path / "b")
    (cell,) = difference.cells.to_dict("records")
    assert (cell["a"], cell["b"]) == (0.9, 0.5)
    assert cell["verdict"] == "not compared: the images have changed"
    assert not difference.has_changed


def test_a_trial_meets_the_one_of_its_own_images_however_old_that_is(tmp_path):
    write_test_scores(trial(tmp_path / "a", OLD, 0.9), map(str, range(8)))
    for data, auroc, day in ((OLD, 0.9, 1), (NEW, 0.5, 2)):
        write_test_scores(trial(tmp_path / "b", data, auroc, day=day), map(str, range(8)))
    difference = compare_stores(tmp_path / "a", tmp_path / "b")
    assert list(difference.cells["verdict"]) == ["same"]
    assert [one.store for one in difference.unpaired] == ["B"]


def test_outdated_trials_of_both_stores_are_listed_and_averaged_with_nothing(tmp_path, capsys):
    for name in ("a", "b"):
        for data, auroc, day in ((OLD, 0.9, 1), (NEW, 0.5, 2)):
            write_test_scores(trial(tmp_path / name, data, auroc, day=day), map(str, range(8)))
    difference = compare_stores(tmp_path / "a", tmp_path / "b")
    assert list(difference.cells["a"]) == [0.5]
    assert [one.store for one in difference.outdated] == ["A", "B"]
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "Outdated, and compared with nothing:" in capsys.readouterr().out

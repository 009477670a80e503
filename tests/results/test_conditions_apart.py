"""No mean, ranking or answer of a cell mixes conditions of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_store import fake_record

from adray.language.catalogue import load_catalogue
from adray.results.current import mark_outdated, mark_settings, mark_superseded
from adray.results.leaderboard import format_summary, summary, table, trial_row
from adray.results.markdown import format_markdown
from adray.results.pairing import match
from adray.results.report import render, report_data

EN = load_catalogue("en")


def trial(root, configuration, category="bottle", auroc=0.9, condition=None, seed=42, **identity):
    """A finished trial whose folder is its own for each condition."""
    name = f"{category}{sorted((condition or {}).items())}"
    record = fake_record(root, configuration, name, seed, auroc)
    own = {"categories": [category], **identity}
    if condition:
        own["condition"] = condition
    whole = {**record.trial, "identity": {**record.identity, **own}}
    return replace(record, trial=whole)


def few(k, draw=1):
    return {"k_shot": k, "draw": draw}


@pytest.fixture
def records(tmp_path):
    """Two models of opposite order with all images and with four."""
    found = [trial(tmp_path, "padim", auroc=0.9), trial(tmp_path, "stfpm", auroc=0.8)]
    for draw, shift in ((1, -0.02), (2, 0.0), (3, 0.02)):
        found.append(trial(tmp_path, "padim", auroc=0.5 + shift, condition=few(4, draw)))
        found.append(trial(tmp_path, "stfpm", auroc=0.7 + shift, condition=few(4, draw)))
    return found


def test_rows_say_condition_draw_and_number_of_images(records):
    frame = table(map(trial_row, records))
    assert sorted(frame["condition"].unique()) == ["k_shot=4", "plain"]
    assert sorted(frame["draw"].dropna()) == [1, 1, 2, 2, 3, 3]
    lines = frame.to_csv(index=False).splitlines()
    assert sum(",k_shot=4,1,200," in line for line in lines) == 2
    assert sum(",plain,,200," in line for line in lines) == 2
    assert set(frame["train_images"]) == {200}
    assert trial_row(records[2]).name == "padim (k_shot=4)"


def test_means_are_over_draws_and_never_over_conditions(records):
    frame = table(map(trial_row, records))
    plain = summary(frame[frame["condition"] == "plain"])
    of_few = summary(frame[frame["condition"] == "k_shot=4"])
    assert plain["image_auroc"].tolist() == [0.9, 0.8]
    assert of_few["image_auroc"].tolist() == pytest.approx([0.7, 0.5])
    assert of_few["configuration"].tolist() == ["stfpm (k_shot=4)", "padim (k_shot=4)"]

    text = format_summary(frame, EN)
    assert text.index("plain:") < text.index("k_shot=4:")
    assert "(k_shot=4)" not in text
    assert "0.7000" in text
    assert "0.6500" not in text  # of both conditions


def test_conditions_of_one_setting_do_not_take_each_others_place(records):
    later = replace(records[-1], result={**records[-1].result, "finished": "2027-01-01"})
    marked = mark_superseded(mark_outdated([*records[:-1], later]))
    assert not any(record.outdated or record.superseded for record in marked)
    assert not any(record.setting for record in mark_settings(marked))


def test_a_later_setting_counts_within_its_condition_only(tmp_path):
    old = trial(tmp_path, "padim", condition=few(4))
    plain = trial(tmp_path, "padim")
    new = trial(tmp_path, "padim", condition=few(4), train={"holdout": 0.3}, seed=43)
    new = replace(new, result={**new.result, "finished": "2027-01-01"})
    marked = mark_superseded([old, plain, new])
    assert [bool(record.superseded) for record in marked] == [True, False, False]


def test_ranking_and_cells_of_the_report_are_of_the_plain_case(records, tmp_path):
    data = report_data("s", records, base=tmp_path)
    assert data["configurations"] == ["padim", "stfpm"]
    ranked = data["rankings"]["image_auroc"]["rows"]
    assert [(row["configuration"], row["mean"]) for row in ranked] == [
        ("padim", 0.9),
        ("stfpm", 0.8),
    ]
    assert len(data["trials"]) == 2


def test_the_report_has_means_and_curves_of_all_conditions(records, tmp_path):
    found = report_data("s", records, base=tmp_path)["conditions"]
    assert found["names"] == ["plain", "k_shot=4"]
    shown = found["metrics"]["image_auroc"]
    means = [(row["condition"], row["configuration"], row["mean"]) for row in shown["means"]]
    assert means == [
        ("plain", "padim", 0.9),
        ("plain", "stfpm", 0.8),
        ("k_shot=4", "stfpm", 0.7),
        ("k_shot=4", "padim", 0.5),
    ]
    assert [curve["configuration"] for curve in shown["curves"]] == ["padim", "stfpm"]
    render(report_data("s", records, base=tmp_path))
    assert report_data("s", records[:2], base=tmp_path)["conditions"] is None


def test_a_failure_under_a_condition_is_counted_in_the_report(records, tmp_path):
    failed = replace(records[-1], result=None, failure={"reason": "on purpose"})
    found = report_data("s", [*records[:-1], failed], base=tmp_path)["conditions"]
    rows = found["metrics"]["image_auroc"]["means"]
    assert [row["failed"] for row in rows if row["condition"] == "k_shot=4"] == [1, 0]


def test_a_store_of_one_condition_alone_shows_that_one(records, tmp_path):
    data = report_data("s", records[2:], base=tmp_path)
    assert data["condition"] == "k_shot=4"
    assert data["configurations"] == ["padim (k_shot=4)", "stfpm (k_shot=4)"]
    assert len(data["trials"]) == 6


def test_stores_are_compared_condition_by_condition_and_draw_by_draw(records):
    matched = match(records, records[:-1])
    assert len(matched.pairs) == 7
    (alone,) = matched.unpaired
    assert alone.key.condition == "k_shot=4 draw 3"
    for a, b in matched.pairs:
        assert (a.condition, a.draw) == (b.condition, b.draw)


def test_markdown_has_tables_of_each_condition(records):
    text = format_markdown(table(map(trial_row, records)), records)
    plain, of_few = text.split("## k_shot=4")
    assert plain.startswith("## plain")
    assert "k_shot" not in plain
    assert plain.index("| padim |") < plain.index("| stfpm |")
    assert of_few.index("| stfpm (k_shot=4) |") < of_few.index("| padim (k_shot=4) |")
    assert "## " not in format_markdown(table(map(trial_row, records[:2])), records[:2])

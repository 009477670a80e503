"""The report's figures and its page; how a browser shows it is in test_report_browser.py."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_store import fake_record, fake_search, write_record
from PIL import Image
from sklearn.metrics import roc_auc_score

from adray.__main__ import main
from adray.registry import ModelRegistry
from adray.results.gallery import THUMBNAILS
from adray.results.leaderboard import METRIC_COLUMNS, skipped_row
from adray.results.measurements import add_measurement
from adray.results.report import (
    RANKED,
    published_figures,
    render,
    report_data,
    write_report,
)

MVTEC = {
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
}  # fmt: skip


def page_data(page: str) -> dict:
    """The values that a page carries, as a browser would read them."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )


def records(root, configurations=("padim", "stfpm"), categories=("bottle", "wood"), seeds=(0, 1)):
    return [
        fake_record(root, name, category, seed, 0.9 - 0.1 * k + 0.01 * seed)
        for k, name in enumerate(configurations)
        for category in categories
        for seed in seeds
    ]


def test_the_page_carries_every_trial_and_every_cell_that_could_not_run(tmp_path):
    failed = fake_record(tmp_path, "dfm", "bottle", auroc=None)
    skipped = skipped_row(("mvtec", "wood", "cfa"), 42, "missing weights of 'wide_resnet50_2'")
    data = page_data(
        render(report_data("s", [*records(tmp_path), failed], [skipped], base=tmp_path))
    )
    states = [trial["x"] for trial in data["trials"]]
    assert (states.count("done"), states.count("failed"), states.count("skipped")) == (8, 1, 1)
    reasons = {data["configurations"][t["m"]]: t["r"] for t in data["trials"] if "r" in t}
    assert reasons == {
        "dfm": "dfm failed on purpose",
        "cfa": "missing weights of 'wide_resnet50_2'",
    }
    best = data["rankings"]["image_auroc"]["rows"]
    assert [row["configuration"] for row in best[:2]] == ["padim", "stfpm"]
    assert best[0]["mean"] == pytest.approx(0.905)


def test_names_from_folders_cannot_end_the_data_or_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script>"
    failed = fake_record(tmp_path, "padim", "bottle", auroc=None)
    failed.trial["identity"]["categories"] = [evil]
    failed.failure["reason"] = "<img src=x onerror=alert(2)>\u2028"
    page = render(report_data(evil, [failed], base=tmp_path))
    assert page.count("<script") == 2
    assert "<img" not in page
    assert page_data(page)["cells"] == [["mvtec", evil]]
    assert "&lt;/script&gt;" in page.split("</title>")[0]


def test_a_name_that_is_not_utf8_can_be_written_and_is_read_back(tmp_path):
    data = report_data("s", [], base=tmp_path) | {"name": "teil_\udce4"}
    write_report(tmp_path / "report.html", data)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    embedded = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(embedded)["name"] == "teil_\udce4"


def test_the_page_asks_for_nothing_from_anywhere(tmp_path):
    page = render(report_data("s", records(tmp_path), base=tmp_path))
    without_names = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\((?!#)", without_names)
    assert not re.search(r"<(link|img|iframe|script)[^>]* (src|href)=\"(?!data:)", without_names)


def test_a_search_stands_on_the_page_with_its_tries_as_text(tmp_path):
    page = render(report_data("s", [], base=tmp_path, searches=[fake_search(leaky=True)]))
    assert page.count("<script") == 2
    (found,) = page_data(page)["searches"]
    assert found["leaky"] is True
    assert [found[key] for key in ("default_score", "best_score", "gain", "low", "high")] == [
        0.8,
        0.86,
        0.04,
        -0.01,
        0.09,
    ]
    assert found["best"] == {"model.coreset_ratio": 0.2, "model.layers": "layer2, layer3"}
    assert [trial["score"] for trial in found["trials"]] == [0.8, 0.82, 0.84, 0.86, None]


def test_tries_of_a_search_are_in_no_store_wide_table(tmp_path, capsys):
    own, drawn, synthetic, leaky = (
        fake_record(tmp_path, "padim", name, 0, 0.9)
        for name in ("bottle", "carpet", "wood", "leather")
    )
    for record in (drawn, synthetic):
        record.trial["identity"]["evaluation"] = "synthetic"
    for record in (synthetic, leaky):
        record.trial["assignment"] = {"search": "s"}
    for record in (own, drawn, synthetic, leaky):
        write_record(record)
    assert main(["report", str(tmp_path), "--all", "--format", "csv"]) == 0
    shown = capsys.readouterr()
    assert "bottle" in shown.out
    assert "wood" not in shown.out
    assert "leather" not in shown.out
    assert "2 trials of searches" in shown.err
    assert main(["status", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("2 done\n2 trials of searches")
    assert "wood" not in told
    assert "carpet/padim seed 0  0.9000 on drawn defects" in told


def test_the_page_says_of_each_trial_whether_its_defects_are_drawn(tmp_path):
    drawn = fake_record(tmp_path, "padim", "carpet")
    drawn.trial["identity"]["evaluation"] = "synthetic"
    data = report_data("s", [fake_record(tmp_path, "padim", "bottle"), drawn], base=tmp_path)
    marks = {data["cells"][trial["c"]][1]: trial["y"] for trial in data["trials"]}
    assert marks == {"bottle": 0, "carpet": 1}
    notes = data["rankings"]["image_auroc"]["notes"]
    assert any(
        "mvtec/carpet are of defects drawn on held-out normals" in one for one in notes["en"]
    )
    assert any("가상 결함" in note for note in notes["ko"])


def test_an_infinite_or_missing_metric_reads_n_a(tmp_path):
    odd = fake_record(tmp_path, "padim", "bottle")
    odd.result["metrics"] |= {"pixel_auroc": None, "image_aupr": float("inf")}
    trial = page_data(render(report_data("s", [odd], base=tmp_path)))["trials"][0]
    assert trial["v"][RANKED.index("pixel_auroc")] is None
    assert trial["v"][RANKED.index("image_aupr")] is None


def test_ours_stands_beside_what_was_published_and_untrained_backbones_do_not(tmp_path):
    ours = fake_record(tmp_path, "padim", "bottle", auroc=0.985)
    random = fake_record(tmp_path, "stfpm", "bottle", auroc=0.5, weights="random")
    beside = report_data("s", [ours, random], base=tmp_path)["published"]
    found = {(row["source"], row["metric"]): (row["ours"], row["percent"]) for row in beside}
    assert found["anomalib README", "image_auroc"] == (98.5, 99.4)
    assert {row["configuration"] for row in beside} == {"padim"}


def test_published_figures_are_of_known_configurations_categories_and_metrics():
    figures = published_figures()
    visa = {f["category"] for f in figures if f["dataset"] == "visa"}
    assert len(figures) > 800
    assert {f["category"] for f in figures if f["dataset"] == "mvtec"} == MVTEC
    assert len(visa) == 12
    assert {f["metric"] for f in figures} <= set(METRIC_COLUMNS)
    assert all(20 <= float(f["percent"]) <= 100 and f["source"] for f in figures)
    assert {f["configuration"] for f in figures} <= set(ModelRegistry.list_models())
    rows = [f for f in figures if (f["configuration"], f["metric"]) == ("patchcore", "image_auroc")]
    assert np.mean([float(f["percent"]) for f in rows]) == pytest.approx(
        98.0, abs=0.06
    )  # the published average


def test_few_categories_are_ranked_by_their_test_images(tmp_path):
    """Over two categories nothing can be told apart, by 60 images a perfect detector can from a coin."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    trials = []
    for name, score in (("padim", label + 0.1 * rng.random(60)), ("stfpm", rng.random(60))):
        for category in ("bottle", "wood"):
            record = fake_record(tmp_path, name, category, auroc=roc_auc_score(label, score))
            record.folder.mkdir(parents=True)
            images = {
                "split": "test",
                "path": [f"{i}.png" for i in range(60)],
                "label": label,
                "pred_score": score,
            }
            images |= {"dataset": "mvtec", "category": category}
            pd.DataFrame(images).to_parquet(record.folder / "scores.parquet")
            trials.append(record)
    by_images = report_data("s", trials, base=tmp_path)["rankings"]["image_auroc"]["rows"]
    assert [(row["configuration"], row["group"]) for row in by_images] == [
        ("padim", "a"),
        ("stfpm", "b"),
    ]
    (trials[0].folder / "scores.parquet").unlink()
    by_categories = report_data("s", trials, base=tmp_path)["rankings"]["image_auroc"]
    assert [row["group"] for row in by_categories["rows"]] == ["a", "a"]
    assert "cannot tell models apart" in " ".join(by_categories["notes"]["en"])
    assert "우열을 가릴 수 없습니다" in " ".join(by_categories["notes"]["ko"])


def test_only_measured_speed_is_shown(tmp_path):
    record = fake_record(tmp_path, "padim", "bottle")
    record.folder.mkdir(parents=True)
    assert report_data("s", [record], base=tmp_path)["costs"] == []
    for kind, milliseconds in (("cpu", 40.0), ("cuda", 4.0)):
        add_measurement(
            record,
            {
                "kind": kind,
                "device": kind,
                "threads": 1,
                "latency_ms": milliseconds,
                "warnings": [],
            },
        )
    costs = report_data("s", [record], base=tmp_path)["costs"]
    assert {(row["device"], row["latency_ms"]) for row in costs} == {("cpu", 40.0), ("cuda", 4.0)}


def test_the_gallery_shows_the_worst_of_the_best_trial_of_each_cell_then_what_was_found(tmp_path):
    good, poor = (
        fake_record(tmp_path, "padim", "bottle"),
        fake_record(tmp_path, "stfpm", "bottle", auroc=0.6),
    )
    for record in (good, poor):
        record.folder.mkdir(parents=True)
        Image.new("RGB", (400, 120), "white").save(record.folder / "image_a.png")
        (record.folder / "torn.png").write_bytes(b"\x89PNG")
    picture = {
        "file": "image_a.png",
        "path": "/data/test/crack/000.png",
        "label": 1,
        "pred_score": 0.5,
    }
    good.result["pictures"] = [picture | {"verdict": "miss"}] * (THUMBNAILS + 5) + [
        picture | {"verdict": "found"}
    ]
    good.result["pictures"][3] = picture | {"verdict": "false alarm", "file": "torn.png"}
    poor.result["pictures"] = [picture | {"verdict": "miss"}]
    data = report_data("s", [good, poor], base=tmp_path / "sweeps" / "s")
    assert len(data["pictures"]) == THUMBNAILS
    assert len(data["linked"]) == 6
    assert {p["verdict"] for p in data["linked"][-1:]} == {"found"}
    assert {p["configuration"] for p in data["pictures"]} == {"padim"}
    assert data["pictures"][0]["href"] == f"../../mvtec/bottle/padim/{good.folder.name}/image_a.png"
    assert (tmp_path / "sweeps" / "s" / data["pictures"][0]["href"]).resolve().is_file()
    assert data["pictures"][0]["image"].startswith("data:image/jpeg;base64,")


def test_ten_thousand_trials_stay_below_ten_megabytes(tmp_path):
    names = [f"configuration-{i}" for i in range(42)]
    parts = [f"part{i:02d}" for i in range(30)]
    many = records(tmp_path, names, parts, range(8))
    write_report(tmp_path / "report.html", report_data("s", many, base=tmp_path))
    assert len(many) > 10_000
    assert (
        tmp_path / "report.html"
    ).stat().st_size < 7e6  # 200 thumbnails of at most 15 kB come on top


def test_the_command_writes_the_page_and_a_table(tmp_path):
    write_record(fake_record(tmp_path, "padim", "bottle"))
    assert main(["report", str(tmp_path)]) == 0
    assert page_data((tmp_path / "report.html").read_text())["cells"] == [["mvtec", "bottle"]]
    assert (
        main(["report", str(tmp_path), "--format", "markdown", "--out", str(tmp_path / "r.md")])
        == 0
    )
    assert "| padim |" in (tmp_path / "r.md").read_text()


def test_a_store_without_trials_is_refused_in_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "does not exist" in errors
    assert "holds no trials" in errors

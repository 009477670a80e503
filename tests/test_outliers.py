"""`adray outliers`: lists of training normals, and sweeps that leave some of them out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_datasets import save, write_mvtec

from adray import outliers
from adray.__main__ import main
from adray.config_file import load_sweep
from adray.data.accounting import account_dataset, dropped_remarks
from adray.data.base import Sample
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.outliers import ScoredNormals, ranked
from adray.settings import DataOptions, Settings, get_globals, set_globals
from adray.types import EIGHT_BITS

LITE = ["--models", "patchcore-efficientnet-lite0"]


@pytest.fixture
def dirty(one_thread, tmp_path):
    """A category of which one training normal has the bright square of a defect."""
    root = write_mvtec(tmp_path / "sets" / "mvtec", ("bottle",), train=12)
    good = sorted((root / "bottle" / "train" / "good").iterdir())
    save(good[5], 5, defect=True)
    set_globals(dataset_dir=str(root.parent), cache_dir=str(tmp_path / "cache"))
    return root, good[5].relative_to(root).as_posix()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_planted_defect_stands_first_and_a_marked_row_leaves_it_out(dirty, tmp_path, capsys):
    root, planted = dirty
    assert main(["outliers", str(root), "--out", str(tmp_path / "out"), *LITE]) == 0
    said = capsys.readouterr().out
    assert "efficientnet_lite0: " in said

    rows = rows_of(tmp_path / "out" / "outliers.csv")
    assert len(rows) == 12
    assert rows[0]["image"] == planted
    assert {"patchcore-efficientnet-lite0", "softpatch"} <= set(rows[0])
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 12

    rows[0]["drop"] = "x"
    with (tmp_path / "marked.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    marked = str(tmp_path / "marked.csv")
    sweep = tmp_path / "clean.yaml"
    assert main(["outliers", str(root), "--drop", marked, "--write", str(sweep)]) == 0
    assert yaml.safe_load(sweep.read_text())["settings"]["data"]["mvtec"]["drop"] == [planted]
    settings = load_sweep(sweep, []).settings
    names = {sample.key for sample in list_samples("mvtec", "bottle", settings)}
    assert planted not in names
    assert (
        "mvtec: 1 normal images are left out"
        in dropped_remarks({"mvtec": account_dataset("mvtec", settings)})[0]
    )


def test_korean_readers_get_korean(dirty, tmp_path, monkeypatch, capsys):
    root, _ = dirty

    def scored(dataset, category, *_more):
        samples = list_samples(dataset, category, get_globals())[:3]
        yield ScoredNormals("padim", samples, np.arange(3, dtype=np.float32), EIGHT_BITS)

    monkeypatch.setattr(outliers, "score_normals", scored)
    arguments = ["outliers", str(root), "--lang", "ko", "--out", str(tmp_path / "out"), *LITE]
    assert main(arguments) == 0
    assert "점수를 매기는 방법" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "다른 이미지와 가장 다른 것부터" in page
    assert page.count("data:image/jpeg") == 3


def with_drop(drop) -> Settings:
    """Settings in which a data set leaves images out."""
    set_globals(data={"mvtec": DataOptions(drop=drop)})
    return get_globals()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bottle/train/good/999.png", "is no file in"),
        ("bottle/test/good/000.png", "is an image of the test"),
        ("bottle/test/broken/000.png", "is a defective image"),
    ],
)
def test_a_name_that_is_no_training_normal_is_refused(dirty, name, message):
    root, _ = dirty
    if "broken" in name:
        defects = [
            p for p in sorted((root / "bottle" / "test").rglob("*.*")) if "good" not in str(p)
        ]
        name = defects[0].relative_to(root).as_posix()
    with pytest.raises(InputError, match=message):
        list_samples("mvtec", "bottle", with_drop((name,)))


def test_a_file_that_is_no_image_of_the_set_is_refused_where_all_are_looked_at(dirty):
    root, _ = dirty
    (root / "readme.txt").write_text("words", encoding="utf-8")
    with pytest.raises(InputError, match="is no image that trains or tests"):
        account_dataset("mvtec", with_drop(("readme.txt",)))


def test_a_list_is_a_table_with_marks_or_a_name_a_line(dirty):
    root, planted = dirty
    other = planted.replace("005", "006")
    (root / "list.csv").write_text(f"image,drop\n{planted},X\n{other},\n", encoding="utf-8")
    (root / "list.txt").write_text(f"{planted}\n\n", encoding="utf-8")
    for name in ("list.csv", "list.txt"):
        keys = {one.key for one in list_samples("mvtec", "bottle", with_drop(name))}
        assert planted not in keys
        assert other in keys


@pytest.mark.parametrize(
    ("header", "separator", "encoding"),
    [
        ("Image,Drop", ",", "utf-8"),
        ("image,drop", ";", "utf-8-sig"),
        ("image,drop", "\t", "utf-16"),
    ],
)
def test_marks_count_however_a_spreadsheet_saved_the_table(dirty, header, separator, encoding):
    root, planted = dirty
    other = planted.replace("005", "006")
    table = f"{header}\n{planted},x\n{other},\n".replace(",", separator)
    (root / "list.csv").write_text(table, encoding=encoding)
    keys = {one.key for one in list_samples("mvtec", "bottle", with_drop("list.csv"))}
    assert planted not in keys
    assert other in keys


@pytest.mark.parametrize(
    ("text", "message"),
    [("image,drop\na.png,\n", "marks no image"), ("name\na.png\n", "needs one called image")],
)
def test_a_table_that_marks_nothing_is_refused(dirty, text, message):
    root, _ = dirty
    (root / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list_samples("mvtec", "bottle", with_drop("list.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop", "a.csv"], "go together"),
        (["--category", "botle"], "did you mean 'bottle'"),
        (["--models", "stfpm"], "is not fitted in one pass"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_scored(dirty, arguments, message, capsys):
    root, _ = dirty
    assert main(["outliers", str(root), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_writes_nothing(dirty, tmp_path, monkeypatch, capsys):
    root, _ = dirty

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(outliers, "score_normals", interrupted)
    assert main(["outliers", str(root), "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_places_are_averaged_over_the_lists_and_equal_scores_share_theirs():
    names = ("a", "b", "c")
    samples = [Sample(Path(n), (), 0, "good", "d", "c", "train", n) for n in names]
    lists = [
        ScoredNormals("one", samples, np.array([3.0, 2.0, 1.0], np.float32), EIGHT_BITS),
        ScoredNormals("two", samples, np.array([5.0, 5.0, 9.0], np.float32), EIGHT_BITS),
    ]
    found = ranked(lists)
    assert [one.sample.key for one in found] == ["a", "c", "b"]
    assert [one.mean_rank for one in found] == [1.75, 2.0, 2.25]
    assert dict(found[0].ranks) == {"one": 1.0, "two": 2.5}

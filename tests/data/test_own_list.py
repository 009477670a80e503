from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from fake_datasets import numbered, write_tree

from adray.__main__ import main
from adray.data.base import Sample
from adray.data.readers import list_categories, list_samples, resolve_dataset
from adray.data.splits import holdout
from adray.errors import InputError
from adray.settings import DataOptions, Settings


def settings(home: Path, table: str = "parts.csv", **options) -> Settings:
    data = {"my": DataOptions(list=table, **options)}
    return Settings(dataset_dir=str(home), cache_dir=str(home / "cache"), data=data)


def read(home: Path, table: str = "parts.csv", **options) -> list[Sample]:
    return list_samples("my", "all", settings(home, table, **options))


def rows(**changes) -> list[dict[str, object]]:
    """Ten normal images and two scratches of two lots each."""
    found = []
    for i in range(12):
        row = {"image_path": f"pictures/{i}.png", "label": "good" if i < 10 else "scratch"}
        row |= {"mask_path": f"masks/{i}.png" if i >= 10 else "", "lot": f"L{i % 3}"}
        found.append(row | changes)
    return found


@pytest.fixture
def home(tmp_path):
    write_tree(tmp_path / "my", numbered("pictures/{}.png", 12), numbered("masks/{}.png", 2, 10))
    return tmp_path


def write(home: Path, table: list[dict[str, object]], name: str = "parts.csv") -> None:
    frame = pd.DataFrame(table)
    path = home / "my" / name
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        book.active.append(list(frame.columns))
        for row in frame.to_numpy().tolist():
            book.active.append(row)
        book.save(path)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("name", ["parts.csv", "parts.tsv", "parts.xlsx", "parts.parquet"])
def test_a_list_is_the_same_in_every_format(home, name):
    write(home, rows(), name)
    samples = read(home, name)
    assert Counter((s.split, s.defect_type) for s in samples) == {
        ("train", "good"): 8,
        ("test", "good"): 2,
        ("test", "scratch"): 2,
    }
    for s in samples:
        number = int(s.path.stem)
        assert s.path == home / "my" / "pictures" / f"{number}.png"
        expected = (home / "my" / "masks" / f"{number}.png",) if number >= 10 else ()
        assert s.mask_paths == expected
        assert s.columns == (("lot", f"L{number % 3}"),)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("OK", "NG"),
        ("정상", "불량"),
        ("양품", "결함"),
        (0, 1),
        (0.0, 1.0),
        (False, True),
        (" Good ", "ng"),
    ],
)
@pytest.mark.parametrize("name", ["parts.csv", "parts.parquet"])
def test_words_for_good_may_be_of_many_kinds(home, good, bad, name):
    table = [row | {"label": good if row["label"] == "good" else bad} for row in rows()]
    write(home, table, name)
    assert Counter(s.label for s in read(home, name)) == {0: 10, 1: 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": ""}, r"parts.csv, row 5: the label is empty"),
        ({"label": "?"}, r"parts.csv, row 5: the label '\?' says nothing"),
        ({"label": "0.5"}, r"row 5: the label '0.5' is no whole number"),
        ({"label": "goood"}, r"row 5: the label 'goood' is unknown; did you mean 'good'"),
        ({"image_path": ""}, r"row 5: image_path is empty"),
        ({"image_path": "gone.png"}, r"row 5: image_path 'gone.png' does not exist"),
        ({"image_path": "x" * 300}, r"row 5: image_path .* does not exist"),
        ({"image_path": "pictures/0.png"}, r"row 5: 'pictures/0.png' is listed in row 2 already"),
        ({"mask_path": "masks/10.png"}, r"row 5: a normal image has the mask 'masks/10.png'"),
        ({"split": "later"}, r"row 5: split 'later' is neither"),
        ({"category": "a/b"}, r"row 5: category 'a/b' names no folder"),
    ],
)
def test_a_value_that_is_empty_or_strange_is_named_with_its_row(home, changes, sentence):
    table = rows(split="train") if "split" in changes else rows()
    table = [row | {"category": "c"} for row in table] if "category" in changes else table
    table[3] = table[3] | changes
    write(home, table)
    with pytest.raises(InputError, match=sentence):
        read(home)


def test_a_split_in_some_rows_only_is_refused(home):
    table = rows(split="train")
    table[7] = table[7] | {"split": ""}
    write(home, table)
    with pytest.raises(InputError, match="row 9: the split is empty, while others have one"):
        read(home)


def test_a_split_of_the_list_is_kept_and_validation_is_held_out(home):
    table = rows()
    for i, row in enumerate(table):
        row["split"] = "Train" if i < 6 else "val" if i < 8 else "test"
    write(home, table)
    samples = read(home)
    assert Counter(s.split for s in samples) == {"train": 6, "validation": 2, "test": 4}
    train, held_out = holdout(samples, 0.5, 0)
    assert (len(train), {s.path.stem for s in held_out}) == (6, {"6", "7"})


def test_a_group_is_on_one_side_of_the_split_for_every_seed(home):
    table = [row | {"group": row["lot"] if row["label"] == "good" else ""} for row in rows()]
    write(home, table)
    for seed in range(10):
        samples = list_samples("my", "all", settings(home), seed=seed)
        sides = {(s.group, s.split) for s in samples if s.group}
        assert len(sides) == 3
        assert {s.split for s in samples if not s.label} == {"train", "test"}


def test_normals_of_a_group_with_a_defect_test_with_it(home):
    table = [
        row | {"group": "lot 1" if i in (0, 1, 10, 11) else f"own {i}"}
        for i, row in enumerate(rows())
    ]
    write(home, table)
    samples = read(home)
    assert {s.split for s in samples if s.group == "lot 1"} == {"test"}
    assert Counter(s.split for s in samples if not s.label) == {"train": 8, "test": 2}


def test_a_group_may_be_found_in_the_name(home):
    write(home, rows())
    samples = read(home, group=r"pictures/(\d)")
    assert samples[3].group == "3"
    with pytest.raises(InputError, match=r"data.my.group: '\(' is no regular expression"):
        read(home, group="(")
    with pytest.raises(InputError, match="has no bracket"):
        read(home, group="a")
    with pytest.raises(InputError, match=r"finds nothing in 'pictures/0.png'"):
        read(home, group="(lot)")


def test_categories_of_the_list_are_categories(home):
    table = [row | {"category": "bolt" if i % 2 else "nut"} for i, row in enumerate(rows())]
    write(home, table)
    assert list_categories("my", settings(home)) == ["bolt", "nut"]
    assert len(list_samples("my", "nut", settings(home))) == 6


def test_several_masks_have_semicolons_between_them(home):
    table = rows()
    table[10]["mask_path"] = "masks/10.png; masks/11.png"
    table[11]["mask_path"] = ""
    write(home, table)
    assert [len(s.mask_paths) for s in read(home)][-2:] == [2, 0]


def test_paths_may_be_of_windows_or_spelt_in_other_signs(home):
    name = unicodedata.normalize("NFD", "불량.png")
    (home / "my" / "pictures" / "0.png").rename(home / "my" / "pictures" / name)
    table = rows()
    table[0]["image_path"] = "pictures\\" + unicodedata.normalize("NFC", "불량.png")
    write(home, table)
    assert read(home)[0].path.name == name


def test_a_list_by_itself_is_found_without_being_named(home):
    write(home, rows())
    plain = Settings(dataset_dir=str(home))
    assert resolve_dataset("my", plain).layout == "list"
    assert len(list_samples("my", "all", plain)) == 12


def test_a_list_may_lie_beside_the_folders_and_name_files_in_full(home):
    table = [
        row | {"image_path": str(home / "my" / str(row["image_path"]))}
        for row in rows(mask_path="")
    ]
    pd.DataFrame(table).to_csv(home / "lines.csv", index=False)
    data = {"lines": DataOptions(list="lines.csv")}
    here = Settings(dataset_dir=str(home), data=data)
    samples = list_samples("lines", "all", here)
    assert samples[0].key == "my/pictures/0.png"


@pytest.mark.parametrize(
    "text",
    ["image_path;label\npictures/0.png;good\n", "\ufeffimage_path,label\npictures/0.png,ok\n"],
)
def test_text_tables_of_excel_are_understood(home, text):
    (home / "my" / "parts.csv").write_text(text)
    assert len(read(home)) == 1


def test_a_text_table_of_excel_in_utf_16_is_found_and_understood(home):
    table = "image_path\tlabel\npictures/0.png\t양품\npictures/11.png\t찍힘\n"
    (home / "my" / "parts.csv").write_bytes(table.encode("utf-16"))
    samples = read(home, table="")
    assert Counter(sample.defect_type for sample in samples) == {"good": 1, "찍힘": 1}


@pytest.mark.parametrize("first", ["sep=;\n", ""])
@pytest.mark.parametrize("separator", [";", "|"])
def test_a_separator_is_found_with_and_without_the_line_that_names_it(home, first, separator):
    table = f"{first}image_path;label\npictures/0.png;good\ngone.png;good\n"
    (home / "my" / "parts.csv").write_text(table.replace(";", separator))
    row = 4 if first else 3
    with pytest.raises(InputError, match=f"row {row}: image_path 'gone.png' does not exist"):
        read(home)


def test_columns_in_another_column_mean_what_they_say(home):
    renamed = [{name.title().replace("_", " "): row[name] for name in row} for row in rows()]
    write(home, renamed)
    samples = read(home, table="")
    write(home, rows())
    plain = read(home)
    assert [(one.mask_paths, one.split) for one in samples] == [
        (one.mask_paths, one.split) for one in plain
    ]


def test_a_list_that_is_not_in_utf_8_is_found_and_named(home):
    table = "image_path,label\npictures/0.png,양품\n"
    (home / "my" / "parts.csv").write_bytes(table.encode("cp949"))
    with pytest.raises(InputError, match=r"parts.csv: not a CSV file in UTF-8"):
        read(home, table="")


@pytest.mark.parametrize("up", ["../", "..\\"])
def test_a_list_may_lie_in_a_folder_beside_that_of_the_images(home, up):
    (home / "my" / "lists").mkdir()
    table = [row | {"image_path": up + str(row["image_path"])} for row in rows(mask_path="")]
    write(home, table, "lists/parts.csv")
    assert len(read(home, "lists/parts.csv")) == 12


def test_a_list_leads_to_no_file_outside_of_its_data_set(home):
    (home / "secret.png").write_bytes((home / "my" / "pictures" / "0.png").read_bytes())
    write(home, [{"image_path": "../secret.png", "label": "good"}])
    with pytest.raises(InputError, match="does not exist below"):
        read(home)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("parts.csv", b"image_path\nx.png\n", "column 'label' is missing"),
        ("parts.csv", b"image_path,label\n\xff\xfe,good\n", "not a CSV file in UTF-8"),
        ("parts.csv", b"image_path,label\na.png,good,more\n", "row 2: 3 values"),
        ("parts.csv", b"image_path,label,lot,lot\n", "names column 'lot' twice"),
        ("parts.csv", b"", "column 'image_path' is missing"),
        ("parts.xlsx", b"no", "not an Excel file"),
        ("parts.parquet", b"no", "not a parquet file"),
        ("parts.ods", b"no", ".ods is no table"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(home, name, data, sentence):
    (home / "my" / name).write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        read(home, name)


def test_a_list_that_is_not_there_is_named(home):
    with pytest.raises(InputError, match=r"data.my.list: .*gone.csv does not exist"):
        read(home, "gone.csv")


def test_a_list_without_normal_training_images_is_named(home):
    write(home, [row | {"label": "scratch"} for row in rows(mask_path="")])
    with pytest.raises(InputError, match=r"parts.csv: no row of my is a normal training image"):
        read(home)


def _another_column(table):
    return [{"file" if key == "image_path" else key: row[key] for key in row} for row in table]


@pytest.mark.parametrize(
    ("spoil", "korean"),
    [
        (_another_column, "지금 있는 열은 file"),
        (lambda table: [*table, table[0]], "이미 2행에 있습니다"),
        (lambda table: [*table, table[0] | {"image_path": "gone.png"}], "아래에 없습니다"),
        (lambda table: [table[0] | {"label": ""}, *table[1:]], "라벨이 비어 있습니다"),
        (lambda table: [table[0] | {"label": "goood"}, *table[1:]], "'good'의 오타인가요?"),
        (lambda table: [table[0] | {"split": "tain"}, *table[1:]], "split"),
        (lambda table: [table[0] | {"mask_path": "masks/10.png"}, *table[1:]], "라벨을 고치거나"),
        (lambda table: [row | {"category": ".."} for row in table], "폴더 이름으로 쓸 수 없습니다"),
    ],
)
def test_a_refused_list_says_where_and_why_in_korean_too(home, spoil, korean, capsys, monkeypatch):
    write(home, spoil(rows()))
    with pytest.raises(InputError, match=r"parts\.csv"):
        read(home)

    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    main(["data", str(home / "my"), "--set", "list=parts.csv"])
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "parts.csv" in said
    assert korean in said


def test_a_refusal_speaks_the_language_of_the_environment(home, capsys, monkeypatch):
    write(home, _another_column(rows()))
    for language, word in (("ko_KR.UTF-8", "열이 없습니다"), ("en_US.UTF-8", "is missing")):
        monkeypatch.setenv("LC_ALL", language)
        assert main(["data", str(home / "my"), "--set", "list=parts.csv"]) == 2
        assert word in capsys.readouterr().err

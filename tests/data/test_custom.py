from __future__ import annotations

import csv
import os
import shutil
from collections import defaultdict

import pytest
from fake_datasets import save, write_custom

from adray.data.base import Reading
from adray.data.custom import create_csv, get_data_info, list_custom_categories, list_custom_samples
from adray.errors import InputError


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pattern1 60 100.png", ("pattern1", 60, 100, None)),
        ("design_A 80 150_v2.png", ("design_A", 80, 150, "v2")),
        ("test_pattern 100 50.PNG", ("test_pattern", 100, 50, None)),
        ("두 부품 060 5_a_b.jpg", ("두 부품", 60, 5, "a_b")),
    ],
)
def test_a_file_name_gives_category_freq_dimming_and_extra(name, expected):
    info = get_data_info(name)
    assert (info["category"], info["freq"], info["dimming"], info["extra"]) == expected
    assert info["filename"] == name


@pytest.mark.parametrize(
    "name", ["image001.png", "pattern1_60_100.png", "pattern1 60.png", "a 60 1.5.png", "a 1 2.txt"]
)
def test_another_form_of_name_is_refused(name):
    with pytest.raises(
        InputError, match=r"the file name is not of the form '\{category\} \{freq\} \{dimming\}"
    ):
        get_data_info(name)


def test_one_wrong_name_in_the_folder_is_named(tmp_path):
    root = write_custom(tmp_path / "line3", normal=2, defects=0)
    save(root / "data_rgb" / "normal" / "image001.png", 1)
    with pytest.raises(InputError, match=r"image001.png: the file name is not of the form"):
        list_custom_categories(root)


def test_a_name_like_a_formula_is_text_in_the_table_and_itself_elsewhere(tmp_path):
    root = tmp_path / "line3"
    for number in range(3):
        save(root / "data_rgb" / "normal" / f"=1+1 {number} 100.png", number)
    save(root / "data_rgb" / "-bent" / "=1+1 5 100.png", 7)

    samples = list_custom_samples(root, "=1+1")
    assert {sample.defect_type for sample in samples} == {"good", "-bent"}

    table = root / "data_rgb" / "data_info.csv"
    rows = rows_of(table)
    assert {row["category"] for row in rows} == {"'=1+1"}
    assert not any(cell.startswith(("=", "-")) for row in rows for cell in row.values())
    written = table.stat().st_mtime_ns
    list_custom_samples(root, "=1+1")
    assert table.stat().st_mtime_ns == written


def test_repeats_of_a_motif_stay_on_one_side_and_defects_test(tmp_path):
    root = write_custom(tmp_path / "line3", normal=10, defects=4, repeats=3)
    samples = list_custom_samples(root, "pattern1")
    sides = defaultdict(set)
    for s in samples:
        assert (s.dataset, s.category, s.mask_paths) == ("line3", "pattern1", ())
        if s.label == 0:
            sides[s.path.stem.split("_")[0]].add(s.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert sum(s.split == "test" for s in samples if s.label == 0) == 6
    assert {s.split for s in samples if s.label} == {"test"}
    assert {s.defect_type for s in samples} == {"good", "scratch", "crack"}


def test_a_fraction_of_the_defects_trains_on_request(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5, defects=8)
    samples = list_custom_samples(root, "pattern1", Reading(train_defects=0.5))
    assert sum(s.split == "train" for s in samples if s.label) == 8


def test_the_table_has_the_columns_of_the_specification(tmp_path):
    root = write_custom(
        tmp_path / "line3", categories=("pattern1",), normal=1, defects=1, repeats=1
    )
    list_custom_samples(root, "pattern1")
    data = root / "data_rgb"
    assert rows_of(data / "data_info.csv") == [
        {
            "filename": name,
            "category": "pattern1",
            "freq": freq,
            "dimming": dimming,
            "image_path": str(data / folder / name),
            "dataset_type": "line3",
            "defect_type": folder,
            "label": label,
        }
        for name, freq, dimming, folder, label in [
            ("pattern1 60 100.png", "60", "100", "normal", "0"),
            ("pattern1 70 101.png", "70", "101", "crack", "1"),
        ]
    ]


def test_a_stale_table_is_written_anew_and_a_current_one_left_alone(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5)
    table = root / "data_rgb" / "data_info.csv"
    list_custom_samples(root, "pattern1")
    before = (table.stat().st_mtime_ns, table.stat().st_ino)
    list_custom_samples(root, "pattern2")
    assert (table.stat().st_mtime_ns, table.stat().st_ino) == before
    save(root / "data_rgb" / "normal" / "pattern1 500 1.png", 5)
    list_custom_samples(root, "pattern1")
    assert "pattern1 500 1.png" in {row["filename"] for row in rows_of(table)}


def test_a_moved_data_set_with_its_old_table_reads_the_same(tmp_path):
    root = write_custom(tmp_path / "a" / "line3", normal=5)
    before = list_custom_samples(root, "pattern1")
    old = (root / "data_rgb" / "data_info.csv").read_bytes()
    (tmp_path / "b").mkdir()
    moved = tmp_path / "b" / "line3"
    shutil.move(root, moved)
    after = list_custom_samples(moved, "pattern1")
    assert [(s.key, s.split) for s in after] == [(s.key, s.split) for s in before]
    assert all(s.path.is_file() and moved in s.path.parents for s in after)
    assert (moved / "data_rgb" / "data_info.csv").read_bytes() == old


def test_a_torn_table_is_written_anew(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5)
    table = create_csv(root)
    whole = table.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"\xff\x00\xfe"):
        table.write_bytes(torn)
        list_custom_samples(root, "pattern1")
        assert table.read_bytes() == whole


def test_a_folder_that_cannot_be_written_gets_its_table_in_the_cache(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5)
    (
        root / "data_rgb" / "data_info.csv"
    ).mkdir()  # root may write anywhere, a directory in the way stops it too
    path = create_csv(root, tmp_path / "cache")
    assert (tmp_path / "cache") in path.parents
    assert len(rows_of(path)) == 36
    samples = list_custom_samples(root, "pattern1", Reading(cache_dir=tmp_path / "cache"))
    assert len(samples) == 18


def test_no_place_for_the_table_stops_no_reading_but_create_csv_says_so(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5)
    (root / "data_rgb" / "data_info.csv").mkdir()
    assert len(list_custom_samples(root, "pattern1")) == 18
    with pytest.raises(
        InputError, match=r"data_info.csv cannot be written; make it writable or set cache_dir"
    ):
        create_csv(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_read(tmp_path):
    root = write_custom(tmp_path / "line3", normal=5)
    (root / "data_rgb").chmod(0o555)
    assert len(list_custom_samples(root, "pattern1", Reading(cache_dir=tmp_path / "cache"))) == 18
    assert not (root / "data_rgb" / "data_info.csv").exists()


def test_no_normal_images_name_the_folder(tmp_path):
    root = write_custom(tmp_path / "line3", normal=0)
    with pytest.raises(InputError, match=r"no normal training images: .*data_rgb/normal"):
        list_custom_samples(root, "pattern1")

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from fake_datasets import write_visa

from adray.data.base import Reading
from adray.data.visa import detect_visa, list_visa_categories, list_visa_samples
from adray.errors import InputError
from adray.settings import DataOptions


def counts_of(samples):
    return Counter((s.split, s.label) for s in samples)


@pytest.mark.parametrize("split", ["root", "category"])
def test_the_official_split_is_read_from_the_root_and_from_the_category(tmp_path, split):
    root = write_visa(tmp_path / "visa", train=5, good=2, defects=4, split=split)
    samples = list_visa_samples(root, "pcb1")
    assert counts_of(samples) == {("train", 0): 5, ("test", 0): 2, ("test", 1): 4}
    for s in samples:
        assert s.relative_path.startswith("pcb1/Data/Images/")
        assert s.defect_type == ("burnt,bent" if s.label else "good")
        assert bool(s.mask_paths) == bool(s.label)
        if s.mask_paths:
            masks = root / "pcb1" / "Data" / "Masks" / "Anomaly"
            assert s.mask_paths == (masks / f"{s.path.stem}.png",)


def test_a_two_class_split_trains_on_defects(tmp_path):
    root = write_visa(tmp_path / "visa", train=5, good=2, defects=4)
    samples = list_visa_samples(root, "candle", Reading(split_mode="2cls_highshot"))
    assert counts_of(samples) == {("train", 0): 5, ("test", 0): 2, ("train", 1): 2, ("test", 1): 2}


def test_paths_in_the_table_may_count_from_the_category_and_use_backslashes(tmp_path):
    root = write_visa(tmp_path / "visa", categories=("candle",))
    table = root / "split_csv" / "1cls.csv"
    expected = list_visa_samples(root, "candle")
    table.write_text(table.read_text().replace(",candle/Data/", ",Data/").replace("/", "\\"))
    assert list_visa_samples(root, "candle") == expected


def test_without_tables_the_normal_images_are_split_80_20(tmp_path):
    root = write_visa(tmp_path / "visa", train=8, good=2, defects=4, split=None)
    samples = list_visa_samples(root, "candle")
    assert counts_of(samples) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 4}
    assert all(s.mask_paths for s in samples if s.label)
    other = list_visa_samples(root, "candle", Reading(seed=7))
    assert {s.key for s in samples if s.split == "train"} != {
        s.key for s in other if s.split == "train"
    }


def test_without_masks_the_samples_have_none(tmp_path):
    root = write_visa(tmp_path / "visa", categories=("candle",))
    shutil.rmtree(root / "candle" / "Data" / "Masks")
    with pytest.raises(InputError, match=r"4 masks that it names for candle .*missing_masks"):
        list_visa_samples(root, "candle")
    accepting = Reading(options=DataOptions(accept=("missing_masks",)))
    assert all(not s.mask_paths for s in list_visa_samples(root, "candle", accepting))


@pytest.mark.parametrize("word", ["Normal ", "NORMAL", "good", "OK", "0"])
def test_normal_may_be_written_in_several_ways(tmp_path, word):
    root = write_visa(tmp_path / "visa", categories=("candle",))
    right = list_visa_samples(root, "candle")
    table = root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace(",normal,", f",{word},"))
    assert list_visa_samples(root, "candle") == right


def test_a_label_that_is_nearly_normal_is_refused(tmp_path):
    root = write_visa(tmp_path / "visa", categories=("candle",))
    table = root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace(",normal,", ",nromal,", 1))
    with pytest.raises(InputError, match=r"row 2: the label 'nromal' .* did you mean 'normal'"):
        list_visa_samples(root, "candle")


def test_categories_are_found_by_annotation_or_by_images(tmp_path):
    root = write_visa(
        tmp_path / "visa", categories=("pcb10", "pcb9"), split=None, train=1, good=1, defects=1
    )
    (root / "notes").mkdir()
    assert list_visa_categories(root) == ["pcb9", "pcb10"]
    assert detect_visa(root)


def test_an_unknown_split_names_the_nearest(tmp_path):
    root = write_visa(tmp_path / "visa")
    with pytest.raises(
        InputError, match="'2cls_highshoot' is not a split of VisA; did you mean '2cls_highshot'"
    ):
        list_visa_samples(root, "candle", Reading(split_mode="2cls_highshoot"))


def test_a_split_without_its_file_names_those_that_are_there(tmp_path):
    root = write_visa(tmp_path / "visa")
    with pytest.raises(
        InputError, match=r"2cls_fewshot.csv does not exist .*splits here: 1cls, 2cls_highshot"
    ):
        list_visa_samples(root, "candle", Reading(split_mode="2cls_fewshot"))


def test_a_missing_column_is_named(tmp_path):
    root = write_visa(tmp_path / "visa")
    table = root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace("object,split", "object,part", 1))
    with pytest.raises(
        InputError, match=r"1cls.csv: column 'split' is missing; the header must name object, split"
    ):
        list_visa_samples(root, "candle")


def test_a_table_that_is_not_utf8_is_named(tmp_path):
    root = write_visa(tmp_path / "visa")
    (root / "split_csv" / "1cls.csv").write_bytes(b"\xff\xfe\x00object")
    with pytest.raises(InputError, match=r"1cls.csv: not a CSV file in UTF-8"):
        list_visa_samples(root, "candle")


def test_a_listed_image_that_is_not_there_is_named(tmp_path):
    root = write_visa(tmp_path / "visa")
    (root / "candle" / "Data" / "Images" / "Normal" / "0001.JPG").unlink()
    with pytest.raises(
        InputError,
        match=r"image 'candle/Data/Images/Normal/0001.JPG' is not below .*remove its row",
    ):
        list_visa_samples(root, "candle")


def test_a_listed_image_outside_the_data_set_is_refused(tmp_path):
    root = write_visa(tmp_path / "visa", categories=("candle",))
    table = root / "split_csv" / "1cls.csv"
    table.write_text(
        table.read_text().replace(
            "candle/Data/Images/Normal/0000", "../visa/candle/Data/Images/Normal/0000"
        )
    )
    with pytest.raises(InputError, match="is not below"):
        list_visa_samples(root, "candle")


def test_a_split_other_than_train_and_test_is_named(tmp_path):
    root = write_visa(tmp_path / "visa")
    table = root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace("candle,train", "candle,later", 1))
    with pytest.raises(InputError, match=r"split 'later' is neither 'train' nor 'test'"):
        list_visa_samples(root, "candle")


def test_no_training_images_name_the_folder(tmp_path):
    root = write_visa(tmp_path / "visa", train=0)
    with pytest.raises(InputError, match=r"no normal training images: .*Data/Images/Normal"):
        list_visa_samples(root, "candle")

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from fake_datasets import write_btad, write_custom, write_folder, write_mvtec, write_visa

from adray.data.readers import (
    DATASETS,
    list_categories,
    list_datasets,
    list_samples,
    resolve_dataset,
    set_dataset_dir,
)
from adray.errors import InputError
from adray.settings import FolderLayout, Settings, get_globals, use_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("datasets")
    write_mvtec(home / "mvtec")
    write_mvtec(home / "custom" / "bolts", categories=("m4", "m5"))
    write_btad(home / "btad")
    write_visa(home / "visa")
    write_custom(home / "custom" / "dataset_A")
    write_custom(home / "custom" / "dataset_B", categories=("pattern2", "pattern3"))
    write_folder(home / "somewhere" / "deep")
    folder = FolderLayout(path="somewhere/deep", normal=("ok",), abnormal=("ng",), mask="masks")
    return Settings(
        dataset_dir=str(home), cache_dir=str(home / "cache"), folders={"widget": folder}
    )


@pytest.mark.parametrize(
    ("name", "layout", "categories"),
    [
        ("mvtec", "mvtec", ["bottle", "wood"]),
        ("bolts", "mvtec", ["m4", "m5"]),
        ("btad", "btad", ["01", "02"]),
        ("visa", "visa", ["candle", "pcb1"]),
        ("dataset_A", "custom", ["pattern1", "pattern2"]),
        ("widget", "folder", ["widget"]),
    ],
)
def test_each_layout_is_found_by_its_shape(settings, name, layout, categories):
    dataset = resolve_dataset(name, settings)
    assert (dataset.name, dataset.layout) == (name, layout)
    assert dataset.reader is DATASETS[layout]
    assert list_categories(name, settings) == categories
    samples = list_samples(name, "all", settings)
    assert Counter(s.category for s in samples).keys() == set(categories)
    assert {s.dataset for s in samples} == {name}
    assert all(s.path.is_file() for s in samples)


def test_every_data_set_is_listed(settings):
    assert sorted(list_datasets(settings)) == [
        "bolts",
        "btad",
        "dataset_A",
        "dataset_B",
        "mvtec",
        "visa",
        "widget",
    ]


def test_data_sets_and_categories_merge(settings):
    merged = list_samples(["mvtec", "btad"], "all", settings)
    apart = list_samples("mvtec", ["bottle", "wood"], settings) + list_samples(
        "btad", ["01", "02"], settings
    )
    assert merged == apart
    both = list_samples(["dataset_A", "dataset_B"], ["pattern1", "pattern2"], settings)
    found = {(s.dataset, s.category) for s in both}
    assert found == {
        ("dataset_A", "pattern1"),
        ("dataset_A", "pattern2"),
        ("dataset_B", "pattern2"),
    }
    assert list_samples(["mvtec", "mvtec"], ["wood", "wood"], settings) == list_samples(
        "mvtec", "wood", settings
    )


def test_the_split_of_a_category_does_not_depend_on_its_company(settings):
    alone = list_samples("dataset_A", "pattern2", settings, seed=3)
    among = [
        s for s in list_samples("dataset_A", "all", settings, seed=3) if s.category == "pattern2"
    ]
    assert alone == among


def test_the_split_mode_and_the_fraction_of_defects_reach_the_readers(settings):
    assert any(
        s.label and s.split == "train"
        for s in list_samples("visa", "all", settings, split_mode="2cls_highshot")
    )
    assert any(
        s.label and s.split == "train"
        for s in list_samples("dataset_A", "all", settings, train_defects=0.5)
    )


def test_a_misspelt_category_names_the_nearest(settings):
    with pytest.raises(
        InputError, match="category: 'bottel' is not in mvtec; did you mean 'bottle'"
    ):
        list_samples("mvtec", "bottel", settings)


def test_a_category_that_bears_the_name_of_all_is_refused_beside_others(tmp_path):
    write_mvtec(tmp_path / "parts", categories=("all", "wood"))
    settings = Settings(dataset_dir=str(tmp_path))
    for wanted in ("all", "wood"):
        with pytest.raises(InputError, match="is called all, which means all of them; rename it"):
            list_samples("parts", wanted, settings)

    write_mvtec(tmp_path / "one", categories=("all",))
    assert list_categories("one", settings) == ["all"]


def test_a_data_set_with_none_of_the_categories_is_named(settings):
    with pytest.raises(InputError, match="dataset 'btad' has none of the categories wood"):
        list_samples(["mvtec", "btad"], "wood", settings)


@pytest.mark.parametrize("category", [1, [1]])
def test_an_unquoted_number_gives_the_hint_to_quote_it(settings, category):
    with pytest.raises(
        InputError, match='category: 1 is not a string; put it in quotes, such as "01"'
    ):
        list_samples("btad", category, settings)


def test_empty_lists_are_refused(settings):
    with pytest.raises(InputError, match="category: the list is empty; name at least one category"):
        list_samples("btad", [], settings)


@pytest.mark.parametrize("name", ["../mvtec", "a/b", "a\\b", "..", "", "/etc"])
def test_a_name_that_is_a_path_is_refused(settings, name):
    with pytest.raises(InputError, match="is not the name of a folder in dataset_dir"):
        resolve_dataset(name, settings)


def test_an_unknown_data_set_names_the_expected_path_and_the_nearest(settings):
    with pytest.raises(
        InputError, match=r"datasets\d+/mvtek does not exist .*did you mean 'mvtec'"
    ):
        resolve_dataset("mvtek", settings)
    with pytest.raises(InputError, match="allowed: widget, "):
        resolve_dataset("qqq", settings)


def test_a_folder_of_no_known_layout_lists_the_layouts(settings, tmp_path):
    (tmp_path / "odd" / "stuff").mkdir(parents=True)
    with pytest.raises(
        InputError,
        match=r"odd has no known layout; .*<category>/train/good .*Data sets here: none",
    ):
        resolve_dataset("odd", Settings(dataset_dir=str(tmp_path)))


def test_a_data_set_may_be_a_single_category_at_its_top(tmp_path):
    write_mvtec(tmp_path, categories=("bottle",))
    here = Settings(dataset_dir=str(tmp_path))
    assert list_categories("bottle", here) == ["bottle"]
    samples = list_samples("bottle", "all", here)
    assert Counter((s.split, s.label) for s in samples) == {
        ("train", 0): 6,
        ("test", 0): 3,
        ("test", 1): 4,
    }


def test_a_plain_folder_whose_path_is_missing_is_named(tmp_path):
    folders = {"widget": FolderLayout(path="gone")}
    with pytest.raises(InputError, match=r"folders.widget.path: .*gone does not exist"):
        resolve_dataset("widget", Settings(dataset_dir=str(tmp_path), folders=folders))


def test_a_custom_data_set_without_images_is_named(tmp_path):
    (tmp_path / "line3" / "data_rgb" / "normal").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dataset 'line3': .*line3 holds no images"):
        list_categories("line3", Settings(dataset_dir=str(tmp_path)))


def test_a_folder_with_normal_and_abnormal_needs_no_description(tmp_path):
    root = write_folder(tmp_path / "parts")
    for old, new in (("ok", "normal"), ("ng", "abnormal"), ("masks", "mask")):
        shutil.move(root / old, root / new)
    samples = list_samples("parts", "all", Settings(dataset_dir=str(tmp_path)))
    assert {s.defect_type for s in samples} == {"good", "dent", "stain"}
    assert all(s.mask_paths for s in samples if s.label)


def test_set_dataset_dir_changes_the_settings_of_the_process(tmp_path):
    before = get_globals()
    try:
        set_dataset_dir(tmp_path)
        assert get_globals().dataset_dir == str(tmp_path)
    finally:
        use_settings(before)

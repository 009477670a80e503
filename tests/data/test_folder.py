from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from fake_datasets import numbered, write_folder, write_tree

from adray.data.base import Reading, Sample
from adray.data.folder import (
    detect_folder,
    list_folder_categories,
    list_folder_samples,
    near_duplicates,
)
from adray.errors import InputError
from adray.settings import FolderLayout


def layout(**changes):
    return FolderLayout(
        **{"path": "x", "normal": ("ok",), "abnormal": ("ng",), "mask": "masks", **changes}
    )


def read(root, folder=None, **changes):
    return list_folder_samples(
        root, "widget", Reading(name="widget", folder=folder or layout(), **changes)
    )


def counts_of(samples):
    return Counter((s.split, s.label) for s in samples)


def test_normals_are_split_80_20_and_masks_found_by_defect_type(tmp_path):
    samples = read(write_folder(tmp_path / "w", normal=10, defects=4))
    assert counts_of(samples) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 4}
    for s in samples:
        assert (s.dataset, s.category) == ("widget", "widget")
        if s.label:
            assert s.mask_paths == (tmp_path / "w" / "masks" / s.defect_type / s.path.name,)


def test_a_split_that_is_made_already_is_kept(tmp_path):
    root = write_folder(tmp_path / "w", normal=6, normal_test=3, defects=4)
    samples = read(root, layout(normal_test=("ok_test",)), train_defects=0.5)
    assert counts_of(samples) == {("train", 0): 6, ("test", 0): 3, ("test", 1): 2, ("train", 1): 2}
    assert {s.path.parent.name for s in samples if s.split == "test" and s.label == 0} == {
        "ok_test"
    }


def test_defect_directories_may_be_named_one_by_one(tmp_path):
    samples = read(write_folder(tmp_path / "w", defects=4), layout(abnormal=("ng/stain",)))
    assert {s.defect_type for s in samples if s.label} == {"stain"}


def test_masks_may_lie_flat_where_names_are_unique(tmp_path):
    root = write_folder(tmp_path / "w", defects=4)
    for mask in list((root / "masks").rglob("*.png")):
        mask.rename(root / "masks" / mask.name)
    assert all(s.mask_paths == (root / "masks" / s.path.name,) for s in read(root) if s.label)


def test_a_flat_mask_that_two_images_share_is_refused(tmp_path):
    root = write_folder(tmp_path / "w", defects=4)
    shutil.copy(root / "ng" / "dent" / "0.png", root / "ng" / "stain" / "0.png")
    (root / "masks" / "0.png").write_bytes((root / "masks" / "dent" / "0.png").read_bytes())
    for kind in ("dent", "stain"):
        shutil.rmtree(root / "masks" / kind)
    with pytest.raises(
        InputError, match="2 defective images are named '0', so the mask cannot be matched"
    ):
        read(root)


def test_copies_of_an_image_stay_on_one_side_for_every_seed(tmp_path):
    root = write_folder(tmp_path / "w", normal=6)
    for i in range(6):
        shutil.copy(root / "ok" / f"part {i}.png", root / "ok" / f"copy of {i}.png")
    for seed in range(8):
        split = {s.path.name: s.split for s in read(root, seed=seed) if s.label == 0}
        assert all(split[f"part {i}.png"] == split[f"copy of {i}.png"] for i in range(6))
        assert set(split.values()) == {"train", "test"}


def test_duplicates_are_joined_through_stem_and_content(tmp_path):
    contents = {
        "a/1.png": b"xx",
        "a/2.png": b"yy",
        "b/2.png": b"xx",
        "a/3.png": b"zz",
        "b/3.jpg": b"longer",
        "c/4.png": b"q",
    }
    samples = []
    for name, data in contents.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        samples.append(Sample(path, (), 0, "good", "d", "c", "train"))
    groups = near_duplicates(samples)
    together = {name: groups[tmp_path / name] for name in contents}
    assert together["a/1.png"] == together["a/2.png"] == together["b/2.png"]
    assert together["a/3.png"] == together["b/3.jpg"]
    assert len(set(together.values())) == 3


def test_files_that_were_hashed_once_are_not_read_again(tmp_path):
    root = write_folder(tmp_path / "w", normal=20)
    paths = sorted((root / "ok").iterdir())
    pairs = list(zip(paths[::2], paths[1::2], strict=True))
    for number, pair in enumerate(pairs):
        write_alike(pair, bytes([number]) * 100)
    read(root, cache_dir=tmp_path / "cache")

    # Other bytes of the same size and time: whoever reads them finds no copies any more.
    for number, path in enumerate(paths):
        write_alike([path], bytes([100 + number]) * 100)
    for seed in range(5):
        samples = read(root, cache_dir=tmp_path / "cache", seed=seed)
        split = {sample.path: sample.split for sample in samples}
        assert all(split[one] == split[other] for one, other in pairs)


def write_alike(paths, data):
    """Write files of the same content and time."""
    for path in paths:
        path.write_bytes(data)
        os.utime(path, (0, 0))


def test_the_category_is_the_name_of_the_data_set():
    assert list_folder_categories(Path("/x/images"), Reading(name="widget")) == ["widget"]
    assert list_folder_categories(Path("/x/images")) == ["images"]


def test_a_directory_that_is_not_there_names_the_nearest(tmp_path):
    root = write_folder(tmp_path / "w")
    with pytest.raises(InputError, match=r"w/ngg does not exist; did you mean 'ng'"):
        read(root, layout(abnormal=("ngg",)))


@pytest.mark.parametrize("directory", ["../elsewhere", "/etc"])
def test_a_directory_outside_the_data_set_is_refused(tmp_path, directory):
    root = write_folder(tmp_path / "w")
    with pytest.raises(InputError, match="must lie inside"):
        read(root, layout(abnormal=(directory,)))


def test_no_normal_images_name_the_folder(tmp_path):
    root = write_folder(tmp_path / "w", normal=0)
    (root / "ok").mkdir()
    with pytest.raises(InputError, match=r"no normal training images: .*/ok has no images"):
        read(root)


def test_directories_named_for_something_else_are_never_normal(tmp_path):
    names = [*numbered("{}.png", 10), *numbered("scratch/{}.png", 3), *numbered("wide/{}.png", 2)]
    root = write_tree(tmp_path / "w", names, marked=numbered("masks/scratch/{}.png", 3))
    top = FolderLayout(path="w", normal=(".",), abnormal=("scratch", "wide"), mask="masks")
    samples = read(root, top)
    assert counts_of(samples) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 5}
    assert Counter(s.defect_type for s in samples if s.label) == {"scratch": 3, "wide": 2}


def test_folders_among_normals_that_sound_like_defects_are_left_out(tmp_path):
    names = [
        *numbered("ok/{}.png", 10),
        *numbered("ok/NG/{}.png", 3),
        *numbered("ok/lot 1/{}.png", 5),
    ]
    root = write_tree(tmp_path / "w", names)
    samples = read(root, FolderLayout(path="w", normal=("ok",)))
    assert Counter(s.group for s in samples) == {"": 10, "lot 1": 5}


def test_no_image_is_listed_twice_where_directories_contain_each_other(tmp_path):
    root = write_folder(tmp_path / "w", defects=4)
    write_tree(root, ["ng/dent/deep/9.png"])
    samples = read(root, layout(abnormal=("ng", "ng/dent")))
    defects = Counter(s.key for s in samples if s.label)
    assert set(defects.values()) == {1}
    assert Counter(s.defect_type for s in samples if s.label) == {"dent": 2, "stain": 2, "deep": 1}


def test_a_deeper_folder_of_defects_is_a_group_of_its_kind(tmp_path):
    root = write_tree(
        tmp_path / "w", [*numbered("ok/{}.png", 5), *numbered("ng/dent/lot 3/{}.png", 2)]
    )
    samples = read(root, layout(mask=None))
    assert {(s.defect_type, s.group) for s in samples if s.label} == {("dent", "lot 3")}


def test_a_link_that_leads_back_is_passed_over(tmp_path):
    root = write_tree(tmp_path / "w", [*numbered("ok/{}.png", 5), *numbered("ng/{}.png", 2)])
    right = read(root, layout(mask=None))
    (root / "ok" / "again").symlink_to("..", target_is_directory=True)
    (root / "ok" / "self").symlink_to("self")
    assert read(root, layout(mask=None)) == right


def test_a_directory_may_be_spelt_in_other_signs(tmp_path):
    word = unicodedata.normalize("NFD", "양품")
    root = write_tree(tmp_path / "w", numbered(word + "/{}.png", 5))
    samples = read(root, FolderLayout(path="w", normal=(unicodedata.normalize("NFC", word),)))
    assert len(samples) == 5


@pytest.mark.parametrize(
    ("normal", "abnormal", "mask"),
    [
        ("OK", "NG", "GT"),
        ("정상", "불량", "마스크"),
        ("good", "defects", "masks"),
        ("Normal", None, None),
        ("OK ", "NG ", " GT"),
    ],
)
def test_a_folder_is_read_by_the_words_of_its_directories(tmp_path, normal, abnormal, mask):
    names = numbered(normal + "/{}.png", 5) + (
        numbered(abnormal + "/{}.png", 2) if abnormal else []
    )
    root = write_tree(tmp_path / "w", names, marked=numbered(mask + "/{}.png", 2) if mask else [])
    assert detect_folder(root)
    samples = list_folder_samples(root, "w")
    assert Counter(s.label for s in samples) == ({0: 5, 1: 2} if abnormal else {0: 5})
    assert all(bool(s.mask_paths) == bool(s.label) for s in samples)

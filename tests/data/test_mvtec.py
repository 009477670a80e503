from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from fake_datasets import numbered, save, write_mvtec, write_tree

from adray.data.mvtec import detect_mvtec, list_mvtec_categories, list_mvtec_samples
from adray.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "datasets"


def test_folders_become_split_label_defect_type_and_mask(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", train=3, good=2, defects=4)
    samples = list_mvtec_samples(root, "wood")
    counts = Counter((s.split, s.label, s.defect_type) for s in samples)
    assert counts == {
        ("train", 0, "good"): 3,
        ("test", 0, "good"): 2,
        ("test", 1, "hole"): 2,
        ("test", 1, "scratch"): 2,
    }
    assert {(s.dataset, s.category) for s in samples} == {("mvtec", "wood")}
    for s in samples:
        assert s.path == root / s.relative_path
        mask = root / "wood" / "ground_truth" / s.defect_type / f"{s.path.stem}_mask.png"
        assert s.mask_paths == ((mask,) if s.label else ())


def test_without_ground_truth_there_are_no_masks(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", masks=False)
    assert all(not s.mask_paths for s in list_mvtec_samples(root, "bottle"))


def test_one_missing_mask_leaves_the_others(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", defects=4)
    (root / "bottle" / "ground_truth" / "hole" / "001_mask.png").unlink()
    masks = [bool(s.mask_paths) for s in list_mvtec_samples(root, "bottle") if s.label]
    assert sorted(masks) == [False, True, True, True]


def test_only_folders_with_train_or_test_are_categories(tmp_path):
    root = write_mvtec(
        tmp_path / "mvtec", categories=("part10", "part9"), train=1, good=0, defects=0
    )
    (root / "docs").mkdir()
    (root / "license.txt").write_text("x")
    assert list_mvtec_categories(root) == ["part9", "part10"]
    assert detect_mvtec(root)
    assert not detect_mvtec(root / "docs")


def test_an_empty_train_folder_is_an_error_that_names_it(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", categories=("bottle",))
    shutil.rmtree(root / "bottle" / "train" / "good")
    with pytest.raises(InputError, match="bottle/train/good does not exist"):
        list_mvtec_samples(root, "bottle")


def test_a_training_folder_called_as_a_defect_holds_labelled_defects(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", categories=("bottle",), train=2)
    save(root / "bottle" / "train" / "scratch" / "0.png", 1)
    samples = list_mvtec_samples(root, "bottle")
    trained = Counter((s.label, s.defect_type) for s in samples if s.split == "train")
    assert trained == {(0, "good"): 2, (1, "scratch"): 1}


def test_a_training_folder_that_says_nothing_is_left_out(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", categories=("bottle",), train=2)
    save(root / "bottle" / "train" / "monday" / "0.png", 1)
    assert all("monday" not in s.key for s in list_mvtec_samples(root, "bottle"))


@pytest.mark.skipif(not (SHARED / "mvtec").is_dir(), reason="no shared data")
@pytest.mark.parametrize(
    ("category", "train", "good", "defects", "masks"),
    [("screw", 320, 41, 119, 0), ("grid", 25, 3, 11, 11), ("hazelnut", 28, 6, 17, 17)],
)
def test_the_real_folders_have_the_counts_of_their_readme(category, train, good, defects, masks):
    samples = list_mvtec_samples(SHARED / "mvtec", category)
    counts = Counter((s.split, s.label) for s in samples)
    assert counts == {("train", 0): train, ("test", 0): good, ("test", 1): defects}
    assert sum(bool(s.mask_paths) for s in samples) == masks


def test_pictures_in_folders_below_are_read_with_the_folder_as_their_group(tmp_path):
    names = [
        *numbered("disc/train/good/{}.png", 4),
        *numbered("disc/train/good/lot 1/{}.png", 3),
        *numbered("disc/test/dent/{}.png", 2),
        *numbered("disc/test/dent/morning/{}.png", 2, first=7),
    ]
    masks = numbered("disc/ground_truth/dent/{}_mask.png", 2)
    masks += numbered("disc/ground_truth/dent/morning/{}_mask.png", 2, first=7)
    samples = list_mvtec_samples(write_tree(tmp_path / "d", names, marked=masks), "disc")
    assert Counter((s.split, s.group) for s in samples) == {
        ("train", ""): 4,
        ("train", "lot 1"): 3,
        ("test", ""): 2,
        ("test", "morning"): 2,
    }
    assert all(len(s.mask_paths) == s.label for s in samples)


@pytest.mark.parametrize("name", ["dent", "NG", "mask", "불량", "Scratches_2"])
def test_folders_among_normals_that_sound_like_defects_are_left_out(tmp_path, name):
    names = [*numbered("disc/train/good/{}.png", 4), *numbered("disc/test/dent/{}.png", 2)]
    names += numbered(f"disc/train/good/{name}/{{}}.png", 3)
    samples = list_mvtec_samples(write_tree(tmp_path / "d", names), "disc")
    assert Counter(s.split for s in samples) == {"train": 4, "test": 2}


@pytest.mark.parametrize("word", ["Good", "GOOD", "ok", "normal"])
def test_another_word_for_good_in_the_test_is_good(tmp_path, word):
    names = [*numbered("disc/train/good/{}.png", 4), *numbered(f"disc/test/{word}/{{}}.png", 2)]
    samples = list_mvtec_samples(write_tree(tmp_path / "d", names), "disc")
    assert {s.label for s in samples} == {0}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_masks_are_found_whatever_accents_are_made_of(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    kind = "찍힘"
    names = [*numbered("disc/train/good/{}.png", 2)]
    names.append(unicodedata.normalize(form, f"disc/test/{kind}/prüfling.png"))
    mask = unicodedata.normalize(other, f"disc/ground_truth/{kind}/prüfling_mask.png")
    samples = list_mvtec_samples(write_tree(tmp_path / "d", names, marked=[mask]), "disc")
    assert [len(s.mask_paths) for s in samples] == [0, 0, 1]


def test_what_file_servers_leave_is_nothing(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", categories=("bottle",))
    right = list_mvtec_samples(root, "bottle")
    for folder in ("bottle/test", "bottle/test/hole", "bottle/train/good", "."):
        for left in ("@eaDir/000.png/x.png", "#recycle/1.png", "$RECYCLE.BIN/2.png", "._000.png"):
            write_tree(root / folder, [left])
        (root / folder / "lost+found").mkdir()
        (root / folder / "Thumbs.db").write_bytes(b"x")
    assert list_mvtec_categories(root) == ["bottle"]
    assert list_mvtec_samples(root, "bottle") == right

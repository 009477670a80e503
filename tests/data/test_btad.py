from __future__ import annotations

from collections import Counter

import pytest
from fake_datasets import write_btad, write_mvtec

from adray.data.mvtec import detect_btad, detect_mvtec
from adray.data.mvtec import list_mvtec_samples as list_btad_samples
from adray.errors import InputError


@pytest.mark.parametrize(
    ("category", "image", "mask"), [("01", ".png", ".bmp"), ("02", ".bmp", ".png")]
)
def test_masks_are_matched_by_stem_whatever_their_ending(tmp_path, category, image, mask):
    samples = list_btad_samples(write_btad(tmp_path / "btad", train=3, good=2, defects=4), category)
    counts = Counter((s.split, s.label, s.defect_type) for s in samples)
    assert counts == {("train", 0, "good"): 3, ("test", 0, "good"): 2, ("test", 1, "ko"): 4}
    for s in samples:
        assert s.path.suffix == image
        assert bool(s.mask_paths) == bool(s.label)
        if s.mask_paths:
            assert (s.mask_paths[0].stem, s.mask_paths[0].suffix) == (s.path.stem, mask)


def test_btad_and_mvtec_are_told_apart_by_shape(tmp_path):
    btad, mvtec = write_btad(tmp_path / "a"), write_mvtec(tmp_path / "b")
    assert (detect_btad(btad), detect_mvtec(btad)) == (True, False)
    assert (detect_btad(mvtec), detect_mvtec(mvtec)) == (False, True)


def test_an_empty_train_folder_is_an_error_that_names_it(tmp_path):
    root = write_btad(tmp_path / "btad", train=0)
    with pytest.raises(InputError, match=r"no normal training images: .*01/train/ok"):
        list_btad_samples(root, "01")

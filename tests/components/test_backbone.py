"""Where weights are looked for, and what is said when they are not there."""

from __future__ import annotations

import re

import pytest

from adray.components.backbone import (
    BACKBONE_WEIGHT_FILES,
    find_weights,
    get_backbone_dir,
    get_backbone_path,
    missing_weights,
    set_backbone_dir,
)
from adray.errors import InputError


def test_any_of_the_accepted_places_will_do_and_the_first_wins(tmp_path):
    first, second = BACKBONE_WEIGHT_FILES["resnet18"].paths
    assert find_weights("resnet18", tmp_path) is None
    for name in (second, first):
        (tmp_path / name).touch()
        assert find_weights("resnet18", tmp_path) == tmp_path / name


def test_a_folder_of_the_right_name_is_no_weight_file(tmp_path):
    (tmp_path / "resnet18.pth").mkdir()
    assert find_weights("resnet18", tmp_path) is None


def test_the_folder_can_be_changed(tmp_path):
    (tmp_path / "resnet18.pth").touch()
    set_backbone_dir(tmp_path)
    assert get_backbone_dir() == str(tmp_path)
    assert get_backbone_path("resnet18") == tmp_path / "resnet18.pth"


def test_a_missing_file_is_named_with_place_size_source_and_hash(tmp_path):
    set_backbone_dir(tmp_path)
    with pytest.raises(InputError) as error:
        get_backbone_path("wide_resnet50_2")
    row = BACKBONE_WEIGHT_FILES["wide_resnet50_2"]
    for part in (str(tmp_path / row.paths[0]), f"{row.megabytes} MB", row.source, row.sha256):
        assert part in str(error.value)
    assert str(error.value) == str(missing_weights("wide_resnet50_2", tmp_path))


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown backbone 'resnet81'; did you mean 'resnet18'"):
        get_backbone_path("resnet81")


@pytest.mark.parametrize("name", BACKBONE_WEIGHT_FILES)
def test_every_row_says_where_the_file_belongs_and_comes_from(name):
    row = BACKBONE_WEIGHT_FILES[name]
    assert row.paths
    assert not any(path.startswith("/") or ".." in path for path in row.paths)
    assert row.source.startswith("package " if row.package else "https://")
    assert row.megabytes > 0
    assert re.fullmatch("[0-9a-f]*", row.sha256)


def test_a_name_that_ends_in_a_slash_is_a_folder_of_any_name(tmp_path):
    assert find_weights("qwen/", tmp_path) is None
    assert f"copy {BACKBONE_WEIGHT_FILES['vlm/'].source}" in str(missing_weights("qwen/", tmp_path))
    (tmp_path / "qwen").mkdir()
    assert find_weights("qwen/", tmp_path) == tmp_path / "qwen"

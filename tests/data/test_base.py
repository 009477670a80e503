from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adray.data.base import (
    Sample,
    list_folders,
    list_images,
    relative_key,
    require_training_normals,
)
from adray.data.mask_files import read_mask_folder
from adray.data.names import natural_key
from adray.errors import InputError


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def test_image_endings_count_in_any_case_and_hidden_files_do_not(tmp_path):
    touch(tmp_path, "a.PNG", "b.JpG", "c.jpeg", "d.BMP", "e.tif", "f.TIFF", "g.webp", "불량 1.png")
    touch(tmp_path, ".a.png", "._b.jpg", "Thumbs.db", "notes.txt", "noending", ".DS_Store")
    (tmp_path / "folder.png").mkdir()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["a.PNG", "b.JpG", "c.jpeg", "d.BMP", "e.tif", "f.TIFF", "g.webp", "불량 1.png"]


def test_numbers_in_names_sort_by_value():
    names = ["img10.png", "img2.png", "Img1.png", "a", "10", "9", "img02.png"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["9", "10", "a", "Img1.png", "img02.png", "img2.png", "img10.png"]


def test_order_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"{i}.png" for i in range(30)]
    touch(tmp_path / "a", *names)
    touch(tmp_path / "b", *reversed(names))
    assert (
        [p.name for p in list_images(tmp_path / "a")]
        == [p.name for p in list_images(tmp_path / "b")]
        == names
    )


def test_composed_and_decomposed_accents_give_one_key(tmp_path):
    assert relative_key(tmp_path, tmp_path / "e\u0301.png") == relative_key(
        tmp_path, tmp_path / "\u00e9.png"
    )


def test_folders_leave_out_hidden_ones_and_what_archives_leave_behind(tmp_path):
    for name in ("b", "a10", "a9", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in list_folders(tmp_path)] == ["a9", "a10", "b"]


def test_a_dangling_link_is_listed_so_that_it_can_be_reported(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


def test_a_mask_with_the_suffix_wins_over_one_without(tmp_path):
    touch(tmp_path, "000.png", "000_mask.png", "001.bmp")
    masks = read_mask_folder(tmp_path)
    found = [masks.find("", stem)[0].name for stem in ("000", "001")]
    assert found == ["000_mask.png", "001.bmp"]


def test_an_empty_training_folder_is_named(tmp_path):
    with pytest.raises(
        InputError,
        match=r"no normal training images: .*/good does not exist; put normal images there",
    ):
        require_training_normals([], tmp_path / "good")
    (tmp_path / "good").mkdir()
    with pytest.raises(InputError, match=r"/good has no images"):
        require_training_normals([], tmp_path / "good")


def test_a_sample_without_a_relative_path_still_has_a_key():
    assert Sample(Path("/x/a.png"), (), 1, "dent", "d", "c", "test").key == "test/dent/a.png"


def test_reading_and_drawing_data_load_neither_torch_nor_ray():
    code = (
        "import sys, adray.data.readers, adray.data.inspect_files, adray.data.synthetic;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

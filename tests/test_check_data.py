"""What would silently change a result stops `check`, with a sentence that says what to write to go on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_datasets import save, write_mvtec
from PIL import Image

from adray.__main__ import main
from adray.config_file import parse_yaml
from adray.settings import get_globals


@dataclass(frozen=True)
class Case:
    """A change of a category that must not pass in silence."""

    kind: str
    spoil: Callable[[Path], object]


def add_defects_among_normals(home: Path) -> None:
    save(home / "train/good/scratch/000.png", 1, defect=True)


def add_masks_among_normals(home: Path) -> None:
    Image.new("L", (64, 64)).save(home / "train/good/000_mask.png")


def add_copy(home: Path) -> None:
    shutil.copy(home / "train/good/000.png", home / "test/good/900.png")


def add_folder_in_capitals(home: Path) -> None:
    save(home / "test/Good/900.png", 900)


def rename_masks(home: Path) -> None:
    for path in sorted((home / "ground_truth/hole").iterdir()):
        path.rename(path.with_name(f"overlay-{path.name}"))


def move_masks_beside_images(home: Path) -> None:
    for path in sorted((home / "ground_truth").rglob("*.png")):
        path.rename(home / "test" / path.parent.name / path.name)


def invert_masks(home: Path) -> None:
    for path in (home / "ground_truth").rglob("*.png"):
        with Image.open(path) as mask:
            Image.fromarray(255 - np.asarray(mask)).save(path)


def add_unread_folder(home: Path) -> None:
    save(home / "train/extra/000.png", 900)


def save_normals_as_jpeg(home: Path) -> None:
    for path in [*home.glob("train/good/*"), *home.glob("test/good/*")]:
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()


def add_second_image_of_a_mask(home: Path) -> None:
    save(home / "test/hole/000.bmp", 900, defect=True)


def add_second_folder_of_normals(home: Path) -> None:
    save(home / "test/good2/000.png", 900)


CASES = [
    Case("normals_below_defects", add_second_folder_of_normals),
    Case("defects_below_normals", add_defects_among_normals),
    Case("defects_below_normals", add_masks_among_normals),
    Case("identical_pictures", add_copy),
    Case("names_differ_in_case", add_folder_in_capitals),
    Case("masks_do_not_match", rename_masks),
    Case("masks_do_not_match", move_masks_beside_images),
    Case("masks_cover_most", invert_masks),
    Case("unread_folders", add_unread_folder),
    Case("file_tells_label", save_normals_as_jpeg),
    Case("shared_mask", add_second_image_of_a_mask),
]


@pytest.fixture
def home():
    """The one category of a data set that is in order."""
    root = Path(get_globals().dataset_dir) / "parts"
    write_mvtec(root, categories=("disc",), train=12, good=6, defects=8)
    return root / "disc"


def check(tmp_path: Path, data: object = None) -> int:
    """Run `check` on a sweep of the data set, with what is said of it."""
    here = get_globals()
    settings = {name: getattr(here, name) for name in ("dataset_dir", "output_dir", "cache_dir")}
    settings |= {"plugins": ["toy_plugin"], "data": data or {}}
    sweep = {
        "name": "s",
        "settings": settings,
        "grid": {"models": ["toy-ok"], "datasets": {"parts": ["disc"]}},
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return main(["check", str(file)])


def said_of_data(sentence: str) -> object:
    """What a sentence says to write below settings.data, as a sweep's file would hold it."""
    written = re.search(r"settings\.data\.(\w+)\.(\w+): (\[\w+\])", sentence)
    assert written is not None, sentence
    name, key, value = written.groups()
    return parse_yaml(f"{name}: {{{key}: {value}}}", "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.spoil.__name__)
def test_it_stops_until_what_its_sentence_says_is_written(case, home, tmp_path, capsys):
    case.spoil(home)
    assert check(tmp_path) == 2
    problem = capsys.readouterr().err
    assert f"accept: [{case.kind}]" in problem

    assert check(tmp_path, said_of_data(problem)) == 0
    assert "(accepted)" in capsys.readouterr().out


def test_several_layouts_that_fit_stop_until_one_is_named(home, tmp_path, capsys):
    # A folder of DAGM's shape in a data set of MVTec AD's.
    for split in ("Train", "Test"):
        save(home.parent / "Class1" / split / "0001.png", 1)
        save(home.parent / "Class1" / split / "Label" / "0001_label.png", 1)
    assert check(tmp_path) == 2
    problem = capsys.readouterr().err
    assert "fits several layouts" in problem
    assert "{data: {parts: {layout: mvtec}}}" in problem

    assert check(tmp_path, {"parts": {"layout": "mvtec"}}) == 0


def test_data_in_order_stop_nothing(home, tmp_path):
    assert check(tmp_path) == 0


@pytest.mark.parametrize("spoil", [None, add_unread_folder, invert_masks])
def test_all_that_check_says_of_data_and_site_is_korean_for_a_korean(
    spoil, home, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    if spoil is not None:
        spoil(home)
    assert check(tmp_path) == (0 if spoil is None else 2)
    printed = capsys.readouterr()
    assert ("문제: " in printed.err) == (spoil is not None)
    for line in (printed.out + printed.err).replace(str(tmp_path), "").splitlines():
        assert not re.search(r"\b(the|of|are|is|trials|images|with|and)\b", line), line

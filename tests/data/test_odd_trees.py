"""Trees that no data set should be: whatever a reader meets, it gives samples or one sentence."""

from __future__ import annotations

import contextlib
import os
import random
import unicodedata
from pathlib import Path

import pytest
from fake_datasets import write_tree

from adray.data import base
from adray.data.mvtec import list_mvtec_samples
from adray.data.readers import DATASETS, fitting_layouts, list_categories, list_samples
from adray.errors import InputError
from adray.settings import FolderLayout, Settings

FOLDERS = [
    "train", "test", "good", "ok", "NG", "ground_truth", "Data", "Images", "Normal", "data_rgb",
    "normal", "abnormal", "mask", "Train", "Label", "validation", "realiad_jsons", "splits", "data",
    "불량", unicodedata.normalize("NFD", "정상"), "@eaDir", ".hidden", "x" * 255, "lot\udce4", "test0",
    "a\nb", "<b>", " ",
]  # fmt: skip
FILES = [
    "000.png", "000_mask.png", "000_GT.png", "1.PNG", "part 60 100.png", "x" * 251 + ".png",
    "teil_\udce4.png", unicodedata.normalize("NFD", "불량.jpg"), "._0.png", "Thumbs.db", "a.json",
    "image_anno.csv", "parts.csv", "query-train.parquet", "metadata.jsonl", "000_image_0.png",
    "V000_L00.png", "noending", ".png", "a.tif.bak",
]  # fmt: skip
CONTENTS = [b"", b"x", b"{}", b'{"train": [{"image_path": "000.png"}]}', b"image_path,label\n000.png,ok\n",
            b"image,label\n,\n", b"\xff\xfe\x00", b"[1]"]  # fmt: skip


def grow(folder: Path, rng: random.Random, depth: int = 0) -> None:
    """A folder of some files, links and folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in rng.sample(FILES, rng.randint(0, 4)):
        path = folder / name
        if rng.random() < 0.2:
            path.symlink_to(rng.choice(["gone.png", name, ".."]))
        else:
            path.write_bytes(rng.choice(CONTENTS))
    if rng.random() < 0.2:
        (folder / "again").symlink_to(rng.choice(["..", ".", "again", "../.."]))
    if depth < 4:
        for name in rng.sample(FOLDERS, rng.randint(1, 4)):
            grow(folder / name, rng, depth + 1)


def seeds(quick: int, number: int) -> list:
    """Seeds of random trees, of which the first run by default and all with `-m slow`."""
    more = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, number)]
    return [*range(quick), *more]


@pytest.mark.parametrize("seed", seeds(20, 60))
def test_no_tree_makes_a_reader_raise_anything_but_a_sentence(tmp_path, seed):
    rng = random.Random(seed)
    root = tmp_path / "odd"
    grow(root, rng)
    before = sorted(os.walk(root))

    for name, reader in DATASETS.items():
        reader.detect(root)
        with contextlib.suppress(InputError):
            for category in reader.list_categories(root, base.DEFAULT_READING):
                samples = reader.list_samples(root, category, base.DEFAULT_READING)
                assert len({s.path for s in samples}) == len(samples), name
                reader.metadata(root, category)
    if not any("data_info.csv" in names for _, _, names in os.walk(root)):
        assert sorted(os.walk(root)) == before


@pytest.mark.parametrize("seed", seeds(8, 20))
def test_a_described_folder_of_any_form_is_read_or_refused(tmp_path, seed):
    rng = random.Random(1000 + seed)
    grow(tmp_path / "odd", rng)
    names = [entry for entry in FOLDERS if "\udce4" not in entry]
    folder = FolderLayout("odd", (".",), tuple(rng.sample(names, 2)), rng.choice([None, *names]))
    settings = Settings(dataset_dir=str(tmp_path), folders={"odd": folder})
    with contextlib.suppress(InputError):
        list_samples("odd", list_categories("odd", settings), settings)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "d", ["disc/train/good/0.png", "disc/test/dent/0.png"])
    real = os.scandir

    def scandir(path):
        if str(path).endswith("test/dent"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        InputError, match=r"test/dent: the folder cannot be listed \(Permission denied"
    ):
        list_mvtec_samples(root, "disc")


def test_two_layouts_that_fit_are_told_apart_by_the_settings(tmp_path):
    root = write_tree(
        tmp_path / "both", ["a/train/good/0.png", "a/test/bad/0.png", "b/Data/Images/Normal/0.png"]
    )
    assert fitting_layouts(root) == ["mvtec", "visa"]
    settings = Settings(dataset_dir=str(tmp_path))
    with pytest.raises(
        InputError, match=r"fits several layouts .*\{data: \{both: \{layout: mvtec\}\}\}"
    ):
        list_categories("both", settings)
    chosen = Settings(dataset_dir=str(tmp_path), data={"both": base.DataOptions(layout="mvtec")})
    assert list_categories("both", chosen) == ["a"]
    wrong = Settings(dataset_dir=str(tmp_path), data={"both": base.DataOptions(layout="mvtek")})
    with pytest.raises(
        InputError, match=r"data.both.layout: 'mvtek' is no layout; did you mean 'mvtec'"
    ):
        list_categories("both", wrong)

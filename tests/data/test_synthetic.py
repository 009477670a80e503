from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from adray.__main__ import main
from adray.data.inspect_files import inspect_samples, problems_of
from adray.data.readers import list_samples, resolve_dataset
from adray.data.synthetic import MARKER, write_synthetic
from adray.data.synthetic_images import CATEGORIES, DEFECTS, add_defect, draw_normal
from adray.errors import InputError
from adray.settings import Settings

SMALL = {"train": 3, "good": 2, "defects": 4, "size": 48}


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    one, two = write_synthetic(tmp_path / "a", **SMALL), write_synthetic(tmp_path / "b", **SMALL)
    other = write_synthetic(tmp_path / "c", **SMALL, seed=1)
    assert digests(one) == digests(two)
    assert digests(one).keys() == digests(other).keys()
    same = [name for name, digest in digests(one).items() if digests(other)[name] == digest]
    assert same == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_it_reads_as_a_clean_data_set_in_mvtec_layout(tmp_path):
    write_synthetic(tmp_path / "synthetic", **SMALL)
    settings = Settings(dataset_dir=str(tmp_path))
    assert resolve_dataset("synthetic", settings).layout == "mvtec"
    samples = list_samples("synthetic", "all", settings)
    assert {s.category for s in samples} == set(CATEGORIES)
    assert len(samples) == 3 * (3 + 2 + 4)
    assert all(bool(s.mask_paths) == bool(s.label) for s in samples)
    assert problems_of(samples, *inspect_samples(samples, tmp_path / "cache")) == []


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("size", [32, 128, 200])
def test_a_defect_changes_pixels_inside_its_mask_only(category, kind, size):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image = draw_normal(category, size, rng)
        damaged, mask = add_defect(kind, image, rng)
        assert np.array_equal(damaged[~mask], image[~mask])
        assert 0 < mask.mean() < 0.15
        assert np.abs(damaged - image)[mask].mean() > 5


def test_a_complete_data_set_is_left_alone(tmp_path):
    root = write_synthetic(tmp_path / "a", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    write_synthetic(root, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_an_incomplete_data_set_is_written_anew(tmp_path):
    root = write_synthetic(tmp_path / "a", **SMALL)
    before = digests(root)
    (root / "weave" / "train" / "good" / "001.png").unlink()
    (root / "grain" / "train" / "good" / "001.png").write_bytes(b"")
    assert digests(write_synthetic(root, **SMALL)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_numbers_replace_what_was_drawn_before(tmp_path):
    root = write_synthetic(tmp_path / "a", **SMALL)
    before = digests(root)
    after = digests(write_synthetic(root, **{**SMALL, "train": 4}))
    assert {n: d for n, d in after.items() if n in before and n != MARKER} == {
        n: d for n, d in before.items() if n != MARKER
    }
    assert len(after) == len(before) + 3


def test_a_folder_with_other_files_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"x")
    with pytest.raises(InputError, match="photos holds other files and is not overwritten"):
        write_synthetic(tmp_path / "photos", **SMALL)
    assert (tmp_path / "photos" / "mine.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("name", "value"), [("size", 16), ("size", 1.5), ("train", 0), ("seed", -1), ("good", True)]
)
def test_a_number_out_of_range_is_refused(tmp_path, name, value):
    with pytest.raises(
        InputError, match=f"{name}: {value!r} cannot be drawn; give a whole number from"
    ):
        write_synthetic(tmp_path / "a", **{**SMALL, name: value})
    assert list(tmp_path.iterdir()) == []


def test_images_are_rgb_of_the_size_asked_and_masks_two_valued(tmp_path):
    root = write_synthetic(tmp_path / "a", **SMALL)
    with Image.open(root / "gasket" / "train" / "good" / "000.png") as image:
        assert (image.size, image.mode) == ((48, 48), "RGB")
    with Image.open(root / "gasket" / "ground_truth" / "scratch" / "000_mask.png") as mask:
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_the_command_writes_and_tells_errors_in_one_line(tmp_path, capsys):
    assert (
        main(
            [
                "synthetic",
                str(tmp_path / "a"),
                "--train",
                "1",
                "--good",
                "1",
                "--defects",
                "1",
                "--size",
                "32",
            ]
        )
        == 0
    )
    assert "gasket, grain, weave" in capsys.readouterr().out
    assert main(["synthetic", str(tmp_path / "b"), "--size", "5"]) == 2
    assert (
        capsys.readouterr().err
        == "error: size: 5 cannot be drawn; give a whole number from 32 to 2048\n"
    )


def test_the_help_names_every_option():
    run = subprocess.run(
        [sys.executable, "-m", "adray", "synthetic", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(
        word in run.stdout for word in ("OUT", "--train", "--good", "--defects", "--size", "--seed")
    )


@pytest.mark.parametrize("place", ["/proc/parts", "file/parts"])
def test_a_place_that_cannot_be_written_is_one_sentence(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be made .*name a folder that can be written"):
        write_synthetic(tmp_path / place)

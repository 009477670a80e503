from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adray.data.auxiliary import (
    AuxiliaryImages,
    auxiliary_fingerprint,
    auxiliary_samples,
    find_auxiliary,
)
from adray.data.geometry import Geometry
from adray.errors import InputError
from adray.settings import Settings


@pytest.fixture
def settings(tmp_path):
    for number, place in enumerate(("train/tench", "train/horn", "val/tench")):
        folder = tmp_path / "datasets" / "imagenette2" / place
        folder.mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    return Settings(
        dataset_dir=str(tmp_path / "datasets"),
        backbone_dir=str(tmp_path / "backbones"),
        cache_dir=str(tmp_path / "cache"),
    )


def test_a_published_set_is_found_below_either_folder(settings, tmp_path):
    assert find_auxiliary("imagenette2", settings) == tmp_path / "datasets" / "imagenette2"
    (tmp_path / "backbones" / "efficientad").mkdir(parents=True)
    (tmp_path / "datasets" / "imagenette2").rename(
        tmp_path / "backbones" / "efficientad" / "imagenette2"
    )
    assert (
        find_auxiliary("imagenette2", settings)
        == tmp_path / "backbones" / "efficientad" / "imagenette2"
    )
    assert find_auxiliary("dtd", settings) is None


def test_any_folder_serves_relative_or_absolute(settings, tmp_path):
    inside = tmp_path / "datasets" / "imagenette2" / "train"
    for name in ("imagenette2/train", str(inside)):
        assert [s.path.parent.name for s in auxiliary_samples(name, settings)] == ["horn", "tench"]


def test_pixels_are_those_of_the_files_at_the_size_asked_for(settings):
    images = AuxiliaryImages("imagenette2", Geometry(16, 8), settings)
    assert len(images) == 3
    picked = images[np.array([2, 0])]
    assert picked.shape == (2, 3, 8, 8)
    assert [int(image.mean()) for image in picked] == [80, 40]  # val/tench, then train/horn


def test_unreadable_images_are_left_out_and_a_folder_without_any_is_refused(
    settings, tmp_path, caplog
):
    folder = tmp_path / "datasets" / "mine"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="no readable image"):
        auxiliary_samples("mine", settings)
    Image.new("RGB", (9, 9)).save(folder / "b.png")
    assert [sample.path.name for sample in auxiliary_samples("mine", settings)] == ["b.png"]
    assert "a.png" in caplog.text


def test_a_missing_set_is_named_with_its_place_and_source(settings):
    with pytest.raises(InputError, match=r"dtd-r1.0.1.tar.gz \(600 MB\) to .*datasets/dtd"):
        auxiliary_samples("dtd", settings)
    with pytest.raises(InputError, match="is no folder"):
        auxiliary_samples("mine", settings)


def test_the_fingerprint_follows_contents_not_the_place(settings, tmp_path):
    before = auxiliary_fingerprint("imagenette2", settings)
    (tmp_path / "datasets").rename(tmp_path / "elsewhere")
    moved = replace(settings, dataset_dir=str(tmp_path / "elsewhere"))
    assert auxiliary_fingerprint("imagenette2", settings) == ""
    assert auxiliary_fingerprint("imagenette2", moved) == before
    Image.new("RGB", (9, 9)).save(tmp_path / "elsewhere" / "imagenette2" / "more.png")
    assert auxiliary_fingerprint("imagenette2", moved) != before

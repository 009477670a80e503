"""Masks: what their values mean, and that making them small loses no defect, by brute force."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from adray.data.base import Reading
from adray.data.decode import decode_pair
from adray.data.file_facts import mask_facts
from adray.data.geometry import Geometry
from adray.data.image_file import decode_bytes
from adray.data.masks import find_defect, find_regions, resize_defect
from adray.data.pairs import list_pair_samples
from adray.errors import InputError
from adray.settings import DataOptions

RNG = np.random.default_rng(1)
TRUTH = np.zeros((64, 80), bool)
TRUTH[10:30, 20:60] = True
TOUCHING = np.ones((3, 3), bool)


def encode(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def grey(levels) -> Image.Image:
    return Image.fromarray(np.asarray(levels, np.uint8))


def palette_mask() -> Image.Image:
    image = Image.fromarray(TRUTH.astype(np.uint8) * 3).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 20, 20, 20])
    return image


def soft(truth) -> Image.Image:
    """Draw at four times the size and average, as a program with smooth edges does."""
    large = Image.fromarray(np.kron(truth, np.ones((4, 4))).astype(np.uint8) * 255)
    return large.resize((truth.shape[1], truth.shape[0]), Image.Resampling.BICUBIC)


RGBA = np.zeros((64, 80, 4), np.uint8)
RGBA[..., :3] = 255
RGBA[TRUTH, 3] = 255

DRAWN_IN_BLACK = np.zeros((64, 80, 4), np.uint8)
DRAWN_IN_BLACK[TRUTH, 3] = 255
KINDS = TRUTH * np.repeat([85, 170, 255, 0], 20)

MASKS = {
    "two levels": encode(grey(TRUTH * 255)),
    "one bit": encode(grey(TRUTH * 255).convert("1")),
    "faint": encode(grey(TRUTH * 1)),
    "an index of kinds": encode(grey(TRUTH * RNG.integers(1, 16, TRUTH.shape))),
    "dark palette": encode(palette_mask()),
    "one color": encode(
        Image.fromarray(np.stack([TRUTH * 0, TRUTH * 0, TRUTH * 90], 2).astype("u1"))
    ),
    "JPEG": encode(grey(TRUTH * 255), "JPEG", quality=60),
    "opacity": encode(Image.fromarray(RGBA)),
    "drawn in black": encode(Image.fromarray(DRAWN_IN_BLACK)),
    "kinds as shades of grey": encode(grey(KINDS)),
    "kinds far above 15": encode(grey(TRUTH * 3 + (KINDS == 170) * 27)),
    "16 bits": tiff(TRUTH.astype(np.uint16) * 300),
    "16-bit index": tiff(TRUTH.astype(np.uint16) * RNG.integers(1, 9, TRUTH.shape).astype("u2")),
    "floats": tiff(TRUTH.astype(np.float32) * 0.5),
    "soft floats": tiff(np.where(TRUTH, 0.8, RNG.random(TRUTH.shape) * 0.3).astype(np.float32)),
    "white is zero": tiff(np.where(TRUTH, 0, 65535).astype(np.uint16), photometric="miniswhite"),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_guise_of_a_mask_shows_the_same_defect(name):
    assert (find_defect(decode_bytes(MASKS[name]), None).pixels == TRUTH).all()


def test_soft_edges_are_cut_at_half_and_said():
    data = encode(soft(TRUTH))
    defect = find_defect(decode_bytes(data), None)
    assert defect.levels == "above half"
    assert (defect.pixels == TRUTH).all()
    assert mask_facts(data, None).regions == ((800, 20, 10, 60, 30),)


def test_color_under_transparent_pixels_is_no_defect():
    hidden = RGBA.copy()
    hidden[..., 3] = 0
    assert mask_facts(encode(Image.fromarray(hidden)), None).empty


def test_a_threshold_decides_instead_of_the_levels():
    data = encode(grey(np.where(TRUTH, 200, 90)))
    assert find_defect(decode_bytes(data), None).pixels.all()
    defect = find_defect(decode_bytes(data), 100)
    assert (defect.pixels == TRUTH).all()
    assert defect.levels == "above the threshold"


def test_numbers_that_are_not_finite_make_a_mask_a_problem():
    assert "not finite" in mask_facts(tiff(np.full((9, 9), np.nan, np.float32)), None).problem


def test_regions_are_those_of_scipy_the_smallest_first():
    defect = RNG.random((90, 70)) < 0.2
    labels, count = ndimage.label(defect, TOUCHING)
    areas = sorted(np.bincount(labels.ravel())[1:])
    found = find_regions(defect, 10_000)
    assert [region[0] for region in found] == areas
    assert len(found) == count
    for area, left, top, right, bottom in found:
        assert defect[top:bottom, left:right].sum() >= area
    assert len(find_regions(defect, 5)) == 5


def overlaps(length: int, side: int) -> np.ndarray:
    """How much of each pixel of the picture lies in each of the square, (side, length)."""
    edges = np.arange(side + 1) * length / side
    low = np.maximum(edges[:-1, None], np.arange(length)[None])
    high = np.minimum(edges[1:, None], np.arange(length)[None] + 1)
    return (high - low).clip(0)


def random_defect() -> np.ndarray:
    height, width = RNG.integers(3, 200, 2)
    defect = RNG.random((height, width)) < RNG.choice([0.001, 0.02, 0.5])
    top, left = RNG.integers(0, height), RNG.integers(0, width)
    defect[top : top + RNG.integers(0, 40), left : left + RNG.integers(0, 40)] = True
    return defect


@pytest.mark.parametrize("side", [8, 13, 32, 64, 100, 256])
def test_the_small_mask_follows_the_area_and_every_region_keeps_a_pixel(side):
    for _ in range(8):
        defect = random_defect()
        by_row = overlaps(defect.shape[0], side)
        by_column = overlaps(defect.shape[1], side)
        cell = defect.size / side**2
        half = by_row @ defect @ by_column.T >= cell / 2 - 1e-9
        small = resize_defect(defect, side, side) == 1

        allowed = half.copy()
        labels, count = ndimage.label(defect, TOUCHING)
        for number in range(1, count + 1):
            area = by_row @ (labels == number) @ by_column.T
            touched = area > 1e-9
            assert small[touched].any()
            if not half[touched].any():
                allowed |= area >= area.max() - 1e-9
        assert (small >= half).all()
        assert (small <= allowed).all()


def test_a_mask_of_the_models_size_stays_as_it_is():
    defect = RNG.random((48, 48)) < 0.3
    assert (resize_defect(defect, 48, 48) == defect).all()


def test_specks_between_the_points_of_nearest_neighbor_survive_in_the_crop(tmp_path):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[500:502, 500:502] = 255
    mask[2:4, 2:4] = 255
    grey(mask).save(tmp_path / "m.png")
    grey(mask).save(tmp_path / "a.png")
    whole = decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(64)).defect
    crop = decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(64, 48)).defect
    assert np.argwhere(whole).tolist() == [[0, 0], [31, 31]]
    assert np.argwhere(crop).tolist() == [[23, 23]]


def test_several_masks_of_an_image_are_joined(tmp_path):
    grey(TRUTH * 0).save(tmp_path / "a.png")
    other = np.roll(TRUTH, 30, axis=0)
    grey(TRUTH * 255).save(tmp_path / "1.png")
    grey(other * 7).save(tmp_path / "2.png")
    pair = decode_pair(tmp_path / "a.png", [tmp_path / "1.png", tmp_path / "2.png"], Geometry(64))
    assert (pair.defect == resize_defect(TRUTH | other, 64, 64)).all()


def test_a_mask_of_half_the_size_is_refused_or_enlarged_as_the_options_say(tmp_path):
    grey(TRUTH * 0).save(tmp_path / "a.png")
    grey(TRUTH[::2, ::2] * 255).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png is 40x32 .*a\.png is 80x64.*mask_fit: resize"):
        decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(64))

    options = DataOptions(mask_fit="resize")
    pair = decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(64), options=options)
    assert (pair.defect == resize_defect(TRUTH, 64, 64)).all()


@pytest.mark.parametrize("with_memo", [True, False])
def test_an_image_beside_its_mask_is_anomalous_by_the_threshold_that_is_set(tmp_path, with_memo):
    for name, value in (("a", 0), ("b", 0), ("c", 60), ("d", 200)):
        Image.new("L", (16, 16)).save(tmp_path / f"{name}.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[4:8, 4:8] = value
        Image.fromarray(mask).save(tmp_path / f"{name}_GT.png")

    def anomalous(options: DataOptions) -> set[str]:
        cache = tmp_path / "cache" if with_memo else None
        samples = list_pair_samples(tmp_path, "s", Reading(options=options, cache_dir=cache))
        return {sample.path.stem for sample in samples if sample.label}

    assert anomalous(DataOptions()) == {"c", "d"}
    assert anomalous(DataOptions(mask_threshold=100)) == {"d"}

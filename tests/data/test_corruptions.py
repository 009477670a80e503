"""Corruptions of pictures: stronger from severity to severity, the same for ever, masks moved along."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adray.conditions import KINDS, SEVERITIES, Corruption
from adray.data.corruptions import MOVING, corrupt

SIZES = ((64, 64), (97, 61), (33, 128))
NOBODY_MOVES = sorted(set(KINDS) - MOVING)


def picture(seed, size=(64, 64), grey=False):
    """Draw soft blobs with a fine grain, neither black nor white."""
    rng = np.random.default_rng(seed)
    channels = 1 if grey else 3
    coarse = rng.uniform(40, 215, (channels, 9, 9)).astype(np.float32)
    planes = [np.asarray(Image.fromarray(plane).resize(size[::-1])) for plane in coarse]
    fine = rng.normal(0, 6, (channels, *size))
    pixels = np.clip(np.stack(planes) + fine, 0, 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=0) if grey else pixels


def change(pixels, corruption, name):
    """Measure the mean absolute change in grey levels."""
    changed = corrupt(pixels, None, corruption, name).pixels
    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    return float(np.abs(changed.astype(float) - pixels).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_changes_more_from_severity_to_severity(kind, size):
    totals = np.zeros(len(SEVERITIES))
    for seed in range(12):
        pixels = picture(seed, size)
        totals += [change(pixels, Corruption(kind, s), f"{seed}.png") for s in SEVERITIES]
    assert totals[0] > 0
    assert (np.diff(totals) > 0).all()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"white_balance"}))
def test_a_grey_picture_stays_grey_and_changes_as_well(kind):
    pixels = picture(3, grey=True)
    changed = corrupt(pixels, None, Corruption(kind, 4), "a").pixels
    assert (changed == changed[:1]).all()
    assert (changed != pixels).any()


def test_a_grey_camera_does_not_see_the_colour_of_the_light():
    pixels = picture(3, grey=True)
    assert (corrupt(pixels, None, Corruption("white_balance", 5), "a").pixels == pixels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_gets_the_same_pixels_whatever_came_before(kind):
    here = corrupt(picture(1), None, Corruption(kind, 3), "부품/결함 \udcff.png").pixels
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]);"
        "from test_corruptions import *;"
        "[corrupt(picture(9), None, Corruption(k, 5), 'x') for k in KINDS];"
        f"p = corrupt(picture(1), None, Corruption({kind!r}, 3), '부품/결함 \\udcff.png').pixels;"
        "sys.stdout.buffer.write(p.tobytes())"
    )
    if kind in ("noise", "shift"):  # one of each family: a process takes a second
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        elsewhere = subprocess.run(command, check=True, capture_output=True).stdout
        assert elsewhere == here.tobytes()
    again = corrupt(picture(1), None, Corruption(kind, 3), "부품/결함 \udcff.png").pixels
    assert (again == here).all()


@pytest.mark.parametrize("kind", ["noise", "glare", "dust", "shift", "gradient"])
def test_pictures_of_other_names_get_other_draws(kind):
    pixels = picture(1)
    first = corrupt(pixels, None, Corruption(kind, 5), "a.png").pixels
    second = corrupt(pixels, None, Corruption(kind, 5), "b.png").pixels
    assert (first != second).any()


@pytest.mark.parametrize("kind", NOBODY_MOVES)
def test_a_mask_stays_where_no_pixel_moves(kind):
    mask = np.zeros((64, 64), np.uint8)
    mask[3, 60] = 1
    assert (corrupt(picture(1), mask, Corruption(kind, 5), "a").mask == mask).all()


@pytest.mark.parametrize("kind", sorted(MOVING))
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [(64, 64), (97, 61), (200, 120)])
def test_a_mask_moves_with_the_defect_on_its_picture(kind, severity, size):
    """The defect is a white patch on black, so it can be found again in the pixels themselves."""
    for number in range(6):
        pixels = np.zeros((3, *size), np.uint8)
        rng = np.random.default_rng(number)
        top = int(rng.integers(0, size[0] - 12))
        left = int(rng.integers(0, size[1] - 12))
        pixels[:, top : top + 12, left : left + 12] = 255
        mask = (pixels[0] > 0).astype(np.uint8)
        found = corrupt(pixels, mask, Corruption(kind, severity), f"{number}")
        assert (found.mask == (found.pixels[0] > 127)).all()


def test_a_defect_of_one_pixel_that_stays_in_the_picture_keeps_a_pixel():
    for number in range(40):
        for kind in MOVING:
            mask = np.zeros((64, 64), np.uint8)
            mask[20 + number % 24, 20 + number // 2] = 1
            found = corrupt(picture(1), mask, Corruption(kind, 5), f"{number}").mask
            assert found.any(), (kind, number)


def test_a_defect_at_the_edge_may_leave_the_picture():
    mask = np.zeros((64, 64), np.uint8)
    mask[0, 0] = 1
    moved = [corrupt(picture(1), mask, Corruption("shift", 5), str(n)).mask for n in range(20)]
    assert any(not one.any() for one in moved)
    assert any(one.any() for one in moved)


def test_a_turn_is_that_of_scipy():
    pixels = picture(5, (80, 80))
    turned = corrupt(pixels, None, Corruption("rotation", 5), "a").pixels[0].astype(float)
    both = [
        ndimage.rotate(pixels[0].astype(float), a, order=1, reshape=False, mode="reflect")
        for a in (11, -11)
    ]
    inside = slice(5, -5)
    differences = [np.abs(turned - one)[inside, inside].max() for one in both]
    assert min(differences) < 2
    assert max(differences) > 20


def test_a_shift_by_whole_pixels_is_that_of_numpy():
    """The move is read off a picture with one bright pixel, and then held against another one."""
    for name in ("a", "b", "c"):
        dot = np.zeros((3, 101, 101), np.uint8)
        dot[:, 50, 50] = 255
        moved = corrupt(dot, None, Corruption("shift", 5), name).pixels[0].astype(float)
        y, x = ndimage.center_of_mass(moved)
        assert np.hypot(y - 50, x - 50) == pytest.approx(0.08 * 101, abs=0.1)
        pixels = picture(5, (101, 101))
        found = corrupt(pixels, None, Corruption("shift", 5), name).pixels[0].astype(float)
        wanted = ndimage.shift(pixels[0].astype(float), (y - 50, x - 50), order=1, mode="reflect")
        assert np.abs(found - wanted)[12:-12, 12:-12].mean() < 1


def test_jpeg_is_what_pillow_writes():
    pixels = picture(2)
    file = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, 2)).save(file, "JPEG", quality=8)
    wanted = np.moveaxis(np.asarray(Image.open(file)), 2, 0)
    assert (corrupt(pixels, None, Corruption("jpeg", 5), "a").pixels == wanted).all()


def test_noise_has_the_spread_that_it_says():
    pixels = np.full((3, 200, 200), 128, np.uint8)
    noisy = corrupt(pixels, None, Corruption("noise", 3), "a").pixels.astype(float)
    assert noisy.std() == pytest.approx(8, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.2)


def test_a_defocus_is_a_gaussian_blur():
    pixels = picture(4, (256, 256))
    blurred = corrupt(pixels, None, Corruption("defocus", 4), "a").pixels[0].astype(float)
    wanted = ndimage.gaussian_filter(pixels[0].astype(float), 2.2)
    assert np.abs(blurred - wanted)[16:-16, 16:-16].max() < 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("size", [(8, 8), (1, 8), (9, 300)])
def test_black_white_and_tiny_pictures_come_through(kind, level, size):
    pixels = np.full((3, *size), level, np.uint8)
    found = corrupt(pixels, np.ones(size, np.uint8), Corruption(kind, 5), "a")
    assert found.pixels.shape == pixels.shape
    assert found.mask.shape == size
    assert set(np.unique(found.mask)) <= {0, 1}

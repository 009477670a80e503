"""Where an image lies in the square of a model, and the way back, compared with Pillow and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from adray.config import TrainConfig
from adray.data.decode import array_pixels, decode_pair
from adray.data.geometry import (
    ROI_SIDE,
    UNSEEN_COLOR,
    Geometry,
    own_cells,
    pack_cells,
    roi_cells,
)
from adray.data.roi import fill_polygon
from adray.errors import InputError
from adray.predictor import Outcome, own_map
from adray.types import Roi

SIZES = ((64, 64), (65, 64), (64, 65), (33, 210), (211, 34), (480, 641), (3, 700), (700, 3), (9, 8))
"""Height and width: square, one more in either direction, wide, tall and thin."""
TRIANGLE = [(0.1, 0.05), (0.95, 0.3), (0.4, 0.9)]


def places(length, size):
    """A defect of some size at the start, in the middle and at the end."""
    return {0, (length - size) // 2, length - size}


@pytest.mark.parametrize("crop_size", [None, 56])
@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
@pytest.mark.parametrize("shape", [(640, 640), (641, 640), (330, 900), (901, 331)])
def test_a_defect_planted_at_any_edge_comes_back_at_its_own_pixels(shape, fit, crop_size):
    """The mask goes to the square and, as a map, back: to where it was, or nowhere if it is cut off."""
    geometry = Geometry(64, crop_size, fit=fit)
    height, width = shape
    placed = geometry.place(height, width)
    seen = placed.seen
    size = 40
    for top in places(height, size):
        for left in places(width, size):
            defect = np.zeros(shape, bool)
            defect[top : top + size, left : left + size] = True
            small = geometry.apply_to_defect(defect)
            outcome = Outcome("a", 1.0, small.astype(np.float32), size=shape, placement=placed)
            whole = own_map(outcome)
            assert whole.shape == shape

            window = np.zeros(shape, bool)
            window[seen.top : seen.top + seen.height, seen.left : seen.left + seen.width] = True
            assert not whole[~window].any()
            visible = defect & window
            # A pixel of the square is several of the image: so far an edge may be off.
            slack = 1.1 * max(height / placed.box.height, width / placed.box.width)
            if fit == "crop":
                slack = 1.1 * min(shape) / 64
            found = np.argwhere(whole >= 0.5)
            wanted = np.argwhere(visible)
            if len(wanted) and np.ptp(wanted, axis=0).min() > 2 * slack:
                assert np.abs(found.min(0) - wanted.min(0)).max() <= slack
                assert np.abs(found.max(0) - wanted.max(0)).max() <= slack
            if not len(wanted):
                assert not len(found)


@pytest.mark.parametrize("shape", SIZES)
def test_pad_keeps_the_aspect_ratio_with_the_color_around_as_pillow_pastes_it(shape):
    height, width = shape
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    got = array_pixels(pixels, Geometry(48, fit="pad")).pixels

    scale = 48 / max(shape)
    small = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    canvas = Image.new("RGB", (48, 48), UNSEEN_COLOR)
    resized = Image.fromarray(pixels).resize(small, Image.Resampling.BILINEAR)
    canvas.paste(resized, ((48 - small[0]) // 2, (48 - small[1]) // 2))
    assert np.array_equal(np.moveaxis(got, 0, -1), np.asarray(canvas))

    inside = Geometry(48, fit="pad").inside(*shape)
    assert inside.sum() == small[0] * small[1]
    outside = got[:, ~inside]
    assert (outside == np.array(UNSEEN_COLOR)[:, None]).all()


@pytest.mark.parametrize("shape", SIZES)
def test_crop_is_the_square_in_the_middle_as_pillow_cuts_it(shape):
    height, width = shape
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    got = array_pixels(pixels, Geometry(48, fit="crop")).pixels
    shorter = min(shape)
    left = (width - shorter) // 2
    top = (height - shorter) // 2
    square = Image.fromarray(pixels).crop((left, top, left + shorter, top + shorter))
    expected = np.asarray(square.resize((48, 48), Image.Resampling.BILINEAR))
    assert np.array_equal(got[0], expected)
    assert Geometry(48, fit="crop").inside(*shape).all()


@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
def test_nothing_outside_of_a_region_reaches_the_square(fit):
    """Two images that differ outside only are the same to the model, whatever the resize mixes."""
    roi = pack_cells(fill_polygon(TRIANGLE))
    geometry = Geometry(40, 36, fit=fit, roi=roi)
    rng = np.random.default_rng(0)
    for shape in SIZES[:6]:
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        other = image.copy()
        outside = ~own_cells(roi, *shape)
        other[outside] = rng.integers(0, 256, (outside.sum(), 3), np.uint8)
        one = array_pixels(image, geometry).pixels
        assert np.array_equal(one, array_pixels(other, geometry).pixels)
        assert not np.array_equal(image, other)


@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
def test_the_pixels_that_count_are_those_whose_middle_lies_in_the_region(fit):
    roi = pack_cells(fill_polygon([(0.25, 0.5), (1, 0.5), (1, 1), (0.25, 1)]))
    for height, width in SIZES[:6]:
        geometry = Geometry(64, 48, fit=fit, roi=roi)
        placed = geometry.place(height, width)
        row = (np.arange(48) + 0.5 - placed.box.top) / placed.box.height
        column = (np.arange(48) + 0.5 - placed.box.left) / placed.box.width
        y = (row * placed.window.height + placed.window.top) / height
        x = (column * placed.window.width + placed.window.left) / width
        expected = np.outer((y > 0.5) & (y < 1), (x > 0.25) & (x < 1))
        inside = geometry.inside(height, width)
        # A cell of the grid is a thousandth of a side.
        unsure = np.abs(y[:, None] - 0.5) < 1 / ROI_SIDE
        unsure = unsure | (np.abs(x[None] - 0.25) < 1 / ROI_SIDE)
        assert np.array_equal(inside[~unsure], expected[~unsure])


def test_a_polygon_covers_the_cells_that_pillow_fills():
    cells = fill_polygon(TRIANGLE)
    picture = Image.new("1", (ROI_SIDE, ROI_SIDE))
    corners = [(x * ROI_SIDE - 0.5, y * ROI_SIDE - 0.5) for x, y in TRIANGLE]
    ImageDraw.Draw(picture).polygon(corners, fill=1)
    assert (cells != np.asarray(picture)).mean() < 0.003
    assert cells.mean() == pytest.approx(0.32375, abs=1e-3)  # the triangle's area
    half = fill_polygon([(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    assert np.array_equal(half, np.arange(ROI_SIDE)[None].repeat(ROI_SIDE, 0) < ROI_SIDE / 2)


def test_a_region_survives_being_packed_and_a_damaged_one_is_refused():
    cells = np.random.default_rng(0).random((ROI_SIDE, ROI_SIDE)) < 0.5
    roi = pack_cells(cells)
    assert np.array_equal(roi_cells(roi), cells)
    for wrong in ("", "abc", roi.packed[:-9], "\x00", pack_cells(cells[:8]).packed):
        with pytest.raises(InputError, match="roi"):
            roi_cells(Roi(wrong))


def test_a_defect_outside_of_the_region_is_in_no_mask(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    mask = np.zeros((40, 80), np.uint8)
    mask[:10, :10] = 255
    mask[30:, 70:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    roi = pack_cells(fill_polygon([(0.5, 0), (1, 0), (1, 1), (0.5, 1)]))
    geometry = Geometry(32, fit="pad", roi=roi)
    defect = decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], geometry).defect
    assert defect.sum() == 16  # a quarter of the second square's side, which is 4 x 4
    assert not defect[:, :16].any()


def test_a_region_that_no_crop_shows_is_refused():
    roi = pack_cells(fill_polygon([(0, 0), (0.1, 0), (0.1, 0.1), (0, 0.1)]))
    with pytest.raises(InputError, match="no pixel of the roi is seen"):
        Geometry(64, 32, roi=roi).inside(100, 100)
    with pytest.raises(InputError, match="fit 'stretch' is not known"):
        TrainConfig(fit="stretch")


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_what_a_smaller_picture_shows_is_in_proportion(fit):
    placed = Geometry(64, fit=fit).place(1000, 600)
    half = placed.resized(500, 300).seen
    assert (2 * half.top, 2 * half.left) == (placed.seen.top, placed.seen.left)
    assert (2 * half.height, 2 * half.width) == (placed.seen.height, placed.seen.width)

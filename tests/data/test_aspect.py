"""Images in a rectangle that is no square: laid as Pillow lays them, and back at their own pixels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from fake_datasets import write_mvtec
from PIL import Image

from adray.config import TrainConfig, build, input_shape, stored_values
from adray.data.cache import decoded_folder, open_decoded
from adray.data.decode import array_pixels, decode_pair
from adray.data.geometry import UNSEEN_COLOR, Geometry, own_cells, pack_cells
from adray.data.near_duplicates import small_copies
from adray.data.pixel_checks import aspect_remark, usual_aspect
from adray.data.preprocessing import describe_preprocessing, preprocessing_hash
from adray.data.readers import list_samples
from adray.data.roi import fill_polygon
from adray.data.synthetic_defects import DEFECTS, draw_defective_copies
from adray.errors import InputError
from adray.predictor import Outcome, own_map
from adray.settings import Settings
from adray.tiling import Tiling
from adray.types import PixelRule

SIZES = ((64, 64), (65, 64), (33, 210), (211, 34), (480, 641), (3, 700), (700, 3), (9, 8))
"""Height and width of images."""
FRAMES = ((28, 1.5), (28, 0.4), (30, 2.3), (14, 10.0), (14, 0.1))
"""Shorter side and aspect of inputs."""
EIGHT = PixelRule("eight")


@pytest.mark.parametrize(
    ("shorter", "aspect", "wanted"),
    [
        (448, 1.0, (448, 448)),
        (448, 1.5, (448, 672)),
        (448, 1 / 1.5, (672, 448)),
        (672, 4 / 3, (672, 896)),
        (448, 1.234, (448, 546)),  # 552.8 is nearer to 39 patches than to 40
        (448, 1.016, (448, 462)),  # 455.2, just above the middle
        (448, 1.01, (448, 448)),
        (256, 1.0, (256, 256)),
        (256, 1.01, (256, 256)),  # no multiple of 14 below the shorter side
        (56, 10, (56, 560)),
        (56, 0.1, (560, 56)),
    ],
)
def test_the_longer_side_is_the_nearest_number_of_whole_patches(shorter, aspect, wanted):
    assert input_shape(shorter, aspect) == wanted
    assert TrainConfig(img_size=shorter, aspect=aspect).input_shape == wanted
    assert Geometry(shorter, aspect=aspect).frame == wanted


def scaled(geometry, height, width):
    """The factor by which an image becomes as large as the frame lets, and that for the other way."""
    high, wide = geometry.frame
    scales = (Fraction(high, height), Fraction(wide, width))
    return min(scales), max(scales)


def rounded(length):
    """To the nearest whole number of pixels, at least one, the half up."""
    return max(1, math.floor(length + Fraction(1, 2)))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", SIZES)
def test_squeeze_resizes_into_the_rectangle_as_pillow_does(shape, frame):
    geometry = Geometry(frame[0], aspect=frame[1])
    high, wide = geometry.frame
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR)
    got = array_pixels(pixels, geometry).pixels
    assert np.array_equal(np.moveaxis(got, 0, -1), np.asarray(expected))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", SIZES)
def test_pad_lays_the_image_in_proportion_into_the_middle_as_pillow_pastes_it(shape, frame):
    geometry = Geometry(frame[0], aspect=frame[1], fit="pad")
    high, wide = geometry.frame
    height, width = shape
    scale, _ = scaled(geometry, height, width)
    small = (rounded(width * scale), rounded(height * scale))

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    canvas = Image.new("RGB", (wide, high), UNSEEN_COLOR)
    resized = Image.fromarray(pixels).resize(small, Image.Resampling.BILINEAR)
    canvas.paste(resized, ((wide - small[0]) // 2, (high - small[1]) // 2))
    got = array_pixels(pixels, geometry).pixels
    assert np.array_equal(np.moveaxis(got, 0, -1), np.asarray(canvas))
    assert geometry.inside(*shape).sum() == small[0] * small[1]
    assert small[0] == wide or small[1] == high  # it reaches two ends


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("shape", SIZES)
def test_crop_takes_the_largest_part_of_that_shape_in_the_middle_as_pillow_cuts_it(shape, frame):
    geometry = Geometry(frame[0], aspect=frame[1], fit="crop")
    high, wide = geometry.frame
    height, width = shape
    _, scale = scaled(geometry, height, width)
    rows = min(height, rounded(high / scale))
    columns = min(width, rounded(wide / scale))
    left = (width - columns) // 2
    top = (height - rows) // 2

    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    part = Image.fromarray(pixels).crop((left, top, left + columns, top + rows))
    expected = np.asarray(part.resize((wide, high), Image.Resampling.BILINEAR))
    assert np.array_equal(array_pixels(pixels, geometry).pixels[0], expected)
    assert geometry.inside(*shape).all()
    assert rows == height or columns == width  # no larger one is there


@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
def test_an_image_of_the_shape_of_the_input_is_the_same_in_every_fit(fit):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    geometry = Geometry(28, fit=fit, aspect=1.5)
    plain = array_pixels(pixels, Geometry(28, aspect=1.5)).pixels
    assert np.array_equal(array_pixels(pixels, geometry).pixels, plain)
    assert geometry.place(100, 150).is_full


@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.6, 3.0])
@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
def test_a_pixel_comes_back_to_where_it_came_from(fit, aspect):
    """A ramp over the image goes to the input and, as a map, back: it is the same where it is seen."""
    geometry = Geometry(112, fit=fit, aspect=aspect)
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(60, 400, 2).tolist()
        placed = geometry.place(height, width)
        seen = placed.seen
        rows = slice(seen.top, seen.top + seen.height)
        columns = slice(seen.left, seen.left + seen.width)
        for axis, length in ((0, height), (1, width)):
            ramp = (np.arange(length) + 0.5) / length
            plane = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, (height, width))
            image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
            window = placed.window
            part = image.crop(
                (window.left, window.top, window.left + window.width, window.top + window.height)
            )
            small = part.resize((placed.box.width, placed.box.height), Image.Resampling.BILINEAR)
            anomaly_map = np.zeros(placed.frame, np.float32)
            anomaly_map[placed.rows, placed.columns] = np.asarray(small)
            outcome = Outcome("a", 1.0, anomaly_map, size=(height, width), placement=placed)
            whole = own_map(outcome)
            assert whole.shape == (height, width)
            # At the ends a pixel of the input stands for several, whose mean it has.
            slack = 1.5 / (placed.box.height, placed.box.width)[axis]
            assert np.abs(whole - plane)[rows, columns].max() < slack


def test_what_counts_of_a_region_is_what_its_own_pixels_say():
    roi = pack_cells(fill_polygon([(0.25, 0.5), (1, 0.5), (1, 1), (0.25, 1)]))
    for fit in ("squeeze", "pad", "crop"):
        geometry = Geometry(56, fit=fit, aspect=1.5, roi=roi)
        placed = geometry.place(100, 120)
        rows, columns = np.nonzero(geometry.inside(100, 120))
        y = (rows + 0.5 - placed.box.top) / placed.box.height * placed.window.height
        x = (columns + 0.5 - placed.box.left) / placed.box.width * placed.window.width
        own = own_cells(roi, 100, 120)
        taken = own[(y + placed.window.top).astype(int), (x + placed.window.left).astype(int)]
        assert taken.mean() > 0.97  # the rest lies on its border
        share = geometry.inside(100, 120)[placed.rows, placed.columns].mean()
        window = placed.window
        part = own[window.top : window.top + window.height, window.left :][:, : window.width]
        assert share == pytest.approx(part.mean(), abs=0.02)


def test_the_cache_gives_rectangles_as_they_were_decoded(tmp_path):
    write_mvtec(tmp_path / "datasets" / "mvtec")
    settings = Settings(dataset_dir=str(tmp_path / "datasets"), cache_dir=str(tmp_path / "cache"))
    samples = list_samples("mvtec", "bottle", settings)
    keys = set()
    for aspect in (1.5, 0.5, 1.0):
        geometry = Geometry(28, fit="pad", aspect=aspect)
        for _ in range(2):  # built, then read
            decoded = open_decoded(samples, geometry, settings)
            assert decoded.images.shape[2:] == decoded.masks.shape[1:] == geometry.frame
            for i, sample in enumerate(samples):
                pair = decode_pair(sample.path, sample.mask_paths, geometry)
                assert np.array_equal(decoded.images[i], pair.image)
                if pair.defect is not None:
                    assert np.array_equal(decoded.masks[i], pair.defect)
        keys.add(decoded.key)
    assert len(keys) == 3
    assert len(list(decoded_folder(settings).path.glob("[!.]*.arrow"))) == 3


def test_a_square_keeps_the_names_that_it_had_before_there_were_rectangles():
    """Recorded before the field was there."""
    assert "aspect" not in stored_values(TrainConfig())
    assert stored_values(TrainConfig(aspect=1.5))["aspect"] == 1.5
    assert stored_values(build(TrainConfig, {"aspect": 1}, "train")) == stored_values(TrainConfig())
    known = {"img_size": 64, "crop_size": 56, "interpolation": "bilinear"}
    assert Geometry(64, 56).stored() == known
    assert preprocessing_hash(TrainConfig(), EIGHT).startswith("a2ec994c724ba01b92cc786c")
    padded = preprocessing_hash(TrainConfig(fit="pad"), EIGHT)
    assert padded.startswith("26a143af7755fda164659145")
    cropped = TrainConfig(img_size=300, crop_size=200, fit="crop")
    assert preprocessing_hash(cropped, EIGHT).startswith("00d15d21b213c3032931b76c")


def test_a_rectangle_says_its_size_and_what_fit_means_there():
    described = describe_preprocessing(TrainConfig(img_size=28, aspect=1.5, fit="pad"), EIGHT)
    assert described["resize"]["size"] == [28, 42]
    assert "square" not in described["fit"]["meaning"]
    hashes = set()
    for aspect in (1.0, 1.5, 1 / 1.5):
        hashes.add(preprocessing_hash(TrainConfig(img_size=28, aspect=aspect), EIGHT))
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"aspect": 0.05}, "aspect is 0.05, but must be between 0.1 and 10"),
        ({"aspect": 11}, "aspect is 11.0, but must be"),
        (
            {"aspect": 1.5, "crop_size": 56},
            "aspect 1.5 does not go with crop_size 56.*crop_size: null",
        ),
        ({"aspect": 1.5, "tile": 64}, "aspect 1.5 says nothing beside tile 64"),
        ({"aspect": "3:2"}, "aspect"),
    ],
)
def test_what_cannot_be_a_rectangle_is_refused_with_what_to_do(values, words):
    with pytest.raises(InputError, match=words):
        build(TrainConfig, values, "train")


def test_loaders_refuse_the_same_as_a_configuration():
    with pytest.raises(InputError, match=r"aspect 1\.5 does not go with crop_size 56"):
        Geometry(64, 56, aspect=1.5)
    with pytest.raises(InputError, match="aspect 2 says nothing beside tile 64"):
        Geometry(64, aspect=2, tiling=Tiling(64, 0.25, 1.0))
    with pytest.raises(InputError, match="aspect is 20, but must be"):
        Geometry(64, aspect=20)


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (40, 100), (64, 64)])
def test_synthetic_defects_stay_on_a_rectangle_and_change_nothing_else(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (3, *shape)).astype(np.uint8)
    copies = draw_defective_copies(image, "a", 1, 3 * len(DEFECTS))
    assert {copy.kind for copy in copies} == set(DEFECTS)
    for copy in copies:
        assert copy.image.shape == image.shape
        assert copy.mask.shape == shape
        assert 0 < copy.mask.mean() < 0.6
        assert np.array_equal(copy.image[:, copy.mask == 0], image[:, copy.mask == 0])
        assert not np.array_equal(copy.image, image)


def test_small_copies_of_rectangles_are_means_of_blocks():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), np.uint8)
    grey = np.einsum("bchw,c->bhw", images, [0.299, 0.587, 0.114])
    expected = grey.reshape(2, 32, 2, 32, 3).mean((2, 4))
    assert np.abs(small_copies(images) - expected).max() <= 0.51


def test_the_value_that_suits_images_is_named_where_they_are_far_from_square(tmp_path):
    assert usual_aspect([(640, 480)] * 3 + [(480, 640)]) == 1.33
    assert usual_aspect([(480, 640)]) == 0.75
    assert usual_aspect([(100, 90), (100, 100)]) is None
    assert usual_aspect([(0, 0)]) is None
    assert usual_aspect([(5000, 100)]) == 10.0

    write_mvtec(tmp_path / "datasets" / "mvtec")
    settings = Settings(dataset_dir=str(tmp_path / "datasets"), cache_dir=str(tmp_path / "cache"))
    samples = list_samples("mvtec", "bottle", settings)
    assert aspect_remark(samples, "superad", settings) == []
    for sample in samples:
        Image.open(sample.path).resize((90, 60)).save(sample.path)
    (remark,) = aspect_remark(samples, "superad", settings)
    assert "1.5 times as wide as high" in str(remark)
    assert "train.aspect: 1.5" in str(remark)

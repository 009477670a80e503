"""The line decodes an ordinary picture as training does, and refuses what Pillow would change silently."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from adray.data.decode import decode_full
from adray.errors import InputError
from adray.runtime.errors import BundleError
from adray.runtime.picture import read_picture, three_channels
from adray.types import EIGHT_BITS, PixelRule

GENERATOR = np.random.default_rng(0)
RGB = Image.fromarray(GENERATOR.integers(0, 256, (40, 56, 3), dtype=np.uint8))
ORIENTATION = 0x0112


def exif(value):
    tags = Image.Exif()
    tags[ORIENTATION] = value
    return tags


def by_training(path, rule=EIGHT_BITS):
    return np.moveaxis(decode_full(path, rule).pixels, 0, -1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp", "gif"])
def test_ordinary_pictures_are_decoded_as_in_training(tmp_path, mode, ending):
    path = tmp_path / f"a.{ending}"
    image = RGB.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(GENERATOR.integers(0, 256, (40, 56), dtype=np.uint8)))
    try:
        image.save(path)
    except (OSError, ValueError):
        pytest.skip(f"no {ending} of mode {mode}")
    assert np.array_equal(read_picture(path, "uint8"), by_training(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_as_in_training(tmp_path, orientation):
    path = tmp_path / "a.jpg"
    RGB.save(path, exif=exif(orientation))
    assert np.array_equal(read_picture(path, "uint8"), by_training(path))


def test_gray_pictures_of_16_bits_keep_their_numbers(tmp_path):
    numbers = GENERATOR.integers(0, 65536, (40, 56)).astype(np.uint16)
    imagecodecs.imwrite(tmp_path / "a.png", numbers, codec="png")
    tifffile.imwrite(tmp_path / "a.tif", numbers)
    for name in ("a.png", "a.tif"):
        found = read_picture(tmp_path / name, "uint16")
        assert np.array_equal(found, np.repeat(numbers[..., None], 3, axis=2))


def deep_color_png(path):
    imagecodecs.imwrite(
        path, GENERATOR.integers(0, 65536, (9, 9, 3)).astype(np.uint16), codec="png"
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", deep_color_png),
        ("b.png", lambda path: imagecodecs.imwrite(path, np.zeros((9, 9), np.uint16), codec="png")),
        ("a.tif", lambda path: tifffile.imwrite(path, np.zeros((9, 9), np.float32))),
        ("b.tif", lambda path: tifffile.imwrite(path, np.zeros((9, 9, 3), np.uint16))),
        ("c.tif", lambda path: tifffile.imwrite(path, np.zeros((9, 9), np.int8))),
        (
            "d.tif",
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9, 4), np.uint8), photometric="rgb", extrasamples=[0]
            ),
        ),
    ],
)
def test_what_training_refuses_for_8_bits_the_line_refuses_too(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(InputError):
        by_training(tmp_path / name)
    with pytest.raises(BundleError, match="pixels, but the model was trained on uint8"):
        read_picture(tmp_path / name, "uint8")


def test_deep_pictures_whose_black_is_not_zero_or_that_have_colors_are_refused(tmp_path):
    numbers = GENERATOR.integers(0, 65536, (9, 9)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", numbers, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", numbers.astype(np.int16))
    deep_color_png(tmp_path / "c.png")
    RGB.save(tmp_path / "d.png")
    for name in ("a.tif", "b.tif", "c.png", "d.png"):
        with pytest.raises(BundleError, match="pixels, but the model was trained on uint16"):
            read_picture(tmp_path / name, "uint16")
    turned = by_training(tmp_path / "a.tif", PixelRule("deep", 0.0, 65535.0))
    assert abs(int(turned[0, 0, 0]) - round((65535 - int(numbers[0, 0])) / 257)) <= 1


def test_a_file_that_is_missing_damaged_or_none_gives_one_sentence(tmp_path):
    RGB.save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.png").write_bytes(b"no image")
    RGB.save(tmp_path / "c.jp2")
    for name in ("a.png", "b.png", "c.jp2", "none.png", "."):
        with pytest.raises(BundleError) as said:
            read_picture(tmp_path / name, "uint8")
        assert str(tmp_path / name) in str(said.value)


def test_arrays_get_three_channels_or_are_refused():
    gray = GENERATOR.integers(0, 256, (4, 5), dtype=np.uint8)
    assert np.array_equal(three_channels(gray), three_channels(gray[..., None]))
    assert three_channels(gray).shape == (4, 5, 3)
    for shape in ((4,), (4, 5, 4), (0, 5, 3), (1, 4, 5, 3)):
        with pytest.raises(BundleError, match="has the shape"):
            three_channels(np.zeros(shape, np.uint8))

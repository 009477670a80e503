"""Decoding, against Pillow and NumPy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from adray.data.decode import decode_image, decode_pair
from adray.data.geometry import Geometry
from adray.errors import InputError

RNG = np.random.default_rng(0)


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Random pixels without hard edges, (H, W, C) uint8."""
    coarse = Image.fromarray(RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., :channels]


def reference(image: Image.Image, size: int) -> np.ndarray:
    return (
        np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        .transpose(2, 0, 1)
        .astype(int)
    )


@pytest.mark.parametrize("shape", [(100, 100), (130, 70), (33, 90), (16, 16)])
def test_an_rgb_image_equals_pillows_antialiased_resize_within_one_grey_level(tmp_path, shape):
    pixels = smooth(*shape)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = decode_image(tmp_path / "a.png", 32)
    assert got.shape == (3, 32, 32)
    assert got.dtype == np.uint8
    assert np.abs(got - reference(Image.fromarray(pixels), 32)).max() <= 1


def test_real_images_equal_a_float_area_weighted_resize_within_one_grey_level(shared):
    path = sorted((shared / "datasets/mvtec/grid/train/good").iterdir())[0]
    exact = Image.open(path).convert("F").resize((256, 256), Image.Resampling.BILINEAR)
    assert np.abs(decode_image(path, 256)[0] - np.asarray(exact)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "1"])
def test_other_modes_become_their_colors(tmp_path, mode):
    image = Image.fromarray(smooth(40, 40)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    expected = reference(Image.open(path).convert("RGB"), 24)
    assert np.abs(decode_image(path, 24) - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "bits", "declared"), [("a.png", 16, None), ("a.tif", 16, None), ("a.tif", 12, 12)]
)
def test_deep_images_are_scaled_by_their_bit_depth_and_not_clipped(tmp_path, name, bits, declared):
    values = (smooth(48, 48, 1)[..., 0].astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    if declared:
        write_tiff12(tmp_path / name, values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    scaled = Image.fromarray((values / (2**bits - 1) * 255).astype(np.float32))
    expected = np.asarray(scaled.resize((24, 24), Image.Resampling.BILINEAR))
    got = decode_image(tmp_path / name, 24)
    assert (
        np.abs(got - expected).max() <= 1.5
    )  # rounded three times: to 8 bits, and after each axis of the resize
    assert (got[0] == got[1]).all()
    assert (got[0] == got[2]).all()


def write_tiff12(path, values):
    """A grey TIFF with 12 bits packed, as machine cameras write it; Pillow reads this form but does not write it."""
    height, width = values.shape
    flat = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack(
        [flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], 1
    )
    data = packed.astype(np.uint8).tobytes()
    tags = [
        (256, width),
        (257, height),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
    ]
    tags.append((279, len(data)))
    entries = b"".join(
        np.array([t, 4], "<u2").tobytes() + np.array([1, v], "<u4").tobytes() for t, v in tags
    )
    head = b"II*\0" + np.array([8 + len(data)], "<u4").tobytes()
    path.write_bytes(head + data + np.array([len(tags)], "<u2").tobytes() + entries + bytes(4))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_on_black(tmp_path, mode):
    color, alpha = smooth(40, 40).astype(int), smooth(40, 40, 1)[..., 0]
    image = Image.fromarray(color.astype(np.uint8)).convert("L" if mode == "LA" else "RGB")
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    plain = np.asarray(image.convert("RGBA"))[..., :3].astype(int)
    flat = Image.fromarray(np.rint(plain * (alpha[..., None] / 255)).astype(np.uint8))
    assert np.abs(decode_image(tmp_path / "a.png", 20) - reference(flat, 20)).max() <= 1


def test_a_transparent_palette_entry_is_composited_on_black(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 8, 16))
    image.save(tmp_path / "a.png", transparency=0)
    got = decode_image(tmp_path / "a.png", 16)
    assert got[:, 8, 2].tolist() == [0, 0, 0]
    assert got[:, 8, 12].tolist() == [0, 255, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    pixels = smooth(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(
        path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    expected = reference(Image.fromarray(np.ascontiguousarray(turned)), 16)
    assert np.abs(decode_image(path, 16) - expected).max() <= (3 if suffix == "jpg" else 1)


def test_the_crop_is_the_centre_of_the_resized_image(tmp_path):
    Image.fromarray(smooth(50, 60)).save(tmp_path / "a.png")
    whole, part = decode_image(tmp_path / "a.png", 32), decode_image(tmp_path / "a.png", 32, 24)
    assert (part == whole[:, 4:28, 4:28]).all()


def test_mask_and_image_go_through_the_same_geometry(tmp_path):
    mask = np.zeros((60, 90), np.uint8)
    mask[12:30, 45:75] = 255
    Image.fromarray(np.repeat(mask[..., None], 3, 2)).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    pair = decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(30, 20, "nearest"))
    assert (pair.image[0] // 255 == pair.defect).all()
    assert pair.defect.any()


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGB", "RGBA", "I;16", "F"])
def test_any_pixel_that_is_not_zero_is_a_defect(tmp_path, kind):
    truth = np.zeros((24, 24), np.uint8)
    truth[3:9, 10:20] = 1
    if kind == "RGBA":
        image = Image.fromarray(np.stack([truth, truth * 0, truth * 0, truth * 0 + 255], 2))
    elif kind == "RGB":
        image = Image.fromarray(np.stack([truth * 0, truth * 0, truth], 2))
    elif kind == "P":
        image = Image.fromarray(truth).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 128])
    elif kind == "1":
        image = Image.fromarray(truth * 255).convert("1")
    else:
        image = Image.fromarray(
            truth.astype({"L": np.uint8, "I;16": np.uint16, "F": np.float32}[kind])
        )
    image.save(tmp_path / "m.tif")
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    got = decode_pair(tmp_path / "a.png", [tmp_path / "m.tif"], Geometry(24)).defect
    assert got.dtype == np.uint8
    assert (got == truth).all()


def test_a_mask_of_another_size_is_refused_with_both_files_and_sizes(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("L", (30, 40)).save(tmp_path / "m.png")
    words = r"m\.png is 30x40 .*a\.png is 40x30; give the mask the size"
    with pytest.raises(InputError, match=words):
        decode_pair(tmp_path / "a.png", [tmp_path / "m.png"], Geometry(16))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_file_cut_short_is_refused_by_name(tmp_path, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be decoded"):
        decode_image(path, 16)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        decode_image(tmp_path / "gone.png", 16)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((9, 9), 2, np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.zeros((9, 9), np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(InputError, match=r"f\.tif holds floating-point"):
        decode_image(tmp_path / "f.tif", 16)
    with pytest.raises(InputError, match=r"i\.tif has 32 bits"):
        decode_image(tmp_path / "i.tif", 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"img_size": 7},
        {"img_size": 64.0},
        {"img_size": True},
        {"crop_size": 300},
        {"interpolation": "biliner"},
    ],
)
def test_a_geometry_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError):
        Geometry(**wrong)


_PEAK = """
import sys
from pathlib import Path
from adray.data.decode import decode_file
from adray.data.geometry import Geometry
from adray.data.file_facts import image_facts
from adray.machine import reset_peaks, resident_mb
from adray.types import PixelRule
import imagecodecs, tifffile  # what they take themselves counts before
path = Path(sys.argv[1])
assert reset_peaks("cpu")
before = resident_mb("VmRSS")
if sys.argv[2] == "train":
    decode_file(path, Geometry(256), PixelRule("deep", 0.0, 4095.0, "rgb"))
else:
    assert image_facts(path.read_bytes()).problem is None
print(resident_mb("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("use", ["train", "look"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 16},
        {"rowsperstrip": 4096, "compression": "lzw"},
        {"rowsperstrip": 16, "compression": "deflate"},
        {"tile": (256, 256)},
    ],
    ids=["strips", "one strip, lzw", "strips, deflate", "tiles"],
)
def test_a_large_deep_tiff_takes_at_most_five_times_its_raw_size(tmp_path, use, channels, layout):
    """Of 4,096 x 4,096 pixels of 16 bits, beside what the program takes itself.

    LZW makes a noisy file larger than its pixels, and one strip is unpacked as a whole.
    """
    ramp = np.add.outer(np.arange(4096), np.arange(4096)).astype(np.uint16)
    noisy = ramp + RNG.integers(0, 64, ramp.shape, np.uint16)
    pixels = noisy if channels == 1 else np.stack([noisy, noisy + 7, noisy // 2], axis=-1)
    photometric = "minisblack" if channels == 1 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, **layout)

    command = [sys.executable, "-c", _PEAK, str(tmp_path / "a.tif"), use]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 5 * pixels.nbytes / 2**20

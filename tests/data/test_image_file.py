"""Deep files against the arrays that were written, in every form that cameras write."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from adray.data.file_facts import image_facts
from adray.data.image_file import RawImage, decode_bytes
from adray.data.inspect_files import inspect_files

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4096, (12, 20)).astype(np.uint16)
COLOR = RNG.integers(0, 4096, (12, 20, 3)).astype(np.uint16)


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pgm(values, largest=65535) -> bytes:
    kind = b"P5" if values.ndim == 2 else b"P6"
    head = b"%s\n# a camera\n%d %d\n%d\n" % (kind, values.shape[1], values.shape[0], largest)
    return head + values.astype(">u2").tobytes()


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """Put a chunk behind the head of a PNG."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]


def numbers(data: bytes) -> np.ndarray:
    image = decode_bytes(data)
    assert isinstance(image, RawImage)
    return image.pixels[..., 0] if image.pixels.shape[2] == 1 else image.pixels


PLANES = np.moveaxis(COLOR, 2, 0)
OPACITY = np.concatenate([COLOR, COLOR[..., :1]], 2)
TIFFS = {
    "grey": (GREY, {}),
    "big-endian": (GREY, {"byteorder": ">"}),
    "BigTIFF": (GREY, {"bigtiff": True}),
    "LZW": (GREY, {"compression": "lzw", "predictor": True}),
    "deflate in tiles": (GREY, {"compression": "deflate", "tile": (16, 16)}),
    "strips": (GREY, {"rowsperstrip": 3}),
    "signed": (GREY.astype(np.int16) - 2000, {}),
    "signed bytes": ((GREY // 40).astype(np.int8), {}),
    "32 bits": (GREY.astype(np.uint32) * 70000, {}),
    "signed 32 bits": (GREY.astype(np.int32) * -70000, {}),
    "half floats": (GREY.astype(np.float16), {}),
    "floats": (GREY.astype(np.float32) / 7, {}),
    "floats by difference": (GREY.astype(np.float32), {"compression": "deflate", "predictor": 3}),
    "doubles": (GREY / 7, {}),
    "colors": (COLOR, {"photometric": "rgb"}),
    "floating colors": (COLOR.astype(np.float32), {"photometric": "rgb"}),
    "opacity": (OPACITY, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "12 bits packed": (GREY, {"bitspersample": 12}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_gives_the_numbers_that_were_written(name):
    pixels, options = TIFFS[name]
    got = numbers(tiff(pixels, **options))
    assert got.dtype == pixels.dtype
    assert (got == pixels).all()


def test_complex_numbers_are_refused_by_a_sentence(tmp_path):
    file = tmp_path / "fourier.tif"
    file.write_bytes(tiff(GREY.astype(np.complex64)))
    facts = image_facts(file.read_bytes())
    assert "complex numbers; save their magnitudes" in str(facts.complaint(file))


def test_planes_of_a_tiff_become_channels():
    got = numbers(tiff(PLANES, photometric="rgb", planarconfig="separate"))
    assert (got == COLOR).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_its_low_bytes(channels):
    pixels = np.ascontiguousarray(OPACITY[..., :channels]).squeeze()
    assert (numbers(imagecodecs.png_encode(pixels)) == pixels).all()


@pytest.mark.parametrize("pixels", [GREY, COLOR], ids=["grey", "colors"])
def test_pgm_and_jpeg_2000_keep_their_numbers(pixels):
    assert (numbers(pgm(pixels, 4095)) == pixels).all()
    jpeg = imagecodecs.jpeg2k_encode(pixels, level=0, bitspersample=12, reversible=True)
    assert (numbers(jpeg) == pixels).all()


@pytest.mark.parametrize(
    "pixels", [GREY, GREY.astype(np.int16) - 2000, GREY.astype(np.uint32)], ids=lambda p: p.dtype
)
def test_white_as_zero_is_turned_around_within_the_type(pixels):
    limits = np.iinfo(pixels.dtype)
    got = numbers(tiff(pixels, photometric="miniswhite"))
    assert (got == (limits.max + limits.min - pixels.astype(np.int64))).all()


def test_white_as_zero_of_12_bits_is_turned_around_within_12_bits():
    got = numbers(tiff(GREY, photometric="miniswhite", bitspersample=12))
    assert (got == 4095 - GREY).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_and_png_are_turned_upright_as_pillow_turns_an_ordinary_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    ordinary = io.BytesIO()
    Image.fromarray((GREY // 16).astype(np.uint8)).save(ordinary, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(ordinary)))

    deep = GREY // 16 * 16
    marked = with_chunk(imagecodecs.png_encode(deep), b"eXIf", exif.tobytes()[6:])
    tag = (274, "H", 1, orientation, True)
    for data in (tiff(deep, extratags=[tag]), marked):
        assert (numbers(data) // 16 == upright).all()
        facts = image_facts(data)
        assert (facts.height, facts.width) == upright.shape


@pytest.mark.parametrize(
    ("data", "bits", "declared"),
    [
        (tiff(GREY, bitspersample=12), 12, (0, 4095)),
        (tiff(GREY // 4, bitspersample=10), 10, (0, 1023)),
        (with_chunk(imagecodecs.png_encode(GREY), b"sBIT", b"\x0c"), 12, (0, 4095)),
        (pgm(GREY, 4095), 12, (0, 4095)),
        (tiff(GREY, extratags=[(341, "H", 1, 4000, True)]), 16, (0, 4000)),
        (tiff(GREY), 16, None),
        (imagecodecs.png_encode(GREY), 16, None),
    ],
    ids=["TIFF 12", "TIFF 10", "PNG", "PGM", "TIFF largest", "TIFF 16", "PNG 16"],
)
def test_what_a_file_declares_of_its_values_is_found(data, bits, declared):
    facts = image_facts(data)
    assert (facts.bits, facts.declared, facts.depth) == (bits, declared, "deep")


def test_the_range_of_a_file_does_not_follow_a_few_faulty_pixels():
    values = RNG.integers(1000, 3000, (200, 200)).astype(np.uint16)
    values[0, :3] = 65535
    facts = image_facts(tiff(values))
    assert 1000 <= facts.low < 1002
    assert 2998 < facts.high < 3000


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_a_problem_with_a_name(wrong):
    values = GREY.astype(np.float32)
    values[3, 3] = wrong
    assert "not finite" in image_facts(tiff(values)).problem


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
@pytest.mark.parametrize(
    "encode",
    [
        tiff,
        lambda a: tiff(a, rowsperstrip=8),
        lambda a: tiff(a, compression="lzw"),
        lambda a: tiff(a, compression="deflate"),
        imagecodecs.png_encode,
        pgm,
        lambda a: imagecodecs.jpeg2k_encode(a, level=0),
    ],
    ids=["TIFF", "strips", "LZW", "deflate", "PNG", "PGM", "JPEG 2000"],
)
def test_a_deep_file_cut_short_is_a_problem(encode, keep):
    data = encode(RNG.integers(0, 65536, (64, 64)).astype(np.uint16))
    assert image_facts(data[: int(keep * len(data))]).problem


@pytest.mark.parametrize("data", [b"P5\n99999 99999\n65535\n", b"P5 3", b"II*\0", b"MM\0+\0\x08"])
def test_a_file_that_claims_more_than_it_holds_is_a_problem_at_once(data):
    assert image_facts(data).problem


def test_a_deep_file_that_claims_too_many_pixels_is_refused_before_it_is_unpacked():
    png = imagecodecs.png_encode(GREY)
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 16, 0, 0, 0, 0)
    bomb = png[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + png[33:]
    assert "million pixels" in image_facts(bomb).problem


def test_the_first_of_several_pictures_is_read_and_all_are_counted(tmp_path):
    first = Image.fromarray((GREY // 16).astype(np.uint8))
    second = Image.new("L", first.size)
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        lossless = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **lossless)
    (tmp_path / "deep.tif").write_bytes(tiff(np.stack([GREY, GREY * 0]), photometric="minisblack"))

    facts = inspect_files(sorted(tmp_path.iterdir()), tmp_path / "cache")
    assert {found.frames for found in facts.values()} == {2}
    for path in facts:
        image = decode_bytes(path.read_bytes())
        got = image.pixels[..., 0] // 16 if isinstance(image, RawImage) else image.convert("L")
        assert np.abs(np.asarray(got).astype(int) - np.asarray(first)).max() <= 1, path


@pytest.mark.parametrize("megabytes", [3, 20])
def test_a_png_with_megabytes_of_text_is_read(megabytes):
    text = b"history\0\0" + zlib.compress(b"a" * megabytes * 10**6)
    file = io.BytesIO()
    Image.fromarray((GREY // 16).astype(np.uint8)).save(file, "PNG")
    data = with_chunk(file.getvalue(), b"zTXt", text)
    assert image_facts(data).problem is None
    assert (np.asarray(decode_bytes(data)) == GREY // 16).all()


def test_formats_that_run_programs_are_not_opened():
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    assert "not an image" in image_facts(data).problem
    with pytest.raises(Image.UnidentifiedImageError):
        decode_bytes(data)

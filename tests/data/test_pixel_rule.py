"""One rule for a data set's numbers: what decides it, and what becomes of images that do not suit."""

from __future__ import annotations

from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile
from fake_datasets import write_mvtec
from PIL import Image

from adray.data.base import Sample
from adray.data.decode import array_pixels, decode_file
from adray.data.geometry import Geometry
from adray.data.inspect_files import inspect_samples
from adray.data.loaders import get_dataloaders
from adray.data.pixel_checks import (
    clipped_note,
    data_fingerprint,
    mask_remarks,
    pixel_problems,
    pixel_remarks,
)
from adray.data.pixel_rule import decide_rule, rule_of
from adray.errors import InputError
from adray.settings import DataOptions, Settings
from adray.types import BY_TYPE, EIGHT_BITS, PixelRule

RNG = np.random.default_rng(2)


def write(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png" and values.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(values))
    elif path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values, **options)


def samples_of(folder, split="train", label=0):
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return [Sample(path, (), label, "good", "my", "part", split, path.name) for path in paths]


def rule_for(folder, **options):
    said = DataOptions(**options)
    return decide_rule(samples_of(folder), said, folder / "cache")


def noise(low, high, dtype=np.uint16, shape=(20, 30)):
    return RNG.integers(low, high + 1, shape).astype(dtype)


def test_ordinary_pictures_stay_as_they_are(tmp_path):
    write(tmp_path / "a.png", noise(0, 255, np.uint8))
    write(tmp_path / "b.tif", noise(0, 255, np.uint8, (20, 30, 3)))
    assert rule_for(tmp_path) == EIGHT_BITS
    assert EIGHT_BITS.is_plain


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_camera_of_fewer_bits_keeps_most_of_its_grey_levels(tmp_path, bits, ending):
    top = 2**bits - 1
    for i in range(3):
        write(tmp_path / f"{i}.{ending}", noise(top // 10, top))
    rule = rule_for(tmp_path)
    assert rule.low == 0
    assert top <= rule.high <= 1.3 * top
    assert rule.measured_on == 3
    values = np.arange(0, top, 8, dtype=np.uint16).reshape(1, -1)
    levels = array_pixels(np.repeat(values, 8, 0), Geometry(64), rule).pixels
    assert len(np.unique(levels)) > 60


def test_a_left_justified_set_keeps_the_whole_range_whatever_it_declares(tmp_path):
    write(tmp_path / "a.tif", noise(0, 4095) << 4, extratags=[(341, "H", 1, 4095, True)])
    rule = rule_for(tmp_path)
    assert (rule.low, rule.high) == (0, 65535)


def test_the_bits_that_all_files_declare_are_their_range(tmp_path):
    for i in range(2):
        write(tmp_path / f"{i}.tif", noise(100, 3000), bitspersample=12)
    assert rule_for(tmp_path) == PixelRule("deep", 0.0, 4095.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_measured_and_do_not_fall_below_zero(tmp_path, dtype):
    write(tmp_path / "a.tif", np.linspace(1, 9, 600, dtype=dtype).reshape(20, 30))
    rule = rule_for(tmp_path)
    assert rule.depth == "float"
    assert rule.low == 0
    assert rule.high == pytest.approx(11)


def test_signed_numbers_are_measured_below_zero_too(tmp_path):
    write(tmp_path / "a.tif", noise(-1000, 1000, np.int16))
    rule = rule_for(tmp_path)
    assert rule.low == pytest.approx(-1500, abs=10)
    assert rule.high == pytest.approx(1500, abs=10)


def test_a_given_range_is_taken_and_the_type_rule_is_todays(tmp_path):
    write(tmp_path / "a.tif", noise(0, 4095))
    assert rule_for(tmp_path, range=(0, 4095)) == PixelRule("deep", 0.0, 4095.0)
    assert rule_for(tmp_path, range="dtype") == BY_TYPE


def test_normals_of_two_depths_are_refused_with_both_examples(tmp_path):
    write(tmp_path / "a.png", noise(0, 255, np.uint8))
    write(tmp_path / "b.tif", noise(0, 4095))
    with pytest.raises(InputError, match=r"a\.png is 8-bit; .*b\.tif is 16-bit.*range: dtype"):
        rule_for(tmp_path)
    assert rule_for(tmp_path, range="dtype") == BY_TYPE


def test_a_set_of_one_value_is_refused_by_name(tmp_path):
    write(tmp_path / "a.tif", noise(7, 7))
    with pytest.raises(InputError, match=r"are 7, in .*a\.tif"):
        rule_for(tmp_path)


def test_a_range_for_ordinary_pictures_is_refused(tmp_path):
    write(tmp_path / "a.png", noise(0, 255, np.uint8))
    with pytest.raises(InputError, match=r"range \[0, 4095\] is for images of more than 8 bits"):
        rule_for(tmp_path, range=(0, 4095))


def test_merged_data_sets_have_one_rule(tmp_path):
    write(tmp_path / "a.tif", noise(0, 1000))
    write(tmp_path / "b.tif", noise(0, 4000))
    first, second = samples_of(tmp_path)
    both = [first, replace(second, dataset="other")]
    rule = rule_of(both, Settings(cache_dir=str(tmp_path / "cache")))
    assert rule.high > 4000
    settings = Settings(cache_dir=str(tmp_path / "cache"), data={"my": DataOptions(range="dtype")})
    with pytest.raises(InputError, match=r"range differs \(my: dtype, other: auto\)"):
        rule_of(both, settings)


def test_later_pixels_beyond_the_range_are_clipped_and_counted(tmp_path):
    values = np.full((10, 10), 500, np.uint16)
    values[0, :7] = 2000
    write(tmp_path / "a.tif", values)
    decoded = decode_file(tmp_path / "a.tif", Geometry(10), PixelRule("deep", 0, 1000))
    assert decoded.outside == pytest.approx(0.07)
    assert decoded.pixels.max() == 255
    note = clipped_note(np.array([0, 0.07, 0]), PixelRule("deep", 0, 1000))[0]
    assert note.startswith("1 of 3 test images")
    assert "at most 7 %" in note


def test_the_scale_is_linear_and_rounded_for_every_type(tmp_path):
    exact = np.linspace(100, 900, 256).reshape(16, 16)
    rule = PixelRule("deep", 100, 900)
    for dtype in (np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64):
        values = exact.astype(dtype)
        depth = "float" if values.dtype.kind == "f" else "deep"
        got = array_pixels(values, Geometry(16), replace(rule, depth=depth)).pixels[0]
        expected = np.rint((values.astype(np.float64) - 100) / 800 * 255)
        assert (got == expected).all()


def test_white_as_zero_floats_are_turned_within_a_given_range_else_refused(tmp_path):
    values = np.linspace(0.2, 0.9, 600, dtype=np.float32).reshape(20, 30)
    write(tmp_path / "black.tif", values)
    write(tmp_path / "white.tif", 1 - values, photometric="miniswhite")
    rule = PixelRule("float", 0.0, 1.0)
    black = decode_file(tmp_path / "black.tif", Geometry(16), rule).pixels.astype(int)
    white = decode_file(tmp_path / "white.tif", Geometry(16), rule).pixels
    assert np.abs(black - white).max() <= 1
    with pytest.raises(InputError, match="photometric"):
        decode_file(tmp_path / "white.tif", Geometry(16), replace(rule, measured_on=3))
    (tmp_path / "black.tif").unlink()
    with pytest.raises(InputError, match="photometric"):
        rule_for(tmp_path)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_that_are_no_colors_are_refused_unless_three_are_picked(tmp_path, count):
    for dtype, rule in ((np.uint8, EIGHT_BITS), (np.uint16, PixelRule("deep", 0, 255))):
        pixels = noise(0, 255, dtype, (20, 30, count))
        path = tmp_path / f"{dtype.__name__}.tif"
        write(path, pixels, photometric="minisblack", planarconfig="contig")
        with pytest.raises(InputError, match=rf"{path.name} has {count} channels"):
            decode_file(path, Geometry(16), rule)

        picked = replace(rule, channels=(0, count - 1, 1))
        got = decode_file(path, Geometry(16), picked).pixels
        for place, channel in enumerate(picked.channels):
            plain = Image.fromarray(pixels[..., channel].astype(np.uint8))
            expected = np.asarray(plain.resize((16, 16), Image.Resampling.BILINEAR))
            assert np.abs(got[place].astype(int) - expected).max() <= 1
        with pytest.raises(InputError, match="picks position 9"):
            decode_file(path, Geometry(16), replace(rule, channels=(0, 1, 9)))


def test_a_color_marked_as_transparent_is_no_channel_to_pick(tmp_path):
    image = Image.fromarray(noise(0, 255, np.uint8, (16, 16, 3)))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    rule = replace(EIGHT_BITS, channels=(2, 1, 0))
    got = decode_file(tmp_path / "a.png", Geometry(16), rule).pixels
    assert (got == np.moveaxis(np.asarray(image)[..., ::-1], 2, 0)).all()
    with pytest.raises(InputError, match="has 3 channels"):
        decode_file(tmp_path / "a.png", Geometry(16), replace(rule, channels=(0, 1, 3)))


def test_gray_is_luminance_in_all_three_channels(tmp_path):
    pixels = noise(0, 255, np.uint8, (16, 16, 3))
    write(tmp_path / "a.png", pixels)
    got = decode_file(tmp_path / "a.png", Geometry(16), PixelRule("eight", channels="gray")).pixels
    assert (got == np.asarray(Image.fromarray(pixels).convert("L"))).all()


def test_grey_with_an_opacity_of_16_bits_lies_on_black(tmp_path):
    pixels = np.full((8, 8, 2), 65535, np.uint16)
    pixels[:4, :, 1] = 0
    write(tmp_path / "a.png", pixels)
    got = decode_file(tmp_path / "a.png", Geometry(8), PixelRule("deep", 0, 65535)).pixels
    assert (got[:, :4] == 0).all()
    assert (got[:, 4:] == 255).all()


def test_an_image_of_another_depth_is_refused_with_both_depths(tmp_path):
    write(tmp_path / "deep.png", noise(0, 4095))
    write(tmp_path / "eight.png", noise(0, 255, np.uint8))
    with pytest.raises(InputError, match=r"deep\.png is 16-bit.*the training normals are 8-bit"):
        decode_file(tmp_path / "deep.png", Geometry(16), EIGHT_BITS)
    deep = PixelRule("deep", 0, 4095)
    with pytest.raises(InputError, match=r"eight\.png is 8-bit.*training normals are 16-bit"):
        decode_file(tmp_path / "eight.png", Geometry(16), deep)
    with pytest.raises(InputError, match="array is 8-bit"):
        array_pixels(noise(0, 255, np.uint8), Geometry(16), deep)

    settings = Settings(cache_dir=str(tmp_path / "cache"))
    images, _ = inspect_samples(samples_of(tmp_path), settings.cache_dir)
    problems = pixel_problems(images, deep)
    assert len(problems) == 1
    assert "eight.png" in str(problems[0])


@pytest.fixture
def deep_set(tmp_path):
    """An MVTec-shaped data set of 12 bits in 16-bit files."""
    root = tmp_path / "datasets" / "my"
    write_mvtec(root, categories=("part",), train=6, good=2, defects=2, size=48)
    for path in root.rglob("*.png"):
        if "ground_truth" not in path.parts:
            pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16
            path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    return Settings(dataset_dir=str(tmp_path / "datasets"), cache_dir=str(tmp_path / "cache"))


def test_loaders_read_a_deep_set_by_one_rule_and_say_so(deep_set):
    loaders = get_dataloaders("my", "part", img_size=32, settings=deep_set)
    assert loaders.pixels.depth == "deep"
    for number, sample in enumerate(loaders.test.samples):
        direct = decode_file(sample.path, Geometry(32), loaders.pixels)
        assert (loaders.test.images(number) == direct.pixels).all()

    samples = loaders.train.samples + loaders.test.samples
    said = pixel_remarks(inspect_samples(samples, deep_set.cache_dir), loaders.pixels)
    assert "become 0 to 255 (measured on 6 training normals" in str(said[0])


def test_the_fingerprint_holds_the_rule_where_it_is_not_plain(deep_set):
    loaders = get_dataloaders("my", "part", img_size=32, settings=deep_set)
    samples = loaders.train.samples
    deep = data_fingerprint(samples, loaders.pixels, deep_set)
    other = data_fingerprint(samples, replace(loaders.pixels, high=9.0), deep_set)
    plain = data_fingerprint(samples, EIGHT_BITS, deep_set)
    again = data_fingerprint(samples, replace(loaders.pixels, measured_on=99), deep_set)
    assert len({deep, other, plain}) == 3
    assert again == deep
    soft = replace(deep_set, data={"my": DataOptions(mask_threshold=9)})
    assert data_fingerprint(samples, EIGHT_BITS, soft) != plain


def test_small_and_cropped_defects_are_counted(tmp_path):
    mask = np.zeros((256, 256), np.uint8)
    mask[0:4, 0:40] = 255
    mask[128, 128] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(mask).save(tmp_path / "a.png")
    paths = (tmp_path / "m.png",)
    sample = Sample(tmp_path / "a.png", paths, 1, "bad", "my", "part", "test")
    settings = Settings(cache_dir=str(tmp_path / "cache"))
    tiny, cropped = map(str, mask_remarks([sample], Geometry(64, 48), settings))
    assert tiny.startswith("1 of 2 defect regions are smaller than a pixel")
    assert cropped.startswith("1 of 2 defect regions lie outside of the centre crop")
    assert mask_remarks([sample], Geometry(256), settings) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"range": "dtpye"}, "did you mean 'dtype'"),
        ({"range": (5, 5)}, "low below high"),
        ({"range": (0, float("nan"))}, "low below high"),
        ({"range": (1, 2, 3)}, "low below high"),
        ({"channels": "grey"}, "did you mean 'gray'"),
        ({"channels": (0, 1)}, "three positions"),
        ({"channels": (0, 1, -1)}, "three positions"),
        ({"mask_threshold": -1}, "from 0 on"),
        ({"mask_fit": "resise"}, "did you mean 'resize'"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_remedy(wrong, words):
    with pytest.raises(InputError, match=words):
        DataOptions(**wrong)

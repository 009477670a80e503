from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import draw, write_mvtec
from PIL import Image, ImageOps

from adray.data.base import Sample
from adray.data.examine import compare_pictures
from adray.data.facts_memo import MEMO_NAME
from adray.data.file_facts import image_facts, picture_digest
from adray.data.inspect_files import (
    fingerprint,
    inspect_files,
    inspect_masks,
    inspect_samples,
    problems_of,
)
from adray.data.mvtec import list_mvtec_samples
from adray.data.readers import list_samples
from adray.settings import Settings

SHARED = Path(__file__).parents[3] / "shared" / "datasets"
FORMATS = ["png", "jpg", "bmp", "tif", "webp"]


def age(*paths):
    """Make files look settled: fresh ones are not remembered."""
    for path in paths:
        os.utime(path, (1_600_000_000, 1_600_000_000))


def encode(ending, size=64, **options):
    data = io.BytesIO()
    draw(3, size)[0].save(data, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending), **options)
    return data.getvalue()


def facts_of(path, cache):
    return inspect_files([path], cache)[path]


@pytest.mark.parametrize("ending", FORMATS)
def test_facts_agree_with_hashlib_and_pil(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(encode(ending, 48))
    facts = facts_of(path, tmp_path / "cache")
    assert facts.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert (facts.width, facts.height, facts.problem, facts.empty) == (48, 48, None, None)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_file_cut_short_is_a_problem_in_every_format(tmp_path, ending, part):
    data = encode(ending)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data[: int(len(data) * part)])
    assert facts_of(path, tmp_path / "cache").problem


def test_a_jpeg_cut_short_behind_its_thumbnail_is_a_problem(tmp_path):
    thumbnail = encode("jpg", 32)
    exif = b"Exif\0\0" + thumbnail
    data = encode("jpg")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert facts_of(path, tmp_path / "cache").problem is None
    for end in (len(data) // 2, len(exif) + 40, len(data) - 200):
        path.write_bytes(data[:end])
        assert facts_of(path, tmp_path / "cache").problem


def test_a_flipped_bit_in_a_png_is_a_problem(tmp_path):
    data = bytearray(encode("png"))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert "damaged" in facts_of(tmp_path / "a.png", tmp_path / "cache").problem


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode("jpg") + b"\0" * 500 + b"camera notes")
    assert facts_of(tmp_path / "a.jpg", tmp_path / "cache").problem is None


def test_a_huge_claimed_size_is_a_problem_not_a_crash(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(data)
    assert "claims more than" in facts_of(tmp_path / "a.png", tmp_path / "cache").problem


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_the_one_after_rotation(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).size
    facts = facts_of(path, tmp_path / "cache")
    assert (facts.width, facts.height) == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "I"])
def test_a_mask_is_empty_when_no_pixel_is_set(tmp_path, mode):
    blank, marked = tmp_path / "blank.tif", tmp_path / "marked.tif"
    Image.new("RGB" if mode == "P" else mode, (20, 10)).convert(mode).save(blank)
    if mode in ("1", "P"):
        pixels = np.zeros((10, 20), np.uint8)
        pixels[5, 5] = 255
        Image.fromarray(pixels).convert(mode).save(marked)
    else:
        image = Image.new(mode, (20, 10))
        image.putpixel((5, 5), 1 if mode in ("L", "I", "I;16") else (0, 0, 1, 255)[: len(mode)])
        image.save(marked)
    facts = inspect_masks([blank, marked], tmp_path / "cache")
    assert [facts[path].empty for path in (blank, marked)] == [True, False]


def test_all_problems_are_told_one_sentence_each(tmp_path):
    root = write_mvtec(tmp_path / "mvtec", categories=("bottle",), train=4, good=2, defects=6)
    home = root / "bottle"
    (home / "train" / "good" / "000.png").write_bytes(b"")
    (home / "train" / "good" / "001.png").write_bytes(
        (home / "train" / "good" / "001.png").read_bytes()[:500]
    )
    (home / "train" / "good" / "002.png").write_bytes(b"no image")
    (home / "train" / "good" / "003.png").unlink()
    (home / "train" / "good" / "003.png").symlink_to(tmp_path / "gone.png")
    Image.new("L", (64, 64)).save(home / "ground_truth" / "hole" / "000_mask.png")
    Image.new("L", (32, 64), 255).save(home / "ground_truth" / "hole" / "001_mask.png")
    (home / "ground_truth" / "hole" / "002_mask.png").write_bytes(b"")
    samples = list_mvtec_samples(root, "bottle")
    problems = problems_of(samples, *inspect_samples(samples, tmp_path / "cache"))
    expected = [
        ("train/good/000.png", "the file is empty (0 bytes); replace the file or take it out"),
        ("train/good/001.png", "damaged or cut short"),
        ("train/good/002.png", "not an image that can be read"),
        ("train/good/003.png", "the file cannot be read (No such file or directory)"),
        ("ground_truth/hole/002_mask.png", "the file is empty (0 bytes)"),
        (
            "ground_truth/hole/000_mask.png",
            "the mask of an anomalous image is empty; mark the defect in it",
        ),
        ("ground_truth/hole/001_mask.png", "the mask is 32x64 pixels but its image"),
    ]
    assert len(problems) == len(expected)
    for (name, words), problem in zip(expected, map(str, problems), strict=True):
        assert problem.startswith(str(home / name))
        assert words in problem
        assert "\n" not in problem


@pytest.fixture
def dataset(tmp_path):
    return write_mvtec(tmp_path / "a" / "mvtec", categories=("bottle",))


def print_of(root, cache):
    return fingerprint(list_mvtec_samples(root, "bottle"), cache)


def test_the_fingerprint_does_not_depend_on_place_order_or_time(tmp_path, dataset):
    before = print_of(dataset, tmp_path / "cache")
    moved = Path(shutil.copytree(dataset, tmp_path / "b" / "other"))
    age(*moved.rglob("*.png"))
    assert print_of(moved, tmp_path / "cache2") == before
    samples = list_mvtec_samples(dataset, "bottle")
    assert fingerprint(samples[::-1], tmp_path / "cache") == before


def test_the_fingerprint_changes_with_a_group_which_decides_what_is_held_out(tmp_path, dataset):
    first, *others = list_mvtec_samples(dataset, "bottle")
    cache = tmp_path / "cache"
    plain = fingerprint([first, *others], cache)
    of_lot_1 = fingerprint([replace(first, group="lot1"), *others], cache)
    of_lot_2 = fingerprint([replace(first, group="lot2"), *others], cache)
    assert len({plain, of_lot_1, of_lot_2}) == 3


@pytest.mark.parametrize("name", ["train/good/000.png", "ground_truth/hole/000_mask.png"])
def test_the_fingerprint_changes_with_an_image_and_with_a_mask(tmp_path, dataset, name):
    before = print_of(dataset, tmp_path / "cache")
    path = dataset / "bottle" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")  # same size, within the same tick of the clock
    assert print_of(dataset, tmp_path / "cache") != before


def test_the_fingerprint_changes_with_names_and_missing_files(tmp_path, dataset):
    seen = {print_of(dataset, tmp_path / "cache")}
    (dataset / "bottle" / "train" / "good" / "000.png").rename(
        dataset / "bottle" / "train" / "good" / "900.png"
    )
    seen.add(print_of(dataset, tmp_path / "cache"))
    (dataset / "bottle" / "train" / "good" / "900.png").unlink()
    seen.add(print_of(dataset, tmp_path / "cache"))
    shutil.rmtree(dataset / "bottle" / "ground_truth")
    seen.add(print_of(dataset, tmp_path / "cache"))
    assert len(seen) == 4


def test_what_did_not_change_is_not_read_again(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode("png"))
    age(path)
    first = facts_of(path, tmp_path / "cache")
    path.write_bytes(b"?" * path.stat().st_size)
    age(path)
    assert facts_of(path, tmp_path / "cache") == first
    path.write_bytes(b"?" * (path.stat().st_size + 1))
    age(path)
    assert facts_of(path, tmp_path / "cache") != first


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode("png"))
    facts_of(path, tmp_path / "cache")
    assert not (tmp_path / "cache" / MEMO_NAME).exists()


def test_a_torn_or_garbled_memo_costs_only_time(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(encode("png", 16 + i))
    age(*paths)
    whole = inspect_files(paths, tmp_path / "cache")
    memo = tmp_path / "cache" / MEMO_NAME
    data = memo.read_bytes()
    for torn in (
        data[:-30],
        b"\xff\x00" + data,
        b'{"a": 1}\n[1, 2]\n[1,2,3,4,5]\n[[],2,3,4,{}]\nnull\n' + data,
        b"",
    ):
        memo.write_bytes(torn)
        assert inspect_files(paths, tmp_path / "cache") == whole
    assert memo.read_bytes().count(b"\n") >= 5


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode("png"))
    age(path)
    (tmp_path / "cache").mkdir()
    memo = tmp_path / "cache" / MEMO_NAME
    memo.write_bytes(b'["image", "/x", 1')
    first = facts_of(path, tmp_path / "cache")
    path.write_bytes(b"?" * path.stat().st_size)
    age(path)
    assert facts_of(path, tmp_path / "cache") == first


def test_a_cache_that_cannot_be_written_works_without_memo(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode("png"))
    age(path)
    (tmp_path / "file").write_text("in the way")
    assert facts_of(path, tmp_path / "file" / "cache").problem is None


@pytest.mark.parametrize("kind", [*FORMATS, "gif", "deep", "turned", "marked", "cut"])
def test_what_is_on_a_small_image_is_hashed_when_its_file_is_looked_at(kind):
    """Equal to decoding the file by itself."""
    data = {
        "gif": lambda: encode("gif"),
        "deep": lambda: _deep_tiff(),
        "turned": lambda: encode("jpg", exif=_turned()),
        "marked": lambda: encode("png", transparency=(1, 2, 3)),
        "cut": lambda: encode("jpg")[:-200] + b"\xff\xd9",
    }.get(kind, lambda: encode(kind))()
    facts = image_facts(data, small=64 * 64)
    assert facts.picture == picture_digest(data)
    assert replace(facts, picture="") == image_facts(data, small=64 * 64 - 1)


def _deep_tiff():
    data = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(data, "tiff")
    return data.getvalue()


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_small_files_are_opened_once_to_be_compared(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(encode("png", 16 + i))
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read_bytes(path))

    samples = [Sample(path, (), 0, "good", "d", "c", "train", path.name) for path in paths]
    facts = inspect_samples(samples, tmp_path / "cache")
    pictures = compare_pictures(samples, facts.images, tmp_path / "cache")

    assert all(map(pictures.get, paths))
    assert sorted(path for path in opened if path.suffix == ".png") == paths


def _inspect_in_process(folder, cache):
    return len(inspect_files(sorted(folder.glob("*.png")), cache))


def test_concurrent_writers_leave_a_memo_that_all_can_read(tmp_path):
    data = encode("png", 16)
    for k in range(3):
        (tmp_path / str(k)).mkdir()
        for i in range(60):
            (tmp_path / str(k) / f"{i}.png").write_bytes(data)
            age(tmp_path / str(k) / f"{i}.png")
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(_inspect_in_process, tmp_path / str(k % 3), cache) for k in range(6)]
        assert [job.result() for job in jobs] == [60] * 6
    lines = [line for line in (cache / MEMO_NAME).read_bytes().splitlines() if line]
    assert all(line.startswith(b'["image"') and line.endswith(b"}]") for line in lines)


@pytest.mark.skipif(not (SHARED / "mvtec").is_dir(), reason="no shared data")
def test_the_real_folders_have_no_problems(tmp_path):
    settings = Settings(dataset_dir=str(SHARED))
    samples = list_samples("mvtec", "all", settings)
    assert len(samples) == 570
    assert problems_of(samples, *inspect_samples(samples, tmp_path)) == []
    facts = inspect_files([s.path for s in samples], tmp_path)
    odd = [
        f
        for s, f in zip(samples, facts.values(), strict=True)
        if s.category == "hazelnut" and f.height != f.width
    ]
    assert {(f.width, f.height) for f in odd} <= {(512, 522), (522, 512)}
    assert len(odd) == 1

"""What a survey says of a folder, against what was written into it."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_datasets import draw, save, write_folder, write_mvtec
from PIL import Image
from scipy import ndimage

from adray.config import SweepConfig, build
from adray.config_file import load_sweep, parse_yaml
from adray.data.findings import Finding
from adray.data.readers import list_samples
from adray.data.recognise import recognise
from adray.data.survey import make_survey
from adray.data.survey_counts import IMG_SIZES
from adray.data.survey_page import render_page, write_page
from adray.data.survey_pictures import PER_CATEGORY, evenly_spaced, sample_size
from adray.data.survey_text import as_json, as_text, as_yaml, bars, shown
from adray.data.synthetic import write_synthetic
from adray.language.catalogue import load_catalogue
from adray.language.sentence import quoted
from adray.regions import outline
from adray.settings import DEFAULT_OPTIONS, DataOptions, get_globals

ENGLISH = load_catalogue("en")


class Steps:
    """Remembers how far a survey was."""

    def __init__(self):
        self.total = {}
        self.done = {}

    def begin(self, step, total):
        self.step = step
        self.total[step] = total
        self.done[step] = 0

    def advance(self):
        self.done[self.step] += 1


def survey(root, options=DEFAULT_OPTIONS, watch=None):
    found = recognise(str(root), get_globals(), options)
    return make_survey(found, get_globals(), options, watch or Steps())


def test_images_are_counted_by_split_and_kind(tmp_path):
    root = write_mvtec(tmp_path / "parts", train=7, good=3, defects=5, size=32)
    for category in survey(root).categories:
        counts = {(c.split, c.kind): (c.images, c.with_mask) for c in category.counts}
        assert counts == {
            ("train", "good"): (7, 0),
            ("test", "good"): (3, 0),
            ("test", "hole"): (2, 2),
            ("test", "scratch"): (3, 3),
        }


def test_formats_modes_and_sizes_are_those_of_the_files(tmp_path):
    root = tmp_path / "line"
    for i in range(4):
        save(root / "ok" / f"{i}.png", i, 32)
    draw(9, 48)[0].convert("L").save(root / "ok" / "grey.jpg")
    (category,) = survey(root).categories
    assert {(f.format, f.mode, f.bits, f.images) for f in category.formats} == {
        ("PNG", "RGB", 8, 4),
        ("JPEG", "L", 8, 1),
    }
    assert [(s.width, s.height, s.images) for s in category.sizes] == [(32, 32, 4), (48, 48, 1)]


def test_grey_levels_add_up_to_the_pixels_that_were_looked_at(tmp_path):
    for i, level in enumerate((0, 8, 130, 255)):
        path = tmp_path / "line" / "ok" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), level).save(path)
    (category,) = survey(tmp_path / "line").categories
    (levels,) = category.levels
    assert levels.mode == "L, 8 bit"
    assert {i: n for i, n in enumerate(levels.counts) if n} == dict.fromkeys(
        (0, 1, 130 // 8, 31), 256**2
    )


def test_defects_are_measured_as_scipy_labels_them(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), defects=0, size=64)
    random = np.random.default_rng(0)
    areas = []
    for i in range(4):
        mask = np.zeros((64, 64), np.uint8)
        for _ in range(3):
            side = random.integers(1, 9)
            top, left = random.integers(0, 64 - side, 2)
            mask[top : top + side, left : left + side] = 255
        regions = ndimage.label(mask, np.ones((3, 3)))[0]
        areas += np.bincount(regions.ravel())[1:].tolist()
        save(root / "disc" / "test" / "dent" / f"{i}.png", 900 + i)
        place = root / "disc" / "ground_truth" / "dent" / f"{i}_mask.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place)

    (category,) = survey(root).categories
    masks = category.masks
    assert (masks.defects, masks.with_mask, masks.regions) == (4, 4, len(areas))
    scaled = 16 * np.array(areas)  # from 64 to 256 pixels
    assert masks.smallest == pytest.approx(scaled.min())
    assert masks.median == pytest.approx(np.median(scaled))
    assert masks.largest == pytest.approx(scaled.max())


def test_a_defect_falls_below_a_pixel_where_its_share_of_the_image_does(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), defects=0, size=64)
    save(root / "disc" / "test" / "dot" / "0.png", 1, 640)
    mask = np.zeros((640, 640), np.uint8)
    mask[100:102, 200] = 255  # 2 of 409,600 pixels: a pixel from 453 on
    mask[300:340, 300:340] = 255
    place = root / "disc" / "ground_truth" / "dot" / "0_mask.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(mask).save(place)

    (category,) = survey(root).categories
    rows = category.masks.at_sizes
    assert [row.img_size for row in rows] == list(IMG_SIZES)
    assert {row.img_size for row in rows if row.below} == {224, 256, 384, 448}
    assert {row.below for row in rows} == {0, 1}
    assert "(1 below one pixel)" in as_text(survey(root), ENGLISH)


def test_a_copy_across_the_split_is_named_whether_the_bytes_are_equal_or_not(tmp_path):
    root = write_synthetic(tmp_path / "parts", train=12, good=4, defects=3, size=64)
    home = root / "gasket"
    shutil.copy(home / "train/good/003.png", home / "test/good/901.png")
    Image.open(home / "train/good/005.png").save(home / "test/good/902.png", compress_level=0)

    category = next(c for c in survey(root).categories if c.category == "gasket")
    same = [(pair.test.name, pair.train.name) for pair in category.identical]
    near = [(pair.test.name, pair.train.name) for pair in category.near]
    assert same == [("901.png", "003.png")]
    assert near == [("902.png", "005.png")]
    text = as_text(survey(root), ENGLISH)
    assert "gasket/test/good/902.png = gasket/train/good/005.png" in text


def test_the_odd_one_among_the_normals_is_shown(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), train=20, size=32)
    white = root / "disc" / "train" / "good" / "white.png"
    Image.new("RGB", (32, 32), (250, 250, 250)).save(white)
    (category,) = survey(root).categories
    odd = [picture.sample.path for picture in category.pictures if picture.kind == "odd"]
    assert len(odd) == 6
    assert odd[0] == white


def test_each_step_ends_where_it_was_said_to(tmp_path):
    watch = Steps()
    survey(write_mvtec(tmp_path / "parts", size=32), watch=watch)
    assert list(watch.total) == ["list", "headers", "pictures"]
    assert watch.done == watch.total


def test_small_sets_are_looked_at_whole_and_large_ones_in_equal_steps():
    assert sample_size(480, 1, 1024**2) == 480
    assert sample_size(480, 15, 1024**2) == PER_CATEGORY
    assert sample_size(50, 15, 10**8) == 50
    assert sample_size(100_000, 1, 256) == 5_000
    steps = evenly_spaced(range(1000), 200)
    assert steps == list(range(0, 1000, 5))


def test_a_damaged_file_stops_a_sweep_with_its_sentence(tmp_path):
    root = write_mvtec(tmp_path / "parts", size=32)
    (root / "wood" / "train" / "good" / "002.png").write_bytes(b"")
    found = survey(root)
    assert found.stops
    assert "the file is empty (0 bytes)" in as_text(found, ENGLISH)


def test_a_pipe_among_the_pictures_is_said_and_not_waited_for(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), size=32)
    os.mkfifo(root / "disc" / "train" / "good" / "pipe.png")
    found = survey(root)
    assert "no ordinary file" in as_text(found, ENGLISH)


def test_files_of_several_pictures_are_said(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), train=12, size=32)
    path = root / "disc" / "train" / "good" / "000.png"
    with Image.open(path) as image:
        image.save(path, save_all=True, append_images=[image.rotate(90)])
    assert "several pictures in a file, of which the first is read: 1" in as_text(
        survey(root), ENGLISH
    )


# ---- what is written ----


def test_the_yaml_is_a_sweep_that_reads_the_same_images(tmp_path):
    root = tmp_path / "line"
    for i in range(8):
        save(root / "양품" / f"{i}.png", i, 32)
        save(root / "불량" / f"{i}.png", 50 + i, 32, defect=True)
    found = survey(root)
    (tmp_path / "line.yaml").write_text(as_yaml(found, ENGLISH), encoding="utf-8")
    config = load_sweep(tmp_path / "line.yaml")
    samples = list_samples("line", "all", config.settings)
    assert len(samples) == found.images == 16
    assert {sample.path.parent.name for sample in samples if sample.label} == {"불량"}


def test_what_the_user_says_of_the_data_stands_in_the_yaml(tmp_path):
    root = write_mvtec(tmp_path / "parts", size=32)
    options = DataOptions(accept=("shared_mask",), mask_threshold=9.0)
    values = parse_yaml(as_yaml(survey(root, options), ENGLISH), "")
    config = build(SweepConfig, values, "")
    assert config.settings.options_of("parts") == options


def test_names_that_are_no_text_are_shown_and_not_run(tmp_path):
    root = tmp_path / "<script>alert(1)<"
    for i in range(6):
        save(root / "ok" / f"{i}.png", i, 32)
    save(root / "ng" / "<img src=x>.png", 60, 32, defect=True)
    (root / "ok" / "5.png").rename(root / "ok" / "caf\udce9.png")
    found = survey(root)
    page = render_page(found, ENGLISH)
    assert tags(page).isdisjoint({"script"})
    assert "<img src=x" not in page
    assert "caf\ufffd.png" in page
    page.encode("utf-8")
    as_text(found, ENGLISH).encode("utf-8")
    assert json.loads(as_json(found))["categories"][0]["category"] == root.name


def tags(page: str) -> set[str]:
    found = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.add(tag)

    Reader().feed(page)
    return found


def test_control_characters_do_not_reach_the_terminal():
    assert shown("a\x1b[31m\nb\udce9") == "a\ufffd[31m\ufffdb\ufffd"


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_loads_nothing_and_is_of_bounded_size(language, tmp_path):
    root = write_mvtec(tmp_path / "parts", train=30, defects=20, size=64)
    write_page(tmp_path / "page.html", survey(root), load_catalogue(language))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert f'<html lang="{language}">' in page
    pictures = page.count("data:image/jpeg")
    assert pictures == 2 * (6 + 4 + 4 + 6)
    assert len(page) < 12_000 * pictures


def test_the_outline_lies_around_the_defect_and_not_on_it():
    mask = np.zeros((20, 20), np.uint8)
    mask[8:12, 5:9] = 1
    edge = outline(mask)
    distance = ndimage.distance_transform_cdt(mask == 0, "chessboard")
    assert (edge == ((distance > 0) & (distance <= 2))).all()


def test_a_histogram_shows_what_is_rare_and_nothing_where_nothing_is():
    assert bars([0, 1, 50, 100]) == " ▁▄█"
    assert bars([0, 0]) == "  "


def test_what_stops_comes_before_what_is_remarked(tmp_path):
    found = survey(write_mvtec(tmp_path / "parts", size=32))
    findings = (
        Finding("few_normals", quoted("few"), False),
        Finding("shared_mask", quoted("shared"), True),
    )
    text = as_text(replace(found, findings=findings), ENGLISH)
    assert text.index("STOPS A SWEEP, shared_mask: shared") < text.index("remark, few_normals: few")
    korean = as_text(replace(found, findings=findings), load_catalogue("ko"))
    assert "여러 이미지가 함께 쓰는 마스크" in korean


def _without_normals(root):
    shutil.rmtree(root / "bottle/train/good")
    (root / "bottle/train/good").mkdir()


def _of_two_depths(root):
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(
        root / "bottle/train/good/deep.tif"
    )


def _one_of_another_depth(root):
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(
        root / "bottle/test/good/deep.tif"
    )


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (_without_normals, "unreadable"),
        (_of_two_depths, "pixel_values"),
        (_one_of_another_depth, "pixel_values"),
    ],
)
def test_what_readers_refuse_is_said_in_the_language_of_all_else(tmp_path, spoil, kind):
    root = write_mvtec(tmp_path / "parts", ("bottle",), train=4, good=2, defects=2, size=32)
    spoil(root)
    found = [finding for finding in survey(root).findings if finding.kind == kind]
    assert found
    for finding in found:
        korean = finding.said.text(load_catalogue("ko")).replace(str(root), "")
        assert re.search("[가-힣]", korean)
        # What stays are names of files and of settings.
        assert not re.search(r"\b(the|is|has|put|save|images|normals)\b", korean)


def test_a_plain_folder_of_the_tests_is_surveyed_whole(tmp_path):
    root = write_folder(tmp_path / "my_parts", normal=10, defects=4)
    found = survey(root)
    pictures = list(root.rglob("*.png"))
    assert found.images + found.masks == len(pictures)


def test_what_would_stop_a_sweep_is_found_and_accepting_it_goes_on(tmp_path):
    root = write_mvtec(tmp_path / "parts", categories=("disc",), train=12, size=32)
    shutil.copy(root / "disc/train/good/000.png", root / "disc/test/good/900.png")
    stopping = survey(root)
    assert {finding.kind for finding in stopping.findings if finding.stops} == {
        "identical_pictures"
    }
    assert stopping.stops
    assert not survey(root, DataOptions(accept=("identical_pictures",))).stops


def test_deep_images_are_shown_by_the_rule_that_a_sweep_would_take(tmp_path):
    values = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    for folder, number in (("train/good", 12), ("test/good", 2)):
        for i in range(number):
            path = tmp_path / "deep" / "disc" / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(values, i)).save(path)
    (category,) = survey(tmp_path / "deep", DataOptions(range=(0.0, 4095.0))).categories
    assert "0 to 4095 become 0 to 255" in str(category.rule)
    (levels,) = category.levels
    # A ramp over the whole range fills every step alike.
    assert min(levels.counts) > 0.6 * max(levels.counts)


def test_every_file_below_the_folder_stands_in_one_list(tmp_path):
    root = write_mvtec(tmp_path / "parts", size=32)
    (root / "bottle" / "Thumbs.db").write_bytes(b"x")
    (root / "bottle" / "train" / "good" / "notes.docx").write_bytes(b"x")
    (root / "licence.txt").write_text("mine", encoding="utf-8")
    found = survey(root)
    left_out = sum(group.files for group in found.left_out)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert found.images + found.masks + found.metadata + left_out == len(files)
    assert found.metadata == 1
    text = as_text(found, load_catalogue("ko"))
    assert "파일 서버나 데스크톱이 남긴 파일" in text


def test_a_region_is_said_and_its_pictures_are_shown_as_models_see_them(tmp_path):
    root = write_mvtec(tmp_path / "parts", ("cup",), train=4, good=2, defects=2, size=64)
    options = DataOptions(roi=(0.25, 0.5, 1.0, 1.0))
    found = survey(root, options)
    text = as_text(found, ENGLISH)
    assert "roi: 38% of an image counts, within [0.250, 0.500, 1.000, 1.000]" in text
    assert render_page(found, ENGLISH) != render_page(survey(root), ENGLISH)
    assert "검사 영역: 이미지의 38%" in as_text(found, load_catalogue("ko"))


def test_a_region_without_area_stops_what_a_survey_finds(tmp_path):
    root = write_mvtec(tmp_path / "parts", ("cup",), train=4, good=2, defects=2, size=64)
    found = survey(root, DataOptions(roi="no_such_picture.png"))
    assert any(finding.kind == "roi" and finding.stops for finding in found.findings)

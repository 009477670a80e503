"""Names in Hangul on the pictures of a trial."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from adray.results import fonts
from adray.results.figures import Picture, draw_histogram, draw_picture

NAME = "불량 000"


@pytest.fixture
def font(monkeypatch):
    """A function that lets this machine have one font file beyond the usual one, or none."""
    fonts._remark_once.cache_clear()
    yield lambda file: monkeypatch.setattr(fonts, "_wide_font", lambda: file)
    fonts._remark_once.cache_clear()


def any_font() -> Path:
    """A font file that is there wherever matplotlib is."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def test_latin_names_need_no_font_and_say_nothing(font, caplog):
    font(None)
    for text in ("crack 000.png", "Größe é", ""):
        assert fonts.drawable(text) == text
        assert fonts.font_for(text) is None
    assert caplog.records == []


def test_a_found_font_draws_names_in_hangul(font):
    font(any_font())
    assert fonts.drawable(NAME) == NAME
    assert fonts.font_for(NAME) == any_font()
    assert fonts.font_for("crack") is None


def test_without_a_font_such_letters_are_left_out_and_the_log_says_once_how_to_get_one(
    font, caplog
):
    font(None)
    with caplog.at_level(logging.WARNING):
        assert [fonts.drawable(NAME) for _ in range(2)] == ["... 000", "... 000"]
    (record,) = caplog.records
    assert "fonts-nanum" in record.getMessage()


@pytest.mark.filterwarnings("ignore:Glyph")  # that font has no Hangul, which is no matter here
@pytest.mark.parametrize("file", [None, any_font()])
def test_pictures_and_histograms_of_such_names_are_drawn_either_way(font, tmp_path, file):
    font(file)
    image = np.zeros((3, 64, 64), np.uint8)
    picture = Picture(NAME, 1, 0.5, image, None, None)
    draw_picture(tmp_path / "p.png", picture, None, None)
    draw_histogram(tmp_path / f"{NAME}.png", np.array([0.1, 0.9]), np.array([0, 1]))
    for path in (tmp_path / "p.png", tmp_path / f"{NAME}.png"):
        with Image.open(path) as drawn:
            assert len(set(drawn.convert("L").getdata())) > 1


def test_the_search_for_a_font_takes_the_best_that_lies_in_any_folder(monkeypatch, tmp_path):
    for name in ("NanumGothic.ttf", "Other.ttf"):
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path / "none"), str(tmp_path)))
    fonts._wide_font.cache_clear()
    assert fonts.font_for(NAME) == tmp_path / "NanumGothic.ttf"
    fonts._wide_font.cache_clear()

"""The page that `predict` leaves: worst first, and nothing on it that is not in the table."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from adray.found_images import find_images
from adray.language.catalogue import load_catalogue
from adray.prediction_files import write_predictions
from adray.prediction_page import Worst, write_prediction_page
from adray.predictor import Outcome

EN = load_catalogue("en")


def outcomes(scores, maps=True):
    """Grey images whose map is hot in one corner."""
    for number, score in enumerate(scores):
        if score is None:
            yield Outcome(f"{number}.png", reason="the image is damaged")
            continue
        heat = np.zeros((64, 64), np.float32)
        heat[:16, :16] = 9.0
        image = np.full((3, 64, 64), 90, np.uint8)
        yield Outcome(
            f"{number}.png", score, heat if maps else None, image, size=(64, 64), p_value=0.5
        )


def page_of(folder, scores, maps=True, threshold=5.0, remarks=(), language="en"):
    worst = Worst(5.0, (0.0, 9.0))
    rows = write_predictions(worst.gather(outcomes(scores, maps)), folder, threshold, "none", None)
    page = write_prediction_page(folder, rows, worst, remarks, load_catalogue(language))
    return page.read_text(encoding="utf-8")


def names(page):
    return re.findall(r"(\d+)\.png</figcaption>", page)


def pictures(page):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_worst_stand_first_and_what_could_not_be_read_before_them(tmp_path):
    page = page_of(tmp_path, [1.0, 9.0, None, 4.0, 7.0])
    assert names(page) == ["2", "1", "4", "3", "0"]
    assert "unreadable 1" in page
    assert "the image is damaged" in page
    assert "anomalous 2" in page
    assert "normal 2" in page


def test_what_the_map_marks_is_outlined_beside_the_map(tmp_path):
    (picture,) = pictures(page_of(tmp_path, [9.0]))
    assert picture.shape == (64, 128, 3)
    red = picture[..., 0].astype(int) - picture[..., 1]
    assert (red[:18, 16:18] > 60).mean() > 0.5
    assert (abs(red[30:, :60]) < 30).all()


def test_a_model_without_maps_shows_the_image_alone(tmp_path):
    (picture,) = pictures(page_of(tmp_path, [9.0], maps=False))
    assert picture.shape == (64, 64, 3)


@pytest.mark.parametrize("scores", [[], [None], [3.0], [2.0, 2.0], [1e30, -1e30]])
def test_any_scores_make_a_page(tmp_path, scores):
    assert len(names(page_of(tmp_path, scores))) == len(scores)


def test_of_many_images_the_worst_are_shown_and_the_rest_is_counted(tmp_path):
    page = page_of(tmp_path, np.random.default_rng(0).permutation(400).astype(float).tolist())
    assert len(pictures(page)) == 150
    assert "250 further images are in predictions.csv" in page
    assert len(page) < 3_000_000


def test_names_become_no_markup_and_the_page_loads_nothing(tmp_path):
    worst = Worst(None, None)
    rows = write_predictions(
        worst.gather([Outcome("<script>alert(1)</script>.png", 1.0)]), tmp_path, None, "none", None
    )
    page = write_prediction_page(tmp_path, rows, worst, ["<b>"], EN).read_text()
    assert "<script" not in page
    assert "<b>" not in page.replace("<b style", "")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_page_is_in_the_readers_language(tmp_path):
    page = page_of(tmp_path, [9.0, None], language="ko")
    assert '<html lang="ko">' in page
    assert "불량 1" in page
    assert "읽지 못함 1" in page


def test_files_that_are_no_images_are_named_and_hidden_ones_are_not(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "memo.txt").write_text("not an image")
    (tmp_path / ".hidden").write_text("")
    found = find_images([str(tmp_path)])
    assert found.remarks == ["ignored, since they are no images: 1 (memo.txt)"]

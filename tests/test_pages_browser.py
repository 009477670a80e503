"""The pages of data and of predictions in headless Chromium, as axe and narrow windows see them."""

from __future__ import annotations

import pytest
from fake_datasets import write_mvtec
from test_prediction_page import page_of

from adray.data.recognise import recognise
from adray.data.survey import make_survey
from adray.data.survey_page import write_page
from adray.language.catalogue import load_catalogue
from adray.settings import DEFAULT_OPTIONS, get_globals

NARROW = 360


class NoSteps:
    """Watches a survey and says nothing."""

    def begin(self, step, total):
        pass

    def advance(self):
        pass


def survey_page(folder, language):
    root = write_mvtec(folder / "parts", train=8, defects=4, size=64)
    found = recognise(str(root), get_globals(), DEFAULT_OPTIONS)
    survey = make_survey(found, get_globals(), DEFAULT_OPTIONS, NoSteps())
    write_page(folder / "page.html", survey, load_catalogue(language))
    return folder / "page.html"


def prediction_page(folder, language):
    page_of(folder, [1.0, 9.0, None, 4.0], language=language)
    return folder / "index.html"


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("write", [survey_page, prediction_page])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_a_phone_never_scrolls_sideways(
    browser, tmp_path, write, language, scheme
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(color_scheme=scheme, viewport={"width": NARROW, "height": 740})
    page.goto(write(tmp_path, language).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert axe.run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
    page.close()

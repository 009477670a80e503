"""The report in headless Chromium; needs the packages playwright and chromium, else skipped."""

from __future__ import annotations

import shutil
import time

import pytest
from fake_store import fake_record, fake_search
from test_report import records

from adray.results.report import report_data, write_report

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens the report of some trials; at the end nothing may have gone wrong or been asked for."""
    noise, asked, pages = [], [], []

    def show(trials, searches=(), **window):
        write_report(
            tmp_path / "report.html", report_data("s", trials, base=tmp_path, searches=searches)
        )
        page = browser.new_page(**window)
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        pages.append(page)
        return page

    yield show
    assert noise == []
    assert {url for url in asked if not url.startswith("data:")} == {
        (tmp_path / "report.html").as_uri()
    }
    for page in pages:
        page.close()


def column(page, table, index):
    return page.locator(f"#table-{table} tbody tr td:nth-child({index})").all_inner_texts()


def test_columns_sort_both_ways_with_the_keyboard(open_page, tmp_path):
    page = open_page(records(tmp_path, ("b", "c", "a")))
    assert column(page, "ranking", 1) == ["b", "c", "a"]
    page.focus("#table-ranking button[data-sort=configuration]")
    page.keyboard.press("Enter")
    assert column(page, "ranking", 1) == ["a", "b", "c"]
    page.keyboard.press("Enter")
    assert column(page, "ranking", 1) == ["c", "b", "a"]
    head = page.locator("#table-ranking th:has(button[data-sort=configuration])")
    assert head.get_attribute("aria-sort") == "descending"


def test_a_search_shows_its_gain_its_tries_and_whether_it_leaks(open_page, tmp_path):
    page = open_page(records(tmp_path), [fake_search(), fake_search("stfpm", leaky=True)])
    assert page.locator("#search .leaky").all_inner_texts() == ["LEAKY"]
    assert (
        "+0.0400 (95 % interval -0.0100 – +0.0900)"
        in page.locator("#search article").first.inner_text()
    )
    assert page.locator("#search article").first.locator("svg").count() == 2
    assert page.locator("#search article").first.locator("svg circle").count() == 8
    page.locator("#search details summary").first.click()
    assert column(page, "search-0", 1) == ["0.8000", "0.8200", "0.8400", "0.8600", "n/a"]
    page.click("#table-search-0 button[data-sort=score]")
    assert column(page, "search-0", 1)[0] == "0.8600"
    assert page.locator("#search details").first.get_attribute("open") is not None
    page.click("#language")
    assert page.locator("#search h2").inner_text() == "하이퍼파라미터 탐색"
    page.fill("#filter", "stfpm")
    page.locator("#search article:nth-of-type(2)").wait_for(state="detached")
    assert page.locator("#search article h3").inner_text() == "stfpm LEAKY"


def test_without_a_search_there_is_no_panel_for_it(open_page, tmp_path):
    page = open_page(records(tmp_path))
    assert page.locator("#search").is_hidden()
    assert page.locator("nav a[href='#search']").count() == 0


def test_language_metric_and_filter_switch(open_page, tmp_path):
    page = open_page(records(tmp_path))
    assert page.locator("#ranking h2").inner_text() == "Which configuration is best"
    page.click("#language")
    assert page.locator("#ranking h2").inner_text() == "가장 좋은 구성"
    assert page.evaluate("document.documentElement.lang") == "ko"
    page.reload()
    assert page.locator("#ranking h2").inner_text() == "가장 좋은 구성"  # remembered
    page.goto(page.url)
    page.select_option("#metric", "pixel_aupro")
    page.fill("#filter", "stfpm wood")
    playwright.expect(page.locator("#grid tbody th")).to_have_text(["stfpm"])


def test_a_cell_opens_with_arrow_keys_and_shows_reasons_as_text(open_page, tmp_path):
    failed = fake_record(tmp_path, "stfpm", "wood", auroc=None)
    failed.failure["reason"] = "<b>out of memory</b>"
    page = open_page([*records(tmp_path, ("padim",)), failed])
    page.focus("#grid td.cell button >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')")
        == "stfpm, mvtec/wood: failed"
    )
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()
    assert "<b>out of memory</b>" in page.locator("#detail").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()


def test_a_cell_of_drawn_defects_is_marked_and_holds_no_mean_with_test_images(open_page, tmp_path):
    mixed = records(tmp_path, ("padim",), ("bottle",))
    mixed[1].trial["identity"]["evaluation"] = "synthetic"
    drawn = fake_record(tmp_path, "padim", "carpet", auroc=0.5)
    drawn.trial["identity"]["evaluation"] = "synthetic"
    page = open_page([*mixed, drawn])
    assert page.locator("#grid td.cell button").all_inner_texts() == ["0.900", "✎ 0.500"]


def test_links_lead_to_the_trials_folders(open_page, tmp_path):
    trial = fake_record(tmp_path, "padim", "a b#c")
    trial.folder.mkdir(parents=True)
    page = open_page([trial])
    page.click("#grid td.cell button")
    href = page.locator("#detail a").first.evaluate("node => node.href")
    assert href == trial.folder.as_uri() + "/"


def test_a_phone_never_scrolls_the_page_sideways(open_page, tmp_path):
    page = open_page(
        records(tmp_path, categories=[f"part{i}" for i in range(30)]),
        viewport={"width": 360, "height": 740},
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_ten_thousand_trials_open_in_two_seconds(open_page, tmp_path):
    many = records(
        tmp_path, [f"c{i}" for i in range(44)], [f"part{i:02d}" for i in range(30)], range(8)
    )
    start = time.perf_counter()
    page = open_page(many)
    page.wait_for_selector("#table-machines")
    loading = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    assert loading < 2000, f"{loading:.0f} ms, of {time.perf_counter() - start:.1f} s with writing"

"""The report in headless Chromium; needs the packages playwright and chromium, else skipped.

What axe finds needs the package axe-playwright-python besides.
"""

from __future__ import annotations

import re
import time

import pandas as pd
import pytest
from fake_parts import part_trial
from fake_store import fake_record, fake_search
from PIL import Image
from test_report import records

from adray.decide import decide
from adray.decisions.text import page_summaries
from adray.results.leaderboard import table, trial_row, write_tables
from adray.results.report import report_data, write_report

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens the report of some trials; at the end nothing may have gone wrong or been asked for."""
    noise, asked, pages = [], [], []

    def show(trials, searches=(), decisions=(), progress=None, refresh=10, **window):
        data = report_data(
            "s", trials, (), progress, base=tmp_path, searches=searches, decisions=decisions
        )
        write_report(tmp_path / "report.html", data | {"refresh": refresh})
        page = browser.new_page(**window)
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        pages.append(page)
        return page

    yield show
    assert noise == []
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {
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
        "gain over the defaults: +0.0400 (95 % interval -0.0100 – +0.0900)"
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
    assert page.locator("#ranking h2").inner_text() == "Which model is best"
    page.click("#language")
    assert page.locator("#ranking h2").inner_text() == "모델 순위"
    assert page.evaluate("document.documentElement.lang") == "ko"
    page.reload()
    assert page.locator("#ranking h2").inner_text() == "모델 순위"  # remembered
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


def decided_page(open_page, root, **window):
    """The page of two seeds of a part, with what is decided of them."""
    trials = [part_trial(root, "padim", 1.0 + seed, seed) for seed in (0, 1)]
    return open_page(trials, decisions=page_summaries(decide(trials, draws=0)), **window)


def pictured(root):
    """A trial with a found defect, a missed one and a false alarm to show."""
    record = fake_record(root, "padim", "bottle")
    record.folder.mkdir(parents=True)
    pictures = []
    for number, verdict in enumerate(("found", "miss", "false alarm")):
        file = f"image_{number}.png"
        Image.new("RGB", (80, 64), (80 * number, 0, 0)).save(record.folder / file)
        path = f"/data/test/{number}.png"
        pictures.append(
            {"file": file, "path": path, "label": 1, "pred_score": 1.0, "verdict": verdict}
        )
    record.result["pictures"] = pictures
    return [record]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_axe_finds_nothing_on_tables_details_and_searches(open_page, tmp_path, scheme, language):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    failed = fake_record(tmp_path, "stfpm", "wood", auroc=None)
    searches = [fake_search(), fake_search("stfpm", leaky=True)]
    page = open_page([failed, *records(tmp_path, ("a", "b"))], searches, color_scheme=scheme)
    if language == "ko":
        page.click("#language")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert axe.run(page).response["violations"] == []
    page.click("#grid td.cell button >> nth=0")
    assert axe.run(page).response["violations"] == []


def test_axe_finds_nothing_on_pictures_and_their_viewer(open_page, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(pictured(tmp_path))
    assert axe.run(page).response["violations"] == []
    page.click("#gallery figure button >> nth=0")
    assert axe.run(page).response["violations"] == []


@pytest.mark.parametrize("language", ["en", "ko"])
def test_axe_finds_nothing_on_decisions(open_page, tmp_path, language):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = decided_page(open_page, tmp_path)
    if language == "ko":
        page.click("#language")
    assert axe.run(page).response["violations"] == []


def test_a_manager_prints_two_pages_of_a_part(open_page, tmp_path):
    page = decided_page(open_page, tmp_path, color_scheme="dark")
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 2
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".tools").is_hidden()


def test_five_hundred_cells_open_within_a_second_and_stay_below_ten_megabytes(open_page, tmp_path):
    many = records(tmp_path, [f"c{i}" for i in range(25)], [f"part{i:02d}" for i in range(20)])
    page = open_page(many)
    page.wait_for_selector("#table-machines")
    assert page.locator("#grid td.cell button").count() == 500
    loading = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    assert loading < 1000, f"{loading:.0f} ms"
    assert (tmp_path / "report.html").stat().st_size < 10e6


@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
def test_no_width_scrolls_a_decided_page_sideways(open_page, tmp_path, width):
    page = decided_page(open_page, tmp_path, viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_first_screen_answers_for_the_part_and_no_mean_over_parts_is_above_it(
    open_page, tmp_path
):
    page = decided_page(open_page, tmp_path)
    order = page.locator("main section:not([hidden])").evaluate_all("all => all.map((s) => s.id)")
    assert order[0] == "decision"
    assert order.index("ranking") > order.index("cells")
    assert "200 good ones train" in page.locator("#decision").inner_text()


def test_the_slider_moves_misses_and_false_alarms_to_what_was_counted(open_page, tmp_path):
    page = decided_page(open_page, tmp_path)
    data = page.evaluate("data.decisions[0].rates")
    slider = page.locator("#decision input[type=range]")
    assert slider.input_value() == str(data["own"])
    slider.focus()
    for key, place in (("Home", 0), ("End", len(data["rows"]) - 1)):
        page.keyboard.press(key)
        _, _, alarms, *missed = data["rows"][place]
        said = page.locator("#decision output").inner_text()
        assert f"{sum(missed)} of 40 defective missed, {alarms} of 40 good rejected" in said
        assert f"{data['types'][0]} {missed[0]} of 20 missed" in said
    page.click("#language")
    assert slider.input_value() == str(len(data["rows"]) - 1)
    assert "미검" in page.locator("#decision output").inner_text()
    page.click("#decision .rates button")
    assert slider.input_value() == str(data["own"])


def test_a_link_opens_the_page_as_it_was_left(open_page, tmp_path):
    page = open_page(records(tmp_path))
    page.fill("#filter", "wood")
    page.select_option("#metric", "pixel_aupro")
    playwright.expect(page).to_have_url(re.compile("show=wood"))
    page.reload()
    assert page.input_value("#filter") == "wood"
    assert page.input_value("#metric") == "pixel_aupro"


def test_a_picture_is_enlarged_and_the_arrow_keys_step_on(open_page, tmp_path):
    page = open_page(pictured(tmp_path))
    page.click("#gallery figure button >> nth=0")
    caption = page.locator("#viewer-caption")
    assert caption.inner_text().startswith("1/3 · missed defect")
    page.keyboard.press("ArrowRight")
    assert caption.inner_text().startswith("2/3 · false alarm")
    page.keyboard.press("ArrowRight")
    assert caption.inner_text().startswith("3/3 · found defect")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_the_page_of_a_sweep_that_runs_reads_itself_again_and_a_finished_one_does_not(
    open_page, tmp_path
):
    page = open_page(records(tmp_path), progress={"left": 1, "seconds": 1.0}, refresh=1)
    page.evaluate("window.old = true")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.old") is None
    finished = open_page(records(tmp_path), refresh=1)
    finished.evaluate("window.old = true")
    finished.wait_for_timeout(1500)
    assert finished.evaluate("window.old")


def test_a_page_that_runs_is_left_alone_while_somebody_types(open_page, tmp_path):
    page = open_page(records(tmp_path), progress={"left": 1, "seconds": 1.0}, refresh=1)
    page.evaluate("window.old = true")
    page.focus("#filter")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.old")


def test_a_cell_says_first_what_it_finds_and_folds_the_other_figures(open_page, tmp_path):
    page = open_page(records(tmp_path, ("padim",), ("bottle",)))
    page.click("#grid td.cell button")
    first = page.locator("#detail .trial").first
    trial = page.evaluate("data.trials[0]")
    _, _, found, missed, alarms, passed = trial["t"]["promise"]
    said = f"Finds {found} of {found + missed} defective test images and rejects {alarms} of {alarms + passed} good"
    assert said in first.inner_text()
    assert "image_aupr" not in first.inner_text()
    first.locator("summary").click()
    assert "average precision of images" in first.inner_text()
    page.keyboard.press("Escape")
    page.click("#language")
    page.click("#grid td.cell button")
    first = page.locator("#detail .trial").first
    assert f"불량 {found + missed}장 중 {found}장 검출" in first.inner_text()
    first.locator("summary").click()
    assert "이미지 수준 평균 정밀도" in first.inner_text()


def test_a_histogram_names_its_line_and_counts_its_images(open_page, tmp_path):
    page = open_page(records(tmp_path, ("padim",), ("bottle",), (0,)))
    page.click("#grid td.cell button")
    texts = page.locator("#detail svg.histogram text").all_text_contents()
    histogram = page.evaluate("data.trials[0].h")
    assert texts[0] == str(max(*histogram["normal"], *histogram["anomalous"]))
    assert any(text.startswith("threshold ") for text in texts)
    caption = page.locator("#detail figcaption").inner_text()
    assert f"normal {sum(histogram['normal'])}" in caption
    assert f"anomalous {sum(histogram['anomalous'])}" in caption


def test_a_phone_shows_all_counts_of_every_threshold(open_page, tmp_path):
    page = open_page(records(tmp_path), viewport={"width": 390, "height": 740})
    page.click("#grid td.cell button >> nth=0")
    page.locator("#detail summary").first.click()
    frame = page.locator("#detail .scroll:has(table.stack)").first
    assert frame.evaluate("node => node.scrollWidth <= node.clientWidth")
    assert "false alarms" in frame.evaluate(
        "node => [...node.querySelectorAll('td')].map((one) => one.dataset.label).join()"
    )
    assert page.locator("#detail").evaluate("node => node.scrollWidth <= node.clientWidth")


def test_a_cell_whose_interval_holds_a_coins_figure_is_marked(open_page, tmp_path):
    sure, unsure = (fake_record(tmp_path, "padim", name) for name in ("bottle", "wood"))
    sure.result["image_auroc_interval"] = [0.7, 0.95]
    unsure.result["image_auroc_interval"] = [0.28, 0.95]
    page = open_page([sure, unsure])
    assert page.locator("#grid td.cell button").all_inner_texts() == ["0.900", "0.900 ?"]
    assert "no better than chance" in page.locator("#grid button.doubtful").get_attribute("title")
    page.select_option("#metric", "pixel_auroc")
    assert page.locator("#grid button.doubtful").count() == 0


def test_a_filter_of_parts_ranks_the_models_on_these_parts_anew(open_page, tmp_path):
    figures = {("a", "screw"): 0.9, ("b", "screw"): 0.7, ("a", "cup"): 0.5, ("b", "cup"): 0.8}
    trials = [fake_record(tmp_path, m, part, 0, auroc) for (m, part), auroc in figures.items()]
    page = open_page(trials)
    assert column(page, "ranking", 1) == ["b", "a"]
    page.fill("#filter", "screw")
    playwright.expect(page.locator("#ranking")).to_contain_text("mvtec/screw")
    assert column(page, "ranking", 1) == ["a", "b"]
    assert column(page, "ranking", 2) == ["0.9000", "0.7000"]
    page.fill("#filter", "b screw")
    playwright.expect(page.locator("#table-ranking tbody tr")).to_have_count(1)
    page.fill("#filter", "nothing like it")
    playwright.expect(page.locator("#ranking")).to_contain_text("Nothing matches")


def test_a_ranking_of_one_part_says_who_cannot_be_told_from_the_best(open_page, tmp_path):
    trials = []
    for part in ("cup", "plate"):
        for name, distance in (("padim", 2.0), ("stfpm", 2.0), ("poor", -0.5)):
            trials.append(part_trial(tmp_path, name, distance, category=part))
    decisions = page_summaries(decide(trials, draws=0))
    page = open_page(trials, decisions=decisions)
    page.fill("#filter", "cup")
    playwright.expect(page.locator("#ranking")).to_contain_text("against the best")
    said = dict(zip(column(page, "ranking", 1), column(page, "ranking", 4), strict=True))
    words = {True: "cannot be told apart", False: "worse for certain"}
    assert said == {name: words[tied] for name, tied in decisions[0]["options"].items()}
    assert said["poor"] == "worse for certain"


def test_a_link_opens_orders_sliders_and_the_cell_or_picture_that_was_open(open_page, tmp_path):
    page = decided_page(open_page, tmp_path)
    page.click("#table-ranking button[data-sort=mean]")
    page.focus("#decision input[type=range]")
    page.keyboard.press("End")
    page.click("#grid td.cell button")
    page.reload()
    assert page.locator("#detail").is_visible()
    assert page.locator("#detail-title").inner_text().startswith("padim")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#detail")).to_be_hidden()
    playwright.expect(page).not_to_have_url(re.compile("cell="))
    last = page.evaluate("data.decisions[0].rates.rows.length - 1")
    assert page.locator("#decision input[type=range]").input_value() == str(last)
    assert page.locator("#table-ranking th[aria-sort]").count() == 1
    page.reload()
    assert not page.locator("#detail").is_visible()


def test_a_plain_folder_has_one_name_on_the_whole_page(open_page, tmp_path):
    trials = [part_trial(tmp_path, name, 2.0, category="all") for name in ("padim", "stfpm")]
    page = open_page(trials, decisions=page_summaries(decide(trials, draws=0)))
    assert page.locator("#grid thead th").all_inner_texts() == ["model", "mvtec"]
    assert "mvtec: " in page.locator("#decision").inner_text()
    assert "mvtec/all" not in page.evaluate("document.body.innerText").replace("/mvtec/all/", "")


def test_a_link_to_a_picture_opens_it(open_page, tmp_path):
    page = open_page(pictured(tmp_path))
    page.click("#gallery figure button >> nth=1")
    page.reload()
    assert page.locator("#viewer-caption").inner_text().startswith("2/3")


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_opens_in_the_language_that_its_writer_was_told_to_speak(
    open_page, tmp_path, monkeypatch, language
):
    monkeypatch.setenv("ADRAY_LANG", language)
    page = open_page(records(tmp_path), locale="ko-KR" if language == "en" else "en-US")
    assert page.evaluate("document.documentElement.lang") == language


@pytest.mark.parametrize("language", ["en", "ko"])
def test_no_place_of_a_sentence_stays_open_and_no_text_is_missing(open_page, tmp_path, language):
    trials = [*records(tmp_path), fake_record(tmp_path, "dfm", "wood", auroc=None)]
    decided = [part_trial(tmp_path, "padim", 1.0 + seed, seed) for seed in (0, 1)]
    decisions = page_summaries(decide(decided, draws=0))
    page = open_page([*trials, *decided], [fake_search()], decisions)
    if language == "ko":
        page.click("#language")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    texts = [page.evaluate("document.body.innerText")]
    for cell in page.evaluate("[...byCell.keys()]"):
        page.evaluate(f"showCell({cell})")
        texts.append(page.locator("#detail").inner_text())
    assert len(texts) > 3
    for text in texts:
        assert not re.search(r"\{\w+\}|NaN|undefined", text)


def test_the_page_of_a_search_has_no_heading_without_anything_below(open_page, tmp_path):
    page = open_page([], [fake_search()])
    shown = page.locator("main section:not([hidden])").evaluate_all("all => all.map((s) => s.id)")
    assert shown == ["search"]
    assert page.locator("nav a").count() == 1
    named = page.locator("#search svg").first.locator("text").all_text_contents()
    assert "image_auroc on drawn defects" in named


def test_a_search_that_found_nothing_better_says_so_and_states_no_gain(open_page, tmp_path):
    search = fake_search()
    search |= {"best": search["defaults"], "best_score": search["default_score"]}
    page = open_page([], [search])
    assert "keep them" in page.locator("#search article").inner_text()
    assert "gain over the defaults" not in page.locator("#search article").inner_text()
    page.click("#language")
    assert "기본값을 그대로 쓰세요" in page.locator("#search article").inner_text()


def test_a_filter_shows_the_pictures_of_one_verdict(open_page, tmp_path):
    page = open_page(pictured(tmp_path))
    page.fill("#filter", "false alarm")
    playwright.expect(page.locator("#gallery figure")).to_have_count(1)


def test_the_figures_on_screen_are_those_of_the_leaderboard(open_page, tmp_path):
    trials = records(tmp_path)
    write_tables(tmp_path, table(map(trial_row, trials)))
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    page = open_page(trials)
    for metric in ("image_auroc", "pixel_aupro"):
        page.select_option("#metric", metric)
        means = board.groupby(["configuration", "category"])[metric].mean()
        shown = page.locator("#grid td.cell button").all_inner_texts()
        assert shown == [f"{value:.3f}" for value in means.sort_index()]
        ranked = board.groupby("configuration")[metric].mean().sort_values(ascending=False)
        assert column(page, "ranking", 1) == list(ranked.index)
        assert column(page, "ranking", 3) == [f"{value:.4f}" for value in ranked]
    picture = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(picture) > 10_000

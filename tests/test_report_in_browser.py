"""The report opened from its file in headless Chromium: what it shows, loads and can be reached by.

Needs Debian's ``chromium`` (`.ci/run` installs it) or another Chromium on the path; Playwright
drives it, and axe-core checks that it can be used by everybody.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from report_cases import HOSTILE_TEXTS, analysed

from recursive_analysis_report import write_report
from recursive_visualizer import figure_attention_analysis, write_figures

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium"
)
LAYERS = (0, 2, 4)


@pytest.fixture(scope="module")
def analysis():
    return analysed(HOSTILE_TEXTS, layers=LAYERS)


@pytest.fixture(scope="module")
def report(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    drawn = {"attention_analysis": figure_attention_analysis}
    figures = write_figures(analysis.results, folder, tensors=analysis.tensors, figures=drawn)
    path, _ = write_report(analysis.results, folder, tensors=analysis.tensors, figures=figures)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # As root, Chromium starts only without its sandbox; the page is our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Opened:
    """The report in a window of its own, with what it said and asked for."""

    def __init__(self, browser: Browser, path, **options) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#view[data-ready]")

    def wait(self, state: str) -> None:
        """Until the map of "text_1/4/attention" is shown."""
        self.page.wait_for_selector(f'#view[data-ready="{state}"]')


@pytest.fixture
def opened(browser, report) -> Iterator[Opened]:
    window = Opened(browser, report, viewport={"width": 1280, "height": 900})
    yield window
    # Whatever a test did: no error, no alert, nothing loaded but the file and what is in it.
    assert window.said == []
    others = [url for url in window.asked if not url.startswith("data:")]
    assert others == [report.as_uri()]
    window.context.close()


def listed(page: Page, name: str) -> list[tuple[int, float]]:
    """Places and values of one of the lists beside the text."""
    return page.eval_on_selector_all(
        f"#{name} li[data-place]",
        "items => items.map(item => [Number(item.dataset.place), Number(item.dataset.value)])",
    )


def check_lists(page: Page, exact: np.ndarray, token: int) -> None:
    """The lists of a token against its row and column in the map of the tensors."""
    sources, readers = listed(page, "sources"), listed(page, "readers")
    assert sources
    for found, values in (
        (sources, {s: exact[token, s] for s in range(token + 1)}),
        (readers, {q: exact[q, token] for q in range(token + 1, len(exact))}),
    ):
        # Of equal magnitudes any may come first: compared are the magnitudes, place by place.
        largest = sorted((abs(x) for x in values.values() if x), reverse=True)[:8]
        assert [abs(values[place]) for place, _ in found] == largest
        # Three significant digits: half of the last one is at most 0.5 % of the number.
        assert [value for _, value in found] == pytest.approx(
            [values[place] for place, _ in found], rel=0.005
        )


def test_choosing_shows_what_the_tensors_hold(opened, analysis):
    page = opened.page
    page.select_option("#which-text", "1")
    for layer, name in ((4, "attention"), (0, "absolute"), (2, "synthetic")):
        page.check(f'#which-layer input[value="{layer}"]', force=True)
        page.check(f'#which-map input[value="{name}"]', force=True)
        opened.wait(f"text_1/{layer}/{name}")
        exact = analysis.tensors[f"text_1.layer_{layer}.{name}"].numpy()
        for token in (0, 7, len(exact) - 1):
            page.locator(f'#text [data-place="{token}"]').click()
            check_lists(page, exact, token)
        delta = page.text_content('#facts [data-fact="delta"]')
        mean = float(analysis.tensors[f"text_1.layer_{layer}.delta"][-1].mean())
        assert float(delta or "nan") == pytest.approx(mean, rel=6e-3)  # three digits


def test_pointing_at_a_token_shows_it_and_leaving_goes_back(opened, analysis):
    page = opened.page
    page.locator('#text [data-place="9"]').click()
    page.locator('#text [data-place="30"]').hover()
    assert page.text_content("#token-place").startswith("token 30 ")
    shade = page.locator('#text [data-place="30"]').evaluate("node => node.className")
    assert "chosen" in shade
    exact = analysis.tensors[f"text_0.layer_{LAYERS[1]}.absolute"].numpy()
    check_lists(page, exact, 30)
    page.locator("h1").hover()
    assert page.text_content("#token-place").startswith("token 9 ")


def test_tokens_before_are_sources_and_tokens_after_are_readers(opened):
    page = opened.page
    page.locator('#text [data-place="20"]').click()
    kinds = page.eval_on_selector_all(
        "#text .token",
        "tokens => tokens.map(token => [token.classList.contains('source'), "
        "token.classList.contains('reader'), Number(token.style.getPropertyValue('--share'))])",
    )
    assert all(source and not reader for source, reader, _ in kinds[:21])
    assert all(reader and not source for source, reader, _ in kinds[21:])
    for part in (kinds[:21], kinds[21:]):
        assert max(share for *_, share in part) == 1  # shares of the largest


def test_the_keyboard_alone_does_everything(opened, analysis):
    page = opened.page

    def focused(expression: str):
        return page.evaluate(f"() => document.activeElement.{expression}")

    def tab_to(found: str) -> None:
        for _ in range(400):
            page.keyboard.press("Tab")
            if page.evaluate("(found) => document.activeElement.matches(found)", found):
                return
        raise AssertionError(f"no Tab reaches {found}")

    page.set_viewport_size({"width": 500, "height": 900})  # the text takes several lines
    tab_to("#which-text")
    page.keyboard.press("ArrowDown")
    tab_to("#which-layer input")
    page.keyboard.press("ArrowRight")
    tab_to("#which-map input")
    page.keyboard.press("ArrowRight")
    opened.wait(f"text_1/{LAYERS[2]}/attention")
    tab_to("#text .token")
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert focused("dataset.place") == "4"
    assert focused("getAttribute('aria-selected')") == "true"
    exact = analysis.tensors[f"text_1.layer_{LAYERS[2]}.attention"].numpy()
    check_lists(page, exact, 4)
    page.keyboard.press("ArrowDown")
    below = int(focused("dataset.place"))
    assert below > 4
    page.keyboard.press("ArrowUp")
    assert int(focused("dataset.place")) < below
    page.keyboard.press("End")
    assert focused("dataset.place") == str(len(exact) - 1)
    # From a list to the token it names.
    tab_to("#sources button")
    place = listed(page, "sources")[0][0]
    page.keyboard.press("Enter")
    assert focused("dataset.place") == str(place)
    assert page.locator('#text [tabindex="0"]').count() == 1
    tab_to("#neuron-head button[data-column='5']")
    page.keyboard.press("Enter")
    assert focused("dataset.column") == "5"
    tab_to("summary")
    page.wait_for_function("document.getElementById('status').textContent.includes('Attends')")


def test_a_negative_value_is_marked_not_by_colour_alone(opened, analysis):
    page = opened.page
    page.check('#which-map input[value="attention"]', force=True)
    opened.wait(f"text_0/{LAYERS[1]}/attention")
    token = 40
    page.locator(f'#text [data-place="{token}"]').click()
    row = analysis.tensors[f"text_0.layer_{LAYERS[1]}.attention"][token].numpy()
    shares = row[: token + 1] / np.abs(row).max()
    # Well below the share from which on the sign is marked, and above the rounding.
    clear = [int(place) for place in np.flatnonzero(np.abs(shares) > 0.07)]
    marked = page.eval_on_selector_all(
        "#text .token", "tokens => tokens.map(token => token.classList.contains('minus'))"
    )
    assert {place for place in clear if marked[place]} == {p for p in clear if shares[p] < 0}
    assert any(shares[place] < 0 for place in clear)


def test_neurons_are_sorted_and_lead_to_their_tokens(opened):
    page = opened.page

    def column(index: int) -> list[float]:
        cells = page.locator(f"#neuron-rows tr > :nth-child({index})").all_text_contents()
        return [float(cell.replace("−", "-").replace(",", "")) for cell in cells]

    assert column(2) == sorted(column(2), reverse=True)
    page.click("#neuron-head button[data-column='2']")
    assert column(3) == sorted(column(3), reverse=True)
    page.click("#neuron-head button[data-column='2']")
    assert column(3) == sorted(column(3))
    assert page.get_attribute("#neuron-head th:nth-child(3)", "aria-sort") == "ascending"
    page.check('#which-method input[value="rollout"]', force=True)
    assert "Rollout" in page.text_content("#neuron-caption")
    button = page.locator("#neuron-rows .tops button").first
    place = button.get_attribute("data-place")
    button.click()
    assert page.evaluate("() => document.activeElement.dataset.place") == place


def test_findings_are_filtered(opened):
    page = opened.page
    assert page.locator(".finding:visible").count() == 0  # closed
    page.click("#findings details.whole > summary")
    everything = page.locator(".finding:visible").count()
    page.check('#which-verdict input[value="not supported"]', force=True)
    kept = page.locator(".finding:visible").count()
    assert 0 < kept < everything
    verdicts = page.locator(".group:visible .verdict").all_text_contents()
    assert len(verdicts) == 1
    assert "Not supported" in verdicts[0]
    page.check('#which-verdict input[value=""]', force=True)
    assert page.locator(".finding:visible").count() == everything


def test_a_heading_explains_itself(opened):
    page = opened.page
    page.locator('#facts a.term[href="#measure-delta"]').hover()
    assert page.is_visible("#tip")
    assert "Step size after softplus" in page.text_content("#tip")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")


@pytest.mark.parametrize("text", range(len(HOSTILE_TEXTS)))
def test_a_text_is_shown_as_itself(opened, text):
    page = opened.page
    page.select_option("#which-text", str(text))
    opened.wait(f"text_{text}/{LAYERS[1]}/absolute")
    assert page.text_content("#text") == HOSTILE_TEXTS[text]
    widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    assert page.evaluate("() => document.querySelectorAll('img[src=x], #text script').length") == 0


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, report, scheme, width):
    window = Opened(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
    window.page.check('#which-map input[value="attention"]', force=True)
    window.wait(f"text_0/{LAYERS[1]}/attention")
    found = Axe().run(window.page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    widths = window.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    assert window.said == []
    window.context.close()


def test_the_theme_changes_by_its_button(opened):
    page = opened.page

    def paper() -> str:
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.click("#theme")
    assert page.text_content("#theme") == "Theme: light"
    assert paper() == light
    page.click("#theme")
    assert paper() != light
    page.click("#theme")
    assert paper() == light


def test_print_is_light_and_opens_what_is_folded(browser, report, tmp_path):
    window = Opened(browser, report, color_scheme="dark")
    page = window.page
    page.evaluate(
        "() => addEventListener('beforeprint', () => { window.printed = "
        "document.querySelectorAll('#layers details:not([open])').length; })"
    )
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert page.evaluate("() => window.printed") == 0
    page.emulate_media(media="print")
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    assert not page.is_visible("nav")
    assert window.said == []
    window.context.close()


def test_without_script_the_text_and_the_tables_stand(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".finding").count() > 0
    assert page.is_visible("noscript p")
    assert page.locator("pre.prose").first.text_content() == HOSTILE_TEXTS[0]
    context.close()


def test_the_address_keeps_text_layer_and_token(browser, report, opened, analysis):
    page = opened.page
    page.select_option("#which-text", "1")
    page.check('#which-layer input[value="4"]', force=True)
    opened.wait("text_1/4/absolute")
    page.locator('#text [data-place="7"]').click()
    address = page.evaluate("() => location.hash")
    assert address == "#tokens:1:4:7"
    window = Opened(browser, report)
    other: Any = window.page
    other.goto(report.as_uri() + address)
    other.reload()
    window.wait("text_1/4/absolute")
    assert other.text_content("#token-place").startswith("token 7 ")
    check_lists(other, analysis.tensors["text_1.layer_4.absolute"].numpy(), 7)
    # Another address in the same page, and one that names no place.
    other.evaluate("() => { location.hash = '#tokens:0:2:5'; }")
    window.wait("text_0/2/absolute")
    assert other.text_content("#token-place").startswith("token 5 ")
    other.evaluate("() => { location.hash = '#findings'; }")
    other.wait_for_selector(".finding:visible")
    assert window.said == []
    window.context.close()


def test_a_token_over_all_layers_with_what_it_cost(opened, analysis):
    page = opened.page
    page.locator('#text [data-place="9"]').click()
    part = analysis.results["individual_texts"]["text_0"]
    loss = part["predictions"]["loss"][9]
    assert float(page.text_content('[data-fact="loss"]').split()[0]) == pytest.approx(loss)
    assert page.text_content('[data-fact="expected"]').endswith(
        f"({part['predictions']['expected_p'][9]:.3g})"
    )
    rows = page.locator("#layers-rows tr")
    assert rows.count() == len(LAYERS)
    for i, layer in enumerate(LAYERS):
        steps = part["analysis"]["ssm_components"][f"layer_{layer}"]["by_token"]["delta"][0]
        shown = rows.nth(i).locator("td").first.text_content()
        assert float(shown) == pytest.approx(steps[9], rel=6e-3)  # three digits
    page.click(f'#layers-rows button[data-layer="{LAYERS[2]}"]')
    opened.wait(f"text_0/{LAYERS[2]}/absolute")
    assert page.is_checked(f'#which-layer input[value="{LAYERS[2]}"]')


def test_at_400_px_a_token_opens_under_the_finger(browser, report):
    window = Opened(browser, report, viewport={"width": 400, "height": 800}, has_touch=True)
    page: Any = window.page
    token = page.locator('#text [data-place="6"]')
    token.tap()
    below, panel = token.bounding_box(), page.locator("#panel").bounding_box()
    assert 0 <= panel["y"] - (below["y"] + below["height"]) < 20
    assert (panel["x"], panel["width"]) == pytest.approx((13, 374), abs=4)
    page.locator("#close").tap()
    assert page.locator("#panel").bounding_box()["y"] > panel["y"] + 100
    window.context.close()


def test_figures_follow_the_theme(opened):
    page = opened.page

    def filtered() -> str:
        return page.eval_on_selector(".figures img", "node => getComputedStyle(node).filter")

    assert filtered() == "none"
    page.click("#theme")
    page.click("#theme")
    assert filtered().startswith("invert(")


def test_the_prediction_view_shows_what_the_tensors_hold(opened, analysis):
    page = opened.page
    page.select_option("#which-text", "1")
    opened.wait(f"text_1/{LAYERS[1]}/absolute")
    part = analysis.results["individual_texts"]["text_1"]["prediction_parts"]
    parts = analysis.tensors["text_1.prediction_parts"].numpy()
    sources = analysis.tensors["text_1.prediction_sources"].numpy()

    def shown(name: str, label: str = "part") -> dict[str, float]:
        return dict(
            page.eval_on_selector_all(
                f"#{name} li[data-{label}]",
                f"items => items.map(item => [item.dataset.{label}, Number(item.dataset.value)])",
            )
        )

    for token in (0, 9):
        page.locator(f'#prediction-text [data-place="{token}"]').click()
        assert f"predicted after token {token} " in page.text_content("#prediction-place")
        givers = {int(place): value for place, value in shown("givers", "place").items()}
        exact = {place: float(sources[token, place]) for place in givers}
        assert givers == pytest.approx(exact, rel=0.005)  # three digits
        assert len(givers) == min(token + 1, 8)
        for name, column in (("given-layers", 0), ("given-paths", 1)):
            expected: dict[str, float] = {}
            for place, value in zip(part["parts"], parts[token].tolist(), strict=True):
                key = str(place[column])
                expected[key] = expected.get(key, 0.0) + value
            assert shown(name) == pytest.approx(expected, rel=0.005, abs=1e-9)
        assert list(shown("given-layers"))[:2] == ["embedding", "0"]
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.place") == "10"
    assert page.text_content("#token-place").startswith("token 10 ")

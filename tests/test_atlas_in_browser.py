"""The atlas opened from its file in headless Chromium: found, shown, reached by everybody."""

import os
import shutil

import pytest
from atlas_cases import made_contents
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from result_views.report.atlas import write_atlas

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser():
    # As root, Chromium starts only without its sandbox; the page is our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(params=["one page", "beside its data"])
def opened(request, browser, tmp_path):
    limit = 10**7 if request.param == "one page" else 100
    path = write_atlas(made_contents(), tmp_path, max_page=limit)
    context = browser.new_context(offline=True)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()
    assert said == []
    assert all(url.startswith((tmp_path.as_uri(), "data:")) for url in asked)


def cells(page, table):
    return page.eval_on_selector_all(
        f"#{table} tr", "rows => rows.map(r => r.cells[0].textContent)"
    )


def test_neurons_are_found_shown_and_kept_in_the_address(opened):
    page = opened
    assert cells(page, "neurons") == ["0", "1", "2"]  # most peaked first
    page.select_option("#where", "promotes")
    page.fill("#neuron-text", "CAT")
    assert cells(page, "neurons") == ["1"]
    page.click("#neurons button")
    assert page.text_content("#title") == "Layer 0, neuron 1"
    assert page.evaluate("document.activeElement.id") == "title"
    assert page.evaluate("location.hash") == "#0/1"
    words = page.eval_on_selector(
        ".context .words", "e => [...e.children].map(c => [c.textContent, c.className, c.tagName])"
    )
    assert words == [
        [" the", "", "SPAN"], [" Tom", "h9", "SPAN"], ["<b>", "h1", "STRONG"],
        ["</script>", "l8", "SPAN"], [" sat", "l9", "SPAN"],
    ]  # fmt: skip
    page.select_option("#layer", "5")
    page.locator("#summary", has_text="17").wait_for()  # the page's policy allows no eval
    page.fill("#neuron", "2")
    page.click("#find button")
    assert page.text_content("#title") == "Layer 5, neuron 2"
    page.reload()
    page.wait_for_selector("#title")
    assert page.text_content("#title") == "Layer 5, neuron 2"


def test_tokens_are_found_and_ordered_and_lead_to_neurons(opened):
    page = opened
    assert cells(page, "tokens")[0] == "“ the”"
    page.select_option("#token-order", "received")
    assert cells(page, "tokens")[0] == "“ Tom”"
    page.fill("#token-text", "cat")
    assert cells(page, "tokens") == ["“ cat”"]
    page.fill("#token-text", "")
    page.fill("#least", "99")
    assert len(cells(page, "tokens")) == 2
    page.click("#tokens button")
    assert page.text_content("#title").startswith("Layer 0, neuron ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(opened, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.click("#neurons button")
    violations = Axe().run(opened).response["violations"]
    assert [(v["id"], [n["html"][:90] for n in v["nodes"][:3]]) for v in violations] == []

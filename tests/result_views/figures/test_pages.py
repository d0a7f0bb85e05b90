"""Pages of the figures: shown in a notebook as pictures, saved in one style, caption and legend."""

import io

import matplotlib
import pytest

from result_views.figures.pages import STYLE, PageFigure, balanced_lines, page, styled

TEXTS = {
    "text_0": {"text": "One \n  line.", "tokens": ["One", "line"]},
    "text_1": {"text": "Costs $5 and $6 " + "x" * 5000, "tokens": ["Costs"] * 3},
}
RESULTS = {"individual_texts": TEXTS, "provenance": {"model": {"id": "/models/demo_model"}}}


@pytest.fixture
def drawn():
    return page(RESULTS, "Title", "Caption.", [(2, 1.0), (1, 0.5)], TEXTS)


def test_rows_of_panels_below_a_title_with_the_origin_in_the_caption(drawn):
    figure, axes = drawn
    assert [len(row) for row in axes] == [2, 1]
    assert figure.get_suptitle() == "Title"
    caption = figure.texts[-1].get_text().replace("\xa0", " ")
    assert caption == "Caption. Model demo_model; n = 5 tokens of 2 texts."


def test_legend_shows_how_each_text_begins_on_one_line_and_as_it_is(drawn):
    first, second = (text.get_text() for text in drawn[0].legends[0].get_texts())
    assert first == "text 0 (n = 2 tokens): One line."
    assert second.startswith(r"text 1 (n = 3 tokens): Costs \$5 and \$6 x")
    assert second.endswith("x\u2026")
    assert len(second) < 70


def test_a_text_that_failed_is_named_in_the_caption():
    sections = {"text_0": {"skipped": "needs neurons"}, "text_1": {"a": 1}}
    figure, _ = page(RESULTS, "Title", "", [(1, 1.0)], sections)
    caption = figure.texts[-1].get_text()
    assert "Without text 0: skipped: needs neurons." in caption.replace("\n", " ")


def test_origin_of_results_without_texts():
    parts = [
        ({}, "Caption."),
        ({"provenance": {"model": {"id": None}}}, "Caption. Model unnamed."),
        (
            {"provenance": {"model": {"id": "m"}, "texts": {"text_0": {"num_tokens": 7}}}},
            "Caption. Model m; n = 7 tokens of 1 text.",
        ),
    ]
    for results, expected in parts:
        figure, _ = page(results, "Title", "Caption.", [(1, 1.0)], {})
        assert figure.texts[-1].get_text().replace("\xa0", " ").strip() == expected


def test_a_notebook_is_given_a_picture(drawn):
    assert drawn[0]._repr_png_().startswith(b"\x89PNG")


def test_saving_keeps_the_style_and_the_users_settings():
    with matplotlib.rc_context({"savefig.dpi": 30, "svg.fonttype": "path"}):
        buffer = io.BytesIO()
        figure = PageFigure(figsize=(2, 1))
        figure.text(0.1, 0.5, "editable")
        figure.savefig(buffer, format="png")
        assert int.from_bytes(buffer.getvalue()[16:20], "big") == 2 * STYLE["savefig.dpi"]
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        assert b">editable</text>" in buffer.getvalue()
        assert matplotlib.rcParams["savefig.dpi"] == 30


def test_drawing_in_style_leaves_the_users_settings():
    with matplotlib.rc_context({"font.size": 20}):
        assert styled(lambda: matplotlib.rcParams["font.size"])() == STYLE["font.size"]
        assert matplotlib.rcParams["font.size"] == 20


def test_lines_of_a_title_are_about_equally_long():
    assert balanced_lines("one line", 20) == ["one line"]
    assert balanced_lines("four words that are six now", 24) == ["four words that", "are six now"]
    assert balanced_lines("", 24) == []

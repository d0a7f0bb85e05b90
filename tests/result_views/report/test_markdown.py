"""Markdown of the report, rendered by a Markdown parser: every text is shown as itself."""

import html
import re

import pytest
from markdown_it import MarkdownIt
from report_cases import HOSTILE_TEXTS, analysed

from result_views.report.content import report_content
from result_views.report.markdown import escape_markdown, fenced, markdown_report
from result_views.report.token_view import neuron_tables, token_view

PARSER = MarkdownIt("commonmark").enable("table")


def rendered_text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.mark.parametrize(
    "text",
    [*HOSTILE_TEXTS[:4], "1. a", "- b", "# c", "a|b", "&lt;", "**x** __y__ ~~z~~", "![a](b)", "<b>",
     "http://example.org", "a\\b", "`code`", "$$x$$", "[^1]: note", "+++", "\\",
     "12) a", "===", "---", "- - -", "## x", "    * y", "1.", "a & b;", "-0.5",
     "1.68e-07 (null 0 to 1)", ":smile: @name"],
)  # fmt: skip
def test_escaped_text_is_itself_in_a_line_and_in_a_table(text):
    line = re.sub(r"\n", "↵", text).strip()
    assert rendered_text(PARSER.render(escape_markdown(text))).strip() == line
    cell = PARSER.render(f"| a | b |\n| --- | --- |\n| {escape_markdown(text)} | x |\n")
    found = re.findall(r"<td>(.*?)</td>", cell, re.S)
    assert [html.unescape(part) for part in found] == [line, "x"]
    # A dollar that is not escaped begins mathematics for some readers.
    assert not re.search(r"(?<!\\)\$", escape_markdown(text))


def test_numbers_and_sentences_stay_readable():
    text = "Found: it is 1.68e-07 (null -0.5 to 0.1); n = 4 layers."
    assert escape_markdown(text) == text


@pytest.mark.parametrize("text", [*HOSTILE_TEXTS, "```\nfence\n````", "~~~", "a\r\nb", ""])
def test_a_fenced_text_is_exact(text):
    tokens = PARSER.parse(fenced(text))
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content == text.replace("\r\n", "\n") + "\n"


def test_the_report_shows_texts_tables_and_figures():
    analysis = analysed(HOSTILE_TEXTS[:2], layers=(0, 2), max_length=100)
    content = report_content(analysis.results, analysis.tensors)
    neurons = neuron_tables(token_view(analysis.results, analysis.tensors))
    figures = {"a b/odd (name)<1>.png": ("A | figure", "What it <shows>.")}
    text = markdown_report(content, figures, neurons)
    tokens = PARSER.parse(text)
    assert not [token for token in tokens if token.type.startswith("html")]
    assert not [
        child for token in tokens for child in token.children or () if child.type == "html_inline"
    ]
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences[:2] == [f"{part}\n" for part in HOSTILE_TEXTS[:2]]
    page = PARSER.render(text)
    assert page.count("<table>") >= 2 * 5 + 3 + 2 + 4
    assert 'src="a%20b/odd%20(name)%3C1%3E.png"' in page
    assert "A | figure" in rendered_text(page) or 'alt="A | figure"' in page
    for heading in ("Claims", "Texts", "Neurons", "Figures", "Checks", "Limits", "Provenance"):
        assert f"<h2>{heading}</h2>" in page


def test_without_figures_it_is_said():
    analysis = analysed(HOSTILE_TEXTS[:1], layers=(0, 2), max_length=40)
    text = markdown_report(report_content(analysis.results), {})
    assert "No figure was drawn." in text

"""Figure of an attribution to input tokens: the scores of each text's tokens, along the text.

Reads what ``input_attribution`` writes; computes no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import PALETTE, drawable_text
from result_views.figures.faithfulness_figures import METHOD_NAMES
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import as_array, begin, write_reason
from suite_plumbing.result_reading import Section
from suite_plumbing.texts import clean_token

MAX_TEXTS = 4
"""Texts that a page has room for."""

MAX_NAMED = 44
"""Tokens of which all are named along a panel; more names would touch each other."""

MOST_NAMED = 24
"""Tokens named of a longer text."""


@styled
def figure_token_scores(results: Section) -> Figure:
    """Scores of the tokens of the first texts, a panel each, the highest named."""
    texts = scored_texts(results)
    shown = list(texts)[:MAX_TEXTS]
    more = f" The first {MAX_TEXTS} of {len(texts)} texts." if len(texts) > MAX_TEXTS else ""
    figure, axes = page(
        results,
        score_title(texts[shown[0]]),
        "A bar a token, in the order of the text: its score for the value named above, which a "
        "positive one raises. Where not all tokens can be named, those of largest score are, with "
        f"their position from 0.{more}",
        [(1, 1.3)] * len(shown),
        {},
    )
    for name, row in zip(shown, axes, strict=True):
        plot_token_scores(texts[name], row[0], name.replace("_", " "))
    return figure


def scored_texts(results: Section) -> dict[str, Section]:
    """The texts' attributions by name, in their order."""
    return {key: part for key, part in results.items() if key.startswith("text_")}


def score_title(section: Section) -> str:
    """Which token of a text has the largest score, and of what."""
    scores, what = section["scores"], f"the {_target(section)} of “{_name(section['token'])}”"
    if section["reason"] is not None or not any(scores):
        return f"What {what} owes to the text"
    most = max(range(len(scores)), key=lambda i: abs(scores[i]))
    method, name = _method(section), _name(section["tokens"][most])
    # Of other totals, such as the difference to the baseline's, a share would say something else.
    total, f = section["total"], section["f"]
    whole = total is not None and math.isclose(total, f, rel_tol=0.01)
    of = f" of {f:.2f}" if whole else ""
    return f"By {method}, “{name}” at {most} counts most for {what}: {scores[most]:+.2g}{of}"


def plot_token_scores(section: Section, ax: Axes | None = None, title: str = "Scores") -> Axes:
    """Bars of the scores along a text; upright names at those of the largest."""
    what = f"{_target(section)} of “{_name(section['token'])}” is {section['f']:.2f}"
    ax = begin(ax, f"{title}: {what}", "", f"score ({_method(section)})")
    if section["reason"] is not None:
        return write_reason(ax, section["reason"])
    scores, tokens = section["scores"], section["tokens"]
    ax.bar(range(len(scores)), as_array(scores), width=0.8, color=PALETTE[0])
    ax.axhline(0, color="0.4", linewidth=0.6)
    every = len(scores) <= MAX_NAMED
    named = list(range(len(scores))) if every else named_tokens(scores)
    labels = [_name(tokens[i]) if every else f"{_name(tokens[i])} {i}" for i in named]
    ax.set_xticks(named, labels, rotation=90, fontsize=6)
    ax.set_xlim(-0.8, len(scores) - 0.2)
    return ax


def named_tokens(scores: Sequence[float]) -> list[int]:
    """Tokens of the largest scores, either way, none within the width of a name of another."""
    apart = -(-len(scores) // MAX_NAMED)
    named: list[int] = []
    for token in sorted(range(len(scores)), key=lambda i: -abs(scores[i])):
        if all(abs(token - other) >= apart for other in named):
            named.append(token)
        if len(named) == MOST_NAMED:
            break
    return sorted(named)


def _target(section: Section) -> str:
    return str(section["target"]).replace("_", " ")


def _method(section: Section) -> str:
    return METHOD_NAMES.get(section["method"], str(section["method"]).replace("_", " "))


def _name(token: object) -> str:
    return drawable_text(clean_token(str(token))).strip() or "␣"


TOKEN_SCORE_FIGURES: dict[str, Callable[[Section], Figure]] = {
    "input_attribution": figure_token_scores
}
"""By file name: functions of the results."""

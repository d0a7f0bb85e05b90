"""Figure of an attribution to input tokens: a bar a token, the largest named, none made up."""

import numpy as np
import pytest

from recursive_visualizer import figures_of
from result_views.figures import token_score_figures as figures
from tests.figure_checks import assert_fits, words_of


def section(scores, **changed):
    return {
        "tokens": [f"Ġt{i}" for i in range(len(scores))], "token": "Ċ", "target": "logit",
        "method": "mamba_lrp", "f": 4.0, "scores": scores, "total": 4.0, "reason": None, **changed,
    }  # fmt: skip


def test_a_bar_a_token_with_its_name():
    ax = figures.plot_token_scores(section([0.5, -1.0, 4.5]))
    assert [bar.get_height() for bar in ax.containers[0]] == [0.5, -1.0, 4.5]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["t0", "t1", "t2"]
    assert ax.get_title() == r"Scores: logit of “\n” is 4.00"
    assert ax.get_ylabel() == "score (MambaLRP)"


def test_of_a_long_text_the_largest_are_named_apart_from_each_other():
    scores = np.zeros(440)
    scores[[100, 105, 300, 439]] = [3.0, 2.0, -2.5, 1.0]
    named = figures.named_tokens(scores.tolist())
    assert len(named) == figures.MOST_NAMED
    assert {100, 300, 439} <= set(named)
    assert 105 not in named  # its name would lie upon that of 100
    assert np.diff(named).min() >= 440 / figures.MAX_NAMED
    ax = figures.plot_token_scores(section(scores.tolist()))
    assert "t300 300" in [label.get_text() for label in ax.get_xticklabels()]
    assert len(ax.containers[0]) == 440


def test_the_title_says_what_counts_most_and_of_what():
    title = figures.score_title
    assert title(section([0.5, -1.0, 4.5])) == (
        r"By MambaLRP, “t2” at 2 counts most for the logit of “\n”: +4.5 of 4.00"
    )
    # Integrated gradients add up to the difference to the baseline's value: no share of f.
    assert title(section([0.5, -1.0], method="integrated_gradients", total=-0.5)) == (
        r"By integrated gradients, “t1” at 1 counts most for the logit of “\n”: -1"
    )
    assert title(section([0.0, 0.0], total=None, reason="no layer attends")) == (
        r"What the logit of “\n” owes to the text"
    )


def test_scores_that_rank_nothing_leave_the_reason():
    ax = figures.plot_token_scores(section([0.0, 0.0], reason="no layer attends to anything"))
    assert not ax.containers
    assert "no layer attends" in ax.texts[0].get_text()


@pytest.mark.parametrize("count", [1, 6])
def test_the_page_shows_the_first_texts_and_fits(count):
    texts = {f"text_{i}": section([0.1 * i, 1.0, -0.5]) for i in range(count)}
    provenance = {"model": {"id": "demo"}, "texts": {t: {"num_tokens": 3} for t in texts}}
    results = {"input_attribution": {}, **texts, "provenance": provenance}
    (name, draw), *more = figures_of(results).items()
    assert (name, more) == ("input_attribution", [])
    figure = draw(results)
    assert_fits(figure)
    assert len(figure.axes) == min(count, figures.MAX_TEXTS)
    assert ("The first 4 of 6 texts." in words_of(figure)) == (count == 6)
    assert f"n = {3 * count} tokens" in words_of(figure)

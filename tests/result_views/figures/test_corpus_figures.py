"""What is on the axes of the corpus figure is what stands in the results."""

import numpy as np
import pytest
from defined import known

from result_views.figures.corpus_figures import (
    corpus_title,
    figure_corpus,
    plot_cka,
    plot_copying,
    plot_reach,
    plot_state_by_position,
)


def made_results(maps=True):
    def layer(k):
        copying = {"value": 1.0 + k, "null_low": 0.8, "null_high": 1.2}
        kernel = {"lag_90": [20.0 + k]}
        found = {"copying": copying, "kernel": kernel} if maps else None
        return {"half_life_median": 10.0 * (k + 1), "maps": found}

    return {
        "corpus": {"windows": 5, "tokens": 900, "documents": 2, "maps_every": 4, "mapped": 2},
        "layers": {f"layer_{k}": layer(k) for k in (0, 2)},
        "by_position": {
            "first_position": [0, 1, 2],
            "state_norm": {
                f"layer_{k}": [1.0, 2.0, 3.0 + k] if maps else [None] * 3 for k in (0, 2)
            },
        },
        "cka": [[1.0, 0.4], [0.4, 1.0]] if maps else None,
    }


def lines(ax):
    return [np.asarray(line.get_ydata()).tolist() for line in ax.lines]


def test_the_panels_show_the_results():
    results = made_results()
    assert lines(plot_reach(results)) == [[10.0, 30.0], [20.0, 22.0]]
    assert lines(plot_copying(results)) == [[1.0, 3.0], [3.0], [1.0]]  # filled: outside its null
    state = plot_state_by_position(results)
    assert lines(state)[:2] == [[1.0, 2.0, 3.0], [1.0, 2.0, 5.0]]
    assert np.asarray(state.lines[0].get_xdata()).tolist() == [1, 2, 3]
    assert known(plot_cka(results).images[0].get_array()).tolist() == results["cka"]


@pytest.mark.parametrize("maps", [True, False])
def test_the_page_is_drawn_also_where_no_window_gave_maps(maps):
    figure = figure_corpus(made_results(maps))
    assert len(figure.axes) >= 4
    if not maps:
        words = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
        assert "no token was read before" in " ".join(words.split())


def test_the_title_says_which_layer_keeps_a_token_longest():
    assert corpus_title(made_results()) == (
        "Over the corpus layer 2 keeps a token longest: median half-life 30 tokens (layer 0: 10)"
    )

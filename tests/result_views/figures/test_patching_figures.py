"""Figures of activation patching: what is on the axes."""

from typing import Any

import numpy as np

from result_views.figures.patching_figures import (
    figure_patching,
    patching_title,
    plot_circuit,
    plot_patching,
)

FOUND = {
    "metric": "logit_difference", "direction": "denoising", "num_pairs": 6,
    "tokens": ["a", "b", "c"],
    "sites": {
        "state": {
            "layers": [0, 3], "effect": [[0.0, 0.5, None], [0.1, 0.2, 0.9]],
            "low": [[None, 0.3, None], [0.0, 0.1, 0.8]],
            "high": [[None, 0.7, None], [0.2, 0.3, 1.0]],
            "control": [[0.0, 0.4, None], [0.0, 0.2, 0.1]],
        },
    },
}  # fmt: skip

ROW = {"faithfulness": 0.5, "without": 0.25, "random_faithfulness": 0.1, "random_without": 0.9}

CIRCUIT = {"order": [], "curve": [{"edges": 1, **ROW}, {"edges": 4, **ROW}]}


def test_a_map_has_layers_and_tokens_and_marks_what_exceeds_the_control():
    ax = plot_patching(FOUND, "state")
    drawn: Any = ax.images[0].get_array()
    values = np.ma.filled(drawn, np.nan)
    assert values.shape == (2, 3)
    assert values[1, 2] == 0.9
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    assert [np.asarray(line.get_xydata()).tolist() for line in ax.lines] == [[[2, 1]]]
    bare = {**FOUND, "sites": {"state": {**FOUND["sites"]["state"], "control": None}}}
    assert not plot_patching(bare, "state").lines


def test_circuits_are_drawn_by_their_size():
    ax = plot_circuit(CIRCUIT)
    assert [np.asarray(line.get_xdata()).tolist() for line in ax.lines[:4]] == [[1, 4]] * 4


def test_the_page_has_every_site_and_the_circuit():
    figure = figure_patching({"patching": FOUND, "circuit": CIRCUIT})
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [
        "state", "Circuits of the strongest edges",
    ]  # fmt: skip
    assert any("n = 6 pairs" in text.get_text() for text in figure.texts)
    assert figure_patching(FOUND).axes


def test_the_title_is_the_place_that_moves_the_prediction_most():
    assert patching_title(FOUND) == (
        "What the state of layer 3 at “c” (2) holds makes 90% of the difference between the runs"
    )
    # The largest effect that the control exceeds is passed over; where all are, that is said.
    state = FOUND["sites"]["state"]
    larger = {**state, "effect": [[0.0, 0.95, None], [0.1, 0.2, 0.9]]}
    assert "layer 3 at “c” (2) holds makes 90%" in patching_title(
        {**FOUND, "sites": {"state": larger}}
    )
    none = {**state, "control": [[1.0] * 3] * 2}
    assert patching_title({**FOUND, "sites": {"state": none}}) == (
        "No patch is set apart from an unrelated pair's values: the most, 90%, from the state of "
        "layer 3 at “c” (2)"
    )
    alone = {**FOUND, "sites": {"state": {**state, "control": None}}}
    assert patching_title(alone).endswith("90% of the difference between the runs; no control")
    residual = {"layers": [0], "effect": [[1.0, None, None]]}
    both = {**FOUND, "sites": {**FOUND["sites"], "residual": residual}, "tokens": None}
    assert "the state of layer 3 at token 2 holds" in patching_title(both)
    assert patching_title({**FOUND, "sites": {"state": residual | {"effect": [[None] * 3]}}}) == (
        "Activation patching"
    )

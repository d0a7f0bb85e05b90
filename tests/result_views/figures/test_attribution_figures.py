"""Figure of direct attribution: bars that sum to the logit, sources in order, the lens's nulls."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recursive_visualizer import figures_of
from result_views.figures import attribution_figures as figures


@pytest.fixture
def results():
    parts = [
        ("embedding", "embedding", 0.25), (0, "skip", 1.0), (0, "state", -2.0), (0, "bias", 0.5),
        (1, "attention", 3.0), (1, "mlp", -0.5), ("bias", "bias", 0.25),
    ]  # fmt: skip
    sources = [(0, "a", 0.5), (1, " $b", -1.0), (2, "c", 2.0), ("bias", "", 1.0)]
    lens = [
        {"layer": layer, "stream": stream, "kl": kl, "kl_permuted": kl + 1, "kl_twin": None}
        for layer, stream, kl in (
            ("embedding", "residual", 3.0), (0, "mixer", 2.5), (0, "residual", 2.0),
            (1, "residual", 0.0),
        )
    ]  # fmt: skip
    section = {
        "token": " the", "logit": 2.5, "total_effects": {"0": 0.5, "1": 1.5},
        "parts": [{"layer": a, "path": b, "value": c} for a, b, c in parts],
        "by_source": [{"source": a, "token": b, "value": c} for a, b, c in sources],
    }  # fmt: skip
    text = {"text": "a b c", "tokens": ["a", " $b", "c"], "direct_attribution": section,
            "logit_lens": {"layers": lens}}  # fmt: skip
    return {"individual_texts": {"text_0": text}, "direct_attribution": {"tuned_lens": None}}


@pytest.fixture
def section(results):
    return results["individual_texts"]["text_0"]["direct_attribution"]


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def test_bars_stack_by_path_and_sum_to_the_logit(section, ax):
    figures.plot_by_layer(section, ax)
    bars = [bar for container in ax.containers for bar in container]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(section["logit"])
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["embedding", "0", "1", "bias"]
    # What raises the logit stands on what raises it; the state's bar hangs from 0.
    by_name = {c.get_label(): c for c in ax.containers}
    assert by_name["bias"][1].get_y() == pytest.approx(1.0)
    assert by_name["state"][1].get_y() == pytest.approx(0.0)
    total = next(line for line in ax.lines if line.get_label() == "total")
    np.testing.assert_array_equal(total.get_xydata(), [[1, 0.5], [2, 1.5]])


def test_without_total_effects_there_are_no_marks(section, ax):
    figures.plot_by_layer({**section, "total_effects": None}, ax)
    assert "total" not in [line.get_label() for line in ax.lines]


def test_sources_stand_in_the_order_of_the_text(section, ax, monkeypatch):
    monkeypatch.setattr(figures, "MAX_SOURCES", 2)
    figures.plot_by_source(section, ax)
    assert [bar.get_height() for bar in ax.containers[0]] == [-1.0, 2.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [r" \$b 1", "c 2"]


def test_without_sources_the_panel_says_so(section, ax):
    figures.plot_by_source({**section, "by_source": section["by_source"][-1:]}, ax)
    assert "no source token" in ax.texts[0].get_text()


def test_the_lens_beside_its_nulls(results, ax):
    figures.plot_lens(results["individual_texts"]["text_0"]["logit_lens"], ax)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["residual"].get_xydata(), [[-1, 3], [0, 2], [1, 0]])
    np.testing.assert_array_equal(lines["another position"].get_ydata(), [4, 3, 1])
    np.testing.assert_array_equal(lines["mixer"].get_xydata(), [[0, 2.5]])


def test_the_title_names_the_layer_that_gave_most(results):
    (draw,) = figures_of(results).values()
    assert draw(results).get_suptitle() == "Layer 1 gave most to the logit of “ the”: 2.50 of 2.50"

"""What stands on the axes of each panel: the numbers of the results, their nulls, their labels."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from result_views.figures import analysis_panels as panels

ERROR = {"error": {"type": "AnalysisError", "message": "too flat"}}


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def texts_of(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def rectangles(ax):
    """Lower and upper end of every bar."""
    boxes = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    return [(round(box.y0, 9), round(box.y1, 9)) for box in boxes]


def null_test(value, low, high, reason=None):
    return {"value": value, "null_low": low, "null_high": high, "reason": reason}


def summary(median):
    return {"mean": median, "std": 0.1, "min": median - 1, "median": median, "max": median + 1}


def ssm_layer(layer):
    names = ("spectral_radius", "half_life", "state_norm", "write_energy", "retain_energy")
    return {
        "num_tokens": 40 + layer,
        **{name: summary(i - 4.0) for i, name in enumerate("ABCD")},
        "delta": summary(1.5),
        "dynamics": {name: summary(2.0 + i) for i, name in enumerate(names)},
        "delta_memory": {"lags": [1, 2], "survival": [0.9, 0.4]},
    }


SSM = {"text_0": {"layer_0": ssm_layer(0), "layer_4": ssm_layer(0)}}


@pytest.mark.parametrize(
    ("plot", "title", "ylabel", "median"),
    [
        (panels.plot_spectral_radius, "Spectral radius of exp(ΔA)", "factor per token", 2.0),
        (panels.plot_half_life, "Half-life of states", "tokens", 3.0),
        (panels.plot_delta, "Step size Δ", "Δ", 1.5),
        (panels.plot_decay_rate, "Decay rate −A", "per unit of Δ", 4.0),
        (panels.plot_skip, "Skip connection D", "D", -1.0),
    ],
)
def test_ssm_summaries_by_layer(ax, plot, title, ylabel, median):
    assert plot(SSM, ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, median], [4, median]])
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (title, "layer", ylabel)


def test_half_lives_are_compared_with_the_longest_text(ax):
    sections = {
        "text_0": SSM["text_0"],
        "text_1": {"layer_0": ssm_layer(7), "layer_4": ssm_layer(7)},
    }
    panels.plot_half_life(sections, ax)
    assert np.asarray(ax.lines[-1].get_ydata()).tolist() == [47, 47]
    assert ax.get_yscale() == "log"


def test_projections_and_energies_have_a_colour_each(ax):
    panels.plot_projections(SSM, ax)
    assert [list(line.get_ydata()) for line in ax.lines] == [[-3, -3], [-2, -2]]
    other = Figure().subplots()
    panels.plot_state_energy(SSM, other)
    assert [np.asarray(line.get_ydata()).tolist() for line in other.lines] == [[5, 5], [6, 6]]
    assert len({line.get_color() for line in other.lines}) == 2


def test_survival_by_lag(ax):
    panels.plot_survival(SSM, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.9], [2, 0.4]])
    assert ax.get_xlabel() == "lag (tokens)"


def attention_layer(agreement):
    names = ("entropy_share", "mean_distance", "self_share", "recent_share", "first_share")
    return {
        "statistics": {name: summary(0.1 * i) for i, name in enumerate(names)},
        "by_query": {"entropy": [[0.0, 0.6, None]], "strength": [[0.5, 0.25, 0.0]]},
        "memory_kernel": {"kernel": [[0.75, 0.25, 0.0]]},
        "agreement_with_synthetic": [agreement],
    }


def test_entropy_against_strength_leaves_out_queries_without_attention(ax):
    panels.plot_entropy_strength({"text_0": {"layer_0": attention_layer(0.5)}}, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.5, 0.0], [0.25, 0.6]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("strength Σ|α| per query", "entropy (nats)")
    assert ax.get_xscale() == "log"


def test_memory_kernel_ends_where_the_text_does(ax):
    panels.plot_memory_kernel({"text_0": {"layer_0": attention_layer(0.5)}}, ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.75, 0.25, np.nan])


def test_queries_reach_back_in_steps_of_their_share_all_texts_together(ax):
    one, other = ([0.0, 2.0], [1.0, None])
    sections = {f"text_{i}": {"layer_0": {"by_query": {"mean_distance": [distances]}}}
                for i, distances in enumerate((one, other))}  # fmt: skip
    panels.plot_reach(sections, ax)
    steps = ax.lines[0].get_xydata()[1:]  # after the step up from 0
    np.testing.assert_allclose(steps, [[0, 1 / 3], [1, 2 / 3], [2, 1]])


def test_agreement_with_synthetic_attention_on_the_whole_range(ax):
    section = {"layer_0": attention_layer(0.5), "layer_1": attention_layer(None)}
    panels.plot_synthetic_agreement({"text_0": section}, ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, np.nan])
    assert ax.get_ylim() == (-1.05, 1.05)


def test_agreement_that_is_undefined_everywhere_says_so(ax):
    section = {"layer_0": attention_layer(None)}
    panels.plot_synthetic_agreement({"text_0": section}, ax)
    assert "undefined: too few tokens" in texts_of(ax)


def test_attention_map_is_causal_and_symmetric_about_zero(ax):
    matrix = np.array([[0.2, 0.0, 0.0], [-0.4, 0.1, 0.0], [0.3, 0.0, -0.1]])
    panels.plot_attention_map(matrix, ["Ġthe", "$x", "\U0001f642"], ax)
    drawn = ax.images[0].get_array()
    assert drawn.mask.tolist() == np.triu(np.ones((3, 3), bool), 1).tolist()
    np.testing.assert_array_equal(drawn.filled(0), matrix)
    low, high = ax.images[0].get_clim()
    assert low == -high < 0
    assert [label.get_text() for label in ax.get_xticklabels()] == [" the", r"\$x", r"\U0001f642"]


def test_attention_map_of_zeros_has_a_scale(ax):
    panels.plot_attention_map(np.zeros((2, 2)), ["a", "b"], ax)
    assert ax.images[0].get_clim() == (-1.0, 1.0)


def pair(a, b, value, lagged):
    lags = list(range(-1, 2)) if lagged else []
    return {
        "layers": [a, b], "lags": lags, "lagged_mean_abs": lagged, "reason": "5 tokens",
        "mean_abs": null_test(value, 0.1, 0.2, "5 tokens"),
    }  # fmt: skip


def test_pairs_of_layers_beside_their_null(ax):
    section = {
        "layer_0_to_3": pair(0, 3, 0.5, [0.1, 0.5, 0.3]),
        "layer_3_to_6": pair(3, 6, 0.15, None),
    }
    panels.plot_pair_statistic({"text_0": {"mixer": section}}, "mixer", "mean_abs", ax)
    _, outside, inside = ax.lines
    np.testing.assert_array_equal(outside.get_xydata(), [[0, 0.5]])
    np.testing.assert_array_equal(inside.get_xydata(), [[1, 0.15]])
    np.testing.assert_allclose([high - low for low, high in rectangles(ax)], 0.1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0→3", "3→6"]


def test_lagged_correlation_marks_what_lies_within_the_null(ax):
    section = {
        "layer_0_to_3": pair(0, 3, 0.5, [0.1, 0.5, 0.3]),
        "layer_3_to_6": pair(3, 6, 0.15, None),
    }
    panels.plot_lagged_correlation(section, ax)
    drawn = ax.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(drawn, [[0.1, 0.5, 0.3], [np.nan] * 3])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["-1", "0", "+1"]


def test_lagged_correlation_without_any_says_why(ax):
    panels.plot_lagged_correlation({"layer_0_to_3": pair(0, 3, None, None)}, ax)
    assert "5 tokens" in texts_of(ax)
    other = Figure().subplots()
    panels.plot_lagged_correlation(ERROR, other)
    assert "too flat" in texts_of(other)


def test_autocorrelation_on_a_symmetric_scale(ax):
    found = {"lags": [1, 2], "mean": [0.5, -0.1], "null_low": [-0.2, -0.2],
             "null_high": [0.2, 0.2], "reason": None}  # fmt: skip
    panels.plot_autocorrelation({"layer_0": {"autocorrelation": found}}, ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.5, -0.1]])
    assert ax.images[0].get_clim() == (-0.5, 0.5)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0]])  # lag 2 lies within


def test_autocorrelation_that_is_undefined_says_why(ax):
    found = {"lags": [], "mean": [], "null_low": [], "null_high": [], "reason": "2 tokens"}
    panels.plot_autocorrelation({"layer_0": {"autocorrelation": found}}, ax)
    assert "2 tokens" in texts_of(ax)


def test_ssm_attention_has_a_group_of_columns_a_pair_and_a_column_a_text(ax):
    def section(a, b):
        tokens = {"delta_received": null_test(a, -0.2, 0.2), "C_norm_paid": null_test(b, -0.2, 0.2)}
        return {"layer_0": {"horizon": 3, "tokens": tokens}}

    panels.plot_ssm_attention({"text_0": section(0.1, 0.9), "text_1": section(-0.5, 0.8)}, ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.1, -0.5, 0.9, 0.8]])
    assert ax.images[0].get_clim() == (-1, 1)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0]])
    assert list(ax.get_xticks()) == [0.5, 2.5]


def test_spread_between_texts_beside_chance(ax):
    null = {"null_low": 0.25, "null_high": 1.5, "reason": None}
    section = {f"layer_{i}": {"mean_delta": {"ratio": 0.5 + 2 * i, **null}} for i in (0, 1)}
    panels.plot_text_spread(section, ax, "Spread")
    assert rectangles(ax) == [(0.25, 1.5)] * 2
    outside, inside = ax.lines[:2]
    np.testing.assert_array_equal(outside.get_xydata(), [[1, 2.5]])
    np.testing.assert_array_equal(inside.get_xydata(), [[0, 0.5]])


def test_a_magnitude_below_its_null_is_hollow(ax):
    section = {"layer_0_to_3": pair(0, 3, 0.01, None), "layer_3_to_6": pair(3, 6, 0.5, None)}
    panels.plot_pair_statistic({"text_0": {"mixer": section}}, "mixer", "mean_abs", ax)
    _, outside, inside = ax.lines
    np.testing.assert_array_equal(outside.get_xydata(), [[1, 0.5]])
    np.testing.assert_array_equal(inside.get_xydata(), [[0, 0.01]])


def test_a_lagged_correlation_without_a_null_is_asked(ax):
    without = pair(0, 3, 0.5, [0.1, 0.5, 0.3])
    without["mean_abs"] |= {"null_low": None, "null_high": None}
    panels.plot_lagged_correlation({"layer_0_to_3": without}, ax)
    (asked,) = ax.lines
    assert asked.get_marker() == "$?$"
    np.testing.assert_array_equal(asked.get_xdata(), [0, 1, 2])


def test_one_text_has_no_consistency_and_says_so(ax):
    none = {"ratio": None, "null_low": None, "null_high": None,
            "reason": "needs at least two texts"}  # fmt: skip
    panels.plot_text_spread({"layer_0": {"mean_delta": none}}, ax)
    assert "needs at least two texts" in texts_of(ax)


def patterns(value):
    return {
        "state_change": [0.5, 1.0, None],
        "activation_change": [0.25, 2.0, 0.5],
        "change_correlation": null_test(value, -0.25, 0.25),
    }


def test_changes_of_state_and_activation(ax):
    panels.plot_changes({"text_0": {"layer_3": patterns(0.5)}}, 3, ax)
    np.testing.assert_array_equal(
        np.asarray(ax.lines[0].get_xydata())[:2], [[0.5, 0.25], [1.0, 2.0]]
    )
    assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0
    assert ax.get_title() == "layer 3"


def test_changes_of_a_state_that_is_zero_say_so(ax):
    part = {"state_change": [None, None], "activation_change": [0.5, 0.25]}
    panels.plot_changes({"text_0": {"layer_3": part}}, 3, ax)
    assert "zero throughout" in " ".join(texts_of(ax).split())


def test_correlation_of_the_changes_beside_its_null(ax):
    section = {"layer_0": patterns(0.1), "layer_3": patterns(0.5)}
    panels.plot_change_correlation({"text_0": section}, ax)
    _, outside, inside = ax.lines
    np.testing.assert_array_equal(outside.get_xydata(), [[1, 0.5]])
    np.testing.assert_array_equal(inside.get_xydata(), [[0, 0.1]])
    np.testing.assert_array_equal([high - low for low, high in rectangles(ax)], [0.5, 0.5])


def test_norms_of_state_and_residual_stream(ax):
    first = {"residual_norm": summary(4), "mixer_norm": summary(1)}
    second = {"residual_norm": summary(5), "mixer_norm": summary(2)}
    panels.plot_norms(SSM, {"text_0": {"layer_0": first, "layer_4": second}}, ax)
    assert [list(line.get_ydata()) for line in ax.lines] == [[4, 4], [4, 5], [1, 2]]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["state h", "residual stream", "mixer output"]


def test_a_panel_without_axes_makes_its_own():
    drawn = panels.plot_delta(SSM)
    assert isinstance(drawn.figure, Figure)

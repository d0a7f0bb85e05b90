"""Titles of the figures say what stands in the results, or name what is drawn."""

from typing import Any

from result_views.figures import titles

FAILED = {"skipped": "needs neurons"}


def of_texts(step, *sections):
    texts: dict[str, dict[str, Any]] = {
        f"text_{i}": {"analysis": {step: one}} for i, one in enumerate(sections)
    }
    return {"individual_texts": texts}


def half_lives(**by_layer):
    return {layer: {"dynamics": {"half_life": {"median": x}}} for layer, x in by_layer.items()}


def null_test(value, high=0.5):
    return {"value": value, "null_high": high}


def test_the_longest_and_shortest_half_life_of_the_middle_text():
    results = of_texts(
        "ssm_components",
        half_lives(layer_0=5.0, layer_3=1312.0),
        half_lives(layer_0=9.0, layer_3=1290.0),
        half_lives(layer_0=5.93, layer_3=9000.0),
        FAILED,
    )
    assert titles.ssm_title(results) == (
        "Layer 3 keeps a token longest: median half-life 1,300 tokens (layer 0: 5.9)"
    )


def test_a_half_life_beyond_the_texts_is_said_to_be():
    results = of_texts("ssm_components", half_lives(layer_0=5.0, layer_3=1312.0))
    results["individual_texts"]["text_0"]["tokens"] = ["a"] * 1200
    assert titles.ssm_title(results).endswith(
        "(layer 0: 5), by A and the mean Δ; no text is longer than 1,200"
    )
    results["individual_texts"]["text_0"]["tokens"] = ["a"] * 1400
    assert titles.ssm_title(results).endswith("(layer 0: 5)")


def test_the_distance_is_that_of_the_median_query_of_all_texts():
    # The middle of the texts' means is 2.5; half of all queries lie at 20 or more.
    def text(*distances):
        return {
            f"layer_{layer}": {
                "by_query": {"mean_distance": [[None, *(scale * x for x in distances)]]},
                "statistics": {"mean_distance": {"mean": 2.5}},
            }
            for layer, scale in ((0, 0.1), (3, 1.0))
        }

    results = of_texts("attention_data", text(2.0, 3.0), text(1.0, 4.0), text(*[20.0] * 9), FAILED)
    assert titles.attention_title(results) == (
        "Half of layer 3's queries have a mean distance of 20 tokens or more (layer 0: 2)"
    )
    assert titles.attention_title({}) == "Implicit attention"


def test_one_layer_or_no_result_has_nothing_to_compare():
    plain = "SSM components by layer"
    assert titles.ssm_title(of_texts("ssm_components", half_lives(layer_0=5.0))) == plain
    assert titles.ssm_title(of_texts("ssm_components", FAILED)) == plain
    assert titles.ssm_title({}) == plain


def test_tests_above_their_null_are_counted_and_undefined_ones_left_out():
    parts = {f"layer_{i}": {"change_correlation": null_test(value)}
             for i, value in enumerate((0.6, 0.5, None, 0.9))}  # fmt: skip
    assert titles.change_title(of_texts("recursive_patterns", parts)) == (
        "State and activation change together above the null in 2 of 3 layers of texts"
    )
    none = {"layer_0": {"change_correlation": null_test(None)}}
    plain = "Change of state against change of activation"
    assert titles.change_title(of_texts("recursive_patterns", none)) == plain


def test_layers_whose_texts_share_neurons_beyond_chance():
    section = {"layer_0": {"rollout": {"largest_p_value": 0.05}},
               "layer_3": {"rollout": {"largest_p_value": 0.2}}}  # fmt: skip
    results = {"cross_text_analysis": {"neuron_consistency": section}}
    assert titles.consistency_title(results) == (
        "Texts share important neurons beyond chance in 1 of 2 layers by methods"
    )
    assert titles.consistency_title({}) == "Consistency across texts"


def test_what_an_erased_state_costs_at_the_first_and_the_last_bin():
    bins = [{"kl": 0.2174, "kl_low": 0.1, "first_lag": 0, "last_lag": 0}, {"kl": None},
            {"kl": 0.00704, "kl_low": 0.001, "first_lag": 33, "last_lag": 58}]  # fmt: skip
    assert titles.causal_title({"reset": {"together": {"bins": bins}}}) == (
        "With every state erased, KL is 0.22 nats at lag 0, 0.007 at lags 33 to 58"
    )
    together = {"bins": bins, "layers": [0, 3]}
    assert titles.causal_title({"reset": {"together": together}}) == (
        "With the states of layers 0 and 3 erased, KL is 0.22 nats at lag 0, 0.007 at lags 33 to 58"
    )
    assert titles.causal_title({"knockout": {"together": together}}) == (
        "With one token hidden from the states of layers 0 and 3, KL is 0.22 nats at lag 0, "
        "0.007 at lags 33 to 58"
    )
    bins[-1] |= {"kl": 3e-7, "kl_low": None}
    assert titles.causal_title({"reset": {"together": {"bins": bins}}}) == (
        "With every state erased, KL is 0.22 nats at lag 0, below 0.0001 at lags 33 to 58; "
        "no interval"
    )
    assert titles.causal_title(FAILED) == "Causal memory"


def test_the_layer_that_reads_back_furthest():
    rows = [{"layer": 0, "kernel_lag_90": 40.0}, {"layer": 3, "kernel_lag_90": None},
            {"layer": 6, "kernel_lag_90": 119.0}]  # fmt: skip
    assert titles.memory_title(rows) == (
        "Layer 6: 90 % of attention lies within 120 tokens (layer 0: 40)"
    )
    assert titles.memory_title([]) == "Memory effects"


def test_a_lag_that_only_the_text_ends_is_called_that():
    rows = [{"layer": layer, "kernel_lag_90": lag, "kernel_limited_by_text": False}
            for layer, lag in ((0, 40.0), (3, 60.0), (6, 119.0))]  # fmt: skip

    def title(*limited):
        given = [{**row, "kernel_limited_by_text": row["layer"] in limited} for row in rows]
        return titles.memory_title(given)

    said = "Layer 6: 90 % of attention lies within 120 tokens (layer 0: 40)"
    assert title() == title(3) == said  # of layer 3 nothing is said
    assert title(6) == f"{said}, limited by the texts' length in layer 6"
    assert title(0, 3, 6) == f"{said}, limited by the texts' length"


def test_a_step_says_its_largest_layer():
    rows = [{"layer": 0, "lag (tokens)": 8.0}, {"layer": 3, "lag (tokens)": None},
            {"layer": 6, "lag (tokens)": 1312.0}]  # fmt: skip
    title = titles.step_title(rows, "lag (tokens)", "Layer {} reads back {}")
    assert title == "Layer 6 reads back 1,300 tokens (layer 0: 8)"
    assert titles.step_title(rows[:2], "lag (tokens)", "Layer {}: {}") == "Lag (tokens) by layer"


def test_one_independent_text_has_no_number_of_correlated_pairs():
    def section(num_groups):
        pair = {"mean_abs": {"value": 0.2, "null_high": 0.1}, "num_groups": num_groups}
        return {"mixer": {"layer_0_to_3": pair}}

    assert titles.cross_layer_title(section(2)) == (
        "Mixers are correlated above their null in 1 of 1 pairs of successive layers"
    )
    assert titles.cross_layer_title(section(1)) == "Cross-layer correlations"


def test_failed_sections_leave_the_plain_names():
    assert titles.cross_layer_title(FAILED) == "Cross-layer correlations"
    assert titles.recursion_title(FAILED) == "Recursive patterns"
    assert titles.ssm_neuron_title(FAILED) == "SSM and neurons"
    assert titles.activation_title(FAILED, ["rollout"]) == "Neuron activation patterns"

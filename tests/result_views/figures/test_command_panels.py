"""Panels by name of the commands beside the analyses: each drawn alone, with its own choices."""

import pytest

from recursive_visualizer import Results, figures_of
from result_views.figures import command_panels
from tests.comparison_results import comparison
from tests.figure_checks import assert_fits

SCORES = {"tokens": ["a", "b"], "scores": [0.5, -1.0], "token": "c", "target": "logit",
          "method": "occlusion", "f": 1.0, "total": None, "reason": None}  # fmt: skip

PART = {"layer": 0, "path": "state", "value": 1.0}

LOGIT = {
    "direct_attribution": {"token": "c", "logit": 1.0, "parts": [PART], "total_effects": None,
                           "by_source": [{"source": 0, "token": "a", "value": 1.0}]},
    "logit_lens": {"layers": [{"layer": 0, "stream": "residual", "kl": 1.0, "kl_permuted": 2.0,
                               "kl_twin": None}]},
}  # fmt: skip

SITE = {"layers": [0], "effect": [[0.5, 0.1]], "low": [[None, None]], "high": [[None, None]],
        "control": None}  # fmt: skip

EDGES = {"edges": 1, "faithfulness": 0.5, "without": 0.5, "random_faithfulness": 0.1,
         "random_without": 0.9}  # fmt: skip

STEERED = {
    "vector": {"site": "delta", "layer": 3}, "target": {"name": "logit"},
    "by_coefficient": [{"coefficient": 1.0, "target_change": 1.0, "low": None, "high": None,
                        "kl": 0.1, "random_kl": 0.3, "perplexity_ratio": 1.2,
                        "random_perplexity_ratio": 1.1}],
    "effects": [{"vector": "random", "coefficient": 1.0, "target_change": 0.1, "kl": 0.2}],
}  # fmt: skip

TEST = {"value": 0.3, "null_low": 0.0, "null_high": 0.1}

PAIR = {"layers": [0, 3], "reason": None, "tests": {"mean_abs": TEST, "cka": TEST}}

RESULTS = {
    "token_scores": {"input_attribution": {}, "text_0": SCORES, "text_1": SCORES},
    "logit_by_layer": {"direct_attribution": {}, "individual_texts": {"text_0": LOGIT}},
    "patching_map": {"patching": {"sites": {"state": SITE}, "tokens": ["a", "b"]},
                     "circuit": {"curve": [EDGES]}},
    "target": STEERED,
    "pair_statistic": {"layer_correlations": {"mixer": {"layer_0_to_3": PAIR}}},
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_each_panel_of_a_command_is_drawn_alone_and_fits(name):
    results = Results(RESULTS[name])
    assert name in results.panel_names
    for panel in command_panels.command_panels(results):
        figure = results.figure(panel)
        assert_fits(figure)
        assert figure.axes[0].get_title()
    assert not set(results.panel_names) & set(results.figure_names)


def test_choices_are_those_of_the_panel():
    scores = Results(RESULTS["token_scores"])
    assert scores.figure("token_scores", text=1).axes[0].get_title().startswith("text 1")
    with pytest.raises(ValueError, match="text is 2; it must be one of 0, 1"):
        scores.figure("token_scores", text=2)
    with pytest.raises(ValueError, match="site is 'gate'; it must be one of state"):
        Results(RESULTS["patching_map"]).figure("patching_map", site="gate")
    with pytest.raises(ValueError, match="stream is 'residual'; it must be one of mixer"):
        Results(RESULTS["pair_statistic"]).figure("pair_statistic", stream="residual")
    assert "circuit" in Results(RESULTS["patching_map"]).panel_names
    bare = {**RESULTS["patching_map"], "circuit": None}
    assert "circuit" not in Results(bare).panel_names


def test_panels_of_a_comparison():
    results = Results(comparison())
    (model, *_) = results["models"]
    assert results.figure("kernels", model=model).axes[0].get_title() == model
    assert_fits(results.figure("layer_cka", pair=0))
    with pytest.raises(ValueError, match="pair is 7"):
        results.figure("layer_cka", pair=7)
    assert list(figures_of(results)) == ["model_comparison", "findings"]

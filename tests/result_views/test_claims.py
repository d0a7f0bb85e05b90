"""Claims by verdict: order, counts, lines that fit, and the figure that a claim is seen in."""

import pytest

from recursive_visualizer import CORRECTED_FIGURES
from result_views import claims
from result_views.claims import claim_lines, counts, figure_of, grouped
from result_views.figures.memory_figures import MEMORY_FIGURES
from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_LITTLE,
    Finding,
    undecided,
)


def finding(claim, verdict, **more):
    fields = {"learned": verdict != SUPPORTED, **more}
    return Finding(claim, "rho", 0.5, None, (0.0, 0.1), 4, "layers", verdict, None, "p", **fields)


EVERY = [
    undecided("Texts differ " + "very " * 20 + "much", "W", "texts", "2 texts; it needs 12", "p"),
    finding("Nothing", NOT_SUPPORTED),
    finding("First above", ABOVE_CHANCE),
    finding("A shape", SUPPORTED),
    finding("Second above", ABOVE_CHANCE),
]


def test_supported_claims_come_first_and_each_once():
    groups = grouped(EVERY)
    assert [group.verdict for group in groups] == [
        SUPPORTED, ABOVE_CHANCE, NOT_SUPPORTED, TOO_LITTLE
    ]  # fmt: skip
    assert [one.claim for one in groups[1].findings] == ["First above", "Second above"]
    assert counts(EVERY) == (
        "Of 5 claims tried: 1 supported; 2 above chance, untrained not tried; 1 not supported; "
        "1 too little data."
    )
    assert (grouped([]), counts([])) == ([], "")


@pytest.mark.parametrize("width", [80, 120])
def test_a_claim_is_a_line_of_the_terminal(width):
    lines = claim_lines(EVERY, width)
    assert max(map(len, lines)) <= width
    for one in EVERY:
        assert sum(line.startswith(f"  {one.claim[:30]}") for line in lines) == 1
    (undecided_line,) = (line for line in lines if line.startswith("  Texts differ"))
    assert undecided_line.endswith("2 texts; it needs 12")
    above = next(line for line in lines if line.startswith("  First above"))
    assert above.split(maxsplit=2)[2].startswith("0.5  null 0 to 0.1; n = 4 layers")


@pytest.mark.parametrize(
    ("path", "figure"),
    [
        ("individual_texts.*.analysis.ssm_components.*.delta.mean", "ssm_analysis"),
        ("individual_texts.*.analysis.attention_data.*.statistics", "attention_analysis"),
        ("individual_texts.*.analysis.recursive_patterns.*.change_correlation",
         "recursive_state_vs_activation"),
        ("cross_text_analysis.neuron_consistency.*.rollout", "consistency_analysis"),
        ("memory.causal_memory.knockout.layers.*.kl", "causal_memory"),
        ("overview.layers[].copying", "overview"),
        ("", None),
        ("provenance", None),
    ],
)  # fmt: skip
def test_a_place_in_the_results_is_seen_in_a_figure(path, figure):
    assert figure_of(path) == figure
    assert figure in {None, "overview", *CORRECTED_FIGURES, *MEMORY_FIGURES}


def test_a_line_is_cut_behind_a_word_and_between_parts():
    assert claims._cut("Tokens of larger delta", 16) == "Tokens of…"
    assert claims._cut("Tokens of larger delta", 17) == "Tokens of larger…"
    assert claims._cut("Tokens of larger delta", 22) == "Tokens of larger delta"
    assert claims._cut("incomprehensibilities of it", 10) == "incompreh…"
    assert claims._parts("null 0 to 0.1; p 0.01; in 3 of 4 layers", 25) == "null 0 to 0.1; p 0.01"
    assert claims._parts("null 0 to 0.1; p 0.01; in 3 of 4 layers", 14) == "null 0 to 0.1"

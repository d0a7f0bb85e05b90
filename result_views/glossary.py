"""What the numbers of a report are: name, unit, definition and how each can mislead.

The report shows them as tooltips and as its glossary, with the letters of the glossary in
`selective_scan`. Here too how tables and figures write the names of statistics and methods.
"""

from __future__ import annotations

from typing import NamedTuple

STATISTIC_NAMES = {
    "mean_delta": "mean Δ",
    "state_norm": "state norm",
    "retain_energy": "kept energy",
    "entropy_share": "entropy share",
    "mean_distance": "mean distance",
    "strength": "strength",
}
"""Statistics whose spread between texts is measured, as they are written."""


def method_name(method: str) -> str:
    """A neuron method as text: gradient_guided is gradient-guided."""
    return method.replace("_", "-")


class Measure(NamedTuple):
    """One quantity of the report."""

    name: str
    unit: str
    """unit or range; empty for a plain number"""
    definition: str


MEASURES = {
    "finding": Measure(
        "Finding", "",
        "A claim tried on these texts by a rule fixed beforehand. Supported: the rule holds, and "
        "the value exceeds what untrained twins show, of fresh weights (architecture and "
        "initialisation) and of permuted weights (scale without structure). Above chance: the "
        "rule holds, untrained models were not looked at. Not supported: the rule does not hold, "
        "twins show as much, or it does not stand at a false discovery rate of 5 % over the "
        "claims of the run. Too few twins, too little data: it cannot be told.",
    ),
    "null": Measure(
        "Null", "as the value",
        "Central 95 % interval of the same statistic where nothing ties the two sides: circular "
        "time shifts within each text, shuffled tokens, or permutations. A value inside its null "
        "is what chance gives.",
    ),
    "absolute": Measure(
        "Mean |α|", "≥ 0",
        "Implicit attention of the selective scan, α[t, s] = Σₙ Cₜ[n] exp(A[n] (Sₜ − Sₛ)) Δₛ "
        "Bₛ[n], S the running sum of Δ; its magnitude, mean over heads. Rows do not sum to 1.",
    ),
    "attention": Measure(
        "Mean α", "signed",
        "Implicit attention with its sign, mean over heads: heads of opposite sign cancel. Exact: "
        "α u + D u is the scan's output.",
    ),
    "synthetic": Measure(
        "Synthetic attention", "0 to 1",
        "Causal softmax of the cosine of the states hₜ and hₛ. Not what the model computes: "
        "compare it with α.",
    ),
    "contribution": Measure(
        "Contribution", "signed",
        "First-order share of source s through token t in the target: gₜ α[t, s] uₛ, summed over "
        "heads, g the target's gradient with respect to the scan's output.",
    ),
    "delta": Measure(
        "Δ", "> 0",
        "Step size after softplus, mean over channels. It writes and forgets at once: a large Δ is "
        "not a long memory.",
    ),
    "loss": Measure(
        "Loss", "nats",
        "-ln p of the token after those before it: what it cost the model, whatever layer is shown."
    ),
    "state_norm": Measure(
        "State norm", "L2", "Norm of the state hₜ over channels and states, after the token."
    ),
    "entropy": Measure(
        "Entropy", "nats",
        "Of |α| of the query, normalised to sum 1 over its sources. At most ln(t + 1).",
    ),
    "entropy_share": Measure(
        "Entropy share", "0 to 1",
        "Entropy of |α| over its maximum ln(t + 1), mean over queries: 1 is even attention.",
    ),
    "strength": Measure(
        "Strength", "≥ 0", "Σₛ |α[t, s]| of the query; in tables the mean over queries."
    ),
    "mean_distance": Measure(
        "Mean distance", "tokens",
        "Σₛ (t − s) |α| / Σₛ |α| of the query; in tables the mean over queries. Longer texts allow "
        "larger ones.",
    ),
    "self_share": Measure(
        "Share on itself", "0 to 1", "Share of |α| that a query gives its own token, mean."
    ),
    "half_life": Measure(
        "Half-life", "tokens",
        "ln 2 / (mean Δ · |A|), median over channels and their states: as if Δ were its mean at "
        "every token. Slowest: of each channel's slowest state alone, median over channels. Of the "
        "state, not of what the model does with it.",
    ),
    "tokens_to_half": Measure(
        "Until half is left", "tokens",
        "Tokens until half of what a token wrote is left in a channel's slowest state, by Δ as it "
        "is at each token; median over tokens, then over channels. A gate that opens for a moment "
        "has a short half-life and a large value here. Undefined where the texts are too short.",
    ),
    "copying": Measure(
        "Copying", "ratio > 0",
        "Where a token was read before: share of |α u| that its query takes from the token after "
        "that earlier one, over the mean share of the sources 3 to 6 tokens beside it. 1: no more "
        "than those. Null: the queries shifted in time, the sources kept.",
    ),
    "reset_cost": Measure(
        "Cost of erasing the state", "nats a token",
        "Loss of the next tokens after the layer's state is set to 0 once near the text's end, "
        "minus that without. The other layers keep theirs and no longer go with it: a cost shows "
        "a need only where erasing all states costs too. Null: other tokens of the text in place "
        "of those that come next.",
    ),
    "openness": Measure(
        "Openness of the gate", "standard deviations of ln Δ",
        "Mean over heads of ln Δ, in standard deviations of each head over the text: different "
        "tokens of the kind minus the others. Above 0 they write, and forget, more. Null: kinds "
        "exchanged among the tokens.",
    ),
    "selectivity": Measure(
        "Selectivity", "0 to 1",
        "Share of the variance of Δ that lies between the tokens, within a channel: 0 is a Δ that "
        "ignores its input.",
    ),
    "kernel": Measure(
        "Memory kernel", "share by lag",
        "Mean over queries of |α[t, t − k]|, normalised over the lags k. Limited by the text where "
        "the half-life is above a quarter of its length: its lags then grow with the text.",
    ),
    "median_lag": Measure(
        "Median lag", "tokens", "Lag up to which the memory kernel holds half of its mass."
    ),
    "lag_90": Measure(
        "90 % lag", "tokens", "Lag up to which the memory kernel holds 90 % of its mass."
    ),
    "mixer_share": Measure(
        "Mixer share", "0 to 1",
        "Norm of what the mixer adds over that of the residual stream, mean over tokens.",
    ),
    "state_rank": Measure(
        "State rank", "1 to tokens − 1",
        "Participation ratio (Σλ)² / Σλ² of the states' covariance over tokens: how many "
        "directions the state uses.",
    ),
    "replay_error": Measure(
        "Replay error", "relative",
        "Norm of the mixer's output rebuilt from the extracted parts less the model's own, over "
        "the norm of the latter. About 1e-7 in float32: the numbers describe this model.",
    ),
    "mean_abs_r": Measure(
        "Mean |r|", "0 to 1",
        "Pearson correlation over tokens of every pair of channels of two layers, mean magnitude. "
        "The residual stream of a later layer contains that of an earlier one: compare mixers.",
    ),
    "max_abs_r": Measure(
        "Largest |r|", "0 to 1",
        "The largest of the pairs: few tokens and many pairs make it large without any tie.",
    ),
    "cka": Measure(
        "CKA", "≤ 1", "Debiased linear centred kernel alignment of two layers over tokens."
    ),
    "significant_share": Measure(
        "Pairs significant", "share",
        "Pairs of channels correlated at a false-discovery rate of 5 % (Benjamini–Hochberg), "
        "sample sizes corrected for autocorrelation.",
    ),
    "autocorrelation": Measure(
        "Autocorrelation", "−1 to 1",
        "Of the residual stream at lag 1, mean over channels; null: shuffled tokens.",
    ),
    "memory_time": Measure(
        "Above null until", "tokens", "First lag at which the autocorrelation meets its null."
    ),
    "rhythm": Measure(
        "Period", "tokens",
        "Of a swing of the residual stream whose power rises above that of all slower change and "
        "of shuffled tokens; a dash where there is none, as in most layers of most texts.",
    ),
    "change_correlation": Measure(
        "Change of state and activation", "ρ, −1 to 1",
        "Spearman over tokens of ‖hₜ − hₜ₋₁‖ and the change of the residual stream.",
    ),
    "ssm_attention": Measure(
        "SSM and attention", "ρ, −1 to 1",
        "Spearman over tokens of Δ, ‖B‖ or ‖C‖ with the attention that a token receives from "
        "later ones, pays to earlier ones, or the distance it looks back. Attention is of gates; "
        "given is what later tokens get of it, |α u|.",
    ),
    "spread": Measure(
        "Spread between texts", "ratio",
        "Standard deviation of the texts' means over that expected if all had one mean, "
        "autocorrelation within the texts accounted for. Near 1 the texts do not differ; with "
        "three texts chance alone gives 0.16 to 1.92.",
    ),
    "overlap": Measure(
        "Shared neurons", "count",
        "Neurons on the lists of the most important of two texts, mean over pairs of texts, beside "
        "what chance gives.",
    ),
    "importance": Measure(
        "Importance", "unit of the method",
        "How much the method gives a neuron: a channel at the output projection's input. A "
        "neuron's number in one layer has no counterpart in another.",
    ),
    "attention_weighted": Measure(
        "Attention-weighted", "activation",
        "Activations averaged by the row-normalised |α| of each query.",
    ),
    "gradient_guided": Measure(
        "Gradient-guided", "activation × gradient",
        "Activation times the gradient of the target, by default the log-probability of the next "
        "token at the last position. First order.",
    ),
    "rollout": Measure(
        "Rollout", "activation",
        "Activations averaged by the product of the layers' row-normalised |α|, mixed with the "
        "identity by the mixer's share of the residual norm.",
    ),
    "kurtosis": Measure(
        "Kurtosis", "excess",
        "Of a neuron's value over tokens: 0 for a normal distribution, large where few tokens "
        "carry it.",
    ),
    "top_tokens": Measure(
        "Top tokens", "activation",
        "Tokens at which the neuron's own activation is largest in magnitude, with its value.",
    ),
    "ablation": Measure(
        "Agreement with ablation", "ρ, −1 to 1",
        "Spearman of a method's importance with the change of the target when a neuron is set to "
        "its mean, to zero, or to its values on another text, over random neurons. Gradient-guided "
        "linearises the first: an agreement there says that neurons act linearly.",
    ),
    "faithfulness": Measure(
        "ΔAF", "logits",
        "Area between the curves of the target as the least and as the most relevant tokens are "
        "taken away first: larger is more faithful. Random order gives about 0. It depends on what "
        "stands in for a token, so that it compares with no figure made otherwise.",
    ),
    "conservation": Measure(
        "Conservation error", "relative",
        "|Σ relevance − target| / |target|, median over texts.",
    ),
}  # fmt: skip
"""By key: what tables, maps and methods of the report refer to."""

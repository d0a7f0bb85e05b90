"""The findings of the main analysis on results of noise, and of a structure put into them."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import binom

from analysis_pipelines.key_findings import _pseudo_values, key_findings
from suite_plumbing.result_reading import read
from token_statistics.autocorrelation import mean_autocorrelation
from token_statistics.channel_correlations import PooledActivations, cross_layer_correlation
from token_statistics.cross_text_consistency import neuron_agreement
from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_LITTLE,
    Finding,
    judged,
)
from token_statistics.time_shift_nulls import spearman_shift_test
from token_statistics.twin_bounds import TWIN_KINDS

LAYERS = [0, 3, 6, 9, 12]
TEXTS = 12
LENGTH = 80
D_MODEL, D_INNER, D_STATE = 6, 12, 4

SHAPES = {"A": [D_INNER, D_STATE], "B": [1, LENGTH, D_STATE], "C": [1, LENGTH, D_STATE],
          "D": [D_INNER], "delta": [1, LENGTH, D_INNER]}  # fmt: skip

SERIES = (
    "delta_distance", "delta_received", "delta_given", "B_norm_received", "B_norm_given",
    "C_norm_paid",
)  # fmt: skip

# What is planted in the results, as the claim that it makes true.
PLANTED = {
    "Some channels of successive layers are strongly correlated",
    "Delta goes with the activity of neurons within a text",
    "Tokens of larger delta look further back",
    "Tokens of larger delta receive more attention",
    "Tokens of larger delta give later ones more",
    "SSM components go with attention: B",
    "SSM components go with what is given: B",
    "SSM components go with attention: C",
    "SSM components go with attention: half-life",
    "Where the state changes much, the residual stream does too",
    "Few pairs of channels carry the correlation between layers",
    "Correlation between layers is sparse but strong",
    "The largest correlations between layers reach 0.99",
    "Neighbouring tokens are alike in the residual stream",
    "Memory modulation varies across layers",
    "How far back attention reaches depends on the layer",
    "Memory persistence varies across layers",
    "Layers have variance patterns of their own",
    "Neurons by attention_weighted show patterns that depend on the layer",
    "Neurons by gradient_guided show patterns that depend on the layer",
    "Neurons by rollout show patterns that depend on the layer",
    "Attention reaches furthest in middle layers",
    "Attention reaches less far in early layers than in middle ones",
    "The same neurons are important in every text",
    "Activation increases in deeper layers",
}


class Drawn:
    """Statistics of seeded noise, of `tie` times one side in the other where something is tied."""

    def __init__(self, seed, tie):
        self.rng, self.tie = np.random.default_rng(seed), tie

    def tied(self):
        x, noise = self.rng.standard_normal((2, LENGTH))
        y = self.tie * x + np.sqrt(1 - self.tie**2) * noise
        return spearman_shift_test(x, y, [LENGTH], num_shifts=39).to_dict()

    def by_layer(self, level):
        """A number that differs from layer to layer, the more the more is tied."""
        return float(self.rng.standard_normal() + 30 * self.tie * level)

    def patterns(self):
        x = self.rng.standard_normal((LENGTH, D_MODEL))
        x[1:] += self.tie * x[:-1]
        series = mean_autocorrelation(x, [LENGTH], 2, num_shuffles=39)
        plain = json.loads(json.dumps(series._asdict()))
        return {"autocorrelation": plain, "change_correlation": self.tied()}

    def pairs(self):
        x, y = self.rng.standard_normal((2, LENGTH * TEXTS, 40))
        y[:, :2] += 200 * self.tie * x[:, :2]  # 2 of 1600 pairs
        lengths = (LENGTH,) * TEXTS
        found = cross_layer_correlation(
            PooledActivations(x, lengths), PooledActivations(y, lengths), stream="mixer"
        )
        return found.to_dict()

    def agreement(self):
        return agreement(self.rng, self.tie, TEXTS)


def agreement(rng, tie, texts):
    common = rng.random(200)
    lists = [common * tie + rng.random(200) * (1 - tie) for _ in range(texts)]
    return neuron_agreement(lists).to_dict()


def text_results(drawn):
    levels = {0: 1, 3: 3, 6: 4, 9: 2, 12: 0}  # a peak in the middle
    layers = {f"layer_{i}": (i, levels[i]) for i in LAYERS}

    def each(make):
        return {name: make(*at) for name, at in layers.items()}

    methods = ("attention_weighted", "gradient_guided", "rollout")
    analysis = {
        "ssm_components": each(
            lambda _, level: {
                "shapes": SHAPES,
                "delta": {"mean": drawn.by_layer(level)},
                "delta_memory": {"persistence": drawn.by_layer(level), "selectivity": 0.1},
                "delta_activation": {"mean_abs": drawn.tied()},
            }
        ),
        "attention_data": each(
            lambda _, level: {"statistics": {"mean_distance": {"mean": drawn.by_layer(level)}}}
        ),
        "neurons": {
            m: each(lambda _, level: {"concentration": {"gini": drawn.by_layer(level)}})
            for m in methods
        },
        "layer_activations": each(
            lambda _, level: {"num_channels": D_MODEL, "mixer_norm": {"std": drawn.by_layer(level)}}
        ),
        "recursive_patterns": each(lambda *_: drawn.patterns()),
        "ssm_attention_correlations": each(
            lambda *_: {
                "tokens": {name: drawn.tied() for name in SERIES},
                "channels": {"half_life_distance": drawn.tied()},
            }
        ),
        "neuron_evolution": {
            "attention_weighted": {"rms": each(lambda layer, _: drawn.by_layer(layer))}
        },
    }
    return {"text": "", "analysis": analysis}


def results_of(seed, tie):
    drawn = Drawn(seed, tie)
    names = [f"layer_{a}_to_{b}" for a, b in itertools.pairwise(LAYERS)]
    return {
        "self_check": {
            "replay_error": {
                f"text_{i}": {f"layer_{layer}": 1e-7 for layer in LAYERS} for i in range(TEXTS)
            },
            "replay_tolerance": 1e-5,
        },
        "individual_texts": {f"text_{i}": text_results(drawn) for i in range(TEXTS)},
        "cross_text_analysis": {
            "neuron_consistency": {
                f"layer_{layer}": {
                    m: drawn.agreement() for m in ("attention_weighted", "gradient_guided")
                }
                for layer in LAYERS
            },
            "correlation_patterns": {"mixer": {name: drawn.pairs() for name in names}},
        },
    }


@pytest.fixture(scope="module")
def noise():
    return results_of(1, 0.0)


@pytest.fixture(scope="module")
def planted():
    return results_of(2, 0.9)


@pytest.fixture(scope="module")
def noise_findings(noise):
    """Findings on results of independent noise, of five seeds; none is changed by a test."""
    return [key_findings(noise), *(key_findings(results_of(seed, 0.0)) for seed in (4, 5, 6, 11))]


def verdicts(findings):
    return {finding.claim: finding.verdict for finding in findings}


def test_noise_supports_nothing_that_could_be_learned(noise_findings):
    tried, supported = 0, []
    for found in noise_findings[:4]:
        findings = [f for f in found if f.learned and f.value is not None]
        # Selectivity is 0.1 in every text here: that delta varies at all is so by construction.
        findings = [f for f in findings if f.claim != "Delta varies over time: memory is dynamic"]
        supported += [f.claim for f in findings if f.verdict == ABOVE_CHANCE]
        tried += len(findings)
    assert tried == 4 * 29
    # At 5 % each: more than this happen with a probability of 0.1 %.
    assert len(supported) <= binom.ppf(0.999, tried, 0.05)


def test_planted_structure_is_found(planted):
    found = verdicts(key_findings(planted))
    assert {claim for claim in PLANTED if found[claim] != ABOVE_CHANCE} == set()
    # The structure has no late memory, and the methods agree in their texts alike.
    assert found["Attention reaches furthest in late layers"] == NOT_SUPPORTED
    assert found["The attention-weighted method is the most consistent"] == NOT_SUPPORTED


def test_what_the_shapes_say(noise):
    found = {finding.claim: finding for finding in key_findings(noise)}
    width = found["Delta has d_model entries a token"]
    assert (width.verdict, width.value) == (NOT_SUPPORTED, D_INNER)
    state = found["A is a non-square matrix that compresses the state"]
    assert (state.verdict, state.value) == (NOT_SUPPORTED, D_INNER * D_STATE / D_MODEL)
    captured = found["Delta, A, B, C, D and the states are captured in every layer"]
    assert (captured.verdict, captured.hits) == (SUPPORTED, TEXTS * len(LAYERS))


def test_every_finding_is_read_from_where_it_says(planted):
    for finding in key_findings(planted):
        if finding.value is not None:
            assert read(planted, finding.path), finding.claim


def test_findings_are_small_strict_json(planted):
    rows = [finding.to_dict() for finding in key_findings(planted)]
    written = json.dumps(rows, allow_nan=False)
    assert len(written) < 60_000
    assert [Finding.from_dict(row).to_dict() for row in json.loads(written)] == rows


def test_a_model_no_better_than_its_twins_has_no_findings(planted, noise_findings):
    findings = key_findings(planted)
    alike = judged(findings, {kind: [findings] * 3 for kind in TWIN_KINDS})
    assert {f.claim for f in alike if f.above_chance and f.learned} == set()
    structure = [f for f in alike if not f.learned]
    assert [f.twins for f in structure] == [()] * 3
    far = judged(findings, dict.fromkeys(TWIN_KINDS, noise_findings))
    assert verdicts(far)["Some channels of successive layers are strongly correlated"] == SUPPORTED
    assert all((f.adjusted_p or 0) >= (f.p_value or 1) for f in far if f.num_claims)


@pytest.mark.parametrize("results", [{}, {"individual_texts": {"text_0": {"analysis": {}}}}])
def test_without_results_every_claim_is_open(results):
    findings = key_findings(results)
    assert {finding.verdict for finding in findings} == {TOO_LITTLE}
    assert all(finding.reason for finding in findings)


def test_failed_steps_leave_their_claims_open(noise):
    failed = json.loads(json.dumps(noise))
    for text in failed["individual_texts"].values():
        text["analysis"]["recursive_patterns"] = {"error": {"type": "E", "message": "no"}}
        text["analysis"]["attention_data"] = {"skipped": "needs the forward pass"}
    failed["cross_text_analysis"]["correlation_patterns"] = {"reason": "needs two layers"}
    found = verdicts(key_findings(failed))
    for claim in (
        "Neighbouring tokens are alike in the residual stream",
        "How far back attention reaches depends on the layer",
        "Few pairs of channels carry the correlation between layers",
        "Channels of successive layers are correlated on average",
    ):
        assert found[claim] == TOO_LITTLE
    assert found["SSM components go with attention: B"] == NOT_SUPPORTED


def small_effects(results):
    """The planted results with every rank correlation at a twentieth, its null as narrow."""
    small = json.loads(json.dumps(results))
    for text in small["individual_texts"].values():
        for part in text["analysis"]["ssm_attention_correlations"].values():
            for test in (*part["tokens"].values(), *part["channels"].values()):
                for name in ("value", "null_low", "null_high", "null_mean"):
                    test[name] = None if test[name] is None else test[name] / 20
        for part in text["analysis"]["ssm_components"].values():
            part["delta"]["mean"] = 1 + part["delta"]["mean"] * 1e-4
            part["delta_memory"]["selectivity"] = 0.001
    return small


def test_an_effect_too_small_for_a_name_is_not_supported_whatever_its_null(planted):
    found = {f.claim: f for f in key_findings(small_effects(planted))}
    for claim in (
        "Tokens of larger delta receive more attention",
        "SSM components go with what is given: B",
        "Memory modulation varies across layers",
        "Delta varies over time: memory is dynamic",
    ):
        assert found[claim].verdict == NOT_SUPPORTED
    rho = found["Tokens of larger delta receive more attention"]
    assert rho.value is not None
    assert rho.null is not None
    assert rho.value > rho.null[1]
    assert rho.rule.endswith("and at least 0.1 correlation")
    order = found["Memory modulation varies across layers"]
    assert order.value is not None
    assert order.null is not None
    assert order.value > order.null[1]
    assert "differs from the lowest to the highest layer by" in order.statistic


def test_dense_correlation_is_not_called_sparse_however_few_pairs_are_significant(planted):
    """Every pair alike: the share of significant ones depends on the tokens, the ratio does not."""
    rng = np.random.default_rng(5)
    for length in (60, 800):
        common = rng.standard_normal((length, 1))
        x, y = (0.6 * common + 0.8 * rng.standard_normal((length, 40)) for _ in range(2))
        parts = (length // 2, length // 2)
        pair = cross_layer_correlation(
            PooledActivations(x, parts), PooledActivations(y, parts), stream="mixer"
        ).to_dict()
        pairs = {f"layer_{i}_to_{i + 1}": pair for i in range(4)}
        results = {"cross_text_analysis": {"correlation_patterns": {"mixer": pairs}}}
        found = verdicts(key_findings(results))
        assert found["Few pairs of channels carry the correlation between layers"] == NOT_SUPPORTED
        assert found["Channels of successive layers are correlated on average"] == ABOVE_CHANCE


def test_one_text_cannot_tell_what_layers_share_from_position():
    rng = np.random.default_rng(6)
    common = rng.standard_normal((400, 1))
    x, y = (common + 0.1 * rng.standard_normal((400, 4)) for _ in range(2))
    for lengths, verdict in (((400,), TOO_LITTLE), ((200, 200), ABOVE_CHANCE)):
        pair = cross_layer_correlation(
            PooledActivations(x, lengths), PooledActivations(y, lengths), stream="mixer"
        ).to_dict()
        pairs = {f"layer_{i}_to_{i + 1}": pair for i in range(8)}
        results = {"cross_text_analysis": {"correlation_patterns": {"mixer": pairs}}}
        found = {one.claim: one for one in key_findings(results)}
        claim = found["Channels of successive layers are correlated on average"]
        assert claim.verdict == verdict
        assert verdict != TOO_LITTLE or "position in a text" in (claim.reason or "")


def test_ten_copies_of_a_text_are_one_wherever_texts_are_counted(planted):
    texts = {f"text_{i}": planted["individual_texts"][f"text_{min(i, 1)}"] for i in range(12)}
    origins = {f"text_{i}": {"group": f"text_{min(i, 1)}"} for i in range(12)}
    copies = {**planted, "individual_texts": texts}
    found = {f.claim: f for f in key_findings({**copies, "provenance": {"texts": origins}})}
    as_if = {f.claim: f for f in key_findings(copies)}
    ranked = "Memory modulation varies across layers"
    assert found[ranked].reason == "2 independent texts; a claim over texts needs 12"
    assert as_if[ranked].verdict == ABOVE_CHANCE
    tied = "Tokens of larger delta receive more attention"
    # One place of each text: at most two texts' here.
    assert found[tied].n <= 2 * len(LAYERS) < 10 * len(LAYERS) < as_if[tied].n
    assert (found[tied].chance_p or 0) > (as_if[tied].chance_p or 1)


SAME = "The same neurons are important in every text"
CONSISTENT = "The attention-weighted method is the most consistent"


def consistency(layers, parts):
    """Findings on layers whose agreements are ``parts`` by method."""
    section = {f"layer_{i}": parts(i) for i in range(layers)}
    results = {"cross_text_analysis": {"neuron_consistency": json.loads(json.dumps(section))}}
    return {finding.claim: finding for finding in key_findings(results)}


def test_what_is_said_of_every_text_needs_texts():
    """Of 2 or 3 texts, layers that agree are no sample: they read the same."""
    rng = np.random.default_rng(0)
    for texts in (2, 3, 11):
        found = consistency(
            13,
            lambda _, texts=texts: {
                "attention_weighted": agreement(rng, 0.9, texts),
                "rollout": agreement(rng, 0.0, texts),
            },
        )
        for claim in (SAME, CONSISTENT):
            assert found[claim].verdict == TOO_LITTLE
            assert f"{texts} independent texts" in (found[claim].reason or "")


def test_layers_that_read_the_same_texts_say_it_once():
    """The p is that of most of the layers, however many: not their product, nor a count of them."""
    rng = np.random.default_rng(1)
    one = {"attention_weighted": agreement(rng, 0.9, 12)}
    # Such lists that chance gives them once in 20 times.
    one["attention_weighted"]["shared_p_value"] = 0.05
    for layers in (1, 13):
        assert consistency(layers, lambda _: one)[SAME].chance_p == pytest.approx(
            0.05 * layers / (layers // 2 + 1)
        )


def test_one_neuron_in_twenty_is_not_the_same_neurons():
    """Random lists of 12 texts share none: one that they share is beyond chance, and 19 differ."""
    rng = np.random.default_rng(2)
    lists = rng.random((12, 200))
    lists[:, 7] = 2.0
    found = consistency(
        5, lambda _: {"attention_weighted": neuron_agreement(list(lists)).to_dict()}
    )
    assert found[SAME].verdict == NOT_SUPPORTED
    assert found[SAME].value == pytest.approx(1 / 20)
    assert (found[SAME].hits, found[SAME].n) == (5, 5)
    assert found[SAME].chance_p == 1e-6  # what is counted is 1e-10, were the null exact so far out
    assert "and at least 0.5 of the list" in found[SAME].rule


def test_the_consistency_of_methods_is_compared_over_texts():
    rng = np.random.default_rng(3)
    for tie, verdict in ((0.6, ABOVE_CHANCE), (0.0, NOT_SUPPORTED)):
        parts = {
            "attention_weighted": agreement(rng, tie, 12),
            "gradient_guided": agreement(rng, 0.0, 12),
            "rollout": agreement(rng, 0.0, 12),
        }
        found = consistency(3, lambda _, parts=parts: parts)[CONSISTENT]
        assert (found.verdict, found.n, found.unit) == (verdict, 12, "texts")
        gains = [
            parts["attention_weighted"]["mean_spearman"] - parts[other]["mean_spearman"]
            for other in ("gradient_guided", "rollout")
        ]
        assert found.value == pytest.approx(min(gains))
    # More consistent in every text by 0.05 is beyond chance and no size worth a name.
    slight = {m: dict(parts["rollout"]) for m in parts}
    slight["attention_weighted"]["spearman_by_text"] = [
        x + 0.05 for x in parts["rollout"]["spearman_by_text"]
    ]
    found = consistency(3, lambda _: slight)[CONSISTENT]
    assert found.interval is not None
    assert found.interval[0] > 0
    assert found.verdict == NOT_SUPPORTED


def test_pseudo_values_spread_as_a_mean_over_pairs_does():
    """Their standard error against the spread of the mean over pairs, drawn 400 times."""
    rng = np.random.default_rng(4)
    means, errors = [], []
    for _ in range(400):
        x = 1.0 + rng.standard_normal(15)
        table = np.outer(x, x)
        by_text = (table.sum(0) - table.diagonal()) / 14
        values = _pseudo_values(by_text)
        mean = (table.sum() - table.trace()) / (15 * 14)
        assert values.mean() == pytest.approx(mean)
        means.append(mean)
        errors.append(values.var(ddof=1) / 15)
    # The jackknife's variance is a little too large; 400 draws know it to 7 %.
    assert 0.9 < np.sqrt(np.mean(errors)) / np.std(means) < 1.25


def test_a_rise_too_small_for_a_name_is_not_supported(planted):
    rising = json.loads(json.dumps(planted))
    for text in rising["individual_texts"].values():
        rms = text["analysis"]["neuron_evolution"]["attention_weighted"]["rms"]
        for name in rms:
            rms[name] = 1 + 1e-3 * int(name.removeprefix("layer_"))
    found = {f.claim: f for f in key_findings(rising)}["Activation increases in deeper layers"]
    assert found.value == pytest.approx(1.0)
    assert found.verdict == NOT_SUPPORTED
    assert "larger in the deeper half by 0.00895 of the mean" in found.statistic


def test_few_pairs_carry_nothing_where_the_largest_is_next_to_nothing(planted):
    faint = json.loads(json.dumps(planted))
    for pair in faint["cross_text_analysis"]["correlation_patterns"]["mixer"].values():
        pair["max_abs"] |= {"value": 0.08, "null_low": 0.01, "null_high": 0.05, "null_mean": 0.04}
        pair["mean_abs"] |= {"value": 0.03, "null_mean": 0.03}
    found = {f.claim: f for f in key_findings(faint)}
    few = found["Few pairs of channels carry the correlation between layers"]
    assert (few.verdict, few.value) == (NOT_SUPPORTED, 0.0)

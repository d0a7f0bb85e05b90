"""Titles of the figures: what each shows of these results, as a sentence with its numbers.

A title says what stands in the results and no more; where the numbers are missing it is the plain
name of what is drawn. Over texts a number is the middle one of the texts, unless it is said to be
another. What lies within its null or interval, or has none, is not told as a fact.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from result_views.glossary import method_name
from result_views.layer_names import layer_names
from suite_plumbing.result_reading import (
    Section,
    entry_at,
    failure,
    layers_of,
    text_sections,
    usable,
)
from token_statistics.findings import VERDICTS
from token_statistics.smallest_effects import KL_FLOOR
from token_statistics.verdict_rules import apart_from_position


def ssm_title(results: Section) -> str:
    """Which layer's states keep a token longest, and which shortest."""
    by_layer = _middle_by_layer(results, "ssm_components", "dynamics", "half_life", "median")
    title = _longest_and_shortest(
        by_layer, "SSM components by layer", "Layer {} keeps a token longest: median half-life {}"
    )
    tokens = [len(part.get("tokens", ())) for part in results.get("individual_texts", {}).values()]
    if len(by_layer) < 2 or not 0 < max(tokens) < max(by_layer.values()):
        return title
    return f"{title}, by A and the mean Δ; no text is longer than {max(tokens):,}"


def attention_title(results: Section) -> str:
    """How far back half of the queries of all texts read, the median of their mean distances: the
    layer where that is furthest, and the one where it is least."""
    by_layer: dict[int, list[Any]] = {}
    for section in usable(text_sections(results, "attention_data")).values():
        for layer, part in layers_of(section):
            queries = entry_at(part, "by_query", "mean_distance") or [[]]
            by_layer.setdefault(layer, []).extend(queries[0])
    return _longest_and_shortest(
        _middle(by_layer), "Implicit attention",
        "Half of layer {}'s queries have a mean distance of {} or more"
    )  # fmt: skip


def neuron_title(results: Section) -> str:
    """How often neurons of successive layers go together beyond their null."""
    steps = [
        step
        for section in usable(text_sections(results, "neuron_evolution")).values()
        for part in section.values()
        for step in part["transitions"]
    ]
    tests = [step["attention_agreement"] for step in steps]
    return _above(
        tests, "Neurons across layers",
        "Neurons of successive layers attend alike above their null in {} pairs of layers by texts "
        "and methods"
    )  # fmt: skip


def correlation_title(results: Section) -> str:
    """How often mixers of successive layers are correlated beyond their null."""
    sections = usable(text_sections(results, "layer_correlations")).values()
    tests = [pair["mean_abs"] for section in sections for pair in section["mixer"].values()]
    return _above(
        tests, "Correlations across layers, over time, and with attention",
        "Mixers of successive layers are correlated above their null in {} pairs of layers by texts"
    )  # fmt: skip


def step_title(rows: Sequence[Section], key: str, sentence: str) -> str:
    """The sentence with the layer of the largest value of a step's table, and that of the least."""
    by_layer = {row["layer"]: row[key] for row in rows if row[key] is not None}
    return _longest_and_shortest(by_layer, f"{key[:1].upper()}{key[1:]} by layer", sentence)


def consistency_title(results: Section) -> str:
    """In how many layers every two texts share more important neurons than chance gives."""
    section = results.get("cross_text_analysis", {}).get("neuron_consistency", {})
    found = [] if failure(section) else [part for _, part in layers_of(section)]
    p_values = [method["largest_p_value"] for part in found for method in part.values()]
    known = [p_value for p_value in p_values if p_value is not None]
    if not known:
        return "Consistency across texts"
    shared = f"{sum(p <= 0.05 for p in known)} of {len(known)}"
    return f"Texts share important neurons beyond chance in {shared} layers by methods"


def change_title(results: Section) -> str:
    """How often state and activation change together beyond their null."""
    sections = usable(text_sections(results, "recursive_patterns")).values()
    tests = [part["change_correlation"] for section in sections for _, part in layers_of(section)]
    return _above(
        tests, "Change of state against change of activation",
        "State and activation change together above the null in {} layers of texts"
    )  # fmt: skip


def activation_title(section: Section, methods: Sequence[str]) -> str:
    """In which layer the first method's neurons are most active."""
    plain = "Neuron activation patterns"
    if failure(section) or not methods:
        return plain
    values = {
        layer: [text["activation_rms"]["median"] for text in part[methods[0]].values()]
        for layer, part in layers_of(section)
    }
    middle = _middle(values)
    if len(middle) < 2:
        return plain
    most, least = max(middle, key=middle.__getitem__), min(middle, key=middle.__getitem__)
    return (
        f"Neurons ({method_name(methods[0])}) are most active in layer {most} (median RMS "
        f"{middle[most]:.2g}), least in {least} ({middle[least]:.2g})"
    )


def memory_title(rows: Sequence[Section]) -> str:
    """Which layer reads back furthest, and which least, by the memory kernel of all texts; and
    where it is the texts that end there."""
    lags = {row["layer"]: row["kernel_lag_90"] for row in rows}
    known = {layer: lag for layer, lag in lags.items() if lag is not None}
    said = _longest_and_shortest(
        known, "Memory effects", "Layer {}: 90 % of attention lies within {}"
    )
    if len(known) < 2:
        return said
    ends = {max(known, key=known.__getitem__), min(known, key=known.__getitem__)}
    short = limited_layers(rows) & ends
    return f"{said}, limited by the texts' length{_if_one(short)}" if short else said


def limited_layers(rows: Sequence[Section]) -> set[int]:
    """Layers whose memory kernel reaches as far as the texts let it."""
    return {row["layer"] for row in rows if row.get("kernel_limited_by_text")}


def _if_one(layers: set[int]) -> str:
    """Which layer, where it is not both of two."""
    return f" in {layer_names(sorted(layers))}" if len(layers) == 1 else ""


def recursion_title(section: Section) -> str:
    """In how many layers the state and the mixer's output change together beyond the null."""
    tests = [] if failure(section) else [part["mixer"]["change_correlation"]
                                         for _, part in layers_of(section)]  # fmt: skip
    return _above(
        tests, "Recursive patterns",
        "State and mixer output change together above the null in {} layers"
    )  # fmt: skip


def cross_layer_title(section: Section) -> str:
    """How many pairs of successive layers have mixers correlated beyond their null; of one
    independent text no number, for position alone may do that."""
    pairs = [] if failure(section) else section["mixer"].values()
    return _above(
        [apart_from_position(pair, "mean_abs") for pair in pairs], "Cross-layer correlations",
        "Mixers are correlated above their null in {} pairs of successive layers"
    )  # fmt: skip


def ssm_neuron_title(section: Section) -> str:
    """In how many layers delta goes with the neurons' activity beyond its null."""
    tests = [] if failure(section) else [part["observed"]["mean_abs"]
                                         for _, part in layers_of(section)]  # fmt: skip
    return _above(
        tests, "SSM and neurons", "Δ goes with the activity of neurons above its null in {} layers"
    )


def causal_title(section: Section) -> str:
    """What the erased states of the layers cost at the next token, and later; or a hidden token."""
    for kind, title in _CAUSAL_TITLES.items():
        bins = entry_at(section, kind, "together", "bins") or []
        known = [one for one in bins if one["kl"] is not None]
        if known:
            layers = entry_at(section, kind, "together", "layers")
            bare = any(one.get("kl_low") is None for one in (known[0], known[-1]))
            said = title.format(_states_of(layers)) + _first_and_last(known)
            return f"{said}; no interval" if bare else said
    return "Causal memory"


_CAUSAL_TITLES = {
    "reset": "With {} erased, KL is ",
    "knockout": "With one token hidden from {}, KL is ",
}


def _states_of(layers: Sequence[int] | None) -> str:
    return f"the states of {layer_names(layers)}" if layers else "every state"


def _first_and_last(bins: Sequence[Section]) -> str:
    """KL in the first and in the last bin of lags."""
    first, last = bins[0], bins[-1]
    return (
        f"{_nats(first['kl'])} nats at lag {first['first_lag']}, "
        f"{_nats(last['kl'])} at lags {last['first_lag']} to {last['last_lag']}"
    )


def _nats(kl: float) -> str:
    """A KL, or that there is no effect."""
    return f"below {KL_FLOOR:g}" if kl < KL_FLOOR else f"{kl:.2g}"


def comparison_title(results: Section) -> str:
    """Mean distance of each model's attention, over queries and texts, least to most over its
    layers."""
    parts = []
    for name, sites in results["attention"].items():
        found = [site["mean_distance"]["value"] for site in sites.values()]
        known = [_two_digits(value) for value in sorted(x for x in found if x is not None)]
        if known:
            ends = known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
            parts.append(f"{name} {ends}")
    said = f"Mean distance of attention over its layers, {results['unit']}"
    return f"{said}: {'; '.join(parts)}" if parts else "Models side by side"


def long_memory_title(readings: Sequence[Section]) -> str:
    """What the memory beyond the widest window is worth, where an interval sets it apart from 0."""
    known = [row for row in readings if row["difference"] is not None]
    if not known:
        return "A long text read through"
    row = known[-1]
    change, low, high = row["difference"], row["low"], row["high"]
    words = f"beyond{row['reading'].replace('windows of', '')} tokens"
    if low is None or high is None:
        more = "higher" if change > 0 else "lower"
        much = f"{abs(change):.2g} nats a token {more}"
        return f"Without memory {words} the loss of this text is {much}; no interval"
    if low <= 0 <= high:
        ends = f"{change:+.2g} nats a token, interval {low:+.2g} to {high:+.2g}"
        return f"Memory {words} is not found to help or to harm: {ends}"
    return f"Memory {words} {'saves' if change > 0 else 'costs'} {abs(change):.2g} nats a token"


def finding_title(rows: Sequence[Section]) -> str:
    """How many claims there are, and how many have which verdict."""
    if not rows:
        return "Findings"
    counts = Counter(row["verdict"] for row in rows)
    ordered = sorted(counts, key=lambda v: VERDICTS.index(v) if v in VERDICTS else len(VERDICTS))
    return f"{len(rows)} claims: " + "; ".join(f"{counts[one]} {one}" for one in ordered)


def _middle_by_layer(results: Section, step: str, *path: str) -> dict[int, float]:
    """The middle one of the texts' values, by layer."""
    values: dict[int, list[Any]] = {}
    for section in usable(text_sections(results, step)).values():
        for layer, part in layers_of(section):
            values.setdefault(layer, []).append(entry_at(part, *path))
    return _middle(values)


def _middle(values: dict[int, list[Any]]) -> dict[int, float]:
    known = {k: [x for x in found if x is not None] for k, found in values.items()}
    return {layer: statistics.median(found) for layer, found in known.items() if found}


def _longest_and_shortest(by_layer: dict[int, float], plain: str, sentence: str) -> str:
    """The sentence with the layer of the largest value, and that of the smallest in brackets."""
    if len(by_layer) < 2:
        return plain
    most = max(by_layer, key=by_layer.__getitem__)
    least = min(by_layer, key=by_layer.__getitem__)
    return (
        sentence.format(most, f"{_two_digits(by_layer[most])} tokens")
        + f" (layer {least}: {_two_digits(by_layer[least])})"
    )


def _two_digits(count: float) -> str:
    """1,300 for 1312: no more digits than another text would leave."""
    rounded = float(f"{count:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _above(tests: Iterable[Section], plain: str, sentence: str) -> str:
    """The sentence with how many of the tests lie above their null; `plain` without any."""
    known = [test for test in tests if test["value"] is not None and test["null_high"] is not None]
    if not known:
        return plain
    above = sum(test["value"] > test["null_high"] for test in known)
    return sentence.format(f"{above} of {len(known)}")

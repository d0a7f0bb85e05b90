"""The report of the memory analysis in Markdown, written from its results alone.

Every sentence is generated from a row of the results and carries its number with its null or
interval; a claim that the data do not support is reported as not found. No number is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from result_views.beside_nulls import INSIDE, standing_of
from result_views.checks import check_line, failure_lines
from result_views.glossary import method_name
from result_views.report.markdown import claim_groups, escape_markdown, markdown_table
from token_statistics.findings import Finding, compared, number
from token_statistics.smallest_effects import KL_FLOOR, SMALLEST_EFFECTS

Row = Mapping[str, Any]

_COLUMNS = {
    "mean_delta": "mean Δ",
    "median_half_life": "slowest half-life (tokens)",
    "tokens_to_half": "until half is left (tokens)",
    "persistence": "kept per token",
    "kernel_mean_lag": "kernel, mean lag (tokens)",
    "state_last_over_first": "norm, last / first quarter",
    "state_participation_ratio": "state rank",
    "reset_kl": "reset, KL (nats)",
    "knockout_kl": "hidden source, KL (nats)",
    "knockout_kernel_agreement": "agreement with kernel",
    "ablation_effect": "ablation, change of ln p",
}


def memory_report(results: Row) -> str:
    """The report as one Markdown text, from results live or loaded from JSON."""
    found = [Finding.from_dict(row) for row in results["findings"]]
    parts = [
        *_header(results),
        *_check(results),
        "## Claims, and what these texts say to them",
        "",
        *claim_groups(found),
        *findings_table(found),
        "## Memory by layer",
        "",
        *_layer_table(results["memory_by_layer"]),
        *_each_layer(results),
        "## What the predictions lose",
        "",
        *_causal(results["memory"].get("causal_memory", {})),
        *_passed_on(results["memory"].get("passing", {})),
        "## How to read this",
        "",
        *_NOTES,
    ]
    return "\n".join(parts) + "\n"


def _header(results: Row) -> list[str]:
    meta = results["analysis_metadata"]
    model = results["provenance"]["model"].get("id") or "unnamed"
    layers = ", ".join(str(layer) for layer in meta["layer_indices"])
    return [
        "# Memory recursion",
        "",
        f"Model `{model}`; {meta['num_tokens']} tokens of {meta['num_texts']} text(s); "
        f"layers {layers}. Memory was taken away at up to {meta['num_positions']} tokens of each "
        f"text, and {meta['num_ablations']} random neurons of each layer were ablated.",
        "",
        f"Supported claims exceed {meta['num_twins']} untrained twins of each kind: fresh weights "
        "(what architecture and initialisation give) and permuted weights (what the scale of the "
        "trained weights gives)."
        if meta["num_twins"]
        else "No untrained model stands beside the claims: some may hold without any training.",
        "",
    ]


def _check(results: Row) -> list[str]:
    missing = [f"- {escape_markdown(line)}" for line in failure_lines(results)]
    return [check_line(results, beyond="**beyond**"), "", *missing, *([""] if missing else [])]


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Lines of a Markdown table: claim, value, what it is compared with, verdict."""
    body = [
        [
            row.claim,
            "" if row.value is None else number(row.value),
            "" if row.value is None else compared(row),
            row.verdict,
            row.rule,
        ]
        for row in findings
    ]
    return markdown_table(["claim", "value", "compared with", "verdict", "supported if"], body)


def _layer_table(rows: Sequence[Row]) -> list[str]:
    body = [[str(row["layer"]), *(_cell(row, name) for name in _COLUMNS)] for row in rows]
    return markdown_table(["layer", *_COLUMNS.values()], body)


def _cell(row: Row, name: str) -> str:
    """A number of a layer; what only the text's length limits is marked."""
    limited = name.startswith("kernel_") and row.get("kernel_limited_by_text")
    if name == "tokens_to_half" and row[name] is None:
        return "more than the texts show"
    if name in ("reset_kl", "knockout_kl"):
        return _nats(row[name])
    return f"{number(row[name])} (limited by the text)" if limited else number(row[name])


def _nats(kl: float | None) -> str:
    """A KL, or that there is no effect."""
    return f"below {KL_FLOOR:g}" if kl is not None and kl < KL_FLOOR else number(kl)


def _each_layer(results: Row) -> list[str]:
    sections = results["memory"]
    lines = []
    for row in results["memory_by_layer"]:
        key = f"layer_{row['layer']}"
        parts = {name: sections.get(name, {}).get(key) for name in _SENTENCES}
        sentences = [_delta(row), *(write(parts[name]) for name, write in _SENTENCES.items())]
        lines += [f"- Layer {row['layer']}:", *(f"  - {s}" for s in sentences if s)]
    return [*lines, ""]


def _delta(row: Row) -> str:
    if row["delta_activation"] is None:
        return ""
    tests = [
        {"value": row[name], **{f"null_{end}": row[f"{name}_{end}"] for end in ("low", "high")}}
        for name in ("delta_activation", "delta_memory")
    ]
    activation = _tested(tests[0], one_sided=True)
    return (
        f"Mean |ρ| of Δ with activation over tokens {activation}; ρ over channels of mean Δ "
        f"with what a neuron owes its memory {_tested(tests[1])}."
    )


def _tested(test: Row, *, one_sided: bool = False) -> str:
    """A value beside its null, and whether it lies within; ``one_sided``: or below."""
    if test["value"] is None or test["null_low"] is None:
        return f"undefined ({test.get('reason') or 'no null'})"
    low, high = test["null_low"], test["null_high"]
    within = ": not found" if standing_of(test, one_sided=one_sided) == INSIDE else ""
    return f"{number(test['value'])} (null {number(low)} to {number(high)}{within})"


def _interval(estimate: Row) -> str:
    """An interval, and whether it holds 0; "" for none."""
    low, high = estimate["low"], estimate["high"]
    if low is None:
        return ""
    within = ": not found" if low <= 0 <= high else ""
    return f"interval {number(low)} to {number(high)}{within}"


def _delta_causes(part: Row | None) -> str:
    if not part:
        return ""
    return (
        "ρ over tokens of Δ with the KL when the token is hidden from later ones "
        f"{_tested(part['delta_at_sources'])}."
    )


def _delta_interventions(part: Row | None) -> str:
    if not part or "frozen" not in part:
        return ""
    said = []
    for name, effect in part.items():
        change = effect["loss_change"]
        said.append(f"{name} {number(min(change))} to {number(max(change))}{_cost(change)}")
    texts = len(part["frozen"]["loss_change"])
    return (
        f"Change of the loss (nats a token, over {texts} text(s)) with Δ of this layer "
        f"{', '.join(said)}."
    )


def _cost(change: Sequence[float]) -> str:
    """What changes of the loss by text come to: higher or lower in every text, both, or nothing."""
    least = SMALLEST_EFFECTS["loss"]
    if max(map(abs, change)) < least.value:
        return f": no change of {least.value:g} {least.unit}"
    if min(change) > 0:
        return ": it costs in every text" if len(change) > 1 else ": it costs"
    if max(change) < 0:
        return ": the loss is lower in every text" if len(change) > 1 else ": the loss is lower"
    return ": it costs in some texts, and gains in others"


def _saturation(texts: Row | None) -> str:
    ratios = [
        part["last_over_first"]
        for part in (texts or {}).values()
        if isinstance(part, Mapping) and part["last_over_first"] is not None
    ]
    if not ratios:
        return ""
    within = " (not found to grow)" if min(ratios) <= 1 else ""
    return (
        "The state's norm in the last quarter of a text, over that in the first: "
        f"{number(min(ratios))} to {number(max(ratios))} in {len(ratios)} text(s), 1 without "
        f"growth{within}."
    )


def _recursion(patterns: Row | None) -> str:
    series = (patterns or {}).get("mixer", {}).get("autocorrelation")
    if not series or not series["lags"]:
        return ""
    first = {
        "value": series["mean"][0],
        "null_low": series["null_low"][0],
        "null_high": series["null_high"][0],
    }
    time = series["memory_time"]
    ends = (
        f"it meets its null at lag {time}"
        if time is not None
        else f"it stays above its null up to lag {series['lags'][-1]}"
    )
    return (
        f"Autocorrelation of the mixer's output at lag 1 {_tested(first)}; {ends}."
        f"{_swing(series.get('rhythm') or {})}"
    )


def _swing(rhythm: Row) -> str:
    if rhythm.get("period") is None:
        return ""
    rise, limit = number(rhythm["rise"]), number(rhythm["rise_null_high"])
    return (
        f" It swings with a period of {number(rhythm['period'])} tokens (power rises {rise} times; "
        f"null: up to {limit})."
    )


def _neurons(methods: Row | None) -> str:
    given = [
        f"{method_name(method)} {_tested(part['correlations']['memory_sensitivity'])}"
        for method, part in (methods or {}).items()
        if isinstance(part, Mapping) and "correlations" in part
    ]
    return f"ρ of importance with memory sensitivity: {', '.join(given)}." if given else ""


def _neuron_causes(part: Row | None) -> str:
    if not part or "excess" not in part:
        return ""
    excess = part["excess"]
    ends = _interval(excess) or "no interval for one neuron"
    return (
        f"Setting one of the {len(part['neurons'])} neurons that the gradient-guided method ranks "
        f"first to its mean costs {number(part['kl'])} nats of KL a token, a random neuron of the "
        f"same norm {number(part['random_kl'])}; difference {number(excess['value'])} ({ends})."
    )


def _passed_on(section: Row) -> list[str]:
    """What cutting a layer's write does to the next layer looked at, a line a pair."""
    lines = []
    for name, texts in section.items():
        given = texts.values() if isinstance(texts, Mapping) else ()
        parts = [part for part in given if part["cut"] is not None]
        if parts:
            others = [x for part in parts for x in part["directions"]]
            lines.append(
                f"- {name.replace('_', ' ').capitalize()}: without what the first writes, the "
                f"second mixer's output changes by {_range([part['cut'] for part in parts])} of "
                f"its norm in {len(parts)} text(s), through layers between too; where it writes in "
                f"random directions, without that by {_range(others)}."
            )
    return ["## What layers pass on", "", *lines, ""] if lines else []


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


_SENTENCES: Mapping[str, Callable[[Row | None], str]] = {
    "delta_causes": _delta_causes,
    "delta_interventions": _delta_interventions,
    "state": _saturation,
    "recursive_patterns": _recursion,
    "neuron_memory": _neurons,
    "neuron_causes": _neuron_causes,
}
"""By step: the sentence that one layer's part of it becomes."""


def _causal(section: Row) -> list[str]:
    if "reset" not in section:
        why = section.get("reason") or section.get("error", {}).get("message") or "no result"
        return [f"Not measured: {why}.", ""]
    return [
        *_curves("State reset", section["reset"]),
        *_curves("Source hidden", section["knockout"]),
    ]


def _curves(title: str, part: Row) -> list[str]:
    together = part["together"]
    count = len({text for text, _ in together["positions"]})
    head = (
        f"{title}, all layers together, {len(together['positions'])} positions of {count} text(s):"
    )
    lines = [head, "", *_bin_table(together["bins"], _random(part["random_positions"]))]
    if few := next((entry["reason"] for entry in together["bins"] if entry["reason"]), None):
        lines += [f"No interval and no p: {few}.", ""]
    agreements = part["kernel_agreement"].items()
    lines += [
        f"- Layer {name.removeprefix('layer_')} alone: {_agreement(a)}" for name, a in agreements
    ]
    return [*lines, ""]


def _agreement(agreement: Row) -> str:
    rho = agreement["spearman"]
    if rho is None:
        return f"no agreement with the memory kernel is defined: {agreement['reason']}."
    ends = _interval(agreement) or "no interval"
    return (
        f"rank agreement with the memory kernel over {agreement['num_lags']} lags {number(rho)} "
        f"({ends}); with a curve that only falls {number(agreement['falling'])}."
    )


def _random(part: Row) -> Callable[[int], tuple[str, str]]:
    bins = part.get("bins")

    def cells(index: int) -> tuple[str, str]:
        if not bins or bins[index]["baseline_kl"] is None:
            return "", ""
        p = bins[index]["p_value"]
        return _nats(bins[index]["baseline_kl"]), "" if p is None else number(p)

    return cells


def _bin_table(bins: Sequence[Row], random: Callable[[int], tuple[str, str]]) -> list[str]:
    body = []
    for i, entry in enumerate(bins):
        interval = (
            ""
            if entry["kl_low"] is None
            else f"{_nats(entry['kl_low'])} to {_nats(entry['kl_high'])}"
        )
        lags = f"{entry['first_lag']} to {entry['last_lag']}"
        body.append([lags, _nats(entry["kl"]), interval, number(entry["loss_change"]), *random(i)])
    return markdown_table(
        ["lag (tokens)", "KL (nats)", "interval", "change of loss (nats)",
         "KL at random other positions", "p of the difference"],
        body,
    )  # fmt: skip


_NOTES = (
    "Intervals and nulls are of central coverage; the results name their draws. A share of "
    "layers is compared with chance as if layers were independent, which they are not quite. "
    "Positions of a text share its tokens: causal curves are means over independent texts, each "
    "with the mean over its positions; their intervals and p need 5 texts. Layers are compared by "
    "what their own state gives the prediction: "
    "what a layer loses reaches later tokens through the layers above it too, and what a later "
    "layer makes up for is not seen: intervention_study.py --pairs and --direct look for that. A "
    "KL below 0.0001 nats is no effect. A verdict is on this model and these texts.",
)

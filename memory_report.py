"""The report of the memory analysis in Markdown, written from its results alone.

Every sentence is generated from a row of the results and carries its number with its null or
interval; a claim that the data do not support is reported as not found. No number is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from findings import Finding, compared, number, sentence

Row = Mapping[str, Any]

_COLUMNS = {
    "mean_delta": "mean Δ",
    "median_half_life": "half-life (tokens)",
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
        *(f"- {sentence(finding)}" for finding in found),
        "",
        *_findings_table(found),
        "## Memory by layer",
        "",
        *_layer_table(results["memory_by_layer"]),
        *_each_layer(results),
        "## What the predictions lose",
        "",
        *_causal(results["memory"].get("causal_memory", {})),
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
    ]


def _check(results: Row) -> list[str]:
    check = results["self_check"]
    agrees = "within" if check["replay_agrees"] else "**beyond**"
    lines = [
        f"Largest replay error {number(check['largest_replay_error'])}, {agrees} the tolerance of "
        f"{number(check['replay_tolerance'])}.",
        "",
    ]
    for name, why in check["without_result"].items():
        error = why.get("error")
        lines += [f"- Without result: {name}: {error['message'] if error else why['skipped']}"]
    return [*lines, ""] if check["without_result"] else lines


def _findings_table(findings: Sequence[Finding]) -> list[str]:
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
    body = [[str(row["layer"]), *(number(row[name]) for name in _COLUMNS)] for row in rows]
    return markdown_table(["layer", *_COLUMNS.values()], body)


def _each_layer(results: Row) -> list[str]:
    sections = results["memory"]
    lines = []
    for row in results["memory_by_layer"]:
        key = f"layer_{row['layer']}"
        sentences = [_delta(row), _saturation(row, sections.get("state", {}).get(key))]
        sentences += [_recursion(sections.get("recursive_patterns", {}).get(key))]
        sentences += [_neurons(sections.get("neuron_memory", {}).get(key))]
        lines.append(f"- Layer {row['layer']}: {' '.join(s for s in sentences if s)}")
    return [*lines, ""]


def _delta(row: Row) -> str:
    if row["delta_activation"] is None:
        return ""
    return (
        f"mean |ρ| of Δ with activation {number(row['delta_activation'])} (null "
        f"{number(row['delta_activation_low'])} to {number(row['delta_activation_high'])}); ρ of "
        f"mean Δ with what a neuron owes its memory {_tested(row, 'delta_memory')}."
    )


def _tested(row: Row, name: str) -> str:
    low, high = (number(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{number(row[name])} (null {low} to {high})"


def _saturation(row: Row, texts: Row | None) -> str:
    ratios = [
        part["last_over_first"]
        for part in (texts or {}).values()
        if isinstance(part, Mapping) and part["last_over_first"] is not None
    ]
    if not ratios:
        return ""
    return (
        f"The state's norm in the last quarter of a text is {number(row['state_last_over_first'])} "
        f"times that in the first (texts: {number(min(ratios))} to {number(max(ratios))})."
    )


def _recursion(patterns: Row | None) -> str:
    series = (patterns or {}).get("mixer", {}).get("autocorrelation")
    if not series or not series["lags"]:
        return ""
    null = f"null {number(series['null_low'][0])} to {number(series['null_high'][0])}"
    time = series["memory_time"]
    ends = (
        f"it meets its null at lag {time}"
        if time is not None
        else f"it stays above its null up to lag {series['lags'][-1]}"
    )
    return f"Autocorrelation at lag 1 {number(series['mean'][0])} ({null}); {ends}."


def _neurons(methods: Row | None) -> str:
    tests = [
        (method.replace("_", "-"), part["correlations"]["memory_sensitivity"])
        for method, part in (methods or {}).items()
        if isinstance(part, Mapping) and "correlations" in part
    ]
    given = [
        f"{name} {number(test['value'])} (null {number(test['null_low'])} to "
        f"{number(test['null_high'])})"
        for name, test in tests
        if test["value"] is not None
    ]
    return f"ρ of importance with memory sensitivity: {', '.join(given)}." if given else ""


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
    head = f"{title}, all layers together, {len(together['positions'])} positions:"
    lines = [head, "", *_bin_table(together["bins"], _random(part["random_positions"]))]
    for name, agreement in part["kernel_agreement"].items():
        layer = name.removeprefix("layer_")
        rho = agreement["spearman"]
        said = (
            f"rank agreement with the memory kernel {number(rho)} over {agreement['num_lags']} lags"
            if rho is not None
            else f"no agreement with the memory kernel is defined: {agreement['reason']}"
        )
        lines.append(f"- Layer {layer} alone: {said}.")
    return [*lines, ""]


def _random(part: Row) -> Callable[[int], tuple[str, str]]:
    bins = part.get("bins")

    def cells(index: int) -> tuple[str, str]:
        if not bins or bins[index]["baseline_kl"] is None:
            return "", ""
        return number(bins[index]["baseline_kl"]), number(bins[index]["p_value"])

    return cells


def _bin_table(bins: Sequence[Row], random: Callable[[int], tuple[str, str]]) -> list[str]:
    body = []
    for i, entry in enumerate(bins):
        interval = (
            ""
            if entry["kl_low"] is None
            else f"{number(entry['kl_low'])} to {number(entry['kl_high'])}"
        )
        lags = f"{entry['first_lag']} to {entry['last_lag']}"
        body.append([lags, number(entry["kl"]), interval, number(entry["loss_change"]), *random(i)])
    return markdown_table(
        ["lag (tokens)", "KL (nats)", "interval", "change of loss (nats)",
         "KL at random other positions", "p of the difference"],
        body,
    )  # fmt: skip


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, an empty one at its end; a | within a cell is escaped."""
    rows = [head, ["---"] * len(head), *body]
    return [
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        "",
    ]


_NOTES = (
    "Intervals and nulls are of central coverage; the results name their draws. A share of layers "
    "is compared with chance as if layers were independent, which they are not quite. Positions "
    "of a text share its tokens, so that an interval over positions speaks of these texts and not "
    "of others. Layers are compared by what their own state gives the prediction: what a layer "
    "loses reaches later tokens through the layers above it too. A verdict is on this model and "
    "these texts.",
)

"""Tables of a report, read from the results of an analysis: cells as text, values beside nulls.

Nothing is computed here. A number that the results leave undefined is a dash, a step without a
result is a table without rows that says why. `recursive_analysis_report` renders the tables as
HTML and as Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from result_views.answers import is_above_chance, overview_rows
from result_views.beside_nulls import MAGNITUDES, OUTSIDE, neuron_cka_test, standing_of
from result_views.faithfulness_rows import OTHER_TEXT
from result_views.glossary import STATISTIC_NAMES, method_name
from suite_plumbing.result_reading import Section, cross_text_section, entry_at, failure, layers_of
from token_statistics.findings import number

UNDEFINED = "–"


class Column(NamedTuple):
    """One column: its heading, and the measure that explains it."""

    label: str
    measure: str = ""
    """key of `result_views.glossary.MEASURES`; empty where the heading says all"""
    is_text: bool = False
    """aligned left"""


class Cell(NamedTuple):
    """One cell: a value as text, and what it has to be compared with."""

    text: str
    null: str = ""
    """the null's 95 % interval, "low to high", or in words; empty without one"""
    outside: bool = False
    """whether the value lies outside its null, as `result_views.beside_nulls` has it"""


@dataclass(frozen=True)
class Table:
    """One table."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    """what to know to read it"""
    failure: str | None = None
    """why there are no rows"""


def shown(value: Any) -> str:
    """A number with three significant digits, from 1000 on whole; a dash where undefined."""
    if value is None:
        return UNDEFINED
    if isinstance(value, (int, float)) and 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return number(value) if isinstance(value, (int, float)) else str(value)


def cell(value: Any) -> Cell:
    """A cell of a number or a text."""
    return Cell(shown(value))


def null_cell(test: Mapping[str, Any] | None, *, one_sided: bool = False) -> Cell:
    """A cell of a test's ``value`` beside its null; the reason where it is undefined.

    ``one_sided``, or that key of the test: only a value above the null is outside.
    """
    if not isinstance(test, Mapping) or test.get("value") is None:
        reason = test.get("reason") if isinstance(test, Mapping) else None
        return Cell(f"{UNDEFINED} ({reason})" if reason else UNDEFINED)
    value, bounds = test["value"], (test.get("null_low"), test.get("null_high"))
    if bounds[0] is None or bounds[1] is None:
        return Cell(shown(value))
    outside = standing_of(test, one_sided=one_sided) == OUTSIDE
    return Cell(shown(value), between(bounds), outside)


def between(pair: Sequence[Any]) -> str:
    """An interval as text."""
    return f"{shown(pair[0])} to {shown(pair[1])}"


def text_tables(results: Section, text: str) -> list[Table]:
    """Everything that the main analysis found on one text, by layer and by pair of layers."""
    steps = results["individual_texts"][text]["analysis"]
    return [
        _layers(results, steps),
        _pairs(steps.get("layer_correlations", {}), "From layer to layer"),
        _over_time(steps),
        _ssm_attention(steps),
        _evolution(steps),
        *([_ablation(steps)] if "neuron_ablation" in steps else []),
    ]


def cross_text_tables(results: Section) -> list[Table]:
    """What the texts have in common."""
    pairs = cross_text_section(results, "correlation_patterns")
    together = [
        _spread(results),
        _agreement(results),
        _pairs(pairs, "From layer to layer, all texts together"),
    ]
    if "attribution_faithfulness" in results.get("cross_text_analysis", {}):
        together.append(_faithfulness(results))
    return together


_LAYER_COLUMNS = {
    ("mean Δ", "delta"): ("ssm_components", "delta", "mean"),
    ("selectivity", "selectivity"): ("ssm_components", "delta_memory", "selectivity"),
    ("slowest half-life, tokens", "half_life"): (
        "ssm_components", "delta_memory", "channel_half_life", "median",
    ),
    ("state rank", "state_rank"): (
        "ssm_components", "dynamics", "state_participation_ratio",
    ),
    ("kernel: median lag, tokens", "median_lag"): ("attention_data", "memory_kernel", "median_lag"),
    ("90 % lag, tokens", "lag_90"): ("attention_data", "memory_kernel", "lag_90"),
    ("mean distance, tokens", "mean_distance"): (
        "attention_data", "statistics", "mean_distance", "mean",
    ),
    ("entropy share", "entropy_share"): ("attention_data", "statistics", "entropy_share", "mean"),
    ("strength", "strength"): ("attention_data", "statistics", "strength", "mean"),
    ("share on itself", "self_share"): ("attention_data", "statistics", "self_share", "mean"),
    ("mixer share", "mixer_share"): ("layer_activations", "mixer_share", "mean"),
    ("replay error", "replay_error"): ("ssm_components", "replay_error"),
}  # fmt: skip
"""By heading and measure: step and keys of what stands by layer."""


def _layers(results: Section, steps: Section) -> Table:
    why = [
        f"{name}: {reason}"
        for name in ("ssm_components", "attention_data", "layer_activations")
        if (reason := failure(steps.get(name, {}))) is not None
    ]
    rows = [
        (Cell(str(layer)), *(_layer_cell(steps, layer, path) for path in _LAYER_COLUMNS.values()))
        for layer in results["analysis_metadata"]["layer_indices"]
    ]
    columns = (Column("layer"), *(Column(*heading) for heading in _LAYER_COLUMNS))
    return Table("Memory and attention by layer", columns, tuple(rows), " ".join(why))


def _layer_cell(steps: Section, layer: int, path: Sequence[str]) -> Cell:
    step, *keys = path
    value = entry_at(steps, step, f"layer_{layer}", *keys)
    # Of one text, but written as a list of texts.
    return cell(value[0] if isinstance(value, list) and value else value)


_PAIR_STATISTICS = {"mean_abs": "mean_abs_r", "max_abs": "max_abs_r", "cka": "cka"}

_PAIR_COLUMNS = (
    Column("mean |r|", "mean_abs_r"),
    Column("largest |r|", "max_abs_r"),
    Column("CKA", "cka"),
    Column("pairs significant", "significant_share"),
)

_NULL_NOTE = "Below a value: its null. Bold: outside it."

_MAGNITUDES_NOTE = "Below a value: its null. Bold: above it."


def _pairs(section: Section, title: str) -> Table:
    columns = (
        Column("layers", "", True), Column("of", "", True), *_PAIR_COLUMNS, Column("tokens")
    )  # fmt: skip
    rows = [
        (Cell(_pair_name(name)), Cell(_STREAMS.get(stream, stream)), *_pair_cells(pair),
         cell(pair.get("num_tokens")))
        for stream, pairs in section.items()
        if isinstance(pairs, Mapping)
        for name, pair in pairs.items()
        if name.startswith("layer_")
    ]  # fmt: skip
    return Table(title, columns, tuple(rows), _MAGNITUDES_NOTE, failure(section) or _if_none(rows))


def _if_none(rows: Sequence[Any]) -> str | None:
    """What to say of a table without rows whose step did not fail."""
    return None if rows else "nothing of this was measured"


_STREAMS = {"residual": "residual stream", "mixer": "mixers"}


def _pair_name(name: str) -> str:
    return name.removeprefix("layer_").replace("_to_", " to ")


def _pair_cells(pair: Mapping[str, Any]) -> list[Cell]:
    if pair.get("enough_tokens") is False:
        return [Cell(f"{UNDEFINED} ({pair.get('reason')})"), *[Cell(UNDEFINED)] * 3]
    tests = [null_cell(pair.get(one), one_sided=one in MAGNITUDES) for one in _PAIR_STATISTICS]
    return [*tests, cell(pair.get("significant_share"))]


def _over_time(steps: Section) -> Table:
    section = steps.get("recursive_patterns", {})
    rows = []
    for layer, part in layers_of(section):
        series = part.get("autocorrelation") or {}
        first = {
            key: (series.get(name) or [None])[0]
            for key, name in (("value", "mean"), ("null_low", "null_low"),
                              ("null_high", "null_high"))
        }  # fmt: skip
        first["reason"] = series.get("reason")
        change = part.get("change_correlation")
        rows.append(
            (Cell(str(layer)), null_cell(first), cell(series.get("memory_time")),
             _rhythm_cell(series.get("rhythm")), null_cell(change),
             cell(entry_at(part, "change_correlation", "p_value")))
        )  # fmt: skip
    columns = (
        Column("layer"), Column("autocorrelation, lag 1", "autocorrelation"),
        Column("above null until, tokens", "memory_time"), Column("period, tokens", "rhythm"),
        Column("ρ of change of state and activation", "change_correlation"), Column("p"),
    )  # fmt: skip
    return Table("Over time", columns, tuple(rows), _NULL_NOTE, failure(section) or _if_none(rows))


def _rhythm_cell(rhythm: Mapping[str, Any] | None) -> Cell:
    """A period, with how far the spectrum rises to it beside what shuffled tokens rise."""
    if not rhythm or rhythm["period"] is None:
        return Cell(UNDEFINED)
    rise, limit = shown(rhythm["rise"]), shown(rhythm["rise_null_high"])
    return Cell(shown(rhythm["period"]), f"power rises x {rise}, null up to {limit}")


_SSM_ATTENTION = {
    "delta_received": "Δ, received",
    "delta_given": "Δ, given",
    "delta_paid": "Δ, paid",
    "delta_distance": "Δ, distance",
    "B_norm_received": "‖B‖, received",
    "B_norm_given": "‖B‖, given",
    "C_norm_paid": "‖C‖, paid",
}


def _ssm_attention(steps: Section) -> Table:
    section = steps.get("ssm_attention_correlations", {})
    rows = [
        (Cell(str(layer)),
         *(null_cell(entry_at(part, "tokens", name)) for name in _SSM_ATTENTION))
        for layer, part in layers_of(section)
    ]  # fmt: skip
    columns = (
        Column("layer"),
        *(Column(label, "ssm_attention") for label in _SSM_ATTENTION.values()),
    )
    note = "Spearman ρ over tokens. " + _NULL_NOTE
    return Table(
        "Δ, B and C with attention", columns, tuple(rows), note, failure(section) or _if_none(rows)
    )


def _evolution(steps: Section) -> Table:
    section = steps.get("neuron_evolution", {})
    rows = []
    for method, part in section.items() if failure(section) is None else ():
        for step in part.get("transitions", ()):
            rows.append(
                (Cell(method_name(method)), Cell(f"{step['from_layer']} to {step['to_layer']}"),
                 null_cell(neuron_cka_test(step)), cell(step.get("cka_p_value")),
                 cell(step.get("rms_ratio")))
            )  # fmt: skip
    columns = (
        Column("neurons by", "", True), Column("layers", "", True),
        Column("CKA", "cka"), Column("p"), Column("ratio of RMS"),
    )  # fmt: skip
    note = "Null of CKA: mean to largest draw of circular time shifts. Bold: above it."
    return Table(
        "Neurons from layer to layer",
        columns,
        tuple(rows),
        note,
        failure(section) or _if_none(rows),
    )


def _ablation(steps: Section) -> Table:
    section = steps["neuron_ablation"]
    rows = []
    for layer, part in layers_of(section):
        for method, test in (part.get("agreement") or {}).items():
            tests = [entry_at(part, "by_value", value, "agreement", method) for value in _ABLATIONS]
            rows.append(
                (Cell(str(layer)), Cell(method_name(method)), *map(_against_ablation, tests),
                 cell(test.get("n")))
            )  # fmt: skip
    columns = (
        Column("layer"), Column("neurons by", "", True),
        *(Column(f"ρ, set to {name}", "ablation") for name in _ABLATIONS.values()),
        Column("neurons ablated"),
    )  # fmt: skip
    return Table(
        "Neurons against ablation",
        columns,
        tuple(rows),
        _NULL_NOTE,
        failure(section) or _if_none(rows),
    )


_ABLATIONS = {"mean": "the mean", "zero": "zero", "other_text": "another text's values"}


def _against_ablation(test: Mapping[str, Any] | None) -> Cell:
    """An agreement with one kind of ablation, beside what chance gives."""
    if test is None:
        return Cell(f"{UNDEFINED} (not measured)")
    high = test.get("null_95")
    return null_cell(
        {"value": test.get("spearman"), "reason": test.get("reason"),
         "null_low": None if high is None else -high, "null_high": high}
    )  # fmt: skip


def _spread(results: Section) -> Table:
    sections = [cross_text_section(results, f"{part}_consistency") for part in ("ssm", "attention")]
    by_layer: dict[int, dict[str, Any]] = {}
    for section in sections:
        for layer, part in layers_of(section) if failure(section) is None else ():
            by_layer.setdefault(layer, {}).update(part)
    rows = [
        (Cell(str(layer)), *(_ratio(parts.get(name)) for name in STATISTIC_NAMES))
        for layer, parts in sorted(by_layer.items())
    ]
    whys = [why for section in sections if (why := failure(section)) is not None]
    columns = (Column("layer"), *(Column(label, "spread") for label in STATISTIC_NAMES.values()))
    why = None if rows else "; ".join(whys) or "no results"
    note = f"Near 1: as by chance. {_NULL_NOTE}"
    return Table("Spread between texts", columns, tuple(rows), note, why)


def _ratio(part: Mapping[str, Any] | None) -> Cell:
    if not part or part.get("ratio") is None:
        reason = (part or {}).get("reason")
        return Cell(f"{UNDEFINED} ({reason})" if reason else UNDEFINED)
    return null_cell({**part, "value": part["ratio"]})


def _agreement(results: Section) -> Table:
    section = cross_text_section(results, "neuron_consistency")
    rows = []
    for layer, methods in layers_of(section):
        for method, part in methods.items():
            if part.get("reason"):
                undefined = (Cell(f"{UNDEFINED} ({part['reason']})"), *[Cell(UNDEFINED)] * 3)
                rows.append((Cell(str(layer)), Cell(method_name(method)), *undefined))
                continue
            rows.append(
                (Cell(str(layer)), Cell(method_name(method)),
                 Cell(f"{shown(part.get('mean_overlap'))} of {shown(part.get('top_n'))}"),
                 cell(part.get("expected_overlap")), cell(part.get("largest_p_value")),
                 cell(part.get("mean_spearman")))
            )  # fmt: skip
    columns = (
        Column("layer"), Column("neurons by", "", True), Column("shared", "overlap"),
        Column("by chance", "overlap"), Column("largest p"), Column("rank agreement, ρ"),
    )  # fmt: skip
    return Table(
        "Neurons shared by texts", columns, tuple(rows), "", failure(section) or _if_none(rows)
    )


def _faithfulness(results: Section) -> Table:
    section = cross_text_section(results, "attribution_faithfulness")
    rows = []
    for method, part in (section.get("methods") or {}).items():
        over = entry_at(part, "over", "random", "delta_af")
        rows.append(
            (Cell(method_name(method)), _with_interval(entry_at(part, "measures", "delta_af")),
             _with_interval(entry_at(part, "measures", OTHER_TEXT)), _with_interval(over),
             _with_interval(entry_at(part, "over", "recency", "delta_af")),
             cell(entry_at(part, "over", "recency", "delta_af", "p_value")),
             _with_interval(entry_at(part, "measures", "comprehensiveness")),
             _with_interval(entry_at(part, "measures", "sufficiency")),
             cell(entry_at(part, "conservation_error", "median")))
        )  # fmt: skip
    columns = (
        Column("attribution", "", True), Column("ΔAF", "faithfulness"),
        Column("ΔAF, another text's tokens", "faithfulness"),
        Column("over random order", "faithfulness"), Column("over recency", "faithfulness"),
        Column("p"), Column("comprehensiveness", "faithfulness"),
        Column("sufficiency", "faithfulness"), Column("conservation error", "conservation"),
    )  # fmt: skip
    note = (
        "Below a mean: its 95 % interval over texts. p: of the gain over recency, text by text. "
        "Fewer than 50 texts do not tell methods of like faithfulness apart."
    )
    return Table(
        "Faithfulness of attributions",
        columns,
        tuple(rows),
        note,
        failure(section) or _if_none(rows),
    )


def _with_interval(part: Mapping[str, Any] | None) -> Cell:
    if not part or part.get("mean") is None:
        return Cell(UNDEFINED)
    pair = (part.get("low"), part.get("high"))
    return Cell(shown(part["mean"]), "" if None in pair else between(pair))


_MEMORY_COLUMNS = {
    "mean_delta": Column("mean Δ", "delta"),
    "selectivity": Column("selectivity", "selectivity"),
    "median_half_life": Column("slowest half-life, tokens", "half_life"),
    "tokens_to_half": Column("until half is left, tokens", "tokens_to_half"),
    "kernel_mean_lag": Column("kernel: mean lag, tokens", "kernel"),
    "kernel_lag_90": Column("90 % lag, tokens", "lag_90"),
    "state_participation_ratio": Column("state rank", "state_rank"),
    "state_last_over_first": Column("state norm, last over first quarter"),
    "reset_kl": Column("state erased: KL, nats"),
    "knockout_kl": Column("a source hidden: KL, nats"),
    "ablation_effect": Column("ablation: change of ln p"),
}


def memory_table(memory: Section) -> Table:
    """The memory analysis by layer: what states keep, and what predictions owe to it."""
    rows = [
        (Cell(str(row.get("layer"))), *(_memory_cell(row, name) for name in _MEMORY_COLUMNS))
        for row in memory.get("memory_by_layer", ())
    ]
    columns = (Column("layer"), *_MEMORY_COLUMNS.values())
    why = None if rows else "the memory analysis has no table by layer"
    return Table("Memory by layer, all texts together", columns, tuple(rows), "", why)


def _memory_cell(row: Mapping[str, Any], name: str) -> Cell:
    """A number of a layer; what only the text's length limits is marked."""
    limited = name.startswith("kernel_") and row.get("kernel_limited_by_text")
    return Cell(shown(row.get(name)), "limited by the text") if limited else cell(row.get(name))


_OVERVIEW_COLUMNS = {
    ("median state: half-life, tokens", "half_life"): ("median_half_life",),
    ("slowest state: until half is left, tokens", "tokens_to_half"): ("tokens_to_half",),
    ("90 % lag, tokens", "lag_90"): ("lag_90",),
    ("|α| on the last four", ""): ("recent_share",),
    ("on the first", ""): ("first_share",),
    ("on itself", "self_share"): ("self_share",),
    ("copying, times the lags around", "copying"): ("copying",),
    ("first token, times those after", ""): ("sink",),
    ("state erased alone, nats a token", "reset_cost"): ("reset",),
    ("gate at words' beginnings", "openness"): ("gate", "space_leading"),
}
"""By heading and measure: the keys of a layer's row."""


def overview_table(results: Section) -> Table | None:
    """Every layer of the model in a row; None for results without an overview."""
    if not (found := overview_rows(results)):
        return None
    rows = [
        (
            Cell(str(row["layer"])),
            *(_overview_cell(row, path) for path in _OVERVIEW_COLUMNS.values()),
        )
        for row in found
    ]
    columns = (Column("layer"), *(Column(*heading) for heading in _OVERVIEW_COLUMNS))
    heads = found[0]["heads_measured"]
    note = f"{_OVERVIEW_NOTE} Shares, lags and copying are of {heads} heads of each layer."
    if any(row["limited_by_text"] for row in found):
        note += (
            " Limited by the text: the half-life of a head's slowest state, median over heads, is "
            "above a quarter of the text."
        )
    return Table("All layers", columns, tuple(rows), note)


_OVERVIEW_NOTE = (
    "Below a value: what chance gives over all layers, 5 % of it beyond either end. Bold: above "
    "chance over all layers and all questions, and over texts from five on."
)


def _overview_cell(row: Mapping[str, Any], path: Sequence[str]) -> Cell:
    value = entry_at(row, *path)
    if isinstance(value, Mapping):
        if value["value"] is None:
            return Cell(UNDEFINED)
        return null_cell(value)._replace(outside=is_above_chance(value))
    limited = path == ("lag_90",) and row["limited_by_text"] and value is not None
    return Cell(shown(value), "limited by the text") if limited else cell(value)


def replay_table(results: Section) -> Table:
    """Replay errors by text and layer."""
    errors = results["self_check"].get("replay_error", {})
    names = list(dict.fromkeys(name for by_layer in errors.values() for name in by_layer))
    rows = [
        (Cell(text_name(text)), *(cell(by_layer.get(name)) for name in names))
        for text, by_layer in errors.items()
    ]
    columns = (
        Column("text", "", True),
        *(Column(name.replace("_", " "), "replay_error") for name in names),
    )
    return Table("Replay errors", columns, tuple(rows), "", None if names else "nothing replayed")


def text_name(text: str) -> str:
    """A text's key as its name: text_0 is Text 0."""
    return text.replace("_", " ").capitalize()


def provenance_table(results: Section) -> Table:
    """Where the numbers come from: suite, model, versions, device, seed, texts."""
    origin = results["provenance"]
    suite, model = origin.get("suite", {}), origin.get("model", {})
    modified = {True: ", with changes", False: "", None: ""}[suite.get("git_modified")]
    commit = suite.get("git_commit")
    kernels = [name for name, present in (origin.get("kernels") or {}).items() if present]
    facts = {
        "model": model.get("id") or "unnamed",
        "model class": model.get("class"),
        "revision": model.get("revision"),
        "SHA-256 of the weights": model.get("weights_sha256"),
        "parameters": model.get("num_parameters"),
        "suite": suite.get("version"),
        "commit": f"{commit}{modified}" if commit else None,
        "versions": ", ".join(f"{name} {v}" for name, v in origin.get("versions", {}).items() if v),
        "dtype": origin.get("dtype"),
        "device": origin.get("device"),
        "compiled kernels": ", ".join(kernels) or "none",
        "seed": origin.get("seed"),
        "time": entry_at(origin, "run", "time"),
        "seconds": entry_at(origin, "run", "seconds"),
        "schema": results.get("schema_version"),
    }
    rows = tuple((Cell(name), cell(value)) for name, value in facts.items() if value is not None)
    return Table("Provenance", (Column("what", "", True), Column("value", "", True)), rows)


def texts_table(results: Section) -> Table:
    """The texts: tokens, and whether they were cut."""
    rows = []
    for name in results["individual_texts"]:
        origin = entry_at(results["provenance"], "texts", name) or {}
        whole = origin.get("num_tokens_before_truncation")
        cut = f"cut from {shown(whole)}" if origin.get("truncated") else "whole"
        rows.append((Cell(text_name(name)), cell(origin.get("num_tokens")), Cell(cut)))
    columns = (Column("text", "", True), Column("tokens"), Column("cut", "", True))
    return Table("Texts", columns, tuple(rows))

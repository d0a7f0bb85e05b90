"""Figure of attribution faithfulness: each method with its interval, beside random orders.

Reads the table that ``attribution_faithfulness`` writes, by itself or within the main analysis;
computes no statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.faithfulness_rows import OTHER_TEXT
from result_views.figures.drawing import MARKERS, NULL_ALPHA, NULL_COLOUR, PALETTE
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    layer_ticks,
    legend_above,
    write_reason,
)
from suite_plumbing.result_reading import Section, cross_text_section, failure

RANDOM = "random"
"""The method that is the others' null."""

METHOD_NAMES = {
    "mamba_lrp": "MambaLRP",
    "mamba_attribution": "Mamba-Attribution",
    "gradient_x_input": "gradient × input",
}
"""How methods are written, where that is not their name with spaces."""

MAX_CURVES = 4
"""Methods whose curves are drawn: the best and random orders; more lines cannot be told apart."""

_CAPTION = (
    "Tokens are replaced in the order of their scores and the target is measured. ΔAᶠ: area under "
    "the curve with the least relevant tokens first minus that with the most relevant first; 0 "
    "for a random order on average, and another figure with another baseline. Points: mean over "
    "texts; bars: 95 % bootstrap interval over texts (none for a single text); grey: the interval "
    "of random orders of the same texts. Agreement: Spearman over the tokens of a text with what "
    "was measured by replacing or hiding one token. Randomised: Spearman of the scores with those "
    "of a model whose last layers' weights were permuted; a method that explains the weights "
    "falls to 0."
)


def faithfulness_section(results: Section) -> Section:
    """The faithfulness table of results of either command, or a section that says what lacks."""
    if "faithfulness" in results:
        return results["faithfulness"]
    if "individual_texts" in results:
        found = cross_text_section(results, "attribution_faithfulness")
        if "skipped" not in found:
            return found
    return {"skipped": "faithfulness was not measured (--faithfulness, or its own command)"}


@styled
def figure_faithfulness(results: Section) -> Figure:
    """Faithfulness of attribution methods: areas, curves, agreement and randomisation."""
    section = faithfulness_section(results)
    counts = "" if failure(section) else (
        f"{section['num_texts']} texts, {section['num_tokens']} tokens; "
        f"{section['num_random']} random orders a text. A token is replaced by: "
        f"{section['baseline']}. "
    )  # fmt: skip
    figure, axes = page(
        results,
        "Faithfulness of attributions to input tokens",
        counts + _CAPTION,
        [(2, 1.5), (2, 1.4), (2, 1.5)],
        {},
    )
    plot_delta_af(section, axes[0][0])
    plot_gain_over_random(section, axes[0][1])
    plot_curves(section, axes[1][0])
    plot_randomisation(section, axes[1][1])
    plot_agreement(section, axes[2][0])
    plot_sufficiency(section, axes[2][1])
    return figure


def plot_delta_af(section: Section, ax: Axes | None = None) -> Axes:
    """ΔA^F by method and baseline, best on top, on the interval of random orders."""
    ax = begin(ax, "ΔAᶠ, larger is better", _unit(section), "")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    names = _ranked(section)
    measures = {name: section["methods"][name]["measures"] for name in names}
    rows = {name: of["delta_af"] for name, of in measures.items()}
    groups = {f"baseline: {section['baseline']}": rows}
    other = {name: of.get(OTHER_TEXT) for name, of in measures.items()}
    if any(row and row["mean"] is not None for row in other.values()):
        groups["another text's tokens"] = other
    return _intervals(ax, groups, rows.get(RANDOM))


def plot_gain_over_random(section: Section, ax: Axes | None = None) -> Axes:
    """ΔAᶠ minus that of rivals on the same text, by method; above 0 is better."""
    ax = begin(ax, "ΔAᶠ minus a rival's, text by text", _unit(section), "")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    names = [name for name in _ranked(section) if name != RANDOM]
    rivals = list(dict.fromkeys(r for name in names for r in section["methods"][name]["over"]))
    groups = {
        f"over {rival}": {
            name: section["methods"][name]["over"].get(rival, {}).get("delta_af") for name in names
        }
        for rival in rivals
    }
    return _intervals(ax, groups, None)


def plot_curves(section: Section, ax: Axes | None = None) -> Axes:
    """The target while tokens are replaced: most relevant first solid, least relevant dashed."""
    ax = begin(
        ax, "Solid: most relevant first, dashed: least", "share of tokens replaced", _unit(section)
    )
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    drawn = [name for name in _ranked(section) if section["methods"][name]["most_first"]]
    best = [name for name in drawn if name != RANDOM][: MAX_CURVES - 1]
    for name in [*best, *([RANDOM] if RANDOM in section["methods"] else [])]:
        method, (colour, marker) = section["methods"][name], _style(section, name)
        for order, style in (("most_first", "-"), ("least_first", "--")):
            ax.plot(
                as_array(section["fractions"]), as_array(method[order]), style, color=colour,
                marker=marker, markersize=2, label=_written(name) if style == "-" else None,
            )  # fmt: skip
    return legend_above(ax, 4)


def plot_randomisation(section: Section, ax: Axes | None = None) -> Axes:
    """Spearman of scores before and after the last layers are randomised, a line a method."""
    ax = begin(ax, "After randomising the last layers", "layers randomised", "Spearman")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    drawn = {name: method["randomised"] for name, method in section["methods"].items()
             if method["randomised"]}  # fmt: skip
    if not drawn:
        return write_reason(ax, "the randomisation test was not run")
    for name, steps in drawn.items():
        mean, (colour, marker) = as_array([step["mean"] for step in steps]), _style(section, name)
        ax.plot(
            np.arange(1, len(mean) + 1), mean, color=colour, marker=marker,
            markevery=max(1, len(mean) // 8), label=_written(name),
        )  # fmt: skip
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05, 1.05)
    layer_ticks(ax, range(1, 1 + max(map(len, drawn.values()))))
    return legend_above(ax, 3)


def plot_agreement(section: Section, ax: Axes | None = None) -> Axes:
    """Spearman with the measured effect of each token, by method."""
    ax = begin(ax, "Agreement with measured effects", "Spearman over tokens", "")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    methods = section["methods"]
    names = _ranked(section)
    references = list(dict.fromkeys(r for name in names for r in methods[name]["agreement"]))
    if not references:
        return write_reason(ax, "neither occlusion nor knockout is among the methods")
    groups = {ref: {n: methods[n]["agreement"].get(ref) for n in names} for ref in references}
    ax = _intervals(ax, groups, None)
    ax.set_xlim(-1.05, 1.05)
    return ax


def plot_sufficiency(section: Section, ax: Axes | None = None) -> Axes:
    """Comprehensiveness (larger is better) and sufficiency (smaller is better) by method."""
    ax = begin(ax, "Comprehensiveness and sufficiency", _unit(section), "")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    labels = {
        "comprehensiveness": "comprehensiveness (higher better)",
        "sufficiency": "sufficiency (lower better)",
    }
    methods = section["methods"]
    groups = {
        label: {name: methods[name]["measures"][measure] for name in _ranked(section)}
        for measure, label in labels.items()
    }
    return _intervals(ax, groups, None)


def _ranked(section: Section) -> list[str]:
    """Methods by mean ΔA^F, the best first, undefined ones last."""

    def key(name: str) -> float:
        mean = section["methods"][name]["measures"]["delta_af"]["mean"]
        return np.inf if mean is None else -mean

    return sorted(section["methods"], key=key)


def _unit(section: Section) -> str:
    """The unit of the target, which that of the areas is too."""
    return str(section.get("target", {}).get("unit") or section.get("target", {}).get("name", ""))


def _intervals(
    ax: Axes, groups: Mapping[str, Mapping[str, Section | None]], null: Section | None
) -> Axes:
    """Means with intervals, a row a method and a colour a group; a null's interval as a band."""
    names = list(next(iter(groups.values())))
    if null is not None and null["low"] is not None:
        ax.axvspan(
            null["low"], null["high"], color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=0, zorder=0
        )
    ax.axvline(0, color="0.4", linewidth=0.6, zorder=0)
    offsets = np.linspace(-0.22, 0.22, len(groups)) if len(groups) > 1 else [0.0]
    for i, (label, rows) in enumerate(groups.items()):
        y = np.arange(len(names)) + offsets[i]
        mean, low, high = _columns([rows[name] for name in names])
        ax.hlines(y, low, high, color=PALETTE[i], linewidth=1.2, alpha=0.7)
        ax.plot(mean, y, MARKERS[i], color=PALETTE[i], label=label or None)
    ax.set_yticks(range(len(names)), [_written(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    return legend_above(ax, len(groups)) if len(groups) > 1 else ax


def _style(section: Section, name: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every panel; random orders are grey."""
    if name == RANDOM:
        return "0.5", "."
    i = [method for method in section["methods"] if method != RANDOM].index(name)
    return PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]


def _written(name: str) -> str:
    return METHOD_NAMES.get(name, name.replace("_", " "))


def _columns(rows: Sequence[Section | None]) -> list[np.ndarray]:
    """(k,) mean, low and high of estimates; nan where a method has none."""
    return [
        as_array([None if row is None else row[name] for row in rows])
        for name in ("mean", "low", "high")
    ]


FAITHFULNESS_FIGURES = {"attribution_faithfulness": figure_faithfulness}
"""By file name: functions of the results."""

"""Panels of neurons: across layers by method, and what texts share; each draws on an ``ax``.

A panel is given ``neuron_evolution`` by text, or ``neuron_consistency`` of the cross-text analysis,
live or loaded from JSON, and computes no statistic.
"""

from __future__ import annotations

from matplotlib.axes import Axes

from result_views.beside_nulls import INSIDE, NO_NULL, OUTSIDE, neuron_cka_test
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    draw_points,
    draw_tests,
    draw_text_line,
    drawn_layers,
    end,
    log_axis,
    write_reason,
)
from result_views.glossary import method_name
from suite_plumbing.result_reading import (
    Section,
    Sections,
    failure,
    layers_of,
    usable,
    why_none,
)


def plot_neuron_transitions(sections: Sections, ax: Axes | None = None) -> Axes:
    """Agreement and CKA of the neurons of successive layers, each beside its null, by method.

    A group of pairs of layers for each method and statistic; a method without values is left out.
    """
    ax = begin(ax, "Neurons of successive layers", "", "Spearman by lag, or CKA (debiased)")
    found = usable(sections)
    if not found:
        return write_reason(ax, why_none(sections))
    labels: list[str] = []
    tests: dict[str, list[Section]] = {text: [] for text in found}
    names: list[tuple[float, str]] = []
    for method in next(iter(found.values())):
        for statistic, read in _TRANSITION_STATISTICS.items():
            rows = {text: [read(step) for step in section[method]["transitions"]]
                    for text, section in found.items()}  # fmt: skip
            if all(test["value"] is None for row in rows.values() for test in row):
                continue
            steps = next(iter(found.values()))[method]["transitions"]
            names.append(
                (len(labels) + (len(steps) - 1) / 2, f"{method_name(method)},\n{statistic}")
            )
            labels += [*(f"{step['from_layer']}→{step['to_layer']}" for step in steps), ""]
            for text, row in rows.items():
                tests[text] += [*row, _GAP]
    if not names:
        steps = [step for section in found.values() for part in section.values()
                 for step in part["transitions"]]  # fmt: skip
        return write_reason(ax, steps[0]["reason"] if steps else "a single layer has no successor")
    draw_tests(ax, sections, labels[:-1], {t: row[:-1] for t, row in tests.items()}, wide=True)
    for x, name in names:
        ax.text(x, 1.02, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom")
    ax.set_title(ax.get_title(), pad=24)
    return ax


_TRANSITION_STATISTICS = {
    "agreement": lambda step: step["attention_agreement"],
    "CKA": neuron_cka_test,
}


_GAP = {"value": None, "null_low": None, "null_high": None, "reason": None}


"""What stands between two groups of tests."""


def plot_neuron_cka(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """CKA of a method's neurons in successive layers, beside its null by time shifts."""
    ax = begin(ax, _of("CKA of successive layers", method), "layers", "CKA (debiased)")
    parts = {text: section[method]["transitions"] for text, section in usable(sections).items()}
    first = next(iter(parts.values()), [])
    labels = [f"{step['from_layer']}→{step['to_layer']}" for step in first]
    tests = {text: [neuron_cka_test(step) for step in steps] for text, steps in parts.items()}
    return draw_tests(ax, sections, labels, tests)


def plot_attention_agreement(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Rank agreement of a method's maps in successive layers at equal lag, beside its null."""
    ax = begin(ax, _of("Agreement of attention", method), "layers", "Spearman by lag")
    parts = {text: section[method]["transitions"] for text, section in usable(sections).items()}
    first = next(iter(parts.values()), [])
    labels = [f"{step['from_layer']}→{step['to_layer']}" for step in first]
    tests = {text: [step["attention_agreement"] for step in steps] for text, steps in parts.items()}
    return draw_tests(ax, sections, labels, tests)


def plot_neuron_magnitude(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Root mean square activation of a method's neurons over tokens and neurons."""
    ax = begin(ax, _of("Magnitude", method), "layer", "RMS activation")
    for text, section in usable(sections).items():
        layers = layers_of(section[method]["rms"])
        draw_text_line(ax, [layer for layer, _ in layers], [rms for _, rms in layers], text)
    layers = drawn_layers(ax)
    if any((as_array(line.get_ydata()) > 0).any() for line in ax.lines):
        log_axis(ax, "y")
    return end(ax, sections, layers, "no activations")


def _of(quantity: str, method: str) -> str:
    return f"{quantity},\n{method_name(method)}"


def plot_neuron_concentration(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Share of the importance in the top 5 % of the neurons; a line where all count alike."""
    ax = begin(ax, _of("Share of the top 5 % of neurons", method), "layer", "share of importance")
    for text, section in usable(sections).items():
        layers = layers_of(section[method]["concentration"])
        shares = [part["top_5_percent_share"] for _, part in layers]
        draw_text_line(ax, [layer for layer, _ in layers], shares, text)
    layers = drawn_layers(ax)
    ax.axhline(0.05, color="0.4", linestyle="--", linewidth=0.8)
    ax.set_ylim(0, 1.02)
    return end(ax, sections, layers, "all importance is zero")


def plot_neuron_overlap(section: Section, ax: Axes | None = None) -> Axes:
    """Number of important neurons that two texts share; a grey line at that of random lists.

    Hollow, where some pair of texts shares no more than random lists do (p > 0.05).
    """
    ax = begin(ax, "Shared important neurons", "layer", "neurons on both lists")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    first = next(iter(layers_of(section)[0][1].values()))
    ax.set_ylabel(f"neurons on both lists, of {first['top_n']}")
    points = _by_method(section, "mean_overlap")
    standings = {
        name: [NO_NULL if p is None else INSIDE if p > 0.05 else OUTSIDE for p in p_values]
        for name, p_values in _by_method(section, "largest_p_value").items()
    }
    chance, reason = first["expected_overlap"], first["reason"]
    ax = draw_points(ax, section, points, chance, reason, standings=standings)
    if ax.lines:
        ax.set_ylim(0, None)
    return ax


def plot_neuron_rank_agreement(section: Section, ax: Axes | None = None) -> Axes:
    """Rank correlation of the neurons' importance between texts; 0 is chance, and no null is drawn,
    so that the points are half filled."""
    ax = begin(ax, "Agreement on importance", "layer", "Spearman correlation")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    first = next(iter(layers_of(section)[0][1].values()))
    points = _by_method(section, "mean_spearman")
    return draw_points(ax, section, points, 0.0, first["reason"])


def _by_method(section: Section, name: str) -> dict[str, list[float | None]]:
    methods = layers_of(section)[0][1]
    return {
        method_name(method): [part[method][name] for _, part in layers_of(section)]
        for method in methods
    }

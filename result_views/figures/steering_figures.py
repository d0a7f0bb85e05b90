"""Figure of a steered model: what a vector does and what it costs, beside random vectors.

Reads what ``steering`` writes; computes no statistic.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import PALETTE
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import as_array, begin, legend_above, log_axis
from suite_plumbing.result_reading import Section

_RANDOM = "0.6"


@styled
def figure_steering(results: Section) -> Figure:
    """Change of the target, KL and perplexity over the coefficient, and one against the other."""
    target = results["target"]["name"].replace("_", " ")
    figure, axes = page(
        results,
        steering_title(results),
        f"Target: {target} after {results['num_prompts']} prompts, steered minus clean; bars: 95 % "
        f"interval over prompts. Grey: {results['num_random']} random vectors of the same norm, "
        "each a point. Cost: KL(clean || steered) and perplexity on "
        f"{results['num_tokens']} tokens of other texts.",
        [(2, 1.3)] * 2,
        {},
    )
    plot_target(results, axes[0][0])
    plot_cost(results, "kl", axes[0][1])
    plot_cost(results, "perplexity_ratio", axes[1][0])
    plot_trade(results, axes[1][1])
    return figure


def steering_title(results: Section) -> str:
    """What the vector does to the target at the coefficient nearest to 1, beside random vectors;
    what lies within its interval or among theirs, or has no interval, is said to."""
    vector, target = results["vector"], results["target"]["name"].replace("_", " ")
    row = min(results["by_coefficient"], key=lambda row: abs(row["coefficient"] - 1))
    random = [e["target_change"] for e in _random(results)
              if e["coefficient"] == row["coefficient"]]  # fmt: skip
    beside = f" (random vectors: {min(random):+.2f} to {max(random):+.2f})" if random else ""
    change, low, high = row["target_change"], row["low"], row["high"]
    where = f"Added {row['coefficient']:g} times at the {vector['site']} of layer {vector['layer']}"
    if low is not None and low <= 0 <= high:
        done = f"is not found to change the {target}: {change:+.2f}, {low:+.2f} to {high:+.2f}"
        return f"{where}, the vector {done}{beside}"
    if random and min(random) <= change <= max(random):
        done = f"changes the {target} no more than random ones do: {change:+.2f}"
        return f"{where}, the vector {done}{beside}"
    bare = "; no interval over so few prompts" if low is None else ""
    return f"{where}, the vector changes the {target} by {change:+.2f}{beside}{bare}"


def plot_target(results: Section, ax: Axes | None = None) -> Axes:
    """Change of the target by coefficient, with its interval, over those of random vectors."""
    name = results["target"]["name"]
    unit = "" if name in ("logit", "logit_difference") else "nats"
    ax = begin(ax, "Change of the target", "coefficient", unit)
    random = _random(results)
    ax.plot([e["coefficient"] for e in random], [e["target_change"] for e in random], ".",
            color=_RANDOM, markersize=3)  # fmt: skip
    x, y, low, high = _columns(results, "coefficient", "target_change", "low", "high")
    ax.vlines(x, low, high, color=PALETTE[0], linewidth=1.2)
    ax.plot(x, y, "o-", color=PALETTE[0])
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    return ax


def plot_cost(results: Section, measure: str, ax: Axes | None = None) -> Axes:
    """KL or the ratio of perplexities on other texts by coefficient, beside the random mean."""
    title, unit = {
        "kl": ("KL on other texts", "nats a token"),
        "perplexity_ratio": ("Perplexity on other texts", "steered / clean"),
    }[measure]
    ax = begin(ax, title, "coefficient", unit)
    x, own, random = _columns(results, "coefficient", measure, f"random_{measure}")
    ax.plot(x, own, "o-", color=PALETTE[0], label="vector")
    ax.plot(x, random, "s-", color=_RANDOM, label="random vectors, mean")
    if measure == "perplexity_ratio":
        log_axis(ax, "y")
    return legend_above(ax, 2)


def plot_trade(results: Section, ax: Axes | None = None) -> Axes:
    """Change of the target by KL on other texts: what an effect costs."""
    ax = begin(ax, "Effect by cost", "KL on other texts, nats a token", "change of the target")
    random = _random(results)
    ax.plot([e["kl"] for e in random], [e["target_change"] for e in random], ".",
            color=_RANDOM, markersize=3, label="random vectors")  # fmt: skip
    kl, change = _columns(results, "kl", "target_change")
    ax.plot(kl, change, "o", color=PALETTE[0], label="vector")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    return legend_above(ax, 2)


def _random(results: Section) -> list[Section]:
    return [effect for effect in results["effects"] if effect["vector"] == "random"]


def _columns(results: Section, *names: str):
    return [as_array([row[name] for row in results["by_coefficient"]]) for name in names]


STEERING_FIGURES = {"steering": figure_steering}

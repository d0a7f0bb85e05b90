"""Tables of faithfulness: how attribution methods fare over texts, with intervals, as objects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pandas as pd

from result_views.faithfulness_rows import faithfulness_rows
from suite_plumbing.result_files import table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Estimate:
    """Mean over texts with its 95 % interval (`token_statistics.intervals`)."""

    mean: float | None
    """over the texts where the quantity is defined; None where it is for none"""
    low: float | None
    """2.5 % bound; None for fewer than 5 texts"""
    high: float | None
    """97.5 % bound"""
    num_texts: int
    """independent texts (groups of related ones) where the quantity is defined"""
    p_value: float | None = None
    """of a gain: two-sided, signs of the texts' gains flipped at random; None for other quantities
    and fewer than 2 texts"""


@dataclass(frozen=True, eq=False)
class MethodFaithfulness:
    """How one method fares over all texts; measures in the unit of the target."""

    measures: dict[str, Estimate]
    """by name in ``CURVE_MEASURES``"""
    over: dict[str, dict[str, Estimate]]
    """by name in ``RIVALS``, by measure: the measure minus the rival's on the same text; above 0
    is better, and for sufficiency below 0"""
    agreement: dict[str, Estimate]
    """by name in ``REFERENCES``: Spearman with its scores over the tokens of a text"""
    conservation_error: dict[str, float | None]
    """median and max over texts of |sum R - total| / |total|; None where a sum means nothing"""
    bias_share: float | None
    """median over texts of the share of the additive constants; None without a total"""
    most_first: list[float] | None
    """mean over texts of the MoRF curve, at ``FaithfulnessTable.fractions``; None without one"""
    least_first: list[float] | None
    """mean over texts of the LeRF curve"""
    per_text: dict[str, list[float | None]]
    """each measure by text, in the order given; None where the scores rank nothing"""
    randomised: list[Estimate]
    """Spearman of the scores with those after the last 1, 2, ... layers are randomised"""
    reason: str | None = None
    """why a measure is None in some text"""


@dataclass(frozen=True, eq=False)
class FaithfulnessTable:
    """Faithfulness of attribution methods on one model, one target and some texts."""

    methods: dict[str, MethodFaithfulness]
    """by name"""
    fractions: list[float]
    """nominal share of the tokens replaced at each point of the curves"""
    target: dict
    """what was explained"""
    baseline: str
    """what replaced a token"""
    other_text_reason: str | None
    """why no text's tokens replaced another's; None where they did"""
    num_texts: int
    """texts"""
    num_groups: int
    """independent texts among them, over which means and intervals are taken"""
    num_tokens: int
    """tokens of all texts"""
    num_random: int
    """random orders of each text"""
    num_randomised_texts: int
    """texts of the randomisation test"""
    seed: int
    """of random orders, ties, bootstrap and randomised weights"""

    def to_dict(self) -> dict:
        """The table for JSON."""
        return asdict(self)

    def rows(self) -> list[dict]:
        """One flat row a method, the best delta_af first, for CSV."""
        return faithfulness_rows(self.to_dict())

    def to_dataframe(self) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows())

    def figure(self) -> Figure:
        """Areas with intervals beside random orders, curves, agreement and randomisation."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.faithfulness_figures import figure_faithfulness

        return figure_faithfulness({"faithfulness": self.to_dict()})

    def _repr_html_(self) -> str:
        return table_html(self.to_dataframe())

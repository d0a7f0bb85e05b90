"""The questions of the overview tried together: how small a p has to be where five are asked.

Each question has the smallest p of its tests, corrected over its layers and kinds already. Those of
the questions are adjusted by Benjamini & Hochberg [1]: of a model that does nothing any of them is
answered in 5 % of cases. Within a question that is, a layer is named where its own p is at most
R / m of 5 %, R of m questions being answered [2].

References:
  [1] Benjamini & Hochberg 1995, Controlling the False Discovery Rate
  [2] Benjamini & Bogomolov 2014, Selective inference on multiple families of hypotheses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from token_statistics.association import benjamini_hochberg

ALPHA = 0.05
"""False answers over all questions together, in a model that does nothing of what they ask."""

Section = Mapping[str, Any]


def together(rows: Sequence[Section], all_states: Section) -> dict[str, Any]:
    """``p_values`` and ``adjusted`` by question, None where it could not be tested; ``num_tested``;
    and ``level``, the largest p by which a layer may be named: 0 where no question is answered.

    ``rows`` and ``all_states`` are those of `overview_rows.joined`. Half-lives are the weights' own
    and are not tested.
    """
    tests = {
        **{name: [row[name] for row in rows] for name in ("copying", "reset")},
        "context": [all_states],
        "gate": [test for row in rows for test in row["gate"].values()],
        "sink": [row["sink"] for row in rows],
    }
    smallest = {name: _smallest(of_question) for name, of_question in tests.items()}
    given = np.array([np.nan if p is None else p for p in smallest.values()])
    found = benjamini_hochberg(given, ALPHA)
    tested = int(np.isfinite(given).sum())
    adjusted = [None if np.isnan(p) else float(p) for p in found.adjusted]
    return {
        "num_tested": tested,
        "p_values": smallest,
        "adjusted": dict(zip(smallest, adjusted, strict=True)),
        "level": ALPHA * int(found.rejected.sum()) / tested if tested else 0.0,
    }


NO_EFFECT = {"copying": 1.0, "sink": 1.0}
"""Of the questions whose values are ratios; 0 of the others."""


def marked(
    rows: Sequence[Section], all_states: Section, level: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """``rows`` and ``all_states`` whose tests have ``above_chance``: p, over all layers, is at most
    this level, and the interval over texts, where there is one, leaves out no effect.

    Of all states erased together, with fewer texts than an interval needs, each has to lose by it:
    other tokens than those that come may gain, so that a cost of 0 lies above its null too.
    """
    new = [
        {
            **row,
            **{name: _marked(row[name], level, NO_EFFECT.get(name, 0.0))
               for name in ("copying", "sink", "reset")},
            "gate": {kind: _marked(test, level, 0.0) for kind, test in row["gate"].items()},
        }
        for row in rows
    ]  # fmt: skip
    together = _marked(all_states, level, 0.0)
    if all_states["interval"] is None and together["above_chance"]:
        together["above_chance"] = all_states["texts_above"] == all_states["num_texts"]
    return new, together


def _marked(test: Section, level: float, no_effect: float) -> dict[str, Any]:
    p, interval = test["p_value"], test["interval"]
    holds = interval is None or interval[0] > no_effect
    return {**test, "above_chance": p is not None and p <= level and holds}


def adjusted_for(tried: Section, question: str, p: float | None) -> float | None:
    """What the adjusted p of a question would be, were ``p`` of one of its layers its smallest.

    At most ALPHA where p is at most the level of ``tried`` (of `together`). None without a p.
    """
    if p is None:
        return None
    given = {**tried["p_values"], question: p}
    values = np.array([np.nan if one is None else one for one in given.values()])
    found = benjamini_hochberg(values, ALPHA).adjusted
    return float(found[list(given).index(question)])


def _smallest(tests: Sequence[Section]) -> float | None:
    known = [test["p_value"] for test in tests if test["p_value"] is not None]
    return min(known, default=None)

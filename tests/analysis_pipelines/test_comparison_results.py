"""Results of a comparison: what even attention measures, and texts that count as one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis_pipelines.comparison_readings import MAP_MEASURES
from analysis_pipelines.comparison_results import Comparison, even_attention


def test_even_attention_has_measures_in_closed_form():
    found = even_attention([4, 6])
    share = np.mean([np.mean(1 / np.arange(1, n + 1)) for n in (4, 6)])
    assert found["self_share"] == pytest.approx(share, rel=1e-6)  # maps are float32
    assert found["first_share"] == pytest.approx(share, rel=1e-6)
    # Query t takes alike from every lag 0 to t: t / 2 on average, (l - 1) / 4 over a text.
    assert found["mean_distance"] == pytest.approx(np.mean([3 / 4, 5 / 4]), rel=1e-6)
    assert set(MAP_MEASURES) < set(found)
    assert len(found["kernel"]) == 4  # as far as the shorter text reaches


def test_related_texts_count_as_one():
    # Nothing but the groups is looked at.
    nothing: Any = None
    shifts: Any = SimpleNamespace(groups=[0, 0, 2])
    compared = Comparison(nothing, nothing, nothing, shifts, nothing, nothing)
    assert compared.samples([10, 20, 7]) == 22

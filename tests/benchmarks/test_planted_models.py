"""Models with weights set by hand: what is planted in them is found."""

import pytest

from benchmarks.planted_models import PLANTED


@pytest.mark.parametrize("name", list(PLANTED))
def test_what_is_planted_is_found(name):
    assert [PLANTED[name](seed) for seed in (0, 7)] == [1.0, 1.0]

"""How tests read: each place in one of five kinds."""

import pytest

from analysis_pipelines.overview_readings import largest, read
from tests.overview_cases import shift_test, untested

LEAST, LEVEL = 0.3, 0.02


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        (shift_test(0.3, 0.02), "claimed"),
        (shift_test(0.29, 0.02), "small"),
        (shift_test(0.5, 0.021), "undecided"),
        (shift_test(0.5, None), "undecided"),
        (shift_test(0.21, 0.9), "undecided"),  # chance adds up to 0.1
        (shift_test(0.19, 0.9), "absent"),
        (shift_test(-5.0, 0.01), "small"),
        (untested(), "untried"),
    ],
)
def test_a_test_reads_as_one_kind(test, kind):
    found = read({7: test}, LEAST, LEVEL)
    assert {name for name, places in found._asdict().items() if places} == {kind}
    assert getattr(found, kind) == (7,)


def test_magnitudes_count_where_both_sides_do():
    found = read({1: shift_test(-0.5, 0.01), 2: shift_test(0.4, 0.01)}, LEAST, LEVEL,
                 two_sided=True)  # fmt: skip
    assert found.claimed == (1, 2)


def test_what_else_a_claim_needs():
    tests = {layer: shift_test(0.5, 0.01) for layer in (1, 2)}
    found = read(tests, LEAST, LEVEL, is_enough=lambda layer: layer == 2)
    assert (found.claimed, found.small) == ((2,), (1,))


def test_the_largest_of_some():
    tests = {1: shift_test(-0.5), 2: shift_test(0.4), 3: shift_test(0.9)}
    assert largest(tests, (1, 2)) == 2
    assert largest(tests, (1, 2), two_sided=True) == 1

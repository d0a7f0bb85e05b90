"""How tests read: each place in one of five kinds."""

import pytest

from analysis_pipelines.overview_readings import largest, read
from tests.overview_cases import shift_test, untested

LEAST = 0.3


def tried(value, above, **more):
    return {**shift_test(value, **more), "above_chance": above}


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        (tried(0.3, True), "claimed"),
        (tried(0.29, True), "small"),
        (tried(0.5, False), "undecided"),
        (tried(0.21, False), "undecided"),  # chance adds up to 0.1
        (tried(0.19, False), "absent"),
        (tried(-5.0, True), "small"),
        (untested(), "untried"),
    ],
)
def test_a_test_reads_as_one_kind(test, kind):
    found = read({7: test}, LEAST)
    assert {name for name, places in found._asdict().items() if places} == {kind}
    assert getattr(found, kind) == (7,)


def test_magnitudes_count_where_both_sides_do():
    found = read({1: tried(-0.5, True), 2: tried(0.4, True)}, LEAST,
                 two_sided=True)  # fmt: skip
    assert found.claimed == (1, 2)


def test_what_else_a_claim_needs():
    tests = {layer: tried(0.5, True) for layer in (1, 2)}
    found = read(tests, LEAST, is_enough=lambda layer: layer == 2)
    assert (found.claimed, found.small) == ((2,), (1,))


def test_the_largest_of_some():
    tests = {1: shift_test(-0.5), 2: shift_test(0.4), 3: shift_test(0.9)}
    assert largest(tests, (1, 2)) == 2
    assert largest(tests, (1, 2), two_sided=True) == 1

"""Words of messages: what is long is cut, what cannot be shown is named, always on one line."""

import numpy as np
import pytest

from suite_plumbing.messages import REASON_LENGTH, VALUE_LENGTH, quoted, reason_of, shortened


@pytest.mark.parametrize("value", [7, "text", [1, 2], None, b"ab", {"a": 1.5}])
def test_a_short_value_is_its_repr(value):
    assert quoted(value) == repr(value)


@pytest.mark.parametrize(
    "value", [list(range(100_000)), "a" * 10**7, np.zeros((99, 99)), "\n" * 99]
)
def test_a_long_value_is_cut_and_keeps_both_ends(value):
    shown = quoted(value)
    assert len(shown) <= VALUE_LENGTH
    assert "..." in shown
    assert "\n" not in shown
    assert shown[0] == repr(value)[0]
    assert shown[-1] == repr(value)[-1]


def test_the_length_is_exact():
    assert quoted("a" * 78) == repr("a" * 78)
    assert len(quoted("a" * 79)) == VALUE_LENGTH
    assert quoted("abcdefghij", 8) == "'abc...'"


def test_a_value_whose_repr_raises_is_named_by_its_type():
    """Python refuses to write integers of more than 4300 digits; a repr may raise anything."""

    class Unwritable:
        def __repr__(self):
            raise RuntimeError("no")

    assert quoted(10**5000) == "<int that cannot be shown>"
    assert quoted(Unwritable()) == "<Unwritable that cannot be shown>"


def test_shortened_joins_lines():
    assert shortened("a\n  b\tc", 80) == "a b c"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("announced:\nthis"), "announced: this"),
        (KeyError("size"), "KeyError: 'size'"),
        (ValueError(""), "ValueError"),
        (TypeError("x"), "TypeError: x"),
    ],
)
def test_a_reason_is_one_line(error, words):
    assert reason_of(error) == words


def test_a_long_reason_is_cut():
    assert len(reason_of(ValueError("word " * 1000))) <= REASON_LENGTH

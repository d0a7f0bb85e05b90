"""Choices and integers are taken as they are, and what is neither is refused with its reason."""

from typing import Any

import numpy as np
import pytest
import torch

from suite_plumbing.checks import int_or_none, validate_choice, validate_int


def test_validate_choice_returns_the_value_or_lists_what_is_allowed() -> None:
    assert validate_choice("kind", "b", ("a", "b")) == "b"
    with pytest.raises(ValueError, match="^kind is 'c'; it must be one of a, b$"):
        validate_choice("kind", "c", (name for name in "ab"))


def test_of_more_choices_than_fit_a_sentence_the_nearest_are_named() -> None:
    many = [f"name number {i}" for i in range(40)]
    with pytest.raises(ValueError, match="one of 40 names, of which the nearest are name number 7"):
        validate_choice("kind", "name number 7x", many)
    with pytest.raises(ValueError, match="40 names") as caught:
        validate_choice("kind", 10**5000, many)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_integers_of_python_numpy_and_torch_are_integers(value: Any) -> None:
    assert (validate_int("n", value, 0, 3), type(validate_int("n", value, 0))) == (3, int)


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, np.float64(3), "3", None])
def test_everything_else_is_not(value: Any) -> None:
    assert int_or_none(value) is None
    with pytest.raises(ValueError, match=r"n is .* \(\w+\); it must be an integer of at least 0$"):
        validate_int("n", value, 0)


def test_bounds_are_allowed_themselves_and_named_when_passed() -> None:
    assert [validate_int("n", n, 1, 2) for n in (1, 2)] == [1, 2]
    for n in (0, 3):
        with pytest.raises(ValueError, match=rf"n is {n} \(int\); .* at least 1 and at most 2$"):
            validate_int("n", n, 1, 2)


@pytest.mark.parametrize(
    "value",
    [torch.tensor(True), np.array([1, 2]), [1], object(), pytest.param(10**5000, id="huge")],
)
def test_values_that_compare_or_count_oddly_are_refused_in_a_short_line(value: Any) -> None:
    with pytest.raises(ValueError, match="^kind is .* must be one of a, 1$") as caught:
        validate_choice("kind", value, ("a", 1))
    assert len(str(caught.value)) < 130
    with pytest.raises(ValueError, match="^n is ") as caught:
        validate_int("n", value, 0)
    assert len(str(caught.value)) < 200


def test_an_integer_of_more_than_64_bits_is_refused_with_the_bound() -> None:
    with pytest.raises(ValueError, match="at least 0 and at most 9223372036854775807$"):
        validate_int("n", 2**63, 0)

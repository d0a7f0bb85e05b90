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

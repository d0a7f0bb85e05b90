"""Choices, integers, devices, dtypes and layers: what is taken, and what is refused and how."""

from typing import Any

import numpy as np
import pytest
import torch

from suite_plumbing.arguments import (
    DTYPES,
    numpy_rng,
    resolve_device,
    resolve_dtype,
    resolve_layer_indices,
    torch_rng,
    validate_choice,
    validate_int,
    validate_number,
    whole_numbers,
)


def test_validate_choice_lists_the_known_names() -> None:
    assert validate_choice("method", "rollout", ["attention_weighted", "rollout"]) == "rollout"
    with pytest.raises(ValueError, match="method is 'gradient'; it must be one of a, b"):
        validate_choice("method", "gradient", ["a", "b"])


@pytest.mark.parametrize("bad", [True, 1.0, "2", None, -1, 8])
def test_validate_int_refuses_all_but_integers_within_the_bounds(bad: object) -> None:
    with pytest.raises(ValueError, match="top_k is .*integer of at least 0 and at most 7"):
        validate_int("top_k", bad, 0, 7)


def test_validate_int_takes_numpy_integers() -> None:
    value = validate_int("top_k", np.int32(3), 0)
    assert value == 3
    assert type(value) is int


def test_resolve_device() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("bad", ["gpu", "cuda:97", "", 1.5, "meta"])
def test_resolve_device_refuses_what_torch_cannot_use(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"device .* cannot be used here \(.*pass 'cpu'"):
        resolve_device(bad)


def test_resolve_dtype() -> None:
    assert resolve_dtype(None) is torch.float32
    assert {name: resolve_dtype(name) for name in DTYPES} == DTYPES
    assert resolve_dtype(torch.bfloat16) is torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'int8'; .*float32, bfloat16, float16, float64"):
        resolve_dtype("int8")
    with pytest.raises(ValueError, match="dtype is torch.int64"):
        resolve_dtype(torch.int64)


@pytest.mark.parametrize(
    ("asked", "available", "num_layers", "expected"),
    [
        (None, range(24), 24, [0, 3, 6, 9, 12]),
        (None, range(13), 13, [0, 3, 6, 9, 12]),
        (None, range(12), 12, [0, 3, 6, 8, 11]),
        (None, range(3), 3, [0, 1, 2]),
        (None, [1], 4, [1]),
        (None, range(1, 24), 24, [1, 7, 12, 17, 23]),
        ("all", [5, 1, 3], 6, [1, 3, 5]),
        ([0, 2, 4], range(6), 6, [0, 2, 4]),
        ([-1, 0], range(6), 6, [0, 5]),
        ((np.int64(2),), range(6), 6, [2]),
        (range(1, 6, 2), range(6), 6, [1, 3, 5]),
    ],
)
def test_resolve_layer_indices(
    asked: Any, available: Any, num_layers: int, expected: list[int]
) -> None:
    assert resolve_layer_indices(asked, available, num_layers) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "layer_indices is empty"),
        ([0, 7], r"layer 7 is out of range: the model has 6 layers, 0 to 5"),
        ([-7], r"layer -7 is out of range.*or -6 to -1 from the end"),
        ([1, 3, 1], "layer 1 is named twice"),
        ([5, -1], "layer 5 is named twice"),
        ([True], r"layer_indices holds True \(bool\), not an integer"),
        ([1.0], r"layer_indices holds 1.0 \(float\)"),
        (["1"], r"layer_indices holds '1' \(str\)"),
        ([2], r"layer 2 cannot be analysed; those that can are \[0, 1, 3, 5\]"),
        ("every", "layer_indices is 'every'; it must be one of all"),
        (3, "layer_indices is 3; pass a list"),
        (torch.tensor(True), r"layer_indices is tensor\(True\); pass a list"),
        (np.zeros((2, 2), int), r"layer_indices is array\(.*; pass a list"),
    ],
)
def test_resolve_layer_indices_refuses(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layer_indices(asked, [0, 1, 3, 5], 6)


def test_resolve_layer_indices_refuses_a_model_without_layers_to_analyse() -> None:
    with pytest.raises(ValueError, match="none of the model's 6 layers"):
        resolve_layer_indices(None, [], 6)


# Numbers of every kind


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint16(3), torch.tensor(3), [3], (3,), np.array([3]), range(3, 4)]
)
def test_one_whole_number_or_a_list_of_them(value: Any) -> None:
    assert whole_numbers("n", value, 0, 3) == [3]
    assert all(type(number) is int for number in whole_numbers("n", value, 0))


@pytest.mark.parametrize(
    "value", [None, "3", 3.0, [3.0], [True], [None], {"a": 3}, np.array([3.5])]
)
def test_anything_else_is_no_list_of_whole_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="n is .*it must be an integer of at least 0"):
        whole_numbers("n", value, 0)


def test_an_empty_list_is_allowed_where_it_means_something() -> None:
    assert whole_numbers("n", [], 0, empty=True) == []
    with pytest.raises(ValueError, match="n is empty"):
        whole_numbers("n", [], 0)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), torch.tensor(1.0), np.int8(1)])
def test_a_number_is_a_float(value: Any) -> None:
    assert validate_number("x", value, above=0) == 1.0


@pytest.mark.parametrize(
    "value",
    [None, "1", True, float("nan"), float("inf"), 10**400, 1j, -1.0, 0, torch.ones(2), [1.0],
     torch.tensor(True), torch.tensor(1j)],
)  # fmt: skip
def test_what_is_no_number_above_zero_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="x is .*; it must be a number above 0"):
        validate_number("x", value, above=0)


def test_seeds_give_the_same_numbers_and_none_is_refused() -> None:
    for make in (numpy_rng, torch_rng):
        with pytest.raises(ValueError, match=r"seed is None \(NoneType\); it must be an integer"):
            make(None)  # pyright: ignore[reportArgumentType]
    assert numpy_rng(5).random() == np.random.default_rng(5).random()
    number: Any = np.int64(5)
    assert torch_rng(number).initial_seed() == 5


@pytest.mark.parametrize("device", ["hpu", "", "cuda:99", "nothing", "9" * 401, 1.5, [], "cpu:x"])
def test_a_device_that_is_none_is_one_line(device: Any) -> None:
    with pytest.raises(ValueError, match="cannot be used here") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320

"""Operands of a scan whose shapes do not fit are refused, by name."""

from typing import Any

import numpy as np
import pytest
import torch
from scan_cases import make_mamba1_operands, make_operands, without

from selective_scan.attention import attention_map, attention_row, implicit_attention
from selective_scan.operands import check_parameters
from selective_scan.scan import scan_hidden_states, selective_scan, selective_scan_chunk

BAD_SCANS = [
    ({"u": torch.zeros(2, 4)}, r"u must be \(b, l, H, P\) or \(b, l, d_inner\).*\(2, 4\)"),
    ({"delta": torch.zeros(2, 4)}, r"delta must be \(b, l, H\), got shape \(2, 4\)"),
    ({"delta": torch.zeros(2, 4, 5)}, r"A must be \(5, 5\) or \(5, 1\) to fit delta and B"),
    (
        {"u": torch.zeros(2, 5, 6, 3)},
        r"delta must be \(b, l, H\) to fit u, with b, l = \(2, 5\) and H = 6",
    ),
    ({"u": torch.zeros(2, 4, 20)}, r"to fit u, with b, l = \(2, 4\) and H a divisor of 20"),
    ({"A": torch.zeros(6)}, r"A must be \(6, 5\) or \(6, 1\).*got \(6,\)"),
    ({"A": torch.zeros(6, 4)}, r"A must be \(6, 5\) or \(6, 1\).*got \(6, 4\)"),
    ({"B": torch.zeros(2, 3, 3, 5)}, r"B must be \(b, l, N\) or.*b, l = 2, 4, got \(2, 3, 3, 5\)"),
    ({"B": torch.zeros(2, 4)}, r"B must be \(b, l, N\) or"),
    ({"D": torch.zeros(3)}, r"D must be \(6,\) or \(6, 3\).*got \(3,\)"),
    ({"D": torch.zeros(1)}, r"D must be \(6,\) or \(6, 3\).*got \(1,\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SCANS)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**make_operands("groups", 4) | change)


def test_mamba1_skip_connection_has_one_number_a_channel():
    operands = make_mamba1_operands(length=6)
    with pytest.raises(ValueError, match=r"D must be \(6,\) to fit u, got \(6, 1\)"):
        selective_scan(**operands | {"D": torch.zeros(6, 1)})


def test_b_and_c_have_one_shape_and_groups_share_heads_evenly():
    operands = make_operands("groups", 4)
    with pytest.raises(ValueError, match=r"C must have the shape of B, \(2, 4, 3, 5\), got"):
        selective_scan(**operands | {"C": torch.zeros(2, 4, 3, 4)})
    four = torch.zeros(2, 4, 4, 5)
    with pytest.raises(ValueError, match="6 heads cannot be shared by 4 groups"):
        selective_scan(**operands | {"B": four, "C": four})


def test_a_text_without_tokens_is_refused():
    operands = make_operands("groups", 0)
    with pytest.raises(ValueError, match="u has no tokens"):
        selective_scan(**operands)
    with pytest.raises(ValueError, match="u has no tokens"):
        scan_hidden_states(**without(operands, "C", "D"))


@pytest.mark.parametrize("length", [1, 20])
def test_an_initial_state_of_another_shape_is_refused(length):
    operands = make_operands("groups", length)
    with pytest.raises(ValueError, match=r"initial_state must be \(2, 6, 3, 5\).*got \(2, 6, 5\)"):
        selective_scan_chunk(**operands, initial_state=torch.zeros(2, 6, 5))
    operands = make_mamba1_operands(length=length)
    with pytest.raises(ValueError, match=r"initial_state must be \(2, 6, 4\)"):
        scan_hidden_states(**without(operands, "C", "D"), initial_state=torch.zeros(2, 6, 1, 4))


@pytest.mark.parametrize("name", ["query_weight", "key_weight"])
def test_weights_of_another_shape_are_refused(name):
    parameters = without(make_operands("groups", 4), "u", "D")
    for wrong in (torch.ones(2, 4, 1), torch.ones(2, 4), torch.ones(2, 4, 16)):
        weights: dict[str, Any] = {name: wrong}
        with pytest.raises(ValueError, match=rf"{name} must be \(b, l, H\) = \(2, 4, 6\), or"):
            attention_map(**parameters, **weights)
        with pytest.raises(ValueError, match=rf"{name} must be \(b, l, H\) = \(2, 4, 6\), or"):
            attention_row(**parameters, query=1, **weights)


def test_weights_of_queries_and_of_keys_have_one_width():
    parameters = without(make_operands("groups", 4), "u", "D")
    with pytest.raises(ValueError, match="query_weight and key_weight must have one width"):
        attention_map(
            **parameters, query_weight=torch.ones(2, 4, 6), key_weight=torch.ones(2, 4, 18)
        )


@pytest.mark.parametrize("function", [implicit_attention, attention_map])
def test_attention_checks_its_shapes_too(function):
    parameters = without(make_operands("groups", 4), "u", "D")
    with pytest.raises(ValueError, match=r"A must be \(6, 5\) or \(6, 1\)"):
        function(**parameters | {"A": torch.zeros(5, 5)})
    with pytest.raises(ValueError, match=r"B must be \(b, l, N\)"):
        function(**parameters | {"B": torch.zeros(1, 4, 3, 5)})


# Operands that a cast would make into others


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "initial_state", "carry"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool, torch.int64])
def test_operands_that_are_no_real_numbers_are_refused(name: str, dtype: torch.dtype) -> None:
    operands: dict[str, Any] = {
        "u": torch.randn(1, 3, 2, 1), "delta": torch.rand(1, 3, 2), "A": -torch.rand(2, 3),
        "B": torch.randn(1, 3, 3), "C": torch.randn(1, 3, 3), "D": torch.rand(2),
        "initial_state": torch.randn(1, 2, 1, 3), "carry": torch.ones(1, 3),
    }  # fmt: skip
    selective_scan_chunk(**operands)
    words = rf"{name} is of dtype \w+; pass real floating-point numbers"
    with pytest.raises(ValueError, match=words):
        selective_scan_chunk(**{**operands, name: operands[name].to(dtype)})
    if name in ("u", "delta", "A", "B", "C"):
        with pytest.raises(ValueError, match=f"^{name} is None; pass a tensor$"):
            selective_scan_chunk(**{**operands, name: None})
    with pytest.raises(ValueError, match=f"^{name} is of type list; pass a tensor$"):
        selective_scan_chunk(**{**operands, name: operands[name].tolist()})


def test_groups_of_none_are_refused() -> None:
    with pytest.raises(ValueError, match="2 heads in delta and 0 groups in B; need at least 1"):
        check_parameters(torch.rand(1, 3, 2), -torch.rand(2, 3), torch.zeros(1, 3, 0, 3))


@pytest.mark.parametrize("heads", [[1.5], [True], ["0"], [None], "01"])
def test_heads_that_are_no_whole_numbers_are_refused(heads: Any) -> None:
    operands = torch.rand(1, 3, 2), -torch.rand(2, 3), torch.rand(1, 3, 3), torch.rand(1, 3, 3)
    with pytest.raises(ValueError, match=r"heads is .* it must be an integer of at least"):
        implicit_attention(*operands, heads=heads)
    numbers: Any = np.array([1], dtype=np.uint16)
    taken = implicit_attention(*operands, heads=numbers)
    assert torch.equal(taken, implicit_attention(*operands, heads=[1]))

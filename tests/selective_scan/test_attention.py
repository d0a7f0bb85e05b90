"""Implicit attention, its maps and rows, against float64 loops."""

from typing import Any

import pytest
import reference
import torch
from scan_cases import BOUND, DTYPES, LENGTHS, SHAPES, make_mamba1_operands, make_operands, without

from selective_scan import attention as attention_module
from selective_scan.attention import (
    attention_map,
    attention_row,
    attention_row_by_head,
    decayed_products,
    implicit_attention,
    magnitude_maps,
)
from token_statistics.description import relative_error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_that_of_the_loop_and_gives_the_output(shape, length, dtype):
    operands = make_operands(shape, length, dtype=dtype)
    parameters = without(operands, "u", "D")
    alpha = implicit_attention(**parameters)
    assert alpha.dtype == dtype
    assert relative_error(alpha, reference.implicit_attention(**parameters)) <= BOUND[dtype]
    y = torch.einsum("bhts,bshp->bthp", alpha.double(), operands["u"].double())
    y = y + operands["D"].double()[:, None] * operands["u"].double()
    assert relative_error(y, reference.scan(**operands)[0]) <= BOUND[dtype]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("weights", ["none", "query", "key", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_and_their_rows_are_those_of_the_loop(shape, dtype, weights, absolute):
    for length in (1, 2, 17, 33):
        operands = make_operands(shape, length, dtype=dtype)
        parameters = without(operands, "u", "D")
        generator = torch.Generator().manual_seed(2)
        query, key = torch.randn(2, *operands["delta"].shape, generator=generator, dtype=dtype)
        options = {
            "query_weight": query if weights in ("query", "both") else None,
            "key_weight": key if weights in ("key", "both") else None,
            "absolute": absolute,
        }
        expected = reference.attention_map(reference.implicit_attention(**parameters), **options)
        result = attention_map(**parameters, **options)
        assert result.dtype == dtype
        assert relative_error(result, expected) <= BOUND[dtype]
        for token in {0, length // 2, -1}:
            row = attention_row(**parameters, query=token, **options)
            assert row.dtype == dtype
            assert relative_error(row, expected[:, token]) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_magnitudes_and_what_is_written_are_those_of_the_loop(shape, dtype):
    for length in (1, 2, 17, 33):
        operands = make_operands(shape, length, dtype=dtype)
        parameters = without(operands, "u", "D")
        alpha = reference.implicit_attention(**parameters).abs()
        values = operands["u"].flatten(2)
        absolute, written = magnitude_maps(**parameters, values=values)
        assert absolute.dtype == written.dtype == dtype
        assert relative_error(absolute, alpha.mean(1)) <= BOUND[dtype]
        by_head = values.double().abs().unflatten(2, (alpha.shape[1], -1)).mean(3)
        expected = torch.einsum("bhts,bsh->bts", alpha, by_head) / alpha.shape[1]
        assert relative_error(written, expected) <= BOUND[dtype]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("states", [4, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decayed_products_are_those_of_the_loop(dtype, states, absolute):
    generator = torch.Generator().manual_seed(5)
    for length in (1, 2, 17, 33):
        query, key = torch.randn(2, 2, length, 3, 4, generator=generator, dtype=dtype)
        decay = torch.rand(2, length, 3, states, generator=generator, dtype=dtype)
        expected = torch.zeros(2, length, length, dtype=torch.float64)
        for t in range(length):
            for s in range(t):
                kept = decay[:, s + 1 : t + 1].double().prod(1)
                by_head = (query[:, t].double() * key[:, s].double() * kept).sum(-1)
                expected[:, t, s] = (by_head.abs() if absolute else by_head).sum(-1)
        found = decayed_products(query.clone(), key.clone(), decay, absolute=absolute)
        assert found.dtype == dtype
        assert relative_error(found, expected) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_every_head_is_that_of_the_loop(shape, dtype):
    for length in (1, 17, 33):
        parameters = without(make_operands(shape, length, dtype=dtype), "u", "D")
        expected = reference.implicit_attention(**parameters)
        for token in {0, length // 2, -1}:
            row = attention_row_by_head(**parameters, query=token)
            assert row.dtype == dtype
            assert relative_error(row.mT, expected[:, :, token]) <= BOUND[dtype]
    with pytest.raises(ValueError, match="query is token 33"):
        attention_row_by_head(**parameters, query=33)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("weights", ["query", "key", "both"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_channels_are_summed_within_their_head(dtype, weights, absolute):
    for length in (1, 17, 33):
        operands = make_operands("groups", length, dtype=dtype)
        parameters, width = without(operands, "u", "D"), operands["u"].shape[3]
        generator = torch.Generator().manual_seed(2)
        size = operands["u"].flatten(2).shape
        query, key = torch.randn(2, *size, generator=generator, dtype=dtype)
        options = {
            "query_weight": query if weights in ("query", "both") else None,
            "key_weight": key if weights in ("key", "both") else None,
            "absolute": absolute,
        }
        # The twin: every channel a head of its own, with the alpha of its head.
        alpha = reference.implicit_attention(**parameters).repeat_interleave(width, dim=1)
        expected = reference.attention_map(alpha, **options)
        assert relative_error(attention_map(**parameters, **options), expected) <= BOUND[dtype]
        for token in {0, length // 2, -1}:
            row = attention_row(**parameters, query=token, **options)
            assert relative_error(row, expected[:, token]) <= BOUND[dtype]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_maps_at_every_length(length, absolute):
    parameters = without(make_operands("groups", length), "u", "D")
    expected = reference.attention_map(
        reference.implicit_attention(**parameters), absolute=absolute
    )
    assert relative_error(attention_map(**parameters, absolute=absolute), expected) <= 1e-10


@pytest.mark.parametrize("absolute", [False, True])
def test_more_heads_than_a_map_takes_at_once(monkeypatch, absolute):
    parameters = without(make_operands("groups", 20), "u", "D")
    expected = reference.implicit_attention(**parameters)
    monkeypatch.setattr(attention_module, "_HEADS_PER_PASS", 4)  # of 6 heads in 3 groups
    monkeypatch.setattr(attention_module, "_PRODUCT_FLOATS", 1)  # one head at a time
    assert relative_error(implicit_attention(**parameters), expected) <= 1e-10
    result = attention_map(**parameters, absolute=absolute)
    assert relative_error(result, reference.attention_map(expected, absolute=absolute)) <= 1e-10


def test_chosen_heads_come_in_the_order_asked_for():
    parameters = without(make_operands("groups", 20), "u", "D")
    chosen = implicit_attention(**parameters, heads=[4, 0, 5])
    # The same products in batches of another size: float64 rounding.
    expected = implicit_attention(**parameters)[:, [4, 0, 5]]
    torch.testing.assert_close(chosen, expected, rtol=1e-12, atol=1e-14)


def test_mamba1_parameters_give_the_same_attention():
    operands = make_mamba1_operands(length=20)
    parameters = without(operands, "u", "D")
    heads = without(reference.heads_form(**operands), "u", "D")
    assert torch.equal(implicit_attention(**parameters), implicit_attention(**heads))
    assert torch.equal(attention_map(**parameters), attention_map(**heads))
    assert torch.equal(attention_row(**parameters, query=7), attention_row(**heads, query=7))


def test_long_texts_keep_float32_precision():
    generator = torch.Generator().manual_seed(0)
    length = 2048
    delta = torch.rand(1, length, 2, generator=generator) + 0.5
    A = torch.tensor([[-1e-3], [-1e-2]])
    B, C = torch.randn(2, 1, length, 1, 1, generator=generator)
    since = delta.double().cumsum(1)
    exponent = (since[:, -1:] - since) * A.double().T
    expected = C.double()[:, -1:, 0] * exponent.exp() * delta.double() * B.double()[:, :, 0]
    alpha = implicit_attention(delta, A, B, C)[:, :, -1].mT
    # A float32 cumulative sum of delta would miss this bound by a factor of ten.
    assert relative_error(alpha, expected) <= 1e-5
    assert relative_error(attention_row(delta, A, B, C, -1), expected.mean(-1)) <= 1e-5


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("which", ["query_weight", "key_weight"])
def test_weights_as_small_as_gradients_keep_their_precision(which, absolute):
    operands = make_operands("groups", 33, dtype=torch.float32)
    parameters = without(operands, "u", "D")
    generator = torch.Generator().manual_seed(4)
    weight = 1e-20 * torch.randn(operands["delta"].shape, generator=generator)
    options = {which: weight, "absolute": absolute}
    expected = reference.attention_map(reference.implicit_attention(**parameters), **options)
    result = attention_map(**parameters, **options)
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(attention_row(**parameters, query=-1, **options), expected[:, -1]) <= 1e-5


def test_rows_of_very_different_weight_are_each_precise():
    operands = make_operands("groups", 33, dtype=torch.float32)
    parameters = without(operands, "u", "D")
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(operands["delta"].shape, generator=generator)
    weight *= torch.logspace(-6, 0, 33)[:, None]
    expected = reference.attention_map(
        reference.implicit_attention(**parameters), query_weight=weight
    )
    result = attention_map(**parameters, query_weight=weight)
    for t in range(33):
        assert relative_error(result[:, t], expected[:, t]) <= 1e-5


def test_weights_of_zero_give_zero():
    operands = make_operands("groups", 17)
    zero = torch.zeros_like(operands["delta"])
    for name in ("query_weight", "key_weight"):
        weights: dict[str, Any] = {name: zero}
        result = attention_map(**without(operands, "u", "D"), **weights)
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("heads", [[6], [-1], [0, 99]])
def test_a_head_that_does_not_exist_is_refused(heads):
    parameters = without(make_operands("groups", 4), "u", "D")
    with pytest.raises(ValueError, match=r"heads names \[.*\]; there are heads 0 to 5"):
        implicit_attention(**parameters, heads=heads)


def test_no_heads_give_an_empty_result():
    parameters = without(make_operands("groups", 4), "u", "D")
    assert implicit_attention(**parameters, heads=[]).shape == (2, 0, 4, 4)


@pytest.mark.parametrize("query", [4, -5])
def test_a_query_that_does_not_exist_is_refused(query):
    parameters = without(make_operands("groups", 4), "u", "D")
    with pytest.raises(ValueError, match=rf"query is token {query}; the text has tokens 0 to 3"):
        attention_row(**parameters, query=query)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_share_read_at_once_multiplies_the_diagonal(shape, dtype, absolute):
    """alpha u + D u is the output of the loop that writes in two steps; maps and rows follow."""
    operands = make_operands(shape, 17, dtype=dtype)
    parameters, share = without(operands, "u", "D"), torch.rand_like(operands["delta"])
    alpha = implicit_attention(**parameters, own_share=share)
    y = torch.einsum("bhts,bshp->bthp", alpha.double(), operands["u"].double())
    y = y + operands["D"].double()[:, None] * operands["u"].double()
    expected = reference.trapezoid_scan(**operands, own_share=share)[0]
    assert relative_error(y, expected) <= BOUND[dtype]
    chosen = implicit_attention(**parameters, heads=[0], own_share=share)
    assert relative_error(chosen, alpha[:, :1]) <= BOUND[dtype]
    weights = dict(zip(("query_weight", "key_weight"), torch.randn(2, *share.shape).to(dtype)))  # noqa: B905
    options = {"absolute": absolute, **weights}
    found = attention_map(**parameters, **options, own_share=share)
    assert relative_error(found, reference.attention_map(alpha.double(), **options)) <= BOUND[dtype]
    for token in (0, 8, -1):
        row = attention_row(**parameters, query=token, **options, own_share=share)
        assert relative_error(row, found[:, token]) <= BOUND[dtype]

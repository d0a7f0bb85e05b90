"""The scan, its states, its attention and its gradients against plain float64 loops."""

import math

import pytest
import reference
import torch
from scan_cases import (
    BOUND,
    DTYPES,
    LENGTHS,
    SHAPES,
    initial_state_for,
    make_mamba1_operands,
    make_operands,
    without,
)
from torch import Tensor

from selective_scan import scan as scan_module
from selective_scan.attention import attention_map, attention_row, implicit_attention
from selective_scan.scan import scan_hidden_states, selective_scan, selective_scan_chunk
from token_statistics.description import relative_error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_and_states_are_those_of_the_loop(shape, length, dtype):
    operands = make_operands(shape, length, dtype=dtype)
    y, h = reference.scan(**operands)
    result = selective_scan(**operands)
    states = scan_hidden_states(**without(operands, "C", "D"))
    assert result.shape == y.shape
    assert result.dtype == dtype
    assert states.shape == h.shape
    assert states.dtype == dtype
    assert relative_error(result, y) <= BOUND[dtype]
    assert relative_error(states, h) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_mamba1_shapes_come_back_as_they_went_in(length, dtype):
    operands = make_mamba1_operands(length=length, dtype=dtype)
    y, h = reference.scan(**reference.heads_form(**operands))
    result = selective_scan(**operands)
    states = scan_hidden_states(**without(operands, "C", "D"))
    assert result.shape == operands["u"].shape
    assert states.shape == (*operands["u"].shape, operands["B"].shape[-1])
    assert relative_error(result, y.squeeze(-1)) <= BOUND[dtype]
    assert relative_error(states, h.squeeze(-2)) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_flat_u_is_its_heads_side_by_side(shape, dtype):
    operands = make_operands(shape, 33, dtype=dtype)
    flat = operands | {"u": operands["u"].flatten(2)}
    state = initial_state_for(operands)
    y, final = selective_scan_chunk(**operands, initial_state=state)
    y_flat, final_flat = selective_scan_chunk(**flat, initial_state=state.flatten(1, 2))
    # The same operations on the same numbers.
    assert torch.equal(y_flat, y.flatten(2))
    assert torch.equal(final_flat, final.flatten(1, 2))
    h = scan_hidden_states(**without(operands, "C", "D"))
    h_flat = scan_hidden_states(**without(flat, "C", "D"))
    assert torch.equal(h_flat, h.flatten(2, 3))
    by_channel = flat | {"D": flat["D"].repeat_interleave(operands["u"].shape[3])}
    assert torch.equal(selective_scan(**by_channel), selective_scan(**flat))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [1, 15, 16, 17, 32])
def test_chunks_give_what_the_whole_gives(shape, border):
    operands = make_operands(shape, 40)
    D, initial = operands["D"], initial_state_for(operands)
    sequences = without(operands, "A", "D")
    first = {name: x[:, :border] for name, x in sequences.items()} | {"A": operands["A"]}
    second = {name: x[:, border:] for name, x in sequences.items()} | {"A": operands["A"]}
    y, h = reference.scan(**operands, initial_state=initial)
    y_first, state = selective_scan_chunk(**first, D=D, initial_state=initial)
    y_second, final = selective_scan_chunk(**second, D=D, initial_state=state)
    assert relative_error(torch.cat([y_first, y_second], 1), y) <= 1e-10
    assert relative_error(state, h[:, border - 1]) <= 1e-10
    assert relative_error(final, h[:, -1]) <= 1e-10
    states = scan_hidden_states(**without(second, "C"), initial_state=state)
    assert relative_error(states, h[:, border:]) <= 1e-10


def test_mamba1_chunks_take_and_give_mamba1_states():
    operands = make_mamba1_operands(length=20)
    initial = torch.full((2, 6, 4), 0.5, dtype=torch.float64)
    heads = reference.heads_form(**operands)
    y, h = reference.scan(**heads, initial_state=initial.unsqueeze(2))
    result, final = selective_scan_chunk(**operands, initial_state=initial)
    assert final.shape == initial.shape
    assert relative_error(result, y.squeeze(-1)) <= 1e-10
    assert relative_error(final, h[:, -1].squeeze(2)) <= 1e-10
    states = scan_hidden_states(**without(operands, "C", "D"), initial_state=initial)
    assert relative_error(states, h.squeeze(3)) <= 1e-10


@pytest.mark.parametrize("shape", ["mamba2", "groups"])
@pytest.mark.parametrize("length", [1, 3, 17])
def test_gradcheck_of_every_argument(shape, length, monkeypatch):
    # Finite differences cost one scan for each number: short blocks make a short text cross many.
    monkeypatch.setattr(scan_module, "_BLOCK", 16 if length == 17 else 2)
    operands = make_operands(shape, length, batch=1)
    arguments = [x.requires_grad_() for x in (*operands.values(), initial_state_for(operands))]
    # fast_mode compares random projections of the Jacobian instead of each of its entries.
    assert torch.autograd.gradcheck(selective_scan_chunk, arguments, fast_mode=length == 17)


def test_gradcheck_of_mamba1_shapes():
    arguments = [x.requires_grad_() for x in make_mamba1_operands(length=3, batch=2).values()]
    assert torch.autograd.gradcheck(selective_scan, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_autograd_through_the_loop(shape, dtype):
    operands = make_operands(shape, 100, dtype=dtype)
    leaves = {**operands, "initial_state": initial_state_for(operands)}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    y, final = selective_scan_chunk(**leaves)
    expected_y, h = reference.scan(**leaves)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(
        (y * weights).sum() + final.square().sum(), list(leaves.values())
    )
    expected = torch.autograd.grad(
        (expected_y * weights).sum() + h[:, -1].square().sum(), list(leaves.values())
    )
    for result, twin in zip(gradients, expected, strict=True):
        # The suite's bound on gradients in float32; in float64 that of the values.
        assert relative_error(result, twin) <= (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_one_argument_alone_is_that_beside_the_others(shape):
    leaves = {name: x.requires_grad_() for name, x in make_operands(shape, 40).items()}
    every = torch.autograd.grad(selective_scan(**leaves).square().sum(), list(leaves.values()))
    for (name, leaf), expected in zip(leaves.items(), every, strict=True):
        alone = {other: x.detach() for other, x in leaves.items()} | {name: leaf}
        (found,) = torch.autograd.grad(selective_scan(**alone).square().sum(), leaf)
        assert torch.equal(found, expected), name  # the same operations


def test_few_states_run_in_one_thread_and_many_in_all(monkeypatch):
    seen, decay = [], scan_module._decay
    monkeypatch.setattr(
        scan_module, "_decay", lambda *given: (seen.append(torch.get_num_threads()), decay(*given))
    )
    monkeypatch.setattr(scan_module, "_FEW_STATES_A_BLOCK", 0)  # token by token, to be counted
    before, operands = torch.get_num_threads(), make_operands("mamba2", 3)
    torch.set_num_threads(2)
    try:
        few = selective_scan(**operands)
        monkeypatch.setattr(scan_module, "_FEW_STATES", 0)
        assert torch.equal(selective_scan(**operands), few)
        assert seen == [1, 1, 1, 2, 2, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decays_of_a_block_at_once_give_what_those_of_each_token_give(shape, dtype, monkeypatch):
    """Values, states and gradients of few states, as of many, beside an intervention."""
    operands = make_operands(shape, 40, dtype=dtype)
    leaves = {**operands, "initial_state": initial_state_for(operands)}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    carry = torch.ones(operands["u"].shape[:2], dtype=dtype)
    carry[:, 23] = 0.0
    inputs = {name: x.detach() for name, x in leaves.items() if name not in ("C", "D")}
    found = {}
    for few in (1 << 20, 0):
        monkeypatch.setattr(scan_module, "_FEW_STATES_A_BLOCK", few)
        y, final = selective_scan_chunk(**leaves, carry=carry)
        grads = torch.autograd.grad((y.sin().sum() + final.cos().sum()), list(leaves.values()))
        found[few] = y, final, scan_hidden_states(**inputs), *grads
    # The same operations on the same numbers; an exponential may round otherwise in the last
    # place where fewer numbers than a vector register holds are left over.
    torch.testing.assert_close(found[0], found[1 << 20], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [1, 7, 256])
def test_the_way_of_an_accelerator_gives_the_same(block, shape, dtype, monkeypatch):
    """By doubling, in large blocks: values, states and gradients of the loop over tokens."""
    monkeypatch.setattr(scan_module, "_steps_by_token", lambda _: False)
    monkeypatch.setattr(scan_module, "_DEVICE_BLOCK", block)
    operands = make_operands(shape, 40, dtype=dtype)
    leaves = {**operands, "initial_state": initial_state_for(operands)}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    carry = torch.ones(operands["u"].shape[:2], dtype=dtype)
    carry[:, 23] = 0.0
    y, final = selective_scan_chunk(**leaves, carry=carry)
    found = torch.autograd.grad(y.square().sum() + final.sum(), list(leaves.values()))
    monkeypatch.undo()
    by_token, last = selective_scan_chunk(**leaves, carry=carry)
    expected = torch.autograd.grad(by_token.square().sum() + last.sum(), list(leaves.values()))
    y_loop, h = reference.scan(**leaves)
    bound = BOUND[dtype]
    assert relative_error(y[:, :23], y_loop[:, :23]) <= bound
    assert relative_error(y, by_token) <= bound
    for result, twin in zip(found, expected, strict=True):
        assert relative_error(result, twin) <= (1e-4 if dtype == torch.float32 else 1e-10)
    monkeypatch.setattr(scan_module, "_steps_by_token", lambda _: False)
    states = scan_hidden_states(
        **without(operands, "C", "D"), initial_state=leaves["initial_state"]
    )
    assert relative_error(states, h) <= bound


def test_a_second_derivative_is_refused_rather_than_wrong():
    operands = make_operands("mamba1", 3)
    u = operands.pop("u").requires_grad_()
    f = selective_scan(u, **operands).square().sum()
    with pytest.raises(RuntimeError, match="differentiable once.*without create_graph=True"):
        torch.autograd.grad(f, u, create_graph=True)


def test_the_future_changes_nothing():
    operands = make_operands("groups", 40)
    parameters = without(operands, "u", "D")
    changed = {
        name: torch.cat([x[:, :20], 2 * x[:, 20:]], 1) if name in ("u", "delta", "B", "C") else x
        for name, x in operands.items()
    }
    changed_parameters = without(changed, "u", "D")
    assert torch.equal(selective_scan(**changed)[:, :20], selective_scan(**operands)[:, :20])
    assert not torch.equal(selective_scan(**changed)[:, 20:], selective_scan(**operands)[:, 20:])
    for function in (implicit_attention, attention_map):
        past, whole = function(**parameters), function(**changed_parameters)
        assert torch.equal(past[..., :20, :20], whole[..., :20, :20])
        assert torch.equal(past.triu(1), torch.zeros_like(past))
    row = attention_row(**parameters, query=19)
    assert torch.equal(row, attention_row(**changed_parameters, query=19))
    assert torch.equal(row[:, 20:], torch.zeros_like(row[:, 20:]))


def test_a_text_is_the_same_in_a_batch_and_alone():
    operands = make_operands("groups", 40, batch=3)
    shared = {name: operands[name] for name in ("A", "D")}
    alone = {name: x[1:2] for name, x in operands.items() if name not in shared} | shared
    parameters, own = without(operands, "u", "D"), without(alone, "u", "D")
    pairs = [
        (selective_scan(**operands), selective_scan(**alone)),
        (implicit_attention(**parameters), implicit_attention(**own)),
        (attention_map(**parameters), attention_map(**own)),
        (attention_map(**parameters, absolute=True), attention_map(**own, absolute=True)),
        (attention_row(**parameters, query=30), attention_row(**own, query=30)),
    ]
    for batched, single in pairs:
        # Products of another batch size may be summed in another order: float64 rounding.
        torch.testing.assert_close(batched[1:2], single, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [100.0, 300.0, 800.0])
def test_extreme_decays_leave_each_token_alone(exponent, dtype):
    operands = make_operands("groups", 33, dtype=dtype)
    operands["delta"] = torch.full_like(operands["delta"], 4.0)
    operands["A"] = torch.full_like(operands["A"], -exponent / 4)
    leaves = {name: x.requires_grad_() for name, x in operands.items()}
    y = selective_scan(**leaves)
    gradients = torch.autograd.grad(y.sum(), list(leaves.values()))
    assert all(bool(torch.isfinite(x).all()) for x in (y, *gradients))
    operands = {name: x.detach() for name, x in operands.items()}
    # exp(-100) = 4e-44 vanishes beside a token's own term in either precision.
    own = (operands["B"] * operands["C"]).sum(-1).repeat_interleave(2, dim=2) * 4
    expected = (own + operands["D"])[..., None] * operands["u"]
    assert relative_error(y.detach(), expected) <= BOUND[dtype]
    alpha = implicit_attention(**without(operands, "u", "D"))
    # float64 holds numbers down to exp(-708), float32 down to exp(-87).
    gone = 1e-40 if dtype == torch.float64 and exponent < 700 else 0.0
    assert float(alpha.tril(-1).abs().max()) <= gone
    diagonal = alpha.diagonal(dim1=2, dim2=3).mT
    assert relative_error(diagonal, own) <= BOUND[dtype]
    for absolute in (False, True):
        result = attention_map(**without(operands, "u", "D"), absolute=absolute)
        assert float(result.tril(-1).abs().max()) <= gone
        assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_resets_the_state_cuts_what_came_before(dtype):
    operands = make_operands("groups", 33, dtype=dtype)
    operands["delta"][:, 20] = 20000.0  # times the slowest rate here: beyond exp's range
    parameters = without(operands, "u", "D")
    alpha = implicit_attention(**parameters)
    assert torch.equal(alpha[:, :, 20:, :20], torch.zeros_like(alpha[:, :, 20:, :20]))
    assert bool((alpha[:, :, :20, 0] != 0).all())
    expected = reference.implicit_attention(**parameters)
    assert relative_error(alpha, expected) <= BOUND[dtype]
    expected_map = reference.attention_map(expected)
    assert relative_error(attention_map(**parameters), expected_map) <= BOUND[dtype]
    for query in (19, 20, 22, 32):
        row = attention_row(**parameters, query=query)
        assert relative_error(row, expected_map[:, query]) <= BOUND[dtype]
        # Entry by entry too: that of the reset itself must not lose its digits in a large sum.
        torch.testing.assert_close(row.double(), expected_map[:, query], rtol=1e-4, atol=1e-6)


def test_a_state_that_hardly_decays_is_a_sum():
    operands = make_operands("mamba1", 100, dtype=torch.float32)
    operands["A"] = torch.full_like(operands["A"], -1e-12)
    alpha = implicit_attention(**without(operands, "u", "D"))
    products = torch.einsum("btgn,bsgn->bts", operands["C"].double(), operands["B"].double())
    expected = products[:, None] * operands["delta"].double().mT[:, :, None, :]
    # 100 tokens at a decay of 1e-12 each: 1e-10, below float32's own rounding.
    assert relative_error(alpha, expected.tril()) <= 1e-5


def test_the_backward_pass_keeps_checkpoints_and_no_states():
    length, heads, states = 128, 32, 16
    u, delta = torch.rand(2, 1, length, heads)
    B, C = torch.rand(2, 1, length, states)
    A, D = -torch.rand(heads, states), torch.rand(heads)
    leaves = [x.requires_grad_() for x in (u, delta, A, B, C, D)]
    kept: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        y = selective_scan(*leaves)
    checkpoints = math.ceil(length / 16) * heads * states * 4
    inputs = sum(x.nbytes for x in leaves)
    assert sum(kept.values()) <= inputs + checkpoints
    assert sum(kept.values()) < length * heads * states * 4 / 2
    y.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


def test_inputs_are_left_as_they_were_and_may_be_strided():
    operands = make_operands("groups", 33)
    before = {name: x.clone() for name, x in operands.items()}
    parameters = without(operands, "u", "D")
    weight = operands["delta"].clone()
    y = selective_scan(**operands)
    scan_hidden_states(**without(operands, "C", "D"))
    implicit_attention(**parameters)
    attention_map(**parameters, query_weight=weight, key_weight=weight)
    attention_row(**parameters, query=3, query_weight=weight, key_weight=weight)
    assert torch.equal(weight, before["delta"])
    for name, x in operands.items():
        assert torch.equal(x, before[name])
    strided = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in operands.items()}
    assert torch.equal(selective_scan(**strided), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    half = make_operands("groups", 33, dtype=dtype)
    single = {name: x.float() for name, x in half.items()}
    assert torch.equal(selective_scan(**half), selective_scan(**single))
    assert torch.equal(
        scan_hidden_states(**without(half, "C", "D")),
        scan_hidden_states(**without(single, "C", "D")),
    )
    half, single = without(half, "u", "D"), without(single, "u", "D")
    assert torch.equal(implicit_attention(**half), implicit_attention(**single))
    weight = half["delta"]
    for absolute in (False, True):
        assert torch.equal(
            attention_map(**half, query_weight=weight, absolute=absolute),
            attention_map(**single, query_weight=weight.float(), absolute=absolute),
        )
    row = attention_row(**half, query=9, key_weight=weight)
    assert torch.equal(row, attention_row(**single, query=9, key_weight=weight.float()))


def test_skip_connection_of_a_head_or_of_each_of_its_channels():
    operands = make_operands("groups", 5)
    D = torch.arange(18, dtype=torch.float64).reshape(6, 3)
    plain = selective_scan(**without(operands, "D"))
    assert relative_error(selective_scan(**operands | {"D": D}), plain + D * operands["u"]) <= 1e-12


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_a_reset_splits_the_text_in_two_and_gradients_stay_right(length):
    torch.manual_seed(0)
    u, delta, B, C = (torch.randn(2, length, n, dtype=torch.float64) for n in (4, 4, 3, 3))
    delta, A = delta.exp(), -torch.rand(4, 3, dtype=torch.float64)
    reset = length // 2
    carry = torch.ones(2, length).index_fill(1, torch.tensor(reset), 0.0)
    operands = [x.requires_grad_() for x in (u, delta, A, B, C)]
    y = selective_scan(*operands, carry=carry)
    parts = [slice(0, reset), slice(reset, length)]
    expected = torch.cat(
        [
            selective_scan(u[:, part], delta[:, part], A, B[:, part], C[:, part])
            for part in parts
            if part.start < part.stop
        ],
        dim=1,
    )
    assert relative_error(y, expected) <= 1e-12  # float64
    weight = torch.randn_like(y)
    found = torch.autograd.grad((y * weight).sum(), operands, allow_unused=True)
    wanted = torch.autograd.grad((expected * weight).sum(), operands)
    for gradient, reference_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="carry must be"):
        selective_scan(*operands, carry=carry[:, :0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_token_leaves_to_the_next_one(shape, dtype):
    """own_share against the loop that writes in two steps; chunks, a flat u and the gradient."""
    operands = make_operands(shape, 33, dtype=dtype)
    share = torch.rand(operands["delta"].shape, generator=torch.Generator().manual_seed(4)).to(
        dtype
    )
    y, h = reference.trapezoid_scan(**operands, own_share=share)
    assert relative_error(selective_scan(**operands, own_share=share), y) <= BOUND[dtype]
    states = without(operands, "C", "D")
    assert relative_error(scan_hidden_states(**states, own_share=share), h) <= BOUND[dtype]
    flat = states | {"u": operands["u"].flatten(2)}
    found = scan_hidden_states(**flat, own_share=share)
    assert relative_error(found, h.flatten(2, 3)) <= BOUND[dtype]
    whole = operands | {"u": operands["u"].flatten(2)}
    assert relative_error(selective_scan(**whole, own_share=share), y.flatten(2)) <= BOUND[dtype]
    every = selective_scan(**operands, own_share=torch.ones_like(share))
    assert relative_error(every, selective_scan(**operands)) <= BOUND[dtype]
    share.requires_grad_()
    (found,) = torch.autograd.grad(selective_scan(**operands, own_share=share).sum(), share)
    (expected,) = torch.autograd.grad(
        reference.trapezoid_scan(**operands, own_share=share)[0].sum(), share
    )
    assert relative_error(found, expected) <= 10 * BOUND[dtype]  # a difference of two large sums


def test_an_own_share_of_another_shape_is_refused():
    operands = make_operands("mamba2", 5)
    with pytest.raises(ValueError, match=r"own_share must be \(b, l, H\) = \(2, 5, 6\)"):
        selective_scan(**operands, own_share=torch.ones(2, 5))

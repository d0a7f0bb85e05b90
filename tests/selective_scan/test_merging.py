"""Sums over pairs of tokens against the loop over them."""

import pytest
import torch
from scan_cases import BOUND, DTYPES

from selective_scan.merging import SummedPairs, passes
from token_statistics.description import relative_error


def expected_sums(query, key, decay):
    length = len(query)
    found = torch.zeros(length, length, dtype=torch.float64)
    for t in range(length):
        for s in range(t):
            kept = decay[s + 1 : t + 1].double().prod(0)
            found[t, s] = (query[t].double() * key[s].double() * kept).sum()
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("states", [3, 1])
def test_sums_are_those_of_the_loop_and_buffers_are_filled_again(dtype, states):
    generator = torch.Generator().manual_seed(0)
    # Around powers of two, and where a last segment has no neighbour at several widths.
    for length in (1, 2, 3, 5, 8, 13, 21, 32, 33):
        out, earlier = torch.zeros(length, length, dtype=dtype), None
        expected = torch.zeros(length, length, dtype=torch.float64)
        for _ in range(2):
            query, key = torch.randn(2, length, 4, 3, generator=generator, dtype=dtype)
            decay = torch.rand(length, 4, states, generator=generator, dtype=dtype)
            expected += expected_sums(query, key, decay)
            pairs = SummedPairs.of_heads(out, 4, 3, states, earlier)
            assert earlier in (None, pairs)
            for buffer, values in ((pairs.query, query), (pairs.key, key), (pairs.decay, decay)):
                buffer.copy_(values)
            pairs.add()
            earlier = pairs
        assert relative_error(out, expected) <= BOUND[dtype] if length > 1 else not out.any()


def test_buffers_that_cannot_be_viewed_are_refused():
    buffers = (torch.zeros(4, 3, 2).mT for _ in range(3))
    with pytest.raises(RuntimeError, match="view"):
        SummedPairs(torch.zeros(4, 4), *buffers)


def test_passes_hold_every_head_once_and_fewer_of_many_states():
    assert passes(150, 16, 128) == [slice(0, 64), slice(64, 128), slice(128, 150)]
    assert passes(5, 16, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert passes(2, 4096, 128) == [slice(0, 1), slice(1, 2)]

"""Maps packed for the report: the error bound, the format, and what is refused."""

import json
import zlib

import numpy as np
import pytest

from result_views.report.packed_maps import (
    LEVELS,
    STRONGEST,
    decimals,
    pack_maps,
    unpack_map,
)


def maps_like_attention(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A signed map that decays with distance, its magnitude, and an even one."""
    rng = np.random.default_rng(seed)
    lag = np.arange(size)[:, None] - np.arange(size)[None]
    signed = np.tril(rng.normal(size=(size, size)) * np.exp(-np.abs(lag) / 20))
    return {"signed": signed, "magnitude": np.abs(signed), "even": np.tril(np.ones((size, size)))}


@pytest.mark.parametrize("max_bytes", [10**9, 4_000, 0])
def test_every_entry_lies_within_half_a_step(max_bytes):
    maps = maps_like_attention(90)
    packed = pack_maps(maps, max_bytes)
    for name, values in maps.items():
        found = unpack_map(packed[name])
        largest = np.abs(values).max(axis=1, keepdims=True)
        # Steps are rounded up by less than 1 %: half a step is at most this share of the largest.
        assert (np.abs(found - values) <= largest / (1.98 * packed[name].levels)).all()
        assert (found[np.triu_indices(90, 1)] == 0).all()


def test_a_map_of_whole_steps_comes_back_exactly():
    even = np.tril(np.full((8, 8), 127 / 1024))  # a step of 2^-10, which bfloat16 holds
    assert (unpack_map(pack_maps({"map": even}, 10**9)["map"]) == even).all()


def test_levels_are_the_most_that_fit_and_the_same_for_all():
    maps = maps_like_attention(90)
    sizes = {}
    for max_bytes in (10**9, 6_000, 0):
        packed = pack_maps(maps, max_bytes)
        levels = {part.levels for part in packed.values()}
        assert len(levels) == 1
        sizes[levels.pop()] = sum(len(part.codes) for part in packed.values())
    assert max(sizes) == LEVELS[0]
    assert min(sizes) == LEVELS[-1]
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    middle = sorted(sizes)[1]
    # Deflating meets the entropy that the choice is made by, to a few per cent and its headers.
    assert sizes[middle] <= 1.05 * 6_000 + 100


def test_packing_is_deterministic_and_json():
    maps = maps_like_attention(20)
    first, again = (pack_maps(maps, 1000)["signed"].to_dict() for _ in range(2))
    assert json.loads(json.dumps(first)) == again
    assert first["size"] == 20


@pytest.mark.parametrize("size", [1, 2])
def test_small_and_zero_maps(size):
    zeros = np.zeros((size, size))
    assert (unpack_map(pack_maps({"map": zeros}, 1000)["map"]) == zeros).all()
    tiny = np.tril(np.full((size, size), 1e-30))
    assert unpack_map(pack_maps({"map": tiny}, 1000)["map"])[0, 0] == pytest.approx(1e-30, rel=0.01)


def test_what_lies_above_the_diagonal_is_left_out():
    values = np.ones((4, 4))
    values[0, 3] = np.nan
    found = unpack_map(pack_maps({"map": values}, 1000)["map"])
    # 1 is 127 steps that are rounded up by less than 1 %.
    assert found == pytest.approx(np.tril(np.ones((4, 4))), rel=0.01)


def test_no_maps_are_no_maps():
    assert pack_maps({}, 1000) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3)), r"map 'bad' has shape \(2, 3\); expected \(tokens, tokens\)"),
        (np.tril(np.full((2, 2), np.inf)), "map 'bad' holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_bad_maps_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        pack_maps({"bad": values}, 1000)


def unpacked_lists(packed, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lags and values of the rows and of the columns, as the page reads them."""
    low, high = np.frombuffer(zlib.decompress(packed.lists), np.uint8).reshape(2, -1).astype(int)
    words = (low + 256 * high).reshape(2, 2, STRONGEST, size)
    return [(lags.astype(int), from_decimals(codes)) for lags, codes in words]


def from_decimals(codes: np.ndarray) -> np.ndarray:
    sign = np.where(codes & 32768, -1.0, 1.0)
    return sign * (codes & 1023) * 10.0 ** (((codes >> 10) & 31).astype(int) - 25)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 90])
def test_the_lists_are_chosen_before_rounding(size):
    """At the coarsest levels a row of 90 has dozens of equal codes; its list is exact."""
    rng = np.random.default_rng(size)
    matrix = np.tril(rng.normal(size=(size, size)))
    packed = pack_maps({"map": matrix}, 0)["map"]
    (row_lags, row_values), (lags, values) = unpacked_lists(packed, size)
    for t in range(size):
        own = sorted(range(t + 1), key=lambda s: -abs(matrix[t, s]))[:STRONGEST]
        assert [t - lag for lag in row_lags[: len(own), t]] == own
        # Half of the third digit is at most 0.5 % of the number.
        np.testing.assert_allclose(row_values[: len(own), t], matrix[t, own], rtol=0.005)
        assert (row_values[len(own) :, t] == 0).all()
        later = sorted(range(t + 1, size), key=lambda q: -abs(matrix[q, t]))[:STRONGEST]
        assert [t + lag for lag in lags[: len(later), t]] == later
        np.testing.assert_allclose(values[: len(later), t], matrix[later, t], rtol=0.005)
        assert (values[len(later) :, t] == 0).all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, 0.0), (0.507, 0.507), (-0.5074, -0.507), (0.9996, 1.0), (999.6, 1000.0), (1.0, 1.0),
        (3e-30, 0.0), (1.234e-23, 1.23e-23), (-9.99e8, -9.99e8), (5e12, 9.99e8), (123456.0, 123000),
    ],
)  # fmt: skip
def test_decimals_have_three_digits(value, shown):
    # A product with a power of ten is off by a bit or two.
    assert from_decimals(decimals(np.array([value])))[0] == pytest.approx(shown, rel=1e-12)

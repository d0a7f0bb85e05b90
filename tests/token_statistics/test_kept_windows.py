"""What is kept does not depend on the order of windows, nor on how they are shared out."""

import numpy as np
import pytest

from token_statistics.kept_windows import (
    BEFORE,
    EXTREMES,
    LOWEST_OCTAVE,
    KeptWindows,
    Window,
    merged_arrays,
    window_hash,
)

NEURONS = 5


def made_windows(count=60, seed=0):
    rng = np.random.default_rng(seed)
    windows = []
    for number in rng.permutation(10 * count)[:count]:
        length = int(rng.integers(1, 70))
        values = (rng.standard_normal((length, NEURONS)) * 2.0 ** rng.integers(-6, 6)).astype(
            np.float32
        )
        values[:, 4] = np.round(values[:, 4])  # ties, and zeros
        windows.append(Window(int(number), int(number) % 7, rng.integers(0, 99, length), values))
    return windows


def kept(windows, seed=3):
    found = KeptWindows(NEURONS, seed)
    for window in windows:
        found.add(window)
    return found.arrays()


def same(a, b):
    return a.keys() == b.keys() and all(x.tobytes() == b[name].tobytes() for name, x in a.items())


def test_neither_order_nor_parts_matter():
    windows = made_windows()
    whole = kept(windows)
    rng = np.random.default_rng(1)
    for parts in (1, 2, 7):
        order = [windows[i] for i in rng.permutation(len(windows))]
        assert same(merged_arrays([kept(order[i::parts]) for i in range(parts)], 3), whole)


@pytest.mark.parametrize(("kind", "sign"), [("highest", -1), ("lowest", 1)])
def test_the_extremes_are_those_of_all_windows(kind, sign):
    windows = made_windows()
    found = kept(windows)
    for neuron in range(NEURONS):
        ends = [(sign * float((sign * w.values[:, neuron]).min()), w.number) for w in windows]
        ends = sorted((sign * value, number) for value, number in ends if sign * value < 0)
        expected = [number for _, number in ends[:EXTREMES]]
        assert found[f"{kind}/number"][neuron].tolist() == expected


def test_of_every_octave_the_window_of_the_smallest_hash_is_kept():
    windows = made_windows()
    found = kept(windows)
    for neuron in range(NEURONS):
        by_octave = {}
        for w in windows:
            largest = np.abs(w.values[:, neuron]).max()
            if largest > 0:
                octave = int(np.floor(np.log2(largest))) - LOWEST_OCTAVE
                by_octave.setdefault(octave, []).append((window_hash(3, w.number), w.number))
        for octave, numbers in by_octave.items():
            if 0 <= octave < found["drawn/number"].shape[1]:
                assert found["drawn/number"][neuron, octave] == min(numbers)[1]


def test_a_context_is_what_stands_around_the_largest():
    windows = {w.number: w for w in made_windows()}
    found = kept(windows.values())
    for slot in range(EXTREMES):
        window = windows[int(found["highest/number"][2, slot])]
        place = int(window.values[:, 2].argmax())
        assert found["highest/position"][2, slot] == place
        assert found["highest/value"][2, slot] == window.values[place, 2]
        ids, values = found["highest/ids"][2, slot], found["highest/values"][2, slot]
        first = max(0, place - BEFORE)
        inside = ids >= 0
        assert ids[inside].tolist() == window.ids[first : first + inside.sum()].tolist()
        assert (values[inside] == window.values[first : first + inside.sum(), 2]).all()
        assert values[BEFORE] == window.values[place, 2]


def test_hashes_are_spread_and_change_with_the_seed():
    hashes = np.array([window_hash(0, number) for number in range(20_000)])
    # The mean of so many uniform numbers has a standard error of 0.002.
    assert abs(hashes.mean() - 0.5) < 0.01
    assert len(set(hashes)) == len(hashes)
    others = np.array([window_hash(1, number) for number in range(20_000)])
    assert abs(np.corrcoef(hashes, others)[0, 1]) < 0.03

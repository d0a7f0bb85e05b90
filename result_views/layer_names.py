"""Layers by name in a sentence: single numbers, runs, and every second one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def layer_names(layers: Sequence[int]) -> str:
    """Name of layers, as in "layer 3", "layers 2 to 9", "odd layers 1 to 11", "layers 0, 4 and 7".

    Three and more in a row are shortened.
    """
    numbers = sorted(set(layers))
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    steps = {b - a for a, b in pairwise(numbers)}
    if steps == {2} and len(numbers) > 2:
        parity = "odd" if numbers[0] % 2 else "even"
        return f"{parity} layers {numbers[0]} to {numbers[-1]}"
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in _runs(numbers)]
    if len(parts) == 1:
        return f"layers {parts[0]}"
    return f"layers {', '.join(parts[:-1])} and {parts[-1]}"


def capitalised(sentence: str) -> str:
    """The sentence with its first letter large and the others as they are."""
    return sentence[:1].upper() + sentence[1:]


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Consecutive numbers together, three and more; two stay by themselves."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [part for run in runs for part in ([run] if len(run) > 2 else [[n] for n in run])]

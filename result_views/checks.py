"""Whether a run's numbers can be trusted, in words: what every report and every terminal says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from suite_plumbing.result_reading import Section, failure
from token_statistics.findings import number


def replay_line(
    error: float | None, tolerance: float | None, of: str = "", *, beyond: str = "BEYOND"
) -> str:
    """The largest relative error of the replayed mixers, and whether rounding explains it.

    ``error`` None: no forward pass succeeded. ``of``: the model, where there are several;
    ``beyond``: how the page sets off the word.
    """
    if error is None or tolerance is None:
        return "No forward pass succeeded: nothing could be checked."
    within = "within" if error <= tolerance else beyond
    return (
        f"Largest replay error{f' of {of}' if of else ''}: {number(error)}, {within} the "
        f"tolerance of {number(tolerance)}."
    )


def check_line(results: Section, **options: str) -> str:
    """`replay_line` of a run's ``self_check``."""
    check = results["self_check"]
    error, tolerance = check.get("largest_replay_error"), check.get("replay_tolerance")
    return replay_line(error, tolerance, **options)


def check_sentence(results: Section) -> str:
    """`check_line`, and what it means for the numbers."""
    line, check = check_line(results), results["self_check"]
    if check.get("largest_replay_error") is None:
        return line
    if check.get("replay_agrees"):
        return f"The analysed mixers reproduce the model's own output. {line}"
    return (
        f"The analysed mixers do not reproduce the model's own output. {line} The numbers are not "
        "to be trusted."
    )


def failures(results: Section) -> list[tuple[str, str]]:
    """Every step without a result: where it stands ("text_1.neurons"), and why."""
    return list(_failures(results["self_check"].get("without_result", {}), ()))


def failure_lines(results: Section) -> list[str]:
    """A line for each of `failures`."""
    return [f"Without result: {place}: {why}" for place, why in failures(results)]


def _failures(part: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if not isinstance(part, Mapping):
        yield ".".join(path), str(part)
    elif {"error", "skipped"} & set(part):
        yield ".".join(path), failure(part) or "no result"
    else:
        for name, below in part.items():
            yield from _failures(below, (*path, name))

"""Run the steps of an analysis so that one that fails leaves the others whole.

The only place of the suite that degrades: it catches ``AnalysisError`` and running out of memory,
records them, skips what depends on the failed step, and lets programming errors through.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from suite_plumbing.errors import AnalysisError, failure_of, is_recoverable
from suite_plumbing.result_files import to_jsonable

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """One step: ``run(inputs, *results of the steps in needs)``."""

    name: str
    run: Callable[..., Any]
    needs: tuple[str, ...] = ()


@dataclass
class StepOutcomes:
    """What the steps gave: a result or a failure for each, by name."""

    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{"error": {"type", "message"}} for a failed step, {"skipped": reason} for its dependents"""


def run_steps(
    steps: Sequence[Step], inputs: Any, after_each: Callable[[], None] | None = None
) -> StepOutcomes:
    """Run the steps in their order; a step whose needs failed is skipped, with the reason.

    ``after_each`` is called when a step has ended, however (for clearing memory). Time and outcome
    of each step are logged at DEBUG, a failure at WARNING.
    """
    outcomes = StepOutcomes()
    for step in steps:
        lacking = [name for name in step.needs if name in outcomes.failures]
        if lacking:
            reason = f"needs {' and '.join(lacking)}, which gave no result"
            outcomes.failures[step.name] = {"skipped": reason}
            continue
        _run_step(step, inputs, outcomes)
        if after_each is not None:
            after_each()
    return outcomes


def _run_step(step: Step, inputs: Any, outcomes: StepOutcomes) -> None:
    start = time.perf_counter()
    try:
        arguments = [outcomes.results[name] for name in step.needs]
        outcomes.results[step.name] = step.run(inputs, *arguments)
    except Exception as error:
        if not is_recoverable(error):
            raise
        logger.warning("step %s failed: %s", step.name, error, exc_info=logger.isEnabledFor(10))
        outcomes.failures[step.name] = failure_of(error)
    logger.debug("step %s took %.2f s", step.name, time.perf_counter() - start)


def step_sections(outcomes: StepOutcomes, steps: Sequence[Step]) -> dict[str, Any]:
    """JSON of every step in order: its result, or why there is none.

    A number that is not finite, of which JSON knows nothing, becomes None; the step is then among
    the failures with the place of that number, and the rest of its result stands.
    """
    sections = {}
    for step in steps:
        lost: list[str] = []
        sections[step.name] = outcomes.failures.get(step.name) or _section(
            outcomes.results[step.name], "", lost
        )
        if lost:
            logger.warning("step %s: %s", step.name, _named(lost))
            outcomes.failures[step.name] = failure_of(AnalysisError(_named(lost)))
    return sections


def _named(lost: Sequence[str]) -> str:
    others = f", and {len(lost) - 3} more are not finite either" if len(lost) > 3 else ""
    return f"{', '.join(lost[:3])}{others}: written as null"


def _section(result: Any, place: str, lost: list[str]) -> Any:
    """Strict JSON of a step's result: layers become ``layer_3``, objects their ``to_dict()``."""
    if hasattr(result, "to_dict"):
        return _section(result.to_dict(), place, lost)
    if isinstance(result, Mapping):
        named = {
            f"layer_{key}" if isinstance(key, int) else key: value for key, value in result.items()
        }
        return {
            key: _section(value, f"{place}.{key}" if place else key, lost)
            for key, value in named.items()
        }
    return to_jsonable(_finite(result, place, lost))


def _finite(value: Any, place: str, lost: list[str]) -> Any:
    """A value with None for the numbers that are not finite, whose places are added to `lost`."""
    if isinstance(value, (list, tuple)):
        return [_finite(item, f"{place}[{i}]", lost) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: _finite(item, f"{place}.{key}", lost) for key, item in value.items()}
    number = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    if isinstance(number, float) and not math.isfinite(number):
        lost.append(f"{place or 'the result'} is {number}")
        return None
    return value

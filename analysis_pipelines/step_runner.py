"""Run the steps of an analysis so that one that fails leaves the others whole.

The only place of the suite that degrades: it catches ``AnalysisError`` and running out of memory,
records them, skips what depends on the failed step, and lets programming errors through.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from utils import AnalysisError, is_out_of_memory

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


def failure_of(error: Exception) -> dict[str, Any]:
    """The record that a failed step leaves in the results."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def is_recoverable(error: Exception) -> bool:
    """Whether an analysis goes on after this error: data that cannot be analysed, or no memory."""
    return isinstance(error, AnalysisError) or is_out_of_memory(error)


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

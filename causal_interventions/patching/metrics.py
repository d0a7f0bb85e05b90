"""What is measured of a prediction when a run is patched.

Each metric is a function of the logits at one position, larger where the clean answer is given.
Normalised, an effect is 0 at the corrupt run and 1 at the clean one:
(m - m_corrupt) / (m_clean - m_corrupt), which may lie outside [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from suite_plumbing.arguments import validate_choice


class Answers(NamedTuple):
    """What a metric compares a prediction with, a row for each prediction."""

    tokens: Tensor
    """(r, 2) ids of the answer to the clean text and of that to the corrupt one"""
    clean_log_p: Tensor
    """(r, V) ln p of the next token in the clean run"""

    def rows(self, chosen: Tensor) -> Answers:
        """Of these rows (k,)."""
        return Answers(self.tokens[chosen], self.clean_log_p[chosen])


def _logit_difference(logits: Tensor, answers: Answers) -> Tensor:
    first, second = logits.gather(1, answers.tokens).unbind(1)
    return first - second


def _log_probability(logits: Tensor, answers: Answers) -> Tensor:
    return logits.log_softmax(-1).gather(1, answers.tokens[:, :1])[:, 0]


def _minus_kl(logits: Tensor, answers: Answers) -> Tensor:
    clean = answers.clean_log_p
    return (clean.exp() * (logits.log_softmax(-1) - clean)).sum(-1)


METRICS: dict[str, Callable[[Tensor, Answers], Tensor]] = {
    "logit_difference": _logit_difference,
    "log_probability": _log_probability,
    "kl": _minus_kl,
}
"""By name, (logits (r, V), answers) -> (r,): logit of the clean text's answer minus that of the
corrupt text's; ln p of the clean answer, nats; -KL(clean || patched), nats, so that the clean run
has 0."""


def measured(metric: str, logits: Tensor, answers: Answers) -> Tensor:
    """(r,) the metric, in the logits' dtype, at least float32; ValueError for an unknown one."""
    function = METRICS[validate_choice("metric", metric, METRICS)]
    return function(logits if logits.dtype == torch.float64 else logits.float(), answers)

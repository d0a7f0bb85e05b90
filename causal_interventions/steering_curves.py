"""What steering does and what it costs, over the coefficient, beside random vectors.

Effect: how far the target moves after the prompts, its log-probability by default. Side effect, on
texts that have nothing to do with it: KL(clean || steered) of the next-token distributions and the
loss, means over tokens. A direction means something where its effect lies outside those of random
vectors of the same norm at the same coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.steering_edits import steered
from causal_interventions.steering_vectors import SteeringVector, random_vectors
from causal_interventions.targets import PinnedTarget, Target
from mamba_mixers.running import fast_scan
from suite_plumbing.arguments import torch_rng, validate_int, validate_number
from suite_plumbing.models import execution_device
from suite_plumbing.progress import progress
from suite_plumbing.result_files import table_html
from suite_plumbing.texts import EncodedText, pad_batch
from token_statistics.intervals import mean_interval

MIN_RANDOM = 20
"""Random vectors at least: 19 at most are exceeded by one in 20 by chance."""

COEFFICIENTS = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
"""By default, in units of the vector."""

_BATCH = 8


class SteeringEffect(NamedTuple):
    """One vector at one coefficient."""

    coefficient: float
    vector: str
    """"steering", or "random" """
    number: int
    """of the random vector; 0 for the vector itself"""
    target_change: float
    """steered minus clean target, mean over prompts; nats for log-probabilities and losses"""
    kl: float
    """KL(clean || steered) on unrelated texts, mean over tokens, nats"""
    loss_change: float
    """change of -ln p(next token) on unrelated texts, mean over tokens, nats"""

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity steered over clean on the unrelated texts."""
        return math.exp(min(self.loss_change, 700.0))


@dataclass(frozen=True, eq=False)
class SteeringCurve:
    """Effect and side effect of a vector over the coefficient, and of random ones."""

    vector: SteeringVector
    mode: str
    """see ``steering_edits``"""
    start: int
    """token from which on every text was steered"""
    target: Target
    effects: tuple[SteeringEffect, ...]
    """by coefficient, the vector first, then the random ones"""
    by_prompt: dict[float, tuple[float, ...]]
    """by coefficient the vector's change of the target in every prompt"""
    clean_target: float
    """mean over prompts"""
    clean_loss: float
    """mean over tokens of the unrelated texts, nats"""
    num_prompts: int
    num_tokens: int
    """of the unrelated texts, those that are predicted"""
    num_random: int
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """One row a coefficient, for a table: see :meth:`to_dataframe`."""
        return [self._row(coefficient) for coefficient in self.by_prompt]

    def to_dataframe(self) -> pd.DataFrame:
        """By coefficient: the target's change with its 95 % interval over prompts, the lowest and
        highest of random vectors, their p, KL and perplexity ratio beside the random mean."""
        return pd.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        return table_html(self.to_dataframe())

    def to_dict(self) -> dict[str, Any]:
        """The curve for JSON."""
        return {
            "vector": self.vector.to_dict(),
            "mode": self.mode,
            "start": self.start,
            "target": self.target.to_dict(),
            "clean_target": self.clean_target,
            "clean_loss": self.clean_loss,
            "num_prompts": self.num_prompts,
            "num_tokens": self.num_tokens,
            "num_random": self.num_random,
            "seed": self.seed,
            "by_coefficient": self.rows(),
            "effects": [effect._asdict() for effect in self.effects],
        }

    def _row(self, coefficient: float) -> dict[str, Any]:
        found = [effect for effect in self.effects if effect.coefficient == coefficient]
        own, drawn = found[0], found[1:]
        random = np.array([effect.target_change for effect in drawn])
        interval = mean_interval(self.by_prompt[coefficient], seed=self.seed)
        beyond = int((np.abs(random) >= abs(own.target_change)).sum())
        return {
            "coefficient": coefficient,
            "target_change": own.target_change,
            "low": interval.low,
            "high": interval.high,
            "reason": interval.reason,
            "random_mean": float(random.mean()),
            "random_low": float(random.min()),
            "random_high": float(random.max()),
            "p": (1 + beyond) / (1 + len(random)),
            "kl": own.kl,
            "random_kl": float(np.mean([effect.kl for effect in drawn])),
            "perplexity_ratio": own.perplexity_ratio,
            "random_perplexity_ratio": float(np.mean([e.perplexity_ratio for e in drawn])),
        }


@torch.no_grad()
def steering_curve(
    model: PreTrainedModel,
    vector: SteeringVector,
    prompts: Sequence[EncodedText],
    unrelated: Sequence[EncodedText],
    target: Target,
    *,
    padding: int,
    coefficients: Sequence[float] = COEFFICIENTS,
    mode: str = "add",
    start: int = 0,
    num_random: int = MIN_RANDOM,
    seed: int = 0,
) -> SteeringCurve:
    """Effect on ``prompts`` and side effect on ``unrelated`` texts at every coefficient.

    Each text is steered from its token ``start`` on.

    ``num_random`` >= ``MIN_RANDOM`` vectors of the same norm, the same ones at every coefficient;
    seeded. For "scale" each is the vector with its channels exchanged. The target is pinned on the
    clean prompts. Raises ValueError for no coefficients, one that is no finite number or comes
    twice, a start that a prompt does not have, fewer random vectors, and as ``Target.pin``.
    Cost: (1 + num_random) forward passes of all texts for each coefficient.
    """
    places = [validate_number("coefficient", x) for x in coefficients]
    if not places or len(set(places)) < len(places):
        raise ValueError(f"coefficients is {list(coefficients)}; pass different numbers")
    validate_int("num_random", num_random, MIN_RANDOM)
    _check_start(start, prompts)
    watched = _Watched.of(model, prompts, unrelated, target, padding)
    vectors = [vector, *_controls(vector, mode, num_random, seed)]
    effects, by_prompt = [], {}
    for coefficient in progress(places, desc="coefficients"):
        for number, one in enumerate(vectors):
            with steered(model, one, coefficient, mode, start):
                changes, kl, loss = watched.changes(model)
            if number == 0:
                by_prompt[coefficient] = tuple(changes.tolist())
            kind = "random" if number else "steering"
            drawn = max(number - 1, 0)
            mean = float(changes.mean())
            effects.append(SteeringEffect(coefficient, kind, drawn, mean, kl, loss))
    return SteeringCurve(
        vector, mode, start, target, tuple(effects), by_prompt, float(watched.clean.mean()),
        watched.clean_loss, len(prompts), watched.num_tokens, num_random, seed,
    )  # fmt: skip


def _check_start(start: int, prompts: Sequence[EncodedText]) -> None:
    first = validate_int("start", start, 0)
    for number, prompt in enumerate(prompts):
        if first >= (length := len(prompt.input_ids)):
            raise ValueError(
                f"start is {first}, but prompt {number} has {length} tokens, so that nothing of it "
                f"would be steered; pass 0 to {length - 1}"
            )


def _controls(vector: SteeringVector, mode: str, count: int, seed: int) -> list[SteeringVector]:
    generator = torch_rng(seed)
    if mode != "scale":
        drawn = random_vectors(vector, count, generator)
    else:
        flat = vector.values.flatten()
        orders = [torch.randperm(len(flat), generator=generator) for _ in range(count)]
        drawn = [flat[order].view_as(vector.values) for order in orders]
    return [replace(vector, values=values, source="random") for values in drawn]


class _Batch(NamedTuple):
    ids: Tensor
    mask: Tensor


class _Prompts(NamedTuple):
    batch: _Batch
    pinned: PinnedTarget


class _Unrelated(NamedTuple):
    batch: _Batch
    log_p: Tensor  # (tokens, V) of those with a next token
    following: Tensor


@dataclass(frozen=True, eq=False)
class _Watched:
    """What the clean model makes of prompts and unrelated texts."""

    prompts: list[_Prompts]
    unrelated: list[_Unrelated]
    clean: Tensor
    clean_loss: float

    @classmethod
    def of(cls, model, prompts, unrelated, target: Target, padding: int) -> _Watched:
        kept, values, texts = [], [], []
        with fast_scan(model):
            for batch in _batches(model, prompts, padding):
                logits = _logits(model, batch)
                kept.append(_Prompts(batch, target.pin(logits, batch.ids, batch.mask)))
                values.append(kept[-1].pinned(logits))
            for batch in _batches(model, unrelated, padding):
                log_p, following = _predictions(_logits(model, batch), batch)
                texts.append(_Unrelated(batch, log_p, following))
        losses = torch.cat([_losses(text.log_p, text.following) for text in texts])
        return cls(kept, texts, torch.cat(values).double().cpu(), float(losses.mean()))

    @property
    def num_tokens(self) -> int:
        return sum(len(text.following) for text in self.unrelated)

    def changes(self, model: PreTrainedModel) -> tuple[Tensor, float, float]:
        """(prompts,) change of the target, mean KL, change of the mean loss."""
        found = [one.pinned(_logits(model, one.batch)) for one in self.prompts]
        kl, loss = [], []
        for text in self.unrelated:
            log_q, _ = _predictions(_logits(model, text.batch), text.batch)
            # Rounding can leave a KL of equal distributions just below 0.
            kl.append((text.log_p.exp() * (text.log_p - log_q)).sum(-1).clamp_min(0))
            loss.append(_losses(log_q, text.following))
        change = torch.cat(found).double().cpu() - self.clean
        return change, float(torch.cat(kl).mean()), float(torch.cat(loss).mean()) - self.clean_loss


def _batches(model: Any, encoded: Sequence[EncodedText], padding: int) -> list[_Batch]:
    device = execution_device(model)
    parts = [encoded[i : i + _BATCH] for i in range(0, len(encoded), _BATCH)]
    return [_Batch(*(x.to(device) for x in pad_batch(part, padding))) for part in parts]


def _logits(model: Any, batch: _Batch) -> Tensor:
    return model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, return_dict=True
    ).logits.float()


def _predictions(logits: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
    """(tokens, V) log-probabilities where a token follows, and (tokens,) those tokens."""
    both = (batch.mask[:, :-1] * batch.mask[:, 1:]).bool()
    return logits[:, :-1][both].log_softmax(-1), batch.ids[:, 1:][both]


def _losses(log_p: Tensor, following: Tensor) -> Tensor:
    return -log_p.gather(1, following[:, None])[:, 0].double()

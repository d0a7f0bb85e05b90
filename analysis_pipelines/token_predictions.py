"""What each token of a text cost, and what the model expected in its place: of the token view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mamba_mixers.running import fast_scan
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device
from suite_plumbing.result_files import three_digits
from suite_plumbing.texts import EncodedText

BLOCK = 64
"""Positions whose logits are looked at at once: those of a text may take more than all else."""


def token_predictions(
    model: PreTrainedModel, encoded: Sequence[EncodedText], tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, list[Any]]]:
    """By text, a value a token, None at the first: ``loss``, -ln p of the token after those before
    it, nats; ``expected``, the token of largest p there, decoded; ``expected_p``, that p.

    Raises AnalysisError for logits that are NaN or infinite. Cost: one forward pass a text by the
    suite's scan.
    """
    return {
        f"text_{i}": predictions_of_logits(
            logits_of_text(model, text.input_ids), text.input_ids, tokenizer
        )
        for i, text in enumerate(encoded)
    }


@torch.no_grad()
def logits_of_text(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """(l, V) logits of one text, by the suite's scan."""
    tokens = torch.tensor([list(ids)], device=execution_device(model))
    with fast_scan(model):
        return model(input_ids=tokens, use_cache=False, return_dict=True).logits[0]


def predictions_of_logits(
    logits: Tensor, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """`token_predictions` of one text that has been read: its logits (l, V)."""
    return predictions_of_blocks(logits.split(BLOCK), ids, tokenizer)


def predictions_of_blocks(
    blocks: Iterable[Tensor], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    """As `predictions_of_logits`, of logits that come as blocks of positions (positions, V)."""
    found: dict[str, list[Any]] = {"loss": [None], "expected": [None], "expected_p": [None]}
    start = 1
    for block in blocks:
        following = torch.tensor(list(ids[start : start + len(block)]), dtype=torch.long)
        start += len(block)
        logits = block[: len(following)].float()
        if not bool(torch.isfinite(logits).all()):
            raise AnalysisError("the logits hold NaN or infinity: the model overflows on a text")
        normaliser = logits.logsumexp(-1)
        loss = normaliser - logits.gather(1, following.to(logits.device)[:, None])[:, 0]
        best = logits.max(-1)
        found["loss"] += map(three_digits, loss.tolist())
        found["expected"] += (tokenizer.decode([token]) for token in best.indices.tolist())
        found["expected_p"] += map(three_digits, (best.values - normaliser).exp().tolist())
    return found

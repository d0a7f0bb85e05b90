"""What each token of a text cost, and what the model expected in its place: of the token view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mamba_mixers.running import fast_scan
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device
from suite_plumbing.result_files import three_digits
from suite_plumbing.texts import EncodedText


@torch.no_grad()
def token_predictions(
    model: PreTrainedModel, encoded: Sequence[EncodedText], tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, list[Any]]]:
    """By text, a value a token, None at the first: ``loss``, -ln p of the token after those before
    it, nats; ``expected``, the token of largest p there, decoded; ``expected_p``, that p.

    Raises AnalysisError for logits that are NaN or infinite. Cost: one forward pass a text by the
    suite's scan.
    """
    return {
        f"text_{i}": _of_text(model, text.input_ids, tokenizer) for i, text in enumerate(encoded)
    }


def _of_text(
    model: PreTrainedModel, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Any]]:
    tokens = torch.tensor([list(ids)], device=execution_device(model))
    with fast_scan(model):
        logits = model(input_ids=tokens, use_cache=False, return_dict=True).logits[0, :-1].float()
    if not bool(torch.isfinite(logits).all()):
        raise AnalysisError("the logits hold NaN or infinity: the model overflows on a text")
    normaliser = logits.logsumexp(-1)
    loss = normaliser - logits.gather(1, tokens[0, 1:, None])[:, 0]
    best = logits.max(-1)
    p = (best.values - normaliser).exp()
    return {
        "loss": [None, *map(three_digits, loss.tolist())],
        "expected": [None, *(tokenizer.decode([token]) for token in best.indices.tolist())],
        "expected_p": [None, *map(three_digits, p.tolist())],
    }

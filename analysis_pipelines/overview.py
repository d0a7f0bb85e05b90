"""The overview: what every SSM layer of a model does with its memory, and answers made from it.

One forward pass a text over all SSM layers, by the suite's own scan, whatever layers the steps of
the analysis look at; of each layer a few numbers are kept. The last tokens of a text are read once
more for each layer, with its state erased. ``overview_rows`` joins the texts and tests what can be
tested; ``overview_answers`` says what may be said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.overview_answers import answers
from analysis_pipelines.overview_rows import LayerFacts, TextFacts, joined
from causal_interventions.state_resets import erased_layers, reset_costs, tokens_read_on
from mamba_mixers.recording import observing_streams
from mamba_mixers.replay import MixerMemory, MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import UnsupportedModelError, find_mixers, num_layers
from ssm_measures.copying import EarlierTokens, copying_sums, earlier_tokens, query_shifts
from ssm_measures.layer_overview import heads_that_fit, layer_text
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device
from suite_plumbing.progress import progress
from suite_plumbing.related_texts import readings
from suite_plumbing.result_files import six_digits, to_jsonable
from suite_plumbing.texts import EncodedText, repeated_texts, token_pieces

SHORTEST_TO_RESET = 32
"""Tokens of a text whose states are erased: of a shorter one little is left before and after."""

STREAM_TOKENS = 1 << 13
"""Tokens whose streams are left for others, 25 MB at mamba-130m's width; later texts leave none."""


def overview(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    after_each: Callable[[], None] | None = None,
    streams: MutableMapping[tuple[int, ...], Tensor] | None = None,
) -> dict[str, Any]:
    """``layers``, one row a layer; ``all_states``, erased together; ``questions``, tried together;
    and ``answers``; strict JSON.

    A text given again counts once. ``streams`` takes, by the ids of a text, the stream after the
    last layer (l, d_model), for those who want its logits, of the first `STREAM_TOKENS` tokens.
    Cost: see the module; at mamba-130m's shape and 512 tokens about two thirds of a stock forward
    pass a text.
    """
    again = repeated_texts(encoded)
    read = readings([text.input_ids for text in encoded])
    max_heads = heads_that_fit(max(len(text.input_ids) for text in encoded))
    texts = []
    for index in progress([i for i in range(len(encoded)) if i not in again], desc="overview"):
        ids = list(encoded[index].input_ids)
        with _last_streams(model) as parts:
            facts = text_facts(model, ids, token_pieces(tokenizer, ids), max_heads)
        if streams is not None and sum(map(len, [*streams, ids])) <= STREAM_TOKENS:
            streams[tuple(ids)] = torch.cat(parts)
        texts.append(replace(facts, group=read[index].group))
        if after_each is not None:
            after_each()
    found = joined(texts, seed)
    section = {**found, "answers": [one.to_dict() for one in answers(found)]}
    return to_jsonable(six_digits(section))


@contextmanager
def _last_streams(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within this context a list grows by the stream after the last layer of every pass, in its
    first row: the beginning of a text, and its end with nothing erased."""
    parts: list[Tensor] = []
    last = [num_layers(model) - 1]
    with observing_streams(model, last, lambda _, stream: parts.append(stream[0].clone())):
        yield parts


def text_facts(
    model: PreTrainedModel, input_ids: Sequence[int], pieces: Sequence[str], max_heads: int
) -> TextFacts:
    """What the overview keeps of one text; ``pieces`` are its decoded tokens.

    Where the model has memory outside its SSMs, or the text is short, no state is erased, and all
    of the text is in the measures.
    """
    reason = _why_no_reset(model, len(input_ids))
    erased = erased_layers(sorted(find_mixers(model)))
    rest = 0 if reason else tokens_read_on(len(input_ids), len(erased))
    start = len(input_ids) - rest
    seen = _Seen(earlier_tokens(input_ids[:start]), max_heads, {})
    memories: dict[int, MixerMemory] = {}
    ids = torch.tensor([input_ids[:start]], device=execution_device(model))
    with (
        torch.no_grad(),
        fast_scan(model, observe=seen.measure, memories=None if reason else memories),
    ):
        model.base_model(input_ids=ids, use_cache=False)
    costs = None if reason else reset_costs(model, memories, input_ids, start, erased)
    return TextFacts(len(input_ids), tuple(pieces[:start]), seen.layers, costs, reason)


def _why_no_reset(model: PreTrainedModel, length: int) -> str | None:
    if length < SHORTEST_TO_RESET:
        return f"a text of {length} tokens is too short to go on from an erased state"
    try:
        with fast_scan(model, memories={}):
            return None
    except UnsupportedModelError:
        return "the model remembers in attention layers too: erased states are no empty memory"


class _Seen(NamedTuple):
    """Measures each layer as the forward pass comes to it."""

    pairs: EarlierTokens
    max_heads: int
    layers: dict[int, LayerFacts]

    def measure(self, layer: int, replay: MixerReplay) -> None:
        """Keep what the overview needs of this layer; AnalysisError where it overflows."""
        if not bool(torch.isfinite(replay.output).all()):
            raise AnalysisError(
                f"the output of layer {layer} holds NaN or infinity: the model overflows on a text"
            )
        found = layer_text(replay, self.max_heads)
        shifts = [0, *query_shifts()]
        self.layers[layer] = LayerFacts(
            found._replace(shares=found.shares[:0]),
            copying_sums(found.shares, self.pairs, shifts),
            copying_sums(found.shares, self.pairs.repeated, shifts[:1]),
        )

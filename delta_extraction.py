"""Delta, the step size of a selective SSM: what it lets a layer remember, and who depends on it.

Delta sets how fast a state decays and how much a token writes: h_t = exp(delta_t A) h_{t-1} +
delta_t B_t u_t. Here is the memory of a layer under its own delta: half-lives, survival,
selectivity. The class adds the tokens at which delta is large or small
(`ssm_measures.gate_tokens`), its correlation with the activation of each neuron, and the change of
each neuron when delta is really changed (`ssm_measures.delta_neurons`).

Reference: Gu & Dao 2023, Mamba, sections 3.2 and 3.5.1 (delta as a generalised gate).

Each head has one delta: in Mamba-1 every channel is a head, in Mamba-2 the channels of a head share
its delta. Neurons are the d_inner channels at out_proj's input. Tokens of all texts are pooled,
padding left out. Letters: the glossary of `selective_scan`.
From a shell: ``python delta_extraction.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import delta_extraction_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(delta_extraction_options)

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mamba_mixers.sites import model_layers
from result_views.figures.titles import step_title
from result_views.step_lines import over_texts, step_lines
from selective_scan.scan import half_life
from ssm_component_extractor import capture_for, capture_texts, captures_of
from ssm_measures.components import (
    Capture,
    SSMComponents,
    captured_ids,
    checked_deltas,
    extracted_layer,
    layer_components,
)
from ssm_measures.delta_neurons import (
    SCALE_FACTOR,
    DeltaNeuronCorrelation,
    DeltaSensitivity,
    delta_neuron_correlation,
    delta_sensitivity,
)
from ssm_measures.gate_tokens import TOP_TOKENS, GateTokens, TokenDelta, gate_tokens
from ssm_measures.tokens_to_half import tokens_to_half
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import (
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.messages import quoted
from suite_plumbing.model_inputs import encode_for
from suite_plumbing.models import ModelAnalyzer, require_tokenizer
from suite_plumbing.one_thread import one_thread
from suite_plumbing.other_names import also_named
from suite_plumbing.precision import in_full_precision
from suite_plumbing.result_files import finite_or_none, write_csv, write_tensors, written_together
from suite_plumbing.texts import padding_id, token_pieces
from token_statistics.autocorrelation import (
    MeanAutocorrelation,
    long_enough,
    mean_autocorrelation,
)
from token_statistics.description import FloatArray, summarise, unit_columns
from token_statistics.observations import Observations, observations, row_tokens
from token_statistics.time_shift_nulls import fields_to_dict

TIME_SCALES = ("short", "medium", "long")
"""Terciles of the channels by half-life."""

# The longest lag at which survival is measured, as far as the texts reach.
_MAX_SURVIVAL_LAG = 256

_AUTOCORRELATION_LAGS = 16


class TimeScaleClass(NamedTuple):
    """A third of the channels, by half-life."""

    num_channels: int
    half_life: dict[str, float | int | None]
    """summary of the channels' half-lives, tokens"""
    mean_delta: float
    survival: tuple[float, ...]
    """mean survival of these channels at each lag"""


@dataclass(frozen=True, eq=False)
class DeltaMemory:
    """What one layer's delta lets it remember.

    mean, var: over pooled tokens, per channel c; delta_tc is delta at token t. Tokens are those
    that are new (`token_statistics.observations`), with what lies before them as their past.
    """

    layer: int
    num_tokens: int
    num_texts: int
    num_groups: int
    """independent groups of related texts"""
    delta: dict[str, float | int | None]
    """summary of delta over tokens and channels"""
    consistency: float | None
    """mean over t of the Pearson correlation over channels of delta_t with the mean of the other
    tokens' delta, in [-1, 1]: 1 when every token uses the same profile of step sizes. None for one
    token, or where a profile is flat"""
    persistence: float
    """mean over t, c, n of exp(delta_tc A_cn), in (0, 1): share of the state kept by a token"""
    temporal_variance: float | None
    """mean over c of var_t(delta_tc) / mean_t(delta_tc)^2, >= 0, n - 1 in the variance: squared
    coefficient of variation, so that channels count alike; without those whose delta is 0 at every
    token. None for one token, and where every channel is such"""
    selectivity: float | None
    """share of the variance of delta that lies between tokens of one channel, in [0, 1]: sum_tc
    (delta_tc - mean_t)^2 / sum_tc (delta_tc - mean_tc)^2. 0 is a fixed SSM; None if delta is one
    constant"""
    autocorrelation: MeanAutocorrelation
    """of delta over time, mean over channels, beside that of shuffled tokens"""
    half_life: Tensor
    """(H, d_state), in Mamba-2 (H, 1): ln 2 / (mean_t delta_th |A_hn|), tokens, > 0: of a delta
    that is its mean at every token"""
    channel_half_life: Tensor
    """(H,) half-life of the slowest state of each head, in Mamba-1 of each channel, tokens"""
    tokens_to_half: Tensor
    """(H,) tokens until half is left in the slowest state of each head, in the median over tokens,
    by delta as it is: see `tokens_to_half`; inf where the texts are too short to say. What a gate
    keeps shut for long and opens for a moment has a short half-life and a long one of these"""
    lags: tuple[int, ...]
    """tokens, at which survival is measured"""
    survival: tuple[float, ...]
    """mean over t, c, n of exp(A_cn (S_t - S_{t-lag})), S the running sum of delta, in (0, 1]:
    what is left after `lag` tokens of what a token wrote"""
    by_time_scale: dict[str, TimeScaleClass]
    """TIME_SCALES: terciles of channel_half_life, equal in size but for rounding"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON, with summaries of the half-lives."""
        result = fields_to_dict(self)
        for name in ("half_life", "channel_half_life"):
            result[name] = summarise(getattr(self, name))
        result["tokens_to_half"] = _with_endless(self.tokens_to_half)
        return result


def _with_endless(tokens: Tensor) -> dict[str, Any]:
    """Summary of tokens of which some are inf: more than the texts show. Its median counts them,
    and is None with the ``reason`` where it is one of them."""
    endless = int(tokens.isinf().sum())
    median = float(np.median(tokens.numpy()))
    found = {**summarise(tokens), "median": finite_or_none(median), "num_limited_by_text": endless}
    reason = None if math.isfinite(median) else "limited by the text: half of the heads keep longer"
    return {**found, "reason": reason}


def delta_memory(
    texts: Sequence[SSMComponents],
    layer: int = 0,
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> DeltaMemory:
    """Memory of one layer under its own delta, over one or more texts (b = 1, no padding).

    ``token_ids``: of each text, by which what was read before is known; None: by equal delta.
    Raises ValueError for no texts or padding. Cost: that of `delta_extraction.survival`, and of a
    Gram matrix over tokens; memory O(tokens * H) beyond the components.
    """
    seed = validate_int("seed", seed, 0)
    deltas, lengths = checked_deltas(texts)
    tokens = _new_tokens(deltas, lengths, token_ids)
    new, every = tokens.new_by_text, np.concatenate(deltas)
    A, pooled = texts[0].A.double(), every[tokens.distinct_rows]
    means = pooled.mean(axis=0)
    half_lives = half_life(torch.from_numpy(means), A)
    surviving = survival(deltas, A, _MAX_SURVIVAL_LAG, new)
    slowest = half_lives.amax(dim=1)
    order = np.argsort(slowest.numpy(), kind="stable")
    thirds = zip(TIME_SCALES, np.array_split(order, len(TIME_SCALES)), strict=True)
    return DeltaMemory(
        layer=layer,
        num_tokens=len(pooled),
        num_texts=len(lengths),
        num_groups=len(set(tokens.groups)),
        delta=summarise(pooled),
        consistency=_profile_consistency(pooled),
        persistence=float(surviving.kept.mean()),
        temporal_variance=_temporal_variance(pooled),
        selectivity=_selectivity(pooled),
        autocorrelation=_autocorrelation(every, tokens, seed),
        half_life=half_lives.float(),
        channel_half_life=slowest.float(),
        tokens_to_half=torch.from_numpy(
            tokens_to_half(deltas, A.abs().amin(1).numpy(), new)
        ).float(),
        lags=surviving.lags,
        survival=tuple(surviving.shares.mean(axis=1).tolist()),
        by_time_scale={
            name: TimeScaleClass(
                len(channels),
                summarise(slowest[channels]),
                float(means[channels].mean()),
                tuple(surviving.shares[:, channels].mean(axis=1).tolist()),
            )
            for name, channels in thirds
            if len(channels)
        },
    )


def _new_tokens(
    deltas: Sequence[FloatArray],
    lengths: Sequence[int],
    token_ids: Sequence[Sequence[int]] | None,
) -> Observations:
    """What is new in each text; ValueError for ids of other lengths."""
    if token_ids is None:
        return observations(row_tokens([np.concatenate(deltas)], lengths))
    if [len(ids) for ids in token_ids] != list(lengths):
        raise ValueError(
            f"token_ids holds texts of {[len(ids) for ids in token_ids]} tokens, the components "
            f"{list(lengths)}; pass the ids of the same tokens"
        )
    return observations(token_ids)


def _autocorrelation(deltas: FloatArray, tokens: Observations, seed: int) -> MeanAutocorrelation:
    """Of delta at the tokens that are new, related texts shuffled alike; short rests left out."""
    new = tokens.new_stretches
    long = [new[i] for i in long_enough([stop - first for _, first, stop in new])]
    begins = np.cumsum([0, *tokens.lengths])
    rows = [np.arange(begins[i] + first, begins[i] + stop) for i, first, stop in long]
    return mean_autocorrelation(
        deltas[np.concatenate(rows)],
        [len(one) for one in rows],
        _AUTOCORRELATION_LAGS,
        together=tokens.together(long),
        seed=seed,
    )


class DeltaExtractor(ModelAnalyzer):
    """Delta of chosen layers, its memory, and the neurons that depend on it."""

    @also_named(layers="layer_indices", text="input_text", texts="input_text")
    def extract_deltas(
        self, layer_indices: Sequence[int] | str | None, input_text: str | Sequence[str]
    ) -> dict[int, Tensor]:
        """Delta (b, l, H) after softplus, by layer; several texts are left padded.

        Entries at padding mean nothing; the other methods leave them out. Raises ValueError for a
        bad layer or text.
        """
        self.capture_ = capture_for(self.model, self.tokenizer, layer_indices, input_text)
        self.deltas_ = {layer: parts.delta for layer, parts in self.capture_.components.items()}
        return self.deltas_

    @also_named(layer="layer_idx")
    def analyze_memory(self, layer_idx: int, *, seed: int = 0) -> DeltaMemory:
        """`delta_memory` of one extracted layer; RuntimeError before `extract_deltas`."""
        texts, ids = self._texts(layer_idx), captured_ids([self.capture_])
        return delta_memory(texts, layer_idx, token_ids=ids, seed=seed)

    @also_named(layer="layer_idx")
    def find_gate_tokens(
        self, layer_idx: int, *, top_k: int = TOP_TOKENS, seed: int = 0
    ) -> GateTokens:
        """`gate_tokens` of one extracted layer; RuntimeError before `extract_deltas`."""
        texts = self._texts(layer_idx)
        pieces = _pieces_of(require_tokenizer(self.model, self.tokenizer), [self.capture_])
        ids = captured_ids([self.capture_])
        return gate_tokens(texts, pieces, layer_idx, token_ids=ids, top_k=top_k, seed=seed)

    @also_named(layer="layer_idx")
    def correlate_with_neurons(self, layer_idx: int, *, seed: int = 0) -> DeltaNeuronCorrelation:
        """`delta_neuron_correlation` of one extracted layer; RuntimeError before extraction."""
        texts = self._texts(layer_idx)
        ids = captured_ids([self.capture_])
        return delta_neuron_correlation(texts, layer_idx, token_ids=ids, seed=seed)

    @also_named(layer="layer_idx", text="texts")
    def find_delta_sensitive_neurons(
        self,
        texts: str | Sequence[str],
        layer_idx: int,
        top_k: int = 10,
        *,
        factor: float = SCALE_FACTOR,
        rank_by: str = "sensitivity",
    ) -> DeltaSensitivity:
        """`delta_sensitivity` of one layer on these texts, captured for it two at a time."""
        [layer] = model_layers(self.model, [layer_idx])
        tokenizer, encoded = encode_for(self.model, self.tokenizer, texts)
        captures = capture_texts(self.model, encoded, [layer], pad_token_id=padding_id(tokenizer))
        parts = layer_components(captures, layer)
        return delta_sensitivity(
            parts,
            layer,
            token_ids=captured_ids(captures),
            factor=factor,
            top_k=top_k,
            rank_by=rank_by,
        )

    def _texts(self, layer_idx: int) -> list[SSMComponents]:
        captured = self._earlier("capture_", "extract_deltas")
        extracted_layer(captured.components, layer_idx, "extract_deltas")
        return layer_components([captured], layer_idx)


def _profile_consistency(pooled: FloatArray) -> float | None:
    n = len(pooled)
    if n < 2:
        return None
    others = (pooled.sum(axis=0) - pooled) / (n - 1)
    (own, own_flat), (rest, rest_flat) = unit_columns(pooled.T), unit_columns(others.T)
    if own_flat.any() or rest_flat.any():
        return None
    return float((own * rest).sum(axis=0).mean())


def _temporal_variance(pooled: FloatArray) -> float | None:
    means = pooled.mean(axis=0)
    stepping = means > 0  # softplus rounds a far negative argument to a delta of exactly 0
    if len(pooled) < 2 or not stepping.any():
        return None
    relative = pooled[:, stepping] / means[stepping]
    return float(relative.var(axis=0, ddof=1).mean())


def _selectivity(pooled: FloatArray) -> float | None:
    within = np.square(pooled - pooled.mean(axis=0)).sum()
    return float(within / np.square(pooled - pooled.mean()).sum()) if np.ptp(pooled) else None


def _pieces_of(tokenizer: PreTrainedTokenizerBase, captures: Sequence[Capture]) -> list[list[str]]:
    return [
        token_pieces(tokenizer, ids[mask.bool()].tolist())
        for captured in captures
        for ids, mask in zip(captured.input_ids, captured.attention_mask, strict=True)
    ]


_TABLE = {
    "slowest half-life (tokens)": ("memory", "channel_half_life", "median"),
    "kept per token": ("memory", "persistence"),
    "selectivity": ("memory", "selectivity"),
}


_TITLE = "The slowest states of layer {} keep half of a token for {}, median over channels"

_CAPTION = (
    "Slowest half-life: ln 2 / (mean Δ |A|) of each channel's slowest state, median over channels. "
    "Kept: what a token leaves of the state, mean over channels and states. Selectivity: share of "
    "the variance of Δ that lies between tokens."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse delta; write JSON, a table of delta by token, and delta itself as safetensors."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = delta_extraction_options(argv)
    job = job_from_options(args, model_layers, command_line("delta_extraction.py", argv))
    job = job.of_distinct_texts()
    captures, seed = captures_of(job), job.args.seed
    pieces, ids = _pieces_of(job.tokenizer, captures), captured_ids(captures)
    results, rows, tensors = {}, [], {}
    for layer in job.layers:
        texts = layer_components(captures, layer)
        tokens = gate_tokens(texts, pieces, layer, token_ids=ids, top_k=sys.maxsize, seed=seed)
        results[f"layer_{layer}"] = {
            "memory": delta_memory(texts, layer, token_ids=ids, seed=seed).to_dict(),
            "gate_tokens": tokens.first(TOP_TOKENS).to_dict(),
            "neuron_correlation": delta_neuron_correlation(
                texts, layer, token_ids=ids, seed=seed
            ).to_dict(),
            "sensitivity": delta_sensitivity(texts, layer, token_ids=ids).to_dict(),
        }
        rows += [{"layer": layer, **token._asdict()} for token in tokens.opening]
        for index, text in enumerate(texts):
            tensors[f"text_{index}.layer_{layer}.delta"] = text.delta[0]
    with written_together():
        path = write_step_results(job, "delta_analysis.json", results)
        write_csv(job.output_dir / "delta_by_token.csv", rows, ["layer", *TokenDelta._fields])
        write_tensors(job.output_dir / "delta.safetensors", tensors)
    # Imported here: an analysis does without matplotlib.
    from recursive_visualizer import write_step_figure

    found = over_texts([results], _TABLE)
    title = step_title(found, "slowest half-life (tokens)", _TITLE)
    picture = write_step_figure(
        job.output_dir, "delta_analysis", title, found, _CAPTION, args.formats
    )
    for row, part in zip(found, results.values(), strict=True):
        opening = part["gate_tokens"]["opening"]
        row["opens the gate"] = quoted(opening[0]["token"]) if opening else ""
    print("\n".join(step_lines(found)))
    print(f"Wrote {path}, delta_by_token.csv, delta.safetensors and {picture.name} beside it.")
    return 0


# Decays that are worked on at once, so that they stay in a CPU's second-level cache.
_BLOCK_SIZE = 1 << 17

# Decays below this are taken as 0: products of two would be subnormal, which is slow to compute.
_NEGLIGIBLE = 2e-19


class Survival(NamedTuple):
    """What is left of a state, by lag and head."""

    lags: tuple[int, ...]
    """1, 2, 4, ... tokens, as far as the longest text reaches"""
    shares: FloatArray
    """(lags, H) mean over states, and over the tokens with so many before them, of
    exp(A (S_t - S_{t-lag})), in (0, 1]"""
    kept: FloatArray
    """(H,) mean over states and all tokens of exp(A delta_t): what a token keeps"""


@in_full_precision
def survival(
    deltas: Sequence[FloatArray],
    A: Tensor,
    max_lag: int,
    counted: Sequence[NDArray[np.bool_]] | None = None,
) -> Survival:
    """Share of the state of each head that survives, over the tokens of all texts together.

    `deltas`: (l, H) for each text; A (H, N or 1). `counted`: of each text (l,), the tokens t that
    are meant, all unless given; those before them are their past anyway. Lags double from 1 up to
    `max_lag`, and none reaches past the last of these tokens. In float32, exact to about 1e-6.
    Cost: an exponential a token and state, and a product for each lag; memory two blocks of half a
    megabyte.
    """
    kept = [np.ones(len(one), bool) for one in deltas] if counted is None else counted
    longest = max(int(keep.nonzero()[0].max(initial=0)) + 1 for keep in kept)
    lags = tuple(1 << k for k in range(max_lag.bit_length()) if 1 << k < longest)
    total = torch.zeros(len(lags) + 1, len(A), dtype=torch.float64)
    width = max(16, _BLOCK_SIZE // longest)
    for delta, keep in zip(deltas, kept, strict=True):
        steps, weights = torch.from_numpy(delta), torch.from_numpy(keep.astype(np.float32))
        for start in range(0, len(A), width):
            heads = slice(start, start + width)
            block = steps[:, heads].to(torch.float32)
            with one_thread():  # each operation is over before another thread would be awake
                for rates in A[heads].float().unbind(dim=1):
                    of_lags = _sums_over_tokens(block * rates, weights, len(lags))
                    for row, sums in enumerate(of_lags):
                        total[row, heads] += sums
    counts = [sum(int(keep[lag:].sum()) for keep in kept) for lag in (0, *lags)]
    means = total.numpy() / (np.array(counts)[:, None] * A.shape[1])
    return Survival(lags, means[1:], means[0])


def _sums_over_tokens(exponents: Tensor, weights: Tensor, num_lags: int) -> Iterator[Tensor]:
    """Weighted sums over tokens of exp(exponents) (l, heads), then of its products over 1, 2, 4,
    ... tokens, by the weight of the last, but the first 1, 2, 4, ..."""
    decay = torch.threshold_(exponents.exp_(), _NEGLIGIBLE, 0.0)
    yield weights @ decay
    lag, decay = 1, decay[1:]
    for _ in range(num_lags):
        if len(decay) < 1:
            return
        yield weights[lag:] @ decay
        decay = torch.threshold_(decay[lag:] * decay[:-lag], _NEGLIGIBLE, 0.0)
        lag *= 2


if __name__ == "__main__":
    raise SystemExit(main())

"""How layers are tied to each other and to their own past: correlations, each beside its null.

Two analyses of captured texts. Across layers: Pearson correlation of every pair of channels of two
layers, and linear CKA (`token_statistics.channel_correlations`). Within a layer: autocorrelation
over time, and how far the state and the activations move from token to token. Every number stands
beside what circular time-shifts or shuffles of the same data give; with too few tokens it is None,
with the reason.

Shapes: n pooled tokens of all texts; d_model channels. Letters: the glossary of `selective_scan`.
From a shell: ``python layer_correlation_analyzer.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import layer_correlation_analyzer_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(layer_correlation_analyzer_options)

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mamba_mixers.sites import find_mixers, model_layers, num_layers
from result_views.step_lines import step_lines
from result_views.terminal_lines import wrapped
from ssm_component_extractor import (
    capture_each,
    capture_for,
    captures_of,
    captures_or_raise,
    with_streams,
)
from ssm_measures.components import Capture, captured_ids
from suite_plumbing.arguments import resolve_layer_indices, validate_choice, validate_int
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.messages import quoted
from suite_plumbing.models import ModelAnalyzer
from suite_plumbing.other_names import also_named
from suite_plumbing.parallel import side_by_side
from suite_plumbing.result_files import (
    finite_or_none,
    read_json,
    three_digits,
    write_csv,
    write_tensors,
    written_together,
)
from suite_plumbing.texts import padding_id
from token_statistics.autocorrelation import (
    MeanAutocorrelation,
    long_enough,
    mean_autocorrelation,
)
from token_statistics.channel_correlations import (
    CrossLayerCorrelation,
    PooledActivations,
    TopPair,
    cross_layer_correlation,
    observed_by,
)
from token_statistics.description import FloatArray, participation_ratio, summarise
from token_statistics.observations import Observations, observations
from token_statistics.position_course import PositionCourse, without_course
from token_statistics.streamed_correlations import StreamedCorrelation, StreamedCorrelations
from token_statistics.time_shift_nulls import (
    NUM_SHIFTS,
    NullTest,
    fields_to_dict,
    spearman_shift_test,
    undefined,
)
from token_statistics.verdict_rules import ONE_TEXT

STREAMS = {
    "residual": lambda captured, layer: captured.block_outputs[layer],
    "mixer": lambda captured, layer: captured.components[layer].mixer_output,
}
"""Activations of a layer, (b, l, d_model): the residual stream after it, or what it adds to it."""

_MAX_RECURSION_LAG = 32


@dataclass(frozen=True, eq=False)
class RecursivePatterns:
    """How one layer's activations and state hang together over time."""

    layer: int
    stream: str
    """a key of STREAMS"""
    num_tokens: int
    """distinct observations: tokens that were not read before with the same history"""
    num_texts: int
    num_groups: int
    """independent groups of related texts"""
    groups: tuple[int, ...]
    """of each text: number of the first text of its group"""
    autocorrelation: MeanAutocorrelation
    """mean over channels at lags 1, 2, ..., tokens compared within their text only, with
    `memory_time`, the course over position taken out; null: the tokens of each text shuffled in
    time, related texts alike"""
    state_change: tuple[float | None, ...]
    """|h_t - h_{t-1}| / mean |h|, L2 over channels and states, for t >= 1, texts in order"""
    activation_change: tuple[float | None, ...]
    """|a_t - a_{t-1}| / mean |a|, L2 over channels; either is None where all is zero"""
    change_correlation: NullTest
    """Spearman correlation of the two over tokens; null: circular time-shifts"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON, with the changes of every token to three digits."""
        series = ("state_change", "activation_change")
        short = {name: [three_digits(x) for x in getattr(self, name)] for name in series}
        return {**fields_to_dict(self), **short}


def pooled_activations(
    captures: Sequence[Capture], layer: int, stream: str = "residual"
) -> PooledActivations:
    """Activations of one layer on all texts of the captures, without padding.

    Raises ValueError for an unknown stream, no captures, and a layer that was not captured.
    """
    parts = [part for captured in captures for part in _texts_of(captured, layer, stream)]
    if not parts:
        raise ValueError("captures is empty; pass at least one")
    return PooledActivations(
        torch.cat(parts).double().numpy(),
        tuple(len(part) for part in parts),
        captured_ids(captures),
    )


def summarise_activations(captured: Capture, layer: int) -> dict[str, Any]:
    """Norm per token of the layer's residual stream and mixer output, and the stream's rank.

    `mixer_share` is |mixer output| / |residual stream after the layer| per token;
    `participation_ratio` that of the residual stream over tokens (see analysis_utils), None where
    it does not vary. Of a batch the tokens that are new (`token_statistics.observations`).
    """
    rows = observations(captured_ids([captured])).distinct_rows
    residual = pooled_activations([captured], layer).values[rows]
    norms = np.linalg.norm(residual, axis=1)
    added = np.linalg.norm(pooled_activations([captured], layer, "mixer").values[rows], axis=1)
    ratios = np.divide(added, norms, where=norms > 0, out=np.full_like(norms, math.nan))
    return {
        "num_tokens": len(residual),
        "num_channels": residual.shape[1],
        "residual_norm": summarise(norms),
        "mixer_norm": summarise(added),
        "mixer_share": summarise(ratios),
        "participation_ratio": finite_or_none(participation_ratio(residual)),
    }


def cross_layer_correlations(
    captures: Sequence[Capture],
    layer_pairs: Sequence[tuple[int, int]] | None = None,
    *,
    stream: str = "residual",
    num_shifts: int = NUM_SHIFTS,
    seed: int = 0,
) -> dict[str, CrossLayerCorrelation]:
    """Correlations of pairs of layers, by "layer_a_to_b"; None pairs are the consecutive layers.

    Raises ValueError for no pair (a single layer captured), one named twice, and a layer that was
    not captured. Cost: that of `cross_layer_correlation` a pair.
    """
    if not captures:
        raise ValueError("captures is empty; pass at least one")
    seed = validate_int("seed", seed, 0)
    pairs = _checked_pairs(layer_pairs, _layers_of(captures[0], stream))

    def of_pair(pair: tuple[int, int]) -> CrossLayerCorrelation:
        first, second = (pooled_activations(captures, layer, stream) for layer in pair)
        return cross_layer_correlation(
            first, second, layers=pair, stream=stream, num_shifts=num_shifts, seed=seed
        )

    found = side_by_side(of_pair, pairs)
    return {f"layer_{a}_to_{b}": one for (a, b), one in zip(pairs, found, strict=True)}


def corpus_cross_layer_correlations(
    batches: Iterable[Capture],
    layer_pairs: Sequence[tuple[int, int]],
    *,
    stream: str = "residual",
    num_shifts: int = NUM_SHIFTS,
    seed: int = 0,
) -> dict[str, StreamedCorrelation]:
    """Correlations of pairs of layers over any number of texts, of which none is kept.

    ``batches`` may be a generator that runs the model: each capture is let go after its sums have
    been taken, so that memory does not grow with the tokens. How the nulls are drawn stands in
    `token_statistics.streamed_correlations`. Raises ValueError as `cross_layer_correlations`.
    """
    sums: StreamedCorrelations | None = None
    for captured in batches:
        if sums is None:
            pairs = _checked_pairs(layer_pairs, captured.layers)
            layers = sorted({*sum(pairs, ())})
            sums = StreamedCorrelations(pairs, stream=stream, num_shifts=num_shifts, seed=seed)
        texts = {layer: _texts_of(captured, layer, stream) for layer in layers}
        lengths = [len(text) for text in texts[layers[0]]]
        pooled = {layer: torch.cat(parts) for layer, parts in texts.items()}
        sums.update(pooled, lengths, captured_ids([captured]))
    if sums is None:
        raise ValueError("batches is empty; pass at least one capture")
    return sums.results()


def recursive_patterns(
    captures: Sequence[Capture],
    layer: int,
    *,
    stream: str = "residual",
    max_lag: int = _MAX_RECURSION_LAG,
    num_shuffles: int = 199,
    seed: int = 0,
) -> RecursivePatterns:
    """Autocorrelation over time and per-token change of one layer.

    Raises ValueError as `pooled_activations` and for max_lag < 1 or num_shuffles < 39. Cost: one
    (l, l) Gram matrix a text, from which every shuffle is read, and the states of the layer.
    """
    seed = validate_int("seed", seed, 0)
    pooled = pooled_activations(captures, layer, stream)
    tokens = observed_by(pooled, pooled)
    state_change, activation_change = _changes(captures, layer, pooled)
    ids = captured_ids(captures)
    return RecursivePatterns(
        layer=layer,
        stream=stream,
        num_tokens=tokens.num_distinct,
        num_texts=len(pooled.lengths),
        num_groups=len(tokens.group_numbers),
        groups=tokens.groups,
        autocorrelation=_autocorrelation(pooled, tokens, max_lag, num_shuffles, seed),
        state_change=tuple(finite_or_none(x) for x in np.concatenate(state_change)),
        activation_change=tuple(finite_or_none(x) for x in np.concatenate(activation_change)),
        change_correlation=_change_correlation(state_change, activation_change, ids, seed),
    )


def _autocorrelation(
    pooled: PooledActivations, tokens: Observations, max_lag: int, num_shuffles: int, seed: int
) -> MeanAutocorrelation:
    """Of the observations without their course over position; short rests of texts left out."""
    used = tokens.used_lengths
    if not used:
        return mean_autocorrelation(pooled.values[:1], [1], max_lag, num_shuffles=num_shuffles)
    left, _, _ = without_course(PositionCourse(tokens), pooled.values)
    long = long_enough(used)
    parts = np.split(left, np.cumsum(used)[:-1])
    return mean_autocorrelation(
        np.concatenate([parts[i] for i in long]),
        [used[i] for i in long],
        max_lag,
        together=tokens.together([tokens.used[i] for i in long]),
        num_shuffles=num_shuffles,
        seed=seed,
    )


class LayerCorrelationAnalyzer(ModelAnalyzer):
    """Correlations across layers and recursive patterns within them, for one text or a batch."""

    @also_named(layers="layer_indices", texts="text")
    def extract_layer_activations(
        self,
        layer_indices: Sequence[int] | str | None,
        text: str | Sequence[str],
        *,
        stream: str = "residual",
    ) -> dict[int, Tensor]:
        """Activations (b, l, d_model) by layer: a key of STREAMS. Several texts are left padded.

        A list of layers may name some without an SSM, such as attention layers, whose residual
        stream is taken; the first of those with one is captured beside them. Entries at padding
        mean nothing; the other methods leave them out. Raises ValueError for a bad layer, text or
        stream.
        """
        activations = STREAMS[validate_choice("stream", stream, STREAMS)]
        layers, others = _with_and_without_ssm(self.model, layer_indices, stream)
        layers = [min(find_mixers(self.model))] if others and not layers else layers
        captured = capture_for(self.model, self.tokenizer, layers, text)
        self.capture_ = with_streams(self.model, captured, others) if others else captured
        self.stream_ = stream
        known = _layers_of(self.capture_, stream)
        self.activations_ = {layer: activations(self.capture_, layer) for layer in known}
        return self.activations_

    def compute_cross_layer_correlations(
        self, layer_pairs: Sequence[tuple[int, int]] | None = None, *, seed: int = 0
    ) -> dict[str, CrossLayerCorrelation]:
        """`cross_layer_correlations` of the extracted activations; RuntimeError before those."""
        self.correlations_ = cross_layer_correlations(
            [self._captured()], layer_pairs, stream=self.stream_, seed=seed
        )
        return self.correlations_

    @also_named(layer="layer_idx")
    def analyze_recursive_patterns(
        self, layer_idx: int, *, max_lag: int = _MAX_RECURSION_LAG, seed: int = 0
    ) -> RecursivePatterns:
        """`recursive_patterns` of one extracted layer; RuntimeError before extraction."""
        return recursive_patterns(
            [self._captured()], layer_idx, stream=self.stream_, max_lag=max_lag, seed=seed
        )

    def _captured(self) -> Capture:
        return self._earlier("capture_", "extract_layer_activations")


def _with_and_without_ssm(
    model: PreTrainedModel, layer_indices: Sequence[int] | str | None, stream: str
) -> tuple[Any, list[int]]:
    """The layers asked for that have an SSM, or what was asked for where all do; and the others."""
    if stream == "mixer" or layer_indices is None or isinstance(layer_indices, str):
        return layer_indices, []
    depth = num_layers(model)
    layers = resolve_layer_indices(layer_indices, range(depth), depth)
    with_ssm = set(find_mixers(model))
    others = [layer for layer in layers if layer not in with_ssm]
    return ([layer for layer in layers if layer in with_ssm] if others else layer_indices), others


def _layers_of(captured: Capture, stream: str) -> list[int]:
    """Layers whose stream was captured: of the residual stream also some without an SSM."""
    return captured.layers if stream == "mixer" else sorted(captured.block_outputs)


def _texts_of(captured: Capture, layer: int, stream: str) -> list[Tensor]:
    """The layer's activations on each text of the capture (l, d_model), without padding."""
    activations = STREAMS[validate_choice("stream", stream, STREAMS)]
    if layer not in (known := _layers_of(captured, stream)):
        raise ValueError(f"layer {layer} was not captured; those that were: {known}")
    rows = zip(activations(captured, layer), captured.attention_mask.bool(), strict=True)
    return [values[keep] for values, keep in rows]


def _checked_pairs(
    layer_pairs: Sequence[tuple[int, int]] | None, layers: Sequence[int]
) -> list[tuple[int, int]]:
    if layer_pairs is None:
        if len(layers) < 2:
            raise ValueError(f"only layer {layers[0]} was captured; a correlation needs two")
        return list(itertools.pairwise(layers))
    try:
        pairs = [(validate_int("", a, 0), validate_int("", b, 0)) for a, b in layer_pairs]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"layer_pairs is {quoted(layer_pairs)}; pass pairs of layers such as [(0, 3), (3, 6)]"
        ) from error
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"layer_pairs is {quoted(layer_pairs)}; name each pair once, at least one")
    if unknown := sorted({layer for pair in pairs for layer in pair} - set(layers)):
        raise ValueError(f"layer_pairs names {unknown}; the layers captured are {list(layers)}")
    return pairs


def _changes(
    captures: Sequence[Capture], layer: int, pooled: PooledActivations
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Change of state and of activation from token to token, for each text (l - 1,)."""
    states = []
    for captured in captures:
        components = captured.components[layer]
        for row in range(len(captured.input_ids)):
            measured = components.text(row).states
            states.append(_relative(measured.step[0, 1:], measured.norm[0]))
    parts = np.split(pooled.values, np.cumsum(pooled.lengths)[:-1])
    return states, [_relative_steps(torch.from_numpy(part)) for part in parts]


def _relative_steps(x: Tensor) -> FloatArray:
    """|x_t - x_{t-1}| / mean |x| over the rows of x (l, d): (l - 1,); nan where all is zero."""
    return _relative((x[1:] - x[:-1]).norm(dim=1), x.norm(dim=1))


def _relative(steps: Tensor, norms: Tensor) -> FloatArray:
    moved, scale = steps.double().numpy(), float(norms.double().mean())
    return moved / scale if scale > 0 else np.full_like(moved, math.nan)


def _change_correlation(
    state_change: list[FloatArray],
    activation_change: list[FloatArray],
    ids: Sequence[Sequence[int]],
    seed: int,
) -> NullTest:
    state, activation = np.concatenate(state_change), np.concatenate(activation_change)
    # A change stands for two tokens.
    steps = [list(itertools.pairwise(text)) for text in ids if len(text) > 1]
    if not (np.isfinite(state).all() and np.isfinite(activation).all()):
        return undefined("a text's values are all zero, so that they have no scale", len(state))
    lengths = [len(text) for text in steps]
    if not lengths:
        return undefined("a text of one token changes nowhere", 0)
    return spearman_shift_test(state, activation, lengths, tokens=steps, seed=seed)


_PAIRS_NAME, _TENSORS_NAME = "top_pairs.csv", "layer_activations.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Correlate layers and analyse recursion; write JSON, a table of top pairs and tensors."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = layer_correlation_analyzer_options(argv)
    job = job_from_options(args, model_layers, command_line("layer_correlation_analyzer.py", argv))
    job = job.of_distinct_texts()
    print(_write_corpus(job) if job.args.stream else _write_all(job))
    return 0


def _write_corpus(job: Job) -> str:
    """Layers correlated over batches of texts that are let go one after the other."""
    captured = capture_each(
        job.model,
        job.encoded,
        job.layers,
        batch_size=job.args.batch_size,
        pad_token_id=padding_id(job.tokenizer),
    )
    captures = (text for _, text in captures_or_raise(captured))
    pairs = _checked_pairs(None, job.layers)
    found = corpus_cross_layer_correlations(
        captures, pairs, stream=job.args.stream, seed=job.args.seed
    )
    pairs_found = {name: pair.to_dict() for name, pair in found.items()}
    results = {
        "num_texts": len(job.encoded),
        "layer_correlations": {job.args.stream: pairs_found},
    }
    earlier = [job.output_dir / name for name in (_PAIRS_NAME, _TENSORS_NAME)]
    with written_together(earlier):
        path = write_step_results(job, "layer_correlations.json", results)
    return "\n".join(
        [
            *_pair_lines([found]),
            f"Wrote {path} and {_drawn(path, job.args.formats)} beside it.",
        ]
    )


def _drawn(path: Path, formats: Sequence[str]) -> str:
    """Draw the results that were written; the name of the figure."""
    # Imported here: an analysis does without matplotlib.
    from recursive_visualizer import write_figures

    return write_figures(read_json(path), path.parent, formats=formats)[0].name


def _write_all(job: Job) -> str:
    """Correlations and recursive patterns of texts at hand, with tables and tensors."""
    captures, seed = captures_of(job), job.args.seed
    correlations = {
        stream: cross_layer_correlations(captures, stream=stream, seed=seed)
        for stream in (STREAMS if len(job.layers) > 1 else ())
    }
    results = {
        "num_texts": len(captures),
        "layer_correlations": {
            stream: {name: pair.to_dict() for name, pair in pairs.items()}
            for stream, pairs in correlations.items()
        },
        "recursive_patterns": {
            f"layer_{layer}": recursive_patterns(captures, layer, seed=seed).to_dict()
            for layer in job.layers
        },
    }
    rows = [
        {"stream": stream, "layer_a": pair.layers[0], "layer_b": pair.layers[1], **top._asdict()}
        for stream, pairs in correlations.items()
        for pair in pairs.values()
        for top in pair.top_pairs
    ]
    columns = ["stream", "layer_a", "layer_b", *TopPair._fields]
    tensors = {
        f"text_{index}.layer_{layer}.residual": captured.block_outputs[layer][0]
        for index, captured in enumerate(captures)
        for layer in captured.layers
    }
    with written_together():
        path = write_step_results(job, "layer_correlations.json", results)
        write_csv(job.output_dir / _PAIRS_NAME, rows, columns)
        write_tensors(job.output_dir / _TENSORS_NAME, tensors)
    lines = _pair_lines(list(correlations.values()))
    picture = _drawn(path, job.args.formats)
    wrote = f"Wrote {path}, {_PAIRS_NAME}, {_TENSORS_NAME} and {picture} beside it."
    return "\n".join([*lines, wrote])


_Pairs = Mapping[str, CrossLayerCorrelation] | Mapping[str, StreamedCorrelation]


def _pair_lines(streams: Sequence[_Pairs]) -> list[str]:
    """The pairs of each stream as a table, and what they do not say of one independent text."""
    alone = any(pair.num_groups < 2 for pairs in streams for pair in pairs.values())
    lines = step_lines([row for pairs in streams for row in _pair_rows(pairs)])
    caveat = f"{ONE_TEXT[0].upper()}{ONE_TEXT[1:]}."
    return [*lines, *wrapped([caveat] if alone else [])]


def _pair_rows(pairs: _Pairs) -> list[dict[str, Any]]:
    """A line a pair of layers: mean |r| over pairs of channels, and what chance gives."""
    rows = []
    for pair in pairs.values():
        test = pair.tests["mean_abs"] if isinstance(pair, StreamedCorrelation) else pair.mean_abs
        low, high = test.null_low, test.null_high
        chance = "" if low is None or high is None else f"{low:.3g} to {high:.3g}"
        rows.append({"stream": pair.stream, "layers": f"{pair.layers[0]} and {pair.layers[1]}",
                     "mean |r|": test.value, "chance": chance})  # fmt: skip
    return rows


if __name__ == "__main__":
    raise SystemExit(main())

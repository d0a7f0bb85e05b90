"""Components and dynamics of a Mamba's selective SSMs, from one forward pass.

``capture`` runs the model once on a batch and keeps what is cheap and exact for each layer asked
for; states, attention and every other analysis are computed from a ``Capture`` on demand. All
letters are those of the glossary in ``selective_scan``.

From a shell: ``python ssm_component_extractor.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import ssm_component_extractor_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(ssm_component_extractor_options)

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mamba_mixers.recording import (
    block_output_scale,
    observing_blocks,
    record_layers,
    record_streams,
)
from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers, model_layers, num_layers
from mamba_mixers.weights import stream_width
from result_views.figures.titles import step_title
from result_views.step_lines import over_texts, step_lines
from selective_scan.operands import with_groups
from selective_scan.scan import half_life
from ssm_measures.components import (
    Capture,
    SSMComponents,
    captured_ids,
    extracted_layer,
    rounded_by_token,
)
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.errors import AnalysisError, is_recoverable
from suite_plumbing.messages import quoted
from suite_plumbing.model_inputs import encode_inputs
from suite_plumbing.models import ModelAnalyzer, execution_device, require_tokenizer
from suite_plumbing.other_names import also_named
from suite_plumbing.progress import progress
from suite_plumbing.result_files import write_tensors, written_together
from suite_plumbing.texts import EncodedText, batches_by_length, pad_batch, padding_id
from token_statistics.description import summarise

_BATCH_NUMBERS = 1 << 21  # of the streams of a batch's captures, which hold some 15 times as many


def capture(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    layer_indices: Sequence[int],
) -> Capture:
    """Run the model once on (b, l) token ids and keep the components of these layers.

    ``layer_indices`` as in `model_layers`. The forward pass ends after the last of the layers.
    Raises ValueError for layers that the model does not have, UnsupportedModelError for a model
    without selective SSM mixers, and AnalysisError where a layer's quantities overflow. Cost: that
    forward pass and one replay for each layer; memory about 8 * b * l * d_inner floats a layer.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids is {quoted(input_ids)}; pass a tensor (b, l) of token ids")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"input_ids is of {input_ids.dtype}; token ids are whole numbers")
    layers = model_layers(model, layer_indices)
    input_ids = input_ids.long()
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    device = execution_device(model)
    records = record_layers(model, layers, input_ids.to(device), mask.to(device))
    mask = mask.cpu()
    captured = Capture(
        input_ids.cpu(),
        mask,
        {
            layer: _components(
                record.replay,
                record.mixer_output,
                record.replay_error,
                record.output_scale,
                mask,
                layer,
            )
            for layer, record in records.items()
        },
        {layer: _kept(record.block_input) for layer, record in records.items()},
        {layer: _kept(record.block_output) for layer, record in records.items()},
    )
    _check_finite(captured, model.dtype)
    return captured


@torch.no_grad()
def read_by_layer(
    model: PreTrainedModel, input_ids: Tensor, observe: Callable[[int, Capture], None]
) -> None:
    """Read one text (1, l) by the suite's scan: ``observe`` sees each layer, one after the other.

    A capture of that layer alone: its components, whose mixer output is the replay itself, where it
    has an SSM, and the stream around it. Nothing of a layer is kept when the next one comes. Raises
    AnalysisError where a layer overflows, UnsupportedModelError as `fast_scan`. Cost: a forward
    pass without logits, about 0.4 of a stock one on a CPU.
    """
    sites, replays = find_mixers(model), {}
    ids, mask = input_ids.cpu(), torch.ones_like(input_ids).cpu()

    def on_block(layer: int, before: Tensor, after: Tensor) -> None:
        components = {}
        if (replay := replays.pop(layer, None)) is not None:
            scale = block_output_scale(sites[layer])
            components[layer] = _components(
                replay, replay.output, torch.zeros(1), scale, mask, layer
            )
        found = Capture(ids, mask, components, {layer: _kept(before)}, {layer: _kept(after)})
        _check_finite(found, model.dtype)
        observe(layer, found)

    layers = range(num_layers(model))
    with (
        fast_scan(model, observe=replays.__setitem__),
        observing_blocks(model, layers, on_block),
    ):
        model.base_model(input_ids=input_ids.to(execution_device(model)), use_cache=False)


def _check_finite(captured: Capture, dtype: torch.dtype) -> None:
    """Raise AnalysisError for NaN, infinity, or a norm that is, naming the first layer with it."""
    keep = captured.attention_mask.bool()
    for layer, parts in sorted(captured.components.items()):
        streams = {
            "residual stream before the layer": captured.block_inputs[layer],
            **{name: getattr(parts, name) for name in ("u", "delta", "B", "C", "y", "gated")},
            "mixer_output": parts.mixer_output,
            "residual stream after the layer": captured.block_outputs[layer],
        }
        for name, values in streams.items():
            if not bool(torch.isfinite(values[keep].norm())):
                raise AnalysisError(
                    f"{name} of layer {layer} holds NaN, infinity or numbers near the largest: "
                    f"the model overflows on this text in {str(dtype).removeprefix('torch.')}. "
                    "Run it in a wider dtype, or check its weights"
                )


def with_streams(model: PreTrainedModel, captured: Capture, layers: Sequence[int]) -> Capture:
    """The capture with the residual stream around further layers, such as attention layers.

    Cost: a forward pass up to the last of them; none where all are there.
    """
    if not (missing := sorted(set(layers) - set(captured.block_outputs))):
        return captured
    device = execution_device(model)
    ids, mask = captured.input_ids.to(device), captured.attention_mask.to(device)
    streams = record_streams(model, missing, ids, mask)
    before = {layer: _kept(stream[0]) for layer, stream in streams.items()}
    after = {layer: _kept(stream[1]) for layer, stream in streams.items()}
    return replace(
        captured,
        block_inputs={**captured.block_inputs, **before},
        block_outputs={**captured.block_outputs, **after},
    )


def capture_texts(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    layer_indices: Sequence[int],
    *,
    batch_size: int = 2,
    pad_token_id: int = 0,
) -> list[Capture]:
    """One capture for each text, in the order given, without padding: see `capture_each`.

    Raises what the forward pass of a text raises when it is read alone.
    """
    found = capture_each(
        model, encoded, layer_indices, batch_size=batch_size, pad_token_id=pad_token_id
    )
    captures = dict(captures_or_raise(found))
    return [captures[index] for index in range(len(encoded))]


def capture_each(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    layer_indices: Sequence[int],
    *,
    batch_size: int = 2,
    pad_token_id: int = 0,
    done: Collection[int] = (),
) -> Iterator[tuple[int, Capture | Exception]]:
    """Each text's number with its capture, without padding, or with the error that it meets alone.

    Texts of similar length share a forward pass, left padded and masked, which leaves every
    text's values what they are alone up to float32 rounding; they come as they were read, a batch
    at a time, and nothing of an earlier batch is kept. At most ``batch_size`` of them, and as many
    as `_BATCH_NUMBERS` allows: long texts are read one by one, which on a CPU takes as long and
    holds less. A batch that fails with an error that steps
    survive (`is_recoverable`) is read again text by text; other errors go through. ``done``:
    numbers of texts that are left out; one that shares a batch with others is read with them all
    the same, so that rounding leaves their values what they are without ``done``.
    """
    layers = model_layers(model, layer_indices)
    max_tokens = _BATCH_NUMBERS // (len(layers) * stream_width(model))
    batches = batches_by_length(encoded, batch_size, max_tokens)
    batches = [batch for batch in batches if not set(batch) <= set(done)]
    for batch in progress(batches, desc="texts", unit="batch"):
        found = _captures_of_batch(model, encoded, batch, layers, pad_token_id)
        # Nothing here holds a capture that was handed out: it goes when its reader lets it go.
        yield from filter(lambda one: one[0] not in done, found)


def captures_or_raise(
    captures: Iterable[tuple[int, Capture | Exception]],
) -> Iterator[tuple[int, Capture]]:
    """The captures of `capture_each` for those who need every text: raises the first error."""

    def or_raise(found: tuple[int, Capture | Exception]) -> tuple[int, Capture]:
        index, captured = found
        if isinstance(captured, Exception):
            raise captured
        return index, captured

    return map(or_raise, captures)


def _captures_of_batch(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    batch: Sequence[int],
    layers: Sequence[int],
    pad_token_id: int,
) -> Iterator[tuple[int, Capture | Exception]]:
    input_ids, mask = pad_batch([encoded[index] for index in batch], pad_token_id)
    try:
        captured = capture(model, input_ids, mask, layers)
    except Exception as error:
        if not is_recoverable(error):
            raise
        if len(batch) == 1:
            yield batch[0], error
        else:
            for index in batch:
                yield from _captures_of_batch(model, encoded, [index], layers, pad_token_id)
        return
    texts = [(index, captured.text(row)) for row, index in enumerate(batch)]
    del captured
    while texts:
        yield texts.pop(0)


class SSMComponentExtractor(ModelAnalyzer):
    """A, B, C, D, delta, states and their dynamics for chosen layers of a Mamba."""

    @also_named(layers="layer_indices", text="input_text", texts="input_text")
    def extract_ssm_components(
        self, layer_indices: Sequence[int] | str | None, input_text: str | Sequence[str]
    ) -> dict[int, SSMComponents]:
        """Components by layer for one text, or for a list of texts as one left-padded batch.

        ``layer_indices``: a list (negatives count from the end), "all", or None for the default
        layers. Raises ValueError for a bad layer or text.
        """
        captured = capture_for(self.model, self.tokenizer, layer_indices, input_text)
        self.components_ = dict(captured.components)
        return self.components_

    @also_named(layer="layer_idx")
    def analyze_recursive_dynamics(self, layer_idx: int) -> RecursiveDynamics:
        """Dynamics of one extracted layer; RuntimeError before ``extract_ssm_components``."""
        method = "extract_ssm_components"
        return recursive_dynamics(
            extracted_layer(self._earlier("components_", method), layer_idx, method)
        )


def capture_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    layer_indices: Sequence[int] | str | None,
    inputs: str | Sequence[str] | Tensor | Mapping[str, Tensor],
) -> Capture:
    """Validate what a user passed to a class of the suite, and capture it as one batch.

    ``inputs``: a text, a list of texts, token ids (l,) or (b, l), or what a tokenizer returns.
    Raises ValueError for bad layers or inputs, before the model runs.
    """
    layers = model_layers(model, layer_indices)
    captured = capture(model, *encode_inputs(model, tokenizer, inputs), layers)
    if isinstance(inputs, (str, list, tuple)):  # texts, not ids
        tokenizer = require_tokenizer(model, tokenizer)
    if tokenizer is None:
        return captured
    tokens = tuple(
        tuple(tokenizer.convert_ids_to_tokens(list(ids))) for ids in captured_ids([captured])
    )
    named = {i: replace(parts, tokens=tokens) for i, parts in captured.components.items()}
    return replace(captured, components=named)


def _components(
    replay: MixerReplay,
    mixer_output: Tensor,
    errors: Tensor,
    scale: float,
    mask: Tensor,
    layer: int,
) -> SSMComponents:
    names = ("A", "B", "C", "delta", "u", "gate", "y", "gated", "conv_input")
    only_some = ("norm_scale", "own_share", "write", "skip", "angle")
    some = {name: getattr(replay, name) for name in only_some}
    kept: dict[str, Any] = {name: None if x is None else _kept(x) for name, x in some.items()}
    kept |= {name: _kept(getattr(replay, name)) for name in names}
    return SSMComponents(
        D=_kept(replay.D).clone(),  # in float32 it is the model's own parameter
        **kept,
        mixer_output=_kept(mixer_output),
        attention_mask=mask,
        replay_errors=tuple(errors.tolist()),
        output_scale=scale,
        layer=layer,
    )


def _kept(x: Tensor) -> Tensor:
    """Detached, on the CPU, float32 unless it is float64."""
    x = x.detach().cpu()
    return x if x.dtype == torch.float64 else x.float()


def captures_of(job: Job) -> list[Capture]:
    """One capture for each text of the job."""
    return capture_texts(
        job.model,
        job.encoded,
        job.layers,
        batch_size=job.args.batch_size,
        pad_token_id=padding_id(job.tokenizer),
    )


_TABLE = {
    "half-life (tokens)": ("dynamics", "half_life", "median"),
    "mean delta": ("delta", "mean"),
    "state (L2)": ("dynamics", "state_norm", "mean"),
    "written (L2)": ("dynamics", "write_energy", "mean"),
    "kept (L2)": ("dynamics", "retain_energy", "mean"),
    "replay error": ("replay_error",),
}

_TITLE = "Layer {} keeps a token longest: median half-life {}, mean over texts"

_CAPTION = (
    "Half-life: ln 2 / (mean Δ |A|), median over channels and states. State, and what a token "
    "writes into it (Δ B u) and keeps of it (exp(ΔA) h): L2 norms, mean over tokens. Replay error: "
    "of the mixer's output rebuilt from these parts, relative."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Extract components; write summaries as JSON and tensors as safetensors."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = ssm_component_extractor_options(argv)
    job = job_from_options(args, model_layers, command_line("ssm_component_extractor.py", argv))
    results, tensors = {}, {}
    for index, captured in enumerate(captures_of(job)):
        results[f"text_{index}"] = {
            f"layer_{layer}": {**parts.to_dict(), "dynamics": recursive_dynamics(parts).to_dict()}
            for layer, parts in captured.components.items()
        }
        for layer, parts in captured.components.items():
            for name in ("delta", "B", "C", "y"):
                tensors[f"text_{index}.layer_{layer}.{name}"] = getattr(parts, name)[0]
    with written_together():
        path = write_step_results(job, "ssm_components.json", results)
        write_tensors(job.output_dir / "ssm_components.safetensors", tensors)
    # Imported here: an analysis does without matplotlib.
    from recursive_visualizer import write_step_figure

    rows = over_texts(list(results.values()), _TABLE)
    title = step_title(rows, "half-life (tokens)", _TITLE)
    picture = write_step_figure(
        job.output_dir, "ssm_components", title, rows, _CAPTION, args.formats
    )
    print("\n".join(step_lines(rows)))
    print(f"Wrote {path}, ssm_components.safetensors and {picture.name} beside it.")
    return 0


@dataclass(frozen=True, eq=False)
class RecursiveDynamics:
    """How one layer's state evolves on the captured tokens; nan at padding.

    Per head: in Mamba-1 every channel is one and its d_state states have rates of their own; in
    Mamba-2 one rate holds for all channels and states of a head, and the last axis is 1.
    """

    eigenvalues: Tensor
    """(H, d_state or 1) of the continuous-time system: A itself, for A is diagonal"""
    spectral_radius: Tensor
    """(b, l, H) max over the states of exp(delta A), in (0, 1)"""
    half_life: Tensor
    """(H, d_state or 1) ln 2 / (mean delta * |A|), tokens"""
    lyapunov_exponent: Tensor
    """(H, d_state or 1) mean delta * A, nats per token, negative: of a layer's state given the
    layer's inputs. Those of another text would differ; it is no exponent of the whole model, whose
    layers feed each other"""
    is_stable: bool
    """every A is negative, so that every state decays without input"""
    state_norm: Tensor
    """(b, l) L2 norm of h_t over channels and states"""
    write_energy: Tensor
    """(b, l) L2 norm of delta_t B_t u_t: what the token adds to the state"""
    retain_energy: Tensor
    """(b, l) L2 norm of exp(delta_t A) h_{t-1}: what is kept of the state; 0 at the first token"""
    state_participation_ratio: tuple[float, ...]
    """per text: (sum lambda)^2 / sum lambda^2 of the states' covariance over tokens, from 1 to
    l - 1: how many directions the state uses; nan for one token or a constant state"""

    def to_dict(self) -> dict:
        """Summaries for JSON, and by text the state's norm at every token."""
        ratios = [None if math.isnan(ratio) else ratio for ratio in self.state_participation_ratio]
        names = ("eigenvalues", "spectral_radius", "half_life", "lyapunov_exponent", "state_norm",
                 "write_energy", "retain_energy")  # fmt: skip
        summaries = {name: summarise(_finite(getattr(self, name))) for name in names}
        return {
            **summaries,
            "by_token": {"state_norm": rounded_by_token(self.state_norm)},
            "is_stable": self.is_stable,
            "state_participation_ratio": ratios,
        }


def recursive_dynamics(components: SSMComponents) -> RecursiveDynamics:
    """Eigenvalues, decay, stability, state norm, energies and rank of one layer's state.

    Means over delta leave padding out. Cost: that of `SSMComponents.states`, the first time.
    """
    keep = components.attention_mask.bool()
    A, delta, states = components.A, components.delta, components.states
    mean_delta = delta[keep].mean(0)
    slowest = torch.exp(delta * A.max(dim=1).values).masked_fill(~keep[..., None], math.nan)
    return RecursiveDynamics(
        eigenvalues=A,
        spectral_radius=slowest,
        half_life=half_life(mean_delta, A),
        lyapunov_exponent=mean_delta[:, None] * A,
        is_stable=bool((A < 0).all()),
        state_norm=states.norm.masked_fill(~keep, math.nan),
        write_energy=_written(components).masked_fill(~keep, math.nan),
        retain_energy=states.retained.masked_fill(~keep, math.nan),
        state_participation_ratio=states.participation_ratio,
    )


def _written(components: SSMComponents) -> Tensor:
    """L2 norm (b, l) of delta B u."""
    B = with_groups(components.B)
    written = (components.channel_delta * components.u).unflatten(2, (B.shape[2], -1))
    return (written.norm(dim=3) * B.norm(dim=3)).norm(dim=2)


def _finite(x: Tensor) -> Tensor:
    return x[torch.isfinite(x)]


if __name__ == "__main__":
    raise SystemExit(main())

"""Components and dynamics of a Mamba's selective SSMs, from one forward pass.

``capture`` runs the model once on a batch and keeps what is cheap and exact for each layer asked
for; states, attention and every other analysis are computed from a ``Capture`` on demand. All
letters are those of the glossary in ``selective_scan``.

From a shell: ``python ssm_component_extractor.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mamba_mixers import LayerRecord, find_mixers, num_layers, record_layers, record_streams
from ssm_components import RecursiveDynamics, SSMComponents, kept_tokens, recursive_dynamics
from utils import (
    SCHEMA_VERSION,
    AnalysisError,
    EncodedText,
    add_common_options,
    batches_by_length,
    check_output_dir,
    check_texts,
    configure_logging,
    encode_texts,
    execution_device,
    load_model,
    load_tokenizer,
    pad_batch,
    padding_id,
    progress,
    provenance,
    require_tokenizer,
    resolve_layer_indices,
    resolve_model,
    run_main,
    set_seed,
    text_origins,
    texts_from_options,
    write_json,
    write_tensors,
)

T = TypeVar("T")

STEP_OPTIONS = (
    "model", "text", "texts_file", "layers", "max_sequence_length", "batch_size", "device",
    "dtype", "output_dir", "seed", "debug", "quiet",
)  # fmt: skip
"""The shared options that every step's command has."""


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass on one batch of texts: tokens, components and residual stream by layer."""

    input_ids: Tensor
    """(b, l) token ids, left padded"""
    attention_mask: Tensor
    """(b, l) 1 at tokens, 0 at padding"""
    components: dict[int, SSMComponents]
    """by layer"""
    block_inputs: dict[int, Tensor]
    """by layer: (b, l, d_model) residual stream before the layer"""
    block_outputs: dict[int, Tensor]
    """by layer: (b, l, d_model) residual stream after the layer; with :func:`with_streams` of
    layers without an SSM too"""

    @property
    def layers(self) -> list[int]:
        """The captured layers in ascending order."""
        return sorted(self.components)

    def text(self, row: int) -> Capture:
        """The capture of one text of the batch, b = 1, without its padding: see
        :meth:`SSMComponents.text`."""
        keep = kept_tokens(self.attention_mask[row])

        def cut(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1, keep]

        return Capture(
            cut(self.input_ids),
            cut(self.attention_mask),
            {layer: parts.text(row) for layer, parts in self.components.items()},
            {layer: cut(x) for layer, x in self.block_inputs.items()},
            {layer: cut(x) for layer, x in self.block_outputs.items()},
        )


def capture(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    layer_indices: Sequence[int],
) -> Capture:
    """Run the model once on (b, l) token ids and keep the components of these layers.

    The forward pass ends after the last of the layers. Raises UnsupportedModelError for a model
    without selective SSM mixers, and AnalysisError where a layer's quantities overflow. Cost: that
    forward pass and one replay for each layer; memory about 8 * b * l * d_inner floats a layer.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    device = execution_device(model)
    records = record_layers(model, list(layer_indices), input_ids.to(device), mask.to(device))
    mask = mask.cpu()
    captured = Capture(
        input_ids.cpu(),
        mask,
        {layer: _components(record, mask) for layer, record in records.items()},
        {layer: _kept(record.block_input) for layer, record in records.items()},
        {layer: _kept(record.block_output) for layer, record in records.items()},
    )
    _check_finite(captured, model.dtype)
    return captured


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
        block_inputs=captured.block_inputs | before,
        block_outputs=captured.block_outputs | after,
    )


def capture_texts(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    layer_indices: Sequence[int],
    *,
    batch_size: int = 2,
    pad_token_id: int = 0,
) -> list[Capture]:
    """One capture for each text, in the order given, without padding.

    Texts of similar length share a forward pass, left padded and masked, which leaves every
    text's values what they are alone up to float32 rounding.
    """
    captures: dict[int, Capture] = {}
    for batch in progress(batches_by_length(encoded, batch_size), desc="forward passes"):
        input_ids, mask = pad_batch([encoded[index] for index in batch], pad_token_id)
        captured = capture(model, input_ids, mask, layer_indices)
        captures.update({index: captured.text(row) for row, index in enumerate(batch)})
    return [captures[index] for index in range(len(encoded))]


class ModelAnalyzer:
    """What the classes of the suite share: a model, and the results of earlier calls.

    ``model`` may be a name or a folder; ``tokenizer`` None is the one beside the model's weights.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        device: str | torch.device | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.tokenizer, self.device = resolve_model(model, tokenizer, device)

    def _earlier(self, name: str, method: str) -> Any:
        """What an earlier call left under ``name``, or an error that names the call to make."""
        if not hasattr(self, name):
            raise RuntimeError(f"nothing has been computed yet: call {method}(...) first")
        return getattr(self, name)


class SSMComponentExtractor(ModelAnalyzer):
    """A, B, C, D, delta, states and their dynamics for chosen layers of a Mamba."""

    def extract_ssm_components(
        self, layer_indices: Sequence[int] | str | None, input_text: str | Sequence[str]
    ) -> dict[int, SSMComponents]:
        """Components by layer for one text, or for a list of texts as one left-padded batch.

        ``layer_indices``: a list (negatives count from the end), "all", or None for the default
        layers. Raises ValueError for a bad layer or text.
        """
        self.components_ = capture_for(
            self.model, self.tokenizer, layer_indices, input_text
        ).components
        return self.components_

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
    return capture(model, *encode_inputs(model, tokenizer, inputs), layers)


def encode_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: str | Sequence[str] | Tensor | Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each (b, l), of texts (left padded), ids or an encoding."""
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs}
    if not isinstance(inputs, Mapping):
        tokenizer = require_tokenizer(model, tokenizer)
        encoded = encode_texts(
            tokenizer, check_texts(inputs), sys.maxsize, vocab_size=model.config.vocab_size
        )
        return pad_batch(encoded, padding_id(tokenizer))
    if "input_ids" not in inputs:
        raise ValueError(
            f"inputs has no input_ids, only {sorted(inputs)}; pass a tokenizer's output"
        )
    ids = _whole_numbers("input_ids", inputs["input_ids"])
    vocabulary = model.config.vocab_size
    if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"inputs must be token ids (l,) or (b, l), got {tuple(ids.shape)} of {ids.dtype}"
        )
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"inputs holds token ids from {ids.min()} to {ids.max()}; the model knows 0 to "
            f"{vocabulary - 1}. Was it tokenized for another model?"
        )
    return ids, _mask_of(ids, inputs.get("attention_mask"))


def _mask_of(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The attention mask that came with these ids (b, l), ones for None; checked.

    Padding stands before or after a text: between its tokens the state would run on over it.
    """
    if mask is None:
        return torch.ones_like(ids)
    mask = _whole_numbers("attention_mask", mask)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must be 1 at tokens and 0 at padding; it has other values")
    mask = mask.to(ids.dtype)
    starts = (mask.diff(dim=1, prepend=torch.zeros_like(mask[:, :1])) == 1).sum(1)
    if not bool((starts == 1).all()):
        row = int((starts != 1).long().argmax())
        raise ValueError(
            f"attention_mask has {int(starts[row])} runs of tokens in row {row}; each row is one "
            "text without gaps, with padding before or after it"
        )
    return mask


def _whole_numbers(name: str, values: Any) -> Tensor:
    """A tensor (b, l) of what a user passed; ValueError for what has no such shape."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot be taken as numbers of shape (l,) or (b, l) ({error}); pad texts of "
            "unequal length, as tokenizer(texts, padding=True) does"
        ) from error
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor


def model_layers(model: PreTrainedModel, layer_indices: Sequence[int] | str | None) -> list[int]:
    """The layers that ``layer_indices`` asks for, checked against those with an SSM."""
    available = list(find_mixers(model))
    return resolve_layer_indices(layer_indices, available, num_layers(model))


def extracted_layer(by_layer: Mapping[int, T], layer_idx: int, method: str) -> T:
    """One layer of an earlier result; ValueError, naming the call to make, if it is not there."""
    if layer_idx not in by_layer:
        raise ValueError(
            f"layer_idx is {layer_idx!r}; the layers extracted are {sorted(by_layer)}. "
            f"Call {method}(...) with it first"
        )
    return by_layer[layer_idx]


def _components(record: LayerRecord, mask: Tensor) -> SSMComponents:
    names = ("A", "B", "C", "delta", "u", "gate", "y", "gated", "conv_input")
    scale = record.replay.norm_scale
    return SSMComponents(
        **{name: _kept(getattr(record.replay, name)) for name in names},
        D=_kept(record.replay.D).clone(),  # in float32 it is the model's own parameter
        norm_scale=None if scale is None else _kept(scale),
        mixer_output=_kept(record.mixer_output),
        attention_mask=mask,
        replay_errors=tuple(record.replay_error.tolist()),
        output_scale=record.output_scale,
    )


def _kept(x: Tensor) -> Tensor:
    """Detached, on the CPU, float32 unless it is float64."""
    x = x.detach().cpu()
    return x if x.dtype == torch.float64 else x.float()


class Job(NamedTuple):
    """What a command of the suite works on, after all of its options have been checked."""

    args: argparse.Namespace
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoded: list[EncodedText]
    layers: list[int]
    output_dir: Path
    command: list[str]
    """the script's name and its arguments"""


def job_from_options(args: argparse.Namespace, command: Sequence[str] = ()) -> Job:
    """Check and load what the shared command-line options name, before anything runs."""
    configure_logging(args.debug, args.quiet)
    set_seed(args.seed)
    texts = texts_from_options(args)
    output_dir = check_output_dir(args.output_dir)
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    tokenizer = load_tokenizer(args.model)
    encoded = encode_texts(
        tokenizer, texts, args.max_sequence_length, vocab_size=model.config.vocab_size
    )
    layers = model_layers(model, args.layers)
    return Job(args, model, tokenizer, encoded, layers, output_dir, list(command))


def write_step_results(job: Job, name: str, results: Mapping[str, Any]) -> Path:
    """Write a step's results as JSON into the job's folder, with schema version and provenance."""
    described = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance(
            job.model, command=job.command, seed=job.args.seed, texts=text_origins(job.encoded)
        ),
    }
    return write_json(job.output_dir / name, {**results, **described})


def captures_of(job: Job) -> list[Capture]:
    """One capture for each text of the job."""
    return capture_texts(
        job.model,
        job.encoded,
        job.layers,
        batch_size=job.args.batch_size,
        pad_token_id=padding_id(job.tokenizer),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Extract components; write summaries as JSON and tensors as safetensors."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Components (A, B, C, D, delta) and state dynamics of Mamba layers.",
        epilog="example: python ssm_component_extractor.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS)
    parser.set_defaults(output_dir="ssm_components")
    job = job_from_options(parser.parse_args(argv), ["ssm_component_extractor.py", *argv])
    results, tensors = {}, {}
    for index, captured in enumerate(captures_of(job)):
        results[f"text_{index}"] = {
            f"layer_{layer}": {**parts.to_dict(), "dynamics": recursive_dynamics(parts).to_dict()}
            for layer, parts in captured.components.items()
        }
        for layer, parts in captured.components.items():
            for name in ("delta", "B", "C", "y"):
                tensors[f"text_{index}.layer_{layer}.{name}"] = getattr(parts, name)[0]
    path = write_step_results(job, "ssm_components.json", results)
    write_tensors(job.output_dir / "ssm_components.safetensors", tensors)
    print(f"Wrote {path} and ssm_components.safetensors beside it.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Direct attribution of a logit to layers, paths, source tokens and neurons; the logit lens.

Which layer, path, source token and neuron gave this logit, exactly: what a model adds to its
residual stream sums to the logit, and what a mixer adds is a sum over paths (its skip connection,
its convolution, its state) and over the tokens that wrote there. The definition is in
``causal_interventions.logit_parts``, how to read it in ``docs/predictions.md``. Direct means what a
layer wrote itself; the total effect, what the logit loses without it, stands beside it on request.

From Python::

    attribution = DirectAttribution("demo_model").attribute("some text", token=" word")
    attribution.to_dataframe()  # layer, path, value: they sum to attribution.logit

From a shell: ``python direct_attribution.py --text "some text" --total-effects``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.messages import quoted
from suite_plumbing.step_options import direct_attribution_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(direct_attribution_options)

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.logit_lens import LogitLens, logit_lens
from causal_interventions.logit_parts import LogitParts, logit_parts
from causal_interventions.targets import resolve_target
from causal_interventions.total_effects import layer_effects
from causal_interventions.tuned_lens import TunedLens, tuned_lens
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import untrained_twin
from mamba_mixers.weights import final_norm
from recursive_visualizer import write_figures
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.model_inputs import encode_inputs
from suite_plumbing.models import ModelAnalyzer, execution_device, require_tokenizer
from suite_plumbing.result_files import (
    read_json,
    write_csv,
    write_tensors,
    written_together,
)
from suite_plumbing.texts import readable_token, token_pieces

Inputs = str | Tensor | Mapping[str, Tensor]
"""One text, its token ids (l,), or what a tokenizer returns for it."""

TOP = 8
"""Rows of the command's short table."""


def attribute(
    model: PreTrainedModel,
    input_ids: Tensor,
    token: str | int | None = None,
    contrast: str | int | None = None,
    position: int = -1,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    total_effects: bool = False,
) -> LogitParts:
    """Attribute one logit of a text (1, l) to all that summed to it.

    ``token`` and ``contrast``: an id, or a spelling that is one token; None is the likeliest token,
    and no contrast. ``position``: the token after which the prediction is read, negative from the
    end. ``total_effects`` adds what the logit loses without each layer. Raises ValueError for a
    token that is not one of the vocabulary and a position outside the text, UnsupportedModelError
    for a model without logits. Cost: about one forward pass, and half of one a layer for the total
    effects.
    """
    final_norm(model)
    name = "logit" if contrast is None else "logit_difference"
    target = resolve_target(name, tokenizer, token=token, contrast=contrast, position=position)
    length = input_ids.shape[1]
    if not -length <= target.position < length:
        raise ValueError(
            f"position is {position}; the text has {length} tokens, 0 to {length - 1}, or -1 from "
            "the end"
        )
    ids = input_ids[:, : target.position % length + 1].to(execution_device(model))
    found = logit_parts(model, ids, target.token_id, target.contrast_id)
    if tokenizer is not None:
        found = replace(found, tokens=tuple(token_pieces(tokenizer, ids[0].tolist())),
                        names=_names(tokenizer, found))  # fmt: skip
    if total_effects:
        effects = layer_effects(model, ids, found.token, found.contrast)
        found = replace(found, total_effects=effects)
    return found


def _names(tokenizer: PreTrainedTokenizerBase, found: LogitParts) -> tuple[str, str | None]:
    contrast = None if found.contrast is None else token_pieces(tokenizer, [found.contrast])[0]
    return token_pieces(tokenizer, [found.token])[0], contrast


class DirectAttribution(ModelAnalyzer):
    """What a model's layers, neurons and source tokens gave to a logit; what layers already say."""

    def attribute(
        self,
        text: Inputs,
        token: str | int | None = None,
        contrast: str | int | None = None,
        position: int = -1,
        *,
        total_effects: bool = False,
    ) -> LogitParts:
        """The parts of one logit: see :func:`attribute`."""
        ids, tokenizer = self._ids(text), self._spelling(text, token, contrast)
        self.attribution_ = attribute(
            self.model, ids, token, contrast, position, tokenizer=tokenizer,
            total_effects=total_effects,
        )  # fmt: skip
        return self.attribution_

    def logit_lens(self, text: Inputs, *, twin: bool = True, seed: int = 0) -> LogitLens:
        """What each layer's stream already says of every next token of one text.

        ``twin``: beside an untrained twin whose weights ``seed`` draws. Cost: a forward pass and
        the unembedding of two streams a layer, and the same for the twin.
        """
        final_norm(self.model)
        ids = self._ids(text)
        self.lens_ = _lens(self.model, ids, twin, seed)
        return self.lens_

    def tuned_lens(self, texts: Sequence[Inputs], held_out: Sequence[Inputs]) -> TunedLens:
        """Affine maps fitted to texts, measured beside the plain lens on texts held out.

        Raises ValueError where either is empty; costs as ``tuned_lens.tuned_lens``.
        """
        final_norm(self.model)
        for name, given in (("texts", texts), ("held_out", held_out)):
            if isinstance(given, str) or len(given) == 0:
                raise ValueError(f"{name} is {quoted(given)}; pass a list of at least one text")
        fitted, measured = ([self._ids(x) for x in given] for given in (texts, held_out))
        self.tuned_ = tuned_lens(self.model, fitted, measured)
        return self.tuned_

    def _ids(self, text: Inputs) -> Tensor:
        """(1, l) ids of one text without padding, where the model takes them."""
        ids, mask = encode_inputs(self.model, self.tokenizer, text)
        if len(ids) != 1:
            raise ValueError(f"text holds {len(ids)} texts; pass one at a time")
        return ids[:, mask[0].bool()].to(execution_device(self.model))

    def _spelling(self, text: Inputs, *tokens: str | int | None) -> PreTrainedTokenizerBase | None:
        """The tokenizer, where text or a token is spelled; else the one given."""
        if isinstance(text, str) or any(isinstance(token, str) for token in tokens):
            return require_tokenizer(self.model, self.tokenizer)
        return self.tokenizer


def _lens(model: PreTrainedModel, ids: Tensor, twin: bool, seed: int) -> LogitLens:
    found = logit_lens(model, ids, seed=seed)
    if not twin:
        return found
    return replace(found, twin=logit_lens(untrained_twin(model, seed), ids, seed=seed))


def main(argv: Sequence[str] | None = None) -> int:
    """Attribute a logit of each text; print a short table, write JSON, CSV, tensors, figures."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = direct_attribution_options(argv)
    if args.tuned_lens and args.text is not None and len(args.text) < 2:
        raise ValueError("--tuned-lens needs two texts or more: the last one is held out")
    job = job_from_options(args, model_layers, command_line("direct_attribution.py", argv))
    found = [_attributed(job, torch.tensor([text.input_ids])) for text in job.encoded]
    lenses = [_lens(job.model, torch.tensor([text.input_ids]).to(execution_device(job.model)),
                    True, args.seed) for text in job.encoded]  # fmt: skip
    results = _results(job, found, lenses)
    with written_together():
        path = write_step_results(job, "direct_attribution_results.json", results)
        write_csv(job.output_dir / "direct_attribution.csv", _rows(found))
        write_tensors(job.output_dir / "direct_attribution.safetensors", _tensors(found))
    write_figures(read_json(path), job.output_dir, formats=args.formats)
    for index, parts in enumerate(found):
        print("\n".join(_lines(index, parts)))
    print(f"Wrote {path}, its table, tensors and figures beside it.")
    return 0


def _attributed(job: Job, ids: Tensor) -> LogitParts:
    args = job.args
    return attribute(
        job.model, ids, args.token, args.contrast, args.position, tokenizer=job.tokenizer,
        total_effects=args.total_effects,
    )  # fmt: skip


def _results(job: Job, found: Sequence[LogitParts], lenses: Sequence[LogitLens]) -> dict[str, Any]:
    texts = {
        f"text_{index}": {
            "text": text.text,
            "tokens": text.tokens,
            "direct_attribution": parts.to_dict(),
            "logit_lens": lens.to_dict(),
        }
        for index, (text, parts, lens) in enumerate(zip(job.encoded, found, lenses, strict=True))
    }
    return {"individual_texts": texts, "direct_attribution": {"tuned_lens": _tuned(job)}}


def _tuned(job: Job) -> list[dict[str, Any]] | None:
    """Rows of a tuned lens fitted to all texts but the last; None where it was not asked for."""
    if not job.args.tuned_lens:
        return None
    if len(job.encoded) < 2:
        raise ValueError("--tuned-lens needs two texts or more: the last one is held out")
    ids = [torch.tensor([text.input_ids]).to(execution_device(job.model)) for text in job.encoded]
    return tuned_lens(job.model, ids[:-1], ids[-1:]).to_dataframe().to_dict("records")


def _rows(found: Sequence[LogitParts]) -> list[dict[str, Any]]:
    """Every part of every text, for the table."""
    return [
        {"text": index, **part._asdict()}
        for index, parts in enumerate(found)
        for part in parts.parts
    ]


def _tensors(found: Sequence[LogitParts]) -> dict[str, Tensor]:
    return {
        f"text_{index}.layer_{layer}.{name}": getattr(neurons, name)
        for index, parts in enumerate(found)
        for layer, neurons in parts.neurons.items()
        for name in ("activation", "value")
    }


def _lines(index: int, parts: LogitParts) -> list[str]:
    """What gave most to a logit, as lines of text."""
    what = quoted(parts.names[0] if parts.names else parts.token)
    if parts.contrast is not None and parts.names:
        what += f" minus {quoted(parts.names[1])}"
    lines = [f"text {index}: logit of {what} after token {parts.position} = {parts.logit:.4f}"]
    lines.append("  by layer: direct" + (", total" if parts.total_effects else ""))
    for row in _largest(parts.by_layer(), "direct"):
        total = f"{row['total']:+10.4f}" if parts.total_effects else ""
        name = f"layer {row['layer']}" if isinstance(row["layer"], int) else row["layer"]
        lines.append(f"  {row['direct']:+10.4f}{total}  {name}")
    lines.append("  by source token, all layers together")
    for row in _largest(parts.source_totals(), "value"):
        token = readable_token(str(row["token"]))
        lines.append(f"  {row['value']:+10.4f}  {row['source']!s:>5}  {token}")
    return lines


def _largest(table: pd.DataFrame, column: str) -> list[dict[str, Any]]:
    """The rows of largest magnitude."""
    return sorted(table.to_dict("records"), key=lambda row: -abs(row[column]))[:TOP]


if __name__ == "__main__":
    raise SystemExit(main())

"""Implicit attention of Mamba layers, and neurons made from it by three methods.

Neurons are the d_inner channels at out_proj's input (the gated output), so that what a method says
of a neuron can be checked by ablation. Attention is the SSM's own, exact and signed (see
``attention_maps``), beside a synthetic one from the similarity of states.

From a shell: ``python attention_neurons.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import attention_neurons_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(attention_neurons_options)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.neuron_effects import (
    ABLATION_VALUES,
    ablation_check,
    ablation_rows,
    other_text,
    target_gradients,
)
from causal_interventions.targets import DEFAULT_TARGET, Target, resolve_target
from mamba_mixers.sites import find_mixers, model_layers
from mamba_mixers.weights import MixerParameters, logit_directions, mixer_parameters
from result_views.figures.titles import step_title
from result_views.step_lines import over_texts, step_lines
from ssm_component_extractor import capture_for, captures_of
from ssm_measures.attention_maps import (
    contribution_map,
    group_maps,
    head_groups_by_half_life,
)
from ssm_measures.attention_measures import (
    mixer_share,
    row_shares,
    row_stochastic,
)
from ssm_measures.components import Capture, extracted_layer
from ssm_measures.layer_attention import AttentionData, attention_data
from ssm_measures.layer_attention import LayerAttention as LayerAttention  # found here by its users
from ssm_measures.layer_attention import layer_attention as layer_attention
from ssm_measures.neuron_evolution import neuron_evolution
from ssm_measures.neuron_sets import (
    NeuronBehavior,
    NeuronSet,
    neuron_behavior,
    neuron_set,
    zero_at_padding,
)
from suite_plumbing.arguments import validate_choice, validate_int
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.models import ModelAnalyzer, require_tokenizer
from suite_plumbing.other_names import also_named
from suite_plumbing.parallel import by_layer
from suite_plumbing.precision import in_full_precision
from suite_plumbing.result_files import (
    write_csv,
    write_tensors,
    written_together,
)

if TYPE_CHECKING:
    pass

DEFAULT_NUM_GROUPS = 8
"""Groups of channels by half-life that stand for heads in the hand-off to viewers."""


def layer_parameters(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, MixerParameters]:
    """Weights around the scans of these layers of a model; ValueError for one it does not have."""
    sites = find_mixers(model)
    return {layer: mixer_parameters(sites[layer]) for layer in model_layers(model, layers)}


def attention_weighted(
    data: AttentionData, model: PreTrainedModel | None = None, target: Target | None = None
) -> dict[int, NeuronSet]:
    """Neurons as attention gathers them: A_hat a, by layer.

    a (l, d_inner) are the channels and A_hat the mean of |alpha| over heads with rows divided by
    their sums (a token without attention keeps itself). Importance is the root mean square over
    tokens of A_hat a, times the norm of the channel's column of out_proj: what the neuron writes
    into the residual stream. It does not change when a channel is scaled and its column by the
    inverse. It knows no target. ``model`` and ``target`` are not used.
    """
    return {
        layer: _gathered("attention_weighted", data, layer, row_stochastic(parts.absolute))
        for layer, parts in data.layers.items()
    }


def gradient_guided(
    data: AttentionData, model: PreTrainedModel, target: Target | None = None
) -> dict[int, NeuronSet]:
    """Neurons as a target is sensitive to them: activation times gradient, by layer.

    Values are a * df/da at each token, f the target (default: the log-probability of the model's
    own most likely next token at the last position). Importance is |sum over tokens of (a - mean a)
    df/da|, the mean of it over texts: to first order, how much f changes when the neuron is set to
    its mean in that text: it linearises mean ablation, and ranks otherwise than setting it to zero
    or to another text's value does. For a single token it is 0. ``attention`` is the contribution
    map of ``attention_maps.contribution_map``: what each source gives to f through each query. Runs
    the model once, forward and backward.
    """
    target = resolve_target() if target is None else target
    captured = data.captured
    gradients = target_gradients(model, captured, captured.layers, target)
    described = {
        **target.to_dict(),
        "token_ids": list(gradients.token_ids),
        "value": gradients.value.tolist(),
    }
    mask = captured.attention_mask
    lengths = mask.sum(1).to(gradients.value)[:, None, None]

    def of_layer(layer: int) -> NeuronSet:
        parts = captured.components[layer]
        gradient = zero_at_padding(gradients.grad_gated[layer], mask)
        mean = zero_at_padding(parts.gated, mask).sum(1, keepdim=True) / lengths
        first_order = ((parts.gated - mean) * gradient).sum(1)
        return neuron_set(
            "gradient_guided",
            layer,
            parts.gated * gradient,
            contribution_map(parts, zero_at_padding(gradients.grad_y[layer], mask)),
            first_order.abs().mean(0),
            captured.input_ids,
            captured.attention_mask,
            target=described,
        )

    return by_layer(of_layer, captured.components)


@in_full_precision
def rollout(
    data: AttentionData, model: PreTrainedModel | None = None, target: Target | None = None
) -> dict[int, NeuronSet]:
    """Neurons as attention gathers them through all captured layers up to their own.

    The map is R_l = M_l R_{l-1}, M_l = w A_hat_l + (1 - w) I, with w the mixer's share of the
    residual stream at each token, |mixer output| / (|mixer output| + |stream before the layer|);
    rows sum to 1. Values are R_l a, importance as in :func:`attention_weighted`. Layers that were
    not captured are left out of the product, which the ``note`` says. After Abnar & Zuidema 2020,
    Quantifying Attention Flow in Transformers. ``model`` and ``target`` are not used.
    """
    sets, product, seen = {}, None, []
    for layer in sorted(data.layers):
        step = _rollout_step(data, layer)
        product = step if product is None else step @ product
        seen.append(layer)
        missing = sorted(set(range(layer + 1)) - set(seen))
        note = f"layers {missing} were not captured and are left out" if missing else None
        sets[layer] = _gathered("rollout", data, layer, product, note=note)
    return sets


NeuronMethod = Callable[[AttentionData, PreTrainedModel, Target | None], dict[int, NeuronSet]]

NEURON_METHODS: dict[str, NeuronMethod] = {
    "attention_weighted": attention_weighted,
    "gradient_guided": gradient_guided,
    "rollout": rollout,
}
"""Neurons by layer, by the method's name, each (data, model, target)."""


class MambaAttentionNeurons(ModelAnalyzer):
    """Attention of chosen layers of a Mamba, and neurons made from it."""

    @also_named(layers="layer_indices", text="inputs", texts="inputs")
    def extract_attention_vectors(
        self,
        inputs: str | Sequence[str] | Tensor | Mapping[str, Tensor],
        layer_indices: Sequence[int] | str | None = None,
    ) -> AttentionData:
        """Attention by layer of a text, a list of texts, token ids, or a tokenizer's encoding.

        ``layer_indices``: a list (negatives count from the end), "all", or None for the default
        layers. Raises ValueError for a bad layer or text.
        """
        captured = capture_for(self.model, self.tokenizer, layer_indices, inputs)
        parameters = layer_parameters(self.model, captured.layers)
        self.attention_data_ = attention_data(captured, parameters)
        return self.attention_data_

    def create_mamba_neurons(
        self,
        attention_data: AttentionData,
        method: str = "attention_weighted",
        *,
        target: str = DEFAULT_TARGET,
        token: str | int | None = None,
        contrast: str | int | None = None,
        position: int = -1,
    ) -> dict[int, NeuronSet]:
        """Neurons by layer, by one of ``NEURON_METHODS``.

        ``target``, ``token``, ``contrast`` and ``position`` are for ``gradient_guided``: see
        :func:`targets.resolve_target`. Raises ValueError for an unknown method or target, naming
        the known ones, and for a token that is not in the vocabulary.
        """
        validate_choice("method", method, NEURON_METHODS)
        if not isinstance(attention_data, AttentionData):
            raise ValueError(
                f"attention_data is of type {type(attention_data).__name__}; pass what "
                "extract_attention_vectors(...) returned"
            )
        asked = self._target(target, token, contrast, position)
        found = NEURON_METHODS[method](attention_data, self.model, asked)
        tokens = attention_data.tokens
        self.neurons_ = {layer: replace(one, tokens=tokens) for layer, one in found.items()}
        return self.neurons_

    @also_named(layer="layer_idx")
    def analyze_neuron_behavior(
        self, neurons: Mapping[int, NeuronSet], layer_idx: int, num_neurons: int = 20
    ) -> NeuronBehavior:
        """Statistics, strongest tokens and promoted tokens of a layer's most important neurons."""
        if not isinstance(neurons, Mapping):
            raise ValueError(
                f"neurons is of type {type(neurons).__name__}; pass what "
                "create_mamba_neurons(...) returned, a dict by layer"
            )
        chosen = extracted_layer(neurons, layer_idx, "create_mamba_neurons")
        out_weight = layer_parameters(self.model, [layer_idx])[layer_idx].out_weight
        self.behavior_ = neuron_behavior(
            chosen,
            out_weight,
            logit_directions(self.model),
            self._tokenizer_or_none(),
            num_neurons=validate_int("num_neurons", num_neurons, 1),
        )
        return self.behavior_

    def neuron_table(self, neurons: Mapping[int, NeuronSet]) -> pd.DataFrame:
        """One row a neuron of every layer: see
        :meth:`ssm_measures.neuron_sets.NeuronSet.to_dataframe`."""
        tables = [neurons[layer].to_dataframe() for layer in sorted(neurons)]
        return pd.concat(tables, ignore_index=True)

    def bertviz_attention(
        self, layer: int, num_groups: int = DEFAULT_NUM_GROUPS, text: int = 0
    ) -> list[Tensor]:
        """One layer's attention as bertviz's views take it: a list of one (1, heads, l, l).

        See :meth:`circuitsvis_attention`.
        """
        return [self.circuitsvis_attention(layer, num_groups, text).unsqueeze(0)]

    def circuitsvis_attention(
        self, layer: int, num_groups: int = DEFAULT_NUM_GROUPS, text: int = 0
    ) -> Tensor:
        """One layer's attention as circuitsvis takes it, (heads, l, l), query by source.

        Heads are groups of channels by half-life, the shortest first. Those tools expect the
        output of a softmax: what they get is the mean of |alpha| over the group with each row
        divided by its sum, non-negative and without its sign. Raises RuntimeError before
        ``extract_attention_vectors``, ValueError for a layer, group count or text it has not.
        """
        method = "extract_attention_vectors"
        captured = self._earlier("attention_data_", method).captured
        components = extracted_layer(captured.components, layer, method)
        text = validate_int("text", text, 0, len(components.attention_mask) - 1)
        alone = components.text(text)
        groups = head_groups_by_half_life(alone, min(num_groups, alone.delta.shape[2]))
        return row_shares(group_maps(alone, groups, absolute=True))[0]

    def _target(
        self, name: str, token: str | int | None, contrast: str | int | None, position: int
    ) -> Target:
        words = isinstance(token, str) or isinstance(contrast, str)
        tokenizer = require_tokenizer(self.model, self.tokenizer) if words else None
        return resolve_target(name, tokenizer, token=token, contrast=contrast, position=position)

    def _tokenizer_or_none(self) -> PreTrainedTokenizerBase | None:
        try:
            return require_tokenizer(self.model, self.tokenizer)
        except ValueError:
            return None  # token ids stand for their text then


@in_full_precision
def _gathered(
    method: str, data: AttentionData, layer: int, shares: Tensor, **details: str | None
) -> NeuronSet:
    """The neurons of ``shares`` (b, l, l), rows summing to 1, applied to the layer's channels."""
    captured, mask = data.captured, data.captured.attention_mask
    gated = zero_at_padding(captured.components[layer].gated, mask)
    values = zero_at_padding(shares.to(gated) @ gated, mask)
    written = (values.square().sum((0, 1)) / mask.sum()).sqrt()
    importance = written * data.parameters[layer].out_weight.norm(dim=0).to(written)
    return neuron_set(
        method,
        layer,
        values,
        shares,
        importance,
        captured.input_ids,
        mask,
        gathered=gated,
        **details,
    )


def _rollout_step(data: AttentionData, layer: int) -> Tensor:
    """w A_hat + (1 - w) I of one layer, (b, l, l)."""
    captured = data.captured
    share = mixer_share(captured.components[layer], captured.block_inputs[layer])
    attended = share.unsqueeze(-1) * row_stochastic(data.layers[layer].absolute)
    return attended + torch.diag_embed(1 - share)


_TABLE = {
    "distance (tokens)": ("statistics", "mean_distance", "mean"),
    "90 % within": ("memory_kernel", "lag_90"),
    "entropy share": ("statistics", "entropy_share", "mean"),
}

_TITLE = "Layer {} reads back furthest: mean distance {}, mean over texts"

_CAPTION = (
    "Implicit attention, the mean of |α| over heads. Mean distance: of each query, mean over "
    "queries. 90 % within: lag up to which the memory kernel holds 90 % of its mass. Entropy "
    "share: entropy over its largest, 1 is even attention."
)

_KEY = "By method: the neuron of largest importance in text 0; neurons.csv has all."


def main(argv: Sequence[str] | None = None) -> int:
    """Attention and neurons of texts: summaries as JSON, tensors as safetensors, a CSV table."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = attention_neurons_options(argv)
    job = job_from_options(args, model_layers, command_line("attention_neurons.py", argv))
    target = resolve_target(args.target, job.tokenizer, token=args.token, contrast=args.contrast)
    parameters = layer_parameters(job.model, job.layers)
    results, tensors, rows, ablated = {}, {}, [], []
    captures = captures_of(job)
    for index, captured in enumerate(captures):
        data = attention_data(captured, parameters)
        sets = {name: make(data, job.model, target) for name, make in NEURON_METHODS.items()}
        ablation = _ablation(job, captured, other_text(captures, index), sets, target)
        results[f"text_{index}"] = {**_section(data, sets, args.seed), "ablation": ablation}
        ablated += [{"text": index, **row} for row in ablation_rows(ablation)]
        stored = [data.tensors(), *(s.tensors() for by in sets.values() for s in by.values())]
        tensors.update({f"text_{index}.{name}": x for part in stored for name, x in part.items()})
        rows += _rows(index, sets)
    ablation = job.output_dir / "neuron_ablation.csv"
    with written_together([ablation]):
        path = write_step_results(job, "attention_neurons.json", results)
        write_tensors(job.output_dir / "attention_neurons.safetensors", tensors)
        write_csv(job.output_dir / "neurons.csv", rows)
        if ablated:
            write_csv(ablation, ablated)
    tables = "neurons.csv and neuron_ablation.csv" if ablated else "neurons.csv"
    # Imported here: an analysis does without matplotlib.
    from recursive_visualizer import write_step_figure

    found = over_texts([part["attention_data"] for part in results.values()], _TABLE)
    title = step_title(found, "distance (tokens)", _TITLE)
    picture = write_step_figure(
        job.output_dir, "attention_neurons", title, found, _CAPTION, args.formats
    )
    for row in found:
        for name in NEURON_METHODS:
            top = results["text_0"]["neurons"][name][f"layer_{row['layer']}"]["top_neurons"]
            row[name.replace("_", "-")] = str(top[0]["neuron"])
    print("\n".join([*step_lines(found), _KEY]))
    print(f"Wrote {path}, attention_neurons.safetensors, {tables}, {picture.name} beside it.")
    return 0


SetsByMethod = Mapping[str, Mapping[int, NeuronSet]]


def _section(data: AttentionData, sets: SetsByMethod, seed: int) -> dict:
    """One text's attention, neurons and their evolution, as the pipeline names them."""
    return {
        "attention_data": data.to_dict(),
        "neurons": {
            name: {f"layer_{layer}": neurons.to_dict() for layer, neurons in one.items()}
            for name, one in sets.items()
        },
        "neuron_evolution": {
            name: neuron_evolution(one, seed=seed).to_dict() for name, one in sets.items()
        },
    }


def _rows(text: int, sets: SetsByMethod) -> list[dict]:
    """The table of every neuron of every method and layer; None where undefined."""
    rows = []
    for name, of_method in sets.items():
        for neurons in of_method.values():
            table = neurons.to_dataframe().astype(object)
            records = table.where(table.notna(), None).to_dict("records")
            rows += [{"text": text, "method": name, **row} for row in records]
    return rows


def _ablation(
    job: Job, captured: Capture, donor: Capture | None, sets: SetsByMethod, target: Target
) -> dict:
    args = job.args
    if args.ablate == 0:
        return {"reason": "not asked for: pass --ablate N"}
    checked = ablation_check(
        job.model, captured, sets, target, args.ablate, args.seed,
        values=ABLATION_VALUES, donor=donor,
    )  # fmt: skip
    return {f"layer_{layer}": check for layer, check in checked.items()}


if __name__ == "__main__":
    raise SystemExit(main())

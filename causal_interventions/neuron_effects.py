"""What a model's neurons do to a scalar target: exact gradients, and exact effects of ablation.

Neurons are the d_inner channels at a mixer's out_proj: the gated output. The model runs here again,
through ``mamba_mixers.fast_scan``; every other analysis of neurons reads a ``Capture`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.interventions import set_neuron
from causal_interventions.targets import PinnedTarget, Target
from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import num_layers
from mamba_mixers.weights import check_has_logits
from ssm_measures.components import Capture, extracted_layer
from ssm_measures.neuron_sets import RankedNeurons
from suite_plumbing.arguments import torch_rng, validate_choice, validate_int, whole_numbers
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device
from suite_plumbing.progress import progress
from suite_plumbing.result_files import finite_or_none
from token_statistics.association import pearson_p_values, spearman

ABLATION_VALUES = ("mean", "zero", "other_text")
"""What an ablated neuron is set to: its mean over the text's tokens; zero; its values on another
text, token by token, from the start again where that is shorter. They ask different questions. The
mean keeps what the neuron does at every token; zero takes that away too, and may put the model
where no text does; another text's values are those of a neuron that is there but read the wrong
text."""

# Tokens, over the variants of a text, that an ablation's forward pass handles at once.
_TOKENS_PER_PASS = 4096

# What a backward pass may keep of the blocks, and how many tensors (b, l, d_inner) it keeps of one:
# that of one layer at mamba-130m's width and 512 tokens, which it takes anyway.
_GRAPH_BYTES = 40_000_000

_KEPT_TENSORS = 12


@dataclass(frozen=True, eq=False)
class TargetGradients:
    """A target's value on each text, and its gradients in some layers; detached, on the CPU."""

    value: Tensor
    """(b,) the target f"""
    token_ids: tuple[int, ...]
    """per text: the token that f is about; -1 for the target "loss" """
    grad_y: dict[int, Tensor]
    """by layer: (b, l, d_inner) df/dy, y the scan's output with D u"""
    grad_gated: dict[int, Tensor]
    """by layer: (b, l, d_inner) df/da, a the neurons: the gated output"""


@dataclass(frozen=True, eq=False)
class AblationEffects:
    """What setting one neuron to another value does to the target, neuron by neuron."""

    layer: int
    neurons: Tensor
    """(k,) channel numbers"""
    effects: Tensor
    """(k,) target with the neuron at that value, minus the target as it is"""
    baseline: float
    """the target as it is"""
    target: dict
    """what the target was: name, position, token"""
    value: str = "mean"
    """one of ABLATION_VALUES"""

    def to_dict(self) -> dict:
        """Effects for JSON, by neuron."""
        effects = {
            str(neuron): effect
            for neuron, effect in zip(self.neurons.tolist(), self.effects.tolist(), strict=True)
        }
        return {"target": self.target, "baseline": self.baseline, "effects": effects}


def target_gradients(
    model: PreTrainedModel, captured: Capture, layers: Sequence[int], target: Target
) -> TargetGradients:
    """Gradients of the target in the neurons and in the scan's output of these layers, exact.

    One forward and one backward pass of the whole model, by the suite's scan. The sum over texts
    is differentiated, which keeps texts apart. What the backward pass needs of early layers is
    computed again where it would not fit `_GRAPH_BYTES`: for long texts almost a forward pass more.
    Raises ValueError as ``Target.pin`` does, UnsupportedModelError for a model without logits, and
    AnalysisError where they overflow.
    """
    ends: dict[int, tuple[Tensor, Tensor]] = {}

    def observe(layer: int, replay: MixerReplay) -> None:
        if layer in layers:
            ends.setdefault(layer, (replay.y, replay.gated))  # not those computed again

    edits = dict.fromkeys(layers, _on_graph)
    recompute = _layers_too_large(captured, num_layers(model))
    # A caller's no_grad or inference_mode is lifted for as long as gradients are needed.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        fast_scan(model, edits=edits, observe=observe, recompute=recompute),
    ):
        logits, pinned = _run(model, captured, target)
        value = pinned(logits)
        _check_finite(value, "the target", model)
        sources = [x for layer in layers for x in ends[layer]]
        grads = [g.cpu() for g in torch.autograd.grad(value.sum(), sources)]
    for grad in grads:
        _check_finite(grad, "a gradient of the target", model)
    token_ids = pinned.token.tolist() if pinned.reads_one_position else [-1] * len(value)
    return TargetGradients(
        value.detach().cpu(),
        tuple(token_ids),
        dict(zip(layers, grads[0::2], strict=True)),
        dict(zip(layers, grads[1::2], strict=True)),
    )


@torch.no_grad()
def ablation_effects(
    model: PreTrainedModel,
    captured: Capture,
    layer: int,
    neurons: Sequence[int],
    target: Target,
    *,
    value: str = "mean",
    donor: Capture | None = None,
) -> AblationEffects:
    """Exact effect on the target of setting single neurons of a layer to one of ABLATION_VALUES.

    One text, without padding; ``donor`` is the other text's capture. The layers up to this one run
    once for all variants of a batch: the text branches into one row a neuron at out_proj's input.
    The target's tokens are those of the unperturbed text. Raises ValueError for a batch, a layer
    not captured, a neuron that does not exist, and "other_text" without a donor. Cost: one forward
    pass for the baseline, and for each neuron that of the later layers.
    """
    gated = extracted_layer(captured.components, layer, "capture").gated
    chosen = _checked_neurons(neurons, captured, gated)
    put = _ablation_value(value, donor, layer, gated)
    with fast_scan(model):
        logits, pinned = _run(model, captured, target)
        baseline = pinned(logits).cpu()
    _check_finite(baseline, "the target", model)
    size = max(1, _TOKENS_PER_PASS // gated.shape[1])
    batches = chosen.split(size) if len(chosen) else ()
    effects = [gated.new_empty(0)]
    for batch in progress(batches, desc=f"ablations in layer {layer}"):
        with fast_scan(model, edits=set_neuron(layer, batch[:, None], put)):
            logits, _ = _run(model, captured, target, pinned)
        effects.append(pinned(logits).cpu() - baseline)
    described = {**target.to_dict(), "token_id": int(pinned.token[0])}
    return AblationEffects(layer, chosen, torch.cat(effects), float(baseline), described, value)


def ablation_agreement(importance: Tensor, effects: AblationEffects) -> dict:
    """Spearman of a method's importance (d_inner,) with |effect| over the ablated neurons.

    ``spearman`` in [-1, 1]; ``p_value`` two-sided, against no association; ``null_95`` the
    magnitude that it exceeds by chance once in twenty times, 1.96 / sqrt(n - 1); None where
    undefined, with the ``reason``. Agreement is with one kind of ablation: gradient_guided
    linearises the one by the mean, and agrees less with the others. A fair figure needs neurons
    chosen at random or all of them: among the top ones alone the range is restricted.
    """
    number = len(effects.neurons)
    rho = math.nan
    if number > 2:
        rho = spearman(importance[effects.neurons], effects.effects.abs())
    if math.isnan(rho):
        reason = "fewer than 3 neurons" if number < 3 else "importance or effects are all the same"
        return {"spearman": None, "p_value": None, "null_95": None, "n": number, "reason": reason}
    return {
        "spearman": rho,
        "p_value": finite_or_none(pearson_p_values([rho], number)[0]),
        "null_95": 1.96 / math.sqrt(number - 1),
        "n": number,
        "reason": None,
    }


def choose_for_ablation(
    sets: Sequence[RankedNeurons], num_random: int, num_top: int = 0, seed: int = 0
) -> list[int]:
    """Channel numbers to ablate: a random sample, then each set's most important not in it."""
    chosen = random_neurons(len(sets[0].importance), num_random, seed)
    tops = [neuron for neurons in sets for neuron in neurons.ranking[:num_top].tolist()]
    return list(dict.fromkeys(chosen + tops))


def random_neurons(count: int, num_random: int, seed: int = 0) -> list[int]:
    """``num_random`` of ``count`` channel numbers at random, all of them if there are fewer."""
    number = validate_int("num_random", num_random, 0)
    return torch.randperm(count, generator=torch_rng(seed))[:number].tolist()


def ablation_check(
    model: PreTrainedModel,
    captured: Capture,
    sets: Mapping[str, Mapping[int, RankedNeurons]],
    target: Target,
    num_random: int,
    seed: int = 0,
    *,
    values: Sequence[str] = ("mean",),
    donor: Capture | None = None,
) -> dict[int, dict]:
    """Effects of ablating random neurons of each layer, and each method's agreement with them.

    ``sets``: neuron sets by method and layer, of one text. By layer: ``effects`` and ``agreement``
    of the mean ablation, and ``by_value`` both for each of ``values`` (of ABLATION_VALUES, "mean"
    among them); of "other_text" without a ``donor`` only the ``reason``. Raises ValueError as
    `ablation_effects` and for an unknown value. Cost: see there, ``num_random`` neurons a layer and
    value.
    """
    for value in values:
        validate_choice("values", value, ABLATION_VALUES)
    results = {}
    for layer in captured.layers:
        by_method = {name: by_layer[layer] for name, by_layer in sets.items()}
        chosen = choose_for_ablation(list(by_method.values()), num_random, seed=seed)
        by_value = {
            value: {"reason": "no other text to take values from"}
            if value == "other_text" and donor is None
            else _checked_value(model, captured, layer, chosen, target, by_method, value, donor)
            for value in dict.fromkeys(("mean", *values))
        }
        results[layer] = {**by_value["mean"], "by_value": by_value}
    return results


def ablation_rows(by_layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a layer and neuron of `ablation_check`'s results by "layer_i": for a table.

    ``effect_mean``, ``effect_zero``, ``effect_other_text``: change of the target; None where that
    ablation was not made. Without results there are no rows.
    """
    rows = []
    for name, check in by_layer.items():
        if not isinstance(check, Mapping) or "by_value" not in check:
            continue
        found = {value: part.get("effects", {}) for value, part in check["by_value"].items()}
        for neuron in check["effects"]:
            effects = {f"effect_{v}": found.get(v, {}).get(neuron) for v in ABLATION_VALUES}
            rows.append({"layer": int(name[6:]), "neuron": int(neuron), **effects})
    return rows


def other_text(captures: Sequence[Capture], index: int) -> Capture | None:
    """The capture after this one, the first after the last; None where there is no other."""
    return captures[(index + 1) % len(captures)] if len(captures) > 1 else None


def _checked_value(
    model: PreTrainedModel,
    captured: Capture,
    layer: int,
    chosen: Sequence[int],
    target: Target,
    by_method: Mapping[str, RankedNeurons],
    value: str,
    donor: Capture | None,
) -> dict:
    """Effects of one kind of ablation in a layer, with each method's agreement."""
    effects = ablation_effects(model, captured, layer, chosen, target, value=value, donor=donor)
    agreement = {
        name: ablation_agreement(neurons.importance, effects) for name, neurons in by_method.items()
    }
    return {**effects.to_dict(), "agreement": agreement}


def _ablation_value(value: str, donor: Capture | None, layer: int, gated: Tensor) -> str | Tensor:
    """What `set_neuron` takes for one of ABLATION_VALUES."""
    if validate_choice("value", value, ABLATION_VALUES) != "other_text":
        return value
    if donor is None:
        raise ValueError("value is 'other_text' without a donor; pass the capture of another text")
    other = extracted_layer(donor.components, layer, "capture").gated
    if len(other) != 1 or not bool(donor.attention_mask.all()):
        raise ValueError(f"donor has {len(other)} texts, or padding; pass donor.text(row)")
    return other[0, torch.arange(gated.shape[1]) % other.shape[1]]


def _run(
    model: PreTrainedModel,
    captured: Capture,
    target: Target,
    pinned: PinnedTarget | None = None,
) -> tuple[Tensor, PinnedTarget]:
    """Logits of the captured texts, only those that the target reads, and the target pinned."""
    device = execution_device(model)
    # Cloned: of tensors made in inference_mode autograd can keep a copy alone.
    ids = captured.input_ids.to(device).clone()
    mask = captured.attention_mask.to(device).clone()
    length = ids.shape[1]
    column = length + target.position
    # With padding on the left alone, texts end in the same column.
    ends_alike = bool(mask[:, -1].all())
    one = target.name != "loss" and target.position < 0 <= column and ends_alike
    options: Mapping = {"logits_to_keep": torch.tensor([column])} if one else {}
    padding = None if bool(mask.all()) else mask
    check_has_logits(model)
    logits = model(
        input_ids=ids, attention_mask=padding, use_cache=False, return_dict=True, **options
    ).logits
    if pinned is None:
        pinned = target.pin(logits.detach().expand(-1, length, -1), ids, mask)
        pinned = pinned.for_kept_logits() if logits.shape[1] == 1 else pinned
    return logits, pinned


def _check_finite(values: Tensor, what: str, model: PreTrainedModel) -> None:
    """Raise AnalysisError where the layers up to the logits overflow, or hold NaN."""
    if not bool(torch.isfinite(values).all()):
        raise AnalysisError(
            f"{what} is NaN or infinite: the model's logits overflow on this text in "
            f"{str(model.dtype).removeprefix('torch.')}. Run it in a wider dtype, or check its "
            "weights"
        )


def _layers_too_large(captured: Capture, depth: int) -> range:
    """The early layers of which a backward pass keeps too much if it is to keep the last ones'."""
    widest = max(parts.u.nbytes for parts in captured.components.values())
    num_kept = _GRAPH_BYTES // (_KEPT_TENSORS * widest)
    return range(max(0, depth - num_kept))


def _on_graph(stage: str, x: Tensor) -> Tensor:
    """Make y and the neurons differentiable where no parameter is (a frozen model)."""
    return x if stage not in ("y", "gated") or x.requires_grad else x.requires_grad_()


def _checked_neurons(neurons: Sequence[int], captured: Capture, gated: Tensor) -> Tensor:
    if len(gated) != 1 or not bool(captured.attention_mask.all()):
        raise ValueError(
            f"captured has {len(gated)} texts; ablation takes one: pass captured.text(row)"
        )
    size = gated.shape[2]
    chosen = whole_numbers("neurons", neurons, 0, size - 1, empty=True)
    return torch.tensor(chosen, dtype=torch.long)

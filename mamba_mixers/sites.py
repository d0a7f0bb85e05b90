"""Where the selective SSM mixers of a model sit, and which models have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from mamba_mixers import families as mixer_families
from mamba_mixers.families import MixerFamily, family_of
from suite_plumbing.arguments import resolve_layer_indices


class UnsupportedModelError(ValueError):
    """The model has no selective SSM mixer of a family in ``FAMILIES``."""


class MixerSite(NamedTuple):
    """Where a selective SSM mixer sits in a model."""

    layer: int
    block: nn.Module
    mixer: Any
    family: MixerFamily


def find_mixers(model: nn.Module) -> dict[int, MixerSite]:
    """Every selective SSM mixer of the model, by the number of the layer that holds it.

    Found by class and structure, not by attribute name or config. Raises UnsupportedModelError
    for a model without one; models that have an ``A_log`` but follow the delta rule
    (Gated DeltaNet and its kin) are refused too.
    """
    sites = {}
    for name, module in model.named_modules():
        family = family_of(module)
        if family is not None:
            block_name, layer = _block_of(name)
            sites[layer] = MixerSite(layer, model.get_submodule(block_name), module, family)
    if not sites:
        raise UnsupportedModelError(_refusal(model))
    return dict(sorted(sites.items()))


def num_layers(model: nn.Module) -> int:
    """Number of layers of the model, those without an SSM included."""
    return len(blocks_of(model))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every layer of the model, in order; they lie beside that of the first mixer."""
    names = (n for n, module in model.named_modules() if family_of(module) is not None)
    if (site_name := next(names, None)) is None:
        raise UnsupportedModelError(_refusal(model))
    block_name, _ = _block_of(site_name)
    return list(model.get_submodule(block_name.rpartition(".")[0]).children())


def model_family(model: nn.Module) -> MixerFamily:
    """The family of the model's mixers. Raises UnsupportedModelError for a model without one."""
    return next(iter(find_mixers(model).values())).family


def _block_of(name: str) -> tuple[str, int]:
    """("backbone.layers.3", 3) for "backbone.layers.3.mixer"."""
    parts = name.split(".")
    position = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: position + 1]), int(parts[position])


def _refusal(model: nn.Module) -> str:
    lookalikes = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "A_log")})
    reason = (
        f"its {', '.join(lookalikes)} layers have an A_log but are not a selective SSM of these"
        if lookalikes
        else "none of its layers is a selective SSM"
    )
    families = ", ".join(
        f"{family.model_type} ({family.mixer_class})" for family in mixer_families.FAMILIES
    )
    return (
        f"{type(model).__name__} cannot be analysed: {reason}. Supported families: {families}. "
        "Load a model of one of these, e.g. with AutoModelForCausalLM.from_pretrained."
    )


def model_layers(model: PreTrainedModel, layer_indices: Sequence[int] | str | None) -> list[int]:
    """The layers that ``layer_indices`` asks for, checked against those with an SSM."""
    available = list(find_mixers(model))
    return resolve_layer_indices(layer_indices, available, num_layers(model))

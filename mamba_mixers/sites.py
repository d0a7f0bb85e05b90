"""Where the selective SSM mixers of a model sit, and which models have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from mamba_mixers import families as mixer_families
from mamba_mixers.families import MixerFamily, family_of
from suite_plumbing.arguments import resolve_layer_indices
from suite_plumbing.messages import quoted


class UnsupportedModelError(ValueError):
    """The model has no selective SSM mixer of a family in ``FAMILIES``, or uses one otherwise."""


WRAPPERS = {
    "OptimizedModule": "torch.compile'd: pass the model that was compiled, model._orig_mod",
    "DataParallel": "spread over devices: pass model.module",
    "DistributedDataParallel": "spread over processes: pass model.module",
    "FullyShardedDataParallel": "spread over processes: load the model as a whole",
    "PeftModel": "a wrapper of adapters: pass model.get_base_model(), in which they stay in place, "
    "or model.merge_and_unload()",
}
"""Classes around a model that hooks and replaced forwards do not reach through, and what to do."""


class TheirCode(nn.Module):
    """A user's own module, run as it is; mixers inside are those of the layer around it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


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
    (Gated DeltaNet and its kin) are refused too, and so are a layer with two mixers, a module that
    serves several layers, an adapter on ``dt_proj``, and models inside one of ``WRAPPERS``.
    """
    check_unwrapped(model)
    names = _mixer_names(model)
    if not names:
        raise UnsupportedModelError(_refusal(model))
    sites: dict[int, MixerSite] = {}
    for name in names:
        block_name, layer = _block_of(name)
        mixer: Any = model.get_submodule(name)
        family = family_of(mixer)
        if family is not None:
            site = MixerSite(layer, model.get_submodule(block_name), mixer, family)
            _check_alone(site, name, sites)
            sites[layer] = site
    return dict(sorted(sites.items()))


def num_layers(model: nn.Module) -> int:
    """Number of layers of the model, those without an SSM included."""
    return len(blocks_of(model))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Every layer of the model, in order; they lie beside that of the first mixer.

    Raises UnsupportedModelError as :func:`find_mixers`.
    """
    first = next(iter(find_mixers(model).values()))
    block_name, _ = _block_of(_mixer_names(model)[0])
    by_name = dict(model.get_submodule(block_name.rpartition(".")[0])._modules)
    blocks = [block for block in by_name.values() if block is not None]
    if list(by_name) != list(map(str, range(len(blocks)))):
        raise UnsupportedModelError(
            f"the layers beside {block_name} of {type(model).__name__} are named "
            f"{', '.join(list(by_name)[:8])}; the suite reads layers numbered from 0"
        )
    if len({id(block) for block in blocks}) < len(blocks):
        raise UnsupportedModelError(
            f"one {type(first.block).__name__} of {type(model).__name__} serves several layers; "
            "the suite reads models whose layers are modules of their own"
        )
    return blocks


def model_family(model: nn.Module) -> MixerFamily:
    """The family of the model's mixers. Raises UnsupportedModelError for a model without one."""
    return next(iter(find_mixers(model).values())).family


def _mixer_names(model: nn.Module) -> list[str]:
    """Every name of every mixer: several for a module that serves several layers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    theirs = tuple(f"{name}." for name, m in modules.items() if isinstance(m, TheirCode))
    return [
        name
        for name, module in modules.items()
        if family_of(module) is not None and not name.startswith(theirs)
    ]


def _block_of(name: str) -> tuple[str, int]:
    """("backbone.layers.3", 3) for "backbone.layers.3.mixer"."""
    parts = name.split(".")
    position = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if position is None:
        raise UnsupportedModelError(
            f"the mixer {quoted(name)} lies in no numbered layer; pass the model"
        )
    return ".".join(parts[: position + 1]), int(parts[position])


def _check_alone(site: MixerSite, name: str, others: dict[int, MixerSite]) -> None:
    """Refuse a second mixer in a layer, one that another layer has too, an adapter unheard."""
    if hasattr(getattr(site.mixer, "dt_proj", None), "base_layer"):
        raise UnsupportedModelError(
            f"the dt_proj of layer {site.layer} has an adapter, which the model's own code passes "
            "over where it reads the weight beneath; merge it by model.merge_and_unload()"
        )
    if site.layer in others:
        raise UnsupportedModelError(
            f"layer {site.layer} has more than one mixer ({name} is the second); the suite reads "
            "models with one stack of layers and at most one mixer in each"
        )
    for other in others.values():
        if site.mixer is other.mixer:
            raise UnsupportedModelError(
                f"one mixer serves layers {other.layer} and {site.layer}; the suite reads models "
                "whose layers have mixers of their own"
            )


def check_unwrapped(model: nn.Module) -> None:
    """Raise UnsupportedModelError for a model inside one of WRAPPERS, ValueError for no module."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is {quoted(model)}, of type {type(model).__name__}; pass a transformers model"
        )
    for name, module in model.named_modules():
        what = "the model" if module is model else f"its {name}"
        for cls in type(module).__mro__:
            if cls.__name__ in WRAPPERS:
                raise UnsupportedModelError(
                    f"{what} is of class {type(module).__name__}, {WRAPPERS[cls.__name__]}"
                )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedModelError(
                f"{what} was compiled in place by compile(), after which hooks may go unheard; "
                "load the model anew and do not compile it"
            )


def _refusal(model: nn.Module) -> str:
    lookalikes = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "A_log")})
    reason = (
        f"its {', '.join(lookalikes)} layers have an A_log but are not a selective SSM of these; "
        "if they are mamba_ssm's, pass own_model(model) (from mamba_mixers import own_model)"
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

"""A user's own model, taken apart and put together as one that every analysis reads.

``own_model(model)`` takes any module that holds mixers with the parameters of mamba_ssm's ``Mamba``
or ``Mamba2`` and gives logits for token ids. Its modules stay the user's: layers, norms, embedding
and head are called as they are (see ``own_modules``), found by ``own_structure``. What was put
together has to give the user's own logits, and the replayed mixers the user's own outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from mamba_mixers.own_modules import OwnBlock, OwnRMSNorm, own_mixer, rms_epsilon
from mamba_mixers.own_structure import (
    HOW,
    TOLERANCE,
    Structure,
    as_dtype_of,
    find_structure,
    logits_of,
    norms_to_show,
    own_mixers,
    same,
    traced,
    written_scale,
)
from mamba_mixers.recording import record_layers
from mamba_mixers.replay_check import replay_tolerance
from mamba_mixers.sites import TheirCode, UnsupportedModelError, check_unwrapped
from suite_plumbing.messages import quoted

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 7


class OwnConfig(PretrainedConfig):
    """The sizes of a user's model, read off its modules."""

    model_type = "own_model"

    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0

    def __init__(self, **kwargs: Any) -> None:
        names = ("vocab_size", "hidden_size", "num_hidden_layers")
        given = {name: kwargs.pop(name, 0) for name in names}
        super().__init__(**kwargs)
        for name, size in given.items():
            setattr(self, name, size)
        # A tied head is the user's own parameter already.
        self.tie_word_embeddings = False


class OwnBackbone(nn.Module):
    """Embedding, layers and final norm of a user's model."""

    def __init__(self, structure: Structure, layers: list[OwnBlock], norm: nn.Module) -> None:
        super().__init__()
        self.embedding = structure.embedding
        self.layers = nn.ModuleList(layers)
        self.norm_f = norm

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """The stream behind the final norm; further arguments are not read."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass one of input_ids and inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        streams = [x]
        for layer in self.layers:
            x = layer(x, attention_mask=attention_mask)
            streams.append(x)
        normed: Any = self.norm_f(as_dtype_of(self.norm_f, x))
        shown: Any = tuple(streams) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=normed, hidden_states=shown)


class OwnModelForCausalLM(PreTrainedModel):
    """A user's model with the calls of a causal language model; :func:`own_model` makes it."""

    config_class = OwnConfig
    base_model_prefix = "backbone"

    def __init__(
        self, config: OwnConfig, backbone: OwnBackbone | None = None, head: nn.Module | None = None
    ) -> None:
        if backbone is None or head is None:
            raise ValueError("a model of one's own has no config that it could be made from")
        super().__init__(config)
        self.backbone, self.head = backbone, head

    def _init_weights(self, module: nn.Module) -> None:
        """The weights are the user's."""

    def made_anew(self) -> OwnModelForCausalLM:
        """The same of a model that the user's ``fresh`` makes; ValueError without one."""
        fresh, names = vars(self)["fresh"], vars(self)["names"]
        if fresh is None:
            raise ValueError("give own_model fresh=, a function that makes the model untrained")
        return own_model(fresh(), **names)

    def get_input_embeddings(self) -> nn.Module:
        """The user's embedding."""
        return self.backbone.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The user's head."""
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits of (b, l) ids or (b, l, d_model) embeddings; further arguments are not read."""
        output = self.backbone(
            input_ids, inputs_embeds, attention_mask, output_hidden_states, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits: Any = self.head(as_dtype_of(self.head, output.last_hidden_state[:, kept]))
        return CausalLMOutput(logits=logits, hidden_states=output.hidden_states)


class _OtherNorm(TheirCode):
    """A final norm that is no RMS norm, or none."""


def own_model(
    model: nn.Module,
    *,
    embedding: nn.Module | str | None = None,
    final_norm: nn.Module | str | None = None,
    head: nn.Module | str | None = None,
    fresh: Callable[[], nn.Module] | None = None,
) -> OwnModelForCausalLM:
    """A user's own model for the suite: any module that gives logits (b, l, V) for token ids (b, l)
    and holds mixers with the parameters of mamba_ssm's ``Mamba`` or ``Mamba2``.

    Embedding, layers, final norm and head are found by what a forward pass shows; the keywords
    give them, as modules or by their names in the model, where that fails. ``fresh()`` makes the
    model untrained, for twins of fresh weights (`untrained_twins`). The model is put in eval mode;
    it shares its modules with what is returned and stays usable. Attention and convolutions outside
    the mixers are refused, for a padded text could not be read through them. Raises
    UnsupportedModelError, in one sentence, for a model without such mixers, one whose residual
    stream cannot be followed, and one that the parts put together do not reproduce; ValueError for
    a name that the model does not have. Cost: a few forward passes over a handful of tokens.
    """
    check_unwrapped(model)
    if not own_mixers(model):
        raise UnsupportedModelError(
            f"model is of type {type(model).__name__}; pass a transformers model, the name or "
            "folder of one, or a module that holds mixers with the parameters of mamba_ssm's Mamba "
            "or Mamba2"
        )
    given = {"embedding": embedding, "final_norm": final_norm, "head": head}
    modules = {key: _module(model, key, value) for key, value in given.items()}
    if model.training:
        logger.info("the model was in training mode; it is in eval mode now")
        model.eval()
    ids = _probe_ids(model, modules["embedding"])
    structure = find_structure(model, ids[:1], **modules)
    made = _put_together(model, structure, ids[:1])
    _check(made, model, ids)
    vars(made).update(fresh=fresh, names=_names_of(model, modules))
    return made


def _names_of(model: nn.Module, modules: dict[str, nn.Module | None]) -> dict[str, str]:
    """By keyword the name of each module that was given."""
    names = {module: name for name, module in model.named_modules()}
    return {key: names[module] for key, module in modules.items() if module in names}


def _module(model: nn.Module, key: str, given: nn.Module | str | None) -> nn.Module | None:
    if not isinstance(given, str):
        return given
    try:
        return model.get_submodule(given)
    except AttributeError as error:
        names = [name for name, _ in model.named_children()]
        raise ValueError(
            f"{key} is {quoted(given)}, which {type(model).__name__} does not have; it has "
            f"{quoted(names)}"
        ) from error


def _probe_ids(model: nn.Module, embedding: nn.Module | None) -> Tensor:
    """(2, l) ids that every embedding of the model knows, unlike from row to row."""
    found = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    weights: list[Any] = [getattr(embedding, "weight", None), *(m.weight for m in found)]
    rows = [len(weight) for weight in weights if weight is not None]
    if not rows:
        raise UnsupportedModelError(f"no embedding of {type(model).__name__} was found; {HOW}")
    device = next(model.parameters()).device
    steps = torch.arange(_PROBE_TOKENS, device=device)
    return torch.stack([3 * steps + 1, 5 * steps + 2]) % min(rows)


def _put_together(model: nn.Module, structure: Structure, ids: Tensor) -> OwnModelForCausalLM:
    seen = traced(model, ids)
    layers = []
    for part, (name, theirs) in zip(structure.layers, structure.mixers.items(), strict=True):
        norms = [(n, OwnRMSNorm(n, e)) for n, e in norms_to_show(seen, part, theirs)]
        mixers = theirs, own_mixer(theirs, name)
        layers.append(OwnBlock(part, mixers, norms, written_scale(seen, part, theirs)))
    norm = _final_norm(structure)
    embedding: Any = structure.embedding
    config = OwnConfig(
        vocab_size=min(len(embedding.weight), seen.logits.shape[-1]),
        hidden_size=structure.layers[0].before.shape[-1],
        num_hidden_layers=len(layers),
    )
    made = OwnModelForCausalLM(config, OwnBackbone(structure, layers, norm), structure.head)
    kinds = {type(layer.mixer).__name__.removeprefix("Own") for layer in layers}
    vars(made)["own_model"] = {
        "class": type(model).__name__,
        "layers": ", ".join(sorted(kinds)),
        "put_together": "of the user's modules, checked against its logits",
    }
    return made.eval()


@torch.no_grad()
def _final_norm(structure: Structure) -> nn.Module:
    """The final norm; one that computes weight x / rms(x) by a class whose name says so."""
    norm, stream = structure.final_norm, structure.layers[-1].after
    if norm is None:
        return _OtherNorm(nn.Identity())
    x = as_dtype_of(norm, stream)
    epsilon = rms_epsilon(norm, x, norm(x), TOLERANCE.get(x.dtype, 2e-2))
    return _OtherNorm(norm) if epsilon is None else OwnRMSNorm(norm, epsilon)


@torch.no_grad()
def _check(made: OwnModelForCausalLM, model: nn.Module, ids: Tensor) -> None:
    """Refuse what does not give the user's logits, with padding too, or whose replay is another."""
    name = type(model).__name__
    expected = logits_of(model, ids)
    if not same(made(ids).logits, expected):
        raise UnsupportedModelError(
            f"the parts found in {name} do not make its logits: its forward does more than run "
            f"them; {HOW}"
        )
    padded, mask = (nn.functional.pad(x, (3, 0)) for x in (ids, torch.ones_like(ids)))
    if not same(made(padded, attention_mask=mask).logits[:, 3:], expected):
        raise UnsupportedModelError(
            f"layers of {name} mix tokens outside their mixers (attention, a convolution), through "
            "which a padded text cannot be read"
        )
    records = record_layers(made, list(range(len(made.backbone.layers))), ids)
    tolerance = replay_tolerance(made)
    for layer, record in records.items():
        error = float(record.replay_error.max())
        if not error <= tolerance:
            raise UnsupportedModelError(
                f"the mixer of layer {layer} of {name} computes something else than mamba_ssm's "
                f"with these parameters (relative difference {error:.1e}); a Mamba2 says what they "
                "leave open as ngroups, norm_before_gate, norm.group_size, norm.eps and dt_limit"
            )

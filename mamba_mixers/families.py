"""The families of selective SSM mixers in ``transformers``: a table, and what its rows are made of.

A family is a row of ``FAMILIES``. Rows share a ``Form``: Mamba-3 (rates made of
the tokens, states that turn: see ``mamba3_scan``), Mamba-1 (every channel has its own step
size, made of u by a product of low rank), the same with heads that have B and C of their own
(Zamba), and Mamba-2 (H heads of P channels; the step sizes of the heads, B and C come out of the
input projection beside u). What a form computes is in the heads form of ``selective_scan``'s
glossary, so everything behind it is the same code for all.

Names of ``transformers`` and the suite's:

    in_proj          hidden states -> [conv_input | gate] (Zamba: interleaved), or for Mamba-2
                     [gate | conv_input | dt], where conv_input is [u | B | C] before convolution
    conv1d, act      causal depthwise convolution and SiLU
    x_proj           u -> [dt (dt_rank) | B (N) | C (N)], then the family's norms of these
    dt_proj, dt_bias what makes dt the argument of softplus
    A_log, D         A = -exp(A_log); D
    norm             Mamba-2: RMS norm of y * SiLU(gate) over the channels of a group
                     Mamba-3: RMS norm of each head's y, in front of the gate
    out_proj         the gated output -> the mixer's output (b, l, d_model)

Sizes are read off the parameters, not off configs, whose words for them differ by family.
Read in transformers 4.57, 5.23 and 5.24.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Projected(NamedTuple):
    """What the input projection gives."""

    conv_input: Tensor
    """(b, l, channels) before the convolution; the first d_inner channels become u"""
    gate: Tensor
    """(b, l, d_inner) z, before SiLU"""
    dt: Tensor | None = None
    """(b, l, H) step sizes before their bias and softplus, where they are made here"""


class Coefficients(NamedTuple):
    """What the scan's decay, write and read-out depend on."""

    dt: Tensor
    """(b, l, H) before softplus"""
    B: Tensor
    """(b, l, N) or (b, l, G, N)"""
    C: Tensor
    """as B"""


Normalise = Callable[[Any, str, Tensor], Tensor]


class Form(NamedTuple):
    """How the mixers of one kind are laid out."""

    attributes: tuple[str, ...]
    """what such a mixer has; a class without them is not replayed"""
    project: Callable[[Any, Tensor], Projected]
    """(mixer, hidden states)"""
    coefficients: Callable[[Any, Normalise, Tensor, Tensor, Tensor | None], Coefficients]
    """(mixer, normalise, u, convolved channels behind u, projected dt)"""


def _unchanged(mixer: Any, name: str, x: Tensor) -> Tensor:
    return x


class MixerFamily(NamedTuple):
    """All that is particular to one family of mixers."""

    model_type: str
    """the family's name in ``transformers``"""
    mixer_class: str
    """class of the mixer; a subclass counts as its base"""
    form: Form
    normalise: Normalise = _unchanged
    """(mixer, "dt", "b" or "c", tensor): a norm between x_proj and the scan"""
    shortest_step: str | None = None
    """attribute of the mixer below which no step size goes, beside ``time_step_limit``"""
    output_scale: str | None = None
    """attribute of the block that multiplies the mixer's output on its way to the residual"""
    attention_scale: str | None = None
    """attribute of the block that multiplies its attention's output on its way to the residual"""
    embedding_scale: str | None = None
    """entry of the config that multiplies embeddings, but not those given as ``inputs_embeds``"""
    logit_scale: str | None = None
    """entry of the config that multiplies the logits"""
    logit_divisor: str | None = None
    """entry of the config that divides the logits"""
    is_own: bool = False
    """a module of a user's own model (``own_models``): it keeps float64, and padding never was"""
    reads_embeddings_again: bool = False
    """later layers read the embeddings beside the residual stream; their attention feeds the mixer
    alone and writes nothing to the stream itself"""

    @property
    def is_trapezoid(self) -> bool:
        """Whether a token writes by the trapezoid rule, into states that turn: Mamba-3."""
        return self.form.project is _other_form

    @property
    def scans_in_float32(self) -> bool:
        """Whether ``transformers`` scans in float32 whatever the model's dtype: Mamba-2."""
        return self.form.coefficients is _convolved and not self.is_own


def _other_form(*operands: Any) -> Any:
    raise TypeError("a Mamba-3 has no convolution: mamba3_scan has its stages")


def _halves(mixer: Any, hidden_states: Tensor) -> Projected:
    return Projected(*mixer.in_proj(hidden_states).chunk(2, dim=-1))


def _interleaved(mixer: Any, hidden_states: Tensor) -> Projected:
    """Outputs 2 i and 2 i + 1 are conv_input and gate of channel i."""
    return Projected(*mixer.in_proj(hidden_states).unflatten(-1, (-1, 2)).unbind(-1))


def _all_in_one(mixer: Any, hidden_states: Tensor) -> Projected:
    return _split_all(mixer, mixer.in_proj(hidden_states))


def _all_in_one_scaled(mixer: Any, hidden_states: Tensor) -> Projected:
    projected = mixer.in_proj(hidden_states * mixer.ssm_in_multiplier)
    return _split_all(mixer, projected * mixer.mup_vector)


def _split_all(mixer: Any, projected: Tensor) -> Projected:
    channels, heads = mixer.conv1d.weight.shape[0], len(mixer.A_log)
    d_inner = projected.shape[-1] - channels - heads
    gate, conv_input, dt = projected.split([d_inner, channels, heads], dim=-1)
    return Projected(conv_input, gate, dt)


def _low_rank(
    mixer: Any, normalise: Normalise, u: Tensor, rest: Tensor, dt: Tensor | None
) -> Coefficients:
    """Modules are called, not their weights read, so that quantised and adapted layers work."""
    rank, states = mixer.dt_proj.in_features, mixer.A_log.shape[-1]
    parts = mixer.x_proj(u).split([rank, states, states], dim=-1)
    low, B, C = (normalise(mixer, *x) for x in zip(("dt", "b", "c"), parts, strict=True))
    return Coefficients(mixer.dt_proj(low), B, C)


def _low_rank_by_head(
    mixer: Any, normalise: Normalise, u: Tensor, rest: Tensor, dt: Tensor | None
) -> Coefficients:
    """Each head of channels has projections of its own, and so B and C: the groups of the scan."""
    heads, _, rank = mixer.dt_proj_weight.shape
    states = mixer.A_log.shape[-1]
    by_head = torch.einsum("blhd,hrd->blhr", u.unflatten(-1, (heads, -1)), mixer.x_proj_weight)
    low, B, C = by_head.split([rank, states, states], dim=-1)
    steps = torch.einsum("blhr,hdr->blhd", low, mixer.dt_proj_weight) + mixer.dt_proj_bias
    return Coefficients(steps.flatten(2), B, C)


def _convolved(
    mixer: Any, normalise: Normalise, u: Tensor, rest: Tensor, dt: Tensor | None
) -> Coefficients:
    B, C = (x.unflatten(-1, (mixer.n_groups, -1)) for x in rest.chunk(2, dim=-1))
    if dt is None:
        raise TypeError("the input projection of this form makes dt")
    return Coefficients(at_least_float32(dt) + mixer.dt_bias, B, C)


def _by_modules(mixer: Any, name: str, x: Tensor) -> Tensor:
    return getattr(mixer, f"{name}_layernorm")(x)


def _by_modules_or_weightless(mixer: Any, name: str, x: Tensor) -> Tensor:
    """FalconMamba's norms are modules from transformers 5.15 on, before that a function."""
    if hasattr(mixer, f"{name}_layernorm"):
        return _by_modules(mixer, name, x)
    return (x.float() * inverse_rms(x.float(), mixer.rms_eps)).to(x.dtype)


_AROUND = ("A_log", "D", "act", "conv1d", "in_proj", "out_proj")

MAMBA1 = Form((*_AROUND, "dt_proj", "x_proj"), _halves, _low_rank)

MAMBA1_BY_HEADS = Form(
    (*_AROUND, "dt_proj_bias", "dt_proj_weight", "x_proj_weight"), _interleaved, _low_rank_by_head
)

MAMBA2 = Form((*_AROUND, "dt_bias", "n_groups"), _all_in_one, _convolved)

MAMBA3 = Form(
    ("B_bias", "B_norm", "C_bias", "C_norm", "D", "dt_bias", "in_proj", "out_proj"),
    _other_form,
    _other_form,
)

FAMILIES = (
    MixerFamily("mamba", "MambaMixer", MAMBA1),
    MixerFamily("falcon_mamba", "FalconMambaMixer", MAMBA1, normalise=_by_modules_or_weightless),
    MixerFamily("jamba", "JambaMambaMixer", MAMBA1, normalise=_by_modules),
    MixerFamily("zamba", "ZambaMambaMixer", MAMBA1_BY_HEADS, reads_embeddings_again=True),
    MixerFamily("mamba2", "Mamba2Mixer", MAMBA2),
    MixerFamily("bamba", "BambaMixer", MAMBA2),
    MixerFamily(
        "granitemoehybrid",
        "GraniteMoeHybridMambaLayer",
        MAMBA2,
        output_scale="residual_multiplier",
        attention_scale="residual_multiplier",
        logit_divisor="logits_scaling",
    ),
    MixerFamily(
        "zamba2",
        "Zamba2MambaMixer",
        MAMBA2,
        shortest_step="time_step_min",
        reads_embeddings_again=True,
    ),
    MixerFamily(
        "falcon_h1",
        "FalconH1Mixer",
        MAMBA2._replace(
            attributes=(*MAMBA2.attributes, "mup_vector", "ssm_in_multiplier"),
            project=_all_in_one_scaled,
        ),
        output_scale="ssm_out_multiplier",
        attention_scale="attn_out_multiplier",
        embedding_scale="embedding_multiplier",
        logit_scale="lm_head_multiplier",
    ),
    MixerFamily("nemotron_h", "NemotronHMamba2Mixer", MAMBA2, shortest_step="time_step_min"),
    MixerFamily("mamba3", "Mamba3Mixer", MAMBA3),
)

OWN_FAMILIES = (
    MixerFamily("own Mamba-1", "OwnMamba1", MAMBA1, output_scale="output_scale", is_own=True),
    MixerFamily("own Mamba-2", "OwnMamba2", MAMBA2, output_scale="output_scale", is_own=True),
)
"""Mixers of models that are not ``transformers``', as ``own_modules`` shows them."""


def family_of(module: nn.Module) -> MixerFamily | None:
    """The family of a mixer, known by its class and what it has; None for any other module."""
    names = {cls.__name__ for cls in type(module).__mro__}
    for family in (*FAMILIES, *OWN_FAMILIES):
        if family.mixer_class in names and all(hasattr(module, a) for a in family.form.attributes):
            return family
    return None


def decay_rates(mixer: Any) -> Tensor:
    """A as (H, N), or (H, 1) where a head has one rate; from A_log in float32, as transformers.

    Of a Mamba-3, whose delta is the decay, -1 of every head, in MIMO of every channel.
    """
    family = family_of(mixer)
    if family is not None and family.is_trapezoid:
        heads = mixer.d_inner if mixer.is_mimo else len(mixer.dt_bias)
        return -at_least_float32(torch.ones_like(mixer.dt_bias[:1])).expand(heads, 1)
    keeps_float64 = family is not None and family.is_own
    A = -torch.exp(at_least_float32(mixer.A_log) if keeps_float64 else mixer.A_log.float())
    return A.unsqueeze(-1) if A.dim() == 1 else A.flatten(0, -2)


def time_scale_tensors(module: Any) -> list[Tensor]:
    """A_log, D and the bias of delta of a mixer, by channel or head; [] of any other module.

    The first axes of each, flattened, are the channels (Mamba-1: d_inner, Zamba: of all heads) or
    the heads (Mamba-2), as many as D has entries. A Mamba-3, which makes its rates of the tokens,
    has the other two.
    """
    has_rates = hasattr(module, "A_log") or hasattr(module, "B_bias")
    if not (has_rates and hasattr(module, "D")):
        return []
    step = getattr(module, "dt_proj", None)
    biases = (getattr(module, "dt_bias", None), getattr(module, "dt_proj_bias", None))
    found = (getattr(module, "A_log", None), module.D, *biases, getattr(step, "bias", None))
    return [tensor for tensor in found if tensor is not None]


def step_limits(mixer: Any, family: MixerFamily) -> tuple[float, float]:
    """Bounds of delta after softplus: (0, infinity) where the family has none."""
    low, high = getattr(mixer, "time_step_limit", None) or (0.0, float("inf"))
    shortest = getattr(mixer, family.shortest_step, 0.0) if family.shortest_step else 0.0
    return max(low, shortest), high


def gated_norm(mixer: Any) -> Any:
    """The norm of the gated output, or None: Mamba-1 has none, nor has a Falcon-H1 without it."""
    norm = getattr(mixer, "norm", None)
    return None if isinstance(norm, nn.Identity) else norm


def norms_ranks(mixer: Any) -> bool:
    """Whether each rank's output of a Mamba-3 has a norm of its own, which edits hold as it is."""
    return bool(getattr(mixer, "is_mimo", False)) and gated_norm(mixer) is not None


def norm_scale(norm: Any, x: Tensor) -> Tensor:
    """What a gated norm multiplies x (b, l, d_inner) by: weight / rms of the channel's group."""
    d_inner = x.shape[-1]
    groups = getattr(norm, "n_groups", d_inner // getattr(norm, "group_size", d_inner))
    scale = inverse_rms(x.unflatten(-1, (groups, -1)), norm.variance_epsilon)
    return norm.weight * scale.expand(*x.shape[:-1], groups, d_inner // groups).flatten(-2)


def inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / root of the mean square over the last axis, which stays, of length 1."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def at_least_float32(x: Tensor) -> Tensor:
    """float32, or float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()

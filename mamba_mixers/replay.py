"""A mixer computed again from its input, by its own modules and the suite's scan.

One function, :func:`compute_replay`, for every family of ``families``. Quantities can be
edited on the way, gradients can follow other rules, and a long text can come in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mixers.families import (
    MixerFamily,
    at_least_float32,
    decay_rates,
    gated_norm,
    inverse_rms,
    norm_scale,
    step_limits,
)
from mamba_mixers.mamba3_scan import Mamba3Inputs, by_rank, mamba3_inputs
from mamba_mixers.placement import parameters_at_hand
from mamba_mixers.sites import MixerSite
from mamba_mixers.token_positions import TokensRead, Turned, reading, tell
from selective_scan.scan import selective_scan_chunk

Edit = Callable[[str, Tensor], Tensor]

EDITABLE = (
    "conv_input", "convolved", "u", "A", "B", "C", "delta", "carry", "y", "gate", "gated",
    "output",
)  # fmt: skip
"""Stages, in the order in which an edit is called on them. ``conv_input`` and ``convolved``
(b, l, channels) are what the convolution takes and gives, before SiLU; in Mamba-2 B and C pass it
too, behind u. ``carry`` (b, l) is 1 everywhere and scales the state that a token takes over from
the one before: 0 resets the memory there. In Mamba-1, dt, B and C are made of u and follow an edit
of it; in Mamba-2 they stand beside it. ``gate`` is z before SiLU. ``output``
is the mixer's.

Mamba-3 has no convolution: ``conv_input`` is u, and ``convolved`` is not called; ``own_share``
comes behind delta, and C behind carry. An edit of its delta scales decay and write alike, one of A
the decay alone. In MIMO the gate is part of C, and its stage comes before that of C; with a norm so
does ``rank_scale`` (b, l, H, R, 1), what each rank's norm multiplies by."""


class Rules(NamedTuple):
    """How gradients pass the non-linear operations of a model; the values stay what they are.

    The default is the plain gradient. ``LRP`` is that of layer-wise relevance propagation.
    """

    elementwise: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = lambda f, x: f(x)
    """an activation f, or a norm that scales its input x elementwise, applied to x"""
    product: Callable[[Tensor, Tensor], Tensor] = torch.mul
    """the gate: y times the activated z"""
    coefficient: Callable[[Tensor], Tensor] = lambda x: x
    """delta, B and C, on which the scan's decay, write and read-out depend"""


def _ratio_rule(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) as x times the constant f(x) / x: SiLU with sigma(x) held, a norm with 1 / rms held."""
    with torch.no_grad():
        ratio = torch.where(x == 0, 0.0, f(x) / x)
    return x * ratio


def _half_rule(x: Tensor, y: Tensor) -> Tensor:
    """x y with each factor's gradient halved: without that a product counts its relevance twice."""
    product = x * y
    return 0.5 * product + 0.5 * product.detach()


GRADIENT = Rules()

LRP = Rules(_ratio_rule, _half_rule, Tensor.detach)
"""MambaLRP (Jafari et al. 2024, arXiv 2406.07592, section 4): under it a Mamba-1 or Mamba-2 model
is, as autograd sees it, linear in its embeddings and biases, so that input times gradient conserves
relevance. The attention and MLP layers of a hybrid keep their plain gradient, and conserve none."""


class MixerMemory(NamedTuple):
    """All that a mixer knows of the tokens before: from it, what follows is exactly the same."""

    conv_input: Tensor
    """(b, K - 1, channels) the convolution's inputs at the last tokens, the last one last; zeros
    before the text. In Mamba-2 B and C pass the convolution too: channels is d_inner + 2 G N"""
    state: Tensor
    """(b, d_inner, N) h after the last token"""
    angle: Tensor | None = None
    """(b, H, S) Mamba-3's theta at the last token"""
    written: Tensor | None = None
    """(b, d_inner, N) in Mamba-3 the last token's b x, of which the next token writes a share"""

    def each(self, function: Callable[[Tensor], Tensor]) -> MixerMemory:
        """The memory with this function applied to every tensor that it has."""
        parts: list[Any] = [x if x is None else function(x) for x in self]
        return MixerMemory(*parts)


@dataclass(frozen=True, eq=False)
class MixerReplay:
    """The quantities inside one mixer for one batch, in the order in which they are computed.

    In the heads form of ``selective_scan``'s glossary, with the channels of all heads side by
    side: head j is channels j P to (j + 1) P - 1 of d_inner = H P. Mamba-1 has H = d_inner, P = 1.
    Attached to the autograd graph when gradients are enabled.
    """

    conv_input: Tensor
    """(b, l, d_inner) what becomes u, before the convolution"""
    gate: Tensor
    """(b, l, d_inner) z, before SiLU"""
    u: Tensor
    """(b, l, d_inner) SSM input: SiLU of the convolution; zero at padding"""
    delta: Tensor
    """(b, l, H) step size after softplus and the family's limits, > 0"""
    A: Tensor
    """(H, N), or in Mamba-2 (H, 1); negative"""
    B: Tensor
    """(b, l, N), or with groups (b, l, G, N)"""
    C: Tensor
    """as B"""
    D: Tensor
    """(H,)"""
    y: Tensor
    """(b, l, d_inner) scan output with D u, before the gate"""
    norm_scale: Tensor | None
    """(b, l, d_inner) what Mamba-2's gated norm multiplies by, its weight over the root mean
    square of this token's group of channels; detached; None where there is no such norm"""
    gated: Tensor
    """(b, l, d_inner) out_proj's input, the neurons: y * SiLU(gate), times ``norm_scale``"""
    output: Tensor
    """(b, l, d_model) the mixer's output"""
    memory: MixerMemory
    """after the last token, from which the next chunk of the text goes on"""
    state_before: Tensor | None = None
    """(b, d_inner, N) what the first token takes over; None at a text's start"""
    own_share: Tensor | None = None
    """(b, l, H) in Mamba-3 the share of what a token writes that it reads itself; None: all"""
    write: Tensor | None = None
    """(b, l, H) in Mamba-3 what a token's b x is written with; delta B is that times b"""
    skip: Tensor | None = None
    """(b, l, d_inner) in place of D where it changes by token: in MIMO, where D passes the gates"""
    angle: Tensor | None = None
    """(b, l, H, S) in Mamba-3 theta, by which pairs of states have turned"""


def compute_replay(
    mixer: Any,
    family: MixerFamily,
    hidden_states: Tensor,
    mask: Tensor | None,
    edit: Edit | None,
    rules: Rules,
    memory: MixerMemory | None,
) -> MixerReplay:
    """Input projection, convolution, coefficients, scan, gate and norm, output projection.

    ([1], fig. 3, and [2], fig. 6, of ``selective_scan``'s references.) Arguments as in
    :func:`replay_mixer`.
    """
    carry_edit, edit = edit, edit or _no_edit
    conv_input, gate, dt = _project(mixer, family, hidden_states, mask)
    conv_input = edit("conv_input", conv_input)
    p, conv_memory = _convolve(mixer.conv1d, conv_input, memory)
    # The convolution gives channels first; what follows, and its gradient, goes token by token.
    p = edit("convolved", p.mT)
    convolved = masked(rules.elementwise(mixer.act, p).contiguous(), mask)
    d_inner = gate.shape[-1]
    u = edit("u", convolved[..., :d_inner])
    # An edit may branch one text into several rows, of which the others then are copies.
    rest = convolved[..., d_inner:].expand(len(u), -1, -1)
    dt = None if dt is None else dt.expand(len(u), -1, -1)
    dt, B, C = family.form.coefficients(mixer, family.normalise, u, rest, dt)
    # transformers takes these in float32, whatever the model's dtype (float64 included); the same
    # rounding here is what lets a float64 replay agree with it to float64 precision.
    rounded = at_least_float32 if family.is_own else Tensor.float
    A, D = edit("A", decay_rates(mixer)), rounded(mixer.D).flatten()
    B, C = rules.coefficient(rounded(edit("B", B))), rules.coefficient(edit("C", C))
    delta = rules.coefficient(edit("delta", _steps(dt, *step_limits(mixer, family))))
    carry = None if carry_edit is None else edit("carry", torch.ones_like(delta[..., 0]))
    before = None if memory is None else memory.state
    scanned, state = selective_scan_chunk(rounded(u), delta, A, B, C, None, before, carry=carry)
    y = edit("y", scanned + u * D.repeat_interleave(d_inner // len(D)))
    gate = edit("gate", gate)
    gated, scale = _gate(gated_norm(mixer), y, gate, rules)
    gated = edit("gated", gated)
    output = edit("output", mixer.out_proj(gated.to(hidden_states.dtype)))
    return MixerReplay(
        conv_input[..., :d_inner], gate, u, delta, A, B, C, D, y, scale, gated, output,
        MixerMemory(conv_memory, state), before,
    )  # fmt: skip


class _Written(NamedTuple):
    """What a Mamba-3 writes, by head, or in MIMO with every channel a head."""

    delta: Tensor
    """decay; at least _LEAST_DECAY"""
    B: Tensor
    """write b / decay"""
    own_share: Tensor
    unit: Tensor
    """(b, heads, N) the last token's b, with which the next token writes its share of it"""
    entry: Tensor
    """(b, heads) the share that the first token writes of the token before"""


# Below this a decay changes no state in any precision, and a quotient by it is still finite.
_LEAST_DECAY = 1e-15


def compute_mamba3(
    mixer: Any,
    hidden_states: Tensor,
    mask: Tensor | None,
    edit: Edit | None,
    rules: Rules,
    memory: MixerMemory | None,
) -> MixerReplay:
    """A Mamba-3 by the suite's scan: see ``mamba3_scan`` and the glossary's ``own_share``.

    Decay plays delta, with A = -1, and B is what is written for each nat of decay, so that delta B
    is the write. In MIMO B sums what the ranks write into a channel, and C what they read of it
    through their gates. Arguments as in :func:`replay_mixer`.
    """
    carry_edit, edit = edit, edit or _no_edit
    before = None if memory is None else memory.angle
    inputs = mamba3_inputs(mixer, masked(hidden_states, mask), before)
    u = edit("u", edit("conv_input", inputs.x))
    # An edit may branch one text into several rows, of which the others then are copies.
    inputs = Mamba3Inputs(*(x.expand(len(u), *x.shape[1:]) for x in inputs))
    parts = _written_by_channel(mixer, inputs) if mixer.is_mimo else _written_by_head(inputs)
    A = edit("A", -torch.ones_like(parts.delta[0, 0]).unsqueeze(1))
    B = rules.coefficient(edit("B", parts.B))
    # A node of its own: B is made of the decay before an edit, and does not follow one.
    delta = rules.coefficient(edit("delta", parts.delta.clone()))
    share = rules.coefficient(edit("own_share", parts.own_share))
    carry = None if carry_edit is None else edit("carry", torch.ones_like(delta[..., 0]))
    entered = _entered(parts, memory, u, rules)
    taken = None if entered is None or memory is None else memory.state + entered
    tell(state=taken, entered=entered, turned=Turned(inputs.angle, mixer.is_mimo))

    def scan(C: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan_chunk(
            u, delta, A, B, C, None, taken, carry=carry, own_share=share
        )  # fmt: skip

    gate, D = inputs.z, mixer.D.to(u.dtype)
    if mixer.is_mimo:
        gate = edit("gate", gate)
        C, skip = _read_by_channel(mixer, inputs, u, gate, scan, edit)
        D = _wide(D, u)
    else:
        C, skip = inputs.c[:, :, :, 0], _wide(D, u)
    C, skip = rules.coefficient(edit("C", C)), rules.coefficient(skip)
    y, state = scan(C)
    y, scale = edit("y", y + skip * u), None
    gated = y
    if not mixer.is_mimo:
        gate = edit("gate", gate)
        gated, scale = _gate(gated_norm(mixer), y, gate, rules)
    gated = edit("gated", gated)
    output = edit("output", mixer.out_proj(gated.to(hidden_states.dtype)))
    last = _last_written(parts, u, B, delta)
    return MixerReplay(
        inputs.x, gate, u, delta, A, B, C, D, y, scale, gated, output,
        MixerMemory(u[:, :0], state, inputs.angle[:, -1], last), taken, share, inputs.write,
        skip if mixer.is_mimo else None, inputs.angle,
    )  # fmt: skip


def _written_by_head(inputs: Mamba3Inputs) -> _Written:
    """SISO: the heads as they are, one vector b each."""
    delta, b = inputs.decay.clamp_min(_LEAST_DECAY), inputs.b[:, :, :, 0]
    B = b * (inputs.write / delta).unsqueeze(-1)
    return _Written(delta, B, _own_share(inputs), b[:, -1], inputs.entry)


def _written_by_channel(mixer: Any, inputs: Mamba3Inputs) -> _Written:
    """MIMO: every channel a head, with the B of all ranks that write: d_inner N numbers a token."""
    delta, write, share = (
        x.repeat_interleave(mixer.headdim, 2)
        for x in (inputs.decay.clamp_min(_LEAST_DECAY), inputs.write, _own_share(inputs))
    )
    into = at_least_float32(mixer.mimo_x)
    b = torch.einsum("blhrn,hrp->blhpn", inputs.b, into).flatten(2, 3)
    entry = inputs.entry.repeat_interleave(mixer.headdim, 1)
    return _Written(delta, b * (write / delta).unsqueeze(-1), share, b[:, -1], entry)


def _read_by_channel(
    mixer: Any,
    inputs: Mamba3Inputs,
    u: Tensor,
    gate: Tensor,
    scan: Callable[[Tensor], tuple[Tensor, Tensor]],
    edit: Edit,
) -> tuple[Tensor, Tensor]:
    """MIMO: C (b, l, d_inner, N) and what multiplies u, of all ranks through their gates.

    A norm's factor for each rank is taken as it is at the data, edits included: one more scan a
    rank.
    """
    width = mixer.headdim
    into, out = at_least_float32(mixer.mimo_x), at_least_float32(mixer.mimo_o)
    weights = F.silu(by_rank(mixer, "mimo_z", gate)) * out
    if gated_norm(mixer) is not None:
        read = [scan(c.repeat_interleave(width, 2))[0] for c in inputs.c.unbind(3)]
        by_head = torch.stack(read, 2).unflatten(3, (-1, width)).transpose(2, 3)
        y = by_head + mixer.D[:, None, None] * by_rank(mixer, "mimo_x", u)
        scale = edit("rank_scale", inverse_rms(y, mixer.norm.variance_epsilon))
        weights = weights * mixer.norm.weight.view(-1, 1, width) * scale
    C = torch.einsum("blhrp,blhrn->blhpn", weights, inputs.c).flatten(2, 3)
    return C, ((weights * into).sum(3) * mixer.D[:, None]).flatten(2)


def _entered(parts: _Written, memory: MixerMemory | None, u: Tensor, rules: Rules) -> Tensor | None:
    """(b, d_inner, N) the share of the last write that the first token adds to what it takes."""
    if memory is None or memory.written is None:
        return None
    entry = rules.coefficient(_wide(parts.entry, u))
    return entry.unsqueeze(-1) * memory.written


def _own_share(inputs: Mamba3Inputs) -> Tensor:
    """own / write; 1 where nothing is written."""
    written = inputs.write > 0
    return torch.where(written, inputs.own / inputs.write.where(written, 1.0), 1.0)


def _wide(x: Tensor, u: Tensor) -> Tensor:
    """x (..., heads) for the channels of u (b, l, d_inner)."""
    return x.repeat_interleave(u.shape[2] // x.shape[-1], -1)


def _last_written(parts: _Written, u: Tensor, B: Tensor, delta: Tensor) -> Tensor:
    """(b, d_inner, N) the last token's b x, with what edits of B and delta made of it."""
    before, after = parts.B[:, -1], B[:, -1]
    unit = torch.where(before.abs() > 1e-25, after / before.where(before != 0, 1.0), 1.0)
    unit = parts.unit * unit * (delta[:, -1] / parts.delta[:, -1]).unsqueeze(-1)
    return _wide(unit.mT, u).mT * u[:, -1].unsqueeze(-1)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (b, l, channels) with zeros where the mask (b, l) is 0."""
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def _project(mixer: Any, family: MixerFamily, hidden_states: Tensor, mask: Tensor | None):
    """The input projection without padding: before it, or behind it, which with a bias is not the
    same: in Mamba-1 before transformers 5.15, and where a text is as if it had no padding."""
    if family.is_own or hasattr(mixer, "slow_forward"):
        projected = family.form.project(mixer, hidden_states)
        return projected._replace(conv_input=masked(projected.conv_input, mask))
    return family.form.project(mixer, masked(hidden_states, mask))


def _convolve(conv: Any, x: Tensor, memory: MixerMemory | None) -> tuple[Tensor, Tensor]:
    """The causal convolution (b, channels, l) of x (b, l, channels) after the memory's tokens, and
    the inputs that the tokens after x will need (b, K - 1, channels)."""
    reach, length = conv.weight.shape[-1] - 1, x.shape[1]
    if memory is None:
        known, skipped = x, 0
        last = F.pad(x, (0, 0, max(0, reach - length), 0))
    else:
        known, skipped = torch.cat([memory.conv_input.to(x), x], 1), reach
        last = known
    return conv(known.mT)[..., skipped : skipped + length], last[:, last.shape[1] - reach :]


def _steps(dt: Tensor, low: float, high: float) -> Tensor:
    steps = F.softplus(at_least_float32(dt))
    return steps if (low, high) == (0.0, math.inf) else steps.clamp(low, high)


def _gate(norm: Any, y: Tensor, gate: Tensor, rules: Rules) -> tuple[Tensor, Tensor | None]:
    """y times SiLU(gate), with the family's norm around it: (gated, what the norm multiplied by)"""
    if norm is None:
        return rules.product(y, rules.elementwise(F.silu, gate)), None
    z = rules.elementwise(F.silu, at_least_float32(gate))
    norm_comes_first = getattr(norm, "norm_before_gate", False)
    x = y if norm_comes_first else rules.product(y, z)
    normed = rules.elementwise(lambda x: x * norm_scale(norm, x), x)
    scale = norm_scale(norm, x.detach()).detach()
    return (rules.product(normed, z) if norm_comes_first else normed), scale


def _no_edit(stage: str, tensor: Tensor) -> Tensor:
    return tensor


def replay_mixer(
    site: MixerSite,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    edit: Edit | None = None,
    rules: Rules = GRADIENT,
    memory: MixerMemory | None = None,
    tokens: TokensRead | None = None,
) -> MixerReplay:
    """Compute the mixer's quantities from its input (b, l, d_model), differentiably.

    ``attention_mask`` (b, l) is 0 at padding; one of another shape is not a padding mask and is
    left out, as the mixers do. ``edit(stage, tensor)`` may return another tensor for any stage of
    ``EDITABLE``; what follows is computed from it, so that an intervention is exact. ``rules``
    says how gradients pass the non-linear operations. ``memory`` is the replay's of the chunk
    before this one; None starts a text. ``tokens`` is what ``token_positions`` tells an edit of; by
    default the whole text is at hand. Raises ValueError for a memory of another batch size.
    Cost: the mixer's own matrix products and one scan.
    """
    if attention_mask is not None and attention_mask.shape != hidden_states.shape[:2]:
        attention_mask = None
    if memory is not None and len(memory.state) != len(hidden_states):
        raise ValueError(
            f"memory is that of {len(memory.state)} texts, the chunk has {len(hidden_states)}; "
            "go on with the same texts, in the same order"
        )
    tokens = tokens or TokensRead(attention_mask, None, False)
    tokens = tokens._replace(state=None if memory is None else memory.state)
    with parameters_at_hand(site.mixer, gated_norm(site.mixer)), reading(tokens):
        if site.family.is_trapezoid:
            return compute_mamba3(site.mixer, hidden_states, attention_mask, edit, rules, memory)
        return compute_replay(
            site.mixer, site.family, hidden_states, attention_mask, edit, rules, memory
        )

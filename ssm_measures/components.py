"""What one layer's selective SSM computed on a batch of texts, and how its state evolved.

Letters are those of the glossary in ``selective_scan``. ``ssm_component_extractor`` makes these
from a model; nothing here knows one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis_utils import summarise
from scan_operands import with_groups
from selective_scan import scan_hidden_states
from state_measures import StateMeasures, measure_states
from utils import five_digits


@dataclass(frozen=True, eq=False)
class SSMComponents:
    """What one layer's selective SSM computed on a batch; detached, float32, on the CPU.

    H heads of P channels each lie side by side: head j is channels j P to (j + 1) P - 1 of
    d_inner = H P. In Mamba-1 and its kin every channel is a head (P = 1) with rates A (d_inner,
    d_state) and a delta of its own; in Mamba-2 the channels of a head share one rate and one delta.
    What is per head stays so; ``channel_delta`` and ``channel_A`` repeat it for every channel.
    float64 models keep float64. Entries at padding (``attention_mask`` 0) mean nothing: drop
    them from every statistic.
    """

    A: Tensor
    """(H, d_state), in Mamba-2 (H, 1): continuous-time decay rate, negative, per unit of delta"""
    B: Tensor
    """(b, l, d_state) input projection; (b, l, G, d_state) where groups of heads have their own"""
    C: Tensor
    """output projection, of B's shape"""
    D: Tensor
    """(H,) skip connection"""
    delta: Tensor
    """(b, l, H) step size after softplus, > 0"""
    u: Tensor
    """(b, l, d_inner) SSM input, after convolution and SiLU"""
    gate: Tensor
    """(b, l, d_inner) z, before SiLU"""
    y: Tensor
    """(b, l, d_inner) scan output with D u, before the gate"""
    gated: Tensor
    """(b, l, d_inner) y * gating: out_proj's input, the layer's neurons"""
    conv_input: Tensor
    """(b, l, d_inner) what becomes u, before the convolution"""
    mixer_output: Tensor
    """(b, l, d_model) what the mixer returned"""
    attention_mask: Tensor
    """(b, l) 1 at tokens, 0 at padding"""
    replay_errors: tuple[float, ...]
    """per text of the batch: norm of (output rebuilt from these fields minus mixer_output) over
    the norm of mixer_output, without padding; about 1e-7 in float32"""
    norm_scale: Tensor | None = None
    """(b, l, d_inner) what Mamba-2's gated norm multiplies by: its weight over the root mean square
    of the channel's group at this token, on these data; None where the family has no such norm"""
    output_scale: float = 1.0
    """what the model multiplies mixer_output by before adding it to the residual stream"""

    @property
    def replay_error(self) -> float:
        """The largest of ``replay_errors``."""
        return max(self.replay_errors)

    @property
    def head_width(self) -> int:
        """P, channels of a head: 1 in Mamba-1."""
        return self.u.shape[2] // self.delta.shape[2]

    @property
    def channel_delta(self) -> Tensor:
        """(b, l, d_inner) the step size of each channel: that of its head."""
        return self.delta.unsqueeze(-1).expand(-1, -1, -1, self.head_width).flatten(2)

    @property
    def channel_A(self) -> Tensor:
        """(d_inner, d_state), or in Mamba-2 (d_inner, 1): the rates of each channel."""
        return self.A.unsqueeze(1).expand(-1, self.head_width, -1).flatten(0, 1)

    @property
    def gating(self) -> Tensor:
        """(b, l, d_inner) gated / y: SiLU(gate), times ``norm_scale`` where there is a norm.

        Without a norm y enters the gated output linearly, with this factor. With one this is the
        exact factor at the data, in which the token's root mean square, which depends on y too, is
        held: what a map of the full mixer uses.
        """
        activated = F.silu(self.gate)
        return activated if self.norm_scale is None else activated * self.norm_scale

    @property
    def written(self) -> Tensor:
        """(b, l, d_model) what the mixer adds to the residual stream."""
        return self.mixer_output * self.output_scale

    @property
    def hidden_states(self) -> Tensor:
        """(b, l, d_inner, d_state) state h_t after every token, computed anew at each access.

        Memory b * l * d_inner * d_state floats: 50 MB for mamba-130m at 512 tokens.
        """
        return scan_hidden_states(self.u, self.delta, self.A, self.B)

    @cached_property
    def states(self) -> StateMeasures:
        """Norms, steps and inner products of the states, computed once: l^2 floats a text."""
        return measure_states(self.u, self.delta, self.A, self.B, self.attention_mask)

    def text(self, row: int) -> SSMComponents:
        """The components of one text of the batch, b = 1, without its padding.

        Views of this batch's tensors, unless padding stands between tokens; of a single text
        without padding, these components themselves.
        """
        keep = kept_tokens(self.attention_mask[row])
        if len(self.attention_mask) == 1 and bool(self.attention_mask.all()):
            return self
        per_token = ("B", "C", "delta", "u", "gate", "y", "norm_scale", "gated", "conv_input",
                     "mixer_output", "attention_mask")  # fmt: skip
        tensors = {name: getattr(self, name) for name in per_token}
        fields = {name: x[row : row + 1, keep] for name, x in tensors.items() if x is not None}
        return replace(self, **fields, replay_errors=(self.replay_errors[row],))

    def to_dict(self) -> dict:
        """Shapes, summaries, and by text the mean delta of every token; tensors go elsewhere."""
        keep = self.attention_mask.bool()
        per_token = {name: getattr(self, name)[keep] for name in ("delta", "B", "C", "u", "y")}
        return {
            "shapes": {
                name: list(getattr(self, name).shape) for name in ("A", "B", "C", "D", "delta")
            },
            "num_tokens": int(keep.sum()),
            "A": summarise(self.A),
            "D": summarise(self.D),
            **{name: summarise(values) for name, values in per_token.items()},
            "by_token": {"delta": _by_token(self.delta.mean(2).masked_fill(~keep, math.nan))},
            "replay_error": self.replay_error,
        }


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
    """(H, d_state or 1) mean delta * A, nats per token, negative"""
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
            "by_token": {"state_norm": _by_token(self.state_norm)},
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
        half_life=math.log(2) / (mean_delta[:, None] * A.abs()),
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


def kept_tokens(mask: Tensor) -> slice | Tensor:
    """Where a text's mask (l,) is not 0: a slice, unless padding stands between tokens."""
    places = mask.nonzero()[:, 0]
    if len(places) == 0 or int(places[-1] - places[0]) >= len(places):
        return mask.bool()
    return slice(int(places[0]), int(places[-1]) + 1)


def _finite(x: Tensor) -> Tensor:
    return x[torch.isfinite(x)]


def _by_token(values: Tensor) -> list[list[float | None]]:
    """(b, l) values as lists without padding, which is nan."""
    return [[five_digits(x) for x in row[~row.isnan()].tolist()] for row in values]


def mean_by_head(values: Tensor, num_heads: int) -> Tensor:
    """(H,) mean over the channels of each head of values (d_inner,); in Mamba-1 the values.

    Channels of a head share its delta: where values are related to that, heads are what is
    independent, and counting channels would count the same step size P times.
    """
    return values.unflatten(0, (num_heads, -1)).mean(1)

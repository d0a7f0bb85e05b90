"""Parts of a user's own model, with the attributes and calls that the suite reads.

A mixer is known by its parameters, which have the names of mamba_ssm's ``Mamba`` and ``Mamba2``,
and a norm by what it computes. Beside each stands a module of this file that holds the same
parameters: the user's code runs as it is, but where it calls its mixer or norm the call goes
through the one beside it, whose ``forward`` calls the user's. Hooks and replaced forwards there
reach the user's model without changing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mamba_mixers.exclusive_use import replaced_forward
from mamba_mixers.families import inverse_rms
from mamba_mixers.sites import TheirCode, UnsupportedModelError
from suite_plumbing.messages import quoted
from suite_plumbing.native_checkpoints import KINDS

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
"""Names of what norms add under the root."""


def own_kind(module: nn.Module) -> str | None:
    """ "Mamba1" or "Mamba2" for a module with the parameters of mamba_ssm's class, by their names.

    None for any other, one that holds further parameters included. A Mamba2 may lack its norm.
    """
    names = {name for name, _ in module.named_parameters()}
    for kind in ("Mamba1", "Mamba2"):
        needed, allowed = KINDS[kind]
        if needed - {"norm.weight"} <= names <= needed | allowed:
            return kind
    return None


class OwnMixer(nn.Module):
    """A user's mixer as the suite reads it: the same parameters, and the user's own forward."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs_forward: Callable[..., Tensor] = theirs.forward
        self.in_proj, self.out_proj = theirs.in_proj, theirs.out_proj
        self.conv1d = _convolution(theirs.conv1d)
        self.A_log, self.D = theirs.A_log, theirs.D
        self.act = nn.SiLU()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, l, d_model) to (b, l, d_model); each text of a padded batch by itself, zero at
        padding, for the user's forward knows no mask."""
        if attention_mask is None or bool(attention_mask.all()):
            return self.theirs_forward(hidden_states)
        output = torch.zeros_like(hidden_states)
        for row, is_token in enumerate(attention_mask.bool()):
            text = hidden_states[row : row + 1, is_token]
            output[row, is_token] = self.theirs_forward(text)[0].to(output.dtype)
        return output


class OwnMamba1(OwnMixer):
    """With the parameters of mamba_ssm's ``Mamba``."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(theirs)
        self.x_proj, self.dt_proj = theirs.x_proj, theirs.dt_proj


class OwnMamba2(OwnMixer):
    """With the parameters of mamba_ssm's ``Mamba2``; what these leave open is read off its
    attributes, under its names, and is otherwise its default."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(theirs)
        self.dt_bias = theirs.dt_bias
        self.n_groups = _groups(theirs)
        self.time_step_limit = tuple(getattr(theirs, "dt_limit", (0.0, float("inf"))))
        if getattr(theirs, "norm", None) is not None:
            self.norm = OwnGatedNorm(theirs, self.n_groups)


class OwnGatedNorm(nn.Module):
    """Weight and choices of a Mamba2's norm, which runs inside the user's mixer."""

    def __init__(self, mixer: Any, n_groups: int) -> None:
        super().__init__()
        norm, d_inner = mixer.norm, mixer.out_proj.weight.shape[1]
        self.weight = norm.weight
        self.variance_epsilon = next(
            (getattr(norm, name) for name in _EPSILONS if hasattr(norm, name)), 1e-5
        )
        self.group_size = getattr(norm, "group_size", None) or d_inner // n_groups
        before = getattr(mixer, "norm_before_gate", False)
        self.norm_before_gate = bool(getattr(norm, "norm_before_gate", before))


class OwnRMSNorm(nn.Module):
    """A user's norm that computes weight x / rms(x), whatever its class is called."""

    def __init__(self, theirs: nn.Module, epsilon: float) -> None:
        super().__init__()
        self.theirs_forward: Callable[..., Tensor] = theirs.forward
        self.weight = getattr(theirs, "weight", None)
        self.variance_epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.theirs_forward(x)


def own_mixer(theirs: nn.Module, name: str) -> OwnMixer:
    """The module beside a user's mixer called ``name``; UnsupportedModelError for its shapes."""
    kind = own_kind(theirs)
    check, make = {"Mamba1": (_fits_mamba1, OwnMamba1), "Mamba2": (_fits_mamba2, OwnMamba2)}[
        str(kind)
    ]
    if not check(theirs):
        shapes = {key: tuple(x.shape) for key, x in theirs.named_parameters()}
        raise UnsupportedModelError(
            f"{name} has the parameters of mamba_ssm's {kind}, but not their shapes: "
            f"{quoted(shapes)}"
        )
    return make(theirs)


def _fits_mamba1(mixer: Any) -> bool:
    if mixer.A_log.dim() != 2:
        return False
    (d_inner, states), d_model = mixer.A_log.shape, mixer.in_proj.weight.shape[1]
    rank = mixer.dt_proj.weight.shape[1]
    return (
        _is_depthwise(mixer.conv1d, d_inner)
        and mixer.in_proj.weight.shape == (2 * d_inner, d_model)
        and mixer.x_proj.weight.shape == (rank + 2 * states, d_inner)
        and mixer.dt_proj.weight.shape == (d_inner, rank)
        and mixer.D.shape == (d_inner,)
        and mixer.out_proj.weight.shape == (d_model, d_inner)
    )


def _fits_mamba2(mixer: Any) -> bool:
    """Among what is refused: a D for each channel, and channels that pass an MLP beside the SSM."""
    if mixer.A_log.dim() != 1:
        return False
    heads, (d_model, d_inner) = len(mixer.A_log), mixer.out_proj.weight.shape
    channels = mixer.conv1d.weight.shape[0]
    norm = getattr(mixer, "norm", None)
    return (
        _is_depthwise(mixer.conv1d, channels)
        and mixer.in_proj.weight.shape == (d_inner + channels + heads, d_model)
        and channels > d_inner
        and (channels - d_inner) % (2 * _groups(mixer)) == 0
        and heads % _groups(mixer) == 0
        and d_inner % heads == 0
        and mixer.D.shape == mixer.dt_bias.shape == (heads,)
        and (norm is None or norm.weight.shape == (d_inner,))
    )


def _is_depthwise(conv: Any, channels: int) -> bool:
    return conv.weight.dim() == 3 and conv.weight.shape[:2] == (channels, 1)


def _groups(mixer: Any) -> int:
    return int(getattr(mixer, "ngroups", getattr(mixer, "n_groups", 1)))


def _convolution(theirs: Any) -> nn.Conv1d:
    """The causal depthwise convolution of these weights, whoever pads its input."""
    channels, _, kernel = theirs.weight.shape
    conv = nn.Conv1d(
        channels, channels, kernel, groups=channels, padding=kernel - 1,
        bias=theirs.bias is not None, device="meta",
    )  # fmt: skip
    conv.weight, conv.bias = theirs.weight, theirs.bias
    return conv


@torch.no_grad()
def rms_epsilon(norm: Any, x: Tensor, y: Tensor, tolerance: float) -> float | None:
    """The epsilon with which y = weight x / rms(x), of a norm without a bias; None where it is not.

    Its own where it has one under a usual name, else the best of the usual numbers.
    """
    if getattr(norm, "bias", None) is not None or x.shape != y.shape:
        return None
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape != x.shape[-1:]:
        return None
    given = [getattr(norm, name, None) for name in _EPSILONS]
    known = [float(e) for e in given if isinstance(e, (int, float))]
    usual = (1e-5, 1e-6, 1e-8, 1e-12, float(torch.finfo(x.dtype).eps), 0.0)
    wide, expected = x.double(), y.double()
    errors = {
        e: float((weight.double() * wide * inverse_rms(wide, e) - expected).norm())
        for e in known or usual
    }
    best = min(errors, key=lambda e: errors[e])
    return best if errors[best] <= tolerance * float(expected.norm()) else None


class LayerPart(NamedTuple):
    """How a layer of a user's model lies on its residual stream."""

    module: nn.Module
    """what is called: a block, or the mixer itself"""
    norm: nn.Module | None
    """what stands between the stream and the module where that is not inside"""
    adds: Literal["inside", "outside", "of two"]
    """whether the module gives the stream, what is added to it, or both apart, as mamba_ssm's
    ``Block`` does"""
    before: Tensor
    """the stream before the layer in the pass that showed it"""
    after: Tensor


class OwnBlock(nn.Module):
    """A layer of a user's model: stream to stream, by the user's modules."""

    def __init__(
        self,
        part: LayerPart,
        mixers: tuple[nn.Module, OwnMixer],
        norms: Sequence[tuple[nn.Module, OwnRMSNorm]],
        output_scale: float | None,
    ) -> None:
        """``mixers`` and ``norms``: the user's module and the one beside it. ``output_scale``: what
        multiplies the mixer's output into the stream; None where other modules write beside it."""
        super().__init__()
        self.mixer = mixers[1]
        self.norms = nn.ModuleList(ours for _, ours in norms)
        self.theirs = TheirCode(part.module)
        self.their_norm = None if part.norm is None else TheirCode(part.norm)
        self.adds = part.adds
        self.output_scale = 1.0 if output_scale is None else output_scale
        self.writes_beside_mixer = output_scale is None
        self.their_mixer, self.beside = (mixers[0],), tuple(norms)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The stream (b, l, d_model) before the layer to the stream behind it."""
        with ExitStack() as stack:
            mixer = _through(self.mixer, {"attention_mask": attention_mask})
            stack.enter_context(replaced_forward(self.their_mixer[0], mixer))
            for theirs, ours in self.beside:
                stack.enter_context(replaced_forward(theirs, _through(ours, {})))
            if self.adds == "of two":
                wrote, stream = self.theirs(hidden_states, None)
                return wrote + stream
            normed = hidden_states if self.their_norm is None else self.their_norm(hidden_states)
            given = self.theirs(normed)
            given = given[0] if isinstance(given, tuple) else given
        return given if self.adds == "inside" else hidden_states + given


def _through(ours: nn.Module, options: dict[str, Any]) -> Callable[..., Tensor]:
    """A forward for the user's module: the one beside it, with its input alone."""

    def through(*args: Any, **kwargs: Any) -> Tensor:
        given = [x for x in (*args, *kwargs.values()) if not (x is None or x is False)]
        if len(given) != 1:
            raise UnsupportedModelError(
                f"a mixer or norm was called with {len(given)} arguments; the suite reads models "
                "that call theirs with its input alone"
            )
        return ours(given[0], **options)

    return through

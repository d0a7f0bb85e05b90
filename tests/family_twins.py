"""Float64 twins of whole models of every family: their mixers computed by loops over tokens.

``LoopModel`` is a copy of a model in float64 whose mixers are these loops; the rest is its own
code. Written from the families' formulas (docs/families.md), it shares nothing with the suite but
the places of the mixers. Shapes as in `reference`, heads form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from reference import causal_convolution, group_of_head, linear, silu
from torch import Tensor

from mamba_mixers.sites import find_mixers

Change = Callable[[int, str, Tensor], Tensor]
"""(layer, stage, tensor) -> tensor, for u, A, B, C, delta, carry, state, y, gated, in this order"""

SHORTEST_STEP = {"zamba2": 1e-3, "nemotron_h": 1e-3}


def no_change(layer: int, stage: str, x: Tensor) -> Tensor:
    return x


class LoopModel:
    """A model in float64 with mixers by loops, changed on the way, and what they computed."""

    def __init__(self, model: Any, family: str, relevance: bool = False) -> None:
        self.model = copy.deepcopy(model).double()
        if hasattr(self.model, "set_experts_implementation"):
            self.model.set_experts_implementation("eager")  # others have no float64
        self.family, self.relevance = family, relevance
        self.change: Change = no_change
        self.stages: dict[int, dict[str, Tensor]] = {}
        for layer, site in find_mixers(self.model).items():
            site.mixer.forward = self._forward_of(layer, site.mixer)
        if relevance:
            for module in self.model.modules():
                if type(module).__name__.endswith("RMSNorm"):
                    vars(module)["forward"] = _held_scale(module.forward)

    def logits(self, embeddings: Tensor, change: Change = no_change) -> Tensor:
        """(b, l, V) of embeddings (b, l, d_model) as ``inputs_embeds`` has them."""
        self.change, self.stages = change, {}
        return self.model(inputs_embeds=embeddings.double(), use_cache=False).logits

    def _forward_of(self, layer: int, mixer: Any) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            x = args[0] if args else kwargs["hidden_states"]

            def change(stage: str, tensor: Tensor) -> Tensor:
                return self.change(layer, stage, tensor)

            self.stages[layer] = mixer_stages(mixer, self.family, x, change, self.relevance)
            return self.stages[layer]["output"]

        return forward


def mixer_stages(
    mixer: Any, family: str, x: Tensor, change: Callable, relevance: bool = False
) -> dict[str, Tensor]:
    """Every stage of one mixer from its input (b, l, d_model); with MambaLRP's rules on request."""
    w = dict(mixer.named_parameters())
    D = w["D"].flatten()
    hold = (lambda v: v.detach()) if relevance else (lambda v: v)

    def activated(v: Tensor) -> Tensor:
        return v * torch.sigmoid(v).detach() if relevance else silu(v)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b.detach() + a.detach() * b) / 2 if relevance else a * b

    gate, conv_input, dt = _projected(mixer, family, x, w)
    p = causal_convolution(conv_input, w["conv1d.weight"][:, 0], w.get("conv1d.bias"))
    convolved = activated(p)
    d_inner = gate.shape[-1]
    u, rest = change("u", convolved[..., :d_inner]), convolved[..., d_inner:]
    dt, B, C = _coefficients(mixer, family, u, rest, dt, w)
    A = -torch.exp(w["A_log"])
    A = A[:, None] if A.dim() == 1 else A.flatten(0, -2)
    delta = torch.log1p(torch.exp(dt)).clamp_min(SHORTEST_STEP.get(family, 0.0))
    A, B, C = change("A", A), hold(change("B", B)), hold(change("C", C))
    delta = hold(change("delta", delta))
    by_head = u.unflatten(2, (len(A), -1))
    carry = change("carry", torch.ones(x.shape[:2], dtype=torch.float64))
    scanned = scan(by_head, delta, A, B, C, carry, lambda h: change("state", h)).flatten(2)
    skip = D.repeat_interleave(d_inner // len(D)) * u
    stages = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "skip": skip}
    y = change("y", scanned + skip)
    y = y if y.requires_grad or not torch.is_grad_enabled() else y.requires_grad_()
    gated = change("gated", _gated(mixer, y, gate, activated, product, hold))
    output = linear(gated, w["out_proj.weight"], w.get("out_proj.bias"))
    return {
        **stages, "conv_input": conv_input[..., :d_inner], "B": B, "C": C, "D": D, "y": y,
        "gated": gated, "output": output,
    }  # fmt: skip


def scan(u, delta, A, B, C, carry, after: Callable[[Tensor], Tensor]) -> Tensor:
    """y_t = C_t h_t with h_t = carry_t exp(delta_t A) h_{t-1} + delta_t B_t u_t, token by token.

    ``after`` gets (l, b, H, P, N) of the states so far and may return another last one.
    """
    group = group_of_head(delta.shape[2], B.shape[2])
    h = torch.zeros(*u.shape[:1], *u.shape[2:], B.shape[3], dtype=torch.float64)
    outputs, states = [], []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None, None] * A[:, None, :])
        write = delta[:, t, :, None, None] * B[:, t, group, None, :] * u[:, t, :, :, None]
        h = carry[:, t, None, None, None] * decay * h + write
        outputs.append((C[:, t, group, None, :] * h).sum(-1))
        states.append(h)
        h = after(torch.stack(states))[-1]
    return torch.stack(outputs, 1)


def _projected(mixer: Any, family: str, x: Tensor, w: dict) -> tuple[Tensor, Tensor, Tensor | None]:
    """(gate, input of the convolution, step sizes before their bias, of Mamba-2)"""
    if family == "falcon_h1":
        x = x * mixer.ssm_in_multiplier
    projected = linear(x, w["in_proj.weight"], w.get("in_proj.bias"))
    if family == "zamba":
        return projected[..., 1::2], projected[..., 0::2], None
    if family in ("mamba", "falcon_mamba", "jamba"):
        half = projected.shape[-1] // 2
        return projected[..., half:], projected[..., :half], None
    if family == "falcon_h1":
        projected = projected * mixer.mup_vector.double()
    heads, channels = len(w["A_log"]), len(w["conv1d.weight"])
    d_inner = projected.shape[-1] - channels - heads
    return projected[..., :d_inner], projected[..., d_inner:-heads], projected[..., -heads:]


def _coefficients(mixer: Any, family: str, u, rest, dt, w) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes before softplus (b, l, H), and B and C (b, l, G, N)."""
    if dt is not None:
        half = rest.shape[-1] // 2
        B, C = (
            part.unflatten(-1, (mixer.n_groups, -1))
            for part in (rest[..., :half], rest[..., half:])
        )
        return dt + w["dt_bias"], B, C
    states = w["A_log"].shape[-1]
    if family == "zamba":
        heads, _, rank = w["dt_proj_weight"].shape
        low = torch.einsum("blhd,hrd->blhr", u.unflatten(-1, (heads, -1)), w["x_proj_weight"])
        steps = torch.einsum("blhr,hdr->blhd", low[..., :rank], w["dt_proj_weight"])
        steps = steps + w["dt_proj_bias"].view(heads, -1)
        return steps.flatten(2), low[..., rank : rank + states], low[..., rank + states :]
    rank = w["dt_proj.weight"].shape[1]
    low = linear(u, w["x_proj.weight"], w.get("x_proj.bias"))
    parts = [low[..., :rank], low[..., rank : rank + states], low[..., rank + states :]]
    if family == "falcon_mamba":
        parts = [_normed(part, 1e-6) for part in parts]
    if family == "jamba":
        parts = [
            _normed(part, 1e-6) * w[f"{name}_layernorm.weight"]
            for part, name in zip(parts, ("dt", "b", "c"), strict=True)
        ]
    steps = linear(parts[0], w["dt_proj.weight"], w["dt_proj.bias"])
    return steps, parts[1][:, :, None], parts[2][:, :, None]


def _gated(mixer: Any, y, gate, activated, product, hold) -> Tensor:
    """out_proj's input: y times SiLU(gate), with Mamba-2's norm behind it or before."""
    weight = getattr(getattr(mixer, "norm", None), "weight", None)
    if weight is None:
        return product(y, activated(gate))
    # Over the channels of a group, or in a norm that knows no groups (transformers 4) over all.
    groups = mixer.n_groups if {"n_groups", "group_size"} & set(vars(mixer.norm)) else 1

    def norm(v: Tensor) -> Tensor:
        by_group = v.unflatten(-1, (groups, -1))
        mean = by_group.square().mean(-1, keepdim=True)
        scale = hold(torch.rsqrt(mean + mixer.norm.variance_epsilon))
        return weight * (by_group * scale).flatten(-2)

    if getattr(mixer.norm, "norm_before_gate", False):
        return product(norm(y), activated(gate))
    return norm(product(y, activated(gate)))


def _normed(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def _held_scale(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A norm whose factor, elementwise, is a constant for the gradient."""

    def held(x: Tensor) -> Tensor:
        return x * (forward(x) / x).detach()

    return held

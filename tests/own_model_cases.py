"""Models as people write them around mamba_ssm's mixers, in plain torch, with odd names.

The mixers have the parameters, attributes and defaults of ``mamba_ssm``'s ``Mamba`` and ``Mamba2``
and compute token by token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB_SIZE = 64
WIDTH = 12


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y (b, l, H, P) of u (b, l, H, P), delta (b, l, H), A (H, N), B and C (b, l, H, N)."""
    h, outputs = u.new_zeros(*u[:, 0].shape, B.shape[-1]), []
    for t in range(u.shape[1]):
        fall = torch.exp(delta[:, t, :, None] * A)[:, :, None]
        write = (delta[:, t, :, None] * u[:, t])[..., None] * B[:, t, :, None]
        h = fall * h + write
        outputs.append((h * C[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1)


class Mamba(nn.Module):
    """mamba_ssm's first mixer."""

    def __init__(
        self, d_model: int, d_state: int = 5, d_conv: int = 3, expand: int = 2, dt_rank: int = 3
    ) -> None:
        super().__init__()
        inner, self.dt_rank, self.d_state = expand * d_model, dt_rank, d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        length = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).chunk(2, -1)
        x = F.silu(self.conv1d(x.mT)[..., :length].mT)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        delta = F.softplus(F.linear(dt, self.dt_proj.weight) + self.dt_proj.bias)
        heads = x.shape[-1]
        B, C = (y.unsqueeze(2).expand(-1, -1, heads, -1) for y in (B, C))
        y = loop_scan(x.unsqueeze(-1), delta, -torch.exp(self.A_log), B, C).squeeze(-1)
        return self.out_proj((y + self.D * x) * F.silu(z))


class RMSNormGated(nn.Module):
    """mamba_ssm's gated norm, by groups of channels."""

    def __init__(self, width: int, group_size: int, norm_before_gate: bool) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-5
        self.group_size, self.norm_before_gate = group_size, norm_before_gate

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = x if self.norm_before_gate else x * F.silu(z)
        by_group = x.unflatten(-1, (-1, self.group_size))
        rms = (by_group.square().mean(-1, keepdim=True) + self.eps).sqrt()
        normed = (by_group / rms).flatten(-2) * self.weight
        return normed * F.silu(z) if self.norm_before_gate else normed


class Mamba2(nn.Module):
    """mamba_ssm's second mixer; its input is called u."""

    def __init__(
        self, d_model: int, d_state: int = 5, d_conv: int = 3, headdim: int = 6, ngroups: int = 2,
        norm_before_gate: bool = False, rmsnorm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = 2 * d_model
        self.d_inner, self.headdim, self.ngroups, self.d_state = inner, headdim, ngroups, d_state
        self.nheads, self.dt_limit = inner // headdim, (0.0, float("inf"))
        channels = inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, inner + channels + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(torch.zeros(self.nheads))
        self.A_log = nn.Parameter(torch.zeros(self.nheads))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = RMSNormGated(inner, inner // ngroups, norm_before_gate) if rmsnorm else None
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, u: Tensor, seqlen: Any = None, inference_params: Any = None) -> Tensor:
        shared = self.ngroups * self.d_state
        sizes = [self.d_inner, self.d_inner + 2 * shared, self.nheads]
        z, xbc, dt = self.in_proj(u).split(sizes, -1)
        xbc = F.silu(self.conv1d(xbc.mT)[..., : u.shape[1]].mT)
        x, B, C = xbc.split([self.d_inner, shared, shared], -1)
        heads = x.unflatten(-1, (self.nheads, self.headdim))
        repeats = self.nheads // self.ngroups
        B, C = (y.unflatten(-1, (self.ngroups, -1)).repeat_interleave(repeats, 2) for y in (B, C))
        delta = F.softplus(dt + self.dt_bias)
        y = loop_scan(heads, delta, -torch.exp(self.A_log)[:, None].expand(-1, self.d_state), B, C)
        y = (y + self.D[:, None] * heads).flatten(2)
        return self.out_proj(self.norm(y, z) if self.norm is not None else y * F.silu(z))


class Scale(nn.Module):
    """An RMS norm that its name does not tell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Cell(nn.Module):
    """Stream to stream: norm, mixer, and where asked for an MLP behind them."""

    def __init__(self, norm: type, mixer: nn.Module, mlp: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.ahead, self.core, self.scale = norm(WIDTH), mixer, scale
        if mlp:
            self.ahead2, self.wide, self.back = (
                norm(WIDTH), nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.core(self.ahead(x))
        return x + self.back(F.gelu(self.wide(self.ahead2(x)))) if hasattr(self, "wide") else x


class TinyLM(nn.Module):
    """Cells in a row, with a head of its own or the embedding's transpose."""

    def __init__(self, cells: list[nn.Module], norm: type = Scale, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.trunk = nn.ModuleDict({"cells": nn.Sequential(*cells)})
        self.calm = norm(WIDTH)
        self.guess = None if tied else nn.Linear(WIDTH, VOCAB_SIZE, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.end(self.trunk["cells"](self.words(tokens)))

    def end(self, x: Tensor) -> Tensor:
        """Logits of the stream behind the last cell."""
        x = self.calm(x)
        return x @ self.words.weight.T if self.guess is None else self.guess(x)


class BareLM(nn.Module):
    """Norms in one list, mixers in another, the sum outside; logits in a mapping."""

    def __init__(self, mixers: list[nn.Module], norm: type = Scale) -> None:
        super().__init__()
        self.tok = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.norms = nn.ModuleList(norm(WIDTH) for _ in mixers)
        self.mixers = nn.ModuleList(mixers)
        self.last = norm(WIDTH)
        self.out = nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.tok(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return {"logits": self.out(self.last(x))}


class Block(nn.Module):
    """mamba_ssm's block: the mixer's output and the stream apart."""

    def __init__(self, mixer: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.mixer = Scale(width), mixer

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None
    ) -> tuple[Tensor, Tensor]:
        residual = hidden_states if residual is None else hidden_states + residual
        normed = self.norm(residual)
        return self.mixer(normed, inference_params=inference_params), residual


class MixerLM(nn.Module):
    """mamba_ssm's backbone and head."""

    def __init__(
        self, mixers: list[nn.Module], width: int = WIDTH, vocab_size: int = VOCAB_SIZE
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(Block(mixer, width) for mixer in mixers)
        self.norm_f = Scale(width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Any:
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return (self.lm_head(self.norm_f(hidden + residual)), None)


def _two(mixer: type, **options: Any) -> list[nn.Module]:
    return [mixer(WIDTH, **options), mixer(WIDTH, **options)]


MODELS: dict[str, Any] = {
    "cells": lambda: TinyLM([Cell(Scale, m) for m in _two(Mamba)]),
    "cells of Mamba-2, tied": lambda: TinyLM([Cell(Scale, m) for m in _two(Mamba2)], tied=True),
    "MLPs and LayerNorms": lambda: TinyLM(
        [Cell(nn.LayerNorm, m, mlp=True) for m in _two(Mamba)], nn.LayerNorm
    ),
    "both mixers, scaled": lambda: TinyLM(
        [Cell(Scale, Mamba(WIDTH), scale=0.5), Cell(Scale, Mamba2(WIDTH, ngroups=1))]
    ),
    "bare": lambda: BareLM(_two(Mamba2, norm_before_gate=True)),
    "bare, LayerNorms": lambda: BareLM(_two(Mamba), nn.LayerNorm),
    "one bare layer": lambda: BareLM([Mamba2(WIDTH, rmsnorm=False)]),
    "blocks of mamba_ssm": lambda: MixerLM(_two(Mamba)),
}
"""What is particular about each."""


def make_own(name: str) -> Any:
    """The model with no two channels alike, in training mode, as it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model

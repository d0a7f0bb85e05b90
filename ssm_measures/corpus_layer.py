"""Sums over the texts of a corpus of what one layer computed: numbers that add up over any parts.

Every text gives: delta by head, by token of the vocabulary and by position; what a token writes to
the state; the layer's neurons with their moments and histograms. A share of the texts, chosen by
their numbers, gives what takes a map (l, l) or the states: see `corpus_maps`. Texts of a batch are
padded behind their end, where a causal model does not see it. Everything is float64 and additive.
Letters are those of the glossary in ``selective_scan``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from selective_scan.operands import with_groups
from ssm_measures.layer_overview import ScanOperands
from token_statistics.description import FloatArray
from token_statistics.fixed_bins import counts_by_channel

BLOCKS = 256
"""Groups of documents whose sums stand apart, for intervals: document d is in group d mod BLOCKS,
so that up to so many documents are each its own."""

BLOCK_SUMS = ("tokens", "log_delta_new", "new", "log_delta_known", "known")
"""Columns of a layer's sums by block of documents that every text adds to."""


class LayerReplay(ScanOperands, Protocol):
    """What one mixer computed on a batch, as `mamba_mixers.replay.MixerReplay` has it."""

    @property
    def gated(self) -> Tensor:
        """(b, l, d_inner) out_proj's input: the neurons"""
        ...

    @property
    def y(self) -> Tensor:
        """(b, l, d_inner) scan output with D u"""
        ...

    @property
    def D(self) -> Tensor:
        """(H,)"""
        ...

    @property
    def skip(self) -> Tensor | None:
        """(b, l, d_inner) in a Mamba-3 of several ranks, in place of D; None elsewhere"""
        ...


class CorpusBatch(NamedTuple):
    """Windows that are read at once."""

    ids: Tensor
    """(b, l) token ids; what stands behind a window's end means nothing"""
    lengths: tuple[int, ...]
    numbers: tuple[int, ...]
    """of the windows in the corpus"""
    documents: tuple[int, ...]
    mapped: tuple[int, ...]
    """rows that give maps too"""

    @property
    def keep(self) -> Tensor:
        """(b, l) bool: whether there is a token"""
        return torch.arange(self.ids.shape[1]) < torch.tensor(self.lengths)[:, None]

    def by_token(self) -> TokensOfBatch:
        """What is known of every token of the batch, (n,)."""
        keep = self.keep
        position = torch.arange(self.ids.shape[1]).expand(keep.shape)[keep].numpy()
        block = torch.tensor(self.documents) % BLOCKS
        return TokensOfBatch(
            self.ids[keep].numpy(),
            position,
            block[:, None].expand(keep.shape)[keep].numpy(),
            np.concatenate(
                [_known(row[:n]) for row, n in zip(self.ids, self.lengths, strict=True)]
            ),
        )


class TokensOfBatch(NamedTuple):
    """The tokens of a batch, one window after another, each (n,)."""

    ids: np.ndarray
    position: np.ndarray
    """within the window"""
    block: np.ndarray
    """of documents"""
    known: np.ndarray
    """bool: whether the window had the token before"""


def _known(ids: Tensor) -> np.ndarray:
    tokens = ids.numpy()
    first = np.zeros(len(tokens), dtype=bool)
    first[np.unique(tokens, return_index=True)[1]] = True
    return ~first


class LayerSums:
    """What one layer has added so far, by name."""

    def __init__(self, num_heads: int, num_neurons: int, vocabulary: int, positions: int) -> None:
        zeros = np.zeros
        self.sums: dict[str, np.ndarray] = {
            "delta": zeros(num_heads), "delta_squares": zeros(num_heads),
            "log_delta": zeros(num_heads), "log_delta_squares": zeros(num_heads),
            "zero_deltas": zeros(num_heads),
            "neuron_sums": zeros((4, num_neurons)),
            "token_log_delta": zeros(vocabulary), "token_written": zeros(vocabulary),
            "position_log_delta": zeros(positions), "position_written": zeros(positions),
            "blocks": zeros((BLOCKS, len(BLOCK_SUMS))),
        }  # fmt: skip
        self.bins: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, replay: LayerReplay, batch: CorpusBatch, tokens: TokensOfBatch) -> None:
        """Add a batch. Cost: some ten passes over (b, l, d_inner), no scan."""
        keep = batch.keep.to(replay.delta.device)
        delta = replay.delta[keep]
        log_delta = self._add_delta(delta)
        written = written_norm(replay)[keep].double().cpu().numpy()
        self._add_tokens("log_delta", log_delta, tokens)
        self._add_tokens("written", written, tokens)
        self._add_blocks(log_delta, tokens)
        neurons = replay.gated[keep]
        self._add_neurons(neurons.double())
        self._add_bins(delta, neurons)

    def _add_delta(self, delta: Tensor) -> FloatArray:
        """Sums by head of delta (n, H); the mean over heads of its logarithm, (n,)."""
        values = delta.double()
        zero = values <= 0
        logs = torch.where(zero, 0.0, values.clamp_min(1e-300).log())
        for name, x in (("delta", values), ("log_delta", logs)):
            self.sums[name] += x.sum(0).cpu().numpy()
            self.sums[f"{name}_squares"] += x.square().sum(0).cpu().numpy()
        self.sums["zero_deltas"] += zero.sum(0).cpu().numpy()
        return logs.mean(1).cpu().numpy()

    def _add_tokens(self, name: str, values: FloatArray, tokens: TokensOfBatch) -> None:
        for kind, numbers in (("token", tokens.ids), ("position", tokens.position)):
            sums = self.sums[f"{kind}_{name}"]
            sums += np.bincount(numbers, values, minlength=len(sums))

    def _add_blocks(self, log_delta: FloatArray, tokens: TokensOfBatch) -> None:
        new = ~tokens.known
        columns = (np.ones(len(new)), log_delta * new, new, log_delta * tokens.known, tokens.known)
        for column, values in enumerate(columns):
            weights = np.asarray(values, dtype=np.float64)
            self.sums["blocks"][:, column] += np.bincount(tokens.block, weights, minlength=BLOCKS)

    def _add_neurons(self, values: Tensor) -> None:
        power = torch.ones_like(values)
        for order in range(4):
            power = power * values
            self.sums["neuron_sums"][order] += power.sum(0).cpu().numpy()

    def _add_bins(self, delta: Tensor, neurons: Tensor) -> None:
        found = counts_by_channel(delta), counts_by_channel(neurons)
        if self.bins is None:
            self.bins = found
        else:
            for total, new in zip(self.bins, found, strict=True):
                total += new

    def arrays(self) -> dict[str, np.ndarray]:
        """All sums and counts by name."""
        bins = (
            {}
            if self.bins is None
            else dict(zip(("delta_bins", "neuron_bins"), self.bins, strict=True))
        )
        return {**self.sums, **bins}


def written_norm(replay: ScanOperands) -> Tensor:
    """(b, l) |delta_t B_t u_t|, L2 over all channels and states: what a token writes to the state.

    In closed form: the root of the sum over groups of |delta u|^2 |B|^2. No scan.
    """
    B = with_groups(replay.B).double()
    heads = replay.delta.shape[2]
    u = replay.u.double().unflatten(2, (heads, -1)).square().sum(-1)
    pushed = (replay.delta.double().square() * u).unflatten(2, (B.shape[2], -1)).sum(-1)
    return (pushed * B.square().sum(-1)).sum(-1).sqrt()

"""Sums of a layer over batches: what is padded adds nothing, and closed forms are the scan's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selective_scan.scan import scan_hidden_states
from ssm_measures.corpus_layer import BLOCKS, CorpusBatch, LayerSums, written_norm

VOCABULARY, LONGEST = 11, 9


def made_replay(batch=3, length=7, heads=4, width=2, groups=2, states=3, seed=0) -> Any:
    rng = torch.Generator().manual_seed(seed)
    d_inner = heads * width

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return SimpleNamespace(
        u=drawn(batch, length, d_inner), delta=drawn(batch, length, heads).exp(),
        A=-drawn(heads, states).exp(), B=drawn(batch, length, groups, states),
        C=drawn(batch, length, groups, states), D=drawn(heads), y=drawn(batch, length, d_inner),
        gated=drawn(batch, length, d_inner),
    )  # fmt: skip


def made_batch(lengths=(7, 4, 2), documents=(0, 1, BLOCKS + 1)):
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    return CorpusBatch(ids, lengths, (5, 6, 7), documents, (0,))


def summed(replay, batch):
    sums = LayerSums(4, 8, VOCABULARY, LONGEST)
    sums.add(replay, batch, batch.by_token())
    return sums.arrays()


def test_what_a_token_writes_is_the_step_of_the_state():
    replay = made_replay()
    h = scan_hidden_states(replay.u, replay.delta, replay.A, replay.B)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    decay = torch.exp(replay.delta.unsqueeze(-1) * replay.A).repeat_interleave(2, 2)
    written = (h - decay * before).flatten(2).norm(dim=2)
    torch.testing.assert_close(written_norm(replay), written, rtol=1e-10, atol=1e-12)


def test_what_stands_behind_a_windows_end_adds_nothing():
    replay, batch = made_replay(), made_batch()
    expected = summed(replay, batch)
    for name in ("u", "delta", "B", "gated"):
        getattr(replay, name)[1, 4:] = 77.0
        getattr(replay, name)[2, 2:] = 77.0
    batch.ids[1, 4:] = 3
    for name, x in summed(replay, batch).items():
        assert (x == expected[name]).all(), name


def test_sums_are_those_of_single_windows():
    replay, batch = made_replay(), made_batch()
    together = summed(replay, batch)
    sums = LayerSums(4, 8, VOCABULARY, LONGEST)
    for row, length in enumerate(batch.lengths):
        part = {k: v if k in "AD" else v[row : row + 1, :length] for k, v in vars(replay).items()}
        one = CorpusBatch(
            batch.ids[row : row + 1, :length], (length,), (0,), (batch.documents[row],), ()
        )
        alone: Any = SimpleNamespace(**part)
        sums.add(alone, one, one.by_token())
    for name, x in sums.arrays().items():
        np.testing.assert_allclose(x, together[name], rtol=1e-12, atol=1e-12)


def test_tokens_positions_and_documents():
    replay, batch = made_replay(), made_batch()
    found = summed(replay, batch)
    logs = replay.delta.log().mean(2)
    keep = [(row, t) for row, n in enumerate(batch.lengths) for t in range(n)]
    by_token = np.zeros(VOCABULARY)
    for row, t in keep:
        by_token[batch.ids[row, t]] += float(logs[row, t])
    np.testing.assert_allclose(found["token_log_delta"], by_token, rtol=1e-12)
    assert found["position_log_delta"][1] == pytest.approx(float(logs[:, 1].sum()))
    assert found["position_log_delta"][LONGEST - 1] == 0
    # The third document shares the block of the second.
    assert found["blocks"][:2, 0].tolist() == [7, 6]
    known = sum(int(batch.ids[row, t] in batch.ids[row, :t]) for row, t in keep)
    assert found["blocks"][:, 4].sum() == known
    assert found["neuron_bins"].sum() == 13 * 8
    assert found["delta_bins"].sum() == 13 * 4


def test_a_delta_of_zero_has_no_logarithm_and_is_counted():
    replay, batch = made_replay(), made_batch()
    replay.delta[0, 0] = 0.0
    found = summed(replay, batch)
    assert found["zero_deltas"].tolist() == [1, 1, 1, 1]
    assert np.isfinite(found["log_delta"]).all()

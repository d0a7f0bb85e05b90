"""The logit lens against what the model's own modules give, position by position."""

import math

import numpy as np
import pytest
import torch

from benchmarks.family_models import make_model
from causal_interventions.logit_lens import LogitLens, logit_lens, streams_of
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.sites import blocks_of

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9]])


@pytest.fixture(scope="module", params=["mamba", "granitemoehybrid", "falcon_h1", "zamba2"])
def model(request: pytest.FixtureRequest):
    return make_model(request.param)


@pytest.fixture(scope="module")
def lens(model) -> LogitLens:
    return logit_lens(model, IDS)


def test_the_last_reading_is_the_models_own_prediction(model, lens):
    last = lens.residual[-1]
    with torch.no_grad():
        log_p = model(input_ids=IDS, use_cache=False).logits[0].log_softmax(-1)
    assert float(last.kl.abs().max()) < 1e-5  # rounding of a sum over the vocabulary
    assert torch.equal(last.top, log_p.argmax(-1))
    assert not bool(last.final_rank.any())
    following = log_p[:-1].gather(1, IDS[0, 1:, None])[:, 0]
    torch.testing.assert_close(last.next_log_p[:-1], following, rtol=1e-4, atol=1e-4)
    assert math.isnan(float(last.next_log_p[-1]))
    assert math.isnan(float(last.next_rank[-1]))
    assert torch.equal(lens.settled >= -1, torch.ones_like(lens.settled, dtype=torch.bool))


def test_a_layers_reading_is_its_stream_through_norm_and_unembedding(model, lens):
    """The stream after the first layer is put in place of the last layer's, by a hook."""
    streams, _ = streams_of(model, IDS)

    def replace(block, args, kwargs, output):
        changed = streams[1][None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with torch.no_grad():
        final = model(input_ids=IDS, use_cache=False).logits[0].double().log_softmax(-1)
        with forward_hooks([(blocks_of(model)[-1], replace)]):
            log_p = model(input_ids=IDS, use_cache=False).logits[0].double().log_softmax(-1)
    found = lens.residual[1]
    for t in range(IDS.shape[1]):
        kl = sum(
            math.exp(p) * (p - q) for p, q in zip(final[t].tolist(), log_p[t].tolist(), strict=True)
        )
        assert float(found.kl[t]) == pytest.approx(kl, rel=1e-3, abs=1e-4)
        entropy = -sum(math.exp(q) * q for q in log_p[t].tolist())
        assert float(found.entropy[t]) == pytest.approx(entropy, rel=1e-3)
        own = int(final[t].argmax())
        assert int(found.final_rank[t]) == int((log_p[t] > log_p[t, own]).sum())
        assert float(found.final_log_p[t]) == pytest.approx(float(log_p[t, own]), abs=1e-3)


def test_settled_is_the_layer_from_which_the_token_stays(lens):
    tops = torch.stack([reading.top for reading in lens.residual]).tolist()
    for t, settled in enumerate(lens.settled.tolist()):
        column = [row[t] for row in tops]
        stays = [i for i in range(len(column)) if all(x == column[-1] for x in column[i:])]
        assert settled == min(stays) - 1


def test_the_table_has_a_row_a_stream_and_the_null_is_another_position(lens):
    table = lens.to_dataframe()
    assert table["layer"].iloc[0] == "embedding"
    assert set(table["stream"]) == {"residual", "mixer"}
    last = table.iloc[-1]
    assert last["kl"] < 1e-5 < last["kl_permuted"]
    assert last["agrees"] == 1.0
    assert np.isnan(table["kl_twin"]).all()
    here = lens.at(2)
    assert len(here) == len(table)
    row = here[(here["layer"] == 0) & (here["stream"] == "residual")]
    assert row["kl"].item() == pytest.approx(float(lens.residual[1].kl[2]))


def test_a_single_token_has_a_lens(tiny_model):
    lens = logit_lens(tiny_model, IDS[:, :1])
    assert lens.settled.shape == (1,)
    assert lens.to_dict()["layers"][0]["next_log_p"] is None

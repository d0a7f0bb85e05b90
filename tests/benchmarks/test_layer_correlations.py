"""The benchmark of layer correlations compares ways that give the same numbers."""

import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks import layer_correlations as module
from token_statistics.channel_correlations import PooledActivations, cross_layer_correlation

SIZES = module.Sizes(3, 6, 120)


def test_both_ways_give_the_same_correlations():
    ours, theirs = module.streamed(SIZES), module.with_corrcoef(SIZES)
    assert len(ours["mean_abs"]) == 2
    (batch,) = module.batches(SIZES, [0, 1, 2])
    layers = [PooledActivations(batch[i].double().numpy(), (SIZES.tokens,)) for i in range(3)]
    at_hand = [cross_layer_correlation(a, b).mean_abs for a, b in itertools.pairwise(layers)]
    # Sums of 120 float32 products.
    values = np.array([one.value for one in at_hand], float)
    np.testing.assert_allclose(ours["mean_abs"], values, atol=1e-6)
    # corrcoef has the first tokens and the course over position in it: of 120 tokens of noise a
    # change of r of about 0.03 in a pair, a tenth of that in the mean over 36.
    np.testing.assert_allclose(ours["mean_abs"], theirs["mean_abs"], atol=0.006)


def test_layers_are_the_same_whichever_are_asked_for(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 50)
    every, one = (list(module.batches(SIZES, layers)) for layers in ([0, 1, 2], [1]))
    assert [len(batch[1]) for batch in one] == [50, 50, 20]
    for all_layers, alone in zip(every, one, strict=True):
        assert torch.equal(all_layers[1], alone[1])


def test_one_way_prints_json_and_both_a_table(capsys):
    assert module.main(["--way", "streamed", *map(str, SIZES)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["seconds"] > 0
    text = module.report(SIZES, {**result, "peak_gb": 0.5}, {**result, "peak_gb": 1.0})
    assert "(1.00 x)" in text
    assert module.main(["--way", "none"]) == 2
    assert module.main(["3", "6"]) == 2


def test_a_way_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="the nothing way ended with 2"):
        module.run_way("nothing", SIZES)

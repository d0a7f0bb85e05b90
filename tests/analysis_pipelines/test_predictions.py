"""Maps of every prediction: they sum to the logits, and are those of single positions."""

import pytest
import torch

from analysis_pipelines.predictions import OTHER, prediction_maps
from benchmarks.family_models import ALL_MODELS, FAULTY, FAULTY_BEYOND, make_model
from causal_interventions.logit_parts import logit_parts

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12]])


@pytest.mark.parametrize("name", ALL_MODELS)
def test_parts_of_every_position_sum_to_its_logit(name):
    ids = IDS[:, :FAULTY_BEYOND] if name in FAULTY else IDS
    model = make_model(name)
    found = prediction_maps(model, ids)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    torch.testing.assert_close(found.tokens, logits.argmax(-1))
    # Float32 rounding, and two scans.
    assert bool((found.rounding.abs() < 1e-5 * found.largest).all())
    torch.testing.assert_close(found.logits, logits.amax(-1), rtol=1e-4, atol=1e-4)
    bias = torch.stack([by_path["bias"] for by_path in found.paths.values() if "bias" in by_path])
    total = found.sources.sum(1) + bias.sum(0) + found.constant
    torch.testing.assert_close(total, found.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "zamba2"])
def test_a_row_is_the_attribution_of_that_position(name):
    model, ids = make_model(name), IDS[:, :8]
    tokens = torch.arange(8) + 20
    found = prediction_maps(model, ids, tokens)
    assert not any(OTHER in by_path for by_path in found.paths.values())
    for t in (0, 5, 7):
        parts = logit_parts(model, ids[:, : t + 1], int(tokens[t]))
        by_source = dict(parts.source_totals()[["source", "value"]].itertuples(index=False))
        by_path = {
            (layer, path): value
            for layer, path, value in parts.to_dataframe().itertuples(index=False)
        }
        for source in range(t + 1):
            expected = by_source.get(source, 0.0)
            assert float(found.sources[t, source]) == pytest.approx(expected, abs=1e-4)
        for layer, values in found.paths.items():
            for path, value in values.items():
                expected = by_path.get((layer, path), 0.0)
                assert float(value[t]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "zamba2"])
def test_sums_over_layers_are_those_of_the_model_in_float64(name):
    tokens = torch.arange(IDS.shape[1]) + 20
    found = prediction_maps(make_model(name), IDS, tokens)
    exact = prediction_maps(make_model(name).double(), IDS, tokens)
    assert exact.sources.dtype == torch.float64
    # Float32 rounding of a sum over the channels of all layers.
    bound = 2e-5 * float(exact.largest.max())
    torch.testing.assert_close(found.sources.double(), exact.sources, rtol=0, atol=bound)
    for layer, by_path in exact.paths.items():
        for path, values in by_path.items():
            close = found.paths[layer][path].double()
            torch.testing.assert_close(close, values, rtol=0, atol=bound)


def test_as_many_tokens_as_positions(tiny_model):
    with pytest.raises(ValueError, match="tokens has 3 ids; the text has 12 positions"):
        prediction_maps(tiny_model, IDS, torch.tensor([1, 2, 3]))

"""Layers that read sums of what was written before: the whole sum is the model itself."""

import pytest
import torch

from benchmarks.family_models import ALL_MODELS, make_model
from mamba_mixers.rewiring import rewired
from mamba_mixers.sites import num_layers
from token_statistics.description import relative_error


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_sum_of_all_that_was_written_is_the_stream(name):
    model = make_model(name)
    ids = torch.arange(1, 10)[None]
    seen = []

    def read(layer, written):
        seen.append((layer, len(written)))
        return torch.stack(written).sum(0)

    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        with rewired(model, read):
            found = model(input_ids=ids, use_cache=False).logits
        again = model(input_ids=ids, use_cache=False).logits
    assert relative_error(found, plain) <= 1e-5
    assert torch.equal(again, plain)
    assert seen == [(layer, layer + 1) for layer in range(num_layers(model) + 1)]


def test_what_is_read_is_what_is_computed_from():
    model = make_model("mamba")
    ids = torch.arange(1, 10)[None]
    with torch.no_grad(), rewired(model, lambda layer, written: written[0]):
        found = model(input_ids=ids, use_cache=False).logits
        stream = model.get_input_embeddings()(ids)
    expected = model.lm_head(model.backbone.norm_f(stream))
    assert relative_error(found, expected) <= 1e-6

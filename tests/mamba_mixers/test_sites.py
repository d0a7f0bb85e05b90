"""Mixers are found where they sit; models without one are refused in a sentence that helps."""

import pytest
from torch import nn
from transformers import BertConfig, BertModel

from benchmarks.family_models import MODELS, family_of, make_model, ssm_layers
from mamba_mixers.sites import (
    UnsupportedModelError,
    blocks_of,
    find_mixers,
    model_family,
    num_layers,
)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_the_models_layers_in_order(name):
    model = make_model(name)
    blocks = blocks_of(model)
    assert len(blocks) == num_layers(model) == model.config.num_hidden_layers
    for layer, site in find_mixers(model).items():
        assert site.layer == layer
        assert site.block is blocks[layer]
        assert any(module is site.mixer for module in site.block.modules())
    assert list(find_mixers(model)) == ssm_layers(name)
    assert model_family(model).model_type == family_of(name)


@pytest.mark.parametrize("function", [find_mixers, num_layers, blocks_of, model_family])
def test_an_encoder_is_refused(function):
    encoder = BertModel(
        BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                   intermediate_size=8)
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="BertModel cannot be analysed: none of its"):
        function(encoder)


def test_the_sentence_names_what_looks_alike_and_the_families():
    class ForgetGate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(nn.Linear(1, 1).weight)

    with pytest.raises(UnsupportedModelError, match="its ForgetGate layers have an A_log") as error:
        find_mixers(nn.ModuleList([ForgetGate()]))
    for family in ("mamba2 (Mamba2Mixer)", "granitemoehybrid (GraniteMoeHybridMambaLayer)"):
        assert family in str(error.value)

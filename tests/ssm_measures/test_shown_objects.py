"""Result objects of the extractors: one line, a table a token, a figure, a file and back."""

import pytest
import torch

from attention_neurons import LayerAttention, MambaAttentionNeurons
from delta_extraction import DeltaExtractor
from ssm_component_extractor import SSMComponentExtractor
from ssm_measures.components import SSMComponents
from ssm_measures.neuron_sets import NeuronSet
from tests.conftest import make_tiny_model

TEXTS = ["One two three, one two.", "A shorter <b>text</b>"]


@pytest.fixture(scope="module")
def found(tiny_tokenizer):
    """Components, attention and neurons of layer 2 of two texts of unlike length."""
    extractor = SSMComponentExtractor(make_tiny_model(), tokenizer=tiny_tokenizer)
    components = extractor.extract_ssm_components(layers=[2], texts=TEXTS)[2]
    neurons = MambaAttentionNeurons(make_tiny_model(), tokenizer=tiny_tokenizer)
    attention = neurons.extract_attention_vectors(texts=TEXTS, layers=[2])
    ranked = neurons.create_mamba_neurons(attention, "rollout")[2]
    return components, attention.layer(2), ranked, attention


def test_a_repr_is_one_line(found):
    for one in found:
        assert len(repr(one)) < 120
        assert "\n" not in repr(one)
    assert repr(found[0]).startswith("<SSMComponents of layer 2: ")
    assert repr(found[1]).startswith("<LayerAttention of layer 2: ")
    assert repr(found[3]).startswith("<AttentionData of layers 2: ")


def test_a_notebook_shows_a_table_escaped(found):
    for one in found:
        assert "<table" in one._repr_html_()
        assert "<b>text" not in one._repr_html_()


def test_tables_have_a_row_a_token_without_padding(found, tiny_tokenizer):
    ids = [tiny_tokenizer(text)["input_ids"] for text in TEXTS]
    tokens = [token for row in ids for token in tiny_tokenizer.convert_ids_to_tokens(row)]
    for one in found[:2]:
        table = one.to_dataframe()
        assert table["token"].tolist() == tokens
        assert table["text"].tolist() == [0] * len(ids[0]) + [1] * len(ids[1])
        assert set(table["layer"]) == {2}
    components, attention = found[:2]
    last = components.to_dataframe().iloc[-1]
    assert last["delta"] == pytest.approx(float(components.delta[1, -1].mean()))
    assert attention.to_dataframe()["entropy"].iloc[-1] == pytest.approx(
        float(attention.statistics.entropy[1, -1])
    )
    assert components.text(1).tokens == (tuple(tokens[len(ids[0]) :]),)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_holds_the_object_whole(found, place, tmp_path):
    one = found[place]
    kind = (SSMComponents, LayerAttention, NeuronSet)[place]
    one.save(tmp_path / "one.safetensors")
    back = kind.load(tmp_path / "one.safetensors")
    assert (back.layer, back.tokens) == (2, one.tokens)
    assert back.to_dataframe().equals(one.to_dataframe())
    for name in one.__dataclass_fields__:
        if isinstance(getattr(one, name), torch.Tensor):
            torch.testing.assert_close(
                getattr(back, name), getattr(one, name), rtol=0, atol=0, equal_nan=True
            )
    with pytest.raises(ValueError, match="this reads"):
        (LayerAttention if kind is SSMComponents else SSMComponents).load(
            tmp_path / "one.safetensors"
        )


def test_figures_draw_what_the_tables_hold(found):
    components, attention = found[:2]
    figure = components.figure()
    table = components.text(0).to_dataframe()
    assert figure.axes[0].lines[0].get_ydata().tolist() == table["delta"].tolist()
    image = attention.figure().axes[0].images[0].get_array()
    count = int((~attention.statistics.strength[0].isnan()).sum())
    assert image.shape == (count, count)
    assert found[3].figure(2).axes[0].images[0].get_array().shape == (count, count)


def test_of_token_ids_alone_there_are_no_tokens():
    ids = torch.tensor([[1, 2, 3, 4]])
    data = MambaAttentionNeurons(make_tiny_model()).extract_attention_vectors(ids, [0])
    assert data.tokens is None
    assert "token" not in data.to_dataframe()
    assert data.figure() is not None


def test_one_pair_of_names_in_every_extractor(tiny_tokenizer):
    extractor = DeltaExtractor(make_tiny_model(), tokenizer=tiny_tokenizer)
    by_keyword = extractor.extract_deltas(layers=[1], text=TEXTS[0])[1]
    assert torch.equal(by_keyword, extractor.extract_deltas([1], TEXTS[0])[1])
    assert extractor.analyze_memory(layer=1).layer == 1

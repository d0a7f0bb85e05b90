"""Arguments by other keywords: the same call, and twice is an error."""

import re

import pytest
from conftest import make_tiny_model, make_tiny_tokenizer

from attention_neurons import MambaAttentionNeurons
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from delta_extraction import DeltaExtractor
from layer_correlation_analyzer import LayerCorrelationAnalyzer
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from ssm_component_extractor import SSMComponentExtractor
from suite_plumbing.other_names import also_named


@also_named(text="inputs", texts="inputs", layers="layer_indices")
def call(inputs, layer_indices=None, *, seed=0):
    """What it was called with."""
    return inputs, layer_indices, seed


def test_a_keyword_stands_for_the_name_in_the_signature():
    assert call("a", [0]) == ("a", [0], 0)
    assert call(text="a", layers=[0], seed=3) == ("a", [0], 3)
    assert call(inputs="a", layer_indices="all") == ("a", "all", 0)
    assert call(texts=["a", "b"]) == (["a", "b"], None, 0)
    assert call.__doc__ == "What it was called with."


def test_an_argument_given_twice_is_an_error():
    for twice in ({"text": "a", "inputs": "b"}, {"text": "a", "texts": "b"}):
        with pytest.raises(TypeError, match=r"call\(\) got .* which are the same"):
            call(**twice)
    with pytest.raises(TypeError):
        call("a", text="b")
    with pytest.raises(TypeError, match="has no pages"):
        also_named(text="pages")(lambda inputs: inputs)


@also_named(text="inputs", layers="layer_indices")
def refuse(inputs, layer_indices=None, message=""):
    """Raises what it is told to."""
    raise ValueError(message)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("layer_indices is 6; pass a list", "layers is 6; pass a list"),
        (
            "layer 3 is named twice in layer_indices [3, 3]",
            "layer 3 is named twice in layers [3, 3]",
        ),
        ("inputs is empty; pass inputs", "text is empty; pass inputs"),
        ("the model has no inputs", "the model has no inputs"),
        ("all_layer_indices is 6", "all_layer_indices is 6"),
    ],
)
def test_an_error_names_an_argument_as_it_was_given(message, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        refuse(text="a", layers=[0], message=message)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        refuse("a", [0], message=message)


def test_an_error_that_is_no_sentence_stays_as_it_is():
    error = UnicodeDecodeError("utf-8", b"x", 0, 1, "layer_indices")

    @also_named(layers="layer_indices")
    def fail(layer_indices):
        raise error

    with pytest.raises(UnicodeDecodeError) as caught:
        fail(layers=1)
    assert caught.value is error
    assert caught.value.reason == "layer_indices"


NAMED = [
    (DeltaExtractor, "extract_deltas", {"text": "a b"}),
    (SSMComponentExtractor, "extract_ssm_components", {"text": "a b"}),
    (LayerCorrelationAnalyzer, "extract_layer_activations", {"texts": "a b"}),
    (MambaAttentionNeurons, "extract_attention_vectors", {"text": "a b"}),
    (MemoryRecursionNeuronAnalyzer, "analyze_memory_recursion_effects", {"text": "a b"}),
    (
        CorrectedRecursiveSSMAttentionNeuronAnalyzer,
        "analyze_recursive_ssm_attention_effects",
        {"text": "a b"},
    ),
]


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


@pytest.mark.parametrize(("analyzer", "method", "texts"), NAMED)
def test_every_method_says_layers_where_layers_were_given(model, analyzer, method, texts):
    made = analyzer(model, tokenizer=make_tiny_tokenizer())
    with pytest.raises(ValueError, match="^layers is 1; pass a list"):
        getattr(made, method)(layers=1, **texts)
    with pytest.raises(ValueError, match="^layer_indices is 1; pass a list"):
        getattr(made, method)(layer_indices=1, **texts)

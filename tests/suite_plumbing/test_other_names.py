"""Arguments by other keywords: the same call, and twice is an error."""

import pytest

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

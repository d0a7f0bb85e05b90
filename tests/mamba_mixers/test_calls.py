"""What a mixer was called with, by any name that a version of transformers has for it."""

import ast
import inspect

import pytest
import torch
from torch import Tensor, nn

from mamba_mixers.calls import CACHES, bound_by_name, forward_signature, mixer_call
from mamba_mixers.sites import UnsupportedModelError

X, MASK, MEMORY = torch.zeros(1, 2, 3), torch.ones(1, 2), object()


def mixer_of(parameters: str) -> nn.Module:
    """A mixer whose forward takes these, written as in Python."""

    class Mixer(nn.Module):
        def forward(self, *args, **kwargs):
            """Never called."""

    named = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for text in parameters.split(", "):
        name, _, default = text.partition("=")
        kind = inspect.Parameter.VAR_KEYWORD if "*" in name else named[0].kind
        value = ast.literal_eval(default) if default else inspect.Parameter.empty
        named.append(inspect.Parameter(name.strip("*"), kind, default=value))
    vars(Mixer)["forward"].__signature__ = inspect.Signature(named)
    return Mixer()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stream", ["hidden_states", "input_states"])
def test_each_name_of_stream_and_cache_is_read(stream, cache):
    mixer = mixer_of(f"{stream}, {cache}=None, attention_mask=None, **kwargs")
    for args, kwargs in (
        ((X, MEMORY, MASK), {}),
        ((X,), {cache: MEMORY, "attention_mask": MASK}),
        ((), {stream: X, cache: MEMORY, "attention_mask": MASK}),
    ):
        call = mixer_call(mixer, args, kwargs)
        assert call.hidden_states is X
        assert call.cache is MEMORY
        assert call.attention_mask is MASK
    assert mixer_call(mixer, (X,), {}) == (X, None, None)


def test_a_cache_among_further_named_arguments_is_a_cache():
    mixer = mixer_of("hidden_states, cache=None, **kwargs")
    assert mixer_call(mixer, (X,), {"cache_params": MEMORY}).cache is MEMORY


@pytest.mark.parametrize(
    ("parameters", "kwargs", "name"),
    [
        ("hidden_states, memory_of_past=None", {"memory_of_past": MEMORY}, "memory_of_past"),
        ("hidden_states, seq_idx=None", {"seq_idx": MASK}, "seq_idx"),
        ("hidden_states, chunk=4", {"chunk": 8}, "chunk"),
        ("hidden_states, **kwargs", {"seq_idx": MASK}, "seq_idx"),
        ("hidden_states, **kwargs", {"reverse": True}, "reverse"),
    ],
)
def test_an_unknown_argument_that_is_not_at_its_default_is_refused(parameters, kwargs, name):
    with pytest.raises(UnsupportedModelError, match=f"Mixer was called with {name}, which"):
        mixer_call(mixer_of(parameters), (X,), kwargs)


@pytest.mark.parametrize(
    ("parameters", "kwargs"),
    [
        ("hidden_states, chunk=4", {"chunk": 4}),
        ("hidden_states, seq_idx=None", {"seq_idx": None}),
        ("hidden_states, **kwargs", {"output_router_logits": True, "position_ids": MASK}),
        ("hidden_states, **kwargs", {"anything": False}),
    ],
)
def test_what_changes_nothing_is_let_through(parameters, kwargs):
    assert mixer_call(mixer_of(parameters), (X,), kwargs).hidden_states is X


def test_a_subclass_that_passes_all_on_is_read_by_its_base_class():
    base = type(mixer_of("hidden_states, cache=None, attention_mask=None"))

    class Passing(base):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    assert forward_signature(Passing) == forward_signature(base)
    assert mixer_call(Passing(), (X, MEMORY), {"attention_mask": MASK}) == (X, MASK, MEMORY)
    assert bound_by_name(Passing(), (X,), {}) == {"hidden_states": X}


def test_a_mixer_without_a_stream_is_refused():
    with pytest.raises(UnsupportedModelError, match="takes tokens; none of it is hidden_states or"):
        mixer_call(mixer_of("tokens"), (X,), {})


def test_tensors_that_are_not_the_default_are_refused_without_a_comparison():
    with pytest.raises(UnsupportedModelError, match="weights"):
        mixer_call(mixer_of("hidden_states, weights=1.0"), (X,), {"weights": Tensor([1, 2])})

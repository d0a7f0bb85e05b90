"""Shares of neurons by path and source, against loops over channels, sources and taps."""

import pytest
import reference
import torch
from defined import known
from mixer_cases import make_odd_model

from benchmarks.family_models import make_model
from mamba_mixers.sites import find_mixers
from mamba_mixers.stream_writes import MixerTrace, record_writes
from mamba_mixers.weights import MixerParameters, mixer_parameters
from ssm_measures.neuron_shares import neuron_shares

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31]])


def traced(model, ids=IDS, layer: int = 0) -> tuple[MixerTrace, MixerParameters]:
    trace = record_writes(model, ids).layers[layer].trace
    assert trace is not None
    return trace, mixer_parameters(find_mixers(model)[layer])


def loops(trace: MixerTrace, parameters: MixerParameters, through: torch.Tensor) -> dict:
    heads = trace.delta.shape[1]
    grouped = (x if x.dim() == 3 else x.unsqueeze(1) for x in (trace.B, trace.C))
    B, C = (x[None] for x in grouped)
    alpha = reference.implicit_attention(trace.delta[None], trace.A, B, C)[0, :, -1]
    width = trace.u.shape[1] // heads
    return reference.direct_parts(
        alpha.repeat_interleave(width, 0), trace.D.repeat_interleave(width).double(),
        trace.conv_input.double(), known(parameters.conv_weight).double(), parameters.conv_bias,
        through,
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("name", ["odd", "odd without biases", "zamba", "mamba2", "falcon_h1"])
def test_shares_are_those_of_loops(name, length):
    """Texts of fewer tokens than the convolution has taps among them."""
    model = make_odd_model(bias=name == "odd") if name.startswith("odd") else make_model(name)
    trace, parameters = traced(model, IDS[:, :length])
    through = torch.randn(len(trace.gated), generator=torch.Generator().manual_seed(0))
    shares = neuron_shares(trace, parameters)
    expected = loops(trace, parameters, (through * trace.gating).double())
    found = {("bias", "bias"): shares.bias, ("skip", length - 1): shares.skip}
    for path, values in (("state", shares.state), ("convolution", shares.convolution)):
        assert values.shape == trace.u.shape
        found |= {(path, source): row for source, row in enumerate(values)}
    for key, neurons in found.items():
        value = float(neurons @ through)
        # Float32 against float64, relative to neurons of size 1.
        assert value == pytest.approx(expected.get(key, 0.0), rel=1e-4, abs=1e-4), key
    assert set(expected) <= set(found)


def test_shares_sum_to_the_neurons(tiny_model):
    trace, parameters = traced(tiny_model, layer=2)
    shares = neuron_shares(trace, parameters)
    torch.testing.assert_close(shares.neurons, trace.gated, rtol=1e-5, atol=1e-6)
    together = shares.by_source.sum(0) + shares.bias
    torch.testing.assert_close(together, trace.gated, rtol=1e-5, atol=1e-6)


def test_another_layers_parameters_are_refused(tiny_model):
    trace, _ = traced(tiny_model, layer=0)
    other = mixer_parameters(find_mixers(tiny_model)[1])
    with pytest.raises(ValueError, match="do not belong together"):
        neuron_shares(trace, other)

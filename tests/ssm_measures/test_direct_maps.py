"""Maps of every position against the shares of each text that ends there."""

from functools import partial

import pytest
import torch
from mamba3_cases import make_mamba3
from mixer_cases import make_odd_model

from benchmarks.family_models import make_model
from mamba_mixers.sites import find_mixers
from mamba_mixers.stream_writes import record_writes
from mamba_mixers.weights import mixer_parameters
from ssm_component_extractor import capture
from ssm_measures.direct_maps import direct_map
from ssm_measures.neuron_shares import neuron_shares

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22]])


MADE = {"odd": make_odd_model, "siso": partial(make_mamba3, "siso"),
        "mimo normed, with MLPs": partial(make_mamba3, "mimo normed, with MLPs")}  # fmt: skip


@pytest.mark.parametrize("name", [*MADE, "zamba", "mamba2", "falcon_h1 normed"])
def test_every_row_is_that_of_the_text_that_ends_there(name):
    model = MADE.get(name, partial(make_model, name))()
    site = find_mixers(model)[1]
    parameters = mixer_parameters(site)
    parts = capture(model, IDS, None, [1]).components[1]
    width = parts.mixer_output.shape[2]
    directions = torch.randn(IDS.shape[1], width, generator=torch.Generator().manual_seed(0))
    found = direct_map(parts, parameters, directions)
    for t in range(IDS.shape[1]):
        trace = record_writes(model, IDS[:, : t + 1]).layers[1].trace
        assert trace is not None
        shares = neuron_shares(trace, parameters)
        through = directions[t] @ parameters.out_weight
        # Float32 rounding of sums over the channels.
        close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
        close(found.tokens[t, : t + 1], shares.by_source @ through)
        assert not bool(found.tokens[t, t + 1 :].any())
        bias = shares.bias @ through
        if parameters.out_bias is not None:
            bias = bias + directions[t] @ parameters.out_bias
        expected = {"skip": shares.skip @ through, "bias": bias,
                    "state": (shares.state @ through).sum(),
                    "convolution": (shares.convolution @ through).sum()}  # fmt: skip
        for path, value in expected.items():
            close(found.paths[path][t], value)
    written = (parts.written[0] * directions).sum(1)
    torch.testing.assert_close(sum(found.paths.values()), written, rtol=1e-4, atol=1e-4)


def test_one_text_at_a_time(tiny_model):
    parts = capture(tiny_model, IDS.expand(2, -1), None, [0]).components[0]
    with pytest.raises(ValueError, match="components hold 2 texts"):
        direct_map(parts, mixer_parameters(find_mixers(tiny_model)[0]), torch.zeros(7, 32))

"""First-order effects against differences of exact ones, and what their parts add up to."""

import pytest
import reference
import torch
from hand_weighted import two_layers
from patching_cases import runs_of, scan_parts

from benchmarks.family_models import ALL_MODELS, make_model
from causal_interventions.patching.exact import PairRuns, pair_runs, patched_values
from causal_interventions.patching.gradients import (
    edge_scores,
    gradients_of,
    neuron_scores,
    node_scores,
    token_maps,
)
from causal_interventions.patching.pairs import text_pairs
from causal_interventions.patching.sites import DEFAULT_SITES, Run, layers_of_site, sites_at_hand
from mamba_mixers.sites import find_mixers
from token_statistics.description import relative_error

# float32 over a few layers.
FLOAT32 = 1e-4


@pytest.fixture(scope="module", params=ALL_MODELS)
def model(request: pytest.FixtureRequest):
    return make_model(request.param)


@pytest.fixture(scope="module")
def runs(model):
    return runs_of(model)


@pytest.fixture(scope="module")
def gradients(model, runs):
    return gradients_of(model, runs, "denoising")


def moved(runs: PairRuns, share: float) -> PairRuns:
    """The clean run replaced by base + share (clean - base), place by place."""

    def between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + share * (b - a)

    one, other = runs.corrupt, runs.clean
    streams = {i: between(one.streams[i], other.streams[i]) for i in one.streams}
    stages = {
        i: {s: between(one.stages[i][s], other.stages[i][s]) for s in one.stages[i]}
        for i in one.stages
    }
    clean = Run(other.input_ids, streams, other.outputs, stages, other.logits, other.turns)
    return runs._replace(clean=clean)


@pytest.mark.parametrize("site", [site for site in DEFAULT_SITES if site != "state"])
def test_a_score_is_the_slope_of_the_exact_effect(model, runs, gradients, site):
    """Differences extrapolated to step 0: their error is of fourth order, beside float32's."""
    if site not in sites_at_hand(model):
        with pytest.raises(ValueError, match="'window' is that of a convolution"):
            layers_of_site(model, site, {})
        return
    if runs.clean.turns and site in ("delta", "B"):
        return  # a nat of decay writes much where little decays: below, in float64

    def difference(step: float) -> torch.Tensor:
        above, below = (patched_values(model, moved(runs, s), site) for s in (step, -step))
        return (above - below) / (2 * step)

    slope = (4 * difference(2e-3) - difference(4e-3)) / 3
    found = node_scores(model, runs, gradients, site, layers_of_site(model, site, {}), "denoising")
    assert float(slope.abs().max()) > 1e-3
    # float32's rounding of logits of order 10 over the step, where scores are small.
    assert float((found - slope).abs().max()) <= 1e-2 * float(slope.abs().max()) + 8e-3


@pytest.mark.parametrize("name", ["mamba3", "mamba3 of ranks"])
@pytest.mark.parametrize("site", ["delta", "B", "u"])
def test_scores_of_mamba3_are_slopes_in_float64(name, site):
    """Decays of 1e-5 beside 1: B, what a nat of decay writes, is in the thousands, and steps of
    1e-7 are small."""
    model = make_model(name).double()
    runs = runs_of(model)
    above, below = (patched_values(model, moved(runs, s), site) for s in (1e-7, -1e-7))
    slope = (above - below) / 2e-7
    gradients = gradients_of(model, runs, "denoising", states=False)
    found = node_scores(model, runs, gradients, site, layers_of_site(model, site, {}), "denoising")
    assert relative_error(found, slope) <= 1e-6  # the step's square and float64 over the step


def test_the_gradient_of_a_state_is_that_of_what_is_read_from_it(model, runs, gradients):
    layer = max(find_mixers(model))
    stages = {k: v.double() for k, v in runs.corrupt.stages[layer].items()}
    for token in (0, 6):
        parts = scan_parts(stages, start=token + 1)
        heads, width = parts["u"].shape[2:]
        state = torch.randn(2, heads, width, parts["B"].shape[3]).double().requires_grad_()
        y = reference.scan(**parts, initial_state=state)[0].flatten(2)
        of_y = gradients.stages[layer]["y"][:, token + 1 :].double()
        (expected,) = torch.autograd.grad((y * of_y).sum(), state)
        found = gradients.states[layer][:, token]
        assert relative_error(found, expected.flatten(1, 2)) <= FLOAT32
    assert not bool(gradients.states[layer][:, -1].any())


def test_edges_of_a_writer_sum_to_its_node_and_maps_to_y(model, runs, gradients):
    edges = edge_scores(runs, gradients, "denoising")
    embedding = node_scores(model, runs, gradients, "residual", [0], "denoising")[:, 0]
    assert relative_error(edges[:, 0].sum(1), embedding) <= FLOAT32
    maps = token_maps(runs, gradients, "denoising")
    for layer in find_mixers(model):
        mixer = find_mixers(model)[layer].mixer
        stages = [run.stages[layer] for run in (runs.clean, runs.corrupt)]
        skip = (
            mixer.D.detach().flatten().repeat_interleave(stages[0]["u"].shape[2] // mixer.D.numel())
        )
        passed = skip * (stages[0]["u"] - stages[1]["u"]) * gradients.stages[layer]["y"]
        of_y = node_scores(model, runs, gradients, "y", [layer], "denoising")[:, 0]
        # In a Mamba-3 of several ranks what multiplies u beside alpha changes with the gates.
        if not (layer in runs.clean.turns and runs.clean.turns[layer].halves):
            assert relative_error(maps[layer].sum(2) + passed.sum(2), of_y) <= FLOAT32
        assert not bool(maps[layer].triu(1).any())
        mixers = node_scores(model, runs, gradients, "mixer", [layer], "denoising")[:, 0]
        neurons = neuron_scores(runs, gradients, "denoising")[layer]
        assert relative_error(neurons.sum(1), mixers.sum(1)) <= FLOAT32


def test_integrated_over_the_path_the_embeddings_give_the_whole_effect():
    """Completeness of integrated gradients; the midpoint rule's error falls as 1 / steps^2."""
    model = make_model("mamba")
    runs = runs_of(model)
    apart = runs.clean_value - runs.corrupt_value
    for direction, sign in (("denoising", 1.0), ("noising", -1.0)):
        gradients = gradients_of(model, runs, direction, 48, states=False)
        found = node_scores(model, runs, gradients, "residual", [0], direction)[:, 0].sum(1)
        assert relative_error(found, sign * apart) <= 2e-2
        assert gradients.states == {}


def test_edges_name_the_planted_circuit():
    """Embedding -> layer 0 -> layer 1 -> logits carries all; AUROC of |score| is 1."""
    model = two_layers(passes=True)
    pairs = text_pairs(model, None, torch.tensor([[1, 3, 3, 3]]), torch.tensor([[2, 3, 3, 3]]),
                       (2, 3))  # fmt: skip
    runs = pair_runs(model, pairs, "logit_difference", 1)
    gradients = gradients_of(model, runs, "denoising", 8)
    scores = edge_scores(runs, gradients, "denoising").sum(3)[0].abs()
    planted = {(0, 0), (1, 1), (2, 2)}
    others = [float(scores[i, j]) for i in range(3) for j in range(i, 3) if (i, j) not in planted]
    assert min(float(scores[edge]) for edge in planted) > 100 * max(others)
    neurons = neuron_scores(runs, gradients, "denoising")
    assert [int(neurons[layer][0].abs().argmax()) for layer in (0, 1)] == [1, 1]
    maps = token_maps(runs, gradients, "denoising")
    assert divmod(int(maps[0][0].abs().argmax()), 4) == (3, 0)

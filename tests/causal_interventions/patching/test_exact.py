"""Exact patching against patches made one at a time by another route, for every family."""

import pytest
import torch
from hand_weighted import two_layers
from patching_cases import naive_logits, pairs_of, random_pairs, runs_of

from benchmarks.family_models import ALL_MODELS, make_model, ssm_layers
from causal_interventions.patching import exact
from causal_interventions.patching.exact import pair_runs, patched_values
from causal_interventions.patching.pairs import text_pairs
from causal_interventions.patching.sites import DEFAULT_SITES, layers_of_site, sites_at_hand
from mamba_mixers.running import fast_scan, forward_from

# Rounding of float32 over a few layers, in logits of order 10.
CLOSE = 2e-4


@pytest.fixture(scope="module", params=ALL_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return make_model(name)


@pytest.fixture(scope="module")
def runs(model):
    return runs_of(model)


@pytest.mark.parametrize("site", DEFAULT_SITES)
def test_every_site_of_every_family_is_patched_exactly(model, runs, site, name, monkeypatch):
    monkeypatch.setattr(exact, "TOKENS_AT_LEAST", 1)  # every row from its own token on
    if site not in sites_at_hand(model):
        with pytest.raises(ValueError, match="'window' is that of a convolution, which a Mamba-3"):
            patched_values(model, runs, site)
        return
    found = patched_values(model, runs, site)
    layers = layers_of_site(model, site, {})
    assert site == "residual" or layers == ssm_layers(name)
    # Some place of every site does something.
    assert float((found - runs.corrupt_value[:, None, None]).abs().max()) > 1e-3
    for layer, text, token in ((layers[0], 0, 5), (layers[-1], 1, 7)):
        logits = naive_logits(model, runs, site, layer, text, token)
        expected = runs.value(logits[None], torch.tensor([text]))
        assert abs(float(found[text, layers.index(layer), token] - expected)) <= CLOSE


@pytest.fixture(scope="module")
def small():
    return make_model("mamba")


def test_noising_is_denoising_of_the_twins(small):
    clean, corrupt, answers = random_pairs()
    forth = pair_runs(small, text_pairs(small, None, clean, corrupt, answers), "log_probability", 1)
    back = pair_runs(small, text_pairs(small, None, corrupt, clean, answers), "log_probability", 1)
    for site in ("state", "u"):
        noised = patched_values(small, forth, site, direction="noising")
        assert torch.equal(noised, patched_values(small, back, site))


def test_the_residual_stream_at_the_last_token_is_all_that_the_logits_read(small):
    model = small
    runs = runs_of(model)
    found = patched_values(model, runs, "residual")
    # Before layer 0 a text is its embeddings: every token of the clean text, one at a time.
    assert torch.equal(found[:, :, :2], runs.corrupt_value[:, None, None].expand(-1, 2, 2))
    whole = pair_runs(model, pairs_of(model), "kl", 1)
    assert torch.equal(whole.clean_value, torch.zeros(2).double())
    assert bool((whole.corrupt_value < 0).all())


def test_values_of_another_pair_are_those_of_its_run(small):
    runs = runs_of(small)
    found = patched_values(small, runs, "mixer", order=[1, 0])
    clean, _, _ = random_pairs()
    swapped = text_pairs(small, None, clean.flip(0), runs.corrupt.input_ids, runs.answers.tokens)
    expected = patched_values(small, pair_runs(small, swapped, "logit_difference", 1), "mixer")
    # Batches of other rows round otherwise.
    assert float((found - expected).abs().max()) <= CLOSE


def test_rows_at_once_change_nothing_but_rounding(small, monkeypatch):
    runs = runs_of(small)
    whole = patched_values(small, runs, "state")
    monkeypatch.setattr(exact, "TOKENS_PER_PASS", 1)
    assert float((patched_values(small, runs, "state") - whole).abs().max()) <= CLOSE


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", ["mamba", "mamba2", "mamba3", "mamba3 of ranks"])
def test_rows_begun_at_their_token_are_those_begun_at_the_first(family, direction, monkeypatch):
    """Of a prediction in the middle: what is patched after it changes nothing."""
    model = make_model(family)
    runs = runs_of(model, back=3)
    length = runs.clean.input_ids.shape[1]
    for site in sites_at_hand(model):
        with monkeypatch.context() as patch:
            patch.setattr(exact, "remembers_in_mixers_alone", lambda model: False)
            whole = patched_values(model, runs, site, direction=direction)
        with monkeypatch.context() as patch:
            patch.setattr(exact, "TOKENS_AT_LEAST", 1)
            found = patched_values(model, runs, site, direction=direction)
        assert float((found - whole).abs().max()) <= CLOSE
        unchanged = runs.corrupt_value if direction == "denoising" else runs.clean_value
        assert bool((found[:, :, length - 2 :] == unchanged[:, None, None]).all())


def test_rows_are_begun_together_where_their_tokens_are_near(monkeypatch):
    tokens = torch.tensor([5, 0, 7, 1, 0, 6, 2])
    monkeypatch.setattr(exact, "SPANS", 4)
    monkeypatch.setattr(exact, "TOKENS_AT_LEAST", 1)
    found = [(start, rows.tolist()) for start, rows in exact._by_start(tokens, 8)]
    assert found == [(0, [1, 3, 4]), (2, [6]), (5, [0, 5]), (7, [2])]
    monkeypatch.setattr(exact, "TOKENS_AT_LEAST", 1000)
    assert [start for start, _ in exact._by_start(tokens, 8)] == [0]
    monkeypatch.setattr(exact, "TOKENS_PER_PASS", 16)
    assert [len(rows) for _, rows in exact._by_start(tokens, 8)] == [2, 2, 3]


def test_all_neurons_are_the_mixer(small):
    runs = runs_of(small)
    every = {layer: list(range(64)) for layer in (0, 1)}
    found = patched_values(small, runs, "neurons", neurons=every)
    assert torch.equal(found, patched_values(small, runs, "mixer"))
    some = patched_values(small, runs, "neurons", neurons={1: [3, 5]})
    assert some.shape == (2, 1, 9)


def test_a_text_shifted_by_one_token_is_patched_along_the_alignment(small):
    """The clean text has one token more in front; the alignment names where each token went."""
    generator = torch.Generator().manual_seed(1)
    corrupt = torch.randint(1, 64, (8,), generator=generator)
    clean = torch.cat([torch.tensor([9]), corrupt])
    clean[4] = 50
    aligned = [-1, *range(2, 9)]
    pairs = text_pairs(small, None, clean, corrupt, (3, 9), aligned)
    runs = pair_runs(small, pairs, "logit_difference", 1)
    for site in ("u", "state", "window", "residual"):
        found = patched_values(small, runs, site)
        assert bool(found[:, :, 0].isnan().all())
        assert bool(found[:, :, 1:].isfinite().all())
    last = patched_values(small, runs, "residual")[0, 1, -1]
    stream = runs.clean.streams[1][:, -1:]
    # The clean text's last stream, in the place of the corrupt one's, by hand.
    by_hand = runs.corrupt.streams[1].clone()
    by_hand[:, -1:] = stream
    with torch.no_grad(), fast_scan(small):
        logits = forward_from(small, 1, by_hand, runs.corrupt.input_ids)[:, -1]
    assert abs(float(last - runs.value(logits, torch.tensor([0])))) <= CLOSE


@pytest.mark.parametrize("passes", [True, False])
def test_patching_names_the_planted_site(passes):
    """Layer 0 remembers token 1; layer 1 hands its feature on to the logit of token 2, or not."""
    model = two_layers(passes=passes)
    clean, corrupt = torch.tensor([[1, 3, 3, 3]]), torch.tensor([[2, 3, 3, 3]])
    if not passes:
        clean, corrupt = torch.tensor([[3, 3, 3, 2]]), torch.tensor([[3, 3, 3, 1]])
    pairs = text_pairs(model, None, clean, corrupt, (2, 3))
    runs = pair_runs(model, pairs, "logit_difference", 1)
    apart = float(runs.clean_value - runs.corrupt_value)
    assert apart > 0.5
    effect = {
        site: (patched_values(model, runs, site)[0] - runs.corrupt_value) / apart
        for site in ("state", "mixer", "window", "residual")
    }
    assert float(effect["window"].abs().max()) <= 1e-6
    state = torch.zeros(2, 4).double()
    mixer = torch.zeros(2, 4).double()
    mixer[1, 3] = 1.0
    if passes:
        state[0, :3] = 1.0
        mixer[0, 3] = 1.0
    # Features beside a constant of 1000 are rounded to 1e-3 of themselves by float32 norms.
    assert float((effect["state"] - state).abs().max()) <= 2e-3
    assert float((effect["mixer"] - mixer).abs().max()) <= 2e-3

"""Every analysis of the suite on Mamba-3, SISO and MIMO, against the loop from its equations."""

import math
from typing import Any

import pytest
import reference
import torch
from conftest import make_tiny_tokenizer
from corpus_cases import made_texts
from mamba3_cases import make_mamba3, twin_of
from torch import Tensor

from analysis_pipelines.overview import text_facts
from attention_neurons import layer_parameters
from causal_interventions.explained import explain
from causal_interventions.interventions import (
    hide_source,
    patch_state,
    reset_state,
    scale_delta,
    state_after,
)
from causal_interventions.logit_parts import logit_parts
from causal_interventions.steering_vectors import SITES
from causal_interventions.targets import resolve_target
from corpus_analysis import RESULTS_NAME
from corpus_analysis import main as analyse_corpus
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from input_attribution import ATTRIBUTION_METHODS, attribute
from long_memory import read_through
from mamba_mixers.recording import record_layers
from mamba_mixers.replay import EDITABLE, LRP, replay_mixer
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import find_mixers
from mamba_mixers.untrained_twins import untrained_twin
from mamba_mixers.weights import (
    bias_parameters,
    input_embeddings,
    logit_directions,
    mixer_parameters,
)
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from selective_scan.attention import implicit_attention
from ssm_component_extractor import capture, recursive_dynamics
from ssm_measures.attention_maps import contribution_map, head_maps, kernel_of, mean_map
from ssm_measures.full_mixer_maps import full_mixer_head_maps, full_mixer_map, full_mixer_row
from ssm_measures.layer_overview import layer_text
from steering import Steering
from suite_plumbing.result_reading import load_results
from token_statistics.description import relative_error
from token_statistics.twin_bounds import TWIN_KINDS

KINDS = ("siso", "siso normed", "mimo", "mimo, all turning, heavy tail", "mimo normed, with MLPs")

FLOAT32, FLOAT64 = 1e-5, 1e-10

unnormed = pytest.mark.parametrize("kind", KINDS[:-1], scope="module")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return make_mamba3(kind).double()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, 64, (1, 19), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captured(model, ids):
    return capture(model, ids, None, [0, 1])


@pytest.fixture(scope="module")
def parts(captured) -> Any:
    return captured.components[1]


@pytest.fixture(scope="module")
def site(model) -> Any:
    return find_mixers(model)[1]


@pytest.fixture(scope="module")
def x() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(1, 19, 12, generator=draw, dtype=torch.float64)


@pytest.fixture(scope="module")
def twin(model, site, captured) -> dict[str, Tensor]:
    block = site.block
    with torch.no_grad():
        return twin_of(site.mixer, block.norm(captured.block_inputs[1]))


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_the_quantities_are_those_of_the_equations(model, parts, twin):
    """delta is the decay, delta B what is written; the rest of a write is for the next token."""
    assert parts.replay_error <= FLOAT64
    width = parts.u.shape[2] // twin["decay"].shape[2]
    of_heads = parts.head_width
    channels = 1 if of_heads == width else width
    decay = twin["decay"].repeat_interleave(channels, 2)
    assert relative_error(parts.delta, decay) <= FLOAT64
    assert bool((parts.A == -1).all())
    own = twin["lam"] * twin["dt"]
    ahead = torch.zeros_like(own)
    ahead[:, :-1] = ((1 - twin["lam"]) * twin["dt"])[:, 1:]
    assert relative_error(parts.write, own + ahead) <= FLOAT64
    share = (own / (own + ahead)).repeat_interleave(channels, 2)
    assert relative_error(parts.own_share, share) <= FLOAT64
    assert relative_error(parts.hidden_states, twin["h"].flatten(2, 3)) <= FLOAT64
    assert relative_error(parts.gated, twin["gated"]) <= FLOAT64
    assert relative_error(parts.gated, parts.y * parts.gating) <= FLOAT64
    assert relative_error(parts.mixer_output, twin["output"]) <= FLOAT64


def test_attention_times_u_and_the_skip_give_the_output(parts):
    alpha = implicit_attention(**kernel_of(parts))
    u = parts.u.unflatten(2, (alpha.shape[1], -1))
    y = torch.einsum("bhts,bshp->bthp", alpha, u).flatten(2) + parts.channel_skip * parts.u
    assert relative_error(y, parts.y) <= FLOAT64
    assert relative_error(head_maps(parts), alpha) <= FLOAT64
    assert relative_error(mean_map(parts), alpha.mean(1)) <= FLOAT64
    gradient = torch.randn(parts.y.shape, generator=torch.Generator().manual_seed(2)).double()
    rows = contribution_map(parts, gradient).sum(-1)
    expected = (gradient * (parts.y - parts.channel_skip * parts.u)).sum(-1)
    assert relative_error(rows, expected) <= FLOAT64
    if parts.skip is None:
        assert torch.equal(parts.channel_skip, parts.D.repeat_interleave(parts.head_width))


def test_the_full_mixer_map_is_attention_the_skip_and_the_gate(model, captured):
    """No convolution stands in front: the map is of u."""
    parts, weights = captured.components[0], layer_parameters(model, [0])[0]
    assert weights.conv_weight is None
    found = full_mixer_map(parts, weights, query_weight=parts.gated, key_weight=parts.conv_input)
    assert relative_error(found.tokens.sum(-1), parts.gated.square().sum(-1)) <= FLOAT64
    assert not bool(found.bias.any())
    heads = full_mixer_head_maps(parts, weights, [0, 5])
    applied = torch.einsum("bhts,bsh->bth", heads.tokens, parts.u[..., [0, 5]])
    assert relative_error(applied, parts.gated[..., [0, 5]]) <= FLOAT64
    row = full_mixer_row(parts, weights, -1, query_weight=parts.gated, key_weight=parts.conv_input)
    assert relative_error(row.tokens, found.tokens[:, -1]) <= FLOAT64


def test_what_the_mixer_writes_is_what_its_neurons_write(site, parts):
    weights = mixer_parameters(site)
    written = reference.linear(parts.gated.double(), weights.out_weight, weights.out_bias)
    assert relative_error(parts.written, written) <= FLOAT64


def test_states_turned_back_are_read_by_what_has_not_turned(parts, twin):
    """c h in the turned frame is the same as in each token's own."""
    h = parts.unrotated_states
    assert relative_error(h.norm(dim=-1), parts.hidden_states.norm(dim=-1)) <= FLOAT64
    h = h.unflatten(2, twin["h"].shape[2:4])
    theta, halves = twin["theta"], parts.turns_halves
    c = twin["c"]
    plain = torch.stack(
        [reference._turned(c[:, t], -theta[:, t], halves=halves) for t in range(c.shape[1])], 1
    )
    read = torch.einsum("blhpn,blhrn->blhrp", h, plain)
    expected = torch.einsum("blhpn,blhrn->blhrp", twin["h"], c)
    assert relative_error(read, expected) <= FLOAT64
    dynamics = recursive_dynamics(parts)
    steps = (parts.unrotated_states[:, 1:] - parts.unrotated_states[:, :-1]).flatten(2).norm(dim=2)
    assert relative_error(parts.states.step[:, 1:], steps) <= FLOAT64
    assert dynamics.is_stable
    assert relative_error(dynamics.state_norm, twin["h"].flatten(2).norm(dim=2)) <= FLOAT64


def test_float32_and_padding(kind, ids):
    model = make_mamba3(kind)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(23) >= 4).long()[None]
    records = record_layers(model, [0, 1], padded, mask)
    alone = record_layers(model, [0, 1], ids)
    for layer, record in records.items():
        assert float(record.replay_error.max()) <= FLOAT32
        for stage in ("u", "delta", "B", "C", "y", "gated", "output", "own_share"):
            found = getattr(record.replay, stage)[:, 4:]
            assert relative_error(found, getattr(alone[layer].replay, stage)) <= FLOAT32, stage


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, ids, dtype):
    for record in record_layers(make_mamba3(kind).to(dtype), [0], ids).values():
        assert float(record.replay_error.max()) <= 1e-2
        assert record.replay.y.dtype == torch.float32


def test_a_replayed_mixer_reads_a_text_in_chunks(site, x):
    with torch.no_grad():
        whole, memory, outputs = replay_mixer(site, x), None, []
        for chunk in x.split([1, 5, 2, 11], dim=1):
            replay = replay_mixer(site, chunk, memory=memory)
            memory = replay.memory
            outputs.append(replay.output)
    assert relative_error(torch.cat(outputs, 1), whole.output) <= FLOAT64
    assert memory is not None
    assert relative_error(memory.state, whole.memory.state) <= FLOAT64


def test_the_suites_scan_gives_the_models_logits_and_gradients(model, ids):
    def run() -> tuple[Tensor, Tensor]:
        embedded = input_embeddings(model, ids).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        target = logits.log_softmax(-1)[0, -1, 3]
        return logits.detach(), torch.autograd.grad(target, embedded)[0]

    logits, gradient = run()
    with fast_scan(model):
        found, by_scan = run()
    assert relative_error(found, logits) <= FLOAT64
    assert relative_error(by_scan, gradient) <= FLOAT64


@torch.no_grad()
def test_a_reset_starts_the_text_anew(site, x):
    """Nothing before is left, the share that a token writes of the one before included."""
    edit = reset_state(6, 1)[1]
    cut = replay_mixer(site, x, edit=edit)
    assert relative_error(cut.output[:, :6], replay_mixer(site, x[:, :6]).output) <= FLOAT64
    assert relative_error(cut.output[:, 6:], replay_mixer(site, x[:, 6:]).output) <= FLOAT64


@torch.no_grad()
def test_what_a_norm_of_ranks_would_follow_is_refused():
    site = find_mixers(make_mamba3("mimo normed, with MLPs"))[1]
    x = torch.zeros(1, 19, 12)
    edit = patch_state(1, 7, torch.zeros(24, 10))[1]
    with pytest.raises(ValueError, match="patch_state would hold the norms of a Mamba-3's ranks"):
        replay_mixer(site, x, edit=edit)


@torch.no_grad()
def test_hiding_a_source_takes_out_its_attention(site, x):
    plain = replay_mixer(site, x)
    alpha = implicit_attention(**kernel_of(plain))
    heads = alpha.shape[1]
    given = alpha[:, :, :, 4].mT.unsqueeze(-1) * plain.u[:, 4].view(1, 1, heads, -1)
    given = given.flatten(2)
    later = torch.arange(19) > 4
    hidden = replay_mixer(site, x, edit=hide_source(4, 1)[1])
    expected = plain.y - given * later[:, None]
    assert relative_error(hidden.y, expected) <= FLOAT64
    itself = replay_mixer(site, x, edit=hide_source(4, 1, query=4)[1])
    assert relative_error(itself.y[:, 4], (plain.y - given)[:, 4]) <= FLOAT64
    assert torch.equal(itself.y[:, 5:], plain.y[:, 5:])


@torch.no_grad()
@unnormed
def test_a_state_of_its_own_put_in_place_changes_nothing(model, ids, captured):
    plain = logits_of(model, ids)
    state = state_after(captured.components[1], 7)
    with fast_scan(model, edits=patch_state(1, 7, state)):
        assert relative_error(logits_of(model, ids), plain) <= FLOAT64
    with fast_scan(model, edits=patch_state(1, 7, torch.zeros_like(state))):
        patched = logits_of(model, ids)
    with fast_scan(model, edits=reset_state(8, 1)):
        assert relative_error(logits_of(model, ids), patched) <= FLOAT64


@pytest.mark.parametrize("stage", ["u", "A", "B", "C", "delta", "own_share", "y", "gated"])
def test_an_edit_of_any_stage_reaches_what_follows_it(site, x, stage):
    def halve(name: str, value: Tensor) -> Tensor:
        return value / 2 if name == stage else value

    with torch.no_grad():
        plain, edited = replay_mixer(site, x), replay_mixer(site, x, edit=halve)
    names = ("u", "A", "B", "C", "delta", "own_share")
    values = {name: getattr(plain, name) for name in names}
    values |= {stage: values[stage] / 2} if stage in values else {}
    if stage != "C" and plain.skip is not None:
        values["C"] = edited.C  # a norm of the ranks follows what they read
    heads = plain.delta.shape[2]
    values["u"] = values["u"].unflatten(2, (heads, -1))
    y = reference.trapezoid_scan(**values, D=torch.zeros(heads))[0].flatten(2)
    skip = plain.D.repeat_interleave(y.shape[2] // heads) if plain.skip is None else edited.skip
    y = (y + skip * values["u"].flatten(2)) / (2 if stage == "y" else 1)
    assert relative_error(edited.y, y) <= FLOAT64
    if stage == "gated":
        assert torch.equal(edited.gated, plain.gated / 2)


def test_every_stage_of_the_suite_but_the_convolution_is_called(site, x):
    seen: list[str] = []

    def note(name: str, value: Tensor) -> Tensor:
        seen.append(name)
        return value

    with torch.no_grad():
        replay_mixer(site, x, edit=note)
    assert {*EDITABLE} - {"convolved"} == {*seen} - {"own_share", "rank_scale"}


@torch.no_grad()
def test_generation_goes_on_by_memory_under_edits(model, ids):
    plain = model.generate(ids, 6)
    with fast_scan(model):
        assert torch.equal(model.generate(ids, 6), plain)
    edits = scale_delta(0.5, [0, 1])
    with fast_scan(model, edits=edits):
        found, expected = model.generate(ids, 6), ids
        for _ in range(6):
            last = logits_of(model, expected)[:, -1:].argmax(-1)
            expected = torch.cat([expected, last], 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["siso", "mimo"])
@pytest.mark.parametrize("place", SITES)
@torch.no_grad()
def test_a_steered_generation_by_memory_is_that_of_reading_again(kind, place):
    tokenizer, ids = make_tiny_tokenizer(), torch.arange(1, 8)[None]
    steering = Steering(make_mamba3(kind), tokenizer=tokenizer)
    vector = steering.vector("the net held", "one two three", 1, place)
    model: Any = steering.model
    plain = model.generate(ids, 6)
    with steering.apply(vector, 5.0):
        found, expected = model.generate(ids, 6), ids
        for _ in range(6):
            last = logits_of(model, expected)[:, -1:].argmax(-1)
            expected = torch.cat([expected, last], 1)
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(ids, 6), plain)


def test_the_state_under_a_norm_of_ranks_is_not_steered():
    steering = Steering(make_mamba3("mimo normed, with MLPs"), tokenizer=make_tiny_tokenizer())
    with pytest.raises(ValueError, match="'state' of a Mamba-3 with a norm on each rank's output"):
        steering.vector("the net held", "one two three", 1, "state")


def test_a_forward_from_a_block_and_directions_of_logits(model, ids, captured):
    whole = logits_of(model, ids)
    with torch.no_grad():
        entered = forward_from(model, 1, captured.block_inputs[1].double())
    assert relative_error(entered, whole) <= FLOAT64
    x = captured.block_outputs[1].double()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    assert relative_error(whole, normed @ logit_directions(model).double().mT) <= FLOAT64


def test_parts_of_a_logit_sum_to_it(model, ids):
    found = logit_parts(model, ids, 7, 30)
    within = FLOAT64 * found.largest_logit
    assert abs(sum(part.value for part in found.parts) - found.logit) < within
    stock = logits_of(model, ids)[0, -1]
    assert abs(float(stock[7] - stock[30]) - found.logit) < within


@pytest.mark.parametrize("method", sorted(ATTRIBUTION_METHODS))
def test_every_attribution_method_gives_finite_scores(model, ids, method):
    explained = explain(model, ids[0, :9], resolve_target("logit"), num_steps=4)
    found = attribute(explained, method)
    assert bool(torch.isfinite(torch.as_tensor(found.scores)).all())


@pytest.mark.parametrize("kind", ["siso", "mimo"])
def test_relevance_is_conserved_where_all_layers_are_mixers(kind):
    model, ids = make_mamba3(kind).double(), torch.arange(1, 13)[None]
    x = input_embeddings(model, ids).detach().requires_grad_()
    assert set(bias_parameters(model)) == {
        f"backbone.layers.{layer}.mixer.{name}_bias"
        for layer in range(2)
        for name in ("B", "C", "dt")
    }
    with fast_scan(model, rules=LRP):
        f = model(inputs_embeds=x, use_cache=False).logits[0, -1, 3]
        (gradient,) = torch.autograd.grad(f, x)
    # No constant is added anywhere: sum of embedding times gradient is f.
    assert float((x * gradient).sum().detach()) == pytest.approx(float(f.detach()), rel=1e-9)


@pytest.mark.parametrize(("activation", "rate"), [("softplus", math.log(2)), ("heavy_tail", 1.0)])
@pytest.mark.parametrize("kind", ["siso", "mimo"])
def test_a_planted_half_life_is_found(kind, activation, rate):
    """dt is 1 / 40 in every head and dd_A 0, so that half is left after 40 ln 2 / rate tokens."""
    model = make_mamba3(kind, a_activation=activation).double()
    mixer = model.backbone.layers[0].mixer
    heads, angles = len(mixer.dt_bias), mixer.num_rope_angles
    with torch.no_grad():
        mixer.in_proj.weight[-3 * heads - angles : -heads - angles] = 0.0
        mixer.dt_bias.fill_(math.log(math.expm1(1 / 40)))
    ids = torch.randint(1, 64, (1, 90), generator=torch.Generator().manual_seed(1))
    parts = capture(model, ids, None, [0]).components[0]
    expected = 40 * math.log(2) / rate
    found = recursive_dynamics(parts).half_life
    assert found.flatten().tolist() == pytest.approx([expected] * len(found), rel=1e-3)
    # What one token wrote, read off the states of the model with and without it.
    site = find_mixers(model)[0]
    x = torch.zeros(1, 90, 12, dtype=torch.float64)
    x[:, 3] = 1.0
    with torch.no_grad():
        replay = replay_mixer(site, x)
        alpha = implicit_attention(**kernel_of(replay))
        after = replay_mixer(site, x[:, :10]).memory.state, replay_mixer(site, x).memory.state
    fallen = float((after[1].norm() / after[0].norm()).log())
    assert -math.log(2) * 80 / fallen == pytest.approx(expected, rel=1e-3)
    assert alpha.shape[-1] == 90


def test_twins_of_both_kinds_are_models_of_other_weights(model, ids):
    for twin_kind in TWIN_KINDS:
        twin = untrained_twin(model, 1, twin_kind)
        assert relative_error(logits_of(twin, ids), logits_of(model, ids)) > 0.1
        assert float(capture(twin, ids, None, [0]).components[0].replay_error) <= FLOAT64


def test_a_book_is_read_through_with_the_norms_of_its_states(model, ids, captured):
    reading = read_through(model, ids[0], chunk_size=19, layers=[1])
    norms = captured.components[1].hidden_states[0].flatten(1).norm(dim=1).mean()
    assert float(reading.layers[1].state_norm[0]) == pytest.approx(float(norms), rel=1e-6)
    parts = read_through(model, ids[0], chunk_size=7, layers=[1])
    assert relative_error(parts.loss, reading.loss) <= FLOAT32


def test_the_overviews_row_of_a_layer(site, x):
    with torch.no_grad():
        row = layer_text(replay_mixer(site, x), 4)
    assert 0 < row.half_life < math.inf
    assert row.self_share + row.recent_share > 0
    facts = text_facts(make_mamba3(), list(range(1, 61)), ["a"] * 60, 4)
    assert facts.layers


TEXTS = ["the net held, and the net", "one two three, one two"]


@pytest.mark.parametrize("kind", ["siso", "mimo normed, with MLPs"])
def test_all_eight_steps_and_the_memory_analysis_run(kind):
    model, tokenizer = make_mamba3(kind), make_tiny_tokenizer()
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, tokenizer=tokenizer)
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 1])
    assert results["self_check"]["without_result"] == {}
    assert results["self_check"]["replay_agrees"]
    memory = MemoryRecursionNeuronAnalyzer(
        model, tokenizer=tokenizer, num_positions=2, num_ablations=3
    )
    found = memory.analyze_memory_recursion_effects(TEXTS, [0, 1])
    assert found["self_check"]["without_result"] == {}


@pytest.mark.parametrize("kind", ["siso", "mimo"])
def test_a_corpus_is_read_with_the_half_lives_of_the_texts(kind, tmp_path):
    model, texts = make_mamba3(kind), made_texts(4)
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    given = ["--model", str(tmp_path / "model"), "--texts-file", str(tmp_path / "texts.txt"),
             "--maps-every", "1", "--importance-every", "2", "--layers", "0",
             "--output-dir", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert analyse_corpus(given) == 0
    results, _ = load_results(tmp_path / "out" / RESULTS_NAME)
    assert results["self_check"]["replay_agrees"]
    found = results["layers"]["layer_0"]
    ids = [torch.tensor([make_tiny_tokenizer()(text).input_ids]) for text in texts]
    read = [capture(model, text, None, [0]).components[0] for text in ids]
    mean = torch.cat([parts.delta[0] for parts in read]).double().mean(0)
    # Six digits are kept, of means over float32 sums.
    assert found["half_life"]["mean"] == pytest.approx(float((math.log(2) / mean).mean()), rel=1e-4)
    norms = torch.cat([parts.states.norm[0] for parts in read])
    assert found["maps"]["state_norm"] == pytest.approx(float(norms.mean()), rel=1e-4)

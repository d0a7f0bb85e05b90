"""The same numbers under odd circumstances: modes and dtypes of torch, a model's own settings."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer
from mixer_cases import logits_of

from attention_neurons import MambaAttentionNeurons, layer_parameters
from causal_interventions.effects import intervention_effects
from causal_interventions.interventions import reset_state, scale_delta, set_neuron
from causal_interventions.neuron_effects import ablation_effects
from causal_interventions.passing import passing
from causal_interventions.targets import resolve_target
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from delta_extraction import DeltaExtractor
from input_attribution import ATTRIBUTION_METHODS, attribute, explain
from intervention_study import causal_memory_curve
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import UnsupportedModelError
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.components import extracted_layer
from ssm_measures.full_mixer_maps import full_mixer_map
from ssm_measures.tokens_to_half import tokens_to_half
from suite_plumbing.precision import default_dtype

IDS = torch.arange(2, 20)[None]
# Long enough for the overview to read on after a reset.
TEXTS = ["the net held, and the net was held by the man. " * 3, "one two three, one two"]
LOGIT = resolve_target("logit")


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_scores_inside_inference_mode(method):
    model = make_tiny_model()
    expected = attribute(explain(model, IDS, LOGIT), method).scores
    with torch.inference_mode():
        found = attribute(explain(model, IDS.clone(), LOGIT), method).scores
    assert torch.equal(found, expected)


def test_maps_under_autocast():
    model = make_tiny_model()
    parts = capture(model, IDS, None, [1]).components[1]
    weights = layer_parameters(model, [1])[1]
    expected = mean_map(parts), full_mixer_map(parts, weights).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mean_map(parts), full_mixer_map(parts, weights).tokens
        score = attribute(explain(model, IDS, LOGIT), "mamba_lrp").scores
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(score, attribute(explain(model, IDS, LOGIT), "mamba_lrp").scores)


def delta_means(model: Any) -> list[float]:
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, tokenizer=make_tiny_tokenizer())
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS)
    assert results["self_check"]["without_result"] == {}
    texts = results["individual_texts"].values()
    return [one["analysis"]["ssm_components"]["layer_1"]["delta"]["mean"] for one in texts]


def test_the_analysis_with_another_default_dtype_or_without_return_dict():
    expected = delta_means(make_tiny_model())
    model = make_tiny_model()
    model.config.return_dict = False
    assert delta_means(model) == expected
    model = make_tiny_model()
    with default_dtype(torch.float64):
        assert delta_means(model) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_analysed_whole(dtype):
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        make_tiny_model().to(dtype), tokenizer=make_tiny_tokenizer()
    )
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [1])
    assert results["self_check"]["without_result"] == {}


def test_a_backbone_is_refused_where_logits_are_explained():
    with pytest.raises(UnsupportedModelError, match="has no logits; load it with AutoModelForC"):
        explain(make_tiny_model().backbone, IDS, LOGIT)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_ids_of_any_integer_dtype(dtype):
    model, ids = make_tiny_model(), IDS[0].numpy()
    narrow: Any = ids.astype(dtype)
    assert explain(model, narrow, LOGIT).f == explain(model, IDS[0], LOGIT).f


@pytest.mark.parametrize("number", [np.int64, np.array, torch.tensor])
def test_layers_of_any_kind_of_whole_number(number):
    model = make_tiny_model()
    captured = capture(model, IDS, None, [number(0), number(-1)])
    numpy_layers: Any = np.array([0, 3])
    assert list(captured.components) == [0, 3]
    assert list(layer_parameters(model, [number(1)])) == [1]
    streams = forward_from(model, number(1), captured.block_outputs[0])
    torch.testing.assert_close(streams, logits_of(model, IDS), rtol=1e-4, atol=1e-5)  # float32
    moved = intervention_effects(model, captured, scale_delta(number(2), [number(0)])).kl
    assert torch.equal(moved, intervention_effects(model, captured, scale_delta(2, [0])).kl)
    assert passing(model, captured, *numpy_layers).cut is not None


def test_every_argument_that_counts_takes_numpys_integers():
    model = make_tiny_model()
    i: Any = np.int64
    several: Any = np.array([5, 6])
    captured = capture(model, IDS, None, [0, 1])
    target = resolve_target("logit", token=i(5), position=i(3))
    assert (target.token_id, target.position) == (5, 3)
    by_baseline = [
        attribute(explain(model, IDS[0], LOGIT, baseline=one), "occlusion").scores
        for one in (i(3), 3)
    ]
    assert torch.equal(*by_baseline)
    for intervention, plain in (
        (reset_state(several, i(1)), reset_state([5, 6], 1)),
        (set_neuron(i(1), i(3)), set_neuron(1, 3)),
    ):
        effects = [intervention_effects(model, captured, one).kl for one in (intervention, plain)]
        assert torch.equal(*effects)
    curve = causal_memory_curve(model, captured, i(1), [i(5)], i(4))
    assert torch.equal(curve.kl, causal_memory_curve(model, captured, 1, [5], 4).kl)
    ablated = ablation_effects(model, captured, i(0), several, resolve_target())
    assert torch.equal(ablated.neurons, torch.tensor([5, 6]))


def test_a_seed_or_a_count_that_is_none_is_refused():
    extractor = DeltaExtractor(make_tiny_model(), tokenizer=make_tiny_tokenizer())
    extractor.extract_deltas([0], TEXTS[0])
    nothing: Any = None
    with pytest.raises(ValueError, match="seed is None"):
        extractor.analyze_memory(0, seed=nothing)
    with pytest.raises(ValueError, match="top_k is -1"):
        extractor.find_gate_tokens(0, top_k=-1)


@pytest.mark.parametrize("layer", [1.0, True, "1", None, 4, 1 + 0j])
def test_what_is_no_layer_is_refused_before_anything_runs(layer):
    model = make_tiny_model()
    for call in (
        lambda: capture(model, IDS, None, [layer]),
        lambda: layer_parameters(model, [layer]),
        lambda: forward_from(model, layer, torch.zeros(1, 4, 32)),
        lambda: fast_scan(model, edits={layer: lambda stage, x: x}).__enter__(),
        lambda: extracted_layer({0: 1, 1: 2}, layer, "capture"),
    ):
        with pytest.raises(ValueError, match="layer"):
            call()


@pytest.mark.parametrize(
    "ids", [IDS.float(), IDS.to(torch.complex64), IDS > 3, IDS[:, :0], IDS[0], IDS.tolist()]
)
def test_what_is_no_token_id_is_not_cut_to_one(ids):
    with pytest.raises(ValueError, match="input_ids is"):
        capture(make_tiny_model(), ids, None, [0])


@pytest.mark.parametrize("model", [None, "demo_model", torch.tensor(1.5)])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match="of type .*; pass a transformers model"):
        layer_parameters(model, [0])


def test_effects_on_a_model_steered_by_a_hook():
    model, vector = make_tiny_model(), torch.randn(32, generator=torch.Generator().manual_seed(0))

    def steer(module: Any, args: Any, output: Any) -> torch.Tensor:
        return output + vector

    model.backbone.layers[1].register_forward_hook(steer)
    captured = capture(model, IDS, None, [0, 1, 2, 3])
    found = intervention_effects(model, captured, reset_state(8, [3])).kl[0]
    clean = logits_of(model, IDS)[0].double().log_softmax(-1)
    with fast_scan(model, edits=reset_state(8, [3])):
        edited = logits_of(model, IDS)[0].double().log_softmax(-1)
    expected = (clean.exp() * (clean - edited)).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-8)  # float32 logits
    assert float(expected.max()) > 1e-6


def test_padding_may_be_an_id_that_the_model_does_not_know():
    model = make_tiny_model()
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :5], mask[0, :5] = VOCAB_SIZE + 7, 0
    parts = capture(model, ids, mask, [3]).components[3].text(0)
    alone = capture(model, IDS[:, 5:], None, [3]).components[3]
    torch.testing.assert_close(parts.delta, alone.delta, rtol=1e-4, atol=1e-6)  # float32


def test_rows_of_a_padded_vocabulary_are_promoted_by_no_neuron():
    tokenizer = make_tiny_tokenizer()
    model = make_tiny_model()
    model.resize_token_embeddings(96)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(tokenizer) :] *= 100
    neurons = MambaAttentionNeurons(model, tokenizer=tokenizer)
    sets = neurons.create_mamba_neurons(neurons.extract_attention_vectors(TEXTS[0], [1]), "rollout")
    for profile in neurons.analyze_neuron_behavior(sets, 1).profiles:
        for row in [*profile.promoted, *profile.suppressed]:
            assert row["token_id"] in tokenizer.get_vocab().values()
    known = model.get_input_embeddings().weight[: len(tokenizer)].mean(0)
    explained = explain(model, IDS, LOGIT, tokenizer=tokenizer)
    torch.testing.assert_close(explained.baseline, known, rtol=1e-4, atol=1e-6)  # float32


def with_delta_of_zero(channels: slice) -> Any:
    model: Any = make_tiny_model()
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.dt_proj.bias[channels] = -1e4
            block.mixer.dt_proj.weight[channels] = 0.0
    return model


def test_a_channel_whose_delta_is_zero_leaves_the_rest_intact():
    model = with_delta_of_zero(slice(3, 4))
    delta_means(model)  # every step has a result
    extractor = DeltaExtractor(model, tokenizer=make_tiny_tokenizer())
    delta = extractor.extract_deltas([0], TEXTS[0])[0][0].double()
    assert not bool(delta[:, 3].any())
    others = torch.cat([delta[:, :3], delta[:, 4:]], 1)
    relative = (others / others.mean(0)).var(0).mean()
    memory = extractor.analyze_memory(0)
    assert memory.temporal_variance == pytest.approx(float(relative), rel=1e-6)
    logs = others.log()
    openness = ((logs - logs.mean(0)) / logs.std(0, correction=0)).mean(1)
    found = {row.position: row.openness for row in extractor.find_gate_tokens(0, top_k=99).opening}
    assert [found[t] for t in range(len(openness))] == pytest.approx(openness.tolist(), rel=1e-4)


def test_a_layer_without_any_step_has_none_and_the_reason():
    model = with_delta_of_zero(slice(None))
    extractor = DeltaExtractor(model, tokenizer=make_tiny_tokenizer())
    extractor.extract_deltas([0], [text * 4 for text in TEXTS])
    assert extractor.analyze_memory(0).temporal_variance is None
    gates = extractor.find_gate_tokens(0)
    assert gates.opening == ()
    reasons = {one.difference.reason for one in gates.by_class.values() if one.count > 1}
    assert any("exactly 0" in str(reason) for reason in reasons)
    scores = attribute(explain(model, IDS, LOGIT), "hidden_attention").scores
    assert not bool(scores.any())


def test_a_state_that_forgets_at_once_has_a_gradient():
    model: Any = make_tiny_model()
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.A_log[2, 1] = 200.0  # exp of it is infinite in float32
    scores = attribute(explain(model, IDS, LOGIT), "gradient_x_input").scores
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.A_log[2, 1] = 20.0  # forgets at once too
    expected = attribute(explain(model, IDS, LOGIT), "gradient_x_input").scores
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)  # float32


def test_whoever_reads_logits_asks_for_them_by_name():
    """A configuration may say ``return_dict: false``, and a model then answers in a tuple."""
    root = Path(__file__).resolve().parent.parent
    rooms = {path.parent for path in root.glob("*/__init__.py")}
    sources = [path for folder in (root, *rooms) for path in folder.glob("*.py")]
    bare = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
                names = {keyword.arg for keyword in node.value.keywords}
                if node.attr == "logits" and "use_cache" in names and "return_dict" not in names:
                    bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def _forgets_at_once(mixer: Any) -> None:
    mixer.A_log.fill_(200.0)  # exp of it is infinite in float32


def _forgets_nothing(mixer: Any) -> None:
    mixer.A_log.fill_(-200.0)


def _writes_nothing(mixer: Any) -> None:
    mixer.conv1d.weight.zero_()
    mixer.conv1d.bias.zero_()


def _steps_widely(mixer: Any) -> None:
    mixer.dt_proj.bias.fill_(30.0)


def _steps_nowhere(mixer: Any) -> None:
    mixer.dt_proj.bias.fill_(-1e4)
    mixer.dt_proj.weight.zero_()


@pytest.mark.parametrize(
    "change",
    [_forgets_at_once, _forgets_nothing, _writes_nothing, _steps_widely, _steps_nowhere],
)
@pytest.mark.parametrize("layers", [slice(1, 2), slice(None)])
def test_a_layer_at_a_limit_leaves_the_rest_of_the_analysis_intact(change, layers):
    """Ratios and logarithms of what is 0 or infinite there are None; every step has a result."""
    model: Any = make_tiny_model()
    with torch.no_grad():
        for block in model.backbone.layers[layers]:
            change(block.mixer)
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, tokenizer=make_tiny_tokenizer())
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [1, 2])
    assert results["self_check"]["without_result"] == {}
    rows = {row["layer"]: row for row in results["overview"]["layers"]}
    assert (
        all(rows[layer]["median_half_life"] is not None for layer in (0, 2)) or layers.stop is None
    )
    if change in (_forgets_nothing, _steps_nowhere):
        assert rows[1]["median_half_life"] is None
        said = results["overview"]["answers"][0]["sentence"]
        assert "Without a half-life: layer 1" in said or said.startswith("No layer's state forgets")
    undefined = [rows[1][name] for name in ("copying", "sink") if rows[1][name]["value"] is None]
    assert all(test["reason"] for test in undefined)
    json.dumps(results, allow_nan=False)


def test_tokens_to_half_of_a_state_of_infinite_rate_is_one():
    deltas = [np.full((9, 3), 0.1)]
    found = tokens_to_half(deltas, np.array([np.inf, 1e300, np.log(2) / 0.2]))
    assert found.tolist() == [1, 1, 2]

"""Every analysis on models of one's own: it runs, or says in a sentence why it does not."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from own_model_cases import MODELS, Mamba, MixerLM, make_own

from activation_patching import ActivationPatching
from analysis_pipelines.overview import overview
from causal_interventions.explained import explain
from causal_interventions.logit_parts import logit_parts
from causal_interventions.patching.tasks import task_pairs
from causal_interventions.targets import resolve_target
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from direct_attribution import DirectAttribution
from input_attribution import ATTRIBUTION_METHODS, attribute
from mamba_mixers import own_model
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.untrained_twins import untrained_twin
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from ssm_component_extractor import SSMComponentExtractor, capture
from steering import Steering
from suite_plumbing.texts import encode_texts
from token_statistics.description import relative_error
from token_statistics.twin_bounds import FRESH, PERMUTED

TEXTS = ["the net held, and the net", "one two three, one two"]
IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12, 1]])

NAMES = ("blocks of mamba_ssm", "both mixers, scaled", "MLPs and LayerNorms")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return own_model(make_own(name).double())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tiny_tokenizer()


def with_weights_of(stock: Any) -> MixerLM:
    """mamba_ssm's model, written out, with the weights of one of transformers'."""
    config, mixers = stock.config, []
    for block in stock.backbone.layers:
        mixer = Mamba(config.hidden_size, config.state_size, config.conv_kernel, config.expand,
                      config.time_step_rank)  # fmt: skip
        mixer.load_state_dict(block.mixer.state_dict())
        mixers.append(mixer)
    model = MixerLM(mixers, config.hidden_size, config.vocab_size)
    layers: list[Any] = list(model.layers)
    for theirs, block in zip(layers, stock.backbone.layers, strict=True):
        theirs.norm.load_state_dict(block.norm.state_dict())
    model.norm_f.load_state_dict(stock.backbone.norm_f.state_dict())
    model.embedding.load_state_dict(stock.backbone.embeddings.state_dict())
    model.lm_head.load_state_dict(stock.lm_head.state_dict())
    norms: list[Any] = [model.norm_f, *(block.norm for block in layers)]
    for norm in norms:
        norm.eps = config.layer_norm_epsilon
    return model


def test_all_quantities_are_those_of_the_transformers_model_of_the_same_weights():
    stock = make_tiny_model()
    model = own_model(with_weights_of(stock))
    both = [capture(m, IDS, None, [0, 1, 2, 3]) for m in (model, stock)]
    for layer in range(4):
        found, expected = (captured.components[layer] for captured in both)
        for name in ("u", "delta", "A", "B", "C", "D", "y", "gate", "hidden_states"):
            # float32 over up to four layers
            assert relative_error(getattr(found, name), getattr(expected, name)) <= 1e-5, name
        streams = (captured.block_outputs[layer] for captured in both)
        assert relative_error(*streams) <= 1e-5
    explained = [explain(m, IDS[0], resolve_target("logit", token=7)) for m in (model, stock)]
    scores = [attribute(e, "mamba_lrp").scores for e in explained]
    assert relative_error(*scores) <= 1e-4  # the suite's bound on gradients


def test_all_eight_steps_and_the_memory_analysis_run(name, tokenizer):
    theirs = make_own(name)
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(theirs, tokenizer=tokenizer)
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 1])
    assert results["self_check"]["replay_agrees"]
    missing = ["prediction_parts"] if "LayerNorm" in name else []
    assert list(results["self_check"]["without_result"]) == missing
    if missing:
        reason = results["self_check"]["without_result"]["prediction_parts"]["error"]
        assert "no RMS norm" in reason["message"]
    memory = MemoryRecursionNeuronAnalyzer(
        theirs, tokenizer=tokenizer, num_positions=2, num_ablations=3
    )
    found = memory.analyze_memory_recursion_effects(TEXTS, [0])
    assert found["self_check"]["without_result"] == {}


def test_the_overview_has_its_answers(model, tokenizer):
    seen = overview(model, encode_texts(tokenizer, TEXTS, 64, vocab_size=64), tokenizer)
    assert len(seen["layers"]) == 2
    assert all(answer["sentence"] for answer in seen["answers"])


def test_parts_of_a_logit_sum_to_it_or_are_refused(name, model):
    if "LayerNorm" in name:
        with pytest.raises(UnsupportedModelError, match="final norm of this model is no RMS norm"):
            DirectAttribution(model).attribute(IDS[0], 7, 30)
        return
    found = logit_parts(model, IDS, 7, 30)
    logits = model(input_ids=IDS).logits[0, -1].detach()
    within = 1e-10 * found.largest_logit  # float64
    assert abs(sum(part.value for part in found.parts) - found.logit) < within
    assert abs(float(logits[7] - logits[30]) - found.logit) < within
    assert DirectAttribution(model).attribute(IDS[0], 7, 30).logit == pytest.approx(found.logit)


@pytest.mark.parametrize("method", sorted(ATTRIBUTION_METHODS))
def test_every_attribution_method_gives_finite_scores_or_is_refused(name, model, method):
    explained = explain(model, IDS[0, :9], resolve_target("logit"), num_steps=4)
    if "LayerNorm" in name and method == "mamba_lrp":
        with pytest.raises(UnsupportedModelError, match="MambaLRP has no rule"):
            attribute(explained, method)
        return
    scores = torch.as_tensor(attribute(explained, method).scores)
    assert bool(torch.isfinite(scores).all())


def test_patching_steering_and_twins(model, tokenizer):
    task = task_pairs("recall", 6, items=3, vocabulary=16, seed=1)
    given = task.clean, task.corrupt, task.answers
    found = ActivationPatching(model).patch(*given, sites=("state", "residual"))
    # The value's token is where the texts differ: before layer 0 its stream alone does it all.
    assert found.at("residual", task.roles["value"])[0].value == pytest.approx(1.0, abs=1e-3)
    steering = Steering(model, tokenizer=tokenizer)
    vector = steering.vector(TEXTS[0], TEXTS[1], 1)
    with steering.apply(vector, 2.0):
        assert bool(torch.isfinite(model(input_ids=IDS).logits).all())
    twin = untrained_twin(model, 1, PERMUTED)
    assert list(find_mixers(twin)) == [0, 1]
    with pytest.raises(ValueError, match=r"no untrained twin .*give own_model fresh="):
        untrained_twin(model, 1, FRESH)


def test_a_fresh_twin_is_what_the_user_makes():
    model = own_model(make_own("cells"), fresh=MODELS["cells"], head="guess")
    twin = untrained_twin(model, 7, FRESH)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = MODELS["cells"]().guess.weight
    found: Any = twin.get_output_embeddings()
    assert torch.equal(found.weight, expected)
    assert find_mixers(twin)[0].mixer.A_log.numel() == find_mixers(model)[0].mixer.A_log.numel()
    assert bool(torch.isfinite(twin(input_ids=IDS).logits).all())


def test_the_snippet_of_the_page_runs(tokenizer, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    given: dict[str, Any] = {"my_model": make_own("cells"), "my_tokenizer": tokenizer}
    names = runpy.run_path(str(tmp_path / "snippet.py"), given)
    assert isinstance(names["extractor"], SSMComponentExtractor)
    assert float(names["components"][0].replay_error) <= 1e-5
    assert names["model"].get_input_embeddings() is names["my_model"].words

"""Neurons by three methods: against their formulas, on planted neurons, and through the class."""

import csv
import json

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model
from safetensors.torch import load_file

import attention_neurons
from attention_neurons import (
    NEURON_METHODS,
    MambaAttentionNeurons,
    attention_data,
    attention_weighted,
    layer_parameters,
    main,
    rollout,
)
from causal_interventions.neuron_effects import (
    ablation_agreement,
    ablation_effects,
    choose_for_ablation,
    target_gradients,
)
from causal_interventions.targets import resolve_target
from mamba_mixers.running import fast_scan
from ssm_component_extractor import capture
from ssm_measures import layer_attention
from ssm_measures.attention_maps import contribution_map, head_maps

LAYERS = [0, 1, 3]
PLANTED_IDS = torch.tensor([[1, 3, 2, 7, 3, 1, 4, 6, 3, 2]])


def make_ids(batch: int = 1, length: int = 30) -> torch.Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(0))


def make_data(model, ids=None, mask=None, layers=LAYERS):
    captured = capture(model, make_ids() if ids is None else ids, mask, layers)
    return attention_data(captured, layer_parameters(model, layers))


def normalised(absolute: torch.Tensor) -> torch.Tensor:
    return absolute.double() / absolute.double().sum(-1, keepdim=True)


def test_attention_weighted_neurons_are_gathered_by_attention():
    data = make_data(make_tiny_model())
    for layer, found in attention_weighted(data).items():
        gated = data.captured.components[layer].gated[0].double()
        expected = normalised(data.layers[layer].absolute[0]) @ gated
        # Float32 products of 30 terms.
        torch.testing.assert_close(found.activations[0].double(), expected, rtol=1e-5, atol=1e-6)
        columns = data.parameters[layer].out_weight.double().square().sum(0).sqrt()
        importance = expected.square().mean(0).sqrt() * columns
        torch.testing.assert_close(found.importance.double(), importance, rtol=1e-5, atol=1e-7)


def test_rollout_multiplies_the_layers_up_to_its_own():
    data = make_data(make_tiny_model())
    sets = rollout(data)
    product = torch.eye(30, dtype=torch.float64)
    for layer in LAYERS:
        mixed = data.captured.components[layer].mixer_output[0].double()
        stream = data.captured.block_inputs[layer][0].double()
        step = torch.zeros(30, 30, dtype=torch.float64)
        for t in range(30):
            w = mixed[t].norm() / (mixed[t].norm() + stream[t].norm())
            step[t] = w * normalised(data.layers[layer].absolute[0])[t]
            step[t, t] += 1 - w
        product = step @ product
        found = sets[layer]
        torch.testing.assert_close(found.attention[0].double(), product, rtol=1e-5, atol=1e-6)
        assert found.attention[0].sum(-1).tolist() == pytest.approx([1.0] * 30, abs=1e-5)
        gated = data.captured.components[layer].gated[0].double()
        torch.testing.assert_close(
            found.activations[0].double(), product @ gated, rtol=1e-5, atol=1e-6
        )
    assert sets[1].note is None
    assert sets[3].note == "layers [2] were not captured and are left out"


def test_gradient_guided_neurons_are_activation_times_gradient():
    model, target = make_tiny_model(), resolve_target("loss")
    data = make_data(model)
    gradients = target_gradients(model, data.captured, LAYERS, target)
    sets = NEURON_METHODS["gradient_guided"](data, model, target)
    for layer, found in sets.items():
        gated, gradient = data.captured.components[layer].gated, gradients.grad_gated[layer]
        assert torch.equal(found.activations, gated * gradient)
        deviation = gated[0] - gated[0].mean(0)
        expected = (deviation * gradient[0]).sum(0).abs()
        torch.testing.assert_close(found.importance, expected, rtol=1e-4, atol=1e-7)
        parts = data.captured.components[layer]
        assert torch.equal(found.attention, contribution_map(parts, gradients.grad_y[layer]))
        assert found.target is not None
        assert found.target["name"] == "loss"


def test_the_contribution_map_is_what_a_little_more_of_a_source_does():
    model, layer, target = make_tiny_model(), 3, resolve_target("logit")
    data = make_data(model, layers=[layer])
    by_source = NEURON_METHODS["gradient_guided"](data, model, target)[layer].attention[0].sum(0)
    source = int(by_source.abs().argmax())
    parts = data.captured.components[layer]
    path = (head_maps(parts)[0, :, :, source] * parts.u[0, source][:, None]).T  # alpha[t, s] u_s

    @torch.no_grad()
    def value(amount: float) -> torch.Tensor:
        def edit(stage, x):
            return x + amount * path if stage == "y" else x

        with fast_scan(model, edits={layer: edit}):
            logits = model(data.captured.input_ids, use_cache=False).logits
        return target.pin(logits, data.captured.input_ids)(logits)

    # Central differences: float32 rounding of a logit, 1e-7 / 2, and what is cubic in 1.
    expected = float(value(1.0) - value(-1.0)) / 2
    assert abs(expected) > 1e-4
    assert float(by_source[source]) == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_the_first_order_effect_agrees_with_ablation():
    model = make_tiny_model()
    data = make_data(model)
    found = NEURON_METHODS["gradient_guided"](data, model, None)[1]
    effects = ablation_effects(model, data.captured, 1, range(64), resolve_target())
    agreement = ablation_agreement(found.importance, effects)
    # Single channels of a random model act almost linearly.
    assert agreement["spearman"] > 0.9
    assert agreement["spearman"] > agreement["null_95"]


@pytest.mark.parametrize("method", list(NEURON_METHODS))
def test_every_method_ranks_the_only_channel_that_writes_first(method):
    model = hand_weighted.single_logit_channel(3, 5, others_write=False)
    data = make_data(model, PLANTED_IDS, layers=[0])
    target = resolve_target("logit", token=5)
    found = NEURON_METHODS[method](data, model, target)[0]
    assert int(found.ranking[0]) == 3


def test_only_a_method_that_knows_the_target_finds_the_channel_that_its_logit_reads():
    # The others write twice as strongly where no logit reads. Methods without a target say what
    # a neuron writes, not what that is for: their docstrings say so.
    model = hand_weighted.single_logit_channel(3, 5, others_write=True)
    data = make_data(model, PLANTED_IDS, layers=[0])
    target = resolve_target("logit", token=5)
    sets = {name: make(data, model, target)[0] for name, make in NEURON_METHODS.items()}
    assert int(sets["gradient_guided"].ranking[0]) == 3
    effects = ablation_effects(model, data.captured, 0, range(8), target)
    assert int(effects.effects.abs().argmax()) == 3
    assert int(sets["attention_weighted"].ranking[0]) != 3
    assert int(sets["rollout"].ranking[0]) != 3


@pytest.mark.parametrize("method", [attention_weighted, rollout])
def test_importance_does_not_depend_on_the_scale_of_a_channel(method):
    data = make_data(make_tiny_model())
    before = method(data)[1].importance
    data.captured.components[1].gated[..., 7] /= 4
    out_weight = data.parameters[1].out_weight.clone()
    out_weight[:, 7] *= 4
    data.parameters[1] = data.parameters[1]._replace(out_weight=out_weight)
    after = method(data)[1].importance
    # Powers of two: only the float32 norm of the column is rounded.
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)


def test_a_token_without_attention_keeps_itself():
    model = hand_weighted.write_at_marked(2, vocab_size=8)
    data = make_data(model, PLANTED_IDS, layers=[0])
    found = attention_weighted(data)[0]
    # Nothing is marked before the third token.
    assert torch.equal(found.attention[0, :2, :2], torch.eye(2))
    assert data.layers[0].statistics.strength[0, :2].tolist() == [0.0, 0.0]


def test_padding_and_batch_change_no_neuron():
    model = make_tiny_model()
    ids = make_ids(2)
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    batch, alone = make_data(model, ids, mask), make_data(model, ids[1:, 11:])
    for method, make in NEURON_METHODS.items():
        a, b = (make(data, model, None)[3] for data in (batch, alone))
        assert torch.equal(a.activations[1, :11], torch.zeros(11, 64))
        # The suite's bound for a padded batch against one text at a time; gradients are small.
        torch.testing.assert_close(
            a.activations[1, 11:], b.activations[0], rtol=1e-4, atol=1e-6, msg=method
        )


def test_methods_are_causal():
    model, ids = make_tiny_model(), make_ids()
    changed = ids.clone()
    changed[0, 20:] = 64 - changed[0, 20:]
    for method in (attention_weighted, rollout):
        a, b = (method(make_data(model, x))[3].activations[0, :20] for x in (ids, changed))
        # The later tokens may change the order of float32 sums, not their terms.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_attention_is_found_here_too():
    names = ("AttentionData", "LayerAttention", "attention_data", "layer_attention")
    for name in names:
        assert getattr(attention_neurons, name) is getattr(layer_attention, name)


def test_choice_for_ablation_is_seeded_distinct_and_has_the_top_ones():
    data = make_data(make_tiny_model())
    sets = [make(data, make_tiny_model(), None)[1] for make in NEURON_METHODS.values()]
    chosen = choose_for_ablation(sets, 10, num_top=3, seed=1)
    assert chosen == choose_for_ablation(sets, 10, num_top=3, seed=1)
    assert chosen[:10] != choose_for_ablation(sets, 10, seed=2)
    assert len(chosen) == len(set(chosen))
    for neurons in sets:
        assert set(neurons.ranking[:3].tolist()) <= set(chosen)


@pytest.fixture
def analyzer(tiny_tokenizer) -> MambaAttentionNeurons:
    return MambaAttentionNeurons(make_tiny_model(), tokenizer=tiny_tokenizer)


TEXT = "Every evening the keeper lit the copper kettle"


def test_class_from_text_ids_and_encoding_gives_the_same(analyzer, tiny_tokenizer):
    encoding = tiny_tokenizer(TEXT, return_tensors="pt")
    found = [
        analyzer.extract_attention_vectors(inputs, [0, -1])
        for inputs in (TEXT, encoding["input_ids"], encoding)
    ]
    assert [list(data.layers) for data in found] == [[0, 3]] * 3
    for data in found[1:]:
        assert torch.equal(data.layers[3].signed, found[0].layers[3].signed)
    assert analyzer.attention_data_ is found[2]


def test_class_makes_neurons_and_says_what_they_do(analyzer):
    data = analyzer.extract_attention_vectors([TEXT, "the keeper lit"], [0, 2])
    for method in NEURON_METHODS:
        neurons = analyzer.create_mamba_neurons(data, method)
        assert analyzer.neurons_ is neurons
        behavior = analyzer.analyze_neuron_behavior(neurons, 2, num_neurons=3)
        assert [p.neuron for p in behavior.profiles] == neurons[2].ranking[:3].tolist()
        assert all(token["token"] in TEXT for token in behavior.profiles[0].top_tokens)
        table = analyzer.neuron_table(neurons)
        assert len(table) == 2 * 64
    directed = analyzer.create_mamba_neurons(
        data, "gradient_guided", target="logit_difference", token=5, contrast=7
    )
    assert directed[0].target["token_ids"] == [5, 5]


def test_handed_to_viewers_as_they_take_it(analyzer):
    data = analyzer.extract_attention_vectors(TEXT, [1])
    length = data.captured.input_ids.shape[1]
    maps = analyzer.circuitsvis_attention(1)
    assert maps.shape == (8, length, length)
    (for_bertviz,) = analyzer.bertviz_attention(1)
    assert torch.equal(for_bertviz, maps.unsqueeze(0))
    assert bool((maps >= 0).all())
    assert torch.equal(maps, maps.tril())
    torch.testing.assert_close(maps.sum(-1), torch.ones(8, length))
    # With one group of all channels it is the mean of |alpha|, its rows divided by their sums.
    single = analyzer.circuitsvis_attention(1, num_groups=1)[0].double()
    torch.testing.assert_close(single, normalised(data.layers[1].absolute[0]), rtol=1e-5, atol=1e-7)


def test_errors_name_what_is_known(analyzer):
    with pytest.raises(RuntimeError, match="call extract_attention_vectors"):
        analyzer.circuitsvis_attention(0)
    data = analyzer.extract_attention_vectors(TEXT, [0, 2])
    with pytest.raises(ValueError, match="attention_weighted, gradient_guided, rollout"):
        analyzer.create_mamba_neurons(data, "lime")
    with pytest.raises(ValueError, match="log_probability, logit, logit_difference, loss"):
        analyzer.create_mamba_neurons(data, "gradient_guided", target="accuracy")
    with pytest.raises(ValueError, match="not in the vocabulary"):
        analyzer.create_mamba_neurons(data, "gradient_guided", token="zebra")
    with pytest.raises(ValueError, match="token 64 is not in the vocabulary"):
        analyzer.create_mamba_neurons(data, "gradient_guided", token=64)
    with pytest.raises(ValueError, match="attention_data is of type dict; pass what extract_"):
        analyzer.create_mamba_neurons(data.layers)
    neurons = analyzer.create_mamba_neurons(data)
    with pytest.raises(ValueError, match="neurons is of type NeuronSet"):
        analyzer.analyze_neuron_behavior(neurons[0], 0)
    with pytest.raises(ValueError, match="layers extracted are .0, 2."):
        analyzer.analyze_neuron_behavior(neurons, 1)
    with pytest.raises(ValueError, match="layers extracted are .0, 2."):
        analyzer.bertviz_attention(3)
    with pytest.raises(ValueError, match="text is 1"):
        analyzer.circuitsvis_attention(0, text=1)
    with pytest.raises(ValueError, match="num_groups is 0"):
        analyzer.circuitsvis_attention(0, num_groups=0)
    with pytest.raises(ValueError, match="layer"):
        analyzer.extract_attention_vectors(TEXT, [4])


def test_command_writes_json_tensors_and_a_table(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["--model", str(tiny_model_dir), "--text", TEXT, "--layers", "0,2", "--quiet"]
    assert main([*arguments, "--output-dir", str(out), "--ablate", "20"]) == 0
    assert "attention_neurons.json" in capsys.readouterr().out
    text = json.loads((out / "attention_neurons.json").read_text())["text_0"]
    assert set(text["neurons"]) == set(NEURON_METHODS)
    agreement = text["ablation"]["layer_2"]["agreement"]
    assert agreement["gradient_guided"]["n"] == 20
    # One text is far below the pipeline's 2 MB a text.
    assert len(json.dumps(text)) < 200_000
    tensors = load_file(out / "attention_neurons.safetensors")
    attention = tensors["text_0.layer_2.attention"]
    assert attention.shape[-1] == attention.shape[-2]
    importance = tensors["text_0.layer_2.rollout.importance"]
    rows = list(csv.DictReader((out / "neurons.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 64
    first = next(row for row in rows if row["method"] == "rollout" and row["layer"] == "2")
    assert int(first["neuron"]) == int(importance.argmax())
    assert float(first["importance"]) == pytest.approx(float(importance.max()))


def test_command_refuses_bad_options(tiny_model_dir, tmp_path, capsys):
    arguments = ["--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--target", "logit", "--token", "zebra"]) == 2
    assert "not in the vocabulary" in capsys.readouterr().err
    assert main([*arguments, "--ablate", "-1"]) == 2
    assert "ablate is -1" in capsys.readouterr().err

"""Untrained twins: the model's own shape, other weights, and nothing else touched."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from conftest import make_tiny_model, make_tiny_neox
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.family_models import ALL_MODELS, make_model, mixers_of
from mamba_mixers.families import time_scale_tensors
from mamba_mixers.running import fast_scan
from mamba_mixers.untrained_twins import check_twins, each_twin, twin_seeds, untrained_twin
from suite_plumbing.precision import default_dtype
from token_statistics.twin_bounds import FRESH, PERMUTED, TWIN_KINDS

each_kind = pytest.mark.parametrize("kind", TWIN_KINDS)
each_model = pytest.mark.parametrize("name", ALL_MODELS)


class OwnConfig(MambaConfig):
    model_type = "a_mamba_of_ones_own"


class OwnMamba(MambaForCausalLM):
    config_class = OwnConfig


class Unmakeable(MambaForCausalLM):
    """Made from more than its config."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__(config)


def weights(model):
    return {name: x.clone() for name, x in model.named_parameters()}


def ids() -> torch.Tensor:
    return torch.randint(1, 64, (1, 12), generator=torch.Generator().manual_seed(0))


@each_kind
def test_a_twin_has_the_shape_of_its_model_and_weights_of_its_own(tiny_model, kind):
    before, state = weights(tiny_model), torch.get_rng_state()
    twin = untrained_twin(tiny_model, 3, kind)
    assert {n: x.shape for n, x in weights(twin).items()} == {n: x.shape for n, x in before.items()}
    assert all(not torch.equal(x, before[name]) for name, x in weights(twin).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in weights(tiny_model).items())
    assert (twin.training, twin.dtype) == (False, tiny_model.dtype)
    assert twin.config is not tiny_model.config


@each_kind
def test_twins_depend_on_their_seed_alone(tiny_model, kind):
    one, same, other = (weights(untrained_twin(tiny_model, seed, kind)) for seed in (1, 1, 2))
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert any(not torch.equal(x, other[name]) for name, x in one.items())


@each_kind
@each_model
def test_every_family_has_twins_of_both_kinds(name, kind):
    model = make_model(name)
    twin: Any = untrained_twin(model, 0, kind)
    assert type(twin) is type(model)
    logits, others = model(ids()).logits, twin(ids()).logits
    assert others.shape == logits.shape
    assert torch.isfinite(others).all()
    assert not torch.allclose(logits, others, atol=1e-2)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (twin.get_output_embeddings().weight is twin.get_input_embeddings().weight)


@each_model
def test_permuted_weights_keep_the_values_of_every_tensor(name):
    model = make_model(name)
    twin = untrained_twin(model, 0, PERMUTED)
    assert twin.state_dict().keys() == model.state_dict().keys()
    for (key, mine), theirs in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.equal(mine.flatten().sort().values, theirs.flatten().sort().values), key
        assert mine.numel() < 6 or not torch.equal(mine, theirs), key


@each_model
def test_time_scales_go_with_their_channel_or_head(name):
    model = make_model(name)
    twin = untrained_twin(model, 0, PERMUTED)
    for mine, theirs in zip(mixers_of(model), mixers_of(twin), strict=True):
        count = mine.D.numel()
        rows, moved = (
            torch.cat([x.detach().reshape(count, -1) for x in time_scale_tensors(mixer)], dim=1)
            for mixer in (mine, theirs)
        )
        # A rate, D and a bias at least; Mamba-3 makes its rates of the tokens.
        assert rows.shape[1] >= (2 if name.startswith("mamba3") else 3)
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, moved.tolist()))
        assert not torch.equal(rows, moved)


def test_fresh_weights_are_those_of_the_initialisation(tiny_model):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = MambaForCausalLM(tiny_model.config)
    twin = untrained_twin(tiny_model, 7, FRESH)
    for name, x in twin.named_parameters():
        assert torch.equal(x, expected.get_parameter(name)), name


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_that_of_every_weight(dtype, kind):
    model: Any = make_tiny_model().to(dtype)
    model.backbone.layers[0].mixer.A_log.data = model.backbone.layers[0].mixer.A_log.float()
    twin = untrained_twin(model, 0, kind)
    assert [x.dtype for x in twin.parameters()] == [x.dtype for x in model.parameters()]


@each_kind
def test_a_model_that_was_cut_has_twins_of_its_depth(kind):
    model: Any = make_tiny_model()
    del model.backbone.layers[2:]
    twin: Any = untrained_twin(model, 0, kind)
    assert len(twin.backbone.layers) == 2
    assert torch.isfinite(twin(ids()).logits).all()


@each_kind
def test_a_class_of_ones_own_has_twins_of_its_class(kind):
    model = OwnMamba(OwnConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    assert type(untrained_twin(model, 0, kind)) is OwnMamba
    assert type(untrained_twin(make_tiny_neox(), 0, kind)).__name__ == "GPTNeoXForCausalLM"


@each_kind
def test_an_offloaded_model_has_whole_twins(kind):
    whole, split = make_model("mamba2"), make_model("mamba2")
    cpu_offload(split, torch.device("cpu"))
    twin, expected = untrained_twin(split, 0, kind), untrained_twin(whole, 0, kind)
    for (name, x), y in zip(twin.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(x, y), name
    assert torch.equal(twin(ids()).logits, expected(ids()).logits)
    assert all(parameter.is_meta for parameter in split.parameters())
    assert torch.equal(split(ids()).logits, whole(ids()).logits)


@each_kind
def test_twins_inside_inference_mode_take_gradients(tiny_model, kind):
    with torch.inference_mode():
        twin = untrained_twin(tiny_model, 0, kind)
    twin(ids()).logits.sum().backward()
    assert twin.get_input_embeddings().weight.grad is not None


def test_what_cannot_be_made_is_refused_in_a_sentence(tiny_model):
    with pytest.raises(ValueError, match=r"kind is 'old'; it must be one of fresh weights, perm"):
        untrained_twin(tiny_model, 0, "old")
    changed: Any = make_tiny_model()
    changed.backbone.layers[0].mixer.D = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"backbone.layers.0.mixer.D of shape \(3,\) is not what"):
        check_twins(changed, 1)
    check_twins(changed, 0)
    with pytest.raises(ValueError, match="cannot be made from its config alone"):
        check_twins(Unmakeable(tiny_model.config, 3), 1)
    whole: Any = make_tiny_model()
    numbers = torch.nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    whole.backbone.layers[0].mixer.D = numbers
    with pytest.raises(ValueError, match="holds torch.int8"):
        untrained_twin(whole, 0, PERMUTED)


def test_seeds_are_distinct_and_counted():
    assert len(set(twin_seeds(20, 5))) == 20
    assert twin_seeds(0) == []
    with pytest.raises(ValueError, match="count is -1"):
        twin_seeds(-1)


def test_each_twin_is_named_in_the_log_as_it_is_given_out(caplog):
    caplog.set_level("INFO")
    given = each_twin(2, 5)
    assert next(given) == (FRESH, 1005)
    assert caplog.messages == ["untrained twin 1 of 4: fresh weights, seed 1005"]
    assert list(given) == [(FRESH, 1006), (PERMUTED, 1005), (PERMUTED, 1006)]
    assert caplog.messages[-1] == "untrained twin 4 of 4: permuted weights, seed 1006"
    assert list(each_twin(0)) == []


@each_kind
def test_twins_depend_on_no_default_dtype(tiny_model, kind):
    with default_dtype(torch.float64):
        found = untrained_twin(tiny_model, 3, kind)
    for one, other in zip(
        found.parameters(), untrained_twin(tiny_model, 3, kind).parameters(), strict=True
    ):
        assert torch.equal(one, other)


@each_kind
def test_a_twin_made_while_the_model_is_changed_runs_its_own_mixers(tiny_model, kind):
    expected = untrained_twin(tiny_model, 3, kind)(ids()).logits
    with fast_scan(tiny_model, edits={0: lambda stage, x: 0 * x}), fast_scan(tiny_model):
        twin = untrained_twin(tiny_model, 3, kind)
        found = twin(ids()).logits
    assert torch.equal(found, expected)
    assert not any("forward" in vars(module) for module in twin.modules())

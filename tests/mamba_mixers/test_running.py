"""Mixers are found, replayed to rounding, run by the suite's own scan, and left as they were."""

from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from mixer_cases import (
    MODELS,
    REPLAY_BOUND,
    assert_untouched,
    doubled,
    in_dtype,
    left_padded,
    logits_of,
    make_ids,
)
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from mamba_mixers.recording import record_layers
from mamba_mixers.replay import EDITABLE, LRP, MixerReplay
from mamba_mixers.running import fast_scan, forward_from, row_added_before
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.weights import bias_parameters
from token_statistics.description import relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_fast_scan_gives_the_stock_logits(name, dtype):
    model = in_dtype(MODELS[name](), dtype)
    ids, mask = left_padded(make_ids(), 9)
    stock = logits_of(model, ids, mask)
    with fast_scan(model) as fast:
        assert fast is model
        result = logits_of(model, ids, mask)
    keep = mask.bool()
    assert relative_error(result[keep], stock[keep]) <= REPLAY_BOUND[dtype]
    assert_untouched(model)
    assert torch.equal(logits_of(model, ids, mask), stock)


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_fast_scan_gives_the_stock_gradients(name):
    model, ids = MODELS[name](), make_ids(12)
    parameters = dict(model.named_parameters())

    def gradients() -> list[Tensor]:
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        f = model(inputs_embeds=x, use_cache=False).logits.log_softmax(-1)[:, -1, 3].sum()
        return list(torch.autograd.grad(f, [x, *parameters.values()]))

    stock = gradients()
    with fast_scan(model):
        result = gradients()
    for label, ours, theirs in zip(["embeddings", *parameters], result, stock, strict=True):
        # The suite's bound on gradients, in float32.
        assert relative_error(ours, theirs) <= 1e-4, label


def test_fast_scan_is_undone_after_an_exception():
    model, ids = make_tiny_model(), make_ids()
    before = logits_of(model, ids)
    with pytest.raises(ZeroDivisionError), fast_scan(model, rules=LRP):
        raise ZeroDivisionError
    assert_untouched(model)

    def fail(layer: int, replay: MixerReplay) -> None:
        raise ZeroDivisionError("in the middle of the forward pass")

    with pytest.raises(ZeroDivisionError, match="in the middle"), fast_scan(model, observe=fail):
        logits_of(model, ids)
    assert_untouched(model)
    assert torch.equal(logits_of(model, ids), before)


def test_fast_scan_within_fast_scan():
    model, ids = make_tiny_model(), make_ids()
    with fast_scan(model):
        outer = logits_of(model, ids)
        with fast_scan(model, edits={1: doubled("y")}):
            edited = logits_of(model, ids)
        assert torch.equal(logits_of(model, ids), outer)
    assert not torch.allclose(edited, outer)
    assert_untouched(model)


def test_edits_of_contexts_within_each_other_are_made_one_after_the_other():
    model, ids = make_tiny_model(), make_ids()

    def raised(stage: str, x: Tensor) -> Tensor:
        return x + 1 if stage == "y" else x

    with fast_scan(model, edits={1: lambda stage, x: raised(stage, doubled("y")(stage, x))}):
        expected = logits_of(model, ids)
    with fast_scan(model, edits={1: doubled("y")}):
        outer = logits_of(model, ids)
        with fast_scan(model, edits={1: raised}):
            assert torch.equal(logits_of(model, ids), expected)
        with fast_scan(model):
            assert torch.equal(logits_of(model, ids), outer)
    assert not torch.equal(outer, expected)
    assert_untouched(model)


def test_a_recomputed_block_keeps_less_for_the_same_gradient():
    model, ids = make_tiny_model(), make_ids()
    found, kept = [], []
    for recompute in ((), (0, 2)):
        sizes = []

        def counted(x, sizes=sizes):
            sizes.append(x.nbytes)
            return x

        with fast_scan(model, recompute=recompute):
            with torch.autograd.graph.saved_tensors_hooks(counted, lambda x: x):
                value = model(ids, use_cache=False).logits.logsumexp(-1).sum()
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append(torch.autograd.grad(value, parameters))
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.7 * kept[0]  # two of four blocks
    assert_untouched(model)
    with (
        pytest.raises(ValueError, match="beside memories"),
        fast_scan(model, recompute=[0], memories={}),
    ):
        pass


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_forward_from_a_block_gives_the_whole_models_logits(layer):
    model, ids = make_tiny_model(), make_ids()
    stream = record_layers(model, [layer], ids)[layer].block_input
    with torch.no_grad():
        # The same operations on the same numbers: not a bit may differ.
        assert torch.equal(forward_from(model, layer, stream), logits_of(model, ids))
    assert_untouched(model)


def test_a_forward_from_a_block_is_undone_after_an_exception():
    model = make_tiny_model()
    with pytest.raises(RuntimeError):
        forward_from(model, 2, torch.zeros(1, 4, 31))
    assert_untouched(model)
    with pytest.raises(ValueError, match="layer is 4; the model has layers 0 to 3"):
        forward_from(model, 4, torch.zeros(1, 4, 32))
    with pytest.raises(UnsupportedModelError, match="MambaModel has no logits"):
        forward_from(model.backbone, 0, torch.zeros(1, 4, 32))


def test_fast_scan_leaves_other_models_and_a_forward_of_ones_own_alone():
    model, other, ids = make_tiny_model(), make_tiny_model(seed=1), make_ids()
    mixer: Any = find_mixers(model)[0].mixer
    own_forward = mixer.forward
    mixer.forward = own_forward
    with fast_scan(model, edits={0: doubled("gated")}):
        assert_untouched(other)
    assert vars(mixer)["forward"] is own_forward
    del mixer.forward
    assert_untouched(model)
    assert logits_of(model, ids).shape == (2, 37, VOCAB_SIZE)


def test_an_edit_that_changes_nothing_changes_nothing():
    model, ids = make_tiny_model(), make_ids()
    stages: list[str] = []

    def identity(stage: str, x: Tensor) -> Tensor:
        stages.append(stage)
        return x

    with fast_scan(model):
        plain = logits_of(model, ids)
    with fast_scan(model, edits=dict.fromkeys(range(4), identity)):
        assert torch.equal(logits_of(model, ids), plain)
    assert sorted(stages[: len(EDITABLE)]) == sorted(EDITABLE)
    assert len(stages) == 4 * len(EDITABLE)


def test_zeroing_a_neuron_is_zeroing_its_column_of_out_proj():
    model, ids = make_tiny_model(), make_ids()

    def ablate(stage: str, x: Tensor) -> Tensor:
        return torch.cat([x[..., :7], 0 * x[..., 7:8], x[..., 8:]], -1) if stage == "gated" else x

    with fast_scan(model, edits={2: ablate}):
        edited = logits_of(model, ids)
    before = logits_of(model, ids)
    with torch.no_grad():
        find_mixers(model)[2].mixer.out_proj.weight[:, 7] = 0
    assert relative_error(edited, logits_of(model, ids)) <= 1e-5
    assert relative_error(edited, before) > 1e-4  # far above rounding: the neuron mattered


@pytest.mark.parametrize("layer", [4, -1])
def test_an_edit_of_a_layer_without_a_mixer_is_refused(layer):
    model = make_tiny_model()
    with (
        pytest.raises(ValueError, match=rf"edits names layers \[{layer}\].*\[0, 1, 2, 3\]"),
        fast_scan(model, edits={layer: doubled("y")}),
    ):
        raise AssertionError("the context must not be entered")
    assert_untouched(model)


def test_generation_with_a_cache_is_replayed_edited_and_observed():
    model: Any = make_tiny_model()
    ids = make_ids(9, batch=1)
    seen: list[int] = []

    def generate(**options: Any) -> Tensor:
        mask = torch.ones_like(ids)
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **options
        )

    stock = generate()
    with fast_scan(model, observe=lambda layer, replay: seen.append(replay.u.shape[1])):
        assert torch.equal(generate(), stock)
    # The prompt at once, then a token at a time; the last one is read by nobody.
    assert seen == [9] * 4 + [1] * 4 * 11

    def turned(stage: str, x: Tensor) -> Tensor:
        return -3 * x if stage == "gated" else x

    with fast_scan(model, edits=dict.fromkeys(range(4), turned)):
        edited = generate()
        assert torch.equal(edited, generate(use_cache=False))
    assert not torch.equal(edited, stock)
    assert_untouched(model)


def test_observe_sees_every_layer_inside_the_graph():
    model, ids = make_tiny_model(), make_ids(12)
    seen: dict[int, MixerReplay] = {}
    with fast_scan(model, observe=lambda layer, replay: seen.update({layer: replay})):
        logits = model(ids, use_cache=False).logits
    assert list(seen) == [0, 1, 2, 3]
    gradients = torch.autograd.grad(logits[:, -1, 3].sum(), [seen[i].gated for i in range(4)])
    assert all(bool(gradient.any()) for gradient in gradients)
    for layer, record in record_layers(model, [0, 1, 2, 3], ids).items():
        assert relative_error(seen[layer].y.detach(), record.replay.y) <= 1e-5


def test_relevance_rules_change_gradients_and_no_values():
    model, ids = make_tiny_model(), make_ids(12)
    with fast_scan(model):
        plain = logits_of(model, ids)
    with fast_scan(model, rules=LRP):
        # x * (f(x) / x) and 0.5 p + 0.5 p round differently from f(x) and p: float32 rounding.
        assert relative_error(logits_of(model, ids), plain) <= 1e-5
    assert_untouched(model)


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_relevance_is_conserved(name):
    model, ids = in_dtype(MODELS[name](), torch.float64), make_ids(12)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    biases = [bias for key, bias in bias_parameters(model).items() if "dt_proj" not in key]
    with fast_scan(model, rules=LRP):
        f = model(inputs_embeds=x, use_cache=False).logits[:, -1, 3].sum()
        inputs = [x, *biases]
        gradients = torch.autograd.grad(f, inputs)
    relevance = sum(
        float((value * gradient).sum().detach())
        for value, gradient in zip(inputs, gradients, strict=True)
    )
    # Linear in embeddings and biases: sum of input times gradient is f; A and D are float32.
    assert relevance == pytest.approx(float(f.detach()), rel=1e-6)


def make_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def test_every_entry_refuses_an_unsupported_model():
    model, ids = make_gpt2(), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel cannot be analysed"):
        record_layers(model, [0], ids)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"), fast_scan(model):
        raise AssertionError("the context must not be entered")


def test_rows_added_on_the_way_are_copies_of_the_first():
    model = make_tiny_model()
    ids = torch.randint(1, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(0))
    sizes = {}
    with (
        torch.no_grad(),
        row_added_before(model, [1, 3]),
        fast_scan(model, observe=lambda layer, replay: sizes.update({layer: len(replay.u)})),
    ):
        logits = model(input_ids=ids, use_cache=False).logits
    assert sizes == {0: 1, 1: 2, 2: 2, 3: 3}
    alone = model(input_ids=ids, use_cache=False).logits
    # The stock scan and the suite's round differently in float32.
    assert relative_error(logits, alone.expand(3, -1, -1)) <= 1e-5
    with pytest.raises(ValueError, match=r"layers names \[4\]; the model has layers 0 to 3"):
        row_added_before(model, [4]).__enter__()

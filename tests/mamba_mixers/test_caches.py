"""Generation by replayed mixers: with the model's own cache, to the numbers of the whole text."""

import gc
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.family_models import FAULTY, IS_VERSION_5, MODELS, make_model, ssm_layers
from mamba_mixers import caches
from mamba_mixers.calls import forward_signature
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import UnsupportedModelError
from mamba_mixers.token_positions import token_positions
from token_statistics.description import relative_error

LENGTH, PADDING, NEW = 12, 5, 8

# Those whose own code does not go on from a cache as it reads a whole text: in version 5 a single
# step has no shortest step size, in version 4 Falcon-H1 stops with an error.
STOCK_STEPS_DIFFER = (
    ("zamba2", "nemotron_h")
    if IS_VERSION_5
    else (*FAULTY, "falcon_h1 normed", "falcon_h1 normed first")
)

# Those whose beams lose their states with this version of transformers.
LOSES_BEAMS = () if IS_VERSION_5 else ("mamba", "falcon_mamba", "mamba2")


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    model = make_model(name)
    model.generation_config.eos_token_id = None  # every text goes on to the end
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of two texts, the second shorter and padded on the left."""
    ids = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :PADDING], mask[1, :PADDING] = 0, 0
    return ids, mask


@pytest.fixture(scope="module")
def edits(name: str) -> dict[int, Any]:
    return {ssm_layers(name)[0]: at_odd_positions}


def at_odd_positions(stage: str, x: Tensor) -> Tensor:
    """Changes neurons at odd positions from the fifth on: in the prompt, and in what follows."""
    if stage != "gated":
        return x
    positions = token_positions(x)[:, :, None]
    return torch.where((positions >= 5) & (positions % 2 == 1), 1.5 * x + 0.1, x)


def generate(model: Any, texts: tuple[Tensor, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens (b, l + NEW), and the logits (b, NEW, V) from which they were chosen."""
    output = model.generate(
        texts[0],
        attention_mask=texts[1],
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output.sequences, torch.stack(output.logits, 1)


@torch.no_grad()
def read_whole(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (b, NEW, V) after the prompt and each token but the last of the whole text."""
    mask = torch.cat([mask, mask.new_ones(len(mask), NEW)], 1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, -NEW - 1 : -1]


def test_generation_within_fast_scan_is_the_stock_models(model, name, texts):
    with fast_scan(model):
        tokens, logits = generate(model, texts)
        whole = read_whole(model, tokens, texts[1])
    assert torch.equal(tokens[:, LENGTH:], whole.argmax(-1))
    assert relative_error(logits, whole) <= 1e-5  # float32
    if name not in FAULTY:
        assert torch.equal(tokens, generate(model, texts, use_cache=False)[0])
        assert relative_error(logits, read_whole(model, tokens, texts[1])) <= 1e-5
    if name not in STOCK_STEPS_DIFFER:
        assert torch.equal(tokens, generate(model, texts)[0])


def test_generation_under_an_edit_is_the_edit_of_the_whole_text(model, name, texts, edits):
    plain = generate(model, texts, use_cache=False)[1]
    with fast_scan(model, edits=edits):
        tokens, logits = generate(model, texts)
        whole = read_whole(model, tokens, texts[1])
    assert torch.equal(tokens[:, LENGTH:], whole.argmax(-1))
    assert relative_error(logits, whole) <= 1e-5  # float32
    assert relative_error(logits[:, 0], plain[:, 0]) > 1e-3  # the edit says something


def test_a_text_padded_on_the_left_goes_on_as_it_does_alone(model, name, texts, edits):
    alone = texts[0][1:, PADDING:], texts[1][1:, PADDING:]
    with fast_scan(model, edits=edits):
        batched, single = generate(model, texts), generate(model, alone)
    assert torch.equal(batched[0][1:, PADDING:], single[0])
    # Attention layers give padding no weight up to float32's smallest numbers.
    assert relative_error(batched[1][1:], single[1]) <= 1e-4


def test_sampling_draws_what_it_draws_without_a_cache(model, texts, edits):
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options: Any = {"max_new_tokens": NEW, "do_sample": True, "use_cache": use_cache}
        with fast_scan(model, edits=edits):
            drawn.append(model.generate(texts[0], attention_mask=texts[1], **options))
    assert torch.equal(*drawn)


def test_a_beam_search_is_right_or_refused(model, name, texts, edits):
    refused = pytest.raises(RuntimeError, match="beam search needs use_cache=False")
    with fast_scan(model, edits=edits):
        expected = generate(model, texts, num_beams=3, use_cache=False)[0]
        with refused if name in LOSES_BEAMS else nullcontext():
            assert torch.equal(generate(model, texts, num_beams=3)[0], expected)
    assert "generate" not in vars(model)


@pytest.mark.parametrize("inside_first", [True, False])
def test_a_cache_passes_between_the_suites_code_and_the_stock(model, name, texts, inside_first):
    if name in STOCK_STEPS_DIFFER:
        pytest.skip("this version's own code does not go on as it began")
    stack, step = ExitStack(), []

    def change_over(ids: Tensor, scores: Tensor) -> Tensor:
        step.append(None)
        if len(step) == NEW // 2:
            stack.close() if inside_first else stack.enter_context(fast_scan(model))
        return scores

    with stack:
        if inside_first:
            stack.enter_context(fast_scan(model))
        tokens, logits = generate(model, texts, logits_processor=[change_over])
    assert len(step) == NEW
    assert relative_error(logits, read_whole(model, tokens, texts[1])) <= 1e-5


def read_first(model: Any, ids: Tensor) -> Any:
    """The cache that a Mamba makes for itself and fills with these tokens."""
    return model(input_ids=ids, use_cache=True)[1]


def read_on(model: Any, ids: Tensor, cache: Any, begins_at: int) -> Tensor:
    """Logits of the tokens that follow those in the cache of a Mamba."""
    name = "cache" if "cache" in forward_signature(type(model)).parameters else "cache_params"
    given = {} if IS_VERSION_5 else {"cache_position": torch.arange(begins_at, begins_at + 1)}
    return model(input_ids=ids, use_cache=True, **{name: cache}, **given).logits


@pytest.fixture
def mamba() -> Any:
    return make_model("mamba")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def test_positions_are_known_where_the_text_was_read_inside_alone(mamba, texts):
    ids = texts[0][:1]
    with fast_scan(mamba, edits={0: at_odd_positions}):
        cache = read_first(mamba, ids)
    with fast_scan(mamba, edits={0: at_odd_positions}):  # another context may go on
        read_on(mamba, ids[:, :1], cache, LENGTH)
    read_on(mamba, ids[:, :1], cache, LENGTH + 1)
    with (
        fast_scan(mamba, edits={0: at_odd_positions}),
        pytest.raises(ValueError, match="cache was filled outside fast_scan, so that the pos"),
    ):
        read_on(mamba, ids[:, :1], cache, LENGTH + 2)


def test_counts_go_with_their_cache(mamba, texts):
    gc.collect()  # of those of other tests
    before = len(caches._COUNTED)
    with fast_scan(mamba, edits={0: at_odd_positions}):
        cache = read_first(mamba, texts[0])
        assert len(caches._COUNTED) == before + 1
    del cache
    gc.collect()
    assert len(caches._COUNTED) == before


def test_a_memory_in_half_precision_keeps_the_state_in_float32(texts):
    model = make_model("mamba").to(torch.bfloat16)
    with fast_scan(model):
        cache = read_first(model, texts[0])
    mixer = model.backbone.layers[0].mixer
    memory = caches.read_memory(mixer, cache, torch.tensor([LENGTH]))
    assert memory is not None
    assert memory.state.dtype == torch.float32
    assert memory.conv_input.dtype == torch.bfloat16


def test_what_a_cache_cannot_follow_is_refused(mamba, texts):
    ids = texts[0][:1]

    def branching(stage: str, x: Tensor) -> Tensor:
        return x.expand(3, -1, -1) if stage == "u" else x

    cases: list[tuple[dict[str, Any], str]] = [
        ({"edits": {0: branching}}, "edit of layer 0 makes 3 rows of 1, which a cache cannot"),
        ({"memories": {}}, "a call with a cache goes not with memories"),
        ({"recompute": [0]}, "a call with a cache goes not with recompute"),
    ]
    for options, message in cases:
        with fast_scan(mamba, **options), pytest.raises(RuntimeError, match=message):
            read_first(mamba, ids)


def test_a_cache_of_another_make_is_refused(mamba):
    mixer = mamba.backbone.layers[0].mixer
    with pytest.raises(UnsupportedModelError, match="MambaMixer was given a cache of class dict"):
        caches.read_memory(mixer, {}, None)


def test_a_cache_that_is_to_be_cut_back_is_refused(mamba, texts):
    if not IS_VERSION_5:
        pytest.skip("no cache of version 4 can be cut back")
    cache = read_first(mamba, texts[0])
    cache.activate_past_recording()
    with (
        fast_scan(mamba),
        pytest.raises(UnsupportedModelError, match="state of an SSM cannot be cut back"),
    ):
        read_on(mamba, texts[0][:, :1], cache, LENGTH)

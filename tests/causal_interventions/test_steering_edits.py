"""A model steered: what reaches the logits, of every family, read whole or generated."""

from typing import Any

import pytest
import reference
import torch
from conftest import make_tiny_model
from mamba3_cases import KINDS, make_mamba3, twin_of
from torch import Tensor

from benchmarks.family_models import MODELS, make_model, ssm_layers
from causal_interventions.interventions import reset_state
from causal_interventions.steering_edits import MODES, moved, steered
from causal_interventions.steering_vectors import SITES, SteeringVector, site_shape
from mamba_mixers.mamba3 import Mamba3Cache
from mamba_mixers.recording import record_layers, record_streams
from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan, forward_from
from suite_plumbing.step_options import STEERING_MODES
from token_statistics.description import relative_error

LAYER = 1


def random_vector(model: Any, layer: int, site: str, size: float = 1.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(site_shape(model, layer, site), generator=generator)
    return SteeringVector(size * values / values.norm(), layer, site, "given")


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    model = make_model(name)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of two texts, the second padded on the left."""
    ids = torch.randint(1, 64, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    return ids, mask


@pytest.mark.parametrize("site", SITES)
def test_a_steered_generation_is_the_steered_reading_of_its_text(model, name, texts, site):
    ids, mask = texts
    vector = random_vector(model, ssm_layers(name)[-1], site, 2.0)
    whole_mask = torch.cat([mask, mask.new_ones(2, 5)], 1)
    with fast_scan(model), torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
    for mode in MODES:
        with steered(model, vector, 1.5, mode), torch.no_grad():
            output = model.generate(
                ids, attention_mask=mask, max_new_tokens=5, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            given = {"input_ids": output.sequences, "attention_mask": whole_mask}
            whole = model(**given, use_cache=False).logits[:, -6:-1]
        logits = torch.stack(output.logits, 1)
        assert torch.equal(output.sequences[:, 10:], whole.argmax(-1))
        assert float((logits - whole).norm() / whole.norm()) <= 1e-5  # float32
        assert float((logits[:, 0] - plain).norm() / plain.norm()) > 1e-4  # it was steered


@pytest.mark.parametrize("start", [4, 10])
@pytest.mark.parametrize("site", SITES)
def test_a_generation_is_steered_from_a_token_on(model, name, texts, site, start):
    """Each row counts its own tokens; of the second, with 6 of them, 10 is the last generated."""
    ids, mask = texts
    vector = random_vector(model, 1 if site == "residual" else ssm_layers(name)[-1], site, 2.0)
    with steered(model, vector, 1.5, "add", start), torch.no_grad():
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        alone = [output.sequences[:1], output.sequences[1:, 4:]]
        whole = [model(input_ids=row, use_cache=False).logits[0] for row in alone]
    with fast_scan(model), torch.no_grad():
        plain = [model(input_ids=row, use_cache=False).logits[0] for row in alone]
    for found, steered_text, clean in zip(torch.stack(output.logits, 1), whole, plain, strict=True):
        # float32, of a padded batch in steps and of a text alone; in float64 it is 3e-8.
        assert relative_error(found, steered_text[-7:-1]) <= 2e-5
        assert relative_error(steered_text[:start], clean[:start]) <= 1e-6
        assert relative_error(steered_text[start:], clean[start:]) > 1e-4


def tiny_ids() -> Tensor:
    return torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(1))


def replay_under(model: Any, vector: SteeringVector, coefficient: float, mode: str) -> MixerReplay:
    with steered(model, vector, coefficient, mode):
        return record_layers(model, [LAYER], tiny_ids())[LAYER].replay


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("site", ["mixer", "neurons", "delta"])
def test_a_stage_is_what_its_definition_says(site, mode):
    model = make_tiny_model()
    vector = random_vector(model, LAYER, site)
    kept: list[Tensor] = []
    stage = {"mixer": "output", "neurons": "gated", "delta": "delta"}[site]
    for coefficient in (0.0 if mode != "scale" else 1.0, 0.7):
        with (
            steered(model, vector, coefficient, mode),
            fast_scan(model, observe=_keep(kept, stage)),
        ):
            model(tiny_ids(), use_cache=False)
    clean, found = (x.detach().double() for x in kept)
    v = vector.values.double()
    unit = v / v.norm()
    expected = {
        "add": clean + 0.7 * v,
        "project": clean - 0.7 * (clean @ unit)[..., None] * unit,
        "scale": torch.where(v != 0, 0.7 * clean, clean),
    }[mode]
    expected = expected.clamp_min(0) if site == "delta" else expected
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32


def _keep(kept: list[Tensor], stage: str):
    def observe(layer: int, replay: MixerReplay) -> None:
        if layer == LAYER:
            kept.append(getattr(replay, stage))

    return observe


@pytest.mark.parametrize("mode", MODES)
def test_a_state_is_read_as_steered_and_carried_on_as_it_was(mode):
    model = make_tiny_model()
    vector = random_vector(model, LAYER, "state")
    clean: list[MixerReplay] = []
    with fast_scan(model, observe=lambda i, replay: clean.append(replay) if i == LAYER else None):
        model(tiny_ids(), use_cache=False)
    kept: list[MixerReplay] = []
    with (
        steered(model, vector, 0.7, mode),
        fast_scan(model, observe=lambda i, replay: kept.append(replay) if i == LAYER else None),
    ):
        model(tiny_ids(), use_cache=False)
    operands = {k: getattr(clean[0], k).detach() for k in ("u", "delta", "A", "B", "C")}
    _, h = reference.scan(**reference.heads_form(**operands))
    change = moved(h.squeeze(-2), vector.values.double(), 0.7, mode) - h.squeeze(-2)
    expected = torch.einsum("bln,bldn->bld", operands["C"].double(), change)
    found = (kept[0].y - clean[0].y).detach().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32
    assert torch.equal(kept[0].memory.state, clean[0].memory.state)


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model(tiny_ids(), use_cache=False).logits


@pytest.mark.parametrize("site", SITES)
def test_contexts_within_each_other_add_up(site):
    model = make_tiny_model()
    vector = random_vector(model, LAYER, site)
    with steered(model, vector, 0.25), steered(model, vector, 0.5):
        twice = logits_of(model)
    with steered(model, vector, 0.75):
        torch.testing.assert_close(twice, logits_of(model), rtol=0, atol=1e-5)
    with steered(model, vector, 0.75), steered(model, random_vector(model, 2, "mixer"), 0.5):
        both = logits_of(model)
    with steered(model, random_vector(model, 2, "mixer"), 0.5), steered(model, vector, 0.75):
        assert torch.equal(logits_of(model), both)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_a_direction_that_was_taken_out_is_gone():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    v = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert float((moved(x, v, 1.0, "project") * v).sum((-1, -2)).abs().max()) <= 1e-5
    mirrored = (moved(x, v, 2.0, "project") * v).sum((-1, -2))
    torch.testing.assert_close(mirrored, -(x * v).sum((-1, -2)), rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused():
    model = make_tiny_model()
    vector = random_vector(model, LAYER, "state")
    for coefficient, mode, message in [
        (float("nan"), "add", "coefficient is nan"),
        ("2", "add", "coefficient is '2'"),
        (1.0, "push", "mode is 'push'"),
    ]:
        with pytest.raises(ValueError, match=message), steered(model, vector, coefficient, mode):
            raise AssertionError("the context must not be entered")
    wrong: list[Any] = [-1, 2.5, True, "3"]
    for start in wrong:
        with pytest.raises(ValueError, match="start is"), steered(model, vector, 1.0, start=start):
            raise AssertionError("the context must not be entered")
    with (
        fast_scan(model, edits=reset_state(3, LAYER)),
        steered(model, vector, 1.0, "project"),
        pytest.raises(ValueError, match="a state that is reset can be added to, not projected"),
    ):
        logits_of(model)


def test_the_command_line_names_what_there_is():
    assert STEERING_MODES == MODES


def test_the_stream_is_steered_from_its_token_on():
    model, ids = make_tiny_model(), tiny_ids()
    vector = random_vector(model, LAYER, "residual")
    stream = record_streams(model, [LAYER], ids)[LAYER][0].detach().clone()
    stream[:, 5:] += 0.7 * vector.values
    with torch.no_grad():
        expected = forward_from(model, LAYER, stream)
    with steered(model, vector, 0.7, start=5):
        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)
    with steered(model, vector, 0.7, start=9):  # a token that the text does not have
        found = logits_of(model)
    torch.testing.assert_close(found, model(ids, use_cache=False).logits, rtol=0, atol=1e-5)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mimo normed, with MLPs"])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_a_mamba3_reads_its_state_as_steered_in_each_tokens_frame(kind, mode):
    """Beside the loop over tokens, turned there and back."""
    model = make_mamba3(kind).double()
    vector = random_vector(model, 1, "state")
    kept: list[MixerReplay] = []

    def keep(layer: int, replay: MixerReplay) -> None:
        if layer == 1:
            kept.append(replay)

    with fast_scan(model, observe=keep):
        model(tiny_ids())
    with steered(model, vector, 0.7, mode), fast_scan(model, observe=keep):
        model(tiny_ids())
    stream = record_streams(model, [1], tiny_ids())[1][0]
    block = model.backbone.layers[1]
    twin = twin_of(block.mixer, block.norm(stream))
    halves = bool(block.mixer.is_mimo)

    def turned(x: Tensor, sign: int) -> Tensor:
        parts = [reference._turned(x[:, t], sign * twin["theta"][:, t], halves=halves)
                 for t in range(x.shape[1])]  # fmt: skip
        return torch.stack(parts, 1)

    plain = turned(twin["h"], -1)
    values = vector.values.double()
    change = moved(plain.flatten(2, 3), values, 0.7, mode).view_as(plain) - plain
    ranked = torch.einsum("blhpn,blhrn->blhrp", turned(change, 1), twin["c"])
    if halves:
        gate = twin["z"].unflatten(2, (ranked.shape[2], -1)).unsqueeze(3) * block.mixer.mimo_z
        ranked = ranked * torch.nn.functional.silu(gate) * block.mixer.mimo_o
    found = kept[1].y - kept[0].y
    assert relative_error(found, ranked.sum(3).flatten(2)) <= 1e-6  # the vector is of float32
    assert torch.equal(kept[1].memory.state, kept[0].memory.state)


@pytest.mark.parametrize("kind", ["siso normed", "mimo, all turning, heavy tail"])
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_a_mamba3_in_parts_is_steered_as_the_whole_text(kind, site):
    model, ids = make_mamba3(kind), tiny_ids()
    vector = random_vector(model, 1, site)
    for mode in MODES:
        with steered(model, vector, 1.5, mode, start=3):
            whole, cache = model(ids).logits, Mamba3Cache()
            parts = [model(part, cache=cache).logits for part in ids.split([5, 1, 1, 2], 1)]
        assert relative_error(torch.cat(parts, 1), whole) <= 1e-5  # float32
        assert relative_error(whole, model(ids).logits) > 1e-4

"""Mixers of every family are found, rebuilt to rounding, and unknown without their row."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from benchmarks.family_models import (
    FAULTY,
    FAULTY_BEYOND,
    MODELS,
    family_of,
    final_states,
    make_model,
    mixers_of,
    ssm_layers,
)
from mamba_mixers import families
from mamba_mixers.families import FAMILIES
from mamba_mixers.recording import record_layers
from mamba_mixers.replay import replay_mixer
from mamba_mixers.sites import UnsupportedModelError, find_mixers, num_layers
from selective_scan.attention import implicit_attention
from token_statistics.description import relative_error

# The suite's bounds: the rounding of each precision, grown over a layer's operations.
REPLAY_BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}

# Mamba-1's code in transformers keeps float64, but for A and what enters the state; Mamba-2's
# scans in float32.
FLOAT64_BOUND = {"mamba1": 1e-10, "mamba2": 1e-5}

LENGTH, PADDING = 21, 6


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_model(name)


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of two texts, the second shorter and padded on the left."""
    ids = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :PADDING], mask[1, :PADDING] = 0, 0
    return ids, mask


@pytest.fixture(scope="module")
def records(model, texts):
    return record_layers(model, list(find_mixers(model)), *texts)


def input_of(record: Any, seed: int = 0) -> Tensor:
    """An input for a mixer of this record's size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(record.mixer_output.shape, generator=generator)


def form_of(mixer: Any) -> str:
    return "mamba2" if hasattr(mixer, "dt_bias") else "mamba1"


def heads_form(replay: Any) -> dict[str, Tensor]:
    """The operands of a replay in heads form, as the twins take them."""
    heads = replay.delta.shape[2]
    groups = {key: getattr(replay, key) for key in ("B", "C")}
    groups = {key: x.unsqueeze(2) if x.dim() == 3 else x for key, x in groups.items()}
    u = replay.u.unflatten(2, (heads, -1))
    return {"u": u, "delta": replay.delta, "A": replay.A, **groups}


def test_mixers_are_found_in_the_layers_that_have_one(model, name):
    sites = find_mixers(model)
    assert list(sites) == ssm_layers(name)
    assert [site.mixer for site in sites.values()] == mixers_of(model)
    assert {site.family.model_type for site in sites.values()} == {family_of(name)}
    assert num_layers(model) == model.config.num_hidden_layers


def test_replay_gives_the_mixers_output(model, name, texts, records):
    ids = texts[0]
    if name in FAULTY:
        # A fault of this version of transformers, in long texts: it shows, and only there.
        assert max(float(record.replay_error.max()) for record in records.values()) > 1e-3
        records = record_layers(model, ssm_layers(name), ids[:, PADDING : PADDING + FAULTY_BEYOND])
    for record in records.values():
        assert float(record.replay_error.max()) <= REPLAY_BOUND[torch.float32]


@pytest.mark.parametrize("dtype", REPLAY_BOUND)
def test_replay_of_a_mixer_alone_in_every_precision(name, texts, records, dtype):
    model = make_model(name).to(dtype)
    for layer, site in find_mixers(model).items():
        x, mask = input_of(records[layer]).to(dtype), texts[1]
        if name in FAULTY:
            x, mask = x[:, -FAULTY_BEYOND:], None
        with torch.no_grad():
            real, replay = site.mixer(x, attention_mask=mask), replay_mixer(site, x, mask)
        keep = slice(None) if mask is None else mask.bool()
        error = relative_error(replay.output[keep].float(), real[keep].float())
        assert error <= REPLAY_BOUND[dtype]
        assert replay.output.dtype == dtype
        # The scan is never run in half precision.
        assert replay.y.dtype == replay.delta.dtype == replay.memory.state.dtype == torch.float32


def test_replay_of_a_mixer_alone_in_float64(name, texts, records):
    model = make_model(name).double()
    for layer, site in find_mixers(model).items():
        x, mask = input_of(records[layer]).double(), texts[1]
        if name in FAULTY:
            x, mask = x[:, -FAULTY_BEYOND:], None
        with torch.no_grad():
            real, replay = site.mixer(x, attention_mask=mask), replay_mixer(site, x, mask)
        keep = slice(None) if mask is None else mask.bool()
        error = relative_error(replay.output[keep], real[keep])
        assert error <= FLOAT64_BOUND[form_of(site.mixer)]


def test_the_last_state_is_that_of_the_models_own_cache(model, name, texts, records):
    ids, mask = texts
    if name in FAULTY:
        ids, mask = ids[:, -FAULTY_BEYOND:], torch.ones_like(ids[:, -FAULTY_BEYOND:])
        records = record_layers(model, list(records), ids, mask)
    for layer, state in final_states(model, list(records), ids, mask).items():
        replayed = records[layer].replay.memory.state
        assert relative_error(replayed, state.reshape(replayed.shape)) <= 1e-5


def test_the_scan_is_that_of_the_loop_and_attention_gives_its_output(name, records):
    for record in records.values():
        replay = record.replay
        operands = heads_form(replay)
        y, h = reference.scan(**operands, D=replay.D.detach())
        assert relative_error(replay.y, y.flatten(2)) <= 1e-5
        assert relative_error(replay.memory.state, h[:, -1].flatten(1, 2)) <= 1e-5
        alpha = implicit_attention(replay.delta, replay.A, replay.B, replay.C)
        attended = torch.einsum("bhts,bshp->bthp", alpha, operands["u"])
        attended = attended + replay.D.detach()[:, None] * operands["u"]
        assert relative_error(attended.flatten(2), y.flatten(2)) <= 1e-5
        # The SSM has a share in y, or nothing here would say anything of it.
        skip = (replay.D.detach()[:, None] * operands["u"]).flatten(2)
        assert float((y.flatten(2) - skip).norm() / y.norm()) > 0.02


def test_padding_and_company_change_no_text(model, name, texts, records):
    alone = record_layers(model, list(records), texts[0][1:, PADDING:])
    # Behind a layer that transformers computes wrongly, the next one's input is wrong.
    layers = list(records)[:1] if name in FAULTY else list(records)
    for layer, record in ((layer, records[layer]) for layer in layers):
        assert not bool(record.replay.u[1, :PADDING].any())
        for stage in ("u", "delta", "B", "C", "gate", "y", "gated", "output"):
            value = getattr(record.replay, stage)[1, PADDING:]
            assert relative_error(value, getattr(alone[layer].replay, stage)[0]) <= 1e-5, stage


def test_without_its_row_a_family_is_unknown_and_no_other_is(monkeypatch, model, name):
    for row in FAMILIES:
        others = tuple(other for other in FAMILIES if other is not row)
        monkeypatch.setattr(families, "FAMILIES", others)
        if row.model_type == family_of(name):
            with pytest.raises(UnsupportedModelError, match="layers have an A_log"):
                find_mixers(model)
        else:
            assert list(find_mixers(model)) == ssm_layers(name)

"""Vectors are what the model's own values say, at every site, token and padding."""

import pytest
import torch
from conftest import make_tiny_model
from torch import Tensor

from benchmarks.family_models import make_model, ssm_layers
from causal_interventions.steering_vectors import (
    METHODS,
    SITES,
    check_site,
    contrast,
    given_vector,
    load_vector,
    random_vectors,
    site_shape,
    site_values,
)
from mamba_mixers.recording import record_layers
from suite_plumbing.result_files import write_tensors
from suite_plumbing.step_options import STEERING_METHODS, STEERING_SITES
from suite_plumbing.texts import EncodedText

LAYER = 1


def encoded(length: int, seed: int) -> EncodedText:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (length,), generator=generator).tolist()
    return EncodedText("text", ids, [str(i) for i in ids], None, length, False)


TEXTS = [encoded(9, 0), encoded(5, 1), encoded(7, 2)]


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


def alone(model, text: EncodedText, site: str, end: int) -> Tensor:
    """The value after a text's first ``end`` tokens, from a pass of its own."""
    record = record_layers(model, [LAYER], torch.tensor([text.input_ids[:end]]))[LAYER]
    return {
        "residual": record.block_input[0, -1],
        "mixer": record.mixer_output[0, -1],
        "neurons": record.replay.gated[0, -1],
        "delta": record.replay.delta[0, -1],
        "state": record.replay.memory.state[0],
    }[site]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("position", [-1, 2, -3])
def test_values_are_those_of_each_text_alone(model, site, position):
    found = site_values(model, TEXTS, LAYER, site, position, 0)
    for value, text in zip(found, TEXTS, strict=True):
        end = position % len(text.input_ids) + 1
        torch.testing.assert_close(value, alone(model, text, site, end), rtol=0, atol=1e-5)
    assert tuple(found.shape[1:]) == site_shape(model, LAYER, site)


@pytest.mark.parametrize("site", SITES)
def test_the_mean_is_over_a_texts_own_tokens(model, site):
    found = site_values(model, TEXTS, LAYER, site, None, 0)
    for value, text in zip(found, TEXTS, strict=True):
        ends = range(1, len(text.input_ids) + 1)
        mean = torch.stack([alone(model, text, site, end) for end in ends]).mean(0)
        torch.testing.assert_close(value, mean, rtol=0, atol=1e-5)


def test_a_contrast_is_the_difference_of_means():
    a, b = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[0.0, 1.0]])
    assert contrast(a, b).tolist() == [2.0, 3.0]


def test_the_first_direction_is_the_one_that_pairs_share():
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(4, 6, generator=generator)
    unit = direction / direction.norm()
    negative = torch.randn(30, 4, 6, generator=generator)
    steps = 3 + torch.rand(30, 1, 1, generator=generator)
    noise = 0.01 * torch.randn(30, 4, 6, generator=generator)
    found = contrast(negative + steps * unit + noise, negative, "pca")
    # Along the planted direction, of the mean step's length; the noise turns it by 0.01 / 3.
    assert float((found * unit).sum()) == pytest.approx(float(steps.mean()), rel=1e-2)
    assert float((found * unit).sum() / found.norm()) > 0.9999
    turned = contrast(negative, negative + steps * unit, "pca")
    assert float((turned * unit).sum()) < 0


def test_random_vectors_have_the_norm_and_point_anywhere(model):
    vector = given_vector(model, torch.arange(32.0), LAYER, "residual")
    drawn = random_vectors(vector, 50, torch.Generator().manual_seed(0))
    for one in drawn:
        assert float(one.norm()) == pytest.approx(vector.norm, rel=1e-5)
    cosines = torch.stack([(one * vector.values).sum() / vector.norm**2 for one in drawn])
    # Of 32 dimensions: standard deviation 0.18, of the mean of 50 of them 0.025.
    assert abs(float(cosines.mean())) < 0.1
    assert 0.1 < float(cosines.std()) < 0.26


@pytest.mark.parametrize("site", SITES)
def test_a_saved_vector_comes_back(model, tmp_path, site):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(site_shape(model, LAYER, site), generator=generator)
    vector = given_vector(model, values, LAYER, site, "pca")
    found = load_vector(vector.save(tmp_path / "vector.safetensors"))
    assert torch.equal(found.values, values)
    assert found.to_dict() == vector.to_dict()


def test_hybrids_have_a_stream_in_every_layer_and_the_rest_where_an_ssm_is():
    model = make_model("jamba")
    assert ssm_layers("jamba") == [0, 2]
    assert check_site(model, 1, "residual") == 1
    assert check_site(model, -1, "state") == 2
    with pytest.raises(ValueError, match=r"layer is 1; site 'state' is there in layers \[0, 2\]"):
        check_site(model, 1, "state")


@pytest.mark.parametrize(
    ("values", "layer", "site", "message"),
    [
        (torch.ones(31), 1, "residual", r"vector has shape \(31,\); site 'residual' .* takes \(32"),
        (torch.full((32,), torch.nan), 1, "residual", "vector holds NaN or infinity"),
        (torch.zeros(32), 1, "residual", "vector is all zeros"),
        ("east", 1, "residual", "vector is 'east'; pass numbers"),
        (torch.ones(32), 4, "residual", r"layer is 4; site 'residual' is there in layers"),
        (torch.ones(32), "x", "residual", "layer is 'x'; site"),
        (torch.ones(32), 1, "head", "site is 'head'.*residual.*mixer.*neurons.*delta.*state"),
    ],
)  # fmt: skip
def test_a_vector_that_cannot_be_is_refused(model, values, layer, site, message):
    with pytest.raises(ValueError, match=message):
        given_vector(model, values, layer, site)


def test_a_position_outside_a_text_and_pairs_that_are_none_are_refused(model):
    with pytest.raises(ValueError, match="position is 5, but text 1 has 5 tokens; positions count"):
        site_values(model, TEXTS, LAYER, "residual", 5, 0)
    a = torch.ones(3, 4)
    with pytest.raises(ValueError, match="'pca' needs pairs, at least 2; there are 3 positive and"):
        contrast(a, a[:2], "pca")
    with pytest.raises(ValueError, match="method is 'lda'"):
        contrast(a, a, "lda")


def test_a_file_that_holds_no_vector_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="cannot be read"):
        load_vector(path)
    write_tensors(path, {"weights": torch.ones(3)})
    with pytest.raises(ValueError, match="no steering vector; pass a file that SteeringVector.s"):
        load_vector(path)


def test_the_command_line_names_what_there_is():
    assert STEERING_SITES == SITES
    assert STEERING_METHODS == METHODS

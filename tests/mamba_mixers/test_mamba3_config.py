"""Configurations of Mamba-3, and of official checkpoints, that make no model are refused."""

import pytest
from mamba3_cases import SIZES, make_mamba3, write_official

from mamba_mixers.mamba3_config import Mamba3Config
from suite_plumbing.models import load_model


def test_what_is_not_given_is_the_official_default(tmp_path):
    config = Mamba3Config(hidden_size=256, tie_word_embeddings=False, pad_token_id=3)
    assert (config.d_inner, config.num_heads, config.num_rope_angles, config.ranks) == (
        512,
        8,
        32,
        1,
    )
    config.save_pretrained(tmp_path)
    read = Mamba3Config.from_pretrained(tmp_path)
    assert read.to_dict() == config.to_dict()
    assert (read.hidden_size, read.tie_word_embeddings, read.pad_token_id) == (256, False, 3)
    assert Mamba3Config().tie_word_embeddings


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("mimo", {"is_mimo": False}, "is_mimo False, and the weights hold the parameters of MIMO"),
        ("siso", {"is_mimo": True}, "is_mimo True, and the weights lack the parameters of MIMO"),
        ("siso", {"headdim": 64}, "headdim .* gives 64, the weights have 3"),
        ("siso", {"d_state": 12}, "d_state .* gives 12, the weights have 10"),
        ("siso", {"rope_fraction": 1.0}, "rope_fraction .* gives 5, the weights have 2"),
        ("mimo", {"mimo_rank": 4}, "mimo_rank .* gives 4, the weights have 3"),
    ],
)
def test_an_official_configuration_that_does_not_fit_is_refused(kind, changed, message, tmp_path):
    folder = write_official(make_mamba3(kind), tmp_path, **changed)
    with pytest.raises(ValueError, match=message):
        load_model(folder, a_activation="softplus")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_dim": 7}, "expand 2 times hidden_size 12 is no multiple of head_dim 7"),
        ({"n_groups": 3}, "n_groups is 3; it must divide the 8 heads"),
        ({"state_size": 9}, "state_size is 9 .*give an even number"),
        ({"rope_fraction": 0.05}, "rope_fraction 0.05; states turn in pairs"),
        (
            {"a_activation": "relu"},
            "a_activation is 'relu'; it must be one of softplus, heavy_tail",
        ),
        ({"A_floor": -1.0}, "A_floor is -1.0; it must not be negative"),
        ({"mimo_rank": 0}, "mimo_rank is 0"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Mamba3Config(**(SIZES | changed))

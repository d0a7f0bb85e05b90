"""A replay that is not the model's own is named, by family, version, path and layer."""

import importlib.metadata
import logging

import pytest
import torch
from conftest import make_tiny_model

from benchmarks.family_models import make_model
from mamba_mixers.replay_check import replay_check, replay_tolerance

GOOD = {"text_0": {"layer_0": 1e-7, "layer_1": 2e-7}}
BAD = {"text_0": {"layer_0": 1e-7, "layer_1": 0.2}, "text_1": {"layer_0": 1e-7, "layer_1": 0.1}}


def ours(caplog):
    """Messages of the check itself; versions of transformers say things of their own."""
    name = "mamba_mixers.replay_check"
    return [record.getMessage() for record in caplog.records if record.name == name]


def test_errors_within_rounding_agree(caplog):
    with caplog.at_level(logging.WARNING):
        check = replay_check(make_tiny_model(), GOOD)
    assert check == {
        "replay_error": GOOD,
        "largest_replay_error": 2e-7,
        "replay_tolerance": 1e-5,
        "replay_agrees": True,
        "replay_mismatch": None,
    }
    assert not ours(caplog)


def test_an_error_beyond_rounding_is_named_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        check = replay_check(make_model("zamba2"), BAD)
    assert check["replay_agrees"] is False
    mismatch = check["replay_mismatch"]
    assert mismatch["family"] == "zamba2"
    assert mismatch["transformers"] == importlib.metadata.version("transformers")
    assert mismatch["path"].startswith("cpu")
    assert mismatch["layers"] == {"layer_1": 0.2}
    for part in ("zamba2", mismatch["transformers"], mismatch["path"], "2.0e-01", "attention"):
        assert part in mismatch["message"]
    assert ours(caplog) == [mismatch["message"]]


def test_an_error_that_is_no_number_does_not_agree():
    check = replay_check(make_tiny_model(), {"text_0": {"layer_0": float("nan")}})
    assert check["replay_agrees"] is False
    assert list(check["replay_mismatch"]["layers"]) == ["layer_0"]


def test_without_a_text_nothing_is_said():
    assert replay_check(make_tiny_model(), {})["replay_agrees"] is None


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("mamba", torch.float32, 1e-5),
        ("mamba", torch.float64, 1e-7),  # u and B are rounded to float32 on the way
        ("mamba", torch.bfloat16, 1e-2),
        ("mamba2", torch.float32, 1e-5),
        ("mamba2", torch.float64, 1e-5),  # its scans are in float32
        ("mamba2", torch.float16, 1e-2),
    ],
)
def test_the_tolerance_is_that_of_the_models_rounding(name, dtype, tolerance):
    assert replay_tolerance(make_model(name).to(dtype)) == tolerance

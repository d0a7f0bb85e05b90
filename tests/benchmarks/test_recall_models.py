"""Small models of recall: trained a little, kept, and found again."""

import pytest
import torch

from benchmarks.recall_models import FAMILIES, accuracy, fresh_model, train, trained_model


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_a_fresh_model_and_says_how(family):
    model, log = train(family, "passkey", max_steps=2)
    assert log["steps"] == 2
    assert 0 <= log["accuracy"] <= 1
    fresh = fresh_model(family)
    assert not torch.equal(model.lm_head.weight, fresh.lm_head.weight)
    assert torch.equal(fresh.lm_head.weight, fresh_model(family).lm_head.weight)
    assert accuracy(fresh, "passkey", 64) < 0.5


def test_a_trained_model_is_found_again(tmp_path):
    first, log = trained_model(tmp_path, "mamba", "passkey", max_steps=2)
    second, again = trained_model(tmp_path, "mamba", "passkey", max_steps=5)
    assert again == log
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_models_of_other_seeds_are_others(tmp_path):
    first, _ = trained_model(tmp_path, "mamba", "passkey", max_steps=1)
    other, log = trained_model(tmp_path, "mamba", "passkey", 3, max_steps=1)
    assert log["seed"] == 3
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert (tmp_path / "mamba_passkey_3" / "training_log.json").is_file()

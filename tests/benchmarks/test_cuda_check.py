"""The check of a CUDA machine runs anywhere, and keeps no figure of a CPU."""

import torch

from benchmarks import cuda_check
from benchmarks.family_models import make_model, ssm_layers

CPU = torch.device("cpu")


def test_every_row_runs_at_tiny_sizes(capsys):
    assert cuda_check.main(["--smoke"]) == 0
    printed = capsys.readouterr().out
    assert "| mamba | float32 |" in printed
    assert printed.count("| tiny | float32 |") == 5
    assert "too small" not in printed


def test_figures_of_a_cpu_are_not_kept(capsys):
    assert cuda_check.main(["--smoke", "--save"]) == 2
    assert "rows of a CPU are no result to keep" in capsys.readouterr().err


def test_another_model_on_the_device_is_told(monkeypatch):
    """A device that computed something else would show in every column."""
    make, made = make_model, []

    def other_on_the_device(name):
        model = make(name)
        made.append(model)
        if len(made) == 2:  # that of the outcome on the device
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
        return model

    monkeypatch.setattr(cuda_check, "make_model", other_on_the_device)
    found = cuda_check.agreement("mamba2", torch.float32, CPU)
    for error in (found.logits, found.state, found.map, found.gradient):
        assert error is not None
        assert error > 1e-3


def test_a_continuation_is_that_of_generate():
    model = make_model("mamba")
    assert ssm_layers("mamba") == [0, 1]
    ids = cuda_check.padded_ids()[0][:1]
    stock = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert cuda_check.greedy(model, ids, 5) == stock[0, -5:].tolist()


def test_what_has_no_time_left_is_named():
    row = cuda_check.timed(cuda_check.TINY[0], torch.float32, "map", lambda: 1 / 0, CPU, 0.0)
    assert row.seconds is None
    assert row.remark == "no time left"

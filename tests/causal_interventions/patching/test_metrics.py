"""Metrics by their definitions, and gradients through them."""

import math

import pytest
import torch

from causal_interventions.patching.metrics import METRICS, Answers, measured


def test_metrics_are_what_they_say():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    answers = Answers(torch.tensor([[1, 0], [2, 1]]), torch.tensor([[0.2, 0.5, 0.3]] * 2).log())
    assert measured("logit_difference", logits, answers).tolist() == [1.0, 5.0]
    p = [math.exp(x) / (math.e + math.e**2 + 1) for x in (1, 2, 0)]
    found = measured("log_probability", logits, answers)
    assert math.isclose(float(found[0]), math.log(p[1]), rel_tol=1e-6)
    kl = sum(c * math.log(c / q) for c, q in zip((0.2, 0.5, 0.3), p, strict=True))
    assert math.isclose(float(measured("kl", logits, answers)[0]), -kl, rel_tol=1e-5)
    assert torch.equal(answers.rows(torch.tensor([1])).tokens, torch.tensor([[2, 1]]))


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_measured_in_float32_and_float64_stays(metric):
    answers = Answers(torch.tensor([[1, 0]]), torch.tensor([[0.2, 0.5, 0.3]]).log())
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        logits = torch.tensor([[1.0, 2.0, 0.0]], dtype=dtype, requires_grad=True)
        value = measured(metric, logits, answers)
        assert value.dtype == expected
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert bool(gradient.any())


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric is 'loss'.*logit_difference"):
        measured("loss", torch.zeros(1, 2), Answers(torch.zeros(1, 2).long(), torch.zeros(1, 2)))

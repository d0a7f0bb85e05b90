"""Perturbation curves of additive set functions, whose areas are known in closed form."""

import itertools

import pytest
import torch

from causal_interventions.perturbation_curves import perturbation_curves


def additive(weights: torch.Tensor):
    """f(S) = sum of the weights of the tokens kept."""
    return lambda keep: keep.double() @ weights


def naive_delta_af(weights: list[float], order: list[int], num_steps: int) -> float:
    """Twin: loops over the steps, one token list at a time, trapezoids by hand."""
    length = len(order)
    counts = [round(i * length / num_steps) for i in range(num_steps + 1)]
    areas = []
    for sequence in (order[::-1], order):
        values = [sum(weights[s] for s in sequence[count:]) for count in counts]
        area = 0.0
        for i in range(num_steps):
            area += (counts[i + 1] - counts[i]) / length * (values[i] + values[i + 1]) / 2
        areas.append(area)
    return areas[0] - areas[1]


@pytest.mark.parametrize(("length", "num_steps"), [(12, 10), (64, 10), (5, 8), (3, 2), (1, 2)])
def test_curves_of_an_additive_function_match_the_loops(length, num_steps):
    generator = torch.Generator().manual_seed(length)
    weights = torch.randn(length, generator=generator, dtype=torch.float64)
    scores = torch.randn(length, generator=generator, dtype=torch.float64)
    (curve,) = perturbation_curves(additive(weights), [scores], num_steps)
    order = sorted(range(length), key=lambda s: -scores[s].item())
    expected = naive_delta_af(weights.tolist(), order, num_steps)
    # Two float64 sums of the same terms in different orders.
    assert curve.delta_af == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_perfect_order_has_the_area_of_the_closed_form():
    # One token a step. Replacing c of l tokens of weights l, l-1, ..., 1 in falling order leaves
    # (l-c)(l-c+1)/2; in rising order that of the l-c largest. The difference is c(l-c), and its
    # trapezoidal area (1/l) sum_c c(l-c) = (l^2 - 1)/6.
    length = 10
    weights = torch.arange(length, 0, -1, dtype=torch.float64)
    (curve,) = perturbation_curves(additive(weights), [weights], length)
    assert curve.delta_af == pytest.approx((length**2 - 1) / 6, rel=1e-12)
    # Shares 1/10 to 5/10: 10, 19, 27, 34, 40 gone; and what is left of 55 by keeping them alone.
    assert curve.comprehensiveness == pytest.approx((10 + 19 + 27 + 34 + 40) / 5, rel=1e-12)
    assert curve.sufficiency == pytest.approx(55 - 26, rel=1e-12)
    assert curve.most_first[0].item() == curve.least_first[0].item() == 55
    assert curve.most_first[-1].item() == curve.least_first[-1].item() == 0


def test_no_order_beats_the_perfect_one_and_all_orders_average_to_zero():
    weights = torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    orders = [
        torch.tensor(order, dtype=torch.float64) for order in itertools.permutations(range(5))
    ]
    areas = [c.delta_af for c in perturbation_curves(additive(weights), orders, 5)]
    (best,) = perturbation_curves(additive(weights), [weights], 5)
    assert max(areas) == pytest.approx(best.delta_af, rel=1e-12)
    # Every order occurs with its reverse, whose area is the opposite; float64 rounding remains.
    assert sum(areas) == pytest.approx(0.0, abs=1e-10)


def test_a_random_order_has_no_area_on_average():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, generator=generator, dtype=torch.float64)
    orders = [torch.rand(64, generator=generator) for _ in range(400)]
    areas = torch.tensor([c.delta_af for c in perturbation_curves(additive(weights), orders)])
    (best,) = perturbation_curves(additive(weights), [weights])
    # Four standard errors of the mean: beyond that by chance in 6 of 100,000 seeds.
    assert areas.mean().abs() < 4 * areas.std() / 20
    assert best.delta_af > areas.max()


def test_equal_scores_follow_the_seed_and_not_the_text():
    weights = torch.arange(40, dtype=torch.float64)
    constant = torch.zeros(40)
    curves = [
        perturbation_curves(additive(weights), [constant], seed=seed)[0] for seed in range(200)
    ]
    areas = torch.tensor([curve.delta_af for curve in curves])
    assert areas.std() > 0
    assert areas.mean().abs() < 4 * areas.std() / 200**0.5  # as above
    again = perturbation_curves(additive(weights), [constant], seed=3)[0]
    assert torch.equal(again.most_first, curves[3].most_first)


def test_shared_variants_are_evaluated_once():
    calls = []

    def value(keep):
        calls.append(len(keep))
        return keep.double().sum(1)

    scores = torch.arange(20.0)
    perturbation_curves(value, [scores, -scores, scores + 1], 10)
    # One order and its reverse: 9 inner points each way, the whole text and none of it.
    assert calls == [20]


def test_bad_input_is_refused():
    value = additive(torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"scores must all be \(l,\) .*\(3,\), \(4,\)"):
        perturbation_curves(value, [torch.ones(4), torch.ones(3)])
    with pytest.raises(ValueError, match=r"scores must all be \(l,\)"):
        perturbation_curves(value, [])
    with pytest.raises(ValueError, match="num_steps is 1"):
        perturbation_curves(value, [torch.ones(4)], 1)

"""How a quantity falls while the parts that it is said to depend on are taken away.

A set function f of l tokens (a model's output, while some tokens are replaced) is evaluated along
the order of the tokens' scores. With f(q) the value after the share q of the tokens is taken away:

    most relevant first (MoRF)      f falls early if the scores are right
    least relevant first (LeRF)     the reverse order; f stays up
    delta_af                        area under LeRF minus area under MoRF, over q in [0, 1] [1]
    comprehensiveness               mean over q <= 1/2 of f(0) - MoRF(q) [2]: top share taken out
    sufficiency                     mean over q <= 1/2 of f(0) - LeRF(1 - q) [2]: top share kept

A random order has delta_af 0 on average. For an additive f, f(S) = sum of w_s over s in S, all
three are sums of the w_s with weights that depend on the rank of s alone, and no order has a
larger delta_af than that of w itself.

References:
  [1] Jafari, Montavon, Muller & Eberle 2024, MambaLRP: the area between the two curves
  [2] DeYoung et al. 2020, ERASER; there of a class probability, over the shares 1, 5, 10, 20 and
      50 %, with the tokens deleted. Here they are of any f and tokens are replaced, so that the
      figures do not compare with published ones
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suite_plumbing.arguments import torch_rng, validate_int

SetFunction = Callable[[Tensor], Tensor]
"""f (k,) of variants of a text that keep the tokens where the argument (k, l) is True."""


@dataclass(frozen=True, eq=False)
class PerturbationCurves:
    """f while tokens are replaced in the order of one set of scores, and in its reverse."""

    fractions: Tensor
    """(num_steps + 1,) share of the tokens replaced, from 0 to 1"""
    most_first: Tensor
    """(num_steps + 1,) f, most relevant replaced first"""
    least_first: Tensor
    """(num_steps + 1,) f, least relevant replaced first"""

    @property
    def delta_af(self) -> float:
        """Area under ``least_first`` minus that under ``most_first``, by trapezoids."""
        return float(torch.trapezoid(self.least_first - self.most_first, self.fractions))

    @property
    def comprehensiveness(self) -> float:
        """Mean fall of f when the most relevant shares up to one half are replaced."""
        half = (len(self.fractions) - 1) // 2
        return float((self.most_first[0] - self.most_first[1 : half + 1]).mean())

    @property
    def sufficiency(self) -> float:
        """Mean fall of f when only the most relevant shares up to one half are kept."""
        half = (len(self.fractions) - 1) // 2
        kept = self.least_first.flip(0)[1 : half + 1]
        return float((self.least_first[0] - kept).mean())


def perturbation_curves(
    value: SetFunction, scores: Sequence[Tensor], num_steps: int = 10, seed: int = 0
) -> list[PerturbationCurves]:
    """Curves of a set function for each of several scores (l,) of the same l tokens.

    After step i of ``num_steps`` round(i l / num_steps) tokens are replaced. Equal scores are
    ordered at random, by ``seed``: the order of the text says nothing. Variants that several
    curves share are evaluated once. Raises ValueError for scores of unequal or zero length and for
    fewer than 2 steps. Cost: at most 2 len(scores) (num_steps - 1) + 2 evaluations.
    """
    num_steps = validate_int("num_steps", num_steps, 2)
    lengths = {tuple(one.shape) for one in scores}
    if len(lengths) != 1 or len(shape := lengths.pop()) != 1 or shape[0] == 0:
        raise ValueError(f"scores must all be (l,) with one l >= 1; got shapes {sorted(lengths)}")
    length = shape[0]
    counts = (torch.arange(num_steps + 1).double() * length / num_steps).round()
    ranks = torch.stack([_ranks(one, seed) for one in scores])
    # (curve, direction, step, l): the reverse order has the rank counted from the other end.
    both = torch.stack([ranks, length - 1 - ranks], 1)
    keep = both[:, :, None, :] >= counts[:, None]
    variants, index = torch.unique(keep.flatten(0, 2), dim=0, return_inverse=True)
    values = value(variants)[index].view(len(scores), 2, num_steps + 1)
    return [
        PerturbationCurves(counts / length, most.double(), least.double()) for most, least in values
    ]


def _ranks(scores: Tensor, seed: int) -> Tensor:
    """(l,) rank of each token, 0 for the highest score; ties in random order."""
    shuffled = torch.randperm(len(scores), generator=torch_rng(seed))
    order = shuffled[scores[shuffled].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))

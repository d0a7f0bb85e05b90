"""Components of one text with a given delta; what is not given is noise."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ssm_measures.components import SSMComponents


def components(
    delta: ArrayLike, gated: ArrayLike | None = None, A: Tensor | None = None
) -> SSMComponents:
    """Components with this delta and gated output (l, d_inner), and A (d_inner, N)."""
    given = torch.as_tensor(np.asarray(delta)).float()[None]
    length, d_inner = given.shape[1:]
    rates = -torch.ones(d_inner, 2) if A is None else A.float()
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    shape = (1, length, d_inner)
    return SSMComponents(
        A=rates,
        B=noise(1, length, rates.shape[1]),
        C=noise(1, length, rates.shape[1]),
        D=torch.ones(d_inner),
        delta=given,
        u=noise(*shape),
        gate=noise(*shape),
        y=noise(*shape),
        gated=noise(*shape) if gated is None else torch.as_tensor(np.asarray(gated)).float()[None],
        conv_input=noise(*shape),
        mixer_output=noise(1, length, 4),
        attention_mask=torch.ones(1, length),
        replay_errors=(0.0,),
    )

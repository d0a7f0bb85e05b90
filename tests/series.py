"""Series with known statistics."""

import numpy as np


def ar1(phi, n, channels, seed):
    """Stationary AR(1) series (n, channels) of unit innovations: x_t = phi x_{t-1} + noise."""
    x = np.random.default_rng(seed).standard_normal((n, channels))
    x[0] /= np.sqrt(1 - phi**2)
    for t in range(1, n):
        x[t] += phi * x[t - 1]
    return x

"""Naive float64 twins of the suite's fast code: plain loops, each written from its formula.

Nothing here is shared with the modules under test. Letters and shapes are those of the glossary in
`selective_scan`, in the heads form: u (b, l, H, P), delta (b, l, H), A (H, N) or (H, 1), B and C
(b, l, G, N), D (H,), h (b, l, H, P, N). Mamba-1 is P = 1 and G = 1: see `heads_form`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def heads_form(**operands: Tensor) -> dict[str, Tensor]:
    """Mamba-1's u (b, l, d_inner) and B, C (b, l, N) as (b, l, H, 1) and (b, l, 1, N)."""
    axis = {"u": 3, "B": 2, "C": 2}
    return {name: x.unsqueeze(axis[name]) if name in axis else x for name, x in operands.items()}


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, h): h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t h_t + D u_t.

    No operation is in place, so that autograd differentiates it.
    """
    u, delta, A, B, C = (x.double() for x in (u, delta, A, B, C))
    batch, length, heads, width = u.shape
    group = group_of_head(heads, B.shape[2])
    h = torch.zeros(batch, heads, width, B.shape[3], dtype=torch.float64)
    if initial_state is not None:
        h = initial_state.double()
    states, outputs = [], []
    for t in range(length):
        decay = torch.exp(delta[:, t, :, None, None] * A[:, None, :])
        write = delta[:, t, :, None, None] * B[:, t, group, None, :] * u[:, t, :, :, None]
        h = decay * h + write
        y = (C[:, t, group, None, :] * h).sum(-1)
        if D is not None:
            y = y + D.double()[:, None] * u[:, t]
        states.append(h)
        outputs.append(y)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def trapezoid_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, own_share: Tensor
) -> tuple[Tensor, Tensor]:
    """(y, h): token t writes its share of delta B u at t and what is left of it at t + 1, decayed.

    h_t = exp(delta_t A) (h_{t-1} + (1 - k_{t-1}) delta_{t-1} B_{t-1} u_{t-1}) + k_t delta_t B_t u_t
    """
    u, delta, A, B, C, D, k = (x.double() for x in (u, delta, A, B, C, D, own_share))
    group = group_of_head(u.shape[2], B.shape[2])
    h = left = torch.zeros(*u.shape[0:1], *u.shape[2:], B.shape[3], dtype=torch.float64)
    states, outputs = [], []
    for t in range(u.shape[1]):
        write = delta[:, t, :, None, None] * B[:, t, group, None, :] * u[:, t, :, :, None]
        share = k[:, t, :, None, None]
        h = torch.exp(delta[:, t, :, None, None] * A[:, None, :]) * (h + left) + share * write
        left = (1 - share) * write
        states.append(h)
        outputs.append((C[:, t, group, None, :] * h).sum(-1) + D[:, None] * u[:, t])
    return torch.stack(outputs, 1), torch.stack(states, 1)


def group_of_head(heads: int, groups: int) -> list[int]:
    """Number of the group whose B and C a head reads."""
    return [head // (heads // groups) for head in range(heads)]


def implicit_attention(delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """alpha[h, t, s] = sum_n C_t[n] (prod_{r = s+1..t} exp(delta_r A[h, n])) delta_s B_s[n]."""
    delta, A, B, C = (x.double() for x in (delta, A, B, C))
    batch, length, heads = delta.shape
    group = group_of_head(heads, B.shape[2])
    alpha = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    for t in range(length):
        survival = torch.ones(batch, heads, B.shape[3], dtype=torch.float64)
        for s in reversed(range(t + 1)):
            kept = (C[:, t, group] * survival * B[:, s, group]).sum(-1)
            alpha[:, :, t, s] = kept * delta[:, s]
            survival = survival * torch.exp(delta[:, s, :, None] * A)
    return alpha


def attention_map(
    alpha: Tensor,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    """R[t, s] = sum_h q_t[h] alpha[h, t, s] k_s[h], or of its magnitude; q is 1 / H, k is 1."""
    batch, heads, length, _ = alpha.shape
    result = torch.zeros(batch, length, length, dtype=torch.float64)
    for head in range(heads):
        part = alpha[:, head]
        part = part / heads if query_weight is None else part * query_weight[:, :, head, None]
        part = part if key_weight is None else part * key_weight[:, None, :, head]
        result += part.abs() if absolute else part
    return result


def mamba1_mixer(
    weights: Mapping[str, Tensor], x: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """A Mamba-1 mixer from its state dict and input x (b, l, d_model): every stage by name.

    The numbers that `transformers` takes in float32 in a model of any dtype (A, D, B, and u where
    it enters the state) are rounded so here too: a float64 model is then met to float64 precision.
    """
    w = {name: value.double() for name, value in weights.items()}
    keep = torch.ones(x.shape[:2]) if mask is None else mask
    keep = keep.double()[:, :, None]
    d_inner, d_state = w["A_log"].shape
    dt_rank = w["dt_proj.weight"].shape[1]
    projected = linear(x.double() * keep, w["in_proj.weight"], w.get("in_proj.bias"))
    conv_input, gate = projected[..., :d_inner], projected[..., d_inner:]
    p = causal_convolution(conv_input, w["conv1d.weight"][:, 0], w.get("conv1d.bias"))
    u = silu(p) * keep
    low_rank = linear(u, w["x_proj.weight"])
    dt, B = low_rank[..., :dt_rank], low_rank[..., dt_rank : dt_rank + d_state]
    C = low_rank[..., dt_rank + d_state :]
    delta = torch.log1p(torch.exp(linear(dt, w["dt_proj.weight"], w["dt_proj.bias"])))
    A, D, B = -torch.exp(weights["A_log"].float()).double(), w["D"].float().double(), float32(B)
    y, h = scan(float32(u)[..., None], delta, A, B[:, :, None], C[:, :, None])
    y = y[..., 0] + D * u
    gated = y * silu(gate)
    return {
        "conv_input": conv_input, "gate": gate, "u": u, "delta": delta, "A": A, "B": B, "C": C,
        "D": D, "h": h[:, :, :, 0], "y": y, "gated": gated,
        "output": linear(gated, w["out_proj.weight"], w.get("out_proj.bias")),
    }  # fmt: skip


def mamba3_mixer(
    weights: Mapping[str, Tensor],
    x: Tensor,
    *,
    groups: int,
    angles: int,
    a_activation: str,
    A_floor: float,
) -> dict[str, Tensor]:
    """A Mamba-3 mixer from its state dict and input x (b, l, d_model), token by token.

    SISO without `mimo_x` among the weights, MIMO with it: pairs of states turn side by side, or
    half of the states apart. The state is what the equations call h_t, `taken` (b, l, H, P, N) what
    the next token takes over when it is written ahead.
    """
    w = {name: value.double() for name, value in weights.items()}
    heads, ranks, states = w["B_bias"].shape
    d_inner, is_mimo = w["out_proj.weight"].shape[1], "mimo_x" in w
    width = d_inner // heads
    ones = torch.ones(heads, ranks, width, dtype=torch.float64)
    mimo = {name: w.get(name, ones) for name in ("mimo_x", "mimo_z", "mimo_o")}
    shared = ranks * groups * states
    sizes = (d_inner, d_inner, shared, shared, heads, heads, heads, angles)
    z, inner, B, C, dd_dt, dd_A, trap, turn = linear(x.double(), w["in_proj.weight"]).split(
        list(sizes), -1
    )
    batch, length = x.shape[:2]
    h = torch.zeros(batch, heads, width, states, dtype=torch.float64)
    theta = torch.zeros(batch, heads, angles, dtype=torch.float64)
    b_before = torch.zeros(batch, heads, ranks, states, dtype=torch.float64)
    v_before = torch.zeros(batch, heads, ranks, width, dtype=torch.float64)
    kept: dict[str, list[Tensor]] = {
        name: [] for name in ("h", "b", "c", "decay", "dt", "lam", "theta", "ranked", "gated")
    }
    for t in range(length):
        dt = torch.log1p(torch.exp(dd_dt[:, t] + w["dt_bias"]))
        if a_activation == "softplus":
            rate = torch.log1p(torch.exp(dd_A[:, t]))
        else:
            rate = torch.where(dd_A[:, t] >= 0, 1 + dd_A[:, t], 1 / (1 - dd_A[:, t].clamp(max=0)))
        decay = torch.maximum(rate, torch.tensor(A_floor, dtype=torch.float64)) * dt
        lam = 1 / (1 + torch.exp(-trap[:, t]))
        theta = theta + math.pi * torch.tanh(turn[:, t])[:, None] * dt[:, :, None]
        b, c = (
            _turned(
                _biased(part[:, t].unflatten(-1, (ranks, groups, states)), w, name),
                theta, halves=is_mimo,
            )
            for part, name in ((B, "B"), (C, "C"))
        )  # fmt: skip
        v = inner[:, t].unflatten(-1, (heads, width))[:, :, None] * mimo["mimo_x"]
        fall = torch.exp(-decay)[:, :, None, None]
        before = torch.einsum("bhrp,bhrn->bhpn", v_before, b_before)
        now = torch.einsum("bhrp,bhrn->bhpn", v, b)
        scaled = ((1 - lam) * dt)[:, :, None, None], (lam * dt)[:, :, None, None]
        h = fall * h + scaled[0] * fall * before + scaled[1] * now
        ranked = torch.einsum("bhpn,bhrn->bhrp", h, c) + w["D"][:, None, None] * v
        y = ranked
        if "norm.weight" in w:
            rms = (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            y = y / rms * w["norm.weight"].view(heads, 1, width)
        gate = z[:, t].unflatten(-1, (heads, width))[:, :, None] * mimo["mimo_z"]
        gated = (y * silu(gate) * mimo["mimo_o"]).sum(2).flatten(1)
        found = (h, b, c, decay, dt, lam, theta, ranked, gated)
        for name, value in zip(kept, found, strict=True):
            kept[name].append(value)
        b_before, v_before = b, v
    stages = {name: torch.stack(values, 1) for name, values in kept.items()}
    return stages | {
        "x": inner, "z": z, "output": linear(stages["gated"], w["out_proj.weight"]),
    }  # fmt: skip


def _biased(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """x (b, R, G, N) normed and biased, (b, H, R, N): head j has group j // (H / G)."""
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}_norm.weight"]
    bias = w[f"{name}_bias"]
    group = group_of_head(len(bias), x.shape[2])
    return torch.stack([normed[:, :, group[head]] + bias[head] for head in range(len(bias))], 1)


def _turned(x: Tensor, theta: Tensor, *, halves: bool) -> Tensor:
    """x (b, H, R, N), each of its pairs turned by theta (b, H, S)."""
    turned, half = x.clone(), x.shape[-1] // 2
    for i in range(theta.shape[-1]):
        first, second = (i, i + half) if halves else (2 * i, 2 * i + 1)
        cos, sin = (f(theta[..., i])[:, :, None] for f in (torch.cos, torch.sin))
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    return torch.einsum("blj,ij->bli", x, weight) + (0.0 if bias is None else bias)


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x))."""
    return x / (1 + torch.exp(-x))


def float32(x: Tensor) -> Tensor:
    """float64 numbers rounded to float32."""
    return x.float().double()


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """p_t[i] = b[i] + sum_k w[i, k] x_{t - (K-1) + k}[i], tokens before the text being zero."""
    taps = weight.shape[1]
    result = torch.zeros_like(x) + (0.0 if bias is None else bias)
    for t in range(x.shape[1]):
        for k in range(taps):
            source = t - (taps - 1) + k
            if source >= 0:
                result[:, t] += weight[:, k] * x[:, source]
    return result


def energies(delta: Tensor, A: Tensor, B: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """(write, retain), each (b, l): L2 norms of delta_t B_t u_t and exp(delta_t A) h_{t-1}.

    Mamba-1 shapes: u (b, l, d_inner), B (b, l, N), h (b, l, d_inner, N); retain is 0 at t = 0.
    """
    delta, A, B, u, h = (x.double() for x in (delta, A, B, u, h))
    write, retain = torch.zeros(2, *delta.shape[:2], dtype=torch.float64)
    for row in range(delta.shape[0]):
        for t in range(delta.shape[1]):
            written = torch.outer(delta[row, t] * u[row, t], B[row, t])
            write[row, t] = written.square().sum().sqrt()
            if t > 0:
                kept = torch.exp(delta[row, t, :, None] * A) * h[row, t - 1]
                retain[row, t] = kept.square().sum().sqrt()
    return write, retain


def half_life(delta: Tensor, A: Tensor) -> Tensor:
    """(d_inner, N) tokens after which exp(k mean(delta) A) = 1/2, for delta (l, d_inner)."""
    result = torch.zeros(A.shape, dtype=torch.float64)
    for channel in range(A.shape[0]):
        mean = float(delta[:, channel].double().sum()) / delta.shape[0]
        for state in range(A.shape[1]):
            result[channel, state] = math.log(0.5) / (mean * float(A[channel, state]))
    return result


def participation_ratio(states: Tensor) -> float:
    """(sum lambda)^2 / sum lambda^2, lambda the eigenvalues of the covariance of states (l, d)."""
    eigenvalues = np.linalg.eigvalsh(np.cov(states.double().numpy(), rowvar=False))
    return float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())


def full_mixer_operator(
    alpha: Tensor, D: Tensor, gate: Tensor, conv_input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(M, c) with gated = M x + c per head, for one text: diag(SiLU z)(alpha + D)diag(sigma p) T.

    alpha (H, l, l); gate and x = conv_input (l, H); weight (H, K). M is (H, l, l), c (H, l). T is
    the convolution as a matrix, p = T x + bias, and c is what the bias alone gives.
    """
    heads, length, _ = alpha.shape
    taps = weight.shape[1]
    M, c = torch.zeros_like(alpha), torch.zeros(heads, length, dtype=alpha.dtype)
    for h in range(heads):
        T = torch.zeros(length, length, dtype=alpha.dtype)
        for t in range(length):
            for k in range(taps):
                if t - (taps - 1) + k >= 0:
                    T[t, t - (taps - 1) + k] = weight[h, k]
        b = torch.zeros(length, dtype=alpha.dtype) + (0.0 if bias is None else bias[h])
        p = T @ conv_input[:, h] + b
        middle = alpha[h] + D[h] * torch.eye(length, dtype=alpha.dtype)
        left = torch.diag(silu(gate[:, h])) @ middle @ torch.diag(1 / (1 + torch.exp(-p)))
        M[h], c[h] = left @ T, left @ b
    return M, c


def direct_parts(
    alpha: Tensor, D: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, through: Tensor
) -> dict[tuple[str, int | str], float]:
    """What each path and source of one mixer gave the last token of a text, channel by channel.

    alpha (channels, l), the last token's row; D (channels,); x = conv_input (l, channels); weight
    (channels, K); through (channels,): what a unit of y adds to the logit. u_s = sigma(p_s)
    (sum_j w_j x_{s-j} + b) with p_s the sum itself.
    """
    length, channels = x.shape
    taps, last = weight.shape[1], length - 1
    parts: dict[tuple[str, int | str], float] = {}

    def add(path: str, source: int | str, value: float) -> None:
        parts[path, source] = parts.get((path, source), 0.0) + value

    for c in range(channels):
        for s in range(length):
            terms = {s - j: float(weight[c, taps - 1 - j] * x[s - j, c])
                     for j in range(taps) if s - j >= 0}  # fmt: skip
            b = 0.0 if bias is None else float(bias[c])
            gain = 1 / (1 + math.exp(-(sum(terms.values()) + b)))
            read = float(alpha[c, s]) + (float(D[c]) if s == last else 0.0)
            unit = float(through[c]) * read * gain
            for source, term in terms.items():
                path = "state" if s < last else "skip" if source == last else "convolution"
                add(path, source, unit * term)
            add("bias", "bias", unit * b)
    return parts


def cosine_attention(h: Tensor, temperature: float) -> Tensor:
    """Causal softmax of cos(h_t, h_s) / temperature for one text's states (l, ...): (l, l)."""
    flat = h.double().flatten(1)
    result = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for t in range(len(flat)):
        scores = []
        for s in range(t + 1):
            norms = flat[t].norm() * flat[s].norm()
            scores.append(float(flat[t] @ flat[s] / norms) if norms > 0 else 0.0)
        result[t, : t + 1] = (torch.tensor(scores, dtype=torch.float64) / temperature).softmax(0)
    return result


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, term by term from the Gram matrices of x (n, p) and y (n, q)."""
    n = len(x)
    k, gram = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(gram, 0.0)
    ones = np.ones(n)
    middle = (ones @ k @ ones) * (ones @ gram @ ones) / ((n - 1) * (n - 2))
    total = np.trace(k @ gram) + middle - 2 / (n - 2) * (ones @ k @ gram @ ones)
    return total / (n * (n - 3))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, eq. 1, with the unbiased HSIC, as Nguyen et al. 2021, eq. 3."""
    own = unbiased_hsic(x, x) * unbiased_hsic(y, y)
    return unbiased_hsic(x, y) / math.sqrt(own)


def bartlett_spectrum(rho: np.ndarray, frequency: float) -> float:
    """1 + 2 sum_k (1 - k / (K + 1)) rho_k cos(2 pi f k) of autocorrelations at lags 1..K."""
    total = 1.0
    for k, value in enumerate(rho, start=1):
        weight = 1.0 - k / (len(rho) + 1)
        total += 2.0 * weight * float(value) * math.cos(2.0 * math.pi * frequency * k)
    return total


def effective_sample_size(x: np.ndarray, y: np.ndarray, max_lag: int) -> np.ndarray:
    """n / (1 + 2 sum over k of rho_x(k) rho_y(k)) for each pair of columns, within [2, n]."""
    n = len(x)
    found = np.empty((x.shape[1], y.shape[1]))
    for i, j in np.ndindex(*found.shape):
        inflation = 1.0
        for lag in range(1, max_lag + 1):
            inflation += 2 * _autocorrelation(x[:, i], lag) * _autocorrelation(y[:, j], lag)
        found[i, j] = max(n / max(inflation, 1.0), 2)
    return found


def _autocorrelation(series: np.ndarray, lag: int) -> float:
    centred = series - series.mean()
    return float(centred[lag:] @ centred[: len(series) - lag] / (centred @ centred))


def warm_up(norms: np.ndarray, lengths: Sequence[int]) -> list[int]:
    """Tokens left out at the beginning of each text: four, or until every column of norms (N, k)
    has reached 90 % of its median in the text; at most a quarter of it."""
    starts, begin = [], 0
    for length in lengths:
        part, t = norms[begin : begin + length], 0
        for column in part.T:
            reached = [i for i in range(length) if column[i] >= 0.9 * np.median(column)]
            t = max(t, reached[0])
        starts.append(min(max(4, t), length // 4))
        begin += length
    return starts


def without_position(
    values: np.ndarray, lengths: Sequence[int], starts: Sequence[int]
) -> tuple[np.ndarray, int]:
    """Values of the tokens from starts on without their course over position, and the number of
    functions taken out: each text by itself by least squares, for fewer than five texts."""
    assert len(lengths) < 5
    parts, begin, count = [], 0, 0
    for length, start in zip(lengths, starts, strict=True):
        t = np.arange(start, length, dtype=float)
        functions = [np.ones_like(t), t, *(np.exp(-t / tau) for tau in (16, 64, 4, 256))]
        basis = np.array(functions[: max(1, min(6, len(t) // 10))]).T
        part = values[begin + start : begin + length]
        parts.append(part - basis @ np.linalg.lstsq(basis, part, rcond=None)[0])
        count += basis.shape[1]
        begin += length
    return np.concatenate(parts), count


def cka_with_freedom(x: np.ndarray, y: np.ndarray, freedom: int) -> float:
    """Debiased CKA of x (n, p) and y (n, q) of which n - freedom functions were taken out."""
    n = len(x)
    weight = (freedom + 1) / (freedom - 1)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        k, m = a @ a.T, b @ b.T
        off = sum(k[i, j] * m[i, j] for i in range(n) for j in range(n))
        diagonal = sum(k[i, i] * m[i, i] for i in range(n))
        return off - weight * diagonal - (1 / freedom - weight / n) * np.trace(k) * np.trace(m)

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def cut_of_axis(values: np.ndarray) -> int:
    """Tokens to cut from the end of a text, at most a quarter, so that the 16 tokens after the cut
    differ least from the first 16 in squares, every channel in units of its deviation."""
    length = len(values)
    scaled = values / values.std(axis=0)
    best = (np.inf, 0)
    for cut in range(16, length // 4 + 1):
        there = scaled[length - cut : length - cut + 16]
        best = min(best, (float(((scaled[:16] - there) ** 2).sum()), cut))
    return best[1]


def rolled(values: np.ndarray, shift: int, cut: int) -> np.ndarray:
    """Token t gets that of (t - shift) modulo the length less the cut."""
    size = len(values) - cut
    return np.array([values[(t - shift) % size] for t in range(len(values))])


def copying_gain(shares: np.ndarray, ids: list[int]) -> float:
    """Share at what followed an earlier occurrence of the query's token over that around, pair by
    pair; the occurrence whose tokens before agree the longest, the latest of equals."""
    at_source = around = 0.0
    for t in range(len(ids)):
        best, longest = None, 0
        for j in range(t - 4):  # what followed, at j + 1, at least 4 tokens back
            agree = 0
            while j - agree >= 0 and ids[j - agree] == ids[t - agree]:
                agree += 1
            if agree >= max(longest, 1):
                best, longest = j + 1, agree
        if best is None:
            continue
        near = [best + d for d in (-6, -5, -4, -3, 3, 4, 5, 6)]
        beside = [float(shares[t, s]) for s in near if s >= 0 and t - s >= 4]
        if beside:
            at_source += float(shares[t, best])
            around += sum(beside) / len(beside)
    return at_source / around

"""Pairs of texts for tests of patching, and patches made one at a time by another route."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import reference
import torch
from torch import Tensor

from benchmarks.family_models import FAULTY
from causal_interventions.patching.exact import PairRuns, pair_runs
from causal_interventions.patching.pairs import TextPair, text_pairs
from causal_interventions.patching.sites import STAGES
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import blocks_of, find_mixers


def random_pairs(count: int = 2, length: int = 9, vocabulary: int = 64) -> list[Tensor]:
    """Clean and corrupt ids (count, length) that differ at tokens 2 and 5; answers (count, 2)."""
    generator = torch.Generator().manual_seed(5)
    clean = torch.randint(1, vocabulary, (count, length), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] + 7) % vocabulary
    corrupt[:, 5] = (clean[:, 5] + 3) % vocabulary
    return [clean, corrupt, torch.tensor([[3, 9], [11, 4]])[:count]]


def runs_of(model: Any, metric: str = "logit_difference", back: int = 1) -> PairRuns:
    """Runs of the random pairs."""
    return pair_runs(model, pairs_of(model), metric, back)


def pairs_of(model: Any) -> list[TextPair]:
    """The random pairs, checked."""
    clean, corrupt, answers = random_pairs()
    return text_pairs(model, None, clean, corrupt, answers)


@torch.no_grad()
def naive_logits(
    model: Any, runs: PairRuns, site: str, layer: int, text: int, token: int
) -> Tensor:
    """(V,) last logits of the corrupt text with one value of the clean run: one text, whole model.

    Residual stream and mixer output by hooks in the stock model; the state by a loop over tokens,
    the window by the convolution written out, both in float64; other stages set in a replay.
    """
    ids = runs.corrupt.input_ids[text : text + 1]
    if site == "residual":
        return _hooked(model, blocks_of(model)[layer], ids, runs, layer, text, token)
    if site in ("state", "window"):
        stage, value = _loop(model, runs, site, layer, text, token)
        return _set(model, ids, layer, stage, value)
    stage = STAGES[site]
    value = runs.corrupt.stages[layer][stage][text : text + 1].clone()
    value[:, token] = runs.clean.stages[layer][stage][text, token]
    return _set(model, ids, layer, stage, value)


def _set(model: Any, ids: Tensor, layer: int, wanted: str, value: Tensor) -> Tensor:
    def edit(stage: str, x: Tensor) -> Tensor:
        return value.to(x) if stage == wanted else x

    with fast_scan(model, edits={layer: edit}):
        return model(input_ids=ids, use_cache=False).logits[0, -1]


def _hooked(
    model: Any, block: Any, ids: Tensor, runs: PairRuns, layer: int, text: int, token: int
) -> Tensor:
    def hook(module: Any, args: tuple, kwargs: dict) -> tuple:
        given = list(args)
        name = next((n for n in ("hidden_states", "input_states") if n in kwargs), None)
        stream = (kwargs[name] if name else given[0]).clone()
        stream[:, token] = runs.clean.streams[layer][text, token]
        if name:
            kwargs[name] = stream
        else:
            given[0] = stream
        return tuple(given), kwargs

    own_code = model.config.model_type not in FAULTY  # the others by the suite's scan
    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with nullcontext() if own_code else fast_scan(model):
            return model(input_ids=ids, use_cache=False).logits[0, -1]
    finally:
        handle.remove()


def _loop(
    model: Any, runs: PairRuns, site: str, layer: int, text: int, token: int
) -> tuple[str, Tensor]:
    own, other = (
        {k: (x if k == "A" else x[text : text + 1]).double() for k, x in run.stages[layer].items()}
        for run in (runs.corrupt, runs.clean)
    )
    mixer = find_mixers(model)[layer].mixer
    if site == "window":
        weight = mixer.conv1d.weight[:, 0].double()
        changed = own["convolved"].clone()
        reach = weight.shape[1]
        for later in range(token + 1, min(token + reach, changed.shape[1])):
            for lag in range(later - token, reach):
                if later - lag >= 0:
                    change = other["conv_input"] - own["conv_input"]
                    changed[:, later] += weight[:, reach - 1 - lag] * change[:, later - lag]
        return "convolved", changed
    if layer in runs.clean.turns:
        return "y", _turned_loop(runs, layer, text, token, own, other)
    D = mixer.D.double().flatten()
    first = scan_parts(own, stop=token + 1)
    y, h = reference.scan(**first, D=D)
    _, clean_h = reference.scan(**scan_parts(other, stop=token + 1), D=D)
    del h
    rest = scan_parts(own, start=token + 1)
    if rest["u"].shape[1]:
        y = torch.cat([y, reference.scan(**rest, D=D, initial_state=clean_h[:, -1])[0]], 1)
    return "y", y.flatten(2)


def _turned_loop(
    runs: PairRuns, layer: int, text: int, token: int, own: dict, other: dict
) -> Tensor:
    """Mamba-3's y, to which later tokens add what they read of the difference of the states, the
    other run's turned into this run's frame pair by pair."""
    both = [(runs.corrupt, own), (runs.clean, other)]
    angles = [run.turns[layer].angle[text, token].double() for run, _ in both]
    written = [run.turns[layer].write[text, token].double() for run, _ in both]
    shares = [stages["own_share"][0, token] for _, stages in both]
    width = len(shares[0]) // len(written[0])
    own_part = written[1] * shares[1][::width]
    ahead = written[0] * (1 - shares[0][::width])
    other["B"] = other["B"].clone()
    # The clean token writes itself as it did, and of it the corrupt text's next token its share.
    other["B"][0, token] *= ((own_part + ahead) / written[1]).repeat_interleave(width)[:, None]
    ends = []
    for _, stages in both:
        parts = scan_parts(stages, stop=token + 1)
        none = torch.zeros(parts["delta"].shape[2], dtype=torch.float64)
        ends.append(reference.scan(**parts, D=none)[1][0, -1].flatten(0, 1))
    halves = runs.clean.turns[layer].halves
    difference = _turned(ends[1], angles[0] - angles[1], halves) - ends[0]
    y, rest = own["y"].clone(), scan_parts(own, start=token + 1)
    if rest["u"].shape[1]:
        rest["u"] = torch.zeros_like(rest["u"])
        heads = rest["delta"].shape[2]
        none = torch.zeros(heads, dtype=torch.float64)
        initial = difference.unflatten(0, (heads, -1))[None]
        y[:, token + 1 :] += reference.scan(**rest, D=none, initial_state=initial)[0].flatten(2)
    return y


def _turned(h: Tensor, angle: Tensor, halves: bool) -> Tensor:
    """h (d_inner, N) with the pairs of head j's channels turned by angle (H, S)."""
    found, width, states = h.clone(), len(h) // len(angle), h.shape[1]
    for channel in range(len(h)):
        for pair, theta in enumerate(angle[channel // width].tolist()):
            i, j = (pair, pair + states // 2) if halves else (2 * pair, 2 * pair + 1)
            p, q = h[channel, i], h[channel, j]
            found[channel, i] = p * math.cos(theta) - q * math.sin(theta)
            found[channel, j] = p * math.sin(theta) + q * math.cos(theta)
    return found


def scan_parts(
    stages: dict[str, Tensor], start: int = 0, stop: int | None = None
) -> dict[str, Tensor]:
    """Operands of the reference scan in the heads form, of some tokens."""
    found = {k: stages[k][:, start:stop] for k in ("u", "delta", "B", "C")}
    found["u"] = found["u"].unflatten(2, (found["delta"].shape[2], -1))
    for name in ("B", "C"):
        found[name] = found[name].unsqueeze(2) if found[name].dim() == 3 else found[name]
    return {**found, "A": stages["A"]}

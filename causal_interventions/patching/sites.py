"""Places of a run that can be patched, and runs kept for that.

A site is a quantity of one layer at one token. Put into another run, everything that follows it is
computed from it by the model's own code and the suite's scan.

    residual   the residual stream before the layer
    mixer      the mixer's output; the same as all of its neurons
    neurons    chosen channels of the gated output
    u          the SSM's input; in Mamba-1 delta, B and C of the token are made of it and follow
    delta, B, C, gate, y
               the step, the projections of the state, z before SiLU, the scan's output with D u
    state      h after the token: what later tokens find in the layer's state
    window     what the convolution keeps after the token: its last K - 1 inputs up to it, for the
               tokens that follow; Mamba-3 has none

State and window after a token are all that a mixer knows of what came before. Mamba-3's state is
put in place as if all of its memory were: turned from the frame of its token to that of the token
that it is put at, with the share of its token's write that the next token brings as that one says.
Letters: the glossary of ``selective_scan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.interventions import patch_state
from mamba_mixers.families import norms_ranks
from mamba_mixers.recording import kept_streams
from mamba_mixers.replay import Edit, MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import MixerSite, find_mixers, model_family, num_layers
from mamba_mixers.weights import convolved_change
from selective_scan.scan import scan_hidden_states
from ssm_measures.states import unrotated
from suite_plumbing.arguments import validate_choice

STAGES = {
    "mixer": "gated", "neurons": "gated", "u": "u", "delta": "delta", "B": "B", "C": "C",
    "gate": "gate", "y": "y",
}  # fmt: skip
"""Sites that are one token of a stage of ``mamba_mixers.EDITABLE``, with that stage."""

SITES = ("residual", *STAGES, "state", "window")
"""All sites by name."""

DEFAULT_SITES = tuple(site for site in SITES if site != "neurons")


class Turns(NamedTuple):
    """What a Mamba-3's state is put in another run's place by."""

    angle: Tensor
    """(b, l, H, S) theta"""
    halves: bool
    """whether state i turns with i + N / 2, or neighbours with each other"""
    write: Tensor
    """(b, l, H) what a token's b x is written with"""


@dataclass(frozen=True, eq=False)
class Run:
    """A forward pass of b texts of one length, kept; on its graph where gradients are enabled."""

    input_ids: Tensor
    """(b, l)"""
    streams: dict[int, Tensor]
    """by layer, with an SSM or without, the residual stream before it, (b, l, d_model)"""
    outputs: dict[int, Tensor]
    """by layer the residual stream after it, as its block gave it"""
    stages: dict[int, dict[str, Tensor]]
    """by layer with an SSM and stage of ``EDITABLE``"""
    logits: Tensor
    """(b, V) at the position that is read"""
    turns: dict[int, Turns] = field(default_factory=dict)
    """by layer, of a Mamba-3"""

    def states(self, layer: int, row: int) -> Tensor:
        """(l, d_inner, N) state after every token of one text. Cost: one scan."""
        made = self.stages[layer]
        u, delta, B = (made[name][row : row + 1] for name in ("u", "delta", "B"))
        A = made["A"]  # in the dtype in which the model's scan has u and B
        return scan_hidden_states(u.to(A), delta, A, B.to(A))[0]


def run_kept(
    model: PreTrainedModel, input_ids: Tensor, back: int, embeddings: Tensor | None = None
) -> Run:
    """Run texts (b, l) without padding, and keep what can be patched.

    ``back``: the logits of the token so many places from the end are kept, 1 is the last.
    ``embeddings`` (b, l, d_model) stand in for those of the tokens. Cost: a forward pass, and the
    memory of some 12 tensors (b, l, d_inner) a layer.
    """
    stages: dict[int, dict[str, Tensor]] = {layer: {} for layer in find_mixers(model)}
    turns: dict[int, Turns] = {}

    def keep(layer: int) -> Edit:
        def edit(stage: str, x: Tensor) -> Tensor:
            stages[layer][stage] = x
            return x

        return edit

    def observe(layer: int, replay: MixerReplay) -> None:
        if replay.angle is not None and replay.write is not None:
            angle, write = replay.angle.detach(), replay.write.detach()
            turns[layer] = Turns(angle, replay.skip is not None, write)

    given = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    edits = {layer: keep(layer) for layer in stages}
    with fast_scan(model, edits=edits, observe=observe), kept_streams(model) as streams:
        logits = model(**given, use_cache=False, return_dict=True).logits[:, -back]
    before = {layer: stream for layer, (stream, _) in streams.items()}
    after = {layer: stream for layer, (_, stream) in streams.items()}
    return Run(input_ids, before, after, stages, logits, turns)


class Places(NamedTuple):
    """Rows of a patched batch: which text each is made from, and what is put where."""

    text: Tensor
    """(r,) text of the run that is patched"""
    token: Tensor
    """(r,) its token"""
    source_text: Tensor
    """(r,) text of the run that values are taken from"""
    source_token: Tensor
    """(r,)"""


def patched_stream(
    base: Run, source: Run, layer: int, places: Places, is_patched: bool, start: int = 0
) -> Tensor:
    """(r, l - start, d_model) streams that enter the layer from token ``start`` on: the base's, or
    patched at their token."""
    stream = base.streams[layer][places.text, start:]
    if is_patched:
        rows = torch.arange(len(stream), device=stream.device)
        stream[rows, places.token - start] = source.streams[layer][
            places.source_text, places.source_token
        ]
    return stream


def site_edit(
    site: str,
    mixer: MixerSite,
    base: Run,
    source: Run,
    places: Places,
    neurons: Tensor | None = None,
    start: int = 0,
) -> Edit:
    """The edit of a layer that puts a site's value of the source run into every row's token.

    ``site``: any but "residual". The batch has as many rows as ``places``, of the base run's texts
    from token ``start`` on.
    """
    made = source.stages[mixer.layer]
    if site == "window":
        own = base.stages[mixer.layer]["conv_input"][places.text]
        return _added_windows(window_change(mixer, own, made["conv_input"], places)[:, start:])
    if site == "state":
        states = _states(base, source, mixer.layer, places)
        return patch_state(mixer.layer, places.token - start, states)[mixer.layer]
    stage = STAGES[site]
    values = made[stage][places.source_text, places.source_token]
    channels = neurons if site == "neurons" else None
    return _token_edit(stage, values, places.token - start, channels)


def _states(base: Run, source: Run, layer: int, places: Places) -> Tensor:
    """(r, d_inner, N); the states of one text at a time are in memory."""
    parts = []
    for text in places.source_text.unique_consecutive().tolist():
        tokens = places.source_token[places.source_text == text]
        parts.append(source.states(layer, text)[tokens])
    return turned_states(torch.cat(parts), base, source, layer, places)


def turned_states(h: Tensor, base: Run, source: Run, layer: int, places: Places) -> Tensor:
    """States (r, d_inner, N) of the source run's tokens as the base run's next tokens take them
    over: of a Mamba-3 in the frames of its tokens, elsewhere as they are."""
    if layer not in source.turns:
        return h
    there, here = source.turns[layer], base.turns[layer]
    behind = there.angle[places.source_text, places.source_token]
    behind = behind - here.angle[places.text, places.token]
    h = h + _further_share(base, source, layer, places)
    by_channel = behind.repeat_interleave(h.shape[1] // behind.shape[1], 1)
    return unrotated(h[:, None], by_channel[:, None], there.halves)[:, 0]


def _further_share(base: Run, source: Run, layer: int, places: Places) -> Tensor:
    """(r, d_inner, N) what the base's next token writes of the source's token, less what the
    source's next token did."""
    made = source.stages[layer]
    at = places.source_text, places.source_token
    written = source.turns[layer].write[at]
    ahead = _ahead(base, layer)[places.text, places.token] - _ahead(source, layer)[at]
    share = torch.where(written > 0, ahead / written.where(written > 0, 1.0), 0.0)
    u, delta, B = (made[name][at] for name in ("u", "delta", "B"))
    unit = (delta.unsqueeze(-1) * B).repeat_interleave(u.shape[1] // delta.shape[1], 1)
    by_channel = share.repeat_interleave(u.shape[1] // share.shape[1], 1)
    return (by_channel * u).unsqueeze(-1) * unit


def _ahead(run: Run, layer: int) -> Tensor:
    """(b, l, H) what the next token writes of each."""
    write, share = run.turns[layer].write, run.stages[layer]["own_share"]
    return write * (1 - share[..., :: share.shape[2] // write.shape[2]])


def _token_edit(wanted: str, values: Tensor, tokens: Tensor, channels: Tensor | None) -> Edit:
    rows = torch.arange(len(tokens), device=tokens.device)

    def edit(stage: str, x: Tensor) -> Tensor:
        if stage != wanted:
            return x
        x = x.clone()
        if channels is None:
            x[rows, tokens] = values.to(x)
        else:
            x[rows[:, None], tokens[:, None], channels] = values[:, channels].to(x)
        return x

    return edit


def _added_windows(change: Tensor) -> Edit:
    def edit(stage: str, x: Tensor) -> Tensor:
        return x + change.to(x) if stage == "convolved" else x

    return edit


def window_change(mixer: MixerSite, own: Tensor, inputs: Tensor, places: Places) -> Tensor:
    """(r, l, channels) change of the convolution's output by the windows of another run.

    ``own`` (r, l, channels) of the patched rows, ``inputs`` (b, l', channels) of the other. Zero
    up to the row's token, and from K tokens after it on.
    """
    place = torch.arange(own.shape[1], device=own.device)
    lag = places.token[:, None] - place
    # The window of the source's token, put where that of the patched token is.
    origin = places.source_token[:, None] - lag
    known = (lag >= 0) & (origin >= 0)
    taken = inputs[places.source_text[:, None], origin.clamp(0, inputs.shape[1] - 1)]
    taken = torch.where(known[..., None], taken, (lag < 0)[..., None] * own)
    change = convolved_change(mixer, taken - own)
    return change * (lag < 0)[..., None]


def sites_at_hand(model: PreTrainedModel) -> tuple[str, ...]:
    """DEFAULT_SITES, without what the model does not have: see :func:`layers_of_site`."""
    return tuple(site for site in DEFAULT_SITES if _why_not(model, site) is None)


def _why_not(model: PreTrainedModel, site: str) -> str | None:
    """Why a model does not have a site."""
    if site == "window" and model_family(model).is_trapezoid:
        return (
            "site 'window' is that of a convolution, which a Mamba-3 does not have; what its state "
            "does not hold after a token is nothing: leave the window out"
        )
    if site == "state" and any(norms_ranks(mixer.mixer) for mixer in find_mixers(model).values()):
        return (
            "site 'state' of a Mamba-3 with a norm on each rank's output is not patched, for the "
            "norms would be held as they were: leave the state out"
        )
    return None


def check_sites(sites: str | Sequence[str], has_neurons: bool) -> tuple[str, ...]:
    """The sites asked for; ValueError for an unknown one, none, or neurons that are not named."""
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    if not names:
        raise ValueError(f"sites is empty; pass one or more of {', '.join(SITES)}")
    for name in names:
        validate_choice("site", name, SITES)
    if "neurons" in names and not has_neurons:
        raise ValueError(
            "site 'neurons' needs neurons={layer: [channel, ...]}; 'mixer' patches all of a layer"
        )
    return tuple(dict.fromkeys(names))


def layers_of_site(
    model: PreTrainedModel, site: str, neurons: Mapping[int, Sequence[int]]
) -> list[int]:
    """Layers that have this site: all of them, those with an SSM, or those with chosen neurons.

    Raises ValueError for the window of a Mamba-3, which has no convolution, and for the state of
    one with a norm on each rank's output.
    """
    if reason := _why_not(model, site):
        raise ValueError(reason)
    if site == "residual":
        return list(range(num_layers(model)))
    return sorted(neurons) if site == "neurons" else list(find_mixers(model))

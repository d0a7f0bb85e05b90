"""Small Mambas with weights set by hand, in which it is known what there is to be found.

Each asks whether the suite finds it, with a draw of its own a seed: half-lives of channels, the
token that opens the gate, the layer that copies, the neuron that a logit rests on.

Embeddings are one-hot, so that what a channel receives at a token is a table; u is 1 at chosen
tokens and 0 elsewhere, the gate SiLU(z) is 1, and weights that are not set are 0.

`calibration.py` puts the table into its report.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is imported by a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from transformers import MambaConfig, MambaForCausalLM

from analysis_pipelines.overview import overview
from attention_neurons import NEURON_METHODS, attention_data, layer_parameters
from causal_interventions.targets import resolve_target
from delta_extraction import delta_memory
from ssm_component_extractor import capture
from ssm_measures.components import Capture
from ssm_measures.gate_tokens import gate_tokens
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.models import load_tokenizer
from suite_plumbing.texts import EncodedText

VOCABULARY = 24
LENGTH = 120

_SILU_IS_1 = 1.2784645427610738
_CONV = 4


@torch.no_grad()
def blank(num_layers: int = 1, d_state: int = 1, expand: int = 2) -> MambaForCausalLM:
    """A Mamba all of whose weights are 0 but for embeddings, norms, gates (1) and delta (0.1)."""
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=VOCABULARY, expand=expand, num_hidden_layers=num_layers,
        state_size=d_state, conv_kernel=_CONV, time_step_rank=1, layer_norm_epsilon=1e-12,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = MambaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).zero_()
    model.backbone.embeddings.weight.copy_(torch.eye(VOCABULARY))
    model.backbone.norm_f.weight.fill_(1.0)
    model.lm_head.weight.copy_(torch.eye(VOCABULARY))
    blocks: Any = model.backbone.layers
    for block in blocks:
        block.norm.weight.fill_(VOCABULARY**-0.5)  # the RMS of a one-hot vector
        mixer = block.mixer
        mixer.in_proj.weight[mixer.intermediate_size :].fill_(_SILU_IS_1)
        mixer.dt_proj.bias.fill_(math.log(math.expm1(0.1)))
    return model


def mixer_of(model: MambaForCausalLM, layer: int = 0) -> Any:
    """The mixer of a layer, to set weights of."""
    return model.backbone.layers[layer].mixer


@torch.no_grad()
def channel(mixer: Any, index: int, tokens: Sequence[int], delay: int = 0) -> None:
    """u[index] is 1 where the token ``delay`` places back is one of ``tokens``."""
    mixer.in_proj.weight[index, list(tokens)] = _SILU_IS_1
    mixer.conv1d.weight[index, 0, _CONV - 1 - delay] = 1.0


def half_lives(seed: int) -> float:
    """Share of the channels whose planted half-life, 0.5 to 500 tokens, is found to 1 %."""
    rng = np.random.default_rng(seed)
    model = blank()
    mixer = mixer_of(model)
    planted = np.exp(rng.uniform(math.log(0.5), math.log(500.0), mixer.intermediate_size))
    with torch.no_grad():
        rates = torch.from_numpy(math.log(2) / (planted * 0.1))
        mixer.A_log.copy_(rates.log()[:, None])
    found = delta_memory([_captured(model, rng).components[0]]).channel_half_life.numpy()
    return float(np.mean(np.abs(found / planted - 1) <= 0.01))


def gates(seed: int) -> float:
    """1 where the token that opens the gate is the first of those that are said to."""
    rng = np.random.default_rng(seed)
    model, marked = blank(), int(rng.integers(VOCABULARY))
    mixer = mixer_of(model)
    channel(mixer, 0, [marked])
    with torch.no_grad():
        mixer.x_proj.weight[0, 0] = float(rng.uniform(0.5, 2.0))
        mixer.dt_proj.weight.fill_(1.0)
    captured = _captured(model, rng, marked)
    ids = captured.input_ids[0].tolist()
    found = gate_tokens([captured.components[0]], [list(map(str, ids))], token_ids=[ids])
    return float(found.opening[0].token == str(marked))


def copies(seed: int) -> float:
    """1 where the one of three layers that takes from what followed a token before is said to."""
    rng = np.random.default_rng(seed)
    model, copying = blank(3, d_state=VOCABULARY), int(rng.integers(3))
    mixer = mixer_of(model, copying)
    for token in range(VOCABULARY):
        channel(mixer, token, [token])
        channel(mixer, VOCABULARY + token, [token], delay=1)
    with torch.no_grad():
        mixer.A_log.fill_(math.log(1e-3))
        for token in range(VOCABULARY):  # reads by the token what is kept under the one before
            mixer.x_proj.weight[1 + token, VOCABULARY + token] = 1.0
            mixer.x_proj.weight[1 + VOCABULARY + token, token] = 1.0
    texts = [rng.integers(0, VOCABULARY, LENGTH).tolist() for _ in range(2)]
    encoded = [EncodedText("", ids, list(map(str, ids)), None, LENGTH, False) for ids in texts]
    answers = overview(model, encoded, load_tokenizer(DEMO_MODEL_PATH), seed=seed)["answers"]
    (answer,) = [one for one in answers if one["question"] == "copying"]
    return float(answer["said"] and list(answer["layers"]) == [copying])


def neurons(seed: int) -> float:
    """1 where the neuron that a logit rests on ranks first, before louder ones that none reads."""
    rng = np.random.default_rng(seed)
    model = blank()
    mixer = mixer_of(model)
    chosen = rng.permutation(mixer.intermediate_size)[:4].tolist()
    alone, *loud = chosen
    target, *places = rng.permutation(VOCABULARY)[:4].tolist()
    half = rng.permutation(VOCABULARY)[: VOCABULARY // 2].tolist()
    with torch.no_grad():
        for index in range(mixer.intermediate_size):
            channel(mixer, index, half)
        mixer.D.fill_(1.0)
        mixer.out_proj.weight[target, alone] = 1.0
        for index, place in zip(loud, places, strict=True):
            mixer.out_proj.weight[place, index] = 50.0
        model.lm_head.weight[places, places] = 0.0
    data = attention_data(_captured(model, rng, half[0]), layer_parameters(model, [0]))
    explained = resolve_target("logit", token=target)
    found = NEURON_METHODS["gradient_guided"](data, model, explained)[0]
    return float(int(found.ranking[0]) == alone)


PLANTED: dict[str, Callable[[int], float]] = {
    "half-lives of channels, to 1 %": half_lives,
    "the token that opens the gate": gates,
    "the layer that copies": copies,
    "the neuron that a logit rests on": neurons,
}
"""By what is planted: the share that is found, by seed."""


def _captured(
    model: MambaForCausalLM, rng: np.random.Generator, last: int | None = None
) -> Capture:
    """A random text, captured; ``last`` is its last token."""
    ids = torch.from_numpy(rng.integers(0, VOCABULARY, (1, LENGTH)))
    if last is not None:
        ids[0, -1] = last
    return capture(model, ids, None, [0])

"""Real Mamba models with weights set by hand, whose attention and neurons are known in closed form.

Embeddings are one-hot and the norm is scaled so that the mixer of layer 0 reads the token itself:
what a channel receives at a token is a table. Other layers write nothing. In every model below u
(the SSM's input) is 0 or 1 and the gate SiLU(z) is 1, up to float32 rounding.

The Mamba-2 models at the end are built alike: in each head the first channel is 1 at chosen tokens
and the others are at all, and B and C are 1, or B at chosen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM


def inverse_silu(value: float) -> float:
    """p >= 0 with SiLU(p) = value, for value >= 0, by bisection."""
    low, high = 0.0, value + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / (1 + math.exp(-middle)) < value else (low, middle)
    return (low + high) / 2


def inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


class HandWeighted:
    """A blank one-hot Mamba, to be given channels; every weight that is not set is zero.

    Channel i has state matrix A[i] = -1 in every state and delta 1 until :meth:`decay` sets them.
    """

    def __init__(
        self,
        vocab_size: int,
        num_channels: int,
        *,
        d_state: int = 2,
        conv_kernel: int = 4,
        num_layers: int = 1,
    ) -> None:
        expand = -(-num_channels // vocab_size)
        config = MambaConfig(
            vocab_size=vocab_size,
            hidden_size=vocab_size,
            expand=expand,
            num_hidden_layers=num_layers,
            state_size=d_state,
            conv_kernel=conv_kernel,
            time_step_rank=1,
            layer_norm_epsilon=1e-12,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model: Any = MambaForCausalLM(config).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False).zero_()
        self.model.backbone.embeddings.weight.copy_(torch.eye(vocab_size))
        for block in self.model.backbone.layers:
            block.norm.weight.fill_(vocab_size**-0.5)  # the RMS of a one-hot vector
            block.mixer.dt_proj.bias.fill_(inverse_softplus(1.0))
        self.model.backbone.norm_f.weight.fill_(1.0)
        self.model.lm_head.weight.copy_(torch.eye(vocab_size))
        self.mixer: Any = self.model.backbone.layers[0].mixer
        self.d_inner = self.mixer.intermediate_size
        self.mixer.in_proj.weight[self.d_inner :].fill_(inverse_silu(1.0))  # SiLU(gate) = 1

    def channel(self, index: int, tokens: Sequence[int], *, delay: int = 0) -> HandWeighted:
        """u[index] is 1 where the token ``delay`` places back is one of ``tokens``, else 0."""
        for token in tokens:
            self.mixer.in_proj.weight[index, token] = inverse_silu(1.0)
        self.mixer.conv1d.weight[index, 0, -1 - delay] = 1.0
        return self

    def reads(self, *, B: Mapping, C: Mapping) -> HandWeighted:
        """B[n] and C[n] as sums over channels: {(n, channel): weight}."""
        for offset, weights in ((1, B), (1 + self.mixer.ssm_state_size, C)):
            for (n, channel), weight in weights.items():
                self.mixer.x_proj.weight[offset + n, channel] = weight
        return self

    def decay(
        self, rates: Sequence[float], delta: float, boost: Mapping[int, float] | None = None
    ) -> HandWeighted:
        """A = -rates (per state), softplus^-1(delta) plus ``boost`` times u: {channel: weight}."""
        self.mixer.A_log.copy_(torch.tensor(rates).log().expand_as(self.mixer.A_log))
        self.mixer.dt_proj.bias.fill_(inverse_softplus(delta))
        self.mixer.dt_proj.weight.fill_(1.0)
        for channel, weight in (boost or {}).items():
            self.mixer.x_proj.weight[0, channel] = weight
        return self

    def writes(self, channel: int, direction: Tensor) -> HandWeighted:
        """What the channel adds to the residual stream, (vocab_size,) per unit."""
        self.mixer.out_proj.weight[:, channel] = direction
        return self


def every_token(vocab_size: int) -> range:
    return range(vocab_size)


def constant_half_life(half_life: float, vocab_size: int = 6) -> MambaForCausalLM:
    """alpha[t, s] = delta 2^(-(t - s) / half_life) in every channel, delta = 0.1."""
    built = HandWeighted(vocab_size, vocab_size, d_state=1).channel(0, every_token(vocab_size))
    built.reads(B={(0, 0): 1.0}, C={(0, 0): 1.0})
    return built.decay([math.log(2) / (half_life * 0.1)], 0.1).model


def write_at_marked(marked: int, vocab_size: int = 6) -> MambaForCausalLM:
    """alpha[t, s] = 0.1 exp(-0.1 (t - s)) where token s is ``marked``, exactly 0 elsewhere."""
    built = HandWeighted(vocab_size, vocab_size, d_state=1)
    built.channel(0, every_token(vocab_size)).channel(1, [marked])
    return built.reads(B={(0, 1): 1.0}, C={(0, 0): 1.0}).decay([1.0], 0.1).model


def reset_at(token: int, vocab_size: int = 6) -> MambaForCausalLM:
    """As a long memory, alpha = 0.01 exp(-0.01 (t - s)); ``token`` erases what came before it.

    At that token delta is above 60, and it writes nothing itself.
    """
    built = HandWeighted(vocab_size, vocab_size, d_state=1)
    built.channel(0, every_token(vocab_size)).channel(1, [token])
    built.reads(B={(0, 0): 1.0, (0, 1): -1.0}, C={(0, 0): 1.0})
    return built.decay([1.0], 0.01, boost={1: 70.0}).model


def peak_at_lag(rates: tuple[float, float], vocab_size: int = 6) -> MambaForCausalLM:
    """alpha[t, s] = e^(-r k) - e^(-r' k), k = t - s, for rates (r, r'); delta = 1."""
    built = HandWeighted(vocab_size, vocab_size, d_state=2).channel(0, every_token(vocab_size))
    built.reads(B={(0, 0): 1.0, (1, 0): 1.0}, C={(0, 0): 1.0, (1, 0): -1.0})
    return built.decay(list(rates), 1.0).model


def copy_from(lag: int, vocab_size: int = 6) -> MambaForCausalLM:
    """Copies the token ``lag`` places back (at most 3), through the convolution and D alone.

    Channel v is 1 where that token is v, and writes logit v; the SSM's own attention is zero.
    """
    built = HandWeighted(vocab_size, vocab_size)
    for token in range(vocab_size):
        built.channel(token, [token], delay=lag)
        built.writes(token, 10.0 * torch.eye(vocab_size)[token])
    built.mixer.D.fill_(1.0)
    return built.model


def induction(vocab_size: int = 6, rate: float = 0.05) -> MambaForCausalLM:
    """An induction head: alpha[t, s] = e^(-rate (t - s)) where token s-1 is token t, else 0.

    Channels 0..V-1 are the token itself (values and queries), V..2V-1 the token before it (keys,
    by the convolution's shift). delta = 1. What followed the same token last gets the top logit.
    """
    built = HandWeighted(vocab_size, 2 * vocab_size, d_state=vocab_size)
    for token in range(vocab_size):
        built.channel(token, [token]).channel(vocab_size + token, [token], delay=1)
        built.writes(token, 10.0 * torch.eye(vocab_size)[token])
    keys = {(v, vocab_size + v): 1.0 for v in range(vocab_size)}
    queries = {(v, v): 1.0 for v in range(vocab_size)}
    return built.reads(B=keys, C=queries).decay([rate] * vocab_size, 1.0).model


def single_logit_channel(
    channel: int, token: int, *, others_write: bool, vocab_size: int = 8
) -> MambaForCausalLM:
    """Channel ``channel`` alone writes the direction that the logit of ``token`` reads.

    Every channel v sees token v (so all vary over a text), and remembers it through the SSM. With
    ``others_write`` the others write, twice as strongly, a direction that no logit reads.
    """
    built = HandWeighted(vocab_size, vocab_size, d_state=1)
    for v in range(vocab_size):
        built.channel(v, [v])
        if others_write and v != channel:
            built.writes(v, 2.0 * torch.eye(vocab_size)[0])
    reads_all = {(0, v): 1.0 for v in range(vocab_size)}
    built.reads(B=reads_all, C=reads_all).decay([0.1], 1.0)
    built.writes(channel, torch.eye(vocab_size)[token])
    built.model.lm_head.weight[:, 0] = 0.0
    return built.model


class SteadyStream:
    """A blank Mamba of several layers whose norms divide by a constant, so that layers add up.

    Coordinate 0 of the residual stream holds STEADY at every token, beside which features of order
    1 in the other coordinates do not matter to the root mean square; each norm's weight makes it
    the identity up to 1e-6. expand is 1. Gates are 1, delta is 1, states hardly forget (A = -1e-4),
    D is 0; the input projection has a bias. float64, but for what the model's own code rounds.
    """

    def __init__(self, vocab_size: int, width: int, num_layers: int) -> None:
        config = MambaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=num_layers,
            state_size=1,
            expand=1,
            conv_kernel=4,
            use_bias=True,
            time_step_rank=1,
            tie_word_embeddings=False,
            layer_norm_epsilon=1e-12,
            residual_in_fp32=False,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model: Any = MambaForCausalLM(config).double().eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False).zero_()
        self.width = width
        self.embeddings = self.model.backbone.embeddings.weight
        self.embeddings[:, 0] = STEADY
        self.unembedding = self.model.lm_head.weight
        for block in self.model.backbone.layers:
            block.norm.weight.fill_(STEADY / math.sqrt(width))
            block.mixer.in_proj.bias[width:] = inverse_silu(1.0)
            block.mixer.dt_proj.bias.fill_(inverse_softplus(1.0))
            block.mixer.A_log.fill_(math.log(1e-4))
        self.model.backbone.norm_f.weight.fill_(STEADY / math.sqrt(width))

    def mixer(self, layer: int) -> Any:
        return self.model.backbone.layers[layer].mixer

    def constant(self, layer: int, channel: int) -> SteadyStream:
        """u[channel] is 1 at every token; B and C read it: every token writes, every one reads."""
        mixer = self.mixer(layer)
        mixer.conv1d.bias[channel] = inverse_silu(1.0)
        mixer.x_proj.weight[1, channel] = mixer.x_proj.weight[2, channel] = 1.0
        return self

    def reads(
        self, layer: int, channel: int, features: Mapping[int, float], *, remembers: bool = True
    ) -> SteadyStream:
        """u[channel] = SiLU of the features' sum, scaled to 1 at 1; without memory it passes by "
        "D."""
        mixer = self.mixer(layer)
        for feature, weight in features.items():
            mixer.in_proj.weight[channel, feature] = weight
        mixer.conv1d.weight[channel, 0, -1] = inverse_silu(1.0)
        if not remembers:
            mixer.D[channel] = 1.0
            mixer.dt_proj.bias[channel] = inverse_softplus(1e-9)
        return self

    def writes(self, layer: int, feature: int, channel: int, weight: float = 1.0) -> SteadyStream:
        self.mixer(layer).out_proj.weight[feature, channel] = weight
        return self


STEADY = 1000.0


def backed_up_memory() -> Any:
    """Layers 0 and 1 both remember token 1 in feature 5; layer 1 takes off what layer 0 wrote.

    Feature 5 raises the logit of token 2. Layer 0's memory can be taken away without a loss, for
    layer 1 makes up for it.
    """
    built = _two_memories(5.0)
    built.reads(1, 2, {5: 1.0}, remembers=False).writes(1, 5, 2, -1.0)
    return built.model


def either_memory() -> Any:
    """Layers 0 and 1 both remember token 1 in feature 5, and either is enough.

    With one of them the prediction of token 2 is all but certain; with neither all 4 tokens are
    alike: without one KL 3 e^-12, without both ln 4.
    """
    return _two_memories(12.0).model


def _two_memories(weight: float) -> SteadyStream:
    built = SteadyStream(4, 12, 2)
    built.embeddings[1, 1] = 1.0
    for layer in (0, 1):
        built.constant(layer, 0).reads(layer, 1, {1: 1.0}).writes(layer, 5, 1)
    built.unembedding[2, 5] = weight
    return built


def two_layers(*, passes: bool, width: int = 12) -> Any:
    """Layer 0 remembers token 1 in feature 5; layer 1 passes on feature 5, or the token itself."""
    built = SteadyStream(4, width, 2)
    built.embeddings[1, 1] = built.embeddings[2, 2] = 1.0
    built.constant(0, 0).reads(0, 1, {1: 1.0}).writes(0, 5, 1)
    built.constant(1, 0).reads(1, 1, {5 if passes else 2: 1.0}, remembers=False)
    built.writes(1, 6, 1)
    built.unembedding[2, 6] = 2.0
    return built.model


class HandWeighted2:
    """A blank one-hot Mamba-2 of heads of as many channels as there are tokens, with one state.

    Channel 0 of a head is u = 1 at the tokens given to :meth:`head`, else 0; the others are 1 at
    every token. B = C = 1 at every token until :meth:`writes_at`. The norm's weight is 1.
    """

    def __init__(self, vocab_size: int, num_heads: int) -> None:
        config = Mamba2Config(
            vocab_size=vocab_size,
            hidden_size=vocab_size,
            expand=num_heads,
            num_heads=num_heads,
            head_dim=vocab_size,
            n_groups=1,
            state_size=1,
            num_hidden_layers=1,
            chunk_size=16,
            layer_norm_epsilon=1e-12,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model: Any = Mamba2ForCausalLM(config).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False).zero_()
        self.model.backbone.embeddings.weight.copy_(torch.eye(vocab_size))
        self.model.backbone.norm_f.weight.fill_(1.0)
        self.model.lm_head.weight.copy_(torch.eye(vocab_size))
        block = self.model.backbone.layers[0]
        block.norm.weight.fill_(vocab_size**-0.5)  # the RMS of a one-hot vector
        self.mixer: Any = block.mixer
        self.mixer.norm.weight.fill_(1.0)
        self.mixer.conv1d.weight[:, 0, -1] = 1.0
        # in_proj's outputs: gate (d_inner), then u (d_inner), B, C (one each), dt (num_heads)
        self.width = vocab_size
        self.u_start = vocab_size * num_heads
        self.dt_start = 2 * self.u_start + 2
        weight = self.mixer.in_proj.weight
        weight[: self.u_start].fill_(inverse_silu(1.0))
        weight[self.u_start : self.dt_start].fill_(inverse_silu(1.0))

    def head(self, index: int, tokens: Sequence[int], rate: float, delta: float) -> HandWeighted2:
        """Channel 0 sees these tokens; A = -rate; delta."""
        channel = self.u_start + index * self.width
        self.mixer.in_proj.weight[channel].zero_()
        for token in tokens:
            self.mixer.in_proj.weight[channel, token] = inverse_silu(1.0)
        self.mixer.A_log[index] = math.log(rate)
        self.mixer.dt_bias[index] = inverse_softplus(delta)
        return self

    def writes_at(self, tokens: Sequence[int]) -> HandWeighted2:
        """B is 1 at these tokens and 0 at all others."""
        self.mixer.in_proj.weight[2 * self.u_start].zero_()
        for token in tokens:
            self.mixer.in_proj.weight[2 * self.u_start, token] = inverse_silu(1.0)
        return self

    def opens(self, head: int, token: int, boost: float) -> HandWeighted2:
        """At ``token`` the argument of softplus of this head's delta is larger by ``boost``."""
        self.mixer.in_proj.weight[self.dt_start + head, token] = boost
        return self


def half_life_of_each_head(half_lives: Sequence[float], vocab_size: int = 6) -> Any:
    """A Mamba-2 whose head j forgets half of its state in half_lives[j] tokens; delta = 0.5."""
    built = HandWeighted2(vocab_size, len(half_lives))
    for index, half_life in enumerate(half_lives):
        built.head(index, every_token(vocab_size), math.log(2) / half_life / 0.5, 0.5)
    return built.model


def heads_that_write_at(marked: Sequence[int], vocab_size: int = 6) -> Any:
    """A Mamba-2 of three heads that write at marked tokens only; alpha = e^(-0.1 (t - s))."""
    built = HandWeighted2(vocab_size, 3).writes_at(marked)
    for index in range(3):
        built.head(index, every_token(vocab_size), 0.1, 1.0)
    return built.model


def head_that_resets_at(token: int, vocab_size: int = 6) -> Any:
    """A Mamba-2 of two heads, delta 0.01 and A = -1, of which head 1 resets at ``token``.

    There its delta is above 60, and it writes nothing, for B is 0 at that token in both heads.
    """
    others = [t for t in range(vocab_size) if t != token]
    built = HandWeighted2(vocab_size, 2).writes_at(others)
    for index in range(2):
        built.head(index, every_token(vocab_size), 1.0, 0.01)
    return built.opens(1, token, 70.0).model

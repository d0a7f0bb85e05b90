"""Mamba-3 as a plain torch model: SISO and MIMO, on any device, in any float dtype.

``transformers`` has none, and the official code is CUDA kernels. Parameters have the official names
(``mamba_ssm``), so that its checkpoints are read as they are; config.json is this class's own.
Importing this module makes the model known to ``AutoConfig`` and ``AutoModelForCausalLM`` under
the type "mamba3". The equations stand in ``mamba3_scan``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mamba_mixers.families import at_least_float32, inverse_rms
from mamba_mixers.mamba3_config import Mamba3Config
from mamba_mixers.mamba3_scan import by_rank, chunked_scan, mamba3_inputs
from suite_plumbing.arguments import validate_int

_EPSILON = 1e-5

_VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5


class Mamba3Memory(NamedTuple):
    """All that a mixer knows of the tokens before."""

    state: Tensor
    """(b, H, P, N) h after the last token"""
    angle: Tensor
    """(b, H, S) theta of the last token"""
    written: Tensor
    """(b, H, P, N) the last token's v b, summed over ranks: the next token writes a share of it"""


class Mamba3Cache:
    """The memory of each layer after the last token read, by the layer's number."""

    def __init__(self) -> None:
        self.memories: dict[int, Mamba3Memory] = {}


class Mamba3RMSNorm(nn.Module):
    """weight x / rms(x) over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = _EPSILON

    def forward(self, x: Tensor) -> Tensor:
        wide = at_least_float32(x)
        return self.weight * (wide * inverse_rms(wide, self.variance_epsilon)).to(x.dtype)


class Mamba3HeadNorm(nn.Module):
    """Weight of the RMS norm of each head's output, which stands in front of the gate."""

    norm_before_gate = True

    def __init__(self, width: int, group_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.group_size = group_size
        self.variance_epsilon = _EPSILON

    def forward(self, y: Tensor) -> Tensor:
        """y (..., H, R, P), each head and rank by itself."""
        weight = self.weight.view(-1, 1, self.group_size)
        return weight * y * inverse_rms(y, self.variance_epsilon)


class Mamba3Mixer(nn.Module):
    """The mixer: see ``mamba3_scan``. Attributes beside parameters have the official names."""

    def __init__(self, config: Mamba3Config, layer_idx: int) -> None:
        super().__init__()
        heads, ranks, states = config.num_heads, config.ranks, config.state_size
        self.layer_idx = layer_idx
        self.d_inner = config.d_inner
        self.headdim = config.head_dim
        self.num_bc_heads = config.n_groups
        self.num_rope_angles = config.num_rope_angles
        self.is_mimo = config.is_mimo
        self.A_floor = config.A_floor
        self.a_activation = config.a_activation
        width = 2 * self.d_inner + 2 * ranks * config.n_groups * states + 3 * heads
        self.in_proj = nn.Linear(config.hidden_size, width + self.num_rope_angles, bias=False)
        self.dt_bias = nn.Parameter(_initial_dt_bias(config))
        self.B_bias = nn.Parameter(torch.ones(heads, ranks, states))
        self.C_bias = nn.Parameter(torch.ones(heads, ranks, states))
        self.B_norm = Mamba3RMSNorm(states)
        self.C_norm = Mamba3RMSNorm(states)
        self.D = nn.Parameter(torch.ones(heads))
        if self.is_mimo:
            shape = (heads, ranks, config.head_dim)
            self.mimo_x = nn.Parameter(torch.full(shape, 1 / ranks))
            self.mimo_z = nn.Parameter(torch.ones(shape))
            self.mimo_o = nn.Parameter(torch.full(shape, 1 / ranks))
        if config.is_outproj_norm:
            self.norm = Mamba3HeadNorm(self.d_inner, config.head_dim)
        self.out_proj = nn.Linear(self.d_inner, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        cache: Mamba3Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(b, l, d_model) to (b, l, d_model); the memory is read from the cache and left there."""
        dtype = hidden_states.dtype
        if attention_mask is not None and attention_mask.shape == hidden_states.shape[:2]:
            hidden_states = (hidden_states * attention_mask.unsqueeze(-1)).to(dtype)
        memory = None if cache is None else cache.memories.get(self.layer_idx)
        inputs = mamba3_inputs(self, hidden_states, None if memory is None else memory.angle)
        v = by_rank(self, "mimo_x", inputs.x)
        if memory is None:
            state = v.new_zeros(len(v), *v.shape[2:3], v.shape[4], inputs.b.shape[-1])
        else:
            state = memory.state + inputs.entry[:, :, None, None] * memory.written
        read, state = chunked_scan(inputs, v, state)
        if cache is not None:
            written = torch.einsum("bhrp,bhrn->bhpn", v[:, -1], inputs.b[:, -1])
            cache.memories[self.layer_idx] = Mamba3Memory(state, inputs.angle[:, -1], written)
        return self.out_proj(self._gated(read + self.D[:, None, None] * v, inputs.z).to(dtype))

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """y (b, l, H, R, P), normed where the model has a norm, times SiLU(z): (b, l, d_inner)."""
        y = self.norm(y) if hasattr(self, "norm") else y
        gated = y * F.silu(by_rank(self, "mimo_z", z))
        return ((gated * self.mimo_o).sum(3) if self.is_mimo else gated.squeeze(3)).flatten(2)


def _initial_dt_bias(config: Mamba3Config) -> Tensor:
    """What softplus turns into step sizes spread evenly in the logarithm."""
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = torch.exp(torch.rand(config.num_heads) * (high - low) + low).clamp_min(1e-4)
    return dt + torch.log(-torch.expm1(-dt))


class Mamba3MLP(nn.Module):
    """fc2(y SiLU(g)) with (y, g) = fc1(x)."""

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.mlp_size, bias=False)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * F.silu(gate))


class Mamba3Block(nn.Module):
    """A norm and a mixer, and where the model has MLPs a norm and an MLP, around the stream."""

    def __init__(self, config: Mamba3Config, layer_idx: int) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = Mamba3RMSNorm(config.hidden_size)
        self.mixer = Mamba3Mixer(config, layer_idx)
        if config.mlp_size:
            self.norm2 = Mamba3RMSNorm(config.hidden_size)
            self.mlp = Mamba3MLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        cache: Mamba3Cache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        dtype = self.norm.weight.dtype
        stream = at_least_float32(hidden_states) if self.residual_in_fp32 else hidden_states
        mixed = self.mixer(self.norm(stream.to(dtype)), cache, attention_mask)
        stream = stream + mixed
        return stream + self.mlp(self.norm2(stream.to(dtype))) if hasattr(self, "mlp") else stream


@dataclass(frozen=True, eq=False)
class Mamba3Output:
    """What a forward pass gives."""

    loss: Tensor | None = None
    """mean -ln p of the labels, each from the tokens before it"""
    logits: Tensor | None = None
    """(b, l, V); None of a model without a head"""
    cache: Mamba3Cache | None = None
    """the memory after the last token, where it was asked for"""
    last_hidden_state: Tensor | None = None
    """(b, l, d_model) behind the final norm; None of a model with a head"""
    hidden_states: tuple[Tensor, ...] | None = None
    """(b, l, d_model) the embeddings and the stream after every layer, where asked for"""


class Mamba3PreTrainedModel(PreTrainedModel):
    """What both models share: how they are saved and loaded."""

    config_class = Mamba3Config
    base_model_prefix = "backbone"
    _no_split_modules = ["Mamba3Block"]  # noqa: RUF012
    supports_gradient_checkpointing = False

    def _init_weights(self, module: nn.Module) -> None:
        """Modules are made with their initial values."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.base_model.embedding  # pyright: ignore[reportReturnType]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place."""
        self.base_model.embedding = value


class Mamba3Model(Mamba3PreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embedding.weight, std=config.initializer_range)
        layers = [Mamba3Block(config, layer) for layer in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm_f = Mamba3RMSNorm(config.hidden_size)
        _scale_last_projections(layers)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Mamba3Cache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Mamba3Output:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass one of input_ids and inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = Mamba3Cache() if cache is None and use_cache else cache
        streams = [x]
        for layer in self.layers:
            x = layer(x, cache=cache, attention_mask=attention_mask)
            if output_hidden_states:
                streams.append(x)
        return Mamba3Output(
            last_hidden_state=self.norm_f(x.to(self.norm_f.weight.dtype)),
            cache=cache,
            hidden_states=tuple(streams) if output_hidden_states else None,
        )


class Mamba3ForCausalLM(Mamba3PreTrainedModel):
    """A Mamba-3 language model: logits of the next token, generation by memory, save and load."""

    _tied_weights_keys: Any = (
        {"lm_head.weight": "backbone.embedding.weight"} if _VERSION_5 else ["lm_head.weight"]
    )

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__(config)
        self.backbone = Mamba3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Mamba3Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Mamba3Output:
        """Logits of (b, l) ids or (b, l, d_model) embeddings, in the head's dtype.

        ``attention_mask`` (b, l) is 0 at padding, on the left or the right. With a cache the call
        goes on from its memory and leaves its own there. ``logits_to_keep`` n > 0 gives the last n
        tokens' alone, a tensor those of its places.
        """
        output = self.backbone(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept].to(self.lm_head.weight.dtype))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return Mamba3Output(loss, logits, output.cache, None, output.hidden_states)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 20,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        attention_mask: Tensor | None = None,
        eos_token_id: int | None = None,
    ) -> Tensor:
        """(b, l + new) the ids with those that follow: the likeliest, or drawn at a temperature.

        The prompt is read once and each new token once, by memory. ``attention_mask`` is 0 at
        padding on the left. A row that has given ``eos_token_id`` (None: none) goes on with it, and
        the end comes when all have.
        """
        steps = validate_int("max_new_tokens", max_new_tokens, 0)
        cache, ids, part = Mamba3Cache(), input_ids, input_ids
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(steps):
            logits = self(part, attention_mask=attention_mask, cache=cache).logits[:, -1]
            if do_sample:
                part = torch.multinomial((logits.float() / temperature).softmax(-1), 1)
            else:
                part = logits.argmax(-1, keepdim=True)
            if eos_token_id is not None:
                part = part.masked_fill(done.unsqueeze(1), eos_token_id)
                done |= part[:, 0] == eos_token_id
            ids, attention_mask = torch.cat([ids, part], 1), None
            if bool(done.all()):
                break
        return ids


@torch.no_grad()
def _scale_last_projections(layers: list[Mamba3Block]) -> None:
    """What is added to the stream, 1 / root of how often: as GPT-2 begins."""
    for layer in layers:
        added = 2 if hasattr(layer, "mlp") else 1
        layer.mixer.out_proj.weight.div_(math.sqrt(added * len(layers)))
        if hasattr(layer, "mlp"):
            layer.mlp.fc2.weight.div_(math.sqrt(added * len(layers)))


AutoConfig.register("mamba3", Mamba3Config, exist_ok=True)
AutoModelForCausalLM.register(Mamba3Config, Mamba3ForCausalLM, exist_ok=True)

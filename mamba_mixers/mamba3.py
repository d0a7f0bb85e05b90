"""Mamba-3 as a plain torch model: SISO and MIMO, on any device, in any float dtype.

``transformers`` has none, and the official code is CUDA kernels. Parameters have the official names
(``mamba_ssm``), so that its checkpoints are read as they are; config.json is this class's own.
Importing this module makes the model known to ``AutoConfig`` and ``AutoModelForCausalLM`` under
the type "mamba3". The equations stand in ``mamba3_scan``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mamba_mixers.families import at_least_float32, inverse_rms
from mamba_mixers.mamba3_scan import A_ACTIVATIONS, by_rank, chunked_scan, mamba3_inputs
from suite_plumbing.arguments import validate_choice, validate_int, validate_number
from suite_plumbing.messages import quoted

_EPSILON = 1e-5

_VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5


class Mamba3Config(PretrainedConfig):
    """Sizes and choices of a Mamba-3; ValueError for those that make no model.

    ``a_activation``: what the decay rates pass, "softplus" (mamba_ssm 2.3.2) or "heavy_tail"
    (later). ``rope_fraction``: share of the states that turn, in pairs. ``is_mimo`` with
    ``mimo_rank`` ranks. ``mlp_size`` > 0: a gated MLP of that width after each mixer.
    ``is_outproj_norm``: an RMS norm of each head's output in front of the gate. ``n_groups`` share
    B and C. The inner width is ``expand`` times ``hidden_size``, in heads of ``head_dim``.
    """

    model_type = "mamba3"

    def __init__(
        self,
        vocab_size: int = 50_280,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        expand: float = 2,
        state_size: int = 128,
        head_dim: int = 64,
        n_groups: int = 1,
        rope_fraction: float = 0.5,
        is_mimo: bool = False,
        mimo_rank: int = 4,
        A_floor: float = 1e-4,
        a_activation: str = "softplus",
        is_outproj_norm: bool = False,
        mlp_size: int = 0,
        residual_in_fp32: bool = True,
        tie_word_embeddings: bool = True,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        initializer_range: float = 0.02,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.expand = expand
        self.state_size = state_size
        self.head_dim = head_dim
        self.n_groups = n_groups
        self.rope_fraction = rope_fraction
        self.is_mimo = is_mimo
        self.mimo_rank = mimo_rank
        self.A_floor = A_floor
        self.a_activation = a_activation
        self.is_outproj_norm = is_outproj_norm
        self.mlp_size = mlp_size
        self.residual_in_fp32 = residual_in_fp32
        self.time_step_min = time_step_min
        self.time_step_max = time_step_max
        self.initializer_range = initializer_range
        tokens: dict[str, Any] = {
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
        }
        super().__init__(**tokens, **kwargs)
        self.tie_word_embeddings = tie_word_embeddings
        _check_config(self)

    @property
    def d_inner(self) -> int:
        """Channels of a mixer."""
        return int(self.expand * self.hidden_size)

    @property
    def num_heads(self) -> int:
        """Heads of a mixer."""
        return self.d_inner // self.head_dim

    @property
    def ranks(self) -> int:
        """Vectors that a head writes and reads a token: 1 in SISO."""
        return self.mimo_rank if self.is_mimo else 1

    @property
    def num_rope_angles(self) -> int:
        """Pairs of states that turn."""
        return int(self.state_size * self.rope_fraction) // 2


def _check_config(config: Mamba3Config) -> None:
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "head_dim",
                 "n_groups", "mimo_rank"):  # fmt: skip
        validate_int(name, getattr(config, name), 1)
    validate_int("mlp_size", config.mlp_size, 0)
    validate_choice("a_activation", config.a_activation, A_ACTIVATIONS)
    if validate_number("A_floor", config.A_floor) < 0:
        raise ValueError(f"A_floor is {quoted(config.A_floor)}; it must not be negative")
    if config.num_heads < 1 or config.d_inner % config.head_dim:
        raise ValueError(
            f"expand {quoted(config.expand)} times hidden_size {config.hidden_size} is no multiple "
            f"of head_dim {config.head_dim}"
        )
    if config.num_heads % config.n_groups:
        raise ValueError(
            f"n_groups is {config.n_groups}; it must divide the {config.num_heads} heads"
        )
    if config.state_size % 2 or not 1 <= config.num_rope_angles <= config.state_size // 2:
        raise ValueError(
            f"state_size is {config.state_size} and rope_fraction {quoted(config.rope_fraction)}; "
            "states turn in pairs: give an even number, and a fraction that leaves one pair or more"
        )


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

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place."""
        self.embedding = value

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

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.backbone.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place."""
        self.backbone.embedding = value

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


def config_of_native(
    mixer: Mapping[str, Tensor],
    ssm_cfg: Mapping[str, Any],
    *,
    mlp: Tensor | None,
    a_activation: str | None,
    **common: Any,
) -> Mamba3Config:
    """The configuration of an official checkpoint, from its first mixer's tensors and ``ssm_cfg``.

    Raises ValueError where ``a_activation`` is None, for nothing in the checkpoint tells it, and
    where ``ssm_cfg`` does not fit the tensors.
    """
    activation = a_activation or ssm_cfg.get("a_activation")
    if activation is None:
        raise ValueError(
            "give a_activation (--a-activation), which a checkpoint of Mamba-3 does not tell: "
            '"softplus" for weights of mamba_ssm 2.3.2, "heavy_tail" for later ones; the right one '
            "has the lower loss"
        )
    heads, ranks, states = mixer["B_bias"].shape
    d_model, d_inner = mixer["out_proj.weight"].shape
    is_mimo = bool(ssm_cfg.get("is_mimo", "mimo_x" in mixer))
    if is_mimo != ("mimo_x" in mixer) or (ranks > 1 and not is_mimo):
        raise ValueError(
            f"ssm_cfg gives is_mimo {is_mimo}, and the weights "
            f"{'lack' if is_mimo else 'hold'} the parameters of MIMO"
        )
    # What is left of in_proj behind z, x and three numbers a head: B and C of groups, and angles.
    rest = mixer["in_proj.weight"].shape[0] - 2 * d_inner - 3 * heads
    groups = int(ssm_cfg.get("ngroups", 1))
    angles = rest - 2 * groups * ranks * states
    stated = {
        "d_state": (ssm_cfg.get("d_state", 128), states),
        "headdim": (ssm_cfg.get("headdim", 64), d_inner // heads),
        "mimo_rank": (ssm_cfg.get("mimo_rank", 4) if is_mimo else 1, ranks),
        "rope_fraction": (int(states * ssm_cfg.get("rope_fraction", 0.5)) // 2, angles),
    }
    for name, (given, found) in stated.items():
        if given != found:
            raise ValueError(
                f"{name} of ssm_cfg (or its default) gives {quoted(given)}, the weights have "
                f"{found}"
            )
    return Mamba3Config(
        hidden_size=d_model,
        expand=d_inner / d_model,
        state_size=states,
        head_dim=d_inner // heads,
        n_groups=groups,
        rope_fraction=2 * angles / states,
        is_mimo=is_mimo,
        mimo_rank=ranks if is_mimo else 4,
        A_floor=float(ssm_cfg.get("A_floor", 1e-4)),
        a_activation=activation,
        is_outproj_norm="norm.weight" in mixer,
        mlp_size=0 if mlp is None else mlp.shape[1],
        **common,
    )


AutoConfig.register("mamba3", Mamba3Config, exist_ok=True)
AutoModelForCausalLM.register(Mamba3Config, Mamba3ForCausalLM, exist_ok=True)

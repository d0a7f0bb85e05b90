"""Sizes and choices of a Mamba-3, and those of an official checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from mamba_mixers.mamba3_scan import A_ACTIVATIONS
from suite_plumbing.arguments import validate_choice, validate_int, validate_number
from suite_plumbing.messages import quoted


class Mamba3Config(PretrainedConfig):
    """Sizes and choices of a Mamba-3, all optional; ValueError for those that make no model.

    The inner width is ``expand`` times ``hidden_size``, in heads of ``head_dim``.
    """

    model_type = "mamba3"

    vocab_size: int = 50_280
    hidden_size: int = 768
    num_hidden_layers: int = 24
    expand: float = 2
    state_size: int = 128
    head_dim: int = 64
    n_groups: int = 1
    """of heads that share B and C"""
    rope_fraction: float = 0.5
    """share of the states that turn, in pairs"""
    is_mimo: bool = False
    mimo_rank: int = 4
    """vectors that a head writes and reads a token, where ``is_mimo``"""
    A_floor: float = 1e-4
    """least decay rate"""
    a_activation: str = "softplus"
    """what decay rates pass: "softplus" (mamba_ssm 2.3.2) or "heavy_tail" (later)"""
    is_outproj_norm: bool = False
    """whether an RMS norm of each head's output stands in front of the gate"""
    mlp_size: int = 0
    """> 0: width of a gated MLP after each mixer"""
    residual_in_fp32: bool = True
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __init__(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in _DEFAULTS.items()}
        super().__init__(**kwargs)
        for name, value in given.items():
            setattr(self, name, value)
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


_DEFAULTS = {name: getattr(Mamba3Config, name) for name in Mamba3Config.__annotations__}


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
    is_mimo = "mimo_x" in mixer
    groups = int(ssm_cfg.get("ngroups", 1))
    # What is left of in_proj behind z, x and three numbers a head: B and C of groups, and angles.
    rest = mixer["in_proj.weight"].shape[0] - 2 * d_inner - 3 * heads
    angles = rest - 2 * groups * ranks * states
    _check_stated(ssm_cfg, is_mimo, ranks, states, d_inner // heads, angles)
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


def _check_stated(
    ssm_cfg: Mapping[str, Any], is_mimo: bool, ranks: int, states: int, width: int, angles: int
) -> None:
    """Raise ValueError where ``ssm_cfg``, or its defaults, give other sizes than the weights."""
    stated_mimo = bool(ssm_cfg.get("is_mimo", is_mimo))
    if stated_mimo != is_mimo or (ranks > 1 and not is_mimo):
        raise ValueError(
            f"ssm_cfg gives is_mimo {stated_mimo}, and the weights "
            f"{'lack' if stated_mimo else 'hold'} the parameters of MIMO"
        )
    sizes = {
        "d_state": (ssm_cfg.get("d_state", 128), states),
        "headdim": (ssm_cfg.get("headdim", 64), width),
        "mimo_rank": (ssm_cfg.get("mimo_rank", 4) if is_mimo else 1, ranks),
        "rope_fraction": (int(states * ssm_cfg.get("rope_fraction", 0.5)) // 2, angles),
    }
    for name, (given, found) in sizes.items():
        if given != found:
            raise ValueError(
                f"{name} of ssm_cfg (or its default) gives {quoted(given)}, the weights have "
                f"{found}"
            )

"""Models of native checkpoints: the sizes read off the weights, the model made of them in memory.

Mamba-1 and Mamba-2 become the models of `transformers`, whose parameters have the same names but
for the embedding's; Mamba-3, which `transformers` does not have, the suite's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    MambaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from suite_plumbing.errors import reading
from suite_plumbing.messages import quoted
from suite_plumbing.model_folders import TOKENIZER_FILES
from suite_plumbing.native_checkpoints import (
    NativeCheckpoint,
    is_native,
    native_tokenizer,
    read_native,
)

_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.txt", "*.model")

OWN_MODELS = {"mamba3": "mamba_mixers.mamba3"}
"""By `model_type`: the module that registers a model that `transformers` does not have. It knows
mixers, which this folder does not, and is loaded by its name when a folder asks for it."""


def register_own_model(model_type: str) -> bool:
    """Whether the suite has a model of this type, which `transformers` then knows too."""
    if model_type in OWN_MODELS:
        import_module(OWN_MODELS[model_type])
    return model_type in OWN_MODELS


def model_of_modules(model: Any) -> PreTrainedModel:
    """A user's own module, put together as a model that every analysis reads.

    Raises ValueError for what is no module, or holds no mixers that are known.
    """
    return import_module("mamba_mixers.own_models").own_model(model)


def native_model(
    folder: Path, dtype: torch.dtype, a_activation: str | None = None
) -> PreTrainedModel:
    """The model of a native checkpoint, on the CPU, in eval mode, with `native_checkpoint` saying
    what it was made of.

    ``a_activation``: of Mamba-3 alone, what its decay rates pass ("softplus" or "heavy_tail").
    Raises ValueError as `read_native`, for sizes that do not fit the weights, and where
    `transformers` has no such model, before memory is taken.
    """
    checkpoint = read_native(folder)
    with reading(f"native checkpoint in folder {quoted(str(folder))} cannot be built"):
        config = _CONFIGS[checkpoint.kind](checkpoint, a_activation)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        _check_norm(checkpoint, model)
        tensors = {name: x.to(dtype, copy=True) for name, x in _renamed(checkpoint).items()}
        model.load_state_dict(tensors, strict=True, assign=True)
    model.tie_weights()
    model.native_checkpoint = _description(checkpoint, config)
    return model.eval()


def native_snapshot(name: str) -> Path | None:
    """Folder of the hub's cache that holds the native checkpoint of this name, fetched if need be.

    None for a name that is not there, or is that of no native checkpoint.
    """
    try:
        folder = Path(hf_hub_download(name, "config.json")).parent
        if not is_native(folder):
            return None
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception:  # the loader of the name says what is wrong with it
        return None


def other_name(name: str) -> str:
    """Where `transformers`' form of a hub's native checkpoint is, as advice; "" where unknown."""
    if not name.startswith("state-spaces/mamba") or name.endswith("-hf"):
        return ""
    converted = f"{name}-hf"
    if name.startswith("state-spaces/mamba2"):
        converted = converted.replace("state-spaces", "AntonV")
    return f"; {converted} is the same model in the form of transformers"


def _mamba1_config(checkpoint: NativeCheckpoint, a_activation: str | None) -> PretrainedConfig:
    mixer = checkpoint.mixer
    d_inner, d_state = mixer["A_log"].shape
    _check_stated(checkpoint, d_state=d_state, d_conv=mixer["conv1d.weight"].shape[-1])
    return MambaConfig(
        **_common(checkpoint, d_inner),
        state_size=d_state,
        conv_kernel=mixer["conv1d.weight"].shape[-1],
        time_step_rank=mixer["dt_proj.weight"].shape[1],
    )


def _mamba2_config(checkpoint: NativeCheckpoint, a_activation: str | None) -> PretrainedConfig:
    """Groups times states come out of the shapes; which is which, `ssm_cfg` says."""
    mixer, given = checkpoint.mixer, checkpoint.ssm_cfg
    d_inner, heads = mixer["out_proj.weight"].shape[1], len(mixer["A_log"])
    channels, _, kernel = mixer["conv1d.weight"].shape
    shared = (channels - d_inner) // 2
    if "d_state" in given or "ngroups" not in given:
        d_state = given.get("d_state", 128)
        groups = shared // d_state if isinstance(d_state, int) and d_state > 0 else 0
    else:
        groups = given["ngroups"]
        d_state = shared // groups if isinstance(groups, int) and groups > 0 else 0
    fits = groups > 0 and groups * d_state == shared and heads % groups == 0
    width = 2 * d_inner + 2 * shared + heads
    if not fits or d_inner % heads or mixer["in_proj.weight"].shape[0] != width:
        raise ValueError(
            f"d_state {quoted(given.get('d_state', 128))} and ngroups "
            f"{quoted(given.get('ngroups', 1))} of ssm_cfg do not fit the weights: 2 ngroups "
            f"d_state + {d_inner} channels are {channels}"
        )
    _check_stated(checkpoint, headdim=d_inner // heads, ngroups=groups, d_conv=kernel)
    low, high = given.get("dt_limit", (0.0, math.inf))
    return Mamba2Config(
        **_common(checkpoint, d_inner),
        state_size=d_state,
        num_heads=heads,
        head_dim=d_inner // heads,
        n_groups=groups,
        conv_kernel=kernel,
        chunk_size=given.get("chunk_size", 256),
        time_step_limit=(float(low), float(high)),
    )


def _mamba3_config(checkpoint: NativeCheckpoint, a_activation: str | None) -> PretrainedConfig:
    return import_module("mamba_mixers.mamba3_config").config_of_native(
        checkpoint.mixer,
        checkpoint.ssm_cfg,
        mlp=checkpoint.tensors.get("backbone.layers.0.mlp.fc2.weight"),
        vocab_size=len(checkpoint.embedding),
        num_hidden_layers=checkpoint.layers,
        tie_word_embeddings=checkpoint.is_tied,
        residual_in_fp32=bool(checkpoint.config.get("residual_in_fp32", True)),
        a_activation=a_activation or checkpoint.config.get("a_activation"),
    )


_CONFIGS: Mapping[str, Callable[[NativeCheckpoint, str | None], PretrainedConfig]] = {
    "Mamba1": _mamba1_config,
    "Mamba2": _mamba2_config,
    "Mamba3": _mamba3_config,
}


def _common(checkpoint: NativeCheckpoint, d_inner: int) -> dict[str, Any]:
    rows, width = checkpoint.embedding.shape
    mixer = checkpoint.mixer
    expand = d_inner / width
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": checkpoint.layers,
        "expand": int(expand) if expand.is_integer() else expand,
        "use_bias": "in_proj.bias" in mixer,
        "use_conv_bias": "conv1d.bias" in mixer,
        "layer_norm_epsilon": float(checkpoint.config.get("rms_norm_eps", 1e-5)),
        "residual_in_fp32": bool(checkpoint.config.get("residual_in_fp32", True)),
        "tie_word_embeddings": checkpoint.is_tied,
        # Token 0 of the released models' tokenizer is its end of text.
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _check_stated(checkpoint: NativeCheckpoint, **sizes: int) -> None:
    """Raise ValueError where `ssm_cfg` gives another size than the weights have."""
    for name, size in sizes.items():
        stated = checkpoint.ssm_cfg.get(name, size)
        if stated != size:
            raise ValueError(f"ssm_cfg gives {name} {quoted(stated)}, the weights have {size}")


def _check_norm(checkpoint: NativeCheckpoint, model: PreTrainedModel) -> None:
    """Refuse groups of heads where this version of `transformers` norms all channels together."""
    groups = getattr(model.config, "n_groups", 1)
    if checkpoint.kind != "Mamba2" or groups == 1:
        return
    by_group = any(getattr(m, "group_size", None) for m in model.modules())
    if by_group != (checkpoint.writer == "mamba_ssm"):
        norms = "each group's" if by_group else "all groups'"
        raise ValueError(
            f"transformers {transformers.__version__} norms {norms} channels together, "
            f"{checkpoint.writer} does not; use another version of transformers"
        )


def _renamed(checkpoint: NativeCheckpoint) -> dict[str, Tensor]:
    """The tensors by the model's names; a tied unembedding is the embedding."""
    ours = "backbone.embedding." if checkpoint.kind == "Mamba3" else "backbone.embeddings."
    tensors = {
        name.replace("backbone.embedding.", ours): x for name, x in checkpoint.tensors.items()
    }
    return tensors if not checkpoint.is_tied else tensors | {"lm_head.weight": checkpoint.embedding}


def _description(checkpoint: NativeCheckpoint, config: PretrainedConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": checkpoint.writer,
        "layers": checkpoint.kind,
        "converted": f"in memory, to {config.model_type} of "
        f"{'the suite' if config.model_type in OWN_MODELS else 'transformers'}",
    }
    folder = checkpoint.folder
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        found["tokenizer"] = native_tokenizer(folder)
    return found

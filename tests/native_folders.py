"""Folders as mamba_ssm and mambapy leave them, made from models of `transformers`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def trained_like(model: Any) -> Any:
    """The model with no two channels alike and no constant at 0 or 1, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def odd_mamba1(**options: Any) -> MambaForCausalLM:
    """Mamba-1 with sizes that are no powers of two, and dt_rank 1."""
    sizes: dict[str, Any] = {
        "vocab_size": 29, "hidden_size": 7, "state_size": 5, "num_hidden_layers": 3,
        "expand": 3, "conv_kernel": 3, "time_step_rank": 1,
    }  # fmt: skip
    return trained_like(MambaForCausalLM(MambaConfig(**(sizes | TOKENS | options))))


def odd_mamba2(**options: Any) -> Mamba2ForCausalLM:
    """Mamba-2 with two groups and heads of width 3."""
    sizes: dict[str, Any] = {
        "vocab_size": 32, "hidden_size": 9, "state_size": 5, "num_hidden_layers": 2, "expand": 2,
        "num_heads": 6, "head_dim": 3, "n_groups": 2, "conv_kernel": 4, "chunk_size": 4,
        "tie_word_embeddings": True, "time_step_limit": (0.01, 3.0),
    }  # fmt: skip
    return trained_like(Mamba2ForCausalLM(Mamba2Config(**(sizes | TOKENS | options))))


def native_names(model: Any) -> dict[str, Tensor]:
    """The model's tensors by mamba_ssm's names, the unembedding among them."""
    return {
        name.replace("backbone.embeddings.", "backbone.embedding."): x.detach().clone()
        for name, x in model.state_dict().items()
    }


def mambapy_names(model: Any) -> dict[str, Tensor]:
    """The same by mambapy's names."""
    names = {
        "backbone.layers": "mamba.layers",
        "backbone.embedding": "embedding",
        "backbone.norm_f": "norm_f",
    }
    found = {}
    for name, x in native_names(model).items():
        start = next((start for start in names if name.startswith(start)), None)
        found[name if start is None else names[start] + name.removeprefix(start)] = x
    return found


def native_config(model: Any, **ssm_cfg: Any) -> dict[str, Any]:
    """config.json as mamba_ssm writes it."""
    config = model.config
    return {
        "d_model": config.hidden_size, "d_intermediate": 0, "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size, "ssm_cfg": ssm_cfg, "attn_layer_idx": [], "attn_cfg": {},
        "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": config.tie_word_embeddings,
    }  # fmt: skip


def write_native(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], file: str
) -> Path:
    """A native folder; `file` is model.safetensors or the name of a file of torch.save."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
    return folder

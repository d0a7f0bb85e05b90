"""Small Mamba-3 models of every kind, and the twin of a mixer in `reference` with their sizes."""

from pathlib import Path
from typing import Any

import reference
import torch
from native_folders import native_config, native_names, write_native
from torch import Tensor

from mamba_mixers.mamba3 import Mamba3Config, Mamba3ForCausalLM

VOCAB_SIZE = 64

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 12, "num_hidden_layers": 2, "state_size": 10,
    "head_dim": 3, "n_groups": 2,
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "siso": {},
    "siso, all turning, heavy tail": {"rope_fraction": 1.0, "a_activation": "heavy_tail"},
    "siso normed": {"is_outproj_norm": True, "n_groups": 4},
    "mimo": {"is_mimo": True, "mimo_rank": 3, "n_groups": 1},
    "mimo, all turning, heavy tail": {
        "is_mimo": True, "mimo_rank": 2, "rope_fraction": 1.0, "a_activation": "heavy_tail",
    },
    "mimo normed, with MLPs": {
        "is_mimo": True, "mimo_rank": 2, "is_outproj_norm": True, "mlp_size": 16,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""What is special about each."""


def make_mamba3(kind: str = "siso", **options: Any) -> Any:
    """A model of this kind with no two channels alike and no constant at 0 or 1, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Mamba3ForCausalLM(Mamba3Config(**(SIZES | KINDS[kind] | options)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def twin_of(mixer: Any, x: Tensor) -> dict[str, Tensor]:
    """The stages of the mixer for x (b, l, d_model) by the loop of `reference`."""
    return reference.mamba3_mixer(
        {name: value.detach() for name, value in mixer.state_dict().items()},
        x,
        groups=mixer.num_bc_heads,
        angles=mixer.num_rope_angles,
        a_activation=mixer.a_activation,
        A_floor=mixer.A_floor,
    )


def ssm_cfg_of(model: Mamba3ForCausalLM) -> dict:
    config = model.config
    return {
        "layer": "Mamba3", "d_state": config.state_size, "headdim": config.head_dim,
        "ngroups": config.n_groups, "is_mimo": config.is_mimo, "mimo_rank": config.mimo_rank,
        "rope_fraction": config.rope_fraction, "is_outproj_norm": config.is_outproj_norm,
    }  # fmt: skip


def write_official(model: Mamba3ForCausalLM, folder: Path, **changed) -> Path:
    config = native_config(model, **(ssm_cfg_of(model) | changed))
    config["d_intermediate"] = model.config.mlp_size
    return write_native(folder, config, native_names(model), "pytorch_model.bin")

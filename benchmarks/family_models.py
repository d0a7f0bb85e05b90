"""Tiny models with random weights of every family that the suite knows, for tests and the table.

Configurations are those that transformers 4.57 and 5 both understand. Chunks of 8 tokens, and
texts of more, take Mamba-2's scans through several chunks; two groups of heads tell a repetition
of heads from one of groups.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from mamba_mixers.families import time_scale_tensors
from mamba_mixers.mamba3 import Mamba3Config
from suite_plumbing.texts import EXAMPLE_TEXTS

IS_VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5
SSM, ATTENTION = ("linear_attention", "full_attention") if IS_VERSION_5 else ("mamba", "attention")

VOCAB_SIZE = 64
END_OF_TEXT = "<|endoftext|>"
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
HYBRID: dict[str, Any] = COMMON | {
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Jamba and Zamba run without CUDA kernels on version 4 only when told so; version 5 warns of it.
KERNELS: dict[str, Any] = {} if IS_VERSION_5 else {"use_mamba_kernels": False}
HEADS: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
}
ZAMBA_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layers_block_type": [SSM, "hybrid", SSM, "hybrid"],
}


def _mamba3(**options: Any) -> Any:
    return Mamba3Config(
        **COMMON, num_hidden_layers=2, state_size=8, head_dim=8, n_groups=2, **options
    )


def _falcon_h1(**options: Any) -> Any:
    return transformers.FalconH1Config(
        **HYBRID,
        **HEADS,
        num_hidden_layers=2,
        mamba_d_ssm=64,
        mamba_d_head=8,
        ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9],
        ssm_in_multiplier=1.3,
        ssm_out_multiplier=0.7,
        embedding_multiplier=1.4,
        lm_head_multiplier=0.6,
        **options,
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: transformers.MambaConfig(**COMMON, state_size=4, num_hidden_layers=2),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(
        **COMMON, state_size=4, num_hidden_layers=2
    ),
    "jamba": lambda: transformers.JambaConfig(
        **HYBRID, num_hidden_layers=3, num_experts=2, num_experts_per_tok=1,
        attn_layer_period=3, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=2,
        **KERNELS,
    ),
    "zamba": lambda: transformers.ZambaConfig(
        **HYBRID | {"num_key_value_heads": 4}, **ZAMBA_LAYERS, **KERNELS, mamba_d_state=4,
        mamba_dt_rank=2, n_mamba_heads=2,
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        **COMMON, num_heads=8, head_dim=8, n_groups=2, state_size=4, num_hidden_layers=2,
        chunk_size=8,
    ),
    "bamba": lambda: transformers.BambaConfig(
        **HYBRID, **HEADS, num_hidden_layers=3, attn_layer_indices=[1], mamba_d_head=8
    ),
    "granitemoehybrid": lambda: transformers.GraniteMoeHybridConfig(
        **HYBRID, **HEADS, num_hidden_layers=3, shared_intermediate_size=32, num_local_experts=2,
        num_experts_per_tok=1, layer_types=[SSM, ATTENTION, SSM], mamba_d_head=8,
        residual_multiplier=0.8, embedding_multiplier=1.4, logits_scaling=2.0,
    ),
    "zamba2": lambda: transformers.Zamba2Config(
        **HYBRID | {"num_key_value_heads": 4}, **ZAMBA_LAYERS, **KERNELS, n_mamba_heads=8,
        mamba_ngroups=2, mamba_d_state=4, chunk_size=8, num_mem_blocks=1, adapter_rank=4,
    ),
    "falcon_h1": _falcon_h1,
    "falcon_h1 normed": lambda: _falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False),
    "falcon_h1 normed first": lambda: _falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=True),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **HYBRID, layers_block_type=[SSM, "mlp", ATTENTION, SSM], head_dim=8, mamba_num_heads=8,
        mamba_head_dim=8, n_groups=2, ssm_state_size=4, chunk_size=8,
    ),
    "mamba3": _mamba3,
    "mamba3 of ranks": lambda: _mamba3(is_mimo=True, mimo_rank=2, a_activation="heavy_tail"),
}  # fmt: skip
"""Configuration of each model by its name: the family's, and what is special about it."""

ALL_MODELS = [name for name in CONFIGS if IS_VERSION_5 or name != "nemotron_h"]
"""Those that are there: Nemotron-H came with version 5 of transformers."""

MODELS = [name for name in ALL_MODELS if not name.startswith("mamba3")]
"""Those of transformers, with a convolution each and rates that are parameters."""

SSM_LAYERS = {
    "jamba": [0, 2],
    "zamba": [0, 1, 2, 3],
    "bamba": [0, 2],
    "granitemoehybrid": [0, 2],
    "zamba2": [0, 1, 2, 3],
    "nemotron_h": [0, 3],
}
"""Layers with an SSM where it is not all of two."""


def make_model(name: str) -> Any:
    """The model in float32, in eval mode, with no two channels alike and no constant at 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def family_of(name: str) -> str:
    """The family's name in transformers, of a model's name."""
    return name.split()[0]


def ssm_layers(name: str) -> list[int]:
    """The model's layers that have an SSM."""
    return SSM_LAYERS.get(name, [0, 1])


def mixers_of(model: nn.Module) -> list[Any]:
    """Its modules with time scales, in order."""
    return [module for module in model.modules() if time_scale_tensors(module)]


FAULTY = () if IS_VERSION_5 else ("zamba2",)
"""Models that this version of transformers computes wrongly in texts of several chunks."""

FAULTY_BEYOND = 8
"""Tokens of a chunk, and so of the longest text that they get right."""


@torch.no_grad()
def final_states(
    model: Any, layers: list[int], ids: torch.Tensor, mask: torch.Tensor
) -> dict[int, torch.Tensor]:
    """The states after the last token in the model's own cache, by layer."""
    has_own = IS_VERSION_5 or isinstance(model.config, Mamba3Config)
    given = {} if has_own else _cache_for(model, ids)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **given)
    if hasattr(getattr(output, "cache", None), "memories"):
        return {layer: output.cache.memories[layer].state for layer in layers}
    cache = getattr(output, "cache_params", None)
    cache = output.past_key_values if cache is None else cache
    if hasattr(cache, "ssm_states"):
        return {layer: cache.ssm_states[layer] for layer in layers}
    return {layer: cache.layers[layer].recurrent_states[0] for layer in layers}


def _cache_for(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Hybrids of version 4 fill a cache only when they are given one, and some misread its length
    while it is empty: they are told where the text begins."""
    module = sys.modules[type(model).__module__]
    classes = [value for key, value in vars(module).items() if "Hybrid" in key and "Cache" in key]
    if not classes:
        return {}
    options = {"devices": ["cpu"] * model.config.num_hidden_layers}
    options = options if "devices" in inspect.signature(classes[0].__init__).parameters else {}
    cache = classes[0](model.config, len(ids), model.dtype, **options)
    return {"past_key_values": cache, "cache_position": torch.arange(ids.shape[1])}


def make_tiny_tokenizer() -> Any:
    """Byte-level BPE over the characters of EXAMPLE_TEXTS; it drops any other character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer.train_from_iterator(EXAMPLE_TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
    )

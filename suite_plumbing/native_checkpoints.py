"""Checkpoints as mamba_ssm and mambapy leave them: recognised, read and checked, no pickle run.

Such a folder has a config.json without a `model_type`, with `d_model` and `n_layer` (mambapy:
`n_layers`), and weights in safetensors files or in one made by `torch.save`. Of the latter tensors
alone are unpickled (`weights_only`), and none is read before it is asked for. What is read here has
mamba_ssm's names, whichever of the two wrote it:

    backbone.embedding.weight   backbone.norm_f.weight   lm_head.weight
    backbone.layers.I.norm.weight   backbone.layers.I.mixer.NAME

`native_models` makes a model of it. Written after mamba_ssm 2.3 and mambapy 1.2.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from suite_plumbing.errors import reading
from suite_plumbing.messages import quoted, shortened

KINDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "Mamba1": (
        frozenset({
            "A_log", "D", "conv1d.weight", "dt_proj.bias", "dt_proj.weight", "in_proj.weight",
            "out_proj.weight", "x_proj.weight",
        }),
        frozenset({"conv1d.bias", "in_proj.bias", "out_proj.bias"}),
    ),
    "Mamba2": (
        frozenset({
            "A_log", "D", "conv1d.weight", "dt_bias", "in_proj.weight", "norm.weight",
            "out_proj.weight",
        }),
        frozenset({"conv1d.bias", "in_proj.bias", "out_proj.bias"}),
    ),
    "Mamba3": (
        frozenset({
            "B_bias", "B_norm.weight", "C_bias", "C_norm.weight", "D", "dt_bias",
            "in_proj.weight", "out_proj.weight",
        }),
        frozenset({"mimo_o", "mimo_x", "mimo_z", "norm.weight"}),
    ),
}  # fmt: skip
"""By the layer's name in `ssm_cfg`: the parameters that its mixer has, and those it may have."""

NEOX = "EleutherAI/gpt-neox-20b"
"""The tokenizer of the released checkpoints, which bring none."""

NEOX_ROWS = range(50_277, 50_289)
"""Rows of the embedding of a model of that tokenizer: its tokens, padded by up to 11."""

_MAMBAPY = {
    "embedding.": "backbone.embedding.",
    "mamba.": "backbone.",
    "norm_f.": "backbone.norm_f.",
}

_MLP = frozenset({"norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight"})


class NativeCheckpoint(NamedTuple):
    """A folder's configuration and tensors, found to be a model of one kind of Mamba."""

    folder: Path
    writer: str
    """"mamba_ssm" or "mambapy", by the names of the tensors"""
    kind: str
    """one of KINDS"""
    config: Mapping[str, Any]
    """config.json as it stands"""
    ssm_cfg: Mapping[str, Any]
    """what it says of the mixers"""
    tensors: Mapping[str, Tensor]
    """by mamba_ssm's names; lm_head.weight is left out where it is the embedding"""
    layers: int

    @property
    def mixer(self) -> dict[str, Tensor]:
        """The first mixer's tensors; those of the others have their shapes."""
        start = "backbone.layers.0.mixer."
        return {
            name.removeprefix(start): x
            for name, x in self.tensors.items()
            if name.startswith(start)
        }

    @property
    def embedding(self) -> Tensor:
        """(V, d_model)"""
        return self.tensors["backbone.embedding.weight"]

    @property
    def is_tied(self) -> bool:
        """Whether the unembedding is the embedding."""
        return "lm_head.weight" not in self.tensors


def is_native(folder: Path) -> bool:
    """Whether the folder's config.json is mamba_ssm's or mambapy's: `d_model`, no `model_type`."""
    return _native_config(folder) is not None


def _native_config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_one = isinstance(config, dict) and "model_type" not in config and "d_model" in config
    return config if is_one else None


def native_tokenizer(folder: Path) -> str | None:
    """NEOX where the folder is native and its vocabulary is that tokenizer's; else None.

    By `vocab_size` in config.json, padded as it says.
    """
    config = _native_config(folder)
    if config is None:
        return None
    size, multiple = config.get("vocab_size"), config.get("pad_vocab_size_multiple", 8)
    if not (isinstance(size, int) and isinstance(multiple, int)):
        return None
    return NEOX if size + -size % max(1, multiple) in NEOX_ROWS else None


def read_native(folder: Path) -> NativeCheckpoint:
    """The native checkpoint in a folder, its tensors not yet in memory.

    Raises ValueError, naming the folder and the reason: a configuration without its sizes, one of
    another architecture (LayerNorm, MLPs or attention beside Mamba-1 or Mamba-2), weights that are
    damaged, hold more than tensors, do not fit the configuration, or are of mixed kinds.
    """
    config = _native_config(folder)
    if config is None:
        raise ValueError(f"{_cannot(folder)}: its config.json has no d_model, or a model_type")
    layers, ssm_cfg = _checked_config(folder, config)
    writer, tensors = _named_as_mamba_ssm(_tensors_in(folder))
    kind = _kind_of(folder, config, ssm_cfg, tensors, layers)
    _check_vocabulary(folder, config, tensors)
    head, embedding = tensors.get("lm_head.weight"), tensors["backbone.embedding.weight"]
    if head is not None and _is_tied(folder, config, head, embedding):
        tensors = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    elif head is None and config.get("tie_embeddings") is False:
        raise ValueError(
            f"{_cannot(folder)}: config.json does not tie the embeddings, and the weights lack "
            "lm_head.weight"
        )
    return NativeCheckpoint(folder, writer, kind, config, ssm_cfg, tensors, layers)


def _cannot(folder: Path) -> str:
    return f"native checkpoint in folder {quoted(str(folder))} cannot be loaded"


def _checked_config(folder: Path, config: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Number of layers and `ssm_cfg`; ValueError for what no supported model has."""
    layers = config.get("n_layer", config.get("n_layers"))
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise ValueError(
            f"{_cannot(folder)}: config.json gives n_layer {quoted(layers)}; it must be the number "
            "of layers"
        )
    ssm_cfg = config.get("ssm_cfg") or {}
    if not isinstance(ssm_cfg, dict):
        raise ValueError(f"{_cannot(folder)}: ssm_cfg is {quoted(ssm_cfg)}, not an object")
    ssm_cfg = {**_mambapy_sizes(config), **ssm_cfg}
    kind = ssm_cfg.get("layer")
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"{_cannot(folder)}: its layers are {quoted(kind)}; known are {', '.join(KINDS)}"
        )
    refused = {
        "attention layers (attn_layer_idx)": config.get("attn_layer_idx"),
        "LayerNorm where RMS norms are read (rms_norm is false)": config.get("rms_norm") is False,
        "MLPs beside its mixers (d_intermediate)": kind != "Mamba3"
        and config.get("d_intermediate"),
        "a D for each channel (D_has_hdim)": ssm_cfg.get("D_has_hdim"),
        "no gated norm (rmsnorm is false)": ssm_cfg.get("rmsnorm") is False,
        "a norm before the gate": kind != "Mamba3" and ssm_cfg.get("norm_before_gate"),
        "norms of dt, B and C (inner_layernorms)": config.get("inner_layernorms"),
        "a scale of its logits (mup)": config.get("mup"),
    }
    for what, is_there in refused.items():
        if is_there:
            raise ValueError(f"{_cannot(folder)}: the model has {what}, which is not read")
    return layers, ssm_cfg


def _mambapy_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """mambapy's flat configuration has, under names of its own, what `ssm_cfg` says."""
    names = {"d_state": "d_state", "d_head": "headdim", "n_groups": "ngroups"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def _tensors_in(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    files = files or sorted([*folder.glob("*.pt"), *folder.glob("*.pth")])
    if not files:
        raise ValueError(f"{_cannot(folder)}: it holds no .safetensors, .bin, .pt or .pth file")
    found: dict[str, Tensor] = {}
    for path in files:
        size = path.stat().st_size
        what = (
            f"weights file {quoted(str(path))} ({size} bytes) is damaged or holds more than tensors"
        )
        with reading(what, "get it again, or save model.state_dict() alone"):
            held = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
        if not isinstance(held, dict) or not all(isinstance(x, Tensor) for x in held.values()):
            inside = list(held)[:4] if isinstance(held, dict) else type(held).__name__
            raise ValueError(
                f"weights file {quoted(str(path))} holds {quoted(inside)}, not tensors by name; "
                "save model.state_dict() alone"
            )
        found |= held
    return found


def _unpickled(path: Path) -> Any:
    """Tensors alone are unpickled: anything that would run code is an error of torch's."""
    # Files in torch's first format cannot be mapped into memory.
    is_mappable = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)


def _named_as_mamba_ssm(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    if not any(name.startswith("mamba.layers.") for name in tensors):
        return "mamba_ssm", tensors
    renamed = {}
    for name, x in tensors.items():
        start = next((start for start in _MAMBAPY if name.startswith(start)), "")
        renamed[_MAMBAPY.get(start, "") + name.removeprefix(start)] = x
    return "mambapy", renamed


def _kind_of(
    folder: Path,
    config: Mapping[str, Any],
    ssm_cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    layers: int,
) -> str:
    """One of KINDS, that of every layer; ValueError for tensors that no such model has."""
    by_layer: dict[int, dict[str, tuple[int, ...]]] = {}
    others: set[str] = set()
    for name, x in tensors.items():
        if found := re.fullmatch(r"backbone\.layers\.(\d+)\.(.+)", name):
            by_layer.setdefault(int(found[1]), {})[found[2]] = tuple(x.shape)
        else:
            others.add(name)
    _check_others(folder, config, others)
    if sorted(by_layer) != list(range(layers)):
        raise ValueError(
            f"{_cannot(folder)}: config.json gives {layers} layers, the weights hold "
            f"{len(by_layer)}"
        )
    kinds = {_kind_of_layer(folder, layer, set(names)) for layer, names in by_layer.items()}
    if len(kinds) > 1 or any(shapes != by_layer[0] for shapes in by_layer.values()):
        raise ValueError(
            f"{_cannot(folder)}: its layers are of mixed kinds or sizes "
            f"({', '.join(sorted(kinds))}); models of one kind are read"
        )
    kind = kinds.pop()
    named = ssm_cfg.get("layer", "Mamba1" if "ssm_cfg" in config else kind)
    if named != kind:
        raise ValueError(
            f"{_cannot(folder)}: config.json names {named} layers, the weights are {kind}'s"
        )
    return kind


def _check_others(folder: Path, config: Mapping[str, Any], names: set[str]) -> None:
    """What lies in no layer: embedding, final norm, and an unembedding where there is one."""
    wanted = {"backbone.embedding.weight", "backbone.norm_f.weight"}
    if wanted <= names <= wanted | {"lm_head.weight"}:
        return
    if any(name.endswith("norm_f.bias") for name in names):
        raise ValueError(
            f"{_cannot(folder)}: its norms have biases: LayerNorm, where RMS norms are read"
        )
    odd = sorted(names ^ wanted - {"lm_head.weight"})
    raise ValueError(
        f"{_cannot(folder)}: beside its layers a native checkpoint has {', '.join(sorted(wanted))} "
        f"and lm_head.weight; {quoted(odd[0])} is missing or too much"
    )


def _kind_of_layer(folder: Path, layer: int, names: set[str]) -> str:
    mixer = {name.removeprefix("mixer.") for name in names if name.startswith("mixer.")}
    around = {name for name in names if not name.startswith("mixer.")}
    marks = {"Mamba1": "x_proj.weight", "Mamba3": "B_bias", "Mamba2": "dt_bias"}
    kind = next((kind for kind, mark in marks.items() if mark in mixer), None)
    if kind is None:
        raise ValueError(
            f"{_cannot(folder)}: layer {layer} has no mixer of {', '.join(KINDS)}: "
            f"{shortened(', '.join(sorted(names)), 80)}"
        )
    needed, allowed = KINDS[kind]
    wrong = sorted(needed - mixer) or sorted(mixer - needed - allowed)
    outside = {"norm.weight"}, {"norm.weight"} | (_MLP if kind == "Mamba3" else set())
    wrong = wrong or sorted(around - outside[1]) or sorted(outside[0] - around)
    if wrong:
        raise ValueError(
            f"{_cannot(folder)}: layer {layer} is a {kind} in which {quoted(wrong[0])} is missing "
            "or too much (attention, MLPs beside Mamba-1 or Mamba-2, LayerNorm and norms of dt, B "
            "and C are not read)"
        )
    return kind


def _check_vocabulary(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    rows, width = tensors["backbone.embedding.weight"].shape
    size = config.get("vocab_size", rows)
    if not isinstance(size, int) or not 1 <= size <= rows or config["d_model"] != width:
        raise ValueError(
            f"{_cannot(folder)}: config.json gives vocab_size {quoted(size)} and d_model "
            f"{quoted(config['d_model'])}, the embedding is {rows} by {width}"
        )


def _is_tied(folder: Path, config: Mapping[str, Any], head: Tensor, embedding: Tensor) -> bool:
    same = head.shape == embedding.shape and torch.equal(head, embedding)
    if not same and config.get("tie_embeddings"):
        raise ValueError(
            f"{_cannot(folder)}: config.json ties the embeddings, and lm_head.weight is another "
            "matrix"
        )
    # mamba_ssm ties unless told otherwise; two matrices that happen to be equal are one as well.
    return same and config.get("tie_embeddings") is not False

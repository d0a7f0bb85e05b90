"""What a model's folder holds, checked from its files before any memory is taken for weights.

The loaders of other libraries raise whatever their parsers raise, and make room for a model before
they look whether its weights are there. Here each file is named that cannot be read, and the
configuration is held against the shapes in the headers of the weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from suite_plumbing.errors import reading
from suite_plumbing.messages import quoted, shortened

Shapes = Mapping[str, tuple[int, ...]]

_ADVICE = "pass a folder made by save_pretrained, or a name on the model hub"

INDEX = "model.safetensors.index.json"

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
)  # fmt: skip
"""A folder without one of these has no tokenizer."""

# Masks and the like that a model makes from its configuration, without weights in a file.
_BUFFER_ELEMENTS = 1 << 26


# A size below this needs no look at the weights: memory for it is soon had.
_LEAST_BOUND = 1 << 20

# Weights that lack a little are loaded, for the loader to say which parameters are absent.
_MOST_ABSENT = 1.25


def check_model_folder(folder: Path) -> Shapes:
    """Shapes of the tensors in a folder's safetensors files; ValueError, naming the file, if the
    folder is no model's: missing, without config.json or weights, or holding a damaged file."""
    if not folder.exists():
        raise ValueError(f"model folder {quoted(str(folder))} does not exist; {_ADVICE}")
    if not folder.is_dir():
        raise ValueError(f"model path {quoted(str(folder))} is a file, not a folder; {_ADVICE}")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"folder {quoted(str(folder))} holds no config.json, so no model; {_ADVICE}"
        )
    config = read_object(folder / "config.json")
    if (folder / "generation_config.json").exists():
        read_object(folder / "generation_config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        shapes |= _shapes_in(path)
    _check_given_sizes(folder, config, shapes)
    return shapes


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; ValueError names the file that holds none."""
    with reading(f"{_unusable(path)} is not JSON"):
        found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(
            f'{_unusable(path)} holds a {type(found).__name__}, not an object like {{"key": value}}'
        )
    return found


def _unusable(path: Path) -> str:
    kind = "tokenizer" if "token" in path.name else "model"
    return f"{kind} in folder {quoted(str(path.parent))} cannot be loaded: {path.name}"


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")]
        listed = shortened(", ".join(pickled), 80)
        found = f"only pickled weights ({listed})" if pickled else "no weights"
        raise ValueError(
            f"folder {quoted(str(folder))} holds {found}; weights are read from safetensors "
            "files alone, since a pickle can run code: store them by save_pretrained(folder)"
        )
    if (folder / "model.safetensors").exists() or not (folder / INDEX).exists():
        return files
    return _indexed_files(folder / INDEX)


def _indexed_files(index: Path) -> list[Path]:
    """The files that an index of split weights names; ValueError unless all of them are there."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{_unusable(index)} has no weight_map, by tensor the file it is in")
    names = list(dict.fromkeys(places.values()))
    absent = [name for name in names if not _is_file_beside(index, name)]
    if absent:
        raise ValueError(
            f"{_unusable(index)} names files that are not beside it: {quoted(absent[0])}"
            f"{' and others' if len(absent) > 1 else ''}; copy or download the folder again"
        )
    return [index.parent / name for name in names]


def _is_file_beside(index: Path, name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name and (index.parent / name).is_file()


def _shapes_in(path: Path) -> Shapes:
    size = path.stat().st_size if path.exists() else 0
    what = f"weights file {quoted(str(path))} ({size} bytes) is truncated or not safetensors"
    with reading(what, "copy or download it again"), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def config_of(folder: Path) -> PretrainedConfig:
    """The configuration in a folder; ValueError, naming config.json, for one that is no model's."""
    with reading(_unusable(folder / "config.json")):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


def _check_given_sizes(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Raise ValueError for layers or sizes that no weights of these shapes can have.

    Before the library reads the configuration: it makes lists of as many entries.
    """
    held = sum(math.prod(shape) for shape in shapes.values())
    for key, value in config.items():
        of_layers = re.search(r"(num|n)_.*layers?$", key)
        if isinstance(value, int) and (of_layers or re.search(r"size|dim|heads|rank|groups", key)):
            most = len(shapes) if of_layers else _LEAST_BOUND + 8 * held
            if value > most:
                raise ValueError(
                    f"{_unusable(folder / 'config.json')} gives {quoted(key)} {quoted(value)}, and "
                    f"the weights hold {len(shapes)} tensors of {held} numbers: they do not belong "
                    "together"
                )


def check_sizes(folder: Path, config: PretrainedConfig, shapes: Shapes) -> None:
    """Raise ValueError unless the weights suffice for the model that config.json describes.

    The model is laid out without memory (on the meta device) and its parameters counted; what a
    quantised file holds is packed, up to two numbers a byte. Cost: some milliseconds a layer.
    """
    place = _unusable(folder / "config.json")
    with reading(f"{place} describes a model that cannot be built"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(math.prod(shape) for shape in shapes.values())
    if getattr(config, "quantization_config", None) is not None:
        held *= 8
    if wanted > _MOST_ABSENT * held:
        raise ValueError(
            f"{place} describes a {quoted(config.model_type)} of {wanted} parameters, and the "
            f"weights hold {held}: they do not belong together; get the model's own config.json"
        )
    made = sum(buffer.numel() for buffer in model.buffers())
    if made > held + _BUFFER_ELEMENTS:
        raise ValueError(
            f"{place} describes a {quoted(config.model_type)} with tables of {made} numbers beside "
            f"its {wanted} parameters; get the model's own config.json"
        )


def check_tokenizer_folder(folder: Path) -> None:
    """Raise ValueError for a folder without a tokenizer, naming a file of it that is damaged."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"no tokenizer in folder {quoted(str(folder))}: it holds none of "
            f"{', '.join(TOKENIZER_FILES)}; name one by --tokenizer, in Python tokenizer="
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            read_object(folder / name)

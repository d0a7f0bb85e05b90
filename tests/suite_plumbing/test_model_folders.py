"""Damaged model folders: one line that names the file, before memory is taken for weights."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaForCausalLM

from suite_plumbing.errors import reading
from suite_plumbing.model_folders import check_model_folder, check_sizes, config_of
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.provenance import DEMO_MODEL_PATH


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    return text


DEEP = "[" * 100_000


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe{}", b"[]", b"null", DEEP.encode(), b"5"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_of_the_model_that_is_no_object_is_named(
    tiny_model_dir: Path, name: str, damage: bytes
) -> None:
    (tiny_model_dir / name).write_bytes(damage)
    with pytest.raises(ValueError, match=rf"cannot be loaded: {name} (is not JSON|holds a)") as e:
        load_model(tiny_model_dir)
    one_line(e.value)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", DEEP.encode(), b'{"version": "9"}'])
def test_a_damaged_tokenizer_is_named(tiny_model_dir: Path, damage: bytes) -> None:
    (tiny_model_dir / "tokenizer.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"tokenizer in folder .* cannot be loaded") as caught:
        load_tokenizer(tiny_model_dir)
    one_line(caught.value)


@pytest.mark.parametrize("key", ["model", "added_tokens", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize("value", [5, "x", {"type": "Unheard"}, [1]])
def test_a_tokenizer_of_another_version_is_refused(
    tiny_model_dir: Path, key: str, value: object
) -> None:
    """The parser's own exceptions are of the bare class, and some of none at all (a panic)."""
    path = tiny_model_dir / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match="tokenizer in folder .* cannot be loaded") as caught:
        load_tokenizer(tiny_model_dir)
    one_line(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "many"},
        {"hidden_size": -1},
        {"hidden_size": 0},
        {"hidden_size": 10**30},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": None},
        {"num_hidden_layers": -2},
        {"state_size": 2.5},
        {"state_size": 10**9},
        {"vocab_size": 10**9},
        {"vocab_size": []},
        {"hidden_act": "unheard"},
        {"hidden_act": None},
        {"conv_kernel": 0},
        {"time_step_rank": -3},
        {"layer_norm_epsilon": "small"},
        {"model_type": "unheard"},
        {"model_type": 5},
        {"model_type": "t5"},
        {"dtype": "float99"},
        {"quantization_config": 5},
    ],
)
def test_a_configuration_that_is_none_is_refused_in_one_line(
    tiny_model_dir: Path, changes: dict[str, Any]
) -> None:
    change_config(tiny_model_dir, **changes)
    with pytest.raises(ValueError, match=r"cannot be loaded|lack \d+ of the model's") as caught:
        load_model(tiny_model_dir)
    assert str(tiny_model_dir)[-20:] in one_line(caught.value)


def test_another_family_than_the_weights_takes_no_memory(tmp_path: Path) -> None:
    """The defaults of a llama are 6.7e9 parameters: 27 GB in float32."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").symlink_to(DEMO_MODEL_PATH / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = r"config.json describes a 'llama' of \d{10} parameters, and the weights hold 1778176"
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)
    # kB; an import or two, and never the weights.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_sizes_are_checked_without_loading(tiny_model_dir: Path) -> None:
    shapes = check_model_folder(tiny_model_dir)
    assert shapes["backbone.layers.2.mixer.D"] == (64,)
    check_sizes(tiny_model_dir, config_of(tiny_model_dir), shapes)
    change_config(tiny_model_dir, hidden_size=96, intermediate_size=192)
    with pytest.raises(ValueError, match="they do not belong together"):
        check_sizes(tiny_model_dir, config_of(tiny_model_dir), shapes)
    change_config(tiny_model_dir, num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="gives 'num_hidden_layers' 1000000000, and the weights"):
        check_model_folder(tiny_model_dir)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {}}, "index.json has no weight_map"),
        ({}, "index.json has no weight_map"),
        ({"weight_map": 5}, "index.json has no weight_map"),
        ({"weight_map": {"a": 5}}, "names files that are not beside it: 5"),
        ({"weight_map": {"a": "gone.safetensors"}}, "not beside it: 'gone.safetensors'"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "not beside it"),
        ([], "index.json holds a list"),
    ],
)
def test_a_damaged_index_of_split_weights_is_named(
    tiny_model_dir: Path, tiny_model: MambaForCausalLM, index: object, words: str
) -> None:
    (tiny_model_dir / "model.safetensors").unlink()
    tiny_model.save_pretrained(tiny_model_dir, max_shard_size="40KB")
    (tiny_model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=words) as caught:
        load_model(tiny_model_dir)
    one_line(caught.value)


def test_a_tensor_of_another_dtype_or_shape_is_refused(tiny_model_dir: Path) -> None:
    path = tiny_model_dir / "model.safetensors"
    tensors = load_file(path)
    name = "backbone.layers.1.mixer.in_proj.weight"
    save_file({**tensors, name: tensors[name].T.contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded|lack 1 of") as caught:
        load_model(tiny_model_dir)
    one_line(caught.value)


def test_interrupts_and_a_full_memory_go_through() -> None:
    for error in (KeyboardInterrupt(), SystemExit(3), MemoryError(), torch.OutOfMemoryError()):
        with pytest.raises(type(error)), reading("model"):
            raise error


def test_a_panic_of_a_parser_is_an_error_like_any_other() -> None:
    class PanicException(BaseException):
        """As the one that PyO3 raises: not an Exception."""

    with pytest.raises(ValueError, match="^model: PanicException: index out of bounds; copy it$"):  # noqa: SIM117
        with reading("model", "copy it"):
            raise PanicException("index out of bounds")

"""Models of native checkpoints are those that the weights came from, by every route."""

import json
from typing import Any

import pytest
import torch
import transformers
from native_folders import (
    mambapy_names,
    native_config,
    native_names,
    odd_mamba1,
    odd_mamba2,
    write_native,
)

from ssm_component_extractor import capture
from suite_plumbing import native_models
from suite_plumbing.models import load_model, load_tokenizer, require_tokenizer
from suite_plumbing.native_models import other_name
from suite_plumbing.provenance import provenance

GROUPED_NORM = int(transformers.__version__.split(".")[0]) >= 5

CASES = {
    "mamba1 tied": (lambda: odd_mamba1(), {}, native_names, "pytorch_model.bin"),
    "mamba1 untied": (
        lambda: odd_mamba1(tie_word_embeddings=False),
        {"layer": "Mamba1", "d_state": 5},
        native_names,
        "model.safetensors",
    ),
    "mamba1 with biases": (
        lambda: odd_mamba1(use_bias=True, use_conv_bias=False), {}, native_names, "weights.pt"),
    "mamba1 of mambapy": (
        lambda: odd_mamba1(tie_word_embeddings=False), {}, mambapy_names, "model.pt"),
    "mamba2 of two groups": (
        lambda: odd_mamba2(),
        {"layer": "Mamba2", "d_state": 5, "headdim": 3, "ngroups": 2, "chunk_size": 4,
         "dt_limit": [0.01, 3.0]},
        native_names, "pytorch_model.bin"),
    "mamba2 of one group": (
        lambda: odd_mamba2(n_groups=1, tie_word_embeddings=False),
        {"layer": "Mamba2", "ngroups": 1, "chunk_size": 4, "dt_limit": [0.01, 3.0]},
        native_names, "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_components_are_those_of_the_transformers_folder(case, tmp_path):
    make, ssm_cfg, names, file = CASES[case]
    if "two groups" in case and not GROUPED_NORM:
        pytest.skip("this version of transformers norms both groups together")
    model = make()
    config = native_config(model, **ssm_cfg)
    config["vocab_size"] -= 3  # the other rows are padding
    if names is mambapy_names:
        config = {"n_layers": config["n_layer"], "d_model": config["d_model"], "d_state": 5}
    loaded: Any = load_model(write_native(tmp_path / "native", config, names(model), file))
    model.save_pretrained(tmp_path / "transformers")
    beside = load_model(tmp_path / "transformers")
    ids = torch.tensor([[5, 9, 2, 17, 9, 2, 11]])
    mine, other = (capture(one, ids, None, [0, 1]).components for one in (loaded, beside))
    # The same weights through the same code: what differs is the way they came.
    for layer, parts in mine.items():
        for name in ("A", "B", "C", "D", "delta", "u", "gate", "y", "mixer_output"):
            assert torch.allclose(
                getattr(parts, name), getattr(other[layer], name), atol=1e-6, rtol=0
            ), name
    assert torch.equal(loaded(ids).logits, beside(ids).logits)
    assert loaded.native_checkpoint["format"] == (
        "mambapy" if names is mambapy_names else "mamba_ssm"
    )


@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_a_model_of_a_name_is_made_in_the_dtype_asked_for(layer, tmp_path):
    model = odd_mamba1() if layer == "Mamba1" else odd_mamba2(n_groups=1)
    config = native_config(model, layer=layer, d_state=5)
    folder = write_native(tmp_path, config, native_names(model), "model.safetensors")
    loaded: Any = load_model(folder, dtype="float64")
    assert loaded.dtype is torch.float64
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


def test_groups_that_do_not_fit_the_weights_are_refused(tmp_path):
    model = odd_mamba2(n_groups=1)
    for stated, message in (
        ({"d_state": 4}, "d_state 4 and ngroups 1 of ssm_cfg do not fit"),
        ({}, "d_state 128 and ngroups 1"),
        ({"d_state": 5, "headdim": 64}, "headdim 64, the weights have 3"),
    ):
        config = native_config(model, layer="Mamba2", **stated)
        folder = write_native(tmp_path, config, native_names(model), "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_model(folder)


def test_groups_are_refused_where_transformers_norms_them_otherwise(tmp_path):
    model = odd_mamba2()
    names = mambapy_names if GROUPED_NORM else native_names
    config = native_config(model, d_state=5, ngroups=2, layer="Mamba2")
    folder = write_native(tmp_path, config, names(model), "model.safetensors")
    with pytest.raises(ValueError, match=r"transformers \S+ norms .* channels together"):
        load_model(folder)


def test_the_provenance_says_what_was_converted(tmp_path):
    model = odd_mamba1()
    folder = write_native(tmp_path, native_config(model), native_names(model), "a.safetensors")
    found = provenance(load_model(folder))["model"]
    assert found["id"] == str(folder)
    assert found["native_checkpoint"] == {
        "format": "mamba_ssm",
        "layers": "Mamba1",
        "converted": "in memory, to mamba of transformers",
        "tokenizer": None,
    }


def test_the_tokenizer_beside_the_weights_is_taken_and_none_is_made_up(tmp_path, tiny_tokenizer):
    model = odd_mamba1(vocab_size=64)
    folder = write_native(tmp_path, native_config(model), native_names(model), "a.safetensors")
    loaded = load_model(folder)
    with pytest.raises(ValueError, match="no tokenizer in folder"):
        require_tokenizer(loaded)
    tiny_tokenizer.save_pretrained(folder)
    assert require_tokenizer(loaded)("a b").input_ids == tiny_tokenizer("a b").input_ids


def test_a_released_vocabulary_asks_for_its_tokenizer_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 8, "vocab_size": 50_277}))
    with pytest.raises(ValueError, match="EleutherAI/gpt-neox-20b"):
        load_tokenizer(tmp_path)  # tests have no hub


def test_a_name_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    model = odd_mamba1()
    folder = write_native(tmp_path, native_config(model), native_names(model), "a.safetensors")
    monkeypatch.setattr(
        native_models, "hf_hub_download", lambda name, file: str(folder / "config.json")
    )
    monkeypatch.setattr(native_models, "snapshot_download", lambda name, **_: str(folder))
    loaded = load_model("some/mamba")
    assert loaded.config.name_or_path == "some/mamba"
    assert torch.equal(loaded(torch.tensor([[1, 2]])).logits, model(torch.tensor([[1, 2]])).logits)


def test_a_plain_name_that_is_not_there_names_the_converted_one():
    assert "state-spaces/mamba-130m-hf is the same" in other_name("state-spaces/mamba-130m")
    assert "AntonV/mamba2-130m-hf is the same" in other_name("state-spaces/mamba2-130m")
    assert other_name("state-spaces/mamba-130m-hf") == other_name("my/model") == ""
    with pytest.raises(ValueError, match="model hub.*state-spaces/mamba-130m-hf is the same"):
        load_model("state-spaces/mamba-130m")

"""Native checkpoints: which are recognised, which are refused and why, and no pickle is run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from native_folders import native_config, native_names, odd_mamba1, write_native

from suite_plumbing.models import load_model
from suite_plumbing.native_checkpoints import NEOX, is_native, native_tokenizer, read_native

FILE = "pytorch_model.bin"


@pytest.fixture
def made(tmp_path):
    """A function that writes the folder, its configuration and tensors changed on the way."""

    def make(change: Callable[[dict[str, Any], dict[str, Any]], object] = lambda c, t: None):
        model = odd_mamba1()
        config, tensors = native_config(model), native_names(model)
        change(config, tensors)
        return write_native(tmp_path / "native", config, tensors, FILE)

    return make


def test_a_folder_is_native_by_d_model_without_model_type(made, tiny_model_dir, tmp_path):
    assert is_native(made())
    assert not is_native(tiny_model_dir)
    assert not is_native(tmp_path / "gone")
    assert not is_native(made(lambda config, _: config.update(model_type="mamba")))


def test_what_is_read_has_the_names_and_the_kind_of_its_weights(made):
    checkpoint = read_native(made())
    assert (checkpoint.writer, checkpoint.kind, checkpoint.layers) == ("mamba_ssm", "Mamba1", 3)
    assert checkpoint.is_tied
    assert checkpoint.mixer["A_log"].shape == (21, 5)
    assert checkpoint.embedding.shape == (29, 7)


REFUSED: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "no n_layer": (lambda c, t: c.pop("n_layer"), "gives n_layer None; it must be the number"),
    "layers that are not there": (lambda c, t: c.update(n_layer=9), "gives 9 layers, .* hold 3"),
    "LayerNorm by its name": (lambda c, t: c.update(rms_norm=False), "LayerNorm"),
    "LayerNorm by its bias": (
        lambda c, t: t.update({"backbone.norm_f.bias": torch.zeros(7)}), "LayerNorm"),
    "MLPs": (lambda c, t: c.update(d_intermediate=8), "MLPs beside its mixers"),
    "an MLP in the weights": (
        lambda c, t: t.update({"backbone.layers.1.mlp.fc1.weight": torch.zeros(4, 7)}), "MLPs"),
    "attention": (lambda c, t: c.update(attn_layer_idx=[1]), "attention layers"),
    "D by channel": (lambda c, t: c["ssm_cfg"].update(D_has_hdim=True), "D_has_hdim"),
    "an unknown layer": (lambda c, t: c["ssm_cfg"].update(layer="S4"), "layers are 'S4'; known"),
    "another kind": (lambda c, t: c["ssm_cfg"].update(layer="Mamba2"), "names Mamba2 .* Mamba1's"),
    "a parameter missing": (lambda c, t: t.pop("backbone.layers.2.mixer.D"), "layer 2 .* 'D' is"),
    "no mixer": (
        lambda c, t: [t.pop(k) for k in list(t) if k.startswith("backbone.layers.1.mixer.")],
        "layer 1 has no mixer of Mamba1"),
    "mixed sizes": (
        lambda c, t: t.update({"backbone.layers.1.mixer.D": torch.ones(20)}), "mixed kinds or"),
    "no embedding": (lambda c, t: t.pop("backbone.embedding.weight"), "is missing or too much"),
    "rows fewer than tokens": (lambda c, t: c.update(vocab_size=30), "vocab_size 30 .* 29 by 7"),
    "another head though tied": (
        lambda c, t: t["lm_head.weight"].mul_(2), "ties the embeddings, and lm_head.weight"),
    "no head though untied": (
        lambda c, t: (t.pop("lm_head.weight"), c.update(tie_embeddings=False)), "lack lm_head"),
    "another d_state": (lambda c, t: c["ssm_cfg"].update(d_state=16), "d_state 16, .* have 5"),
    "a trainer's state": (
        lambda c, t: (t.update(model=dict(t)), [t.pop(k) for k in list(t) if k != "model"]),
        r"holds \['model'\], not tensors by name; save model.state_dict\(\) alone"),
    "NaN": (lambda c, t: t["backbone.layers.0.mixer.D"].fill_(float("nan")), "hold NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_supported_model_has_is_refused_by_its_name(case, made):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refusal:
        load_model(made(change))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_truncated_file_is_named(made):
    path = made() / FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"pytorch_model.bin' \(\d+ bytes\) is damaged"):
        load_model(path.parent)


def test_no_code_in_a_pickle_is_run(made, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it_was_run"),)

    folder = made()
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"backbone.norm_f.weight": Trap()}, folder / FILE, **options)
        with pytest.raises(ValueError, match="holds more than tensors"):
            load_model(folder)
    assert not (tmp_path / "it_was_run").exists()


def test_a_folder_without_weights_says_which_files_would_do(made):
    folder = made()
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=r"holds no .safetensors, .bin, .pt or .pth file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("size", "found"), [(50_277, NEOX), (50_280, NEOX), (50_254, None), (32_000, None)]
)
def test_the_released_vocabulary_has_its_tokenizer(made, size, found):
    assert native_tokenizer(made(lambda config, _: config.update(vocab_size=size))) == found

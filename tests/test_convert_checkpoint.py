"""A converted folder is the model; what is no checkpoint or would be written over is refused."""

import pytest
import torch
from native_folders import native_config, native_names, odd_mamba1, write_native
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert_checkpoint import convert_checkpoint, main

IDS = torch.tensor([[5, 9, 2, 17, 9, 2]])


@pytest.fixture
def native(tmp_path, tiny_tokenizer):
    model = odd_mamba1(vocab_size=64)
    folder = write_native(
        tmp_path / "native", native_config(model), native_names(model), "pytorch_model.bin"
    )
    tiny_tokenizer.save_pretrained(folder)
    return model, folder


def test_transformers_reads_what_is_written(native, tmp_path, capsys):
    model, folder = native
    out = tmp_path / "hf"
    assert main([str(folder), str(out)]) == 0
    assert capsys.readouterr().out == f"Wrote {out}.\n"
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(IDS).logits, model(IDS).logits)
    assert AutoTokenizer.from_pretrained(out)("a b").input_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "native"]


def test_weights_are_written_in_the_dtype_asked_for(native, tmp_path):
    out = convert_checkpoint(native[1], tmp_path / "half", dtype="float16")
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype is torch.float16


def test_what_is_no_checkpoint_or_is_there_is_refused(native, tmp_path, capsys, tiny_model_dir):
    assert main([str(tiny_model_dir), str(tmp_path / "hf")]) == 2
    assert "no checkpoint of mamba_ssm's or mambapy's" in capsys.readouterr().err
    assert main([str(native[1]), str(tiny_model_dir)]) == 2
    assert "is there already; name a new folder" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()

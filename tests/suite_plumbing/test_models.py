"""Models load whole or not at all; what is refused is named with what to do."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, MambaForCausalLM, PreTrainedTokenizerFast

from suite_plumbing import models
from suite_plumbing.models import load_model, load_tokenizer, require_tokenizer, resolve_model
from suite_plumbing.texts import EXAMPLE_TEXTS

IDS = torch.tensor([[5, 9, 2, 40, 17]])


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_load_model_gives_the_saved_model_in_eval_mode(
    tiny_model_dir: Path, tiny_model: MambaForCausalLM
) -> None:
    loaded = load_model(tiny_model_dir, device="cpu")
    assert isinstance(loaded, MambaForCausalLM)
    assert not loaded.training
    assert loaded.dtype is torch.float32
    assert torch.equal(loaded(IDS).logits, tiny_model(IDS).logits)
    assert load_model(str(tiny_model_dir), dtype="bfloat16").dtype is torch.bfloat16


def test_load_model_reads_half_precision_weights_as_float32(tiny_model_dir: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float16").save_pretrained(
        tiny_model_dir
    )
    assert load_model(tiny_model_dir).dtype is torch.float32


def test_load_model_names_a_folder_that_is_missing(tmp_path: Path) -> None:
    for name in (tmp_path / "gone", str(tmp_path / "gone"), "./gone", "../gone", ""):
        with pytest.raises(ValueError, match=r"does not exist|holds no config.json"):
            load_model(name)


def test_load_model_refuses_what_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(ValueError, match=r"notes.txt' is a file, not a folder; pass a folder"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"holds no config.json, so no model"):
        load_model(tmp_path)


def test_load_model_refuses_a_folder_without_weights(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights; weights are read from safetensors"):
        load_model(tiny_model_dir)


def test_load_model_never_opens_a_pickle(tiny_model_dir: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pickle_was_run"),)

    (tiny_model_dir / "model.safetensors").unlink()
    torch.save({"weights": Trap()}, tiny_model_dir / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"only pickled weights \(pytorch_model.bin\).*can run cod"
    ):
        load_model(tiny_model_dir)
    assert not (tmp_path / "pickle_was_run").exists()


def test_load_model_runs_no_code_beside_the_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'code_was_run')!r})\n"
    (tiny_model_dir / "modeling_own.py").write_text(code)
    config = json.loads((tiny_model_dir / "config.json").read_text())
    config["model_type"] = "own_model"
    config["auto_map"] = {
        "AutoConfig": "modeling_own.Config",
        "AutoModelForCausalLM": "modeling_own.Model",
    }
    (tiny_model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(tiny_model_dir)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_load_model_refuses_truncated_weights(tiny_model_dir: Path, kept: int) -> None:
    path = tiny_model_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.safetensors' \(\d+ bytes\) is truncated or not"):
        load_model(tiny_model_dir)


def test_load_model_refuses_a_missing_shard(
    tiny_model_dir: Path, tiny_model: MambaForCausalLM
) -> None:
    (tiny_model_dir / "model.safetensors").unlink()
    tiny_model.save_pretrained(tiny_model_dir, max_shard_size="40KB")
    shards = sorted(tiny_model_dir.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_model(tiny_model_dir)(IDS).logits, tiny_model(IDS).logits)
    shards[-1].unlink()
    with pytest.raises(ValueError, match=f"cannot be loaded.*{shards[-1].name}"):
        load_model(tiny_model_dir)


def test_load_model_refuses_weights_that_lack_a_parameter(tiny_model_dir: Path) -> None:
    change_weights(tiny_model_dir, lambda w: w.pop("backbone.layers.2.mixer.D"))
    with pytest.raises(ValueError, match="lack 1 of the model's .*layers.2.mixer.D.*be random"):
        load_model(tiny_model_dir)


def test_load_model_refuses_weights_of_another_shape(tiny_model_dir: Path) -> None:
    change_weights(
        tiny_model_dir, lambda w: w.update({"backbone.layers.2.mixer.D": torch.ones(63)})
    )
    with pytest.raises(ValueError, match=r"backbone\.layers\.2\.mixer\.D|cannot be loaded"):
        load_model(tiny_model_dir)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_load_model_names_the_first_tensors_that_are_not_finite(
    tiny_model_dir: Path, bad: float
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for layer in range(4):
            weights[f"backbone.layers.{layer}.mixer.A_log"][3, 1] = bad

    change_weights(tiny_model_dir, spoil)
    with pytest.raises(
        ValueError, match=r"4 weight tensors .*NaN or infinity: backbone\.layers\.0\.mixer\.A_log, "
    ):
        load_model(tiny_model_dir)


def test_load_model_reports_a_broken_config(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "config.json").write_text("{")
    with pytest.raises(ValueError, match="model in folder .* cannot be loaded"):
        load_model(tiny_model_dir)


def test_a_hub_name_without_a_network_is_a_clear_error(tmp_path: Path) -> None:
    # A process of its own: the library reads the offline switch once, when it is imported.
    code = (
        "from suite_plumbing.models import load_model, load_tokenizer\n"
        "for load in (load_model, load_tokenizer):\n"
        "    try:\n"
        "        load('some-lab/some-mamba')\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(models.__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for kind, line in zip(("model", "tokenizer"), lines, strict=True):
        assert line.startswith(f"{kind} 'some-lab/some-mamba' is no folder here and could not be")
        assert "Check the name and the connection" in line


def test_load_tokenizer_pads_on_the_left(
    tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = load_tokenizer(tiny_model_dir)
    assert loaded.padding_side == "left"
    assert loaded(EXAMPLE_TEXTS[0])["input_ids"] == tiny_tokenizer(EXAMPLE_TEXTS[0])["input_ids"]


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer in folder .*none of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tiny_model_dir / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer in folder .* cannot be loaded"):
        load_tokenizer(tiny_model_dir)


# Resolving what a user passed


def test_resolve_model_takes_a_model_as_it_is(tiny_model: MambaForCausalLM) -> None:
    model, tokenizer, device = resolve_model(tiny_model)
    assert model is tiny_model
    assert tokenizer is None
    assert device == torch.device("cpu")


def test_resolve_model_loads_a_folder(tiny_model_dir: Path) -> None:
    model, tokenizer, _ = resolve_model(tiny_model_dir, tiny_model_dir, "cpu")
    assert isinstance(model, MambaForCausalLM)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert require_tokenizer(model, tokenizer) is tokenizer


def test_resolve_model_ends_training_mode_and_says_so(
    tiny_model: MambaForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model.train()
    with caplog.at_level(logging.INFO):
        model, _, _ = resolve_model(tiny_model)
    assert not model.training
    assert "the model was in training mode" in caplog.text


def test_resolve_model_refuses_weights_that_are_no_numbers(tiny_model: Any) -> None:
    with torch.no_grad():
        tiny_model.backbone.layers[2].mixer.D[0] = float("nan")
    with pytest.raises(ValueError, match=r"1 weight tensors .* NaN or .*layers\.2\.mixer\.D"):
        resolve_model(tiny_model)
    with pytest.raises(ValueError, match="are on the meta device, without values"):
        resolve_model(tiny_model.to("meta"))


def test_resolve_model_refuses_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = make_tiny_model()
    with pytest.raises(ValueError, match="made in torch.inference_mode, which allows no gradients"):
        resolve_model(model)


def test_resolve_model_refuses_what_is_no_tokenizer(tiny_model: MambaForCausalLM) -> None:
    with pytest.raises(ValueError, match="tokenizer is of type int; pass a transformers tokenizer"):
        resolve_model(tiny_model, 5)  # pyright: ignore[reportArgumentType]


def test_resolve_model_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="model is of type Linear; pass a transformers model"):
        resolve_model(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


def test_require_tokenizer_finds_the_one_beside_the_weights(tiny_model_dir: Path) -> None:
    tokenizer = require_tokenizer(load_model(tiny_model_dir))
    assert (
        tokenizer("the tide")["input_ids"] == load_tokenizer(tiny_model_dir)("the tide").input_ids
    )


def test_require_tokenizer_says_how_to_pass_one(
    tiny_model: MambaForCausalLM, tiny_model_dir: Path
) -> None:
    how = r"pass tokenizer=AutoTokenizer.from_pretrained\(...\)"
    with pytest.raises(ValueError, match=f"not loaded from a folder.*{how}"):
        require_tokenizer(tiny_model)
    model = load_model(tiny_model_dir)
    shutil.rmtree(tiny_model_dir)
    with pytest.raises(ValueError, match=f"no tokenizer beside its weights.*{how}"):
        require_tokenizer(model)


def test_what_the_hub_holds_is_held_against_its_weights(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "snapshot_download", lambda name, **_: str(tiny_model_dir))
    path = tiny_model_dir / "config.json"
    large = json.loads(path.read_text()) | {"hidden_size": 4096, "intermediate_size": 8192}
    path.write_text(json.dumps(large))
    with pytest.raises(ValueError, match="weights hold .* do not belong together"):
        load_model("some-lab/some-mamba")


def test_a_model_that_answers_in_tuples_is_loaded(tiny_model_dir: Path) -> None:
    path = tiny_model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_dict": False}))
    assert load_model(tiny_model_dir).config.return_dict is False

"""What is captured is what the model computed; dynamics follow their closed forms."""

import json
import weakref
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, MambaForCausalLM

import ssm_component_extractor
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from selective_scan.attention import implicit_attention
from ssm_component_extractor import (
    RecursiveDynamics,
    SSMComponentExtractor,
    capture,
    capture_each,
    capture_for,
    capture_texts,
    captures_or_raise,
    main,
    recursive_dynamics,
)
from ssm_measures.components import Capture, SSMComponents
from suite_plumbing.errors import AnalysisError
from suite_plumbing.result_files import write_json
from suite_plumbing.texts import EXAMPLE_TEXTS, EncodedText, encode_texts
from token_statistics.description import relative_error

D_MODEL, D_INNER, D_STATE = 32, 64, 4

TEXT = "the harbour lamp and the blue ledger"

# Rounding of float32 over a layer's operations: the suite's bound on rebuilt outputs.
FLOAT32 = 1e-5


def make_ids(length: int = 21, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCAB_SIZE, (batch, length), generator=generator)


def make_mask() -> Tensor:
    """Two texts of 21 and 14 tokens."""
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, :7] = 0
    return mask


@pytest.fixture
def captured(tiny_model: MambaForCausalLM) -> Capture:
    return capture(tiny_model, make_ids(), make_mask(), [0, 2])


def test_fields_have_the_shapes_of_the_contract(captured):
    shapes = {
        "A": (D_INNER, D_STATE), "B": (2, 21, D_STATE), "C": (2, 21, D_STATE), "D": (D_INNER,),
        "delta": (2, 21, D_INNER), "u": (2, 21, D_INNER), "gate": (2, 21, D_INNER),
        "y": (2, 21, D_INNER), "gated": (2, 21, D_INNER), "conv_input": (2, 21, D_INNER),
        "mixer_output": (2, 21, D_MODEL), "hidden_states": (2, 21, D_INNER, D_STATE),
    }  # fmt: skip
    assert captured.layers == [0, 2]
    for layer in captured.layers:
        parts = captured.components[layer]
        for name, shape in shapes.items():
            tensor = getattr(parts, name)
            assert tensor.shape == shape, name
            assert tensor.dtype == torch.float32
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
        assert bool((parts.A < 0).all())
        assert bool((parts.delta > 0).all())
        assert captured.block_inputs[layer].shape == (2, 21, D_MODEL)
        assert captured.block_outputs[layer].shape == (2, 21, D_MODEL)


def test_every_field_of_a_result_is_documented():
    """A docstring stands under each field of the dataclasses that users read."""
    import inspect

    for cls in (SSMComponents, Capture, RecursiveDynamics):
        lines = [line.strip() for line in inspect.getsource(cls).splitlines()]
        for field in fields(cls):
            position = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name}: "))
            assert lines[position + 1].startswith('"""'), f"{cls.__name__}.{field.name}"


def test_replay_errors_are_small_and_one_a_text(captured):
    for parts in captured.components.values():
        assert len(parts.replay_errors) == 2
        assert 0 < parts.replay_error <= FLOAT32
        assert parts.replay_error == max(parts.replay_errors)


def test_float64_models_keep_float64(tiny_model):
    model: Any = tiny_model
    captured = capture(model.double(), make_ids(), make_mask(), [1])
    parts = captured.components[1]
    assert parts.y.dtype == parts.delta.dtype == captured.block_inputs[1].dtype == torch.float64
    assert parts.replay_error <= 1e-10  # the suite's bound in float64


def test_attention_and_skip_give_the_output(captured):
    one = captured.text(0).components[2]
    alpha = implicit_attention(one.delta, one.A, one.B, one.C)
    y = torch.einsum("bhts,bsh->bth", alpha, one.u) + one.D * one.u
    assert relative_error(y, one.y) <= FLOAT32


def test_fields_give_the_mixers_output(tiny_model, captured):
    for layer, parts in captured.components.items():
        out_proj = find_mixers(tiny_model)[layer].mixer.out_proj
        gated = parts.y * reference.silu(parts.gate)
        rebuilt = out_proj(gated).detach()
        for row in range(2):
            keep = parts.attention_mask[row].bool()
            error = relative_error(rebuilt[row, keep], parts.mixer_output[row, keep])
            assert error <= FLOAT32
            assert relative_error(gated[row, keep], parts.gated[row, keep]) <= FLOAT32
            # Another route than the replay's, so equal to its error up to rounding only.
            assert parts.replay_errors[row] == pytest.approx(error, abs=1e-6)


def test_states_are_those_of_the_loop(captured):
    for parts in captured.components.values():
        operands = {name: getattr(parts, name) for name in ("u", "delta", "A", "B", "C", "D")}
        y, h = reference.scan(**reference.heads_form(**operands))
        assert relative_error(parts.hidden_states, h.squeeze(3)) <= FLOAT32
        assert relative_error(parts.y, y.squeeze(3)) <= FLOAT32


def test_a_capture_does_not_follow_the_model(tiny_model, captured):
    before = {name: x.clone() for name, x in vars(captured.components[0]).items() if _is(x)}
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.zero_()
    for name, x in before.items():
        assert torch.equal(getattr(captured.components[0], name), x), name


def _is(x: object) -> bool:
    return isinstance(x, Tensor)


def test_a_text_of_a_batch_equals_a_run_of_its_own(tiny_model, captured):
    ids, mask = make_ids(), make_mask()
    for row in range(2):
        alone = capture(tiny_model, ids[row : row + 1, mask[row].bool()], None, [0, 2])
        text = captured.text(row)
        assert torch.equal(text.input_ids, alone.input_ids)
        assert torch.equal(text.attention_mask, alone.attention_mask)
        for layer in (0, 2):
            pairs = {
                name: (getattr(text.components[layer], name), x)
                for name, x in vars(alone.components[layer]).items()
                if _is(x)
            }
            pairs["block_inputs"] = text.block_inputs[layer], alone.block_inputs[layer]
            pairs["block_outputs"] = text.block_outputs[layer], alone.block_outputs[layer]
            pairs["hidden_states"] = (
                text.components[layer].hidden_states,
                alone.components[layer].hidden_states,
            )
            for name, (batched, own) in pairs.items():
                assert batched.shape == own.shape, name
                # The suite's bound on batched against alone.
                assert relative_error(batched, own) <= 1e-5, name
            assert len(text.components[layer].replay_errors) == 1
            assert text.components[layer].replay_error <= FLOAT32


def test_capture_texts_gives_every_text_in_the_order_given(tiny_model, tiny_tokenizer):
    texts = [TEXT * 2, "the kettle", TEXT]
    encoded = encode_texts(tiny_tokenizer, texts, 512)
    captures = capture_texts(tiny_model, encoded, [3], batch_size=2)
    for item, batched in zip(encoded, captures, strict=True):
        assert batched.input_ids.tolist() == [item.input_ids]
        alone = capture(tiny_model, torch.tensor([item.input_ids]), None, [3])
        assert relative_error(batched.components[3].y, alone.components[3].y) <= 1e-5
        assert relative_error(batched.block_outputs[3], alone.block_outputs[3]) <= 1e-5


def test_summaries_are_strict_json(captured, tmp_path):
    parts = captured.components[0]
    summary = parts.to_dict()
    write_json(tmp_path / "parts.json", {**summary, **recursive_dynamics(parts).to_dict()})
    assert summary["num_tokens"] == 21 + 14
    assert summary["shapes"]["delta"] == [2, 21, D_INNER]
    kept = parts.delta[parts.attention_mask.bool()].double()
    assert summary["delta"]["mean"] == pytest.approx(float(kept.mean()))
    assert summary["delta"]["n"] == 35 * D_INNER
    dynamics = recursive_dynamics(parts).to_dict()
    assert dynamics["state_norm"]["n"] == 35  # padding is no state
    # Written with five significant digits.
    series = summary["by_token"]["delta"]
    assert [len(row) for row in series] == [21, 14]
    assert [x for row in series for x in row] == pytest.approx(kept.mean(1).tolist(), rel=1e-4)
    assert [len(row) for row in dynamics["by_token"]["state_norm"]] == [21, 14]


@pytest.fixture
def extractor(tiny_model_dir: Path) -> SSMComponentExtractor:
    return SSMComponentExtractor(str(tiny_model_dir), device="cpu")


def test_the_class_takes_a_folder_and_finds_its_tokenizer(extractor, tiny_tokenizer):
    components = extractor.extract_ssm_components([0, 3], TEXT)
    assert list(components) == [0, 3]
    assert extractor.components_ is components
    length = len(tiny_tokenizer(TEXT)["input_ids"])
    assert components[0].delta.shape == (1, length, D_INNER)
    dynamics = extractor.analyze_recursive_dynamics(3)
    expected = recursive_dynamics(components[3])
    assert torch.equal(dynamics.half_life, expected.half_life)


def test_a_model_object_needs_a_tokenizer_only_for_text(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="has no tokenizer; pass tokenizer="):
        SSMComponentExtractor(tiny_model).extract_ssm_components([0], TEXT)
    extractor = SSMComponentExtractor(tiny_model, tokenizer=tiny_tokenizer)
    assert list(extractor.extract_ssm_components([0], TEXT)) == [0]


@pytest.mark.parametrize(
    ("layer_indices", "expected"),
    [(None, [0, 1, 2, 3]), ("all", [0, 1, 2, 3]), ([-1], [3]), ([2, 0, -3], [0, 1, 2])],
)
def test_layers_that_can_be_asked_for(extractor, layer_indices, expected):
    assert list(extractor.extract_ssm_components(layer_indices, TEXT)) == expected


@pytest.mark.parametrize(
    ("layer_indices", "message"),
    [
        ([4], "layer 4 is out of range: the model has 4 layers"),
        ([-5], "layer -5 is out of range"),
        ([1, -3], "layer 1 is named twice"),
        ([], "layer_indices is empty"),
        ([1.5], "holds 1.5"),
        ("most", "layer_indices is 'most'"),
        (2, "layer_indices is 2; pass a list"),
    ],
)
def test_layers_that_cannot(extractor, monkeypatch, layer_indices, message):
    monkeypatch.setattr(extractor.model, "forward", _must_not_run)
    with pytest.raises(ValueError, match=message):
        extractor.extract_ssm_components(layer_indices, TEXT)


def _must_not_run(*args: object, **kwargs: object) -> None:
    raise AssertionError("the model ran before the arguments had been checked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text 0 is empty"),
        ("  \n", "text 0 is empty or white space"),
        ([], "texts is empty"),
        ([TEXT, 7], "text 1 is of type int"),
        ("a", "1 token"),
        (None, "texts is of type NoneType"),
    ],
)
def test_texts_that_cannot_be_analysed(extractor, monkeypatch, text, message):
    monkeypatch.setattr(extractor.model, "forward", _must_not_run)
    with pytest.raises(ValueError, match=message):
        extractor.extract_ssm_components([0], text)


def test_dynamics_need_an_extraction_of_that_layer(extractor):
    with pytest.raises(RuntimeError, match=r"call extract_ssm_components\(...\) first"):
        extractor.analyze_recursive_dynamics(0)
    extractor.extract_ssm_components([0, 1], TEXT)
    with pytest.raises(ValueError, match=r"layer_idx is 2; the layers extracted are \[0, 1\]"):
        extractor.analyze_recursive_dynamics(2)


def test_a_failed_extraction_keeps_the_earlier_one(extractor):
    components = extractor.extract_ssm_components([0], TEXT)
    with pytest.raises(ValueError, match="out of range"):
        extractor.extract_ssm_components([9], TEXT)
    assert extractor.components_ is components


def test_every_form_of_input_means_the_same(tiny_model, tiny_tokenizer):
    encoding = tiny_tokenizer(TEXT, return_tensors="pt")
    ids = encoding["input_ids"]
    assert isinstance(ids, Tensor)
    forms = [TEXT, [TEXT], ids, ids[0], encoding, {"input_ids": ids}, tiny_tokenizer(TEXT)]
    captures = [capture_for(tiny_model, tiny_tokenizer, [1], form) for form in forms]
    for other in captures[1:]:
        assert torch.equal(other.input_ids, captures[0].input_ids)
        assert torch.equal(other.attention_mask, captures[0].attention_mask)
        assert torch.equal(other.components[1].y, captures[0].components[1].y)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[1, VOCAB_SIZE]]), f"from 1 to {VOCAB_SIZE}; the model knows 0 to 63"),
        (torch.tensor([[-1, 2]]), "from -1 to 2"),
        (torch.tensor([[1.0, 2.0]]), "inputs must be token ids .* got .* of torch.float32"),
        (torch.zeros(1, 0, dtype=torch.long), r"inputs must be token ids .* got \(1, 0\)"),
        (torch.zeros(1, 2, 2, dtype=torch.long), r"got \(1, 2, 2\)"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)},
            r"attention_mask must have the shape of input_ids, \(2, 3\), got \(2, 4\)",
        ),
        ({"attention_mask": torch.ones(1, 2)}, "inputs has no input_ids"),
        (torch.tensor([[True, False]]), "got .* of torch.bool"),
        ({"input_ids": [[1, 2], [1]]}, r"inputs cannot be taken .* pad text"),
        ({"input_ids": "ids"}, "inputs cannot be taken as numbers"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "has 0 runs of tokens in row 0"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "has 2 runs of tokens"),
        ({"input_ids": [[1, 2]], "attention_mask": [[5, 1]]}, "it has other values"),
    ],
)
def test_ids_that_mean_nothing_are_refused(tiny_model, inputs, message):
    with pytest.raises(ValueError, match=message):
        capture_for(tiny_model, None, [0], inputs)


def test_a_model_without_a_selective_ssm_is_refused():
    config = GPT2Config(
        vocab_size=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    extractor = SSMComponentExtractor(GPT2LMHeadModel(config))
    with pytest.raises(UnsupportedModelError, match="Supported families: mamba"):
        extractor.extract_ssm_components([0], TEXT)


def run_command(model_dir: Path, output: Path, *options: str) -> int:
    return main(["--model", str(model_dir), "--output-dir", str(output), "--quiet", *options])


def test_the_command_writes_strict_json_and_tensors(tiny_model_dir, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_command(tiny_model_dir, output, "--layers", "0,-1") == 0
    assert "ssm_components.json" in capsys.readouterr().out

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (output / "ssm_components.json").read_text()
    results = json.loads(text, parse_constant=refuse)
    assert sorted(results) == ["provenance", "schema_version", "text_0", "text_1", "text_2"]
    origin = results["provenance"]
    assert origin["command"][:2] == ["python", "ssm_component_extractor.py"]
    assert sorted(origin["texts"]) == ["text_0", "text_1", "text_2"]
    assert sorted(results["text_0"]) == ["layer_0", "layer_3"]
    assert results["text_0"]["layer_3"]["replay_error"] <= FLOAT32
    tensors = load_file(output / "ssm_components.safetensors")
    for index in range(len(EXAMPLE_TEXTS)):
        number = results[f"text_{index}"]["layer_0"]["num_tokens"]
        assert tensors[f"text_{index}.layer_0.delta"].shape == (number, D_INNER)
        mean = float(tensors[f"text_{index}.layer_0.delta"].double().mean())
        assert results[f"text_{index}"]["layer_0"]["delta"]["mean"] == pytest.approx(mean)


def test_the_command_gives_what_the_class_gives(tiny_model_dir, tmp_path, extractor):
    run_command(tiny_model_dir, tmp_path / "out", "--layers", "1", "--text", TEXT)
    stored = load_file(tmp_path / "out" / "ssm_components.safetensors")
    components = extractor.extract_ssm_components([1], TEXT)[1]
    for name in ("delta", "B", "C", "y"):
        assert torch.equal(stored[f"text_0.layer_1.{name}"], getattr(components, name)[0])


def test_two_runs_write_the_same_but_for_the_time(tiny_model_dir, tmp_path):
    written, tensors = [], []
    for name in ("one", "two"):
        assert run_command(tiny_model_dir, tmp_path / name, "--layers", "2", "--text", TEXT) == 0
        written.append(json.loads((tmp_path / name / "ssm_components.json").read_text()))
        del written[-1]["provenance"]["run"]
        tensors.append(load_file(tmp_path / name / "ssm_components.safetensors"))
    assert written[0] == written[1]
    assert tensors[0].keys() == tensors[1].keys()  # the files also hold their run's id
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize(
    "options",
    [
        ["--layers", "7"],
        ["--layers", "first"],
        ["--text", " "],
        ["--text", TEXT, "--texts-file", "texts.txt"],
        ["--texts-file", "no_such_file.txt"],
        ["--device", "abacus"],
        ["--dtype", "float8"],
        ["--max-sequence-length", "1"],
        ["--no-such-option"],
    ],
)
def test_bad_arguments_exit_with_2(tiny_model_dir, tmp_path, options, capsys):
    try:
        status = run_command(tiny_model_dir, tmp_path / "out", *options)
    except SystemExit as exit_:  # argparse leaves by itself
        status = exit_.code
    assert status == 2
    assert "error" in capsys.readouterr().err
    assert not (tmp_path / "out" / "ssm_components.json").exists()


def test_a_missing_model_exits_with_2(tmp_path, capsys):
    assert run_command(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err


def test_models_are_unchanged_by_a_capture():
    model, ids = make_tiny_model(), make_ids()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    capture(model, ids, make_mask(), [0, 3])
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name]), name
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, logits)


@pytest.mark.parametrize("where", ["embeddings", "norm"])
def test_what_overflows_is_named_by_layer(tiny_model, where):
    with torch.no_grad():
        if where == "embeddings":
            tiny_model.backbone.embeddings.weight.mul_(1e30)
        else:
            tiny_model.backbone.layers[1].norm.weight.fill_(1e38)
    message = "before the layer of layer 1" if where == "embeddings" else "layer 1 holds NaN"
    with pytest.raises(AnalysisError, match=message):
        capture_for(tiny_model, None, [1], torch.tensor([[1, 2, 3]]))


def test_a_tokenizer_of_another_model_is_refused(tiny_model_dir, tiny_tokenizer):
    model = make_tiny_model()
    small = model.resize_token_embeddings(20)
    assert small.num_embeddings == model.config.vocab_size == 20
    with pytest.raises(ValueError, match="for the model, which knows 0 to 19; pass the tokenizer"):
        SSMComponentExtractor(model, tokenizer=tiny_tokenizer).extract_ssm_components(
            [0], EXAMPLE_TEXTS[0]
        )


@pytest.mark.parametrize(("tokens", "rows"), [(6, [1, 1]), (12, [2])])
def test_long_texts_do_not_share_a_pass(tokens, rows, monkeypatch):
    model, seen = make_tiny_model(), []
    texts = [EncodedText("", [3, 1, 4, 1, 5, i], ["x"] * 6, None, 6, False) for i in (9, 2)]
    width = model.config.hidden_size
    monkeypatch.setattr(ssm_component_extractor, "_BATCH_NUMBERS", tokens * width)
    kept = ssm_component_extractor.capture
    monkeypatch.setattr(
        ssm_component_extractor, "capture",
        lambda model, ids, *rest: (seen.append(len(ids)), kept(model, ids, *rest))[1],
    )  # fmt: skip
    first, second = ssm_component_extractor.capture_texts(model, texts, [1], batch_size=2)
    assert seen == rows
    assert [int(one.input_ids[0, -1]) for one in (first, second)] == [9, 2]


@pytest.mark.parametrize("reader", [lambda found: found, captures_or_raise])
def test_a_capture_that_was_let_go_is_gone(tiny_model, tiny_tokenizer, reader):
    texts = encode_texts(tiny_tokenizer, list(EXAMPLE_TEXTS), 20)
    found = reader(capture_each(tiny_model, texts, [0, 1], batch_size=2))
    count = 0
    for _, captured in found:
        handed_out = weakref.ref(captured)
        del captured
        assert handed_out() is None
        count += 1
    assert count == len(EXAMPLE_TEXTS) > 2

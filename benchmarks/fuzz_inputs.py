"""What the fuzzer tries besides command lines: calls, model folders, result files, each spoilt."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

import attention_neurons
import delta_extraction
import input_attribution
import intervention_study
import long_memory
import recursive_analysis_report
import recursive_visualizer
import selective_scan
import ssm_component_extractor
from benchmarks.family_models import make_tiny_tokenizer
from causal_interventions import effects, interventions, neuron_effects, passing, targets
from corrected_recursive_ssm_attention_analyzer import (
    CorrectedRecursiveSSMAttentionNeuronAnalyzer,
)
from mamba_mixers.running import forward_from
from mamba_mixers.untrained_twins import untrained_twin
from ssm_measures.components import Capture
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.texts import read_texts_file

TEXT = "Mrs. Alder kept the harbour lamp for thirty years, and wrote the hour in a blue ledger."

BAD_INTS: tuple[Any, ...] = (
    None, -1, -(10**30), 10**30, 1.5, float("nan"), "x", "", True, [], {}, object(), 1 + 2j, b"1",
    np.float64(2.0), np.bool_(True), [1.5], "a" * 10**5, torch.tensor(1.5), torch.tensor(True),
)  # fmt: skip
"""None of them is a whole number from 0 on, and none means anything where one is wanted."""

BAD_TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda x: None, lambda x: x.tolist(), lambda x: x.to(torch.complex64),
    lambda x: x.to(torch.int8), lambda x: x.bool(), lambda x: x[0], lambda x: x.unsqueeze(0),
    lambda x: x[..., :0], lambda x: "tensor", lambda x: x[:, :0], lambda x: x.numpy(),
)  # fmt: skip

_NARROW = 3
"""Place of int8 among them."""

JSON_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 10**400, 1e308, "x", "", [], {}, [1], {"a": 1}, 0.5, "silu", [[]],
)  # fmt: skip


class Case(NamedTuple):
    """One input: what is tried, in words, and the call that tries it."""

    kind: str
    what: str
    run: Callable[[], Any]
    must_refuse: bool = False
    argv: tuple[str, ...] = ()
    """of a command line: the script, and what it is given"""


class Stand(NamedTuple):
    """What every input of a worker is made from."""

    folder: Path
    model_folder: Path
    results: Path


def make_stand(folder: Path) -> Stand:
    """A tiny model with its tokenizer, and the results of a main analysis, in a new folder."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, state_size=4, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model_folder = folder / "tiny"
    MambaForCausalLM(config).save_pretrained(model_folder)
    make_tiny_tokenizer().save_pretrained(model_folder)
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model_folder)
    analyzer.analyze_recursive_ssm_attention_effects([TEXT, TEXT[::-1]], layer_indices=[0, 2])
    analyzer.save_analysis_results(folder / "analysis_results.json")
    return Stand(folder, model_folder, folder / "analysis_results.json")


class _Call(NamedTuple):
    """A call that is right, and its arguments that are whole numbers or operands of a scan."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    whole: tuple[str, ...]
    operands: tuple[str, ...] = ()


@cache
def _calls(model_folder: Path) -> dict[str, _Call]:
    """By name, calls that are right; of each one argument is spoilt."""
    model = load_model(model_folder)
    captured = ssm_component_extractor.capture(model, torch.arange(2, 26)[None], None, [0, 1, 2])
    return {
        **_scan_calls(captured),
        **_intervention_calls(model, captured),
        **_model_calls(model, captured),
        **_extractor_calls(model, model_folder),
    }


def _scan_calls(captured: Capture) -> dict[str, _Call]:
    operands = ("u", "delta", "A", "B", "C")
    scan = {name: getattr(captured.components[1], name) for name in operands}
    kernel = {name: scan[name] for name in operands[1:]}
    return {
        "selective_scan": _Call(selective_scan.selective_scan, scan, (), operands),
        "implicit_attention": _Call(
            selective_scan.implicit_attention, {**kernel, "heads": [0, 1]}, (), operands[1:]
        ),
        "attention_row": _Call(
            selective_scan.attention_row, {**kernel, "query": 3}, ("query",), operands[1:]
        ),
    }


def _intervention_calls(model: PreTrainedModel, captured: Capture) -> dict[str, _Call]:
    given = {"model": model, "captured": captured}
    return {
        "reset_state": _Call(interventions.reset_state, {"token": 3, "layers": [1]}, ("token",)),
        "set_neuron": _Call(interventions.set_neuron, {"layer": 1, "neurons": [3]}, ("layer",)),
        "matched_neurons": _Call(
            effects.matched_neurons,
            {"norms": torch.rand(9), "neurons": [1], "num_random": 2, "seed": 0},
            ("num_random", "seed"),
        ),
        "random_neurons": _Call(
            neuron_effects.random_neurons, {"count": 9, "num_random": 2, "seed": 0},
            ("num_random", "seed"),
        ),
        "ablation_effects": _Call(
            neuron_effects.ablation_effects,
            {**given, "layer": 1, "neurons": [3], "target": targets.resolve_target("logit")},
            ("layer", "neurons"),
        ),
        "passing": _Call(
            passing.passing, {**given, "first": 0, "second": 2, "seed": 0},
            ("first", "second", "seed"),
        ),
        "causal_memory_curve": _Call(
            intervention_study.causal_memory_curve,
            {**given, "layers": [1], "positions": [5], "max_lag": 4},
            ("layers", "positions", "max_lag"),
        ),
    }  # fmt: skip


def _model_calls(model: PreTrainedModel, captured: Capture) -> dict[str, _Call]:
    ids = captured.input_ids
    return {
        "capture": _Call(
            ssm_component_extractor.capture,
            {"model": model, "input_ids": ids, "attention_mask": None, "layer_indices": [0]},
            (), ("input_ids",),
        ),
        "layer_parameters": _Call(
            attention_neurons.layer_parameters, {"model": model, "layers": [0]}, ()
        ),
        "forward_from": _Call(
            forward_from,
            {"model": model, "layer": 1, "hidden_states": captured.block_outputs[0]},
            ("layer",),
        ),
        "untrained_twin": _Call(untrained_twin, {"model": model, "seed": 0}, ("seed",)),
        "resolve_target": _Call(
            targets.resolve_target, {"name": "logit", "position": 3}, ("position",)
        ),
        "explain": _Call(
            input_attribution.explain,
            {"model": model, "input_ids": ids[0], "target": targets.resolve_target("logit"),
             "num_steps": 2, "batch_size": 2, "seed": 0},
            ("num_steps", "batch_size", "seed"),
        ),
        "read_through": _Call(
            long_memory.read_through,
            {"model": model, "input_ids": ids[0], "chunk_size": 8, "kernel_every": 1},
            ("chunk_size", "kernel_every"),
        ),
    }  # fmt: skip


def _extractor_calls(model: PreTrainedModel, model_folder: Path) -> dict[str, _Call]:
    extractor = delta_extraction.DeltaExtractor(model, tokenizer=load_tokenizer(model_folder))
    extractor.extract_deltas([0], TEXT)
    return {
        "find_gate_tokens": _Call(
            extractor.find_gate_tokens, {"layer_idx": 0, "top_k": 3, "seed": 0}, ("top_k", "seed")
        ),
        "analyze_memory": _Call(
            extractor.analyze_memory, {"layer_idx": 0, "seed": 0}, ("layer_idx", "seed")
        ),
        "extract_deltas": _Call(
            extractor.extract_deltas, {"layer_indices": [0], "input_text": TEXT}, ()
        ),
        "read_texts_file": _Call(read_texts_file, {"path_or_dash": "x"}, ("path_or_dash",)),
    }


def call(stand: Stand, rng: random.Random, folder: Path) -> Case:
    """A call with one argument that means nothing."""
    calls = _calls(stand.model_folder)
    name = rng.choice(list(calls))
    call = calls[name]
    spoilt = rng.choice((*call.whole, *call.operands) or tuple(call.arguments))
    if spoilt in call.operands:
        number = rng.randrange(len(BAD_TENSORS))
        value, must = BAD_TENSORS[number](call.arguments[spoilt]), number < 5
        must &= not (spoilt == "input_ids" and number == _NARROW)  # ids of any integer dtype
    else:
        value = rng.choice(BAD_INTS)
        # A negative position counts from the end, and one layer is a list of one.
        must = spoilt in call.whole and not (isinstance(value, int) and value == -1)
        must &= not (spoilt == "neurons" and isinstance(value, list))  # none at all: no effects
    words = f"{name}({spoilt}={type(value).__name__} {_safe(value)})"
    arguments = {**call.arguments, spoilt: value}
    return Case("call", words, lambda: call.function(**arguments), must)


def _safe(value: Any) -> str:
    return repr(value)[:40].replace("\n", " ")


def model_folder(stand: Stand, rng: random.Random, folder: Path) -> Case:
    """A model folder with one file damaged, loaded and analysed."""
    damaged = folder / "model"
    shutil.copytree(stand.model_folder, damaged)
    path = rng.choice(sorted(damaged.iterdir()))
    how = _damage(path, rng)

    def use() -> None:
        model, tokenizer = load_model(damaged), load_tokenizer(damaged)
        extractor = ssm_component_extractor.SSMComponentExtractor(model, tokenizer=tokenizer)
        extractor.extract_ssm_components([0], "a tide pool is a small sea")

    return Case("model folder", f"{path.name}: {how}", use)


def results_file(stand: Stand, rng: random.Random, folder: Path) -> Case:
    """A result file damaged or edited, opened, and now and then drawn or reported."""
    path = folder / "analysis_results.json"
    shutil.copy(stand.results, path)
    shutil.copy(stand.results.with_suffix(".safetensors"), path.with_suffix(".safetensors"))
    how = _damage(path if rng.random() < 0.85 else path.with_suffix(".safetensors"), rng)
    names = list(recursive_visualizer.CORRECTED_FIGURES)
    figure = rng.choice(names) if rng.random() < 0.1 else None
    report = rng.random() < 0.1

    def read() -> None:
        opened = recursive_visualizer.Results.open(path)
        opened.to_dataframe()
        if figure is not None:
            opened.figure(figure)
        if report:
            with recursive_visualizer.drawing_from(path):
                recursive_analysis_report.report_html(opened, tensors=opened.tensors)

    return Case("results file", f"{path.name}: {how}; {figure}, {report}", read)


def _damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one of several ways; which one, in words."""
    raw = path.read_bytes()
    ways = ["cut", "bytes", "empty", "gone"]
    if path.suffix == ".json":
        ways += ["value"] * 12 + ["deep", "list"]
    way = rng.choice(ways)
    if way == "cut":
        path.write_bytes(raw[: rng.randrange(len(raw))])
    elif way == "bytes":
        spoilt = bytearray(raw)
        for _ in range(rng.choice((1, 3, 20))):
            spoilt[rng.randrange(min(len(raw), 20_000))] = rng.randrange(256)
        path.write_bytes(spoilt)
    elif way == "value":
        return _spoil_json(path, json.loads(raw), rng)
    elif way == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "deep": b"[" * 60_000, "list": b"[]"}[way])
    return way


def _spoil_json(path: Path, data: Any, rng: random.Random) -> str:
    """Replace, or remove, what stands at a random place of a JSON file."""
    place, keys = data, []
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        keys.append(str(key)[:30])
        deeper = place[key]
        if not isinstance(deeper, (dict, list)) or not deeper or rng.random() < 0.2:
            break
        place = deeper
    value = rng.choice((*JSON_VALUES, "removed"))
    if value == "removed":
        del place[key]
    else:
        place[key] = value
    sys.set_int_max_str_digits(0)
    path.write_text(json.dumps(data))
    sys.set_int_max_str_digits(4300)
    return f"{'.'.join(keys)} = {_safe(value) if value != 10**400 else '10**400'}"

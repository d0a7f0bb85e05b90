"""What does bad input come to: one line that says what is wrong, or a traceback, a hang, a result?

Seeded random inputs of four kinds: command lines through `main(argv)`, calls of classes and pure
functions with one argument spoilt, model folders with one file damaged, result files damaged or
edited. Each runs in a worker process with a limit of time and memory, and ends in one of OUTCOMES.
A result where the spoilt argument means nothing is a wrong acceptance.

    python benchmarks/fuzz.py --count 1000 --seed 0     # about 1 minute a core for 1,000 inputs
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from transformers import MambaConfig, MambaForCausalLM

import attribution_faithfulness
import delta_extraction
import input_attribution
import intervention_study
import long_memory
import recursive_analysis_report
import recursive_visualizer
import selective_scan
import ssm_component_extractor
from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.family_models import make_tiny_tokenizer
from causal_interventions import effects, interventions, neuron_effects, targets
from corrected_recursive_ssm_attention_analyzer import (
    CorrectedRecursiveSSMAttentionNeuronAnalyzer,
)
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.texts import read_texts_file

OUTCOMES = (
    "done", "refused in one line", "status 1", "traceback", "message too long",
    "wrong acceptance", "hang", "crash",
)  # fmt: skip
"""The first three are right; status 1 is an analysis that says what it cannot analyse."""

RIGHT = OUTCOMES[:3]

LONGEST_MESSAGE = 600

TEXT = "Mrs. Alder kept the harbour lamp for thirty years, and wrote the hour in a blue ledger."

TIMEOUT = 60
"""Seconds that one input may take; none needs a tenth of it."""

MEMORY = 12 << 30
"""Bytes of address space a worker may have; torch alone takes a third of it."""

BAD_INTS: tuple[Any, ...] = (
    None, -1, -(10**30), 10**30, 1.5, float("nan"), "x", "", True, [], {}, object(), 1 + 2j, b"1",
    np.float64(2.0), np.bool_(True), [1.5], "a" * 10**6, torch.tensor(1.5), torch.tensor(True),
)  # fmt: skip
"""None of them is a whole number from 0 on, and none means anything where one is wanted."""

BAD_TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda x: None, lambda x: x.tolist(), lambda x: x.to(torch.complex64),
    lambda x: x.to(torch.int8), lambda x: x.bool(), lambda x: x[0], lambda x: x.unsqueeze(0),
    lambda x: x[..., :0], lambda x: "tensor", lambda x: x[:, :0], lambda x: x.numpy(),
)  # fmt: skip

STRINGS = (
    "", " ", "x", "-1", "0", "1.5", "nan", "1e999", "9" * 401, "0,0", "0,99", "all", "ALL", ",",
    "²", "~nosuchuser/x", "a" * 300, "\ud800", "\x1b[31m", "..", ".", "/dev/null", "None", "0x10",
    "--", "hpu", "cuda:99", "mps", "float99", "💥" * 50, "a" * 100_000, "\n", "png,exe",
)  # fmt: skip

JSON_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 10**400, 1e308, "x", "", [], {}, [1], {"a": 1}, 0.5, "silu", [[]],
)  # fmt: skip


class Case(NamedTuple):
    """One input: what is tried, in words, and the call that tries it."""

    kind: str
    what: str
    run: Callable[[], Any]
    must_refuse: bool = False


class Outcome(NamedTuple):
    """What one input came to."""

    index: int
    kind: str
    what: str
    outcome: str
    message: str


# Inputs


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


def case_of(stand: Stand, seed: int, index: int, folder: Path) -> Case:
    """The input of this number; it depends on the seed and the number alone."""
    rng = random.Random(f"{seed}/{index}")
    makers = (_command_line, _call, _model_folder, _results_file)
    return makers[index % len(makers)](stand, rng, folder)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], tuple[str, ...]]] = {
    "ssm_component_extractor": (ssm_component_extractor.main, ()),
    "delta_extraction": (delta_extraction.main, ()),
    "input_attribution": (
        input_attribution.main, ("--method", "--target", "--token", "--contrast")
    ),
    "intervention_study": (
        intervention_study.main, ("--kind", "--num-positions", "--max-lag")
    ),
    "attribution_faithfulness": (
        attribution_faithfulness.main,
        ("--methods", "--baseline", "--num-texts", "--min-tokens", "--num-steps", "--num-random"),
    ),
}  # fmt: skip

SHARED = (
    "--model", "--tokenizer", "--text", "--texts-file", "--layers", "--max-sequence-length",
    "--batch-size", "--device", "--dtype", "--output-dir", "--seed",
)  # fmt: skip


def _command_line(stand: Stand, rng: random.Random, folder: Path) -> Case:
    name = rng.choice(list(COMMANDS))
    main, own = COMMANDS[name]
    argv = ["--model", str(stand.model_folder), "--output-dir", str(folder / "out"), "--quiet"]
    argv += ["--text", TEXT[:40]]
    for _ in range(rng.choice((1, 1, 2))):
        option = rng.choice(own or SHARED) if rng.random() < 0.5 else rng.choice(SHARED)
        value = _texts_file(rng, folder) if option == "--texts-file" else rng.choice(STRINGS)
        # A folder for the output is made wherever it may be: only within that of this input.
        value = str(folder / value) if option == "--output-dir" and value.isascii() else value
        if option == "--texts-file" and "--text" in argv:
            argv = argv[: argv.index("--text")]
        argv += [option, value]
    shown = [one if len(one) < 60 else f"{one[:40]}...({len(one)})" for one in argv[5:]]
    # In a folder of its own: what is written by a relative name stays there.
    return Case("command line", f"{name} {shown}", lambda: _in_folder(folder, main, argv))


def _in_folder(folder: Path, main: Callable[[list[str]], int], argv: list[str]) -> int:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return main(argv)
    finally:
        os.chdir(before)


def _texts_file(rng: random.Random, folder: Path) -> str:
    name = rng.choice(("a.txt", "a.jsonl", "a.ndjson", "a.md", "a.gz", "a.zip", "a", "a.csv"))
    contents = (
        b"", b"\n\n", b"\xff\xfe", b"{", b'{"text": 5}\n', b'{"text": "a b c d"}\n', b"[]",
        b'{"text": "\\ud800 a b"}\n', b"\x1f\x8b\x08", b"PK\x03\x04", b"a b c d\n", b"a\x00b\n",
        b"[" * 50_000, b'{"text": ' + b"9" * 5000 + b"}",
    )  # fmt: skip
    (folder / name).write_bytes(rng.choice(contents))
    return str(folder / name)


class _Call(NamedTuple):
    """A call that is right, and its arguments that are whole numbers or operands of a scan."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    whole: tuple[str, ...]
    operands: tuple[str, ...] = ()


@cache
def _calls(model_folder: Path) -> dict[str, _Call]:
    model = load_model(model_folder)
    ids = torch.arange(2, 26)[None]
    captured = ssm_component_extractor.capture(model, ids, None, [0, 1, 2])
    parts = captured.components[1]
    extractor = delta_extraction.DeltaExtractor(model)
    extractor.tokenizer = load_tokenizer(model_folder)
    extractor.extract_deltas([0], TEXT)
    scan = {name: getattr(parts, name) for name in ("u", "delta", "A", "B", "C")}
    kernel = {name: scan[name] for name in ("delta", "A", "B", "C")}
    goal = targets.resolve_target("logit")
    operands = ("u", "delta", "A", "B", "C")
    return {
        "selective_scan": _Call(selective_scan.selective_scan, scan, (), operands),
        "implicit_attention": _Call(
            selective_scan.implicit_attention, {**kernel, "heads": [0, 1]}, (), operands[1:]
        ),
        "attention_row": _Call(
            selective_scan.attention_row, {**kernel, "query": 3}, ("query",), operands[1:]
        ),
        "reset_state": _Call(
            interventions.reset_state, {"token": 3, "layers": [1]}, ("token",)
        ),
        "set_neuron": _Call(
            interventions.set_neuron, {"layer": 1, "neurons": [3]}, ("layer",)
        ),
        "matched_neurons": _Call(
            effects.matched_neurons,
            {"norms": torch.rand(9), "neurons": [1], "num_random": 2, "seed": 0},
            ("num_random", "seed"),
        ),
        "random_neurons": _Call(
            neuron_effects.random_neurons, {"count": 9, "num_random": 2, "seed": 0},
            ("num_random", "seed"),
        ),
        "resolve_target": _Call(
            targets.resolve_target, {"name": "logit", "position": 3}, ("position",)
        ),
        "explain": _Call(
            input_attribution.explain,
            {"model": model, "input_ids": ids[0], "target": goal, "num_steps": 2, "batch_size": 2,
             "seed": 0},
            ("num_steps", "batch_size", "seed"),
        ),
        "read_through": _Call(
            long_memory.read_through,
            {"model": model, "input_ids": ids[0], "chunk_size": 8, "kernel_every": 1},
            ("chunk_size", "kernel_every"),
        ),
        "causal_memory_curve": _Call(
            intervention_study.causal_memory_curve,
            {"model": model, "captured": captured, "layers": [1], "positions": [5], "max_lag": 4},
            ("layers", "positions", "max_lag"),
        ),
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
    }  # fmt: skip


def _call(stand: Stand, rng: random.Random, folder: Path) -> Case:
    calls = _calls(stand.model_folder)
    name = rng.choice(list(calls))
    call = calls[name]
    spoilt = rng.choice((*call.whole, *call.operands) or tuple(call.arguments))
    if spoilt in call.operands:
        number = rng.randrange(len(BAD_TENSORS))
        value, must = BAD_TENSORS[number](call.arguments[spoilt]), number < 5
    else:
        value = rng.choice(BAD_INTS)
        # A negative position counts from the end, and one layer is a list of one.
        must = spoilt in call.whole and not (isinstance(value, int) and value == -1)
    words = f"{name}({spoilt}={type(value).__name__} {_safe(value)})"
    arguments = {**call.arguments, spoilt: value}
    return Case("call", words, lambda: call.function(**arguments), must)


def _safe(value: Any) -> str:
    return repr(value)[:40].replace("\n", " ")


def _model_folder(stand: Stand, rng: random.Random, folder: Path) -> Case:
    damaged = folder / "model"
    shutil.copytree(stand.model_folder, damaged)
    path = rng.choice(sorted(damaged.iterdir()))
    how = _damage(path, rng)

    def use() -> None:
        model, tokenizer = load_model(damaged), load_tokenizer(damaged)
        extractor = ssm_component_extractor.SSMComponentExtractor(model, tokenizer=tokenizer)
        extractor.extract_ssm_components([0], "a tide pool is a small sea")

    return Case("model folder", f"{path.name}: {how}", use)


def _results_file(stand: Stand, rng: random.Random, folder: Path) -> Case:
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


# Running


def outcome_of(case: Case) -> tuple[str, str]:
    """Run one input in this process: which of OUTCOMES, and what was said."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = case.run()
    except SystemExit as ending:
        return _of_status(ending.code, said.getvalue())
    except AnalysisError as error:
        return _of_message("status 1", str(error))
    except ValueError as error:
        return _of_message("refused in one line", str(error))
    except MemoryError as error:
        return "status 1", f"out of memory {error}"
    except BaseException:
        return "traceback", traceback.format_exc(limit=-4)
    if case.kind == "command line":
        return _of_status(status, said.getvalue())
    return ("wrong acceptance", "") if case.must_refuse else ("done", "")


def _of_status(status: object, said: str) -> tuple[str, str]:
    named = {0: "done", None: "done", 1: "status 1", 2: "refused in one line"}
    # Of argparse's, the usage goes before the line.
    errors = [line for line in said.splitlines() if "error:" in line] or [""]
    outcome = named.get(status if isinstance(status, int) else None, "traceback")
    return ("traceback", said) if "Traceback" in said else _of_message(outcome, errors[-1])


def _of_message(outcome: str, message: str) -> tuple[str, str]:
    if outcome == "done":
        return outcome, ""
    if len(message) > LONGEST_MESSAGE or "\n" in message.strip():
        return "message too long", message[:LONGEST_MESSAGE]
    return outcome, message


def _work(stand: Stand, seed: int, connection: Any) -> None:
    """Answer numbers of inputs with their outcomes until None comes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (index := connection.recv()) is not None:
        with tempfile.TemporaryDirectory(dir=stand.folder) as folder:
            case = case_of(stand, seed, index, Path(folder))
            connection.send(Outcome(index, case.kind, case.what, *outcome_of(case)))


class _Worker:
    """A process that runs inputs one by one, and is replaced when it hangs or dies."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.arguments = stand, seed
        self.start()

    def start(self) -> None:
        """Start the process; what it imports, it imports once."""
        context = multiprocessing.get_context("fork")
        self.connection, end = context.Pipe()
        self.process = context.Process(target=_work, args=(*self.arguments, end), daemon=True)
        self.process.start()
        end.close()

    def run(self, index: int) -> Outcome:
        """The outcome of one input."""
        self.connection.send(index)
        try:
            if self.connection.poll(TIMEOUT):
                return self.connection.recv()
            outcome = "hang"
        except (EOFError, ConnectionResetError):
            outcome = "crash"
        self.stop()
        self.start()
        kinds = ("command line", "call", "model folder", "results file")
        return Outcome(index, kinds[index % 4], "see the seed and the number", outcome, "")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def fuzz(count: int, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """The outcomes of ``count`` inputs from number ``first`` on; ValueError for a count below 1."""
    validate_int("count", count, 1)
    with tempfile.TemporaryDirectory() as folder:
        stand = make_stand(Path(folder))
        worker = _Worker(stand, seed)
        try:
            for index in range(first, first + count):
                yield worker.run(index)
        finally:
            worker.stop()


def report(outcomes: Sequence[Outcome], seed: int) -> str:
    """Counts by kind and outcome as a table, and every input that came to a wrong one."""
    kinds = sorted({one.kind for one in outcomes})
    counts = Counter((one.kind, one.outcome) for one in outcomes)
    lines = [
        f"{len(outcomes)} inputs, seed {seed}.", "",
        f"| input | {' | '.join(OUTCOMES)} |", f"|---|{'---:|' * len(OUTCOMES)}",
    ]  # fmt: skip
    for kind in kinds:
        cells = [str(counts[kind, outcome]) for outcome in OUTCOMES]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    wrong = [one for one in outcomes if one.outcome not in RIGHT]
    lines += ["", f"Wrong: {len(wrong)}."]
    for one in wrong[:40]:
        last = (one.message.strip().splitlines() or [""])[-1][:160]
        lines.append(f"- {one.index}, {one.outcome}: `{one.what[:160]}` {last}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run inputs and print their outcomes; status 1 if one of them is wrong."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "counts by kind and outcome, and every wrong one")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="inputs (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all inputs (0)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--debug", action="store_true", help="print the tracebacks")
    args = parser.parse_args(argv)
    outcomes = []
    for one in fuzz(args.count, args.seed, args.first):
        outcomes.append(one)
        if args.debug and one.outcome not in RIGHT:
            print(one.index, one.outcome, one.what, one.message, sep="\n", flush=True)
    text = report(outcomes, args.seed)
    print(text)
    if args.save:
        keep(RESULTS_FOLDER / "robustness.md", text, "fuzz")
    return int(any(one.outcome not in RIGHT for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())

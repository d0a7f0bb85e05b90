"""Whether a CUDA machine gives what the CPU gives, and how fast, in at most four minutes.

Agreement: a tiny model of every family, in float32 and bfloat16. Errors are relative L2 norms:

    replay     the rebuilt output of a mixer against the output that it really gave on the device,
               by the official kernels where transformers uses them
    logits, state, map, gradient
               the suite's scan on the device against its own on the CPU, in float32: logits, states
               after the last token, mean implicit attention, gradient with respect to embeddings
    tokens     whether a greedy continuation inside `fast_scan` is that of the CPU

Speed: mamba's shapes with random weights beside the stock model: median seconds, tokens a second,
and the peak of the device's memory above the weights. What does not fit into the time or the
memory is left out and named.

How to run (on a CUDA machine; without one the rows run on the CPU, at tiny sizes)::

    python benchmarks/cuda_check.py --save
    python benchmarks/cuda_check.py --smoke
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
import transformers
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.family_models import MODELS, make_model, ssm_layers
from mamba_mixers.recording import record_layers
from mamba_mixers.running import fast_scan
from selective_scan.attention import attention_map
from ssm_component_extractor import capture
from suite_plumbing.commands import run_main
from suite_plumbing.progress import progress
from token_statistics.description import relative_error

RESULTS = RESULTS_FOLDER / "cuda_check.md"
SECONDS = 240.0
LENGTH, PADDING = 21, 6  # of the tiny models' texts
DTYPES = (torch.float32, torch.bfloat16)
KERNELS = ("mamba_ssm", "causal_conv1d", "kernels")


class Shape(NamedTuple):
    """A model's size, and the text that it reads."""

    name: str
    layers: int
    hidden: int
    vocabulary: int
    length: int


SHAPES = (
    Shape("mamba-130m", 24, 768, 50280, 512),
    Shape("mamba-2.8b", 64, 2560, 50280, 512),
)
TINY = (Shape("tiny", 2, 16, 50, 24),)


class Agreement(NamedTuple):
    """One model on the device beside itself on the CPU; None where it cannot run there."""

    model: str
    dtype: torch.dtype
    replay: float | None
    logits: float | None = None
    state: float | None = None
    map: float | None = None
    gradient: float | None = None
    tokens: bool | None = None
    remark: str = ""


class Speed(NamedTuple):
    """One work at one shape."""

    shape: str
    dtype: torch.dtype
    work: str
    seconds: float | None
    tokens_a_second: float | None
    peak_gb: float | None
    """above the weights; None where the device does not count"""
    remark: str = ""


class Outcome(NamedTuple):
    """What one device computes of a model and a text, on the CPU."""

    logits: Tensor
    state: Tensor
    map: Tensor
    gradient: Tensor
    tokens: list[int]


def agreement(name: str, dtype: torch.dtype, device: torch.device) -> Agreement:
    """Errors of one tiny model on the device; beyond float32 the replay's alone."""
    model, layers = make_model(name).to(device, dtype), ssm_layers(name)
    ids, mask = (x.to(device) for x in padded_ids())
    try:
        records = record_layers(model, layers, ids, mask)
    except RuntimeError as failure:
        return Agreement(name, dtype, None, remark=str(failure).splitlines()[0][:80])
    replay = max(float(record.replay_error.max()) for record in records.values())
    if dtype != torch.float32:
        return Agreement(name, dtype, replay)
    there, here = (outcome(make_model(name), layers, at) for at in (device, torch.device("cpu")))

    def error(part: str) -> float:
        return relative_error(getattr(there, part).double(), getattr(here, part).double())

    return Agreement(
        name, dtype, replay, error("logits"), error("state"), error("map"), error("gradient"),
        there.tokens == here.tokens,
    )  # fmt: skip


def padded_ids() -> tuple[Tensor, Tensor]:
    """Two texts and their mask, the second padded on the left."""
    ids = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :PADDING], mask[1, :PADDING] = 0, 0
    return ids, mask


def outcome(model: Any, layers: list[int], device: torch.device) -> Outcome:
    """Logits, states, maps, gradient and continuation by the suite's scan on a device."""
    model = model.to(device)
    ids, mask = (x.to(device) for x in padded_ids())
    records = record_layers(model, layers, ids, mask)
    replays = [record.replay for record in records.values()]
    maps = [attention_map(each.delta, each.A, each.B, each.C) for each in replays]
    embedded = model.get_input_embeddings()(ids[:1]).detach().requires_grad_()
    with fast_scan(model):
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[0, -1].max(), embedded)
        tokens = greedy(model, ids[:1], 8)
    states = torch.cat([each.memory.state.flatten() for each in replays])
    flat = torch.cat([each.flatten() for each in maps])
    return Outcome(logits.detach().cpu(), states.cpu(), flat.cpu(), gradient.cpu(), tokens)


@torch.no_grad()
def greedy(model: Any, ids: Tensor, count: int) -> list[int]:
    """The most likely tokens after ids (1, l), reading the whole text anew for each."""
    for _ in range(count):
        following = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, following[:, None]], dim=1)
    return ids[0, -count:].tolist()


def works(model: MambaForCausalLM, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; `stock` is the model's own forward pass."""

    @torch.no_grad()
    def stock() -> Tensor:
        return model(ids, use_cache=False).logits

    def ours() -> Tensor:
        with fast_scan(model):
            return stock()

    def gradient() -> Tensor:
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        with fast_scan(model):
            logits = model(inputs_embeds=x, use_cache=False).logits
            return torch.autograd.grad(logits[0, -1].max(), x)[0]

    depth = model.config.num_hidden_layers
    layers = sorted({round(i * (depth - 1) / 4) for i in range(5)})
    replay = record_layers(model, layers[:1], ids)[layers[0]].replay
    return {
        "stock forward": stock,
        "forward with our scan": ours,
        "capture of 5 layers": lambda: capture(model, ids, None, layers),
        "mean map of a layer": lambda: attention_map(replay.delta, replay.A, replay.B, replay.C),
        "forward and backward": gradient,
    }


def speeds(shape: Shape, dtype: torch.dtype, device: torch.device, ends: float) -> Iterator[Speed]:
    """Every work at one shape, as long as the time lasts."""
    try:
        model, ids = random_model(shape, dtype, device)
        todo = works(model, ids)
    except torch.cuda.OutOfMemoryError:
        yield Speed(shape.name, dtype, "all", None, None, None, "memory too small")
        return
    for work, function in todo.items():
        yield timed(shape, dtype, work, function, device, ends)


def random_model(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[MambaForCausalLM, Tensor]:
    """A model of this shape made on the device, and a text for it."""
    config = MambaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with device, torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = MambaForCausalLM(config)
    model = model.to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (1, shape.length), generator=generator)
    return model, ids.to(device)


def timed(
    shape: Shape,
    dtype: torch.dtype,
    work: str,
    function: Callable[[], Any],
    device: torch.device,
    ends: float,
) -> Speed:
    """Median of three runs after one that warms up; fewer where the time ends."""
    if time.monotonic() > ends:
        return Speed(shape.name, dtype, work, None, None, None, "no time left")
    try:
        first, peak = run_once(function, device), peak_gb(function, device)
        runs = [run_once(function, device) for _ in range(3) if time.monotonic() < ends]
    except torch.cuda.OutOfMemoryError:
        return Speed(shape.name, dtype, work, None, None, None, "memory too small")
    seconds = statistics.median(runs or [first])
    return Speed(shape.name, dtype, work, seconds, shape.length / seconds, peak)


def run_once(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run, until the device is done with it."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_gb(function: Callable[[], Any], device: torch.device) -> float | None:
    """Peak of the device's memory in one run above what was held before; None on a CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def table(rows: Sequence[NamedTuple]) -> str:
    """Rows of one kind as a Markdown table."""
    names = [name.replace("_", " ") for name in rows[0]._fields]
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "equal" if value else "differ"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def facts(device: torch.device) -> str:
    """What the figures depend on, as a Markdown list."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found = [kernel for kernel in KERNELS if importlib.util.find_spec(kernel)]
    return (
        f"- device: {device.type}, {name}\n"
        f"- versions: torch {torch.__version__}, transformers {transformers.__version__}\n"
        f"- packages of kernels that are installed: {', '.join(found) or 'none'}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables; with --save put them into benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "two tables: agreement with the CPU, and speed")
    parser.add_argument("--smoke", action="store_true", help="on the CPU: does every row run?")
    args = parser.parse_args(argv)
    on_device = torch.cuda.is_available() and not args.smoke
    if args.save and not on_device:
        raise ValueError(
            "--save is given, and there is no CUDA device: rows of a CPU are no result to keep"
        )
    device, shapes = torch.device("cuda" if on_device else "cpu"), SHAPES if on_device else TINY
    ends = time.monotonic() + SECONDS
    models = MODELS if on_device else MODELS[:1]
    agreed = [agreement(name, dtype, device) for name in progress(models, desc="agreement")
              for dtype in DTYPES]  # fmt: skip
    timings = [row for shape in shapes for dtype in DTYPES
               for row in speeds(shape, dtype, device, ends)]  # fmt: skip
    report = f"{facts(device)}\n{table(agreed)}\n{table(timings)}"
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

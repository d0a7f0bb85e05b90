"""Where a training run stands, kept in one safetensors file so that it can go on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from transformers import MambaForCausalLM

from demo_model.training_data import ROW_KINDS
from suite_plumbing.result_files import write_atomically

HISTORY_TOKENS = 500_000  # tokens between two points of the loss curve
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state, by its names in torch


@dataclass
class Progress:
    """Where a run stands; saved in the checkpoint's header."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Wall time of the training steps, pauses between a stop and a resumption left out."""
    losses: dict[str, float] = field(default_factory=dict)
    """Running mean by kind of row (0.99 of it stays each step), nats per token."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The loss curve: the tokens read and ``losses``, about every 500 000 tokens."""

    def count(self, tokens: int, losses: np.ndarray, kinds: np.ndarray) -> None:
        """Take one more step into account: the loss (rows,) and the kind (rows,) of its rows."""
        for index, name in enumerate(ROW_KINDS):
            if (kinds == index).any():
                loss = float(losses[kinds == index].mean())
                mean = self.losses.get(name, loss)
                self.losses[name] = mean + 0.01 * (loss - mean)
        if self.tokens // HISTORY_TOKENS < (self.tokens + tokens) // HISTORY_TOKENS:
            self.history.append({"tokens": self.tokens + tokens, **self.losses})
        self.step += 1
        self.tokens += tokens

    def __str__(self) -> str:
        """One line for the log."""
        losses = "  ".join(f"{name} {loss:.3f}" for name, loss in sorted(self.losses.items()))
        return (
            f"step {self.step}  {self.tokens / 1e6:.2f} M tokens  {self.seconds / 60:.1f} min  "
            f"loss: {losses}"
        )


def save_checkpoint(
    path: Path,
    model: MambaForCausalLM,
    optimizer: torch.optim.AdamW,
    progress: Progress,
    run_id: str,
) -> None:
    """Write weights, AdamW moments and progress as one safetensors file, whole or not at all."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach().contiguous()
        for key in MOMENTS:
            tensors[f"{key}.{name}"] = optimizer.state[parameter][key].contiguous()
    header = {"progress": json.dumps(asdict(progress)), "run_id": run_id}
    with write_atomically(path, "wb") as handle:
        handle.write(safetensors.torch.save(tensors, metadata=header))


def load_checkpoint(
    path: Path, model: MambaForCausalLM, optimizer: torch.optim.AdamW, run_id: str
) -> Progress:
    """Fill model and optimizer from a checkpoint.

    Raises ValueError when it is of another run (other texts or options) or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("run_id") != run_id:
                raise ValueError(
                    f"{path} belongs to a run with other texts or options; give those of that "
                    "run, or another --output-dir"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no checkpoint ({error}); remove it to start anew") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in MOMENTS}
    return Progress(**json.loads(header["progress"]))

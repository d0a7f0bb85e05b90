"""Where a result comes from: versions, command, commit, model, device, seed."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suite_plumbing.bundled import DEMO_MODEL_PATH, SUITE_DIR
from suite_plumbing.result_files import to_jsonable
from suite_plumbing.runs import current_run, new_run_id

SUITE_VERSION = "0.1.0"
"""Version of the suite; `pyproject.toml` reads it from here."""

SCHEMA_VERSION = "1.0"
"""Version of the result dict's layout: the first number changes when a key changes meaning."""

_VERSIONED_PACKAGES = ("torch", "transformers", "numpy", "scipy")

_KERNEL_PACKAGES = ("mamba_ssm", "causal_conv1d")


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and stored buffers as they are in memory.

    Over `state_dict()` in name order: name, dtype, shape, bytes of each. It tells apart models
    whose weights were changed after loading, and the same weights loaded in another dtype.
    Cost: one pass over the weights, about a second per gigabyte.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def provenance(
    model: nn.Module,
    *,
    command: Sequence[str] | str | None = None,
    seed: int | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Return what is needed to make a result again, ready for JSON.

    Keys: `suite`, `versions`, `command`, `model` (id, class, revision, weights hash, and the
    adapters in place: see `adapters_in`), `dtype`, `device`, `seed`, `kernels`, one key for each of
    `details`, and `run`. Whatever differs between two runs of one command stands under `run` alone:
    an id of the run, which its other files carry too, the time, and the command with its output
    folder, which `command` leaves out because the numbers do not depend on it.
    command: the argument list (`sys.argv`), or None when called from Python.
    """
    arguments = shlex.split(command) if isinstance(command, str) else list(command or [])
    result = {
        "suite": {"version": SUITE_VERSION, **_git_state()},
        "versions": {"python": platform.python_version()}
        | {name: _package_version(name) for name in _VERSIONED_PACKAGES},
        "command": _without_output_dir(arguments) or None,
        "model": _model_identity(model),
        "dtype": str(_first_parameter(model).dtype).removeprefix("torch."),
        "device": str(_first_parameter(model).device),
        "seed": seed,
        "kernels": {name: importlib.util.find_spec(name) is not None for name in _KERNEL_PACKAGES},
    }
    if clash := sorted(set(details) & (set(result) | {"run"})):
        raise ValueError(f"provenance details {clash} would overwrite keys of that name")
    run = current_run()
    run_id = new_run_id() if run is None else run.id
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return to_jsonable(
        result | details | {"run": {"id": run_id, "time": now, "command": arguments or None}}
    )


def adapters_in(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """Adapters that stand in a model's modules, by name; None where there are none.

    Of each its ``type``, in PEFT's words, the number of ``modules`` it changes, and whether it is
    ``active``: one that is put by, or switched off, is in the weights but not in the numbers.
    """
    found: dict[str, dict[str, Any]] = {}
    configs = getattr(model, "peft_config", None)
    for module in model.modules():
        # PEFT's layers keep what they wrap, and the parts of each adapter by its name.
        if not hasattr(module, "base_layer"):
            continue
        for name in _adapter_names(module):
            config = configs.get(name) if isinstance(configs, dict) else None
            kind = getattr(config, "peft_type", None)
            new = {"type": None if kind is None else str(getattr(kind, "value", kind)),
                   "modules": 0, "active": False}  # fmt: skip
            known = found.setdefault(name, new)
            known["modules"] += 1
            known["active"] |= _is_active(module, name)
    return found or None


def _adapter_names(module: nn.Module) -> list[str]:
    by_adapter = [child for child in module.children() if isinstance(child, nn.ModuleDict)]
    names = dict.fromkeys(name for child in by_adapter for name in child)
    return list(names) or [type(module).__name__]


def _is_active(module: Any, name: str) -> bool:
    active = getattr(module, "active_adapters", [name])
    is_merged = name in getattr(module, "merged_adapters", [])
    return is_merged or (name in active and not getattr(module, "disable_adapters", False))


def _first_parameter(model: nn.Module) -> Tensor:
    return next(model.parameters())


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_output_dir(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip_value = False
    for argument in arguments:
        if skip_value:
            skip_value = False
        elif argument == "--output-dir":
            skip_value = True
        elif not argument.startswith("--output-dir="):
            kept.append(argument)
    return kept


def _model_identity(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    name = str(getattr(config, "name_or_path", "") or "")
    if name and Path(os.path.realpath(name)) == DEMO_MODEL_PATH:
        name = DEMO_MODEL_PATH.name
    made_of = {key: getattr(model, key, None) for key in ("native_checkpoint", "own_model")}
    return {key: value for key, value in made_of.items() if value is not None} | {
        "id": name or None,
        "class": type(model).__name__,
        "revision": getattr(config, "_commit_hash", None),
        # Offloaded weights are not in memory to be read.
        "weights_sha256": None if _is_offloaded(model) else weights_sha256(model),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "adapters": adapters_in(model),
    }


def _is_offloaded(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _git_state() -> dict[str, Any]:
    """Commit of the suite's checkout and whether its files differ from it; None where unknown."""
    unknown = {"git_commit": None, "git_modified": None}
    # Installed into somebody else's repository, that repository's commit says nothing of us.
    if not (SUITE_DIR / ".git").exists():
        return unknown
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return unknown
    return {"git_commit": commit, "git_modified": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(SUITE_DIR), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

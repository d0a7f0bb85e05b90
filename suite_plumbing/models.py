"""Models and tokenizers: loaded from a folder or the hub, checked before anything runs on them.

Weights are read from safetensors, or, of a checkpoint of mamba_ssm's or mambapy's, from a file of
tensors in which nothing else is unpickled; no code that comes with a model is run. Bad input raises
ValueError.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from suite_plumbing.arguments import resolve_device, resolve_dtype
from suite_plumbing.bundled import model_place
from suite_plumbing.errors import reading
from suite_plumbing.loud_libraries import loading_bar_on_terminals, silence_kernel_advice
from suite_plumbing.messages import quoted, shortened
from suite_plumbing.model_folders import (
    TOKENIZER_FILES,
    check_model_folder,
    check_sizes,
    check_tokenizer_folder,
    config_of,
    read_object,
)
from suite_plumbing.native_checkpoints import is_native, native_tokenizer
from suite_plumbing.native_models import (
    model_of_modules,
    native_model,
    native_snapshot,
    other_name,
    register_own_model,
)
from suite_plumbing.paths import StrPath, user_path

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: StrPath,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    a_activation: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model for analysis, in eval mode, from a folder or the model hub.

    Runs no code that comes with a model. Weights of a folder that ``transformers`` wrote are read
    from safetensors; a checkpoint of mamba_ssm's or mambapy's is converted in memory, from
    safetensors or from a file of ``torch.save`` of which tensors alone are unpickled.
    "demo_model" is the bundled model where there is no folder of that name.
    dtype None is float32, whatever the weights are stored in.
    ``a_activation``: what the decay rates of a native Mamba-3 pass, "softplus" or "heavy_tail";
    its own configuration does not say. No other model asks for it.
    Raises ValueError, naming the file and what to do, for a folder that is missing, is no model,
    holds only pickled weights or a damaged file; for a configuration of a larger model than the
    weights hold, before memory is taken for it; for weights that lack parameters of the model (they
    would be random) or hold NaN or infinity; for a model that does not run on two tokens; and for
    a name that cannot be fetched.
    """
    target_device, target_dtype = resolve_device(device), resolve_dtype(dtype)
    silence_kernel_advice()
    name, folder = _local_or_hub(name_or_path, "model")
    native = native_snapshot(name) if folder is None else folder
    if native is not None and is_native(native):
        model: Any = native_model(native, target_dtype, a_activation)
        model.config._name_or_path = name
    else:
        model = _transformers_model(name, folder, target_dtype)
    _check_weights(model, name)
    model = model.to(target_device).eval()
    with reading(f"{_unloadable('model', name, folder)[0]} runs on no text"):
        _check_runs(model)
    return model


def _transformers_model(name: str, folder: Path | None, dtype: torch.dtype) -> PreTrainedModel:
    what, advice = _unloadable("model", name, folder)
    own = False
    held = _fetched(name, what, advice) if folder is None else folder
    if held is not None:
        shapes = check_model_folder(held)
        own = register_own_model(str(read_object(held / "config.json").get("model_type")))
        check_sizes(held, config_of(held), shapes)
    bars = nullcontext() if folder is None else loading_bar_on_terminals()
    with reading(what, advice), bars:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"])):
        raise ValueError(
            f"the weights of {quoted(name)} lack {len(absent)} of the model's parameters "
            f"({shortened(', '.join(absent[:3]), 120)}, ...), which would be random; get the "
            "complete weights"
        )
    if own and (beside := sorted(loading["unexpected_keys"])):
        raise ValueError(
            f"the weights of {quoted(name)} hold {len(beside)} tensors that the model does not "
            f"have ({shortened(', '.join(beside[:3]), 120)}); get the model's own config.json"
        )
    return model


@torch.no_grad()
def _check_runs(model: PreTrainedModel) -> None:
    """Run two tokens: what a configuration says may be wrong in ways that only a run shows."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
    size = getattr(model.config, "vocab_size", None)
    if logits.shape != (1, 2, size):
        raise ValueError(f"logits {tuple(logits.shape)} for a vocab_size of {quoted(size)}")


def _local_or_hub(name_or_path: StrPath, kind: str) -> tuple[str, Path | None]:
    """A model's or tokenizer's name for the loader, and its folder; None for a name on the hub."""
    name = model_place(os.fspath(name_or_path))
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name
    folder = user_path(name, f"{kind} folder")
    # What is no path may be a name on the hub: "model", "org/model".
    if looks_like_path or not name or folder.exists():
        return str(folder), folder
    return name, None


def _fetched(name: str, what: str, advice: str) -> Path | None:
    """The folder of what the hub has under a name, downloaded if need be, weights included.

    None where it holds no safetensors, of which the loader says what it will.
    """
    with reading(what, advice):
        patterns = ["config.json", "generation_config.json", "model*.safetensors*"]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    return folder if any(folder.glob("*.safetensors")) else None


def _check_weights(model: nn.Module, name: str) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = {key: value for key, value in tensors.items() if not value.is_meta}
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    if tensors and not known and not offloaded:
        raise ValueError(
            f"all weights of {quoted(name)} are on the meta device, without values; load the "
            "model by "
            "from_pretrained, on a device that holds them"
        )
    if any(value.is_inference() for value in known.values()):
        raise ValueError(
            f"the weights of {quoted(name)} were made in torch.inference_mode, which allows no "
            "gradients; load the model outside of it"
        )
    bad = [key for key, value in known.items() if not bool(torch.isfinite(value.detach()).all())]
    if bad:
        raise ValueError(
            f"{len(bad)} weight tensors of {quoted(name)} hold NaN or infinity: "
            f"{', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}; get intact weights, or load them in float32"
        )


def _unloadable(kind: str, name: str, folder: Path | None) -> tuple[str, str]:
    """What is said before and after the reason why a loader did not load this."""
    if folder is not None:
        return f"{kind} in folder {quoted(name)} cannot be loaded", ""
    return (
        f"{kind} {quoted(name)} is no folder here and could not be fetched from the model hub",
        "Check the name and the connection, or pass the folder of a downloaded model"
        f"{other_name(name)}",
    )


def load_tokenizer(name_or_path: StrPath) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved in a folder or on the hub; it pads on the left from then on.

    A native checkpoint without one, whose vocabulary is GPT-NeoX's, has that. Raises ValueError
    when there is none, or when it cannot be read.
    """
    name, folder = _local_or_hub(name_or_path, "tokenizer")
    native = native_snapshot(name) if folder is None else folder
    if native is not None and not any((native / file).is_file() for file in TOKENIZER_FILES):
        name = native_tokenizer(native) or name
        folder = None if native_tokenizer(native) else folder
    if folder is not None:
        # Without its files transformers would make up an empty tokenizer for some models.
        check_tokenizer_folder(folder)
    with reading(*_unloadable("tokenizer", name, folder)):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer("a", verbose=False)
    tokenizer.padding_side = "left"
    return tokenizer


def resolve_model(
    model: PreTrainedModel | nn.Module | StrPath,
    tokenizer: PreTrainedTokenizerBase | StrPath | None = None,
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, torch.device]:
    """Return (model in eval mode, tokenizer or None, device) from what a user passed.

    A model object stays on its device unless `device` is given, and is changed to eval mode in
    place, with a log line if it was training. One that is not `transformers`', but holds
    mamba_ssm's mixers, is put together as one that is. A name or path is loaded by `load_model`.
    tokenizer None stays None: `require_tokenizer` fetches the one beside the weights when needed.
    Raises ValueError for what is no model or tokenizer, and for weights that hold NaN or infinity,
    have no values (on the meta device), or allow no gradients (made in `torch.inference_mode`).
    """
    silence_kernel_advice()
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model, device=device)
    else:
        if isinstance(model, nn.Module):
            _check_weights(model, type(model).__name__)
        if not isinstance(model, PreTrainedModel):
            model = model_of_modules(model)
        if device is not None:
            nn.Module.to(model, resolve_device(device))
    if model.training:
        logger.info("the model was in training mode; it is in eval mode now")
        model.eval()
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(tokenizer)
    if not (tokenizer is None or callable(tokenizer)):
        raise ValueError(
            f"tokenizer is of type {type(tokenizer).__name__}; pass a transformers tokenizer, the "
            "name or folder of one, or None for the one beside the model's weights"
        )
    return model, tokenizer, execution_device(model)


def execution_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its inputs: its device, or that of its first layers if it is split.

    An offloaded model's parameters are on no device; ``accelerate`` then says where it computes.
    """
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return model.device


def require_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedTokenizerBase:
    """Return `tokenizer`, or the one saved beside the model's weights; ValueError if none is."""
    if tokenizer is not None:
        return tokenizer
    name = getattr(model.config, "name_or_path", "")
    how = "pass tokenizer=AutoTokenizer.from_pretrained(...), or token ids instead of text"
    if not name:
        raise ValueError(f"the model was not loaded from a folder, so it has no tokenizer; {how}")
    try:
        return load_tokenizer(name)
    except ValueError as error:
        raise ValueError(
            f"the model has no tokenizer beside its weights ({error}); {how}"
        ) from error


class ModelAnalyzer:
    """What the classes of the suite share: a model, and the results of earlier calls.

    ``model`` may be a name or a folder; ``tokenizer`` None is the one beside the model's weights.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        device: str | torch.device | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.tokenizer, self.device = resolve_model(model, tokenizer, device)

    def _earlier(self, name: str, method: str) -> Any:
        """What an earlier call left under ``name``, or an error that names the call to make."""
        if not hasattr(self, name):
            raise RuntimeError(f"nothing has been computed yet: call {method}(...) first")
        return getattr(self, name)

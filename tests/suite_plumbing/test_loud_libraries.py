"""The advice to install kernels is kept back wherever it comes from, and nothing else is."""

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import make_tiny_model
from transformers import logging as transformers_logging

from suite_plumbing.loud_libraries import (
    ADVISERS,
    _is_no_advice,
    loading_bar_on_terminals,
    silence_kernel_advice,
)

ADVICE = (
    "`selective_scan_fn` is falling back to its reference PyTorch implementation because "
    "`mamba_ssm` is not installed.",
    "The fast path is not available because one of `(selective_state_update)` is None.",
    "The fast path for Bamba will be used when running the model on a GPU",
)

OTHERS = ("`use_cache=True` is incompatible with gradient checkpointing.", "A fast path", "")


def lines_of(name: str, messages: tuple[str, ...]) -> list[str]:
    """What of these messages reaches a handler of the logger."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        for message in messages:
            logger.warning(message)
    finally:
        logger.removeHandler(handler)
    return seen


@pytest.mark.parametrize("name", ADVISERS)
def test_advice_is_kept_back_and_other_lines_pass(name: str) -> None:
    silence_kernel_advice()
    assert lines_of(name, (*ADVICE, *OTHERS)) == list(OTHERS)
    silence_kernel_advice()
    assert logging.getLogger(name).filters.count(_is_no_advice) == 1


def test_other_loggers_say_what_they_said() -> None:
    silence_kernel_advice()
    for name in ("transformers", "transformers.modeling_utils", "mine"):
        assert lines_of(name, (*ADVICE, *OTHERS)) == [*ADVICE, *OTHERS]


def test_every_module_of_this_version_that_advises_is_known() -> None:
    """The words are looked for in the sources of the models and in what they share."""
    root = Path(inspect.getfile(transformers)).parent
    advising = set()
    for path in [*root.glob("models/*/modeling_*.py"), root / "integrations" / "hub_kernels.py"]:
        text = path.read_text(encoding="utf-8")
        older = "The fast path is not available" in text and "selective_state_update" in text
        if older or "is falling back to its reference" in text:
            parts = path.relative_to(root.parent).with_suffix("").parts
            advising.add(".".join(parts))
    assert advising
    assert advising <= set(ADVISERS)


def test_a_bar_of_loading_is_shown_on_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> bool:
        with loading_bar_on_terminals():
            return transformers_logging.is_progress_bar_enabled()

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    transformers_logging.enable_progress_bar()
    assert not shown()
    assert transformers_logging.is_progress_bar_enabled()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert shown()
    transformers_logging.disable_progress_bar()
    assert not shown()
    assert not transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()


def test_a_class_and_a_model_object_run_without_a_line(tmp_path: Path, tiny_tokenizer) -> None:
    """In a process of its own: the advice comes once a process."""
    make_tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    code = (
        "from transformers import AutoModelForCausalLM, logging\n"
        "from attention_neurons import MambaAttentionNeurons\n"
        f"MambaAttentionNeurons({str(tmp_path)!r}).extract_attention_vectors('the old net', [0])\n"
        "logging.disable_progress_bar()\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "MambaAttentionNeurons(model).extract_attention_vectors('the old river', [0])\n"
    )
    root = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")

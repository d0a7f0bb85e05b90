"""Stand-ins shared by the tests: a tiny seeded Mamba, a tiny tokenizer, and a folder of both."""

import os
import sys
from pathlib import Path

from suite_plumbing.command_lines import wait_passively

if "torch" not in sys.modules:  # these settings are read once, when torch is loaded
    wait_passively()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Small tensors wait longer for a second thread than they take; processes share the cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.family_models import END_OF_TEXT, VOCAB_SIZE, make_tiny_tokenizer

__all__ = ["END_OF_TEXT", "VOCAB_SIZE", "make_tiny_model", "make_tiny_tokenizer"]


def make_tiny_model(seed: int = 0) -> MambaForCausalLM:
    """A random Mamba of 4 layers (d_model 32, d_inner 64, d_state 4), in float32, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    config = MambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=4,
        state_size=4,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MambaForCausalLM(config)
    # At initialisation D and the norms are all ones and A is the same in every channel: a test on
    # such a model would not notice two channels exchanged.
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_tiny_neox(seed: int = 0, num_layers: int = 3) -> GPTNeoXForCausalLM:
    """A GPT-NeoX (d_model 32, 4 heads) as its initialisation leaves it, in eval mode."""
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).eval()


@pytest.fixture
def tiny_model() -> MambaForCausalLM:
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder of the test's own with the model and its tokenizer, as save_pretrained leaves it."""
    return save_tiny_model(tmp_path / "tiny_model", tiny_tokenizer)


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model and its tokenizer as save_pretrained leaves them; returns the folder."""
    make_tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two_threads():
    """Torch with two threads within a test, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

"""Results for the tests of the report: a small byte-level model, and hostile texts."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from analysis_pipelines.analysis_results import Settings
from corrected_recursive_ssm_attention_analyzer import analyze
from suite_plumbing.texts import encode_texts

LONG_WORD = "a" * 5000
HOSTILE_TEXTS = (
    "Tom said <script>alert(1)</script> & left; </style><img src=x onerror=alert(2)>.",
    "Let $x_1$ be `a|b`, *c* and _d_; {{ 7 * 7 }} {% raw %} [x](y) # \\frac{1}{2}",
    "سلام، دنیا: این یک متن است.\nSecond line\tafter a tab.",
    "A family 👩‍👩‍👧 and a flag 🇫🇷, “quoted”, naïve café.",
    f"Before {LONG_WORD} after.",
)


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: any text comes back as it was; the long word is a few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([LONG_WORD, "the and of to in"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@cache
def byte_model() -> MambaForCausalLM:
    """Five random layers, d_inner 32, over the bytes."""
    config = MambaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=16,
        num_hidden_layers=5,
        state_size=4,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()


def analysed(texts, layers=(0, 2, 4), max_length=512, command=None):
    """The main analysis of texts by the byte-level model."""
    tokenizer = byte_tokenizer()
    encoded = encode_texts(tokenizer, list(texts), max_length)
    settings = Settings(list(layers), command=command)
    return analyze(byte_model(), encoded, tokenizer, settings)

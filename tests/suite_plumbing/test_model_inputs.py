"""Token ids and masks, however they are passed."""

from typing import Any

import numpy as np
import pytest
import torch

from suite_plumbing.model_inputs import encode_inputs, token_ids

TEXT = "the harbour lamp and the blue ledger"


def test_a_list_of_texts_is_one_padded_batch(tiny_model, tiny_tokenizer):
    texts = [TEXT, "the kettle"]
    ids, mask = encode_inputs(tiny_model, tiny_tokenizer, texts)
    short = len(tiny_tokenizer(texts[1])["input_ids"])
    assert mask.sum(1).tolist() == [ids.shape[1], short]
    assert bool((mask[1, -short:] == 1).all())
    padded = tiny_tokenizer(texts, padding=True, return_tensors="pt")
    again = encode_inputs(tiny_model, tiny_tokenizer, padded)
    assert torch.equal(again[0], ids)
    assert torch.equal(again[1], mask)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_ids_of_every_integer_dtype_are_the_same_ids(dtype: str) -> None:
    ids = np.arange(2, 9).astype(dtype)
    wanted = torch.arange(2, 9)[None]
    for given in (ids, ids.tolist(), list(ids), torch.as_tensor(ids), ids[None], tuple(ids)):
        found = token_ids("input_ids", given, 64)
        assert torch.equal(found, wanted)
        assert found.dtype is torch.int64


@pytest.mark.parametrize(
    "given", [[], [1.5], [True], ["a"], None, 5, [[1], [2, 3]], np.array([1j]), [2**64], {}, "ab"]
)
def test_what_is_no_list_of_ids_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(ValueError, match="input_ids (must be token ids|cannot be taken)") as caught:
        token_ids("input_ids", given, 64)
    assert "\n" not in str(caught.value)


def test_ids_beyond_the_vocabulary_are_named() -> None:
    for given in ([3, 64], np.array([3, 64], dtype=np.uint16)):
        with pytest.raises(ValueError, match="holds ids from 3 to 64; the model knows 0 to 63"):
            token_ids("input_ids", given, 64)
    with pytest.raises(ValueError, match="holds ids from -1"):
        token_ids("input_ids", [-1, 2], 64)

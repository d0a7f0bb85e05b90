"""Token ids and masks, however they are passed."""

import torch

from suite_plumbing.model_inputs import encode_inputs

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

"""Loss and prediction of each token: against the model's own logits."""

import math

import pytest
import torch

from analysis_pipelines.token_predictions import predictions_of_blocks, token_predictions
from suite_plumbing.errors import AnalysisError
from suite_plumbing.texts import encode_texts
from tests.conftest import make_tiny_model


def test_loss_and_prediction_are_those_of_the_models_logits(tiny_tokenizer):
    model = make_tiny_model()
    texts = encode_texts(tiny_tokenizer, ["One two three, one two three.", "Another"], 512)
    found = token_predictions(model, texts, tiny_tokenizer)
    for i, text in enumerate(texts):
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            log_p = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
        part = found[f"text_{i}"]
        assert part["loss"][0] is part["expected"][0] is part["expected_p"][0] is None
        assert len(part["loss"]) == len(text.input_ids)
        for t in range(1, len(text.input_ids)):
            # Three significant digits.
            assert part["loss"][t] == pytest.approx(
                -float(log_p[t - 1, text.input_ids[t]]), rel=6e-3
            )
            best = int(log_p[t - 1].argmax())
            assert part["expected"][t] == tiny_tokenizer.decode([best])
            assert part["expected_p"][t] == pytest.approx(math.exp(log_p[t - 1, best]), rel=6e-3)


def test_blocks_of_positions_change_nothing(tiny_tokenizer):
    ids = [3, 1, 4, 1, 5, 9, 2]
    logits = torch.randn(len(ids), 64, generator=torch.Generator().manual_seed(0))
    whole = predictions_of_blocks([logits], ids, tiny_tokenizer)
    assert [len(column) for column in whole.values()] == [len(ids)] * 3
    for size in (1, 2, 3, 6):  # the last block holds the last position alone where size is 6
        assert predictions_of_blocks(logits.split(size), ids, tiny_tokenizer) == whole


def test_logits_that_overflow_are_an_analysis_error(tiny_tokenizer):
    model = make_tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.inf)
    with pytest.raises(AnalysisError, match="logits hold NaN or infinity"):
        token_predictions(model, encode_texts(tiny_tokenizer, ["One two"], 512), tiny_tokenizer)

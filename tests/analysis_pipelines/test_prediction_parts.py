"""What is stored of each prediction: parts that sum to the model's own logit."""

import math

import pytest
import torch

from analysis_pipelines import prediction_parts as module
from analysis_pipelines.prediction_parts import prediction_parts
from analysis_pipelines.predictions import final_stream
from benchmarks.family_models import make_model
from suite_plumbing.errors import AnalysisError
from suite_plumbing.texts import encode_texts
from tests.conftest import make_tiny_model

TEXTS = ["One two three, one two three.", "Another text"]


def test_the_stored_parts_sum_to_the_models_logit(tiny_tokenizer):
    model = make_tiny_model()
    texts = encode_texts(tiny_tokenizer, TEXTS, 512)
    _, sections, tensors = prediction_parts(model, texts, tiny_tokenizer)
    for i, text in enumerate(texts):
        part, parts = sections[f"text_{i}"], tensors[f"text_{i}.prediction_parts"]
        with torch.no_grad():
            logits = model(torch.tensor([text.input_ids]), use_cache=False).logits[0]
        best = logits.max(-1)
        assert part["token"] == [tiny_tokenizer.decode([t]) for t in best.indices.tolist()]
        # Float32 rounding, and two scans.
        largest = float(logits.abs().max())
        assert part["logit"] == pytest.approx(best.values.tolist(), abs=1e-5 * largest)
        torch.testing.assert_close(parts.sum(1), best.values, rtol=0, atol=1e-5 * largest)
        assert part["mean_magnitude"] == pytest.approx(parts.abs().mean(0).tolist(), rel=1e-5)
        biases = [k for k, (_, path) in enumerate(part["parts"]) if path == "bias"]
        by_token = tensors[f"text_{i}.prediction_sources"].sum(1) + parts[:, biases].sum(1)
        torch.testing.assert_close(by_token, best.values, rtol=0, atol=1e-5 * largest)


def test_what_other_modules_of_a_hybrid_gave_is_a_part(tiny_tokenizer):
    model = make_model("jamba")
    texts = encode_texts(tiny_tokenizer, ["One two"], 512)
    texts = [type(text)(**{**vars(text), "input_ids": [3, 9, 4]}) for text in texts]
    _, sections, tensors = prediction_parts(model, texts, tiny_tokenizer)
    assert "other modules" in {path for _, path in sections["text_0"]["parts"]}
    found = tensors["text_0.prediction_parts"].sum(1).tolist()
    assert found == pytest.approx(sections["text_0"]["logit"], rel=1e-4, abs=1e-5)


def test_long_texts_and_many_are_limited(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 4)
    monkeypatch.setattr(module, "MAX_TEXTS", 1)
    texts = encode_texts(tiny_tokenizer, TEXTS, 512)
    _, sections, tensors = prediction_parts(make_tiny_model(), texts, tiny_tokenizer)
    assert list(sections) == ["text_0"]
    assert sections["text_0"]["num_tokens"] == 4
    assert tensors["text_0.prediction_sources"].shape == (4, 4)


def test_values_that_overflow_are_an_analysis_error(tiny_tokenizer):
    model = make_tiny_model()
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(math.inf)  # the stream itself stays finite
    with pytest.raises(AnalysisError, match="parts of logits are NaN or infinite"):
        prediction_parts(model, encode_texts(tiny_tokenizer, ["One two"], 512), tiny_tokenizer)


def test_a_text_whose_stream_is_known_is_not_read_to_its_end(tiny_tokenizer, monkeypatch):
    model, texts = make_tiny_model(), encode_texts(tiny_tokenizer, TEXTS, 512)
    losses, _, tensors = prediction_parts(model, texts, tiny_tokenizer)
    streams = {tuple(text.input_ids): final_stream(model, text.input_ids) for text in texts}
    monkeypatch.delattr(module, "final_stream")
    found = prediction_parts(model, texts, tiny_tokenizer, streams)
    assert found.losses == losses
    assert all(torch.equal(found.tensors[name], x) for name, x in tensors.items())


def test_parts_that_do_not_sum_to_the_logits_are_an_analysis_error(tiny_tokenizer):
    model, texts = make_tiny_model(), encode_texts(tiny_tokenizer, TEXTS, 512)
    model.backbone.layers[2].register_forward_pre_hook(lambda block, args: (1 + args[0],))
    with pytest.raises(AnalysisError, match="the parts of a logit do not sum to it"):
        prediction_parts(model, texts, tiny_tokenizer)

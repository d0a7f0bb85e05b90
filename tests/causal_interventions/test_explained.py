"""What is explained, and the baselines that stand in for a token."""

import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model

from causal_interventions.explained import explain
from causal_interventions.targets import resolve_target

IDS = torch.tensor([5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12])
LOGIT = resolve_target("logit")


def test_baselines_are_what_they_say():
    model = make_tiny_model()
    weight = model.get_input_embeddings().weight.detach()
    for baseline, vector, name in [
        ("mean", weight.mean(0), "mean"),
        ("zero", torch.zeros(32), "zero"),
        ("padding", weight[0], "token 0"),
        (7, weight[7], "token 7"),
    ]:
        explained = explain(model, IDS, LOGIT, baseline=baseline)
        assert torch.equal(explained.baseline, vector)
        assert explained.baseline_name == name


def test_tokens_of_another_text_stand_in_place_by_place():
    model, other = make_tiny_model(), list(range(20, 32))
    explained = explain(model, IDS, LOGIT, baseline=other)
    assert explained.baseline_name == "another text"
    keep = torch.ones(2, len(IDS), dtype=torch.bool)
    keep[0, 4] = keep[1, 7] = False
    for values, place in zip(explained.values(keep).tolist(), (4, 7), strict=True):
        ids = IDS.clone()
        ids[place] = other[place]
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, -1]
        # Two float32 scans of one text.
        assert values == pytest.approx(float(logits[explained.target.token]), abs=1e-5)


def test_bad_input_is_refused_with_what_is_allowed():
    model = make_tiny_model()
    with pytest.raises(ValueError, match=r"baseline is 'median'; .* mean, padding, zero, a token"):
        explain(model, IDS, LOGIT, baseline="median")
    with pytest.raises(ValueError, match="baseline is 64"):
        explain(model, IDS, LOGIT, baseline=VOCAB_SIZE)
    with pytest.raises(
        ValueError, match="input_ids holds ids from 3 to 99; the model knows 0 to 63"
    ):
        explain(model, [3, 99], LOGIT)
    with pytest.raises(ValueError, match="input_ids must be token ids"):
        explain(model, torch.zeros(0, dtype=torch.long), LOGIT)
    with pytest.raises(ValueError, match="num_steps is 0"):
        explain(model, IDS, LOGIT, num_steps=0)
    with pytest.raises(ValueError, match="baseline has 3 token ids, the text 12; pass as many"):
        explain(model, IDS, LOGIT, baseline=[1, 2, 3])
    with pytest.raises(ValueError, match="baseline holds ids from 64 to 64; the model knows 0 to"):
        explain(model, IDS, LOGIT, baseline=[64] * 12)
    with pytest.raises(ValueError, match="baseline is None .NoneType.; it must be an integer"):
        explain(model, IDS, LOGIT, baseline=None)  # type: ignore[arg-type]

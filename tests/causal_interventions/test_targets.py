"""Targets: each f against its formula, pinning, padding, and what cannot be meant."""

import math

import pytest
import torch

from causal_interventions.targets import TARGETS, resolve_target, resolve_token


def make_logits(batch: int = 2, length: int = 5, vocabulary: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, length, vocabulary, generator=generator, dtype=torch.float64)


IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def test_log_probability_of_a_token_is_its_log_softmax():
    logits = make_logits()
    f = resolve_target("log_probability", token=3, position=1)(logits, IDS)
    p = logits[:, 1].exp()
    # Two float64 computations of one number.
    torch.testing.assert_close(f, (p[:, 3] / p.sum(1)).log(), rtol=1e-12, atol=0)


def test_logit_and_difference_are_read_off():
    logits = make_logits()
    assert torch.equal(resolve_target("logit", token=6)(logits, IDS), logits[:, -1, 6])
    f = resolve_target("logit_difference", token=6, contrast=0, position=-2)(logits, IDS)
    assert torch.equal(f, logits[:, -2, 6] - logits[:, -2, 0])


def test_loss_is_the_mean_over_the_tokens_that_follow():
    logits = make_logits()
    f = resolve_target("loss")(logits, IDS)
    for row in range(2):
        terms = [-logits[row, t].log_softmax(-1)[IDS[row, t + 1]].item() for t in range(4)]
        assert f[row].item() == pytest.approx(sum(terms) / 4, rel=1e-12)


def test_without_a_token_the_one_that_follows_is_meant_and_at_the_end_the_likeliest():
    logits = make_logits()
    pinned = resolve_target("logit", position=1).pin(logits, IDS)
    assert pinned.token.tolist() == IDS[:, 2].tolist()
    pinned = resolve_target("logit").pin(logits, IDS)
    assert pinned.token.tolist() == logits[:, -1].argmax(-1).tolist()


def test_without_a_contrast_the_likeliest_other_token_is_meant():
    logits = make_logits()
    f = resolve_target("logit_difference")(logits, IDS)
    best = logits[:, -1].topk(2).values
    assert torch.equal(f, best[:, 0] - best[:, 1])


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_target(name, side):
    logits = make_logits()
    pad_ids, pad_logits = torch.zeros(2, 3, dtype=torch.long), 9 * make_logits(2, 3)
    ones, zeros = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long)
    order = 1 if side == "right" else -1
    ids, mask, padded = (
        torch.cat(pair[::order], 1)
        for pair in ((IDS, pad_ids), (ones, zeros), (logits, pad_logits))
    )
    target = resolve_target(name)
    # The loss adds zeros for the padding, in another order: float64 rounding.
    torch.testing.assert_close(target(padded, ids, mask), target(logits, IDS), rtol=1e-12, atol=0)
    if name != "loss":
        target = resolve_target(name, position=2)
        assert torch.equal(target(padded, ids, mask), target(logits, IDS))


def test_a_pinned_target_keeps_its_tokens_when_the_prediction_changes():
    logits = make_logits(1)
    pinned = resolve_target("logit").pin(logits, IDS[:1])
    variants = make_logits(4) + 3.0
    token = int(logits[0, -1].argmax())
    assert torch.equal(pinned(variants), variants[:, -1, token])
    assert torch.equal(pinned.for_kept_logits()(variants[:, -1:]), pinned(variants))
    assert pinned.reads_one_position
    assert not resolve_target("loss").pin(logits, IDS[:1]).reads_one_position


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_target_has_the_gradient_of_its_value(name):
    logits = make_logits().requires_grad_()
    pinned = resolve_target(name).pin(logits, IDS)
    assert torch.autograd.gradcheck(pinned, (logits,))


def test_tokens_are_resolved_as_the_vocabulary_spells_them_or_as_text(tiny_tokenizer):
    vocabulary = tiny_tokenizer.get_vocab()
    assert resolve_token("Ġ", tiny_tokenizer) == vocabulary["Ġ"]
    assert resolve_token(" ", tiny_tokenizer) == vocabulary["Ġ"]
    assert resolve_token(5, None) == 5
    assert resolve_token(None, None) is None
    assert resolve_target("logit", tiny_tokenizer, token=" ").token_id == vocabulary["Ġ"]


def test_a_token_outside_the_vocabulary_is_refused_with_what_to_do(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"token 'zebra zebra' .* splits it into \['"):
        resolve_token("zebra zebra", tiny_tokenizer)
    with pytest.raises(ValueError, match="token '€' is not in the vocabulary: it has no such"):
        resolve_token("€", tiny_tokenizer)
    with pytest.raises(ValueError, match="no tokenizer; pass one, or a token id"):
        resolve_token(" the", None)
    # Half of a surrogate pair, which no tokenizer takes as text.
    with pytest.raises(ValueError, match=r"token '\\ud800' cannot be tokenized"):
        resolve_token("\ud800", tiny_tokenizer)
    with pytest.raises(ValueError, match="token is 1.5 of type float"):
        resolve_token(1.5, tiny_tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token 7 .* ids 0 to 6"):
        resolve_target("logit", token=7)(make_logits(), IDS)


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(
        ValueError, match="target is 'probability'; .* log_probability, logit, logit_diff"
    ):
        resolve_target("probability")


def test_arguments_that_a_target_does_not_take_are_refused():
    with pytest.raises(ValueError, match="'loss' is a mean over the whole text"):
        resolve_target("loss", token=1)
    with pytest.raises(ValueError, match="only the target 'logit_difference' takes one"):
        resolve_target("logit", contrast=1)
    with pytest.raises(ValueError, match="both token 2: their difference is 0"):
        resolve_target("logit_difference", token=2, contrast=2)
    with pytest.raises(ValueError, match="position is 1.0; pass a whole number"):
        resolve_target("logit", position=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position is 5, but the shortest text has 5 tokens"):
        resolve_target("logit", position=5)(make_logits(), IDS)
    with pytest.raises(ValueError, match="'loss' needs texts of 2 tokens"):
        resolve_target("loss")(make_logits(1, 1), IDS[:1, :1])


def test_uniform_logits_give_the_closed_form():
    logits = torch.zeros(2, 5, 8)
    # ln 8 is rounded to float32.
    assert resolve_target("loss")(logits, IDS).tolist() == pytest.approx([math.log(8)] * 2, 1e-6)

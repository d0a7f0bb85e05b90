"""Scalar targets of a language model: what an attribution or a gradient explains.

A target is a number f for each text, a differentiable function of the logits. ``TARGETS`` holds
them by name; ``resolve_target`` turns a name and tokens, as a user writes them, into a ``Target``.

``Target.pin`` fixes the tokens that f is about on the unperturbed text. What is evaluated on
perturbed inputs afterwards is the same f, and not that of whatever the model predicts by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from suite_plumbing.arguments import LARGEST_INT, int_or_none, validate_choice, validate_int
from suite_plumbing.messages import quoted
from suite_plumbing.texts import clean_token, tokenized

DEFAULT_TARGET = "log_probability"


@dataclass(frozen=True, eq=False)
class PinnedTarget:
    """A target with its position and tokens fixed for each text of a batch.

    Called with logits (b, l, V) it returns f, (b,), on the autograd graph of the logits. A target
    pinned on one text, b = 1, applies to any number of variants of that text.
    """

    name: str
    """key of ``TARGETS``"""
    position: Tensor
    """(b,) index along l of the logits that are read; not read by the target "loss" """
    token: Tensor
    """(b,) token id whose prediction is explained; not read by the target "loss" """
    contrast: Tensor
    """(b,) token id that it is compared with; read by "logit_difference" alone"""
    labels: Tensor
    """(b, l) token that follows each position, -1 where none does; read by "loss" alone"""

    def __call__(self, logits: Tensor) -> Tensor:
        return TARGETS[self.name](logits, self)

    @property
    def reads_one_position(self) -> bool:
        """Whether f needs the logits of ``position`` alone."""
        return self.name != "loss"

    def for_kept_logits(self) -> PinnedTarget:
        """The same target for logits (b, 1, V) of its position alone."""
        return replace(self, position=torch.zeros_like(self.position))


@dataclass(frozen=True)
class Target:
    """A target as asked for: its name, the position and the tokens, checked."""

    name: str
    """key of ``TARGETS``"""
    position: int
    """which token's next-token prediction is explained, within a text; negative from its end"""
    token_id: int | None
    """token explained; None: the token that follows in the text, and at its end the likeliest"""
    contrast_id: int | None
    """second token of a difference; None: the likeliest other than the first"""

    def __call__(
        self, logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """f (b,) of logits (b, l, V); see :meth:`pin`."""
        return self.pin(logits, input_ids, attention_mask)(logits)

    @torch.no_grad()
    def pin(
        self, logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> PinnedTarget:
        """Fix position and tokens on unperturbed logits (b, l, V) of token ids (b, l).

        ``attention_mask`` (b, l) is 0 at padding, on either side. Raises ValueError for a position
        outside a text or a token id outside the logits' vocabulary.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        labels = _next_tokens(input_ids, mask).to(logits.device)
        if self.name == "loss" and not bool((labels >= 0).any(1).all()):
            raise ValueError("target 'loss' needs texts of 2 tokens or more: one has no next token")
        position = _column(self.position, mask).to(logits.device)
        rows = torch.arange(len(labels), device=logits.device)
        token = _or_likeliest(self._checked(self.token_id, logits), labels[rows, position])
        here = logits[rows, position].float()
        token = torch.where(token < 0, here.argmax(-1), token)
        others = here.scatter(1, token[:, None], -torch.inf).argmax(-1)
        contrast = _or_likeliest(self._checked(self.contrast_id, logits), others)
        return PinnedTarget(self.name, position, token, contrast, labels)

    @staticmethod
    def _checked(token_id: int | None, logits: Tensor) -> int | None:
        if token_id is not None and not 0 <= token_id < logits.shape[-1]:
            raise ValueError(
                f"token {token_id} is not in the vocabulary; the model knows ids 0 to "
                f"{logits.shape[-1] - 1}"
            )
        return token_id

    def to_dict(self) -> dict:
        """The target for JSON."""
        return {
            "name": self.name,
            "position": self.position,
            "token_id": self.token_id,
            "contrast_id": self.contrast_id,
        }


def resolve_target(
    name: str = DEFAULT_TARGET,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    token: str | int | None = None,
    contrast: str | int | None = None,
    position: int = -1,
) -> Target:
    """The target that a user's words mean.

    ``name`` is one of ``TARGETS``. ``token`` and ``contrast`` are token ids, or tokens as the
    vocabulary spells them or as text (" the"); text needs the tokenizer. ``position`` is the token
    after which the prediction is read, from the text's start, or from its end when negative.
    Raises ValueError for an unknown name (listing the known ones), a token that is not one token
    of the vocabulary, and tokens that the target does not take.
    """
    validate_choice("target", name, TARGETS)
    place = int_or_none(position)
    if place is None or abs(place) > LARGEST_INT:
        raise ValueError(
            f"position is {quoted(position)}; pass a whole number, negative from the end"
        )
    if name == "loss" and (token is not None or place != -1):
        raise ValueError("target 'loss' is a mean over the whole text: pass no token or position")
    if name != "logit_difference" and contrast is not None:
        raise ValueError(
            f"contrast is {quoted(contrast)}; only the target 'logit_difference' takes one"
        )
    token_id, contrast_id = resolve_token(token, tokenizer), resolve_token(contrast, tokenizer)
    if token_id is not None and token_id == contrast_id:
        raise ValueError(f"token and contrast are both token {token_id}: their difference is 0")
    return Target(name, place, token_id, contrast_id)


def resolve_token(token: str | int | None, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """Id of one token, given as an id, as the vocabulary spells it, or as text; None stays None.

    Raises ValueError for text that is not exactly one token, saying how it is split.
    """
    number = int_or_none(token)
    if token is None or number is not None:
        return number if number is None else validate_int("token", number, 0)
    if not isinstance(token, str):
        raise ValueError(
            f"token is {quoted(token)} of type {type(token).__name__}; pass text or an id"
        )
    if tokenizer is None:
        raise ValueError(
            f"token is {quoted(token)}, but there is no tokenizer; pass one, or a token id"
        )
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    shown = f"token {quoted(token)}"
    ids = list(tokenized(tokenizer, token, shown, add_special_tokens=False)["input_ids"])
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    pieces = tokenizer.convert_ids_to_tokens(ids)
    how = (
        f"the tokenizer splits it into {quoted(pieces)}"
        if len(ids) > 1
        else "it has no such characters"
    )
    raise ValueError(
        f"token {quoted(token)} is not in the vocabulary: {how}. {_nearest(token, vocabulary)}Pass "
        "one token; a word in the middle of a text usually has its space in front, as in ' the'"
    )


def _nearest(token: str, vocabulary: Iterable[str]) -> str:
    """A sentence that names the vocabulary's nearest spellings; nothing where none is near."""
    spelled = {clean_token(name) for name in vocabulary}
    near = get_close_matches(token[:40], sorted(spelled), n=3)
    return f"The nearest spellings are {', '.join(map(repr, near))}. " if near else ""


def _logit(logits: Tensor, pinned: PinnedTarget) -> Tensor:
    return _picked(_at_position(logits, pinned), pinned.token)


def _log_probability(logits: Tensor, pinned: PinnedTarget) -> Tensor:
    return _picked(_at_position(logits, pinned).log_softmax(-1), pinned.token)


def _logit_difference(logits: Tensor, pinned: PinnedTarget) -> Tensor:
    here = _at_position(logits, pinned)
    return _picked(here, pinned.token) - _picked(here, pinned.contrast)


def _loss(logits: Tensor, pinned: PinnedTarget) -> Tensor:
    labels = pinned.labels.expand(len(logits), -1)
    counted = labels >= 0
    log_p = logits.log_softmax(-1).gather(2, labels.clamp_min(0)[..., None]).squeeze(2)
    return -(log_p * counted).sum(1) / counted.sum(1)


TARGETS: dict[str, Callable[[Tensor, PinnedTarget], Tensor]] = {
    "log_probability": _log_probability,
    "logit": _logit,
    "logit_difference": _logit_difference,
    "loss": _loss,
}
"""f by name, each (logits (b, l, V), pinned) -> (b,): ln p(token | text up to the position), in
nats; its logit; its logit minus that of the contrast; the mean of -ln p(next token) over the text,
in nats."""


def _at_position(logits: Tensor, pinned: PinnedTarget) -> Tensor:
    """(b, V) logits of the pinned position."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, pinned.position.expand(len(logits))]


def _picked(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(1, tokens.expand(len(values))[:, None]).squeeze(1)


def _next_tokens(input_ids: Tensor, mask: Tensor) -> Tensor:
    """(b, l) token after each position; -1 where that is padding or the text's end."""
    following = torch.full_like(input_ids, -1)
    both = mask[:, 1:].bool() & mask[:, :-1].bool()
    following[:, :-1] = torch.where(both, input_ids[:, 1:], -1)
    return following


def _column(position: int, mask: Tensor) -> Tensor:
    """(b,) column of the token that ``position`` means in each text, padding not counted."""
    lengths = mask.sum(1)
    index = position + lengths if position < 0 else torch.full_like(lengths, position)
    if bool(((index < 0) | (index >= lengths)).any()):
        raise ValueError(
            f"position is {position}, but the shortest text has {int(lengths.min())} tokens; "
            "positions count from 0, or from -1 at the end"
        )
    return mask.long().argmax(1) + index


def _or_likeliest(token_id: int | None, otherwise: Tensor) -> Tensor:
    return otherwise if token_id is None else torch.full_like(otherwise, token_id)

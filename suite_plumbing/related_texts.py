"""Related texts: what of a text has been read before, and which texts are copies of one another.

A causal model repeats itself exactly on a shared beginning: a token with its whole history, read
before, is one observation, whether the rest of the text is new or not. An exact repeat is the
special case that has nothing new; its tokens, counted again, would be evidence that there is not.

After a changed word the history is another, and yet near copies differ little. Texts of which one
shares more than MAX_SHARED of its n-grams of GRAM tokens with another form one group: near copies,
minimal pairs, few-shot prompts, overlapping windows. Texts of fewer than SHORT_TEXT tokens are also
compared, among themselves, by n-grams of SHORT_GRAM: more than MAX_SHARED_SHORT of them in common
have those that were made on one template, whose gaps leave no long n-gram whole. Texts shorter than
twice GRAM are compared by these alone, and by MAX_SHARED. A group is one sample where texts are
counted, and is moved together where a null moves texts. Every text has an offset: where it lies on
the axis of its group, so that what two texts share stands at one place; it is the one at which most
n-grams agree.

Within a group a token is new only where it, or one of the GRAM - 1 (SHORT_GRAM - 1) before it, is:
what a relative has at the same place of the axis after the same tokens is the same observation
again, or next to it, whatever stood further back. A copy with one word changed adds that word and
what follows close upon it, a window what the one before it did not hold.

Texts are told one after another, so that a stream needs to keep none of them: of each token the
hash of what was read up to it, and that of the n-gram that ends there. Two streams that differ in
the order of texts differ in which copy counts. What this cannot see: templates of SHORT_TEXT tokens
or more with gaps closer than GRAM, paraphrases, translations, and
texts of one author or topic, which are related by other things than their tokens.

Cost: two hashes a token, three in short texts; memory about 200 bytes for each distinct token of a
stream, half as much again in short texts and where n-grams repeat.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

GRAM = 8
"""Tokens of an n-gram."""

SHORT_GRAM = 3
"""Tokens of an n-gram of short texts."""

SHORT_TEXT = 64
"""Tokens from which on short n-grams are no longer compared: long texts share many by chance."""

MAX_SHARED = 0.2
"""Share of its n-grams that a text may have in common with another and stay unrelated."""

MAX_SHARED_SHORT = 1 / 3
"""The same of short n-grams: a template with a gap of one token in five shares 2 in 5."""


Gram = tuple[int, int]
"""Size and hash of an n-gram."""


class Reading(NamedTuple):
    """What one text adds to those before it."""

    num_tokens: int
    num_seen: int
    """tokens at its beginning that an earlier text began with too"""
    same_as: int | None
    """number of the earlier text that begins with the whole of this one; None if there is none"""
    group: int
    """number of the first text of its group; its own where it is related to none before it"""
    offset: int
    """where it begins on the axis of its group, of which the first text begins at 0"""
    again: tuple[tuple[int, int], ...] = ()
    """stretches, from the first token to that after the last, that a relative read before has at
    the same places of the axis; they may reach into the first `num_seen` tokens"""


class SeenTexts:
    """The texts read so far, as hashes: tell it each text once, in order."""

    def __init__(self) -> None:
        self._prefixes: dict[int, int] = {}
        self._grams: dict[Gram, tuple[int, int]] = {}
        # What `_grams` does not hold of n-grams that come several times: n-gram, group, place.
        self._more: set[tuple[Gram, int, int]] = set()
        # Of each text and size of n-grams, how many different ones.
        self._distinct: dict[tuple[int, int], int] = {}
        self._parents: list[int] = []
        self._offsets: list[int] = []

    def add(self, tokens: Sequence[Hashable]) -> Reading:
        """Read a text: token ids, or anything hashable that stands for a token."""
        number = len(self._parents)
        num_seen, same_as = self._shared_beginning(tokens, number)
        by_size = {size: _grams(tokens, size) for size in _sizes(len(tokens))}
        size, related = self._related(by_size, len(tokens), number)
        if same_as is not None:
            related.add(same_as)  # too short for n-grams
        group, offset = self._joined(by_size[size], related, number)
        self._parents.append(group)
        self._offsets.append(offset)
        again = self._keep(by_size, size, number)
        return Reading(len(tokens), num_seen, same_as, self.group(number), offset, again)

    def group(self, number: int) -> int:
        """The group of a text as it stands now: a later text may have joined two."""
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def _is_known(self, gram: Gram, group: int, place: int) -> bool:
        """Whether a text of the group has this n-gram at this place of the axis."""
        owner, at = self._grams.get(gram, (-1, 0))
        if owner >= 0 and self._offsets[owner] + at == place and self.group(owner) == group:
            return True
        return (gram, group, place) in self._more

    def _shared_beginning(self, tokens: Sequence[Hashable], number: int) -> tuple[int, int | None]:
        num_seen, state, same_as = 0, 0, None
        for t, token in enumerate(tokens):
            state = hash((state, token))
            owner = self._prefixes.setdefault(state, number)
            if owner != number:
                num_seen, same_as = t + 1, owner
        return num_seen, same_as if num_seen == len(tokens) else None

    def _related(
        self, by_size: Mapping[int, Sequence[Gram]], length: int, number: int
    ) -> tuple[int, set[int]]:
        """Texts that share much with one of these n-grams, and the longest size that says so."""
        related: set[int] = set()
        longest = 0
        for size, grams in by_size.items():
            different = set(grams)
            self._distinct[number, size] = len(different)
            shared = Counter(self._grams[gram][0] for gram in different if gram in self._grams)
            most = MAX_SHARED if size == GRAM or length < 2 * GRAM else MAX_SHARED_SHORT
            found = {
                other for other, count in shared.items()
                if count > most * min(len(different), self._distinct[other, size])
            }  # fmt: skip
            longest = max(longest, size if found else 0)
            related |= found
        return longest or max(by_size), related

    def _joined(self, grams: Sequence[Gram], related: set[int], number: int) -> tuple[int, int]:
        """Group and offset of a text with these n-grams; joins the groups that it ties."""
        if not related:
            return number, 0
        first, *others = sorted({self.group(other) for other in related})
        for other in others:
            self._parents[other] = first
        places: Counter[int] = Counter()
        for place, gram in enumerate(grams):
            owner, at = self._grams.get(gram, (number, 0))
            if owner in related and self.group(owner) == first:
                places[self._offsets[owner] + at - place] += 1
        return first, places.most_common(1)[0][0] if places else 0

    def _keep(
        self, by_size: Mapping[int, Sequence[Gram]], size: int, number: int
    ) -> tuple[tuple[int, int], ...]:
        """Keep the n-grams of a text, and say where those of this size were known."""
        group, offset = self.group(number), self._offsets[number]
        again: list[bool] = []
        for own, grams in by_size.items():
            known = [self._is_known(gram, group, offset + at) for at, gram in enumerate(grams)]
            for at, gram in enumerate(grams):
                if self._grams.setdefault(gram, (number, at)) != (number, at) and not known[at]:
                    self._more.add((gram, group, offset + at))
            if own == size:  # a token by the n-gram that ends there, the first ones by the first
                again = [*known[:1] * (size - 1), *known]
        return _stretches(again)


def _sizes(length: int) -> tuple[int, ...]:
    """Sizes of the n-grams by which a text is compared."""
    if length < 2 * GRAM:
        return (SHORT_GRAM,)
    return (GRAM, SHORT_GRAM) if length < SHORT_TEXT else (GRAM,)


def _grams(tokens: Sequence[Hashable], size: int) -> list[Gram]:
    return [(size, hash(tuple(tokens[i : i + size]))) for i in range(len(tokens) - size + 1)]


def _stretches(flags: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """Where flags are set: from the first to that after the last of each stretch."""
    ends, runs = 0, []
    for is_set, run in groupby(flags):
        begin, ends = ends, ends + len(list(run))
        if is_set:
            runs.append((begin, ends))
    return tuple(runs)


def readings(texts: Iterable[Sequence[Hashable]]) -> list[Reading]:
    """What each of these texts adds, with groups as they stand after the last of them."""
    return list(_readings(tuple(map(tuple, texts))))


@functools.lru_cache(maxsize=8)
def _readings(texts: tuple[tuple[Hashable, ...], ...]) -> tuple[Reading, ...]:
    """Kept, because every statistic of some texts asks for theirs."""
    seen = SeenTexts()
    read = [seen.add(tokens) for tokens in texts]
    return tuple(one._replace(group=seen.group(number)) for number, one in enumerate(read))

"""Related texts: what was read before against comparison of all texts, and groups of each kind."""

import itertools

import numpy as np
import pytest

from suite_plumbing.related_texts import SeenTexts, readings


def text(seed, length=100, vocabulary=5000):
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


def naive_seen(texts):
    """Longest beginning that each text shares with an earlier one."""
    shared = []
    for i, own in enumerate(texts):
        lengths = [
            len(list(itertools.takewhile(lambda pair: pair[0] == pair[1],
                                         zip(own, other, strict=False))))
            for other in texts[:i]
        ]  # fmt: skip
        shared.append(max(lengths, default=0))
    return shared


def test_what_was_read_before_is_the_longest_shared_beginning():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, rng.integers(1, 9)).tolist() for _ in range(200)]
    read = readings(texts)
    assert [one.num_seen for one in read] == naive_seen(texts)
    for i, one in enumerate(read):
        whole = one.num_seen == len(texts[i])
        assert (one.same_as is not None) == whole
        if one.same_as is not None:
            assert one.same_as < i
            assert texts[one.same_as][: len(texts[i])] == texts[i]
    # Every distinct token with its history counts once.
    distinct = {tuple(one[: t + 1]) for one in texts for t in range(len(one))}
    assert sum(one.num_tokens - one.num_seen for one in read) == len(distinct)


def changed(own, place, tokens=(-1,)):
    return [*own[:place], *tokens, *own[place + len(tokens) :]]


CASES = {
    "unrelated": ([text(1), text(2)], [0, 1], [0, 0]),
    "exact repeat": ([text(1), text(2), text(1)], [0, 1, 0], [0, 0, 0]),
    "beginning of another": ([text(1)[:60], text(1)], [0, 0], [0, 0]),
    "one word changed": ([text(1), changed(text(1), 50)], [0, 0], [0, 0]),
    "first word changed": ([text(1), changed(text(1), 0)], [0, 0], [0, 0]),
    "words put in": ([text(1), [*text(1)[:3], -1, -2, *text(1)[3:]]], [0, 0], [0, -2]),
    "overlapping windows": ([text(1, 200)[:100], text(1, 200)[60:160]], [0, 0], [0, 60]),
    "a quotation": ([text(1), [*text(2)[:50], *text(1)[:15], *text(2)[65:]]], [0, 1], [0, 0]),
    "a short one inside a long one": ([text(1)[40:60], text(1)], [0, 0], [0, -40]),
    "joined by a third": (
        [text(1), text(2), [*text(1)[50:], *text(2)[:50]]],
        [0, 0, 0],
        [0, 0, 50],
    ),
    "gaps in a template": (
        [text(1, 20), changed(changed(text(1, 20), 5), 14, (-2,)), text(2, 20)],
        [0, 0, 2],
        [0, 0, 0],
    ),
    "short texts that share a phrase": (
        [text(1, 40), [*text(2, 15), *text(1, 40)[15:22], *text(2, 40)[22:]]],
        [0, 1],
        [0, 0],
    ),
    "short minimal pair": ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]], [0, 0], [0, 0]),
    "two tokens twice": ([[1, 2], [3, 4], [1, 2]], [0, 1, 0], [0, 0, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_and_where_texts_lie_in_them(case):
    texts, groups, offsets = CASES[case]
    read = readings(texts)
    assert [one.group for one in read] == groups
    assert [one.offset for one in read] == offsets


def test_a_stream_tells_groups_as_they_come():
    seen = SeenTexts()
    assert [seen.add(one).group for one in (text(1), text(2))] == [0, 1]
    seen.add([*text(1)[50:], *text(2)[:50]])
    assert [seen.group(i) for i in range(3)] == [0, 0, 0]


def naive_again(texts, groups, offsets):
    """Tokens that an earlier text of the group has at the same place after the same seven."""
    flags = []
    for i, own in enumerate(texts):
        known = [
            any(
                groups[j] == groups[i]
                and own[t - 7 : t + 1] == texts[j][(start := t - 7 + offsets[i] - offsets[j]) :][:8]
                and start >= 0
                for j in range(i)
            )
            for t in range(7, len(own))
        ]
        flags.append([*known[:1] * 7, *known])
    return flags


@pytest.mark.parametrize("case", ["one word changed", "first word changed", "words put in",
                                  "overlapping windows", "exact repeat", "unrelated"])  # fmt: skip
def test_what_relatives_hold_at_the_same_place_equals_the_loop(case):
    texts, groups, offsets = CASES[case]
    for one, expected in zip(readings(texts), naive_again(texts, groups, offsets), strict=True):
        found = [False] * one.num_tokens
        for first, stop in one.again:
            found[first:stop] = [True] * (stop - first)
        assert found == expected


def test_a_copy_of_a_text_that_repeats_itself_adds_what_was_changed():
    own = text(1, 20) * 5
    again = readings([own, changed(own, 50)])[1].again
    assert again == ((0, 50), (58, 100))

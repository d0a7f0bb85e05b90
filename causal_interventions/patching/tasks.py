"""Texts that ask for memory, made by a rule: associative recall, MQAR, copying, passkeys.

Token ids, no tokenizer. A text ends where its answer is due, and one earlier token, the value,
decides what it is. Its twin, the corrupt text, differs in the token or tokens that are named, so
that another answer is right there. Both have one length, and each role sits at a known token.

References:
  [1] Arora et al. 2023, "Zoology" (arXiv 2312.04927): multi-query associative recall
  [2] Jelassi et al. 2024, "Repeat After Me" (arXiv 2402.01032): copying
  [3] Mohtashami & Jaggi 2023, "Landmark Attention" (arXiv 2305.16300): passkeys
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from suite_plumbing.arguments import torch_rng, validate_choice, validate_int

CORRUPTIONS = ("value", "key", "query")
"""What differs between a text and its twin: the token that is asked for (an unused one in its
place); the token that it is found by (exchanged with that of another value); or the question."""

MARK = 0
"""The token that separates a text from its copy, and that a passkey follows."""


@dataclass(frozen=True, eq=False)
class TaskPairs:
    """n texts of one task and their twins, all of l tokens."""

    task: str
    """key of ``TASKS``"""
    corruption: str
    """one of ``CORRUPTIONS``"""
    clean: Tensor
    """(n, l) token ids"""
    corrupt: Tensor
    """(n, l)"""
    answers: Tensor
    """(n, 2) what follows the clean text, and what follows the corrupt one"""
    roles: dict[str, Tensor]
    """(n,) by role the token at which it sits in the clean text: "key" and "value" of the answer,
    "query" the last token"""

    def __len__(self) -> int:
        return len(self.clean)


class TaskRows(NamedTuple):
    """Texts of a task with what the rule says of their next tokens."""

    input_ids: Tensor
    """(n, l)"""
    following: Tensor
    """(n, l) the token to predict after each, -1 where the rule leaves it open"""
    key: Tensor
    """(n,) token at which the key of the last answer sits"""
    value: Tensor
    """(n,) token at which that answer itself sits"""
    other_key: Tensor
    """(n,) token of a key that is not asked for, and of its value"""
    other_value: Tensor
    unused: Tensor
    """(n,) id of a value that the text does not have"""


def task_rows(
    task: str, count: int, *, items: int = 8, vocabulary: int = 64, seed: int = 0
) -> TaskRows:
    """``count`` texts of a task, for training; ``items`` is the number of things to remember.

    "recall", k1 v1 .. kn vn q: the value beside the key q. "mqar", k1 v1 .. kn vn, then half of
    the keys in another order, each with its value, up to the last key asked for [1]. "copying",
    s1 .. sn 0 s1 .. si: the next one [2]; s has no token twice. "passkey": filler with 0 p
    somewhere in it, at the end 0: p [3]; ``items`` is the length of the filler. Keys and values
    have ids of their own, filler and passkeys too. Seeded. Raises ValueError for an unknown task,
    fewer items than 2, and a vocabulary too small for them.
    """
    validate_choice("task", task, TASKS)
    validate_int("count", count, 1)
    validate_int("items", items, 2)
    needed = TASKS[task].least_vocabulary(items)
    validate_int(f"vocabulary (of {task} with {items} items)", vocabulary, needed)
    return TASKS[task].rows(count, items, vocabulary, torch_rng(seed))


def task_pairs(
    task: str,
    count: int,
    *,
    items: int = 8,
    vocabulary: int = 64,
    corrupt: str = "value",
    seed: int = 0,
) -> TaskPairs:
    """``count`` texts of a task as :func:`task_rows` makes them, and their twins.

    Copying and passkeys have twins by the value alone. Raises ValueError as :func:`task_rows`, and
    for a corruption that the task does not have.
    """
    rows = task_rows(task, count, items=items, vocabulary=vocabulary, seed=seed)
    validate_choice(f"corrupt (of {task})", corrupt, TASKS[task].corruptions)
    clean, each = rows.input_ids, torch.arange(count)
    twin = clean.clone()
    answer, other = clean[each, rows.value], clean[each, rows.other_value]
    if corrupt == "value":
        other = rows.unused
        twin = torch.where(clean == answer[:, None], other[:, None], clean)
    elif corrupt == "key":
        twin[each, rows.key] = clean[each, rows.other_key]
        twin[each, rows.other_key] = clean[each, rows.key]
    else:
        twin[:, -1] = clean[each, rows.other_key]
    last = torch.full((count,), clean.shape[1] - 1)
    roles = {"key": rows.key, "value": rows.value, "query": last}
    return TaskPairs(task, corrupt, clean, twin, torch.stack([answer, other], 1), roles)


def _recall(count: int, items: int, vocabulary: int, rng: torch.Generator) -> TaskRows:
    drawn = _bindings(count, items, vocabulary, rng)
    asked = torch.zeros(count, dtype=torch.long)
    place = _order(count, items, rng)
    ids = torch.cat([_pairs_in_order(drawn, place), drawn.keys[:, :1]], 1)
    following = _last_alone(ids, drawn.values[:, 0])
    return _located(ids, following, drawn, place, asked)


def _mqar(count: int, items: int, vocabulary: int, rng: torch.Generator) -> TaskRows:
    drawn = _bindings(count, items, vocabulary, rng)
    place, questions = _order(count, items, rng), items // 2
    asked = torch.stack([drawn.keys[:, :questions], drawn.values[:, :questions]], 2).flatten(1)
    ids = torch.cat([_pairs_in_order(drawn, place), asked[:, :-1]], 1)
    following = torch.full_like(ids, -1)
    following[:, 2 * items :: 2] = drawn.values[:, :questions]
    last = torch.full((count,), questions - 1)
    return _located(ids, following, drawn, place, last)


class _Bindings(NamedTuple):
    """Keys and values without repetition, item i of each belonging together."""

    keys: Tensor
    """(n, items)"""
    values: Tensor
    """(n, items)"""
    unused: Tensor
    """(n,)"""


def _bindings(count: int, items: int, vocabulary: int, rng: torch.Generator) -> _Bindings:
    kinds = (vocabulary - 1) // 2
    keys, values = (1 + start + _order(count, kinds, rng) for start in (0, kinds))
    return _Bindings(keys[:, :items], values[:, :items], values[:, items])


def _pairs_in_order(drawn: _Bindings, place: Tensor) -> Tensor:
    """(n, 2 items) key, value, key, value, ..., item i at the place that it is given."""
    both = torch.stack([drawn.keys, drawn.values], 2)
    ordered = torch.empty_like(both)
    ordered.scatter_(1, place[..., None].expand_as(both), both)
    return ordered.flatten(1)


def _located(
    ids: Tensor, following: Tensor, drawn: _Bindings, place: Tensor, asked: Tensor
) -> TaskRows:
    """Where the item asked for and another, the last one, sit among the pairs."""
    key = 2 * place.gather(1, asked[:, None])[:, 0]
    other = 2 * place[:, -1]
    return TaskRows(ids, following, key, key + 1, other, other + 1, drawn.unused)


def _copying(count: int, items: int, vocabulary: int, rng: torch.Generator) -> TaskRows:
    drawn = 1 + _order(count, vocabulary - 1, rng)
    text, unused = drawn[:, :items], drawn[:, items]
    again = items // 2
    ids = torch.cat([text, torch.full((count, 1), MARK), text[:, :again]], 1)
    following = torch.full_like(ids, -1)
    following[:, items:] = text[:, : again + 1]
    key = torch.full((count,), again - 1)
    return TaskRows(ids, following, key, key + 1, key - 1, key, unused)


def _passkey(count: int, items: int, vocabulary: int, rng: torch.Generator) -> TaskRows:
    first_passkey = vocabulary // 2
    ids = torch.randint(1, first_passkey, (count, items + 3), generator=rng)
    passkeys = first_passkey + _order(count, vocabulary - first_passkey, rng)
    key = torch.randint(0, items + 1, (count,), generator=rng)
    each = torch.arange(count)
    ids[each, key], ids[each, key + 1], ids[:, -1] = MARK, passkeys[:, 0], MARK
    following = _last_alone(ids, passkeys[:, 0])
    return TaskRows(ids, following, key, key + 1, key, key + 1, passkeys[:, 1])


def _last_alone(ids: Tensor, answer: Tensor) -> Tensor:
    following = torch.full_like(ids, -1)
    following[:, -1] = answer
    return following


def _order(count: int, size: int, rng: torch.Generator) -> Tensor:
    """(count, size) permutations of 0 .. size - 1."""
    return torch.rand(count, size, generator=rng).argsort(1)


class Task(NamedTuple):
    """How texts of one task are made."""

    rows: Callable[[int, int, int, torch.Generator], TaskRows]
    """(count, items, vocabulary, generator)"""
    corruptions: tuple[str, ...]
    """those of ``CORRUPTIONS`` that its twins can differ by"""
    least_vocabulary: Callable[[int], int]
    """by the number of items"""


TASKS: dict[str, Task] = {
    "recall": Task(_recall, CORRUPTIONS, lambda items: 2 * items + 3),
    "mqar": Task(_mqar, ("value", "key"), lambda items: 2 * items + 3),
    "copying": Task(_copying, ("value",), lambda items: items + 2),
    "passkey": Task(_passkey, ("value",), lambda items: 4),
}
"""The tasks by name."""

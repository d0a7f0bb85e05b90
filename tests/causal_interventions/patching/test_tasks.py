"""Texts of the tasks by their rules, and twins that differ where they say."""

import pytest
import torch

from causal_interventions.patching.tasks import MARK, TASKS, task_pairs, task_rows


def answer_by_rule(task: str, ids: list[int]) -> int:
    """What the rule says follows the text, found by looking for its question."""
    if task == "copying":
        place = ids.index(MARK)
        return ids[len(ids) - 1 - place]
    return ids[ids.index(ids[-1]) + 1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("twin", ["value", "key", "query"])
def test_a_text_and_its_twin_ask_for_their_answers(task, twin):
    if twin not in TASKS[task].corruptions:
        with pytest.raises(ValueError, match=f"corrupt .of {task}. is '{twin}'"):
            task_pairs(task, 2, corrupt=twin)
        return
    pairs = task_pairs(task, 20, items=6, vocabulary=24, corrupt=twin, seed=3)
    assert len(pairs) == 20
    assert pairs.clean.shape == pairs.corrupt.shape
    for clean, corrupt, answers in zip(
        pairs.clean.tolist(), pairs.corrupt.tolist(), pairs.answers.tolist(), strict=True
    ):
        assert [answer_by_rule(task, ids) for ids in (clean, corrupt)] == answers
        assert answers[0] != answers[1]
    changed = (pairs.clean != pairs.corrupt).sum(1)
    expected = {"value": 1, "key": 2, "query": 1}[twin]
    assert bool((changed == expected).all())
    each = torch.arange(20)
    assert torch.equal(pairs.clean[each, pairs.roles["value"]], pairs.answers[:, 0])
    assert torch.equal(pairs.roles["value"], pairs.roles["key"] + 1)
    assert bool((pairs.roles["query"] == pairs.clean.shape[1] - 1).all())


@pytest.mark.parametrize("task", TASKS)
def test_what_follows_is_what_the_rule_says_and_seeds_repeat(task):
    rows = task_rows(task, 10, items=6, vocabulary=24, seed=1)
    for ids, following in zip(rows.input_ids.tolist(), rows.following.tolist(), strict=True):
        known = [place for place, token in enumerate(following) if token >= 0]
        assert known[-1] == len(ids) - 1
        for place in known:
            assert following[place] == answer_by_rule(task, ids[: place + 1])
    again = task_rows(task, 10, items=6, vocabulary=24, seed=1)
    assert torch.equal(rows.input_ids, again.input_ids)
    other = task_rows(task, 10, items=6, vocabulary=24, seed=2)
    assert not torch.equal(rows.input_ids, other.input_ids)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match=r"task is 'sorting'.*recall"):
        task_rows("sorting", 1)
    with pytest.raises(ValueError, match=r"vocabulary .of recall with 8 items. is 18.*19"):
        task_rows("recall", 1, vocabulary=18)
    with pytest.raises(ValueError, match="items is 1"):
        task_pairs("mqar", 1, items=1)

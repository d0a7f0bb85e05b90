"""Related texts as one sample: means of groups, and tests joined whatever the texts share."""

import numpy as np
import pytest

from token_statistics.joined_places import P_OF_GROUP, mean_of_places, one_sided_p
from token_statistics.text_groups import by_group, group_means, members, one_each
from token_statistics.verdict_rules import above_null


def null_test(value, p=0.05):
    return {"value": value, "null_low": -0.5, "null_high": 0.5, "p_value": p, "num_draws": 39,
            "reason": None}  # fmt: skip


def test_groups_come_in_the_order_of_their_first_texts():
    assert members([3, 0, 3, 1]) == [[0, 2], [1], [3]]
    assert list(one_each(None, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="groups has 2 entries for 3 texts"):
        one_each([0, 1], 3)


def test_a_group_has_the_mean_of_its_texts_without_what_is_undefined():
    values = [np.array([1.0, np.nan]), np.array([2.0, 4.0]), np.array([3.0, np.nan])]
    found = group_means(values, [0, 1, 0])
    np.testing.assert_array_equal(found, [[2.0, np.nan], [2.0, 4.0]])
    np.testing.assert_array_equal(group_means(values), values)


def test_ten_copies_of_a_text_weigh_as_one():
    alone = {f"text_{i}.layer_0": null_test(0.9 if i == 0 else 0.1, 0.05 if i == 0 else 0.9)
             for i in range(3)}  # fmt: skip
    copies = {f"text_{10 + i}.layer_0": null_test(0.9) for i in range(9)}
    groups = {f"text_{10 + i}": "text_0" for i in range(9)}
    joined = by_group({**alone, **copies}, groups)
    assert list(joined) == list(alone)
    test = joined["text_0.layer_0"]
    assert test is not None
    assert test["value"] == pytest.approx(0.9)
    # Six of ten, each as probable as one: 10 / 6 of it.
    assert one_sided_p(test) == pytest.approx(10 / 6 * one_sided_p(null_test(0.9)))
    as_if = above_null("c", "s", {**alone, **copies}, "p")
    as_one = above_null("c", "s", joined, "p")
    assert (as_one.n, as_if.n, as_one.hits) == (3, 12, 1)
    assert (as_one.chance_p or 0) > (as_if.chance_p or 1)
    known = {name: one for name, one in joined.items() if one}
    assert mean_of_places(known).p_value == as_one.chance_p


def test_texts_without_a_value_and_places_of_no_text_stay():
    nothing = {"value": None, "null_high": None, "reason": "12 tokens"}
    joined = by_group({"text_0.layer_0": nothing, "text_1.layer_0": null_test(0.7)},
                      {"text_1": "text_0"})  # fmt: skip
    assert (joined["text_0.layer_0"] or {})["value"] == 0.7
    assert by_group({"text_0": nothing}, {}) == {"text_0": nothing}
    assert by_group({"text_0.a": nothing, "text_1.a": nothing}, {"text_1": "text_0"}) == {
        "text_0.a": nothing
    }
    pair = {"layer_0_to_1": null_test(0.2)}
    assert by_group(pair, {"text_0": "text_0"}) == pair
    assert P_OF_GROUP not in joined

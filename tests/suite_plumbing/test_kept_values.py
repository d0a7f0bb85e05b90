"""Values are kept exactly, apart by part of the run; what a kill cut in half is made anew."""

import math

import pytest
import torch

from suite_plumbing.kept_values import (
    KeptValues,
    keeping,
    keeping_part,
    kept,
    kept_tensor,
    tensor_kept,
)


def test_a_value_is_made_once_and_the_same_in_the_next_run(tmp_path):
    values = [0.1 + 0.2, float("nan"), 1e-320, [1, "ü"], {"a": None}]
    path = tmp_path / "values.jsonl"
    first = KeptValues(path).of("a", lambda: values)
    second = KeptValues(path).of("a", lambda: pytest.fail("made again"))
    assert first[0] == second[0] == 0.1 + 0.2
    assert math.isnan(second[1])
    assert first[2:] == second[2:] == values[2:]


def test_half_a_line_is_made_again_and_hurts_no_other(tmp_path):
    path = tmp_path / "values.jsonl"
    KeptValues(path).of("a", lambda: 1)
    with path.open("ab") as file:
        file.write(b'["b", [1.0')
    store = KeptValues(path)
    assert len(store) == 1
    assert store.of("b", lambda: 2) == 2
    again = KeptValues(path)
    assert (again.of("a", int), again.of("b", int)) == (1, 2)


def test_parts_of_a_run_are_kept_apart(tmp_path):
    with keeping(KeptValues(tmp_path / "values.jsonl")):
        assert kept("a", lambda: 1) == 1
        with keeping_part("twin"):
            assert kept("a", lambda: 2) == 2
        assert kept("a", lambda: 3) == 1
    assert kept("a", lambda: 4) == 4  # outside nothing is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_tensors_come_back_to_the_bit(tmp_path, dtype):
    tensor = (torch.randn(3, 2, dtype=torch.float64) * 100).to(dtype)
    path = tmp_path / "values.jsonl"
    KeptValues(path).of("a", lambda: kept_tensor(tensor))
    found = tensor_kept(KeptValues(path).of("a", list))
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_what_is_kept_is_said_when_a_run_is_stopped(tmp_path, caplog):
    def stopped():
        kept("a", lambda: 1)
        raise KeyboardInterrupt

    with keeping(KeptValues(tmp_path / "values.jsonl")), pytest.raises(KeyboardInterrupt):
        stopped()
    assert caplog.text == ""
    with pytest.raises(KeyboardInterrupt), keeping(KeptValues(tmp_path / "values.jsonl")):
        stopped()
    assert "1 measurements are kept" in caplog.text

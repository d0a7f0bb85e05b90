"""Captures in files: bit for bit what they were in memory, read when asked for, gone at the end."""

import pytest
import torch
from conftest import make_tiny_model

from benchmarks.family_models import MODELS, make_model, ssm_layers
from ssm_component_extractor import capture
from ssm_measures.kept_captures import ReadEach, captures_kept

LENGTHS = (9, 14)


def captures_of(model, layers):
    """Two texts of one padded batch, each without padding."""
    ids = torch.arange(2, 2 + 2 * max(LENGTHS)).reshape(2, -1)
    mask = torch.ones_like(ids)
    mask[0, : max(LENGTHS) - LENGTHS[0]] = 0
    batch = capture(model, ids, mask, layers)
    return [batch.text(row) for row in range(2)]


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_read_is_what_was_captured(name, tmp_path):
    layers = ssm_layers(name)[:2]
    given = captures_of(make_model(name), layers)
    with captures_kept(tmp_path / "here", enumerate(given)) as kept:
        assert len(kept) == len(given)
        for one, there in zip(given, kept, strict=True):
            assert there.layers == one.layers
            for field in ("input_ids", "attention_mask"):
                assert torch.equal(getattr(there, field), getattr(one, field))
            for layer in layers:
                assert torch.equal(there.block_inputs[layer], one.block_inputs[layer])
                assert torch.equal(there.block_outputs[layer], one.block_outputs[layer])
                wanted, found = vars(one.components[layer]), vars(there.components[layer])
                assert wanted.keys() == found.keys()
                assert [key for key in wanted if not same(wanted[key], found[key])] == []


def test_captures_may_come_in_any_order_and_their_files_go(tmp_path):
    given = captures_of(make_tiny_model(), [0])
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "of another run").touch()
    with captures_kept(folder, [(1, given[1]), (0, given[0])]) as kept:
        assert [one.input_ids.shape[1] for one in kept] == list(LENGTHS)
        assert len(list(folder.iterdir())) == 2
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), captures_kept(folder, enumerate(given)):
        raise KeyboardInterrupt
    assert not folder.exists()


def test_nothing_is_read_before_it_is_asked_for():
    asked = []
    texts = ReadEach(3, lambda i: asked.append(i) or i)
    assert (len(texts), asked) == (3, [])
    assert (texts[-1], texts[:2], list(texts)) == (2, [0, 1], [0, 1, 2])
    assert asked == [2, 0, 1, 0, 1, 2]
    with pytest.raises(IndexError):
        texts[3]

"""The residual stream is changed where it enters a layer, and nowhere else."""

import pytest
import torch
from conftest import make_tiny_model
from mixer_cases import assert_untouched, logits_of, make_ids
from torch import Tensor

from mamba_mixers.recording import record_streams
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import blocks_of
from mamba_mixers.stream_edits import edited_streams


def raised(x: Tensor) -> Tensor:
    return x + 0.5


def assert_no_block_is_replaced(model) -> None:
    assert not [block for block in blocks_of(model) if "forward" in vars(block)]


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_rest_of_the_model_reads_the_changed_stream(layer):
    model, ids = make_tiny_model(), make_ids()
    stream = record_streams(model, [layer], ids)[layer][0]
    with torch.no_grad():
        expected = forward_from(model, layer, raised(stream))
    with edited_streams(model, {layer: raised}):
        assert torch.equal(logits_of(model, ids), expected)
    assert_no_block_is_replaced(model)
    assert_untouched(model)


def test_contexts_add_up_with_each_other_and_with_edits_of_mixers():
    model, ids = make_tiny_model(), make_ids()

    def doubled(stage: str, x: Tensor) -> Tensor:
        return 2 * x if stage == "y" else x

    with edited_streams(model, {1: raised}), edited_streams(model, {1: raised, 2: raised}):
        twice = logits_of(model, ids)
    with edited_streams(model, {1: lambda x: x + 1.0, 2: raised}):
        # Adding a half twice and one once round alike but for the order of float32 sums.
        torch.testing.assert_close(twice, logits_of(model, ids), rtol=0, atol=1e-5)
    with edited_streams(model, {1: raised}), fast_scan(model, edits={2: doubled}):
        one = logits_of(model, ids)
    with fast_scan(model, edits={2: doubled}), edited_streams(model, {1: raised}):
        assert torch.equal(logits_of(model, ids), one)


def test_it_is_undone_after_an_exception_and_layers_are_checked():
    model = make_tiny_model()
    with pytest.raises(ZeroDivisionError), edited_streams(model, {1: raised}):
        raise ZeroDivisionError
    assert_no_block_is_replaced(model)
    with (
        pytest.raises(ValueError, match=r"edits names layers \[4\]; the model has 0 to 3"),
        edited_streams(model, {4: raised}),
    ):
        raise AssertionError("the context must not be entered")

"""Which errors a pipeline goes on from."""

import pytest
import torch

from suite_plumbing.errors import is_out_of_memory


def test_is_out_of_memory_knows_a_real_failed_allocation_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))

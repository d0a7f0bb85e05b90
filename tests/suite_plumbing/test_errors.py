"""Which errors a pipeline goes on from."""

import pytest
import torch

from suite_plumbing.errors import AnalysisError, failure_of, is_out_of_memory


def test_is_out_of_memory_knows_a_real_failed_allocation_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive"),
        RuntimeError("unable to mmap 96 bytes from file <m>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_libraries_say_in_their_own_words_that_memory_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_a_failure_is_recorded_by_type_and_message() -> None:
    assert failure_of(AnalysisError("why")) == {
        "error": {"type": "AnalysisError", "message": "why"}
    }

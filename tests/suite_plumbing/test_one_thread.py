"""One thread within the context, as many as before after it, of this thread alone."""

import threading

import pytest
import torch

from suite_plumbing.one_thread import one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_within_and_as_many_as_before_after_it(two_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_exception_leaves_the_number_as_it_was(two_threads):
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_a_thread_at_work_keeps_its_own_number(two_threads):
    seen, ready, entered, looked = [], *(threading.Event() for _ in range(3))

    def work():
        torch.get_num_threads()  # a thread's number is made when it is first asked for
        torch.set_num_threads(2)
        ready.set()
        entered.wait()
        seen.append(torch.get_num_threads())
        looked.set()

    worker = threading.Thread(target=work)
    worker.start()
    ready.wait()
    with one_thread():
        entered.set()
        looked.wait()
    worker.join()
    assert seen == [2]

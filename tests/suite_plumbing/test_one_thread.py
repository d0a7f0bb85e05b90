"""One thread within the context, as many as before after it, of this thread alone."""

import threading

import pytest
import torch

from suite_plumbing import one_thread as module
from suite_plumbing.commands import run_main
from suite_plumbing.one_thread import fit_threads, one_thread


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


def test_a_small_model_takes_one_thread_for_its_command(two_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = []

    def command(_: list[str]) -> int:
        fit_threads(torch.nn.Linear(4, 4))
        seen.append(torch.get_num_threads())
        return 0

    assert run_main(command, []) == 0
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_larger_models_and_who_says_how_many_keep_their_threads(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    fit_threads(torch.nn.Linear(4, 4))
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(module, "SMALL_MODEL", 20)
    fit_threads(torch.nn.Linear(1, 1), torch.nn.Linear(4, 4))  # 16 weights and 4 biases
    assert torch.get_num_threads() == 2


def test_a_thread_that_has_one_leaves_later_threads_the_number_of_the_others(two_threads):
    numbers, alone, set_again = [], threading.Event(), threading.Event()

    def work_of_one_thread():
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's number is made when it is first asked for
        alone.set()
        set_again.wait(30)
        with one_thread():
            pass

    first = threading.Thread(target=work_of_one_thread)
    first.start()
    alone.wait(30)
    torch.set_num_threads(2)
    set_again.set()
    first.join()

    def work_later():
        _ = torch.ones(2) + 1  # a thread takes its number when it first computes
        numbers.append(torch.get_num_threads())

    later = threading.Thread(target=work_later)
    later.start()
    later.join()
    assert numbers == [2]

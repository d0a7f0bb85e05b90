"""Items side by side are the plain loop: its order, its error, its gradients, its threads after."""

import threading
import time

import pytest
import torch

from suite_plumbing.parallel import by_layer, side_by_side


def test_two_items_are_at_work_at_once_each_with_one_thread_of_torch(two_threads):
    both = threading.Barrier(2, timeout=30)

    def work(item):
        both.wait()  # fails where one waits for the other to end
        return item, torch.get_num_threads(), threading.get_ident()

    found = side_by_side(work, [5, 7])
    assert [item for item, _, _ in found] == [5, 7]
    assert [number for _, number, _ in found] == [1, 1]
    assert threading.get_ident() not in [thread for _, _, thread in found]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "items"), [(1, [5, 7]), (2, [5]), (2, [])])
def test_one_thread_or_one_item_is_a_loop_in_this_thread(two_threads, threads, items):
    torch.set_num_threads(threads)
    found = side_by_side(lambda item: (item, threading.get_ident()), items)
    assert found == [(item, threading.get_ident()) for item in items]


def test_items_within_items_wait_for_no_thread(two_threads):
    nested = side_by_side(lambda item: side_by_side(lambda x: x + item, [1, 2, 3]), [10, 20, 30])
    assert nested == [[11, 12, 13], [21, 22, 23], [31, 32, 33]]


def test_the_first_item_that_fails_raises_its_error_and_later_ones_do_not_begin(two_threads):
    begun = []

    def work(item):
        begun.append(item)
        if item in (1, 2):
            raise ValueError(f"item {item}")
        time.sleep(0.01)  # all of them would take five seconds

    with pytest.raises(ValueError, match="item 1"):
        side_by_side(work, range(1000))
    assert len(begun) < 1000
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_kept_or_not_as_around_the_call(two_threads, mode):
    def state(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        assert side_by_side(state, [0, 1]) == [state(0)] * 2


def test_layers_keep_their_order(two_threads):
    assert list(by_layer(lambda layer: layer**2, [9, 1, 4]).items()) == [(9, 81), (1, 1), (4, 16)]


@pytest.mark.parametrize("threads", [1, 2])
def test_autocast_is_lifted_whatever_the_number_of_threads(two_threads, threads):
    torch.set_num_threads(threads)
    x = torch.full((4, 4), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        found = side_by_side(lambda _: x @ x, [0, 1])
    assert [product.dtype for product in found] == [torch.float32] * 2

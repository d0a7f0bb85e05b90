"""A signal ends a command with its status, also where Python drops what a handler raises."""

import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from suite_plumbing.commands import run_main
from suite_plumbing.result_files import write_atomically
from suite_plumbing.signals import STATUS, Interrupted, stopping_on_signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Behind a shell's & an interrupt is ignored, which would be inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    """Something that a weak reference can point to."""


def raise_in_a_callback(number: int) -> None:
    """What is raised in here is dropped: Python goes on after the callback."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


def busy(seconds: float) -> None:
    """Run bytecode, so that a signal can be delivered."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def status_of(function) -> int:
    """Exit status of a command's body."""
    try:
        return run_main(function, [])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_that_was_dropped_is_raised_again(number, capsys):
    reached = []

    def command(_):
        raise_in_a_callback(number)
        reached.append("after the callback")
        busy(30)
        reached.append("the end")
        return 0

    before = {one: signal.getsignal(one) for one in (*STATUS, signal.SIGALRM)}
    assert status_of(command) == STATUS[number]
    assert reached == ["after the callback"]
    assert {one: signal.getsignal(one) for one in before} == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    # One line: nothing of "Exception ignored in".
    assert capsys.readouterr().err.splitlines() == [
        {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    ]


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_that_a_library_swallows_is_raised_again(number):
    def command(_):
        with suppress(BaseException):  # as careless libraries do
            signal.raise_signal(number)
        busy(30)
        return 0

    assert status_of(command) == STATUS[number]


def test_a_signal_turned_into_another_error_keeps_its_status():
    def command(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise ValueError("a library's own words") from error

    assert status_of(command) == 143


def test_clearing_up_is_not_disturbed_by_what_is_raised_again(tmp_path):
    cleared = []

    def command(_):
        try:
            with write_atomically(tmp_path / "result.txt") as handle:
                handle.write("half")
                signal.raise_signal(signal.SIGINT)
        finally:
            busy(0.3)  # the signal comes again several times meanwhile
            cleared.append(True)
        return 0

    assert status_of(command) == 130
    assert cleared == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_body_gives_its_status_too():
    with stopping_on_signals() as stop:
        stop.close()
        signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM
    with pytest.raises(Interrupted), stopping_on_signals():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_main(lambda _: signal.raise_signal(signal.SIGINT) or 0, []) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "word"), [(2, "interrupted"), (15, "terminated")])
def test_during_imports_a_signal_ends_the_process_with_one_line(number, word):
    code = (
        "from suite_plumbing.signals import end_at_once_on_signals\nend_at_once_on_signals()\n"
        "print('ready', flush=True)\nimport time\n"
        "class Module:\n    def __del__(self):\n        time.sleep(30)\n"
        "thing = Module()\ndel thing\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + number, f"{word}\n")

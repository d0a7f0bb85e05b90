"""Running out of memory is told from other errors, and where nothing catches it one line."""

import errno
import sys

import pytest

from suite_plumbing.no_memory import one_line_without_memory, says_no_memory

NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("could not create a primitive"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_ran_out_is_one_line(error, monkeypatch, capsys):
    assert says_no_memory(error)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    one_line_without_memory()
    sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == "error: out of memory\n"


def test_a_library_that_fails_without_a_reason_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    one_line_without_memory()
    sys.excepthook(SystemError, SystemError("error return without exception set"), None)
    said = "error: a library failed without a reason, as for lack of memory: error return"
    assert capsys.readouterr().err == f"{said} without exception set\n"


@pytest.mark.parametrize("error", [ImportError("no module"), OSError(errno.ENOENT, "x")])
def test_other_errors_are_what_they_were(error, monkeypatch, capsys):
    assert not says_no_memory(error)
    assert not says_no_memory(ValueError("Cannot allocate memory"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    one_line_without_memory()
    sys.excepthook(type(error), error, None)
    assert type(error).__name__ in capsys.readouterr().err

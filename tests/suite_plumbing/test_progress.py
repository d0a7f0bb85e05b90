"""Seeds repeat every generator, logging has its level, bars show on a terminal alone."""

import io
import logging
import random

import numpy as np
import pytest
import torch

from suite_plumbing.progress import configure_logging, progress, set_seed


def test_set_seed_repeats_every_generator_and_validates() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    set_seed(7)
    first = draw()
    set_seed(7)
    assert draw() == first
    set_seed(8)
    assert draw() != first
    with pytest.raises(ValueError, match="seed is -1"):
        set_seed(-1)


def test_configure_logging_sets_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: levels.append(options["level"]))
    for options in ({}, {"debug": True}, {"quiet": True}):
        configure_logging(**options)
    assert levels == [logging.INFO, logging.DEBUG, logging.WARNING]
    with pytest.raises(ValueError, match="--debug and --quiet are both given"):
        configure_logging(debug=True, quiet=True)


def test_progress_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress([1, 2, 3], desc="layers")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    assert list(progress([1, 2, 3], desc="layers", disable=False)) == [1, 2, 3]
    assert "layers" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_to_do_shows_no_bar() -> None:
    configure_logging()
    terminal = Terminal()
    assert list(progress([], desc="layers", file=terminal)) == []
    assert terminal.getvalue() == ""


def test_a_line_of_the_log_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    configure_logging()
    for _ in progress([1, 2], desc="layers", file=terminal, mininterval=0):
        logging.getLogger("x").warning("a line")
    lines = terminal.getvalue().replace("\r", "\n").split("\n")
    assert lines.count("WARNING x: a line") == 2
    assert any(line.startswith("layers") for line in lines)


def test_progress_shows_on_a_terminal_unless_quiet() -> None:
    def shown(quiet: bool) -> str:
        configure_logging(quiet=quiet)
        terminal = Terminal()
        list(progress([1, 2], desc="layers", file=terminal))
        return terminal.getvalue()

    assert shown(quiet=True) == ""
    assert "layers" in shown(quiet=False)

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


def test_progress_shows_on_a_terminal_unless_quiet() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(quiet: bool) -> str:
        configure_logging(quiet=quiet)
        terminal = Terminal()
        list(progress([1, 2], desc="layers", file=terminal))
        return terminal.getvalue()

    assert shown(quiet=True) == ""
    assert "layers" in shown(quiet=False)

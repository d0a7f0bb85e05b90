"""Options of the analyses and of the readers agree with the modules that they name."""

import pytest

import long_memory
from mamba_mixers.untrained_twins import ENOUGH_TWINS
from suite_plumbing import analysis_options


def shown(options, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        options(["--help"])
    return " ".join(capsys.readouterr().out.split())


def test_what_help_says_is_what_the_modules_do(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(analysis_options.main_analysis_options, capsys)
    assert f"{ENOUGH_TWINS} moderate ones" in said
    said = shown(analysis_options.model_comparison_options, capsys)
    assert f"verdicts need {ENOUGH_TWINS} " in said


def test_defaults_are_those_of_the_functions() -> None:
    book = analysis_options.long_memory_options(["book.txt"])
    assert (book.chunk_size, book.windows) == (long_memory.CHUNK_SIZE, [*long_memory.WINDOWS])


def test_results_are_named_by_place_or_by_option() -> None:
    read = analysis_options.recursive_analysis_report_options
    assert read([]).results == analysis_options.DEFAULT_RESULTS
    assert read(["a.json"]).results == "a.json"
    assert read(["--results", "b.json"]).results == "b.json"
    assert analysis_options.recursive_visualizer_options(["c.json"]).results == "c.json"

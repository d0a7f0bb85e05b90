"""A benchmark's help is made from its docstring, and what it keeps says how it was made."""

from benchmarks import layer_correlations, speed
from benchmarks.commands import benchmark_parser, keep, keep_section, kept_part


def test_the_help_asks_the_scripts_question_and_shows_its_first_example():
    parser = benchmark_parser(speed.__doc__, "a table")
    assert parser.description == f"{(speed.__doc__ or '').splitlines()[0]} Prints a table."
    assert parser.epilog == "example: python benchmarks/speed.py"
    other = benchmark_parser(layer_correlations.__doc__, "a table")
    assert other.epilog == "example: python benchmarks/layer_correlations.py --save"
    assert other.parse_args([]).save is False


def test_a_kept_report_has_a_title_and_says_how_it_was_made(tmp_path):
    path = tmp_path / "results" / "key_findings.md"
    keep(path, "| a |\n\n")
    how = "`python benchmarks/key_findings.py --help` says how to make this again."
    assert path.read_text() == f"# Key findings\n\n{how}\n\n| a |\n"


def test_a_part_that_was_kept_is_not_made_again(tmp_path):
    folder = tmp_path / "parts"
    assert kept_part(folder, "one", lambda: [(1, None), 2.5]) == [[1, None], 2.5]
    assert kept_part(folder, "one", lambda: "not asked") == [[1, None], 2.5]
    assert kept_part(None, "one", lambda: "asked") == "asked"
    assert [path.name for path in folder.iterdir()] == ["one.json"]


def test_a_section_takes_the_place_of_its_own_alone(tmp_path):
    path = tmp_path / "two_things.md"
    for report in ("## One\n\nfirst", "## Other\n\nsecond", "## One\n\n| a |\n|---|"):
        keep_section(path, report)
    assert path.read_text() == "# Two things\n\n## One\n\n| a |\n|---|\n\n## Other\n\nsecond\n"

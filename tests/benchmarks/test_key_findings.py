"""The table of key findings: passages of a text, a row a claim, and no line of the text in it."""

from analysis_pipelines.key_findings import key_findings as claims_on
from benchmarks import key_findings
from token_statistics.findings import ABOVE_CHANCE, Finding, undecided


def words(count):
    """A text of our own, with places that can be told apart."""
    return " ".join(f"the {i}th boat came in with the tide" for i in range(count))


def test_every_finding_has_a_row():
    found = Finding("c", "mean |r|", 0.5, None, (-0.1, 0.1), 3, "texts", ABOVE_CHANCE, None, "p")
    rows = key_findings.table([found, undecided("d", "s", "texts", "2 texts", "p")]).splitlines()
    against = "null -0.1 to 0.1; n = 3 texts"
    assert rows[2] == f"| c | mean \\|r\\| | 0.5 | {against} | {ABOVE_CHANCE} |"
    assert rows[3] == "| d | s |  | 2 texts | too little data |"


def test_the_command_prints_every_claim(tiny_model_dir, tmp_path, capsys, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text(words(60))
    monkeypatch.setattr(key_findings, "RESULTS", tmp_path / "results" / "table.md")
    arguments = [str(book), "--model", str(tiny_model_dir), "--passages", "2", "--tokens", "45"]
    options = ["--layers", "0,2", "--twins", "1", "--ablate", "0", "--save"]
    assert key_findings.main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    for finding in claims_on({}):
        assert f"| {finding.claim} |" in printed
    assert "boat" not in printed
    assert (tmp_path / "results" / "table.md").read_text().endswith(printed[:-1])
    assert key_findings.main([str(book), "--model", str(tiny_model_dir), "--passages", "1"]) == 2

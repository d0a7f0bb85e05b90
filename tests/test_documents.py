"""Numbers of README and docs are those of the tables that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    """A document as one line, without emphasis."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def rows(text: str) -> list[list[str]]:
    """The cells of every row of Markdown tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table(name: str) -> list[list[str]]:
    return rows((RESULTS / f"{name}.md").read_text(encoding="utf-8"))


def row_of(name: str, first: str) -> list[str]:
    (found,) = [row for row in table(name) if row[0] == first]
    return found


def part(text: str, heading: str) -> str:
    """What stands below a heading of the measured page, up to the next."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_rows_of_speed_are_those_of_the_table():
    known = table("speed")
    shown = [row for row in rows(part(MEASURED, "Speed and memory")) if len(row) == len(known[0])]
    assert len(shown) > 8
    assert [row for row in shown if row not in known] == []


@pytest.mark.parametrize(
    ("words", "work", "cell"),
    [
        (r"scan takes ([\d.]+) of the stock one's time", "forward with our scan", 4),
        (r"attention map of a layer ([\d.]+) s", "mean map of a layer", 1),
        (r"where one by row takes ([\d.]+) s", "mean map of a layer", 2),
    ],
)
def test_speed_in_the_readme_is_that_of_the_table(words, work, cell):
    (said,) = re.findall(words, page("README.md"))
    found = re.search(r"[\d.]+(?= s$| F$)", row_of("speed", work)[cell])
    assert found is not None
    assert said == found.group()


def test_mixers_are_rebuilt_as_the_table_of_families_has_it():
    (said,) = re.findall(r"rebuilt to (\S+) of their own output", page("README.md"))
    errors = [
        float(row[3]) for row in table("families")
        if row[2:3] == ["float32"] and "fault of transformers" not in row[-1]
    ]  # fmt: skip
    assert max(errors) <= float(said)


def test_coverage_of_intervals_is_that_of_the_calibration():
    shown = [
        row for row in rows(MEASURED) if re.fullmatch(r"[\d.]+%", row[-1]) and row[0].isdigit()
    ]
    assert len(shown) == 3
    assert [row for row in shown if row not in table("calibration")] == []


def test_attributions_are_those_of_the_table():
    heads, *known = table("faithfulness")
    names = {"occlusion (the slow truth)": "occlusion", "random order": "random",
             "the later a token, the more relevant": "recency"}  # fmt: skip
    shown = [row for row in rows(MEASURED) if len(row) == 4 and re.match(r"-?\d.*\[", row[1])]
    assert len(shown) == 7
    for name, area, over, _ in shown:
        key = names.get(name, name).replace(" ", "_").replace("MambaLRP", "mamba_lrp")
        (row,) = [one for one in known if one[0] == key]
        assert (area, over) == (row[1], row[heads.index("over rollout")])


def test_a_passage_read_again_is_found_as_the_table_has_it():
    text = " ".join(part(MEASURED, "A passage read again").split())
    for layer, interval in re.findall(r"\b(9|12) \(x (\d.*?\])\)", text):
        assert f"x{interval}" in row_of("repeated_passage", layer)[2]
    assert len(re.findall(r"\b(9|12) \(x ", text)) == 2

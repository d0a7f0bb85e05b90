"""The glossary of the report: complete, and the one that tables and maps refer to."""

import re
from pathlib import Path

from result_views.glossary import MEASURES, method_name

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_measure_has_a_name_and_a_definition():
    for key, measure in MEASURES.items():
        assert re.fullmatch(r"\w+", key)
        assert measure.name
        assert measure.definition.endswith(".")
    names = [measure.name for measure in MEASURES.values()]
    assert len(set(names)) == len(names)


def test_the_page_refers_to_measures_that_there_are():
    page = (ROOT / "result_views" / "report" / "report.html.jinja").read_text(encoding="utf-8")
    referred = set(re.findall(r'term\("[^"]+", "(\w+)"\)', page))
    assert referred
    assert referred <= set(MEASURES)


def test_methods_are_written_with_hyphens():
    assert method_name("gradient_guided") == "gradient-guided"

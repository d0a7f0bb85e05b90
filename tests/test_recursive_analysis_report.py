"""The report as a file: structure, size, escaping, and what it says of damaged results."""

import base64
import copy
import json
import pydoc_data.topics
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_cases import HOSTILE_TEXTS, analysed

from analysis_pipelines.analysis_results import write_analysis
from recursive_analysis_report import (
    TEMPLATE_DIR,
    VERDICT_MARKS,
    finding_strip,
    main,
    report_html,
    write_report,
)
from recursive_visualizer import figure_attention_analysis, write_figures
from result_views.report.packed_maps import PackedMap, unpack_map
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED, TOO_LITTLE, VERDICTS, Finding

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """What a page is made of: tags with their attributes, and the text of the body."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self.text += data

    def data(self, name: str) -> str:
        scripts = [attrs for tag, attrs in self.tags if tag == "script"]
        return self.scripts[[attrs.get("id") for attrs in scripts].index(name)]


@pytest.fixture(scope="module")
def analysis():
    return analysed(
        HOSTILE_TEXTS, layers=(0, 2, 4), command=["python", "analyzer.py", "--text", "<x>"]
    )


@pytest.fixture(scope="module")
def hostile(analysis) -> Page:
    return Page(report_html(analysis.results, tensors=analysis.tensors))


def view_of(page: Page) -> dict:
    return json.loads(zlib.decompress(base64.b64decode(page.data("rest"))))


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=["markup", "signs", "arabic", "emoji", "long"])
def test_a_text_is_shown_as_itself(hostile, text):
    assert text in hostile.text
    assert text in ["".join(part["pieces"]) for part in view_of(hostile)["texts"]]


def test_nothing_of_a_text_becomes_markup(hostile):
    plain = Page(report_html(analysed(["plain words only, nothing else"], (0, 2, 4)).results))
    source = (TEMPLATE_DIR / "report.html.jinja").read_text(encoding="utf-8")
    assert {tag for tag, _ in hostile.tags} <= set(re.findall(r"<(\w+)", source))
    assert len(hostile.scripts) == len(plain.scripts) == 3
    assert hostile.scripts[-1] == plain.scripts[-1]
    for _, attrs in hostile.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]


def test_the_page_allows_its_own_script_and_style_alone(hostile):
    policy = next(a["content"] for t, a in hostile.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    source = (TEMPLATE_DIR / "report.html.jinja").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", source)


def test_no_address_loads_anything(analysis, tmp_path):
    drawn = {"attention_analysis": figure_attention_analysis}
    figures = write_figures(analysis.results, tmp_path, figures=drawn)
    page = Page(report_html(analysis.results, figures=figures))
    addresses = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert [value for value in addresses if not value.startswith(("#", "data:image/"))] == []
    assert len([value for value in addresses if value.startswith("data:image/webp")]) == 1
    styles = (TEMPLATE_DIR / "report.html.jinja").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", styles)


def test_maps_in_the_page_are_those_of_the_tensors(hostile, analysis):
    maps = json.loads(hostile.data("maps"))
    for name in ("absolute", "attention", "synthetic"):
        fields = maps["text_1"]["4"][name]
        blobs = {key: base64.b64decode(fields[key]) for key in ("steps", "codes")}
        found = unpack_map(PackedMap(**{**fields, **blobs}))
        exact = analysis.tensors[f"text_1.layer_4.{name}"].numpy()
        bound = np.abs(exact).max(axis=1, keepdims=True) / (1.98 * fields["levels"])
        assert (np.abs(found - exact) <= bound).all()


def test_every_finding_stands_with_its_verdict(hostile, analysis):
    found = [Finding.from_dict(row) for row in analysis.results["findings"]]
    items = [attrs for tag, attrs in hostile.tags if tag == "li" and "data-verdict" in attrs]
    verdicts = sorted((finding.verdict for finding in found), key=VERDICTS.index)
    assert [attrs["data-verdict"] for attrs in items] == verdicts
    assert {TOO_LITTLE, NOT_SUPPORTED} <= {finding.verdict for finding in found}
    assert set(VERDICT_MARKS) == set(VERDICTS)
    assert len(set(VERDICT_MARKS.values())) == 4  # both kinds of too little share one
    for finding in found:
        assert finding.claim in hostile.text
        assert finding.path in hostile.text


def test_the_strip_of_a_finding_keeps_order_and_proportion():
    finding = Finding("c", "s", 3.0, None, (-1.0, 1.0), 4, "layers", ABOVE_CHANCE, None, "p")
    strip = finding_strip(finding)
    assert strip is not None
    assert strip["interval"] is None
    low, high = strip["null"]
    assert low < strip["zero"] < high < strip["value"]
    # Places are rounded to 0.01 %.
    assert (strip["value"] - strip["zero"]) == pytest.approx(3 * (high - strip["zero"]), abs=0.05)
    undecided = Finding("c", "s", None, None, None, 0, "layers", TOO_LITTLE, "why", "p")
    assert finding_strip(undecided) is None


def test_a_failed_step_is_shown_with_its_reason(analysis):
    results = copy.deepcopy(analysis.results)
    failed = {"error": {"type": "AnalysisError", "message": "no <b>room</b>"}}
    results["individual_texts"]["text_0"]["analysis"]["neurons"] = failed
    results["individual_texts"]["text_0"]["analysis"]["recursive_patterns"] = failed
    results["self_check"]["without_result"] = {"text_0": {"neurons": failed}}
    page = Page(report_html(results, tensors=analysis.tensors))
    assert "text_0.neurons gave no result. AnalysisError: no <b>room</b>" in page.text
    assert "Over time: no result. AnalysisError: no <b>room</b>" in page.text
    assert view_of(page)["texts"][0]["layers"]["0"]["neurons"] == {}


def test_three_texts_of_512_tokens_and_five_layers_are_at_most_3_mb(tmp_path):
    one = analysed([pydoc_data.topics.topics["types"][:4000]], range(5))
    results = copy.deepcopy(one.results)
    # The same text three times: deflating looks back 32 kB, and a text's data are larger.
    for part in ("individual_texts", "self_check.replay_error"):
        place = results
        for key in part.split("."):
            place = place[key]
        place |= {f"text_{i}": place["text_0"] for i in (1, 2)}
    tensors = {
        key.replace("text_0", f"text_{i}"): x for key, x in one.tensors.items() for i in range(3)
    }
    assert len(results["individual_texts"]["text_2"]["tokens"]) == 512
    # The largest of the figures in place of each.
    drawn = {"attention_analysis": figure_attention_analysis}
    figures = write_figures(results, tmp_path, tensors=tensors, figures=drawn)
    page = report_html(results, tensors=tensors, figures=figures)
    (picture,) = re.findall(r"data:image/webp[^\"]+", page)
    size = len(page.encode()) + 5 * len(picture)
    assert 1_000_000 < size <= 3_000_000


def test_the_command_reads_files_and_writes_both_reports(analysis, tmp_path, capsys):
    path = write_analysis(analysis, tmp_path / "analysis_results.json")
    out = tmp_path / "report"
    assert main(["--results", str(path), "--output-dir", str(out)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 7  # six figures and the overview
    for target in re.findall(r"!\[[^\]]*\]\(<([^>]+)>\)", text):
        assert (out / target).is_file()
    assert json.loads(Page(page).data("maps"))["text_0"]


def test_the_same_results_give_the_same_report(analysis):
    pages = [report_html(analysis.results, tensors=analysis.tensors) for _ in range(2)]
    assert pages[0] == pages[1]


def test_without_tensors_and_findings_it_is_said(analysis):
    results = {key: value for key, value in analysis.results.items() if key != "findings"}
    page = Page(report_html(results))
    assert "These results hold no findings." in page.text
    assert "the token view shows no map" in " ".join(page.text.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no results file"),
        ("{", "is not strict JSON"),
        ('{"schema_version": "0.1"}', "has schema_version '0.1'"),
        ('{"schema_version": "1.0"}', "individual_texts, analysis_metadata, self_check"),
        ('{"schema_version": "1.0", "x": NaN}', "it holds NaN"),
        ("[]", "has schema_version None"),
    ],
)
def test_bad_files_are_errors_that_say_what_to_do(tmp_path, capsys, content, message):
    path = tmp_path / "analysis_results.json"
    if content is not None:
        path.write_text(content)
    out = tmp_path / "out"
    assert main(["--results", str(path), "--output-dir", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "run the" in error or "not strict JSON" in error
    assert not (out / "report.html").exists()


def test_corrupt_tensors_and_pictures_are_errors(analysis, tmp_path):
    path = write_analysis(analysis, tmp_path / "analysis_results.json")
    path.with_suffix(".safetensors").write_bytes(b"not tensors")
    assert main(["--results", str(path), "--output-dir", str(tmp_path / "out")]) == 2
    picture = tmp_path / "x.png"
    picture.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"figure '.*x\.png' cannot be read"):
        write_report(analysis.results, tmp_path, figures=[picture])


def test_a_folder_that_cannot_be_written_is_an_error(analysis, tmp_path):
    path: Path = write_analysis(analysis, tmp_path / "analysis_results.json")
    (tmp_path / "file").write_text("")
    assert main(["--results", str(path), "--output-dir", str(tmp_path / "file")]) == 2


def test_memory_results_are_reported_too(analysis):
    results = analysis.results
    memory = {
        "schema_version": "1.0", "self_check": {}, "provenance": {"model": {}}, "memory": {},
        "analysis_metadata": {"layer_indices": [0], "neuron_methods": []},
        "individual_texts": {"text_0": {"text": HOSTILE_TEXTS[0]}},
        "findings": [Finding("Memory <i>decays</i>", "s", 1.0, None, (0.0, 0.1), 2, "layers",
                             ABOVE_CHANCE, None, "memory.x").to_dict()],
        "memory_by_layer": [{"layer": 0, "mean_delta": 0.25}],
    }  # fmt: skip
    page = Page(report_html(results, memory=memory))
    assert "Memory <i>decays</i>" in page.text
    tried = len(results["findings"]) + 1
    assert f"Of {tried} claims tried: " in page.text
    assert "of another model than the rest" in page.text

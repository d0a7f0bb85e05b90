"""A report as Markdown, and text that Markdown shows as itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from result_views.claims import grouped
from result_views.glossary import MEASURES
from result_views.report.content import NO_PREDICTIONS, SECTIONS, ReportContent
from result_views.report.tables import Cell, Table
from token_statistics.findings import Finding, compared, number

# Marks up, or may, wherever it stands; a colon and an at sign where they would begin an address, a
# name or a picture; and what would begin a list, a heading or a rule at the start of a line.
_ANYWHERE = re.compile(r"[\\`*_\[\]|<>$~&]|:(?=\S)|@(?=\w)|(?<=www)\.")

_AT_START = re.compile(r"^(\s*)([#+=-](?=[\s#=-]|$))|^(\s*\d{1,9})([.)](?=\s|$))")


def escape_markdown(text: str) -> str:
    """Text that stands in a line of Markdown as itself: no markup, no HTML, no mathematics.

    Line breaks become ↵: a paragraph or a cell of a table is one line. White space at its ends,
    which Markdown would not show, is left out. Numbers stay readable.
    """
    line = re.sub(r"\r\n|[\r\n\v\f\x85\u2028\u2029]", "↵", text).strip()
    return _AT_START.sub(r"\1\3\\\2\4", _ANYWHERE.sub(r"\\\g<0>", line))


def fenced(text: str) -> str:
    """Text of any kind as a block of code, exactly; the fence is longer than any within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def markdown_report(
    content: ReportContent,
    figures: Mapping[str, tuple[str, str]],
    neurons: Sequence[Table] = (),
) -> str:
    """The report as one Markdown text.

    ``figures``: by relative path, title and description. ``neurons``: tables of neurons.
    """
    together = [*([content.memory] if content.memory else []), *content.together]
    limits = [*(f"- {escape_markdown(line)}" for line in content.limits), ""]
    parts = {
        "answers": {"Answers": _answers(content)},
        "predictions": {"What made each prediction": _predictions(content)},
        "neurons": {"Neurons": _tables(neurons)},
        "findings": {"Claims": _claims(content)},
        "layers": {"Texts": _texts(content), "All texts together": _tables(together)},
        "figures": {"Figures": _figures(figures)},
        "checks": {"Checks": _checks(content), "Limits": limits},
        "reproduce": {"Provenance": _provenance(content)},
        "measures": {"What the numbers are": _measures()},
    }
    headed = [part for section in SECTIONS for part in parts.get(section.key, {}).items()]
    summary = " ".join(map(escape_markdown, content.summary))
    return "\n".join(
        [
            *(f"# {escape_markdown(content.title)}", "", summary, ""),
            *(line for title, lines in headed for line in (f"## {title}", "", *lines)),
        ]
    )


def _answers(content: ReportContent) -> list[str]:
    lines = [
        f"- {escape_markdown(one.sentence)} ({escape_markdown(one.basis)}; "
        f"{escape_markdown(one.path)})"
        for one in content.answers
    ]
    table = [] if content.overview is None else _table(content.overview)
    return [*(lines or ["These results hold no answers."]), "", *table]


def _predictions(content: ReportContent) -> list[str]:
    if content.predictions is None:
        return [NO_PREDICTIONS, ""]
    return _table(content.predictions)


def _claims(content: ReportContent) -> list[str]:
    head = [escape_markdown(x) for x in (content.claim_counts, content.findings_note) if x]
    every = [one for group in content.claims for one in group.findings]
    if not every:
        return [*head, ""]
    rows = [
        [escape_markdown(x) for x in (one.claim, one.statistic, one.rule, one.path)]
        for one in every
    ]
    return [
        *(line for one in head for line in (one, "")),
        *claim_groups(every, content.memory_claims),
        "### What was measured for each claim",
        "",
        *_table_lines(("claim", "measured", "supported if", "in the results"), rows),
        "",
    ]


def claim_groups(findings: Sequence[Finding], of_memory: Collection[str] = ()) -> list[str]:
    """The claims by verdict, supported first, a line each; those of the memory analysis marked."""
    lines = []
    for group in grouped(findings):
        title = f"{group.verdict[:1].upper()}{group.verdict[1:]} ({len(group.findings)})"
        lines += [f"### {title}", "", f"{group.meaning[:1].upper()}{group.meaning[1:]}.", ""]
        lines += [f"- {escape_markdown(_claim(one, of_memory))}" for one in group.findings]
        lines.append("")
    return lines


def _claim(finding: Finding, of_memory: Collection[str]) -> str:
    claim = f"{finding.claim} (memory)" if finding.claim in of_memory else finding.claim
    if finding.value is None:
        return f"{claim}: {finding.reason}."
    return f"{claim}: {number(finding.value)} ({compared(finding)})."


def _texts(content: ReportContent) -> list[str]:
    lines = []
    for part in content.texts:
        rest = f" {part.rest} more characters were not analysed." if part.rest else ""
        lines += [
            f"### {escape_markdown(part.title)}",
            "",
            fenced(part.text),
            "",
            *([rest.strip(), ""] if rest else []),
            *_tables(part.tables),
        ]
    return lines


def _tables(tables: Sequence[Table]) -> list[str]:
    return [line for table in tables for line in _table(table)]


def _table(table: Table) -> list[str]:
    head = [f"**{escape_markdown(table.title)}**", ""]
    if table.failure is not None:
        return [*head, f"No result: {escape_markdown(table.failure)}", ""]
    note = [escape_markdown(table.note), ""] if table.note else []
    columns = [column.label for column in table.columns]
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return [*head, *_table_lines(columns, rows), "", *note]


def _cell(cell: Cell) -> str:
    value = escape_markdown(cell.text)
    value = f"**{value}**" if cell.outside else value
    return f"{value} ({escape_markdown(cell.null)})" if cell.null else value


def _table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [escape_markdown(label) for label in columns]
    lines = [head, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _figures(figures: Mapping[str, tuple[str, str]]) -> list[str]:
    lines = []
    for path, (title, description) in figures.items():
        target = path.replace("\\", "/").replace("%", "%25").replace(">", "%3E")
        target = target.replace("<", "%3C").replace("\n", "%0A")
        lines += [f"![{escape_markdown(title)}](<{target}>)", "", escape_markdown(description), ""]
    return lines or ["No figure was drawn.", ""]


def _checks(content: ReportContent) -> list[str]:
    lines = [escape_markdown(content.check), ""]
    lines += [
        f"- Without result: {escape_markdown(place)}: {escape_markdown(why)}"
        for place, why in content.failures
    ]
    return [*lines, *([""] if content.failures else []), *_table(content.replay)]


def _provenance(content: ReportContent) -> list[str]:
    made = (
        ["These results are made again by", "", fenced(content.command), ""]
        if content.command
        else ["These results were made from Python, not from a command line.", ""]
    )
    return [*made, *_table(content.provenance), *_table(content.text_lengths)]


def _measures() -> list[str]:
    rows = [[escape_markdown(cell) for cell in measure] for measure in MEASURES.values()]
    return [*_table_lines(("measure", "unit", "definition"), rows), ""]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table of text, an empty one at its end; all of it stands as itself."""
    return [*_table_lines(head, [[escape_markdown(cell) for cell in row] for row in body]), ""]

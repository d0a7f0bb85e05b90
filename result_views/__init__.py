"""Saved results, shown: tables, figures and reports. No model is loaded, no statistic computed.

May import `suite_plumbing`, `selective_scan`, `token_statistics`.

answers            The answers of an analysis's overview, as a terminal, a report and a page show
                   them
beside_nulls       Where a value stands beside its null: the one rule of tables, figures and
                   reports
checks             Whether a run's numbers can be trusted, in words: what every report and every
                   terminal says
claims             Claims of results as a terminal, a report and a page show them: by verdict,
                   supported first
faithfulness_rows  The faithfulness table of attributions as rows: a line a method, for CSV and for
                   a terminal
glossary           What the numbers of a report are: name, unit, definition and how each can mislead
layer_names        Layers by name in a sentence: single numbers, runs, and every second one
step_lines         What a step's command found, for a terminal: a line a layer, numbers with their
                   units
summaries          Results of an analysis as a notebook shows them and as a run ends: tables read
                   from the results
terminal_lines     Tables and sentences as lines of a terminal: no line is wider than it
figures/  what draws results; the only folder that imports matplotlib
report/   what tells them as HTML and Markdown, with the template
"""

from typing import TYPE_CHECKING

from suite_plumbing.lazy_names import lazy_names

if TYPE_CHECKING:
    from recursive_visualizer import (
        Results,
    )
    from result_views.summaries import (
        check_lines,
        finding_frame,
        layer_rows,
        run_summary,
        text_table,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "recursive_visualizer": ["Results"],
        "result_views.summaries": [
            "check_lines",
            "finding_frame",
            "layer_rows",
            "run_summary",
            "text_table",
        ],
    },
)

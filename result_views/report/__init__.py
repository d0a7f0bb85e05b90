"""The report: its tables, its token view, and its renderings as HTML and Markdown.

atlas              The atlas of a corpus: one page in which neurons and tokens are looked up
comparison_report  A comparison of models as a table and as a section of a report, from its
                   results alone
content            What a report says, before it is HTML or Markdown: read and checked from the
                   results
markdown           A report as Markdown, and text that Markdown shows as itself
memory_report      The report of the memory analysis in Markdown, written from its results alone
packed_maps        Causal attention maps packed small enough for one HTML file, and unpacked again
prediction_view    What the prediction view of a report shows: what made the likeliest token after
                   each position
tables             Tables of a report, read from the results of an analysis: cells as text, values
                   beside nulls
token_view         What the interactive token view of a report shows: texts, maps, series and
                   neurons, packed
"""

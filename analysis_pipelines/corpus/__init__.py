"""A corpus of any size: a step that any number of processes run, and what is made of its parts.

Knows what `analysis_pipelines` may.

engines   Who runs the tasks of a corpus: this process, processes of its own, datatrove, or ranks
findings  Findings over a corpus, with intervals over documents
parts     Part files: one a task, written whole, checked when they are read, merged in order
plan      What a run over a corpus was asked for, stored with its parts and compared with them
results   The results of a corpus from its merged sums
step      The step: one task's texts read, summed and written as one part
tables    Tables of a corpus by layer, neuron and token, and the contents of its atlas
windows   Windows of texts: tokens of a passage cut to a length, and batches of them
"""

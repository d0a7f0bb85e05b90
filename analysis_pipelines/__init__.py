"""Steps put together: what the analyses at the root run, on one text and over texts.

May import every folder, and the steps at the root.

analysis_results     Results of the main analysis: how they are put together, checked and written
comparison_findings  Claims of a comparison: whether two models' attention, and their layers, are
                     alike
comparison_readings  Several models read the same texts: their attention and layers measured, and
                     compared in pairs
comparison_results   Results of a comparison of models: what was read of every text and pair, as
                     strict JSON
cross_text_steps     The eighth step of the main analysis: what its texts have in common, and how
                     they differ
key_findings         The findings that analyses of this kind report, recomputed from the results
                     of the main one
memory_causal        Causal memory of a set of texts as the memory analysis reports it: by layer,
                     lag and position
memory_claims        Claims about memory, each tried on the data at hand by a rule of `findings`
memory_neurons       Neurons of all texts together, and how they go with delta and memory
memory_reading       Texts as the memory analysis reads them: one capture each, in memory or from
                     files
memory_steps         What a model's states keep of the past and what its predictions lose without
                     it, by layer
memory_table         One row a layer: the numbers of the memory analysis side by side, read from
                     its JSON
memory_twins         What the memory claims' statistics are in untrained twins: what needs no
                     training at all
overview             The overview: what every SSM layer of a model does with its memory, and
                     answers made from it
overview_answers     What the overview may say: a sentence for each question, with its numbers and
                     its place
overview_nulls       A quantity of the overview beside its null: the test as results hold it, and
                     what texts weigh
overview_questions   The questions of the overview tried together: how small a p has to be where
                     five are asked
overview_readings    How the tests of a question read: what is claimed, what is small, and what
                     is undecided
overview_rows        Rows of the overview, one a layer: the texts joined, and each quantity beside
                     its null
overview_sentences   Parts of the overview's sentences that its questions have in common
overview_wording     Numbers and layers in a sentence of the overview
prediction_parts     What made each prediction of a text, for the report: exact parts as tensors,
                     their sizes as JSON
predictions          Direct attribution of every prediction of a text: by source token, by
                     layer and path
shared_pieces        Pieces of a text that several tokenizers have in common, and what models say
                     pooled over them
step_runner          Run the steps of an analysis so that one that fails leaves the others whole
text_parts           Analyses of texts on disk while others are still to come: what a stopped run
                     goes on from
corpus/              a corpus of any size: a step that any number of processes run, and what is
                     made of its parts
text_steps           What each step of the main analysis does on one text, and what becomes of their
                     results
token_predictions    What each token of a text cost, and what the model expected in its place: of
                     the token view
"""

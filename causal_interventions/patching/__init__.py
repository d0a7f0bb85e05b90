"""Activation patching: what of a clean run, put into a corrupt one, brings the answer back.

circuits        Circuits of edges between layers: what is left of an effect when only they, or all
                but they, carry the clean run
exact           Exact patching: every site, layer and token of a run by the value of another run
gradients       Attribution patching: the same to first order, from one gradient, by node, edge and
                pair of tokens
metrics         What is measured of a prediction when a run is patched
pairs           Pairs of a clean and a corrupt text with their answers, as a user passes them
patching_results
                What exact patching found: effects with intervals over pairs, beside a control
sites           Places of a run that can be patched, and runs kept for that
tasks           Texts that ask for memory, made by a rule: associative recall, MQAR, copying,
                passkeys
"""

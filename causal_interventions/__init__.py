"""The model run again: with something of it changed, or for a gradient.

May import the folders before it in the order of imports, `ssm_measures` the last of them.

causal_curves        Curves of causal memory: the effect of one intervention at several positions,
                     by the lag
effects              What interventions in a Mamba do to its predictions: KL, loss, a chosen
                     logit; neurons too
explained            What an attribution explains: a text, a scalar f of the logits on it, and a
                     stand-in for a token
faithfulness_tables  Tables of faithfulness: how attribution methods fare over texts, with
                     intervals, as objects
interventions        Interventions in a Mamba's memory: small pieces that compose, each exact
logit_lens           Logit lens: what the final norm and the unembedding read in the stream
                     after every layer
logit_parts          Direct attribution of a logit: what each layer, path, source token and
                     neuron itself gave
neuron_effects       What a model's neurons do to a scalar target: exact gradients, and exact
                     effects of ablation
passing              Whether a later layer reads what an earlier one writes: the write is cut, the
                     output compared
patching             A folder: activation patching, exact and to first order, and circuits
perturbation_curves  How a quantity falls while the parts that it is said to depend on are taken
                     away
state_resets         What erasing a layer's state costs the next predictions: one erasure a layer,
                     in one pass
steering_curves      What steering does and what it costs, over the coefficient, beside random
                     vectors
steering_edits       A model steered: a vector added at its site at every token, projected out, or
                     channels scaled
steering_vectors     Steering vectors: a direction at one site of one layer, from contrastive texts
                     or given
targets              Scalar targets of a language model: what an attribution or a gradient
                     explains
total_effects        Total effects: what a logit loses without what a layer or a source token
                     wrote
tuned_lens           Tuned lens: one affine map a layer, from its stream to what the last layer
                     makes of it
"""

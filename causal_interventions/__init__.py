"""The model run again: with something of it changed, or for a gradient.

May import the folders before it in the order of imports, `ssm_measures` the last of them.

causal_curves        Curves of causal memory: the effect of one intervention at several positions,
                     by the lag
effects              What interventions in a Mamba do to its predictions: KL, loss, a chosen
                     logit; neurons too
interventions        Interventions in a Mamba's memory: small pieces that compose, each exact
neuron_effects       What a model's neurons do to a scalar target: exact gradients, and exact
                     effects of ablation
perturbation_curves  How a quantity falls while the parts that it is said to depend on are taken
                     away
targets              Scalar targets of a language model: what an attribution or a gradient
                     explains
"""

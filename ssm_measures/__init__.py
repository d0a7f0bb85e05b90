"""What one recorded forward pass holds, measured layer by layer. No model is run.

May import `suite_plumbing`, `selective_scan`, `token_statistics`, `mamba_mixers`.

attention_maps      Maps of what a token takes from which earlier token, in one layer of a Mamba
attention_measures  Measures of attention maps: how a query spreads its attention, how far back a
                    layer reaches
components          What one layer's selective SSM computed on a batch of texts, and how its state
                    evolved
copying             Copying: whether a layer takes from the token after an earlier occurrence of
                    the same token
corpus_layer        Sums over the texts of a corpus of what one layer computed, which add up over
                    any parts
corpus_maps         Sums over the texts of a corpus of what takes a map, the states, or a series
delta_neurons       The neurons that go with delta, and those that depend on it
direct_maps         Direct attribution of every position of a text at once, in one layer: by
                    source and by path
full_mixer_maps     Maps of the full mixer: convolution and its bias, SiLU, gate and D around the
                    implicit attention
gate_tokens         Which tokens open a layer's gate and which close it: delta by token and by
                    class of token
kept_captures       Captures of texts in files of a folder, read array by array, so that memory
                    holds none of them
layer_attention     Implicit attention of captured layers: maps and measures, as objects that
                    show themselves
layer_overview      What one layer does with its memory on one text, in a few numbers: the row of
                    an overview
neuron_evolution    How a method's neurons, and the attention that made them, change from layer to
                    layer
neuron_sets         Sets of neurons: what one method says of the d_inner channels of one layer,
                    and what follows
neuron_shares       What the neurons of a text's last token are made of: by path, and by the
                    token it came from
shown_objects       What every result object of a layer can do: one line, a table, a figure, a file
                    and back
ssm_attention       How a mixer's delta, B and C go with its implicit attention: rank
                    correlations, each with a null
states              What a layer's states measure: norms, steps, what is kept, and inner products
                    over tokens
tokens_to_half      How long a state keeps what a token wrote, by delta as it is at every token
"""

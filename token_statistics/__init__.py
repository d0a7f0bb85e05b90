"""Numbers over tokens: association, series in time, CKA, nulls, findings and the rules of verdicts.

May import `suite_plumbing`; no model, no ``transformers``.

association             How two sets of samples go together: Pearson and rank correlations, their
                        p-values, overlap
autocorrelation         Autocorrelation within texts, beside that of shuffled tokens, and the
                        samples it leaves
channel_correlations    Correlation of every channel of one layer with every channel of another,
                        beside its null
cka                     Linear CKA of two sets of channels, debiased, also at time shifts of one
                        side
corpus_pairs            Sums over the texts of a corpus from which the correlations of pairs of
                        layers follow
correlation_sums        Sums over the tokens of a corpus from which the correlations of two
                        layers follow
cross_text_consistency  How far texts agree: spread between texts against spread within, and
                        shared important neurons
description             Numbers that describe one set of samples: entropy, rank, kurtosis,
                        autocorrelation, spread
findings                Findings: a claim, what was measured for it, what that is compared with,
                        and the verdict
fixed_bins              Histograms on bins that no data set: half octaves, so that parts of a
                        corpus add up
intervals               A mean or a ratio with its 95 % interval, and whether a mean is above 0,
                        from few samples too
joined_places           A statistic measured in several places, joined: its mean over them, its
                        null, and its p
kept_windows            Windows of texts kept for each neuron: the most extreme ones, and one
                        drawn for each octave
layer_likeness          How alike the layers of two models are on one text: all pairs of layers at
                        once, and their nulls
moved_pairs             Correlations of all pairs of channels of two layers, one of which is moved
                        in time
observations            Which tokens of several texts are observations, and how the null moves texts
                        in time
pair_significance       Significance of single pairs of channels from the distribution of all pairs
                        under time-shifts
position_course         What depends on the position in a text alone, and values without it
position_scale          Whether two layers vary by position alike, so that shifts in time are no
                        null for them
rhythms                 Rhythm of a series: a period at which its spectrum rises again above that
                        of slow change
smallest_effects        Effects worth a name: the smallest of each kind that a claim may rest on,
                        with unit and reason
streamed_correlations   Correlation of layers over a corpus read batch by batch: sums, memory
                        that no token adds to
several_tests           Several statistics tried at once, each beside the largest that chance
                        gives any of them
text_groups             Related texts as one sample: what is measured text by text, joined within
                        each group of texts
time_shift_nulls        Statistics of series in time, each beside what it is when the two sides
                        are shifted in time
twin_bounds             What untrained twins let expect of another one: a bound on the scale of
                        the statistic itself
verdict_rules           The rules by which numbers become a finding with its verdict
within_texts            Rank correlation of samples taken along several texts, within the texts
                        and beside their course
"""

"""Panels and pages of figures, drawn from saved results; matplotlib is imported here alone.

analysis_panels       Panels of the figures: each draws one quantity of a result dict on an ``ax``
                      and returns it
attribution_figures   Figure of direct attribution: layers, paths, source tokens; the logit lens
command_panels        Panels by name of the commands beside the two analyses
comparison_figures    The figure of a comparison of models, drawn from its results alone
drawing               Primitives that draw on an ``ax``, and tokens as labels; `analysis_utils`
                      passes them on
corpus_figures        Figure of a corpus: its layers' steps, reach and copying, and what position
                      does
faithfulness_figures  Figure of attribution faithfulness: each method with its interval, beside
                      random orders
finding_figures       Figure of the findings: the claims tried on the data, each on the scale of
                      its own null
long_memory_figures   Figure of a long text read through: what memory beyond a window is
                      worth, and the state
memory_figures        Figures of the memory analysis, drawn from its results alone: five of
                      memory, one of causes
memory_panels         Panels of the memory figures: each draws one quantity of the memory analysis
                      on an ``ax``
neuron_figures        Figure of one set of neurons: how importance is spread, and when the first
                      ones are active
neuron_panels         Panels of neurons: across layers by method, and what texts share; each draws
                      on an ``ax``
null_looks            How a value is drawn beside its null: outside, inside and without a null are
                      three looks
object_figures        Figures of single result objects: a layer's components along a text, a
                      layer's attention
overview_figures      Figure of the overview: how long each layer keeps a token, copies, and is
                      needed
pages                 Pages of the figures: style, title, legend of texts, caption with model and
                      n, rows of panels
panel_view            What single panels are drawn from: results of which a text, a layer or
                      nothing is chosen
panel_primitives      What the panels of `analysis_panels` are drawn with: sections, texts, layers
                      and nulls on an ax
patching_figures      Figures of activation patching: effects by layer and token, and circuits by
                      their size
single_panels         Single panels by name: any panel of the pages, of one layer, text or stretch
                      of tokens
step_figures          The pictures of steps: the numbers of a table over layers, and correlations
                      of layers
steering_figures      Figure of a steered model: what a vector does and what it costs, beside
                      random vectors
token_score_figures   Figure of an attribution to input tokens: the scores along each text
titles                Titles of the figures: what each shows of these results, as a sentence with
                      its numbers
"""

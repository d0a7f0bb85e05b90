"""All that the suite knows of ``transformers``' Mamba code: find, record, replay and run mixers.

May import `suite_plumbing`, `selective_scan`, `token_statistics`.

attention_layers  Softmax attention and the residual stream of any causal language model, layer by
                  layer
caches            A mixer's memory in the cache that ``generate`` passes from call to call
calls             What a mixer or a block was called with, whatever a version of
                  ``transformers`` calls it
exclusive_use     Changes of a model that threads share: one thread at a time makes them, and it
                  alone meets them
families          The families of selective SSM mixers in ``transformers``: a table, and what its
                  rows are made of
hooks             Forward hooks that are removed whatever happens; the only place that registers
                  any
mamba3            Mamba-3 as a plain torch model: SISO and MIMO, generation by memory, save and load
mamba3_config     Sizes and choices of a Mamba-3, and those of an official checkpoint
mamba3_scan       What a Mamba-3 mixer makes of its input, and its recurrence in chunks
own_models        A user's own model, taken apart and put together as one that every analysis
                  reads
own_modules       Parts of a user's own model, with the attributes and calls that the suite reads
own_structure     Where embedding, layers, final norm and head of a user's model lie, read off one
                  forward pass
placement         Parameters that are not where a computation needs them: offloaded, or quantised
recording         One forward pass of a model, recorded: mixers replayed, and the residual stream
                  around them
replay            A mixer computed again from its input, by its own modules and the suite's scan
replay_check      Whether the replayed mixers are the model's own, and what a difference means for
                  the results
rewiring          Layers that read chosen sums of what the layers before them wrote, in place of
                  all of it
running           Models run by the suite's own scan: faster, differentiable, edited, or entered
                  at a layer
sites             Where the selective SSM mixers of a model sit, and which models have none
stream_writes     What each layer of one forward pass wrote into the residual stream at a
                  text's last token
stream_edits      The residual stream, changed where it enters a layer; everything else is the
                  model's own code
token_positions   Which tokens of their texts an edit has before it: all of them, or the next of a
                  generation
untrained_twins   Untrained twins of a model: what a measure gives on them needs no training
weights           Weights that analyses read: of mixers, of the embedding, of what turns a stream
                  into logits
"""

from typing import TYPE_CHECKING

from suite_plumbing.lazy_names import lazy_names

if TYPE_CHECKING:
    from mamba_mixers.families import (
        FAMILIES,
        MixerFamily,
    )
    from mamba_mixers.mamba3 import (
        Mamba3Config,
        Mamba3ForCausalLM,
    )
    from mamba_mixers.own_models import (
        own_model,
    )
    from mamba_mixers.recording import (
        LayerRecord,
        record_layers,
        record_streams,
    )
    from mamba_mixers.replay import (
        EDITABLE,
        GRADIENT,
        LRP,
        Edit,
        MixerMemory,
        MixerReplay,
        Rules,
        replay_mixer,
    )
    from mamba_mixers.running import (
        fast_scan,
        forward_from,
    )
    from mamba_mixers.sites import (
        MixerSite,
        UnsupportedModelError,
        find_mixers,
        num_layers,
    )
    from mamba_mixers.token_positions import token_positions
    from mamba_mixers.weights import (
        MixerParameters,
        bias_parameters,
        check_has_logits,
        embedding_scale,
        input_embeddings,
        logit_directions,
        mixer_parameters,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "mamba_mixers.families": ["FAMILIES", "MixerFamily"],
        "mamba_mixers.mamba3": ["Mamba3Config", "Mamba3ForCausalLM"],
        "mamba_mixers.own_models": ["own_model"],
        "mamba_mixers.recording": ["LayerRecord", "record_layers", "record_streams"],
        "mamba_mixers.replay": [
            "EDITABLE",
            "Edit",
            "GRADIENT",
            "LRP",
            "MixerMemory",
            "MixerReplay",
            "Rules",
            "replay_mixer",
        ],
        "mamba_mixers.running": ["fast_scan", "forward_from"],
        "mamba_mixers.sites": ["MixerSite", "UnsupportedModelError", "find_mixers", "num_layers"],
        "mamba_mixers.token_positions": ["token_positions"],
        "mamba_mixers.weights": [
            "MixerParameters",
            "bias_parameters",
            "check_has_logits",
            "embedding_scale",
            "input_embeddings",
            "logit_directions",
            "mixer_parameters",
        ],
    },
)

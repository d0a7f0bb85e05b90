"""Models run by the suite's own scan: faster, differentiable, edited, or entered at a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mamba_mixers.caches import (
    Counted,
    count_tokens,
    counted_before,
    no_lost_beams,
    read_memory,
    write_memory,
)
from mamba_mixers.calls import STREAMS, MixerCall, bound_by_name, mixer_call
from mamba_mixers.exclusive_use import (
    acting_for,
    acting_thread,
    exclusive_use,
    forward_in_place,
    replaced_forward,
)
from mamba_mixers.replay import GRADIENT, Edit, MixerMemory, MixerReplay, Rules, replay_mixer
from mamba_mixers.sites import (
    MixerSite,
    UnsupportedModelError,
    blocks_of,
    find_mixers,
    model_family,
)
from mamba_mixers.token_positions import EditMemory, TokensRead, real_tokens
from mamba_mixers.weights import check_has_logits, input_embeddings, is_rms_norm
from suite_plumbing.checks import LARGEST_INT, int_or_none, validate_int
from suite_plumbing.messages import quoted

Observer = Callable[[int, MixerReplay], None]


@contextmanager
def fast_scan(
    model: nn.Module,
    *,
    edits: Mapping[int, Edit] | None = None,
    observe: Observer | None = None,
    rules: Rules = GRADIENT,
    memories: MutableMapping[int, MixerMemory] | None = None,
    recompute: Collection[int] = (),
) -> Iterator[nn.Module]:
    """Within this context the model's mixers run by replay, with the suite's scan.

    That makes the forward pass of Mamba-1 on a CPU faster than the stock token loop and its
    backward pass feasible. ``edits`` changes quantities of chosen layers (see
    :func:`replay_mixer`); ``observe(layer, replay)`` sees each mixer's quantities, inside the
    autograd graph. ``rules`` other than ``GRADIENT`` apply to the mixers and
    to the model's RMS norms. Both are restored on leaving, whatever happened.

    ``model.generate`` works inside: a call with the model's cache goes on from what the cache
    holds, to the numbers of the whole text read at once, and leaves its own memory there,
    detached. An edit is then called on the tokens that a call brings, one in a step of generation;
    ``token_positions`` tells it which they are. Raises RuntimeError beside a cache for an edit
    that makes several rows of one, for ``memories`` or ``recompute``, and for a beam search whose
    cache ``transformers`` does not reorder.

    Within another such context its edits go first, and its observer sees nothing.

    All of that is so for the thread that entered. Another one that enters, or records, waits until
    this one has left; one that calls the model directly runs it as it is.

    ``memories`` makes consecutive calls the chunks of one text, of any length from one token on:
    each mixer starts from its layer's entry (none: an empty memory) and leaves its memory there,
    detached. Chunks then give what the whole text gives. Edits count tokens from the chunk's
    start. Raises UnsupportedModelError for a model with attention, which would need its own cache.

    A backward pass needs some 12 tensors (b, l, d_inner) of every block. Those of the layers in
    ``recompute`` are not kept, but computed a second time by it, to the same bits: a block's
    forward for its memory. Edits and observers of these layers are then called a second time too,
    and the gradient has to be taken inside the context. Raises ValueError beside ``memories``,
    which a second time would confuse.
    """
    sites = find_mixers(model)
    if memories is not None:
        if recompute:
            raise ValueError(f"recompute is {recompute} beside memories; use one of the two")
        _check_that_all_memory_is_in_mixers(model)
    edits = {
        validate_int("a layer of edits", i, -LARGEST_INT): edit for i, edit in (edits or {}).items()
    }
    if unknown := sorted(set(edits) - set(sites)):
        raise ValueError(
            f"edits names layers {unknown} without an SSM; those with one: {list(sites)}"
        )
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for site in sites.values():
            edit = _both(_edit_in_place(site.mixer), edits.get(site.layer))
            forward = _replaying_forward(site, edit, observe, rules, memories, recompute)
            stack.enter_context(replaced_forward(site.mixer, forward))
        for block in (
            blocks_of(model) if edits and model_family(model).reads_embeddings_again else ()
        ):
            stack.enter_context(replaced_forward(block, _with_rows_alike(block)))
        if hasattr(model, "generate"):
            stack.enter_context(no_lost_beams(model))
        for norm in _rms_norms(model) if rules is not GRADIENT else ():
            forward = partial(rules.elementwise, norm.forward)
            stack.enter_context(replaced_forward(norm, forward))
        blocks = blocks_of(model) if recompute else ()
        for block in (blocks[layer] for layer in recompute):
            forward = partial(checkpoint, _for_this_thread(block.forward), use_reentrant=False)
            stack.enter_context(replaced_forward(block, forward))
        yield model


def forward_from(
    model: nn.Module,
    layer: int,
    hidden_states: Tensor,
    input_ids: Tensor | None = None,
    *,
    last_logits: int = 0,
) -> Tensor:
    """Logits (b, l, V) of the model when ``hidden_states`` (b, l, d_model) enter block ``layer``.

    The residual stream before that block is the given one, without padding; the blocks before it
    are not run, and everything after it is the model's own code. Works inside ``fast_scan``.
    ``input_ids`` (b, l) are the text's tokens: Zamba and Zamba2 read their embeddings again in
    later layers (before layer 0 the stream stands in for them where there are no tokens), the
    others do without. With ``last_logits`` k > 0 only those of the last k tokens
    are computed, (b, k, V), where the model can do that.
    Raises ValueError for a layer that the model does not have and for tokens that are missing, and
    UnsupportedModelError for a model without a selective SSM or without logits. Cost: a forward
    pass of the remaining blocks.
    """
    blocks = blocks_of(model)
    check_has_logits(model)
    first = int_or_none(layer)
    if first is None or not 0 <= first < len(blocks):
        raise ValueError(f"layer is {quoted(layer)}; the model has layers 0 to {len(blocks) - 1}")
    inputs = hidden_states
    if model_family(model).reads_embeddings_again and (first > 0 or input_ids is not None):
        if input_ids is None:
            raise ValueError(
                f"input_ids is None, but layers of {type(model).__name__} read the embeddings "
                "again: pass the text's tokens"
            )
        inputs = input_embeddings(model, input_ids)
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for block in blocks[:first]:
            stack.enter_context(_skipped(model, block))
        entered = _entered_by(blocks[first], hidden_states)
        stack.enter_context(replaced_forward(blocks[first], entered))
        kept = model(
            inputs_embeds=inputs, use_cache=False, return_dict=True, logits_to_keep=last_logits
        ).logits
        return kept[:, -last_logits:]


@contextmanager
def row_added_before(model: nn.Module, layers: Collection[int]) -> Iterator[nn.Module]:
    """Within this context each of these blocks is entered by one more row: a copy of the first.

    What a row's own layers change is then computed from there on alone. For models whose memory is
    all in SSMs, without padding. ``memories`` of `fast_scan` count the rows of their layer. Raises
    ValueError for a layer that the model does not have.
    """
    blocks = blocks_of(model)
    if unknown := [layer for layer in layers if not 0 <= layer < len(blocks)]:
        raise ValueError(f"layers names {unknown}; the model has layers 0 to {len(blocks) - 1}")
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for block in (blocks[layer] for layer in layers):
            stack.enter_context(replaced_forward(block, _with_one_more_row(block)))
        yield model


def _with_one_more_row(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    def with_one_more_row(*args, **kwargs):
        given = bound_by_name(block, args, kwargs)
        name = next(name for name in STREAMS if name in given)
        given[name] = torch.cat([given[name], given[name][:1]])
        return forward(**given)

    return with_one_more_row


def _rms_norms(model: nn.Module) -> list[nn.Module]:
    """The model's RMS norms, x * weight / rms(x); UnsupportedModelError beside a LayerNorm."""
    if any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} has a LayerNorm, for which MambaLRP has no rule: take another "
            "attribution method"
        )
    return [module for module in model.modules() if is_rms_norm(module)]


def _for_this_thread(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that autograd's own threads compute a second time on behalf of this one."""
    thread = acting_thread()

    def on_behalf(*args: Any, **kwargs: Any) -> Any:
        with acting_for(thread):
            return forward(*args, **kwargs)

    return on_behalf


def _replaying_forward(
    site: MixerSite,
    edit: Edit | None,
    observe: Observer | None,
    rules: Rules,
    memories: MutableMapping[int, MixerMemory] | None,
    recompute: Collection[int],
) -> Callable[..., Any]:
    """A ``forward`` for this mixer that replays it."""
    mixer = site.mixer

    def forward(*args, **kwargs):
        call = mixer_call(mixer, args, kwargs)
        hidden_states, mask, cache = call
        if cache is None:
            memory = None if memories is None else memories.get(site.layer)
            replay = replay_mixer(site, hidden_states, mask, edit, rules, memory)
        else:
            _check_free_for_a_cache(memories, recompute)
            begins_at = bound_by_name(mixer, args, kwargs).get("cache_position")
            replay = _replay_after_cache(site, call, begins_at, edit, rules)
        if memories is not None:
            # Cloned: a view of a few tokens would keep the inputs of the whole chunk alive.
            memories[site.layer] = replay.memory.each(lambda x: x.detach().clone())
        if observe is not None:
            observe(site.layer, replay)
        return replay.output

    vars(forward)["edit"] = edit
    return forward


def _edit_in_place(mixer: Any) -> Edit | None:
    """The edit of a context around this one, of the same thread."""
    return getattr(forward_in_place(mixer), "edit", None)


def _both(outer: Edit | None, inner: Edit | None) -> Edit | None:
    if outer is None or inner is None:
        return outer or inner
    return lambda stage, x: inner(stage, outer(stage, x))


def _replay_after_cache(
    site: MixerSite, call: MixerCall, begins_at: Tensor | None, edit: Edit | None, rules: Rules
) -> MixerReplay:
    """The replay of the tokens that follow those in the cache, which then holds these too."""
    (hidden_states, mask, cache), mixer = call, site.mixer
    rows, length = hidden_states.shape[:2]
    mask = mask if mask is not None and mask.shape == (rows, length) else None
    memory = read_memory(mixer, cache, begins_at)
    counted = None if edit is None else counted_before(mixer, cache, memory)
    before = None if counted is None else counted.tokens
    kept = EditMemory({} if counted is None else counted.kept, {})
    read = TokensRead(mask, before, in_parts=True, kept=kept)
    replay = replay_mixer(site, hidden_states, mask, edit, rules, memory, read)
    if len(replay.output) != rows:
        raise RuntimeError(
            f"an edit of layer {site.layer} makes {len(replay.output)} rows of {rows}, which a "
            "cache cannot follow; give the model as many rows, or call with use_cache=False"
        )
    write_memory(mixer, cache, replay.memory)
    if before is not None:
        read_now = before + real_tokens(mask, rows, length)
        count_tokens(mixer, cache, Counted(read_now, kept.after))
    return replay


def _check_free_for_a_cache(memories: Any, recompute: Collection[int]) -> None:
    if memories is not None or recompute:
        name = "memories" if memories is not None else "recompute"
        raise RuntimeError(f"a call with a cache goes not with {name}: call with use_cache=False")


class _Skipped(nn.Module):
    """Stands in for a block whose output nobody reads: the next one is skipped too or given
    another input. In another thread it is the block itself."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.thread = acting_thread()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if acting_thread() != self.thread:
            return self.block(*args, **kwargs)
        given = bound_by_name(self.block, args, kwargs)
        # Some models take a block's output as it is, others as the first of two.
        return next(given[name] for name in STREAMS if name in given), None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def _skipped(model: nn.Module, block: nn.Module) -> Iterator[None]:
    """Within this context the model passes over this block, and over a user's hooks on it."""
    name = next(name for name, module in model.named_modules() if module is block)
    parent_name, _, key = name.rpartition(".")
    neighbours = model.get_submodule(parent_name)._modules
    neighbours[key] = _Skipped(block)
    try:
        yield
    finally:
        neighbours[key] = block


def _entered_by(block: nn.Module, hidden_states: Tensor) -> Callable[..., Any]:
    """A block's ``forward`` with this residual stream in place of what it is called with."""
    forward = block.forward

    def entered(*args, **kwargs):
        if args:
            return forward(hidden_states, *args[1:], **kwargs)
        name = next(name for name in STREAMS if name in bound_by_name(block, args, kwargs))
        return forward(**{**kwargs, name: hidden_states})

    return entered


def _with_rows_alike(block: nn.Module) -> Callable[..., Any]:
    """The ``forward`` of a block that reads the embeddings again, when an edit before it has
    branched one text into several rows."""
    forward = block.forward

    def with_rows_alike(*args, **kwargs):
        given = bound_by_name(block, args, kwargs)
        rows = len(next(given[name] for name in STREAMS if name in given))
        embeddings = given["original_hidden_states"]
        given["original_hidden_states"] = embeddings.expand(rows, -1, -1)
        return forward(**given)

    return with_rows_alike


def remembers_in_mixers_alone(model: nn.Module) -> bool:
    """Whether all that later tokens know of earlier ones passes the memories of `fast_scan`."""
    return not _attention_names(model)


def _attention_names(model: nn.Module) -> list[str]:
    names = {type(module).__name__ for module in model.modules()}
    return sorted(name for name in names if "Attention" in name)


def _check_that_all_memory_is_in_mixers(model: nn.Module) -> None:
    if attention := _attention_names(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be read in chunks: its {', '.join(attention)} "
            "remembers outside the SSM mixers. Give the text as a whole"
        )

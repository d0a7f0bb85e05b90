"""Where embedding, layers, final norm and head of a user's model lie, read off one forward pass.

Nothing is read off names. A pass over a few tokens shows what every module took and gave. The
residual stream is followed through it by its values: from what an embedding gives, layer by layer,
each around one mixer, to what a head takes behind a norm, or behind none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_mixers.exclusive_use import exclusive_use
from mamba_mixers.families import inverse_rms
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.own_modules import LayerPart, own_kind, rms_epsilon
from mamba_mixers.sites import UnsupportedModelError
from mamba_mixers.weights import is_rms_norm
from suite_plumbing.messages import reason_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest relative difference of what is the same, by dtype: rounding; 2e-2 in half precision."""

HOW = (
    "give what was not found: own_model(model, embedding=model.tokens, final_norm=model.last_norm, "
    "head=model.unembed), modules or their names"
)


class Call(NamedTuple):
    """One call of a module: the tensors among its arguments and outputs, in order."""

    name: str
    module: nn.Module
    given: list[Tensor]
    gave: list[Tensor]
    mixer: nn.Module | None
    """the mixer that the module is or holds, where it holds one alone"""


class Traced(NamedTuple):
    """A forward pass of a user's model."""

    calls: list[Call]
    """in the order in which they ended"""
    ids: Tensor
    """(1, l)"""
    logits: Tensor
    """(1, l, V)"""

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.module is module]


class Structure(NamedTuple):
    """The parts of a user's model, each the user's module."""

    embedding: nn.Module
    layers: list[LayerPart]
    mixers: dict[str, nn.Module]
    """by name, in the order of the layers"""
    final_norm: nn.Module | None
    head: nn.Module


def own_mixers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with the parameters of mamba_ssm's Mamba or Mamba2, by name."""
    return {name: module for name, module in model.named_modules() if own_kind(module)}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of the coarser one's dtype."""
    if a.shape != b.shape:
        return False
    tolerance = max(TOLERANCE.get(x.dtype, 2e-2) for x in (a, b))
    a, b = a.double(), b.double()
    return float((a - b).norm()) <= tolerance * float(b.norm())


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """(b, l, V) of a user's model called with ids (b, l) alone.

    Its output may be the logits, a tuple that begins with them, or an object or mapping that has
    them as ``logits``. Raises UnsupportedModelError where the call fails or gives no such thing.
    """
    try:
        output: Any = model(ids)
    except Exception as error:  # a class of one's own may raise anything
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be called with token ids (b, l) alone "
            f"({reason_of(error)}); wrap it in a module whose forward can be"
        ) from error
    if isinstance(output, Mapping):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, (tuple, list)) and len(output) else output
    if not isinstance(output, Tensor) or output.shape[:-1] != ids.shape:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedModelError(
            f"{type(model).__name__} gives {what} for ids {tuple(ids.shape)}; the suite reads "
            "models that give logits (b, l, vocabulary)"
        )
    return output


@torch.no_grad()
def traced(model: nn.Module, ids: Tensor) -> Traced:
    """Run the model once on ids (1, l) and keep every module's calls."""
    calls: list[Call] = []
    names = {module: name for name, module in model.named_modules()}
    alone = _alone(model)

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        gave = [x for x in outputs if isinstance(x, Tensor)]
        calls.append(Call(names[module], module, given, gave, alone.get(names[module])))

    with exclusive_use(model), forward_hooks([(module, hook) for module in names]):
        return Traced(calls, ids, logits_of(model, ids))


def _alone(model: nn.Module) -> dict[str, nn.Module]:
    """Names of modules that are or hold exactly one mixer, with that mixer."""
    held: dict[str, list[nn.Module]] = {}
    for name, mixer in own_mixers(model).items():
        parts = name.split(".")
        for depth in range(len(parts) + 1):
            held.setdefault(".".join(parts[:depth]), []).append(mixer)
    return {name: mixers[0] for name, mixers in held.items() if len(mixers) == 1}


def find_structure(
    model: nn.Module,
    ids: Tensor,
    *,
    embedding: nn.Module | None = None,
    final_norm: nn.Module | None = None,
    head: nn.Module | None = None,
) -> Structure:
    """The parts of the model, from one pass over ids (1, l); those given are taken.

    Raises UnsupportedModelError, naming what was not found and how to give it.
    """
    seen = traced(model, ids)
    mixers = _mixers_in_order(model, seen)
    starts = [embedding] if embedding is not None else _embeddings(seen)
    reached = 0
    for start in starts:
        for stream in _given_by(start, seen):
            for layers in _paths(seen, list(mixers.values()), stream):
                reached = max(reached, len(layers))
                if len(layers) < len(mixers):
                    continue
                end = _ending(seen, layers[-1].after, start, final_norm, head)
                if end is not None:
                    return Structure(start, layers, mixers, *end)
    raise UnsupportedModelError(_not_found(model, list(mixers), reached, bool(starts)))


def _mixers_in_order(model: nn.Module, seen: Traced) -> dict[str, nn.Module]:
    known = own_mixers(model)
    called = [call.name for call in seen.calls if call.name in known]
    if sorted(called) != sorted(known):
        odd = next(name for name in known if called.count(name) != 1)
        raise UnsupportedModelError(
            f"the mixer {odd} was called {called.count(odd)} times in a forward pass; the suite "
            "reads models in which each runs once"
        )
    return {name: known[name] for name in called}


def _embeddings(seen: Traced) -> list[nn.Module]:
    """Embeddings that were called with the ids."""
    return [
        call.module
        for call in seen.calls
        if isinstance(call.module, nn.Embedding) and torch.equal(call.given[0], seen.ids)
    ]


@torch.no_grad()
def _given_by(embedding: nn.Module, seen: Traced) -> list[Tensor]:
    """What the embedding gave; of one whose weight is read without a call, what it would give."""
    return [c.gave[0] for c in seen.of(embedding) if c.gave] or [embedding(seen.ids)]


def _paths(seen: Traced, mixers: Sequence[nn.Module], stream: Tensor) -> Iterator[list[LayerPart]]:
    """Ways along which the stream passes all mixers, or as many as it can be followed through."""
    if not mixers:
        yield []
        return
    went_on = False
    for part in _readings(seen, mixers[0]):
        if same(part.before, stream):
            went_on = True
            for rest in _paths(seen, mixers[1:], part.after):
                yield [part, *rest]
    if not went_on:
        yield []


def _readings(seen: Traced, mixer: nn.Module) -> Iterator[LayerPart]:
    """What may be the layer around a mixer: modules that hold it and no other, widest first."""
    for call in reversed(seen.calls):
        if call.mixer is not mixer or not (call.given and call.gave):
            continue
        x, out = call.given[0], call.gave[0]
        if len(call.gave) == 2 and {y.shape for y in (*call.given, *call.gave)} == {x.shape}:
            yield LayerPart(call.module, None, "of two", _sum(call.given), _sum(call.gave))
        if len(call.given) != 1 or x.shape != out.shape or not x.is_floating_point():
            continue
        yield LayerPart(call.module, None, "inside", x, out)
        yield LayerPart(call.module, None, "outside", x, x + out)
        for before in seen.calls:
            if _takes_one(before) and before.gave[0] is x and before.given[0] is not x:
                stream = before.given[0]
                yield LayerPart(call.module, before.module, "outside", stream, stream + out)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else tensors[0] + tensors[1]


def _takes_one(call: Call) -> bool:
    return len(call.given) == 1 and len(call.gave) == 1 and call.given[0].is_floating_point()


def _ending(
    seen: Traced,
    stream: Tensor,
    embedding: nn.Module,
    final_norm: nn.Module | None,
    head: nn.Module | None,
) -> tuple[nn.Module | None, nn.Module] | None:
    """Final norm and head that make the logits of the stream behind the last layer."""
    norms = [final_norm] if final_norm is not None else _norms_of(seen, stream)
    for norm in norms:
        normed = _output_of(norm, stream)
        heads = [head] if head is not None else _heads_of(seen, embedding)
        for candidate in heads:
            if normed is not None and _gives(candidate, normed, seen.logits):
                return norm, candidate
    return None


def _norms_of(seen: Traced, stream: Tensor) -> list[nn.Module | None]:
    """Modules that took the stream behind the last layer, none, and norms called by no module."""
    took = [c.module for c in seen.calls if _takes_one(c) and same(c.given[0], stream)]
    width = stream.shape[-1]
    called = {id(call.module) for call in seen.calls}
    root = next(reversed(seen.calls)).module
    uncalled = [
        FunctionalRMSNorm(module)
        for module in root.modules()
        if id(module) not in called
        and [tuple(p.shape) for p in module.parameters()] == [(width,)]
        and not any(True for _ in module.children())
    ]
    small = [module for module in took if not any(own_kind(m) for m in module.modules())]
    return [*small, None, *uncalled]


class FunctionalRMSNorm(nn.Module):
    """A norm whose weight a model reads without calling its module, as fused kernels do."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.weight = theirs.weight
        self.eps = float(getattr(theirs, "eps", None) or 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x * inverse_rms(x, self.eps)).to(self.weight.dtype)


def _heads_of(seen: Traced, embedding: nn.Module) -> list[nn.Module]:
    """Modules that gave the logits, the smallest first, and the embedding's transpose."""
    gave = [c.module for c in seen.calls if _takes_one(c) and same(c.gave[0], seen.logits)]
    tied: list[nn.Module] = []
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, nn.Parameter):
        rows, width = weight.shape
        transposed = nn.Linear(width, rows, bias=False, device="meta")
        transposed.weight = weight
        tied = [transposed]
    return [*gave, *tied]


@torch.no_grad()
def _output_of(norm: nn.Module | None, stream: Tensor) -> Tensor | None:
    """What a norm gives of the stream, in its weight's dtype; None where it cannot take it."""
    try:
        return stream if norm is None else norm(as_dtype_of(norm, stream))
    except (RuntimeError, TypeError, ValueError):
        return None


def as_dtype_of(module: nn.Module, x: Tensor) -> Tensor:
    """x in the dtype of the module's first parameter."""
    first = next(module.parameters(), None)
    return x if first is None else x.to(first.dtype)


@torch.no_grad()
def _gives(head: nn.Module, normed: Tensor, logits: Tensor) -> bool:
    try:
        return same(head(as_dtype_of(head, normed)), logits)
    except (RuntimeError, TypeError, ValueError):
        return False


def norms_to_show(seen: Traced, part: LayerPart, mixer: nn.Module) -> list[tuple[nn.Module, float]]:
    """RMS norms of a layer that their class's name does not tell, with their epsilons."""
    inside = {id(m) for m in mixer.modules()}
    around = [*part.module.modules(), *([] if part.norm is None else part.norm.modules())]
    candidates = {id(m) for m in around} - inside
    found = []
    for call in seen.calls:
        if id(call.module) in candidates and _takes_one(call) and not is_rms_norm(call.module):
            x, y = call.given[0], call.gave[0]
            epsilon = rms_epsilon(call.module, x, y, TOLERANCE.get(x.dtype, 2e-2))
            if epsilon is not None:
                found.append((call.module, epsilon))
    return found


def written_scale(seen: Traced, part: LayerPart, mixer: nn.Module) -> float | None:
    """What multiplies the mixer's output into the stream; None where other modules write too.

    Raises UnsupportedModelError where the layer's change of the stream is neither the mixer's
    output times a number nor that output and, behind it or beside it, what other modules write.
    """
    (call,) = seen.of(mixer)
    change, wrote = (x.double() for x in (part.after - part.before, call.gave[0]))
    scale = float((change * wrote).sum() / wrote.square().sum())
    if same(change.to(part.after.dtype), (scale * wrote).to(part.after.dtype)):
        return 1.0 if same(part.after, part.before + call.gave[0]) else scale
    behind, beside = part.before + call.gave[0], part.after - part.before - call.gave[0]
    inside = {id(module) for module in part.module.modules()}
    for other in (c for c in seen.calls if id(c.module) in inside):
        if any(same(x, behind) for x in other.given) or any(same(x, beside) for x in other.gave):
            return None
    raise UnsupportedModelError(
        f"the layer around {call.name} does not add its mixer's output to the stream as it is; the "
        "suite reads models whose layers do"
    )


def _not_found(model: nn.Module, mixers: list[str], reached: int, has_start: bool) -> str:
    name = type(model).__name__
    if not has_start:
        return f"no embedding of {name} takes the token ids; {HOW}"
    if reached == 0:
        return (
            f"what the embedding of {name} gives is not what its first layer, around {mixers[0]}, "
            f"reads: positions or a scale are not followed; {HOW}"
        )
    if reached < len(mixers):
        return (
            f"the residual stream of {name} could not be followed beyond the layer around "
            f"{mixers[reached - 1]}: layers have to add to one stream, each around one mixer"
        )
    return f"no norm and head of {name} make its logits of the last layer's stream; {HOW}"

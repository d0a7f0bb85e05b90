"""Attribution of one scalar of a model's output to the tokens of its input.

``explain`` of ``causal_interventions.explained`` fixes what is explained: a text, a target f of the
logits (``targets.TARGETS``) and the baseline that stands in for a token that is taken away.
``attribute`` then scores every token by one of ``ATTRIBUTION_METHODS``; a positive score means that
the token raises f. Every method runs on the suite's own scan, so that gradients of whole models are
feasible on a CPU.

What scores add up to is measured where a sum means something (``conservation_error``). The natural
target for that is a logit: relevance propagation conserves f when f is linear in the logits, and
otherwise sum_v logit_v df/dlogit_v, to which the scores are then compared.

What a method can find at all differs. A token that decides where another one is written or read,
by B, C or delta, gives the prediction no value of its own: MambaLRP holds these three constant,
attention maps and knockout follow values too. Of an induction circuit, in which a key token opens
the place that the query reads, they score the value token alone; occlusion and integrated gradients
score all three.

References:
  [1] Jafari, Montavon, Muller & Eberle 2024, MambaLRP (arXiv 2406.07592)
  [2] Sundararajan, Taly & Yan 2017, Axiomatic attribution for deep networks
  [3] Ali, Zimerman & Wolf 2024, The Hidden Attention of Mamba Models
  [4] Abnar & Zuidema 2020, Quantifying attention flow in transformers
  [5] Chefer, Gur & Wolf 2021, Generic attention-model explainability

From a shell: ``python input_attribution.py --text "some text" --method mamba_lrp``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import input_attribution_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(input_attribution_options)

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from causal_interventions.explained import Explained, Scores, explain
from causal_interventions.targets import resolve_target
from mamba_mixers.replay import LRP, MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers, model_layers
from mamba_mixers.weights import bias_parameters
from recursive_visualizer import write_figures
from selective_scan.attention import attention_map, attention_row
from ssm_component_extractor import capture
from ssm_measures.attention_maps import kernel_of
from ssm_measures.attention_measures import mixer_share, row_shares, row_stochastic
from ssm_measures.components import Capture
from suite_plumbing.arguments import torch_rng, validate_choice
from suite_plumbing.commands import (
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.precision import in_full_precision
from suite_plumbing.progress import progress
from suite_plumbing.result_files import read_json
from suite_plumbing.texts import readable_token


@dataclass(frozen=True, eq=False)
class InputAttribution:
    """Scores of a text's tokens for one scalar f by one method."""

    method: str
    """key of ``ATTRIBUTION_METHODS``"""
    scores: Tensor
    """(l,) float64, on the CPU; positive: the token raises f"""
    f: float
    """f of the text"""
    total: float | None
    """what the scores, with ``bias_relevance``, are compared with: f for the gradient, f minus f
    of the baseline text for integrated gradients, sum_v logit_v df/dlogit_v (f itself for targets
    that are linear in the logits) for MambaLRP; None for methods whose sum means nothing"""
    bias_relevance: float
    """relevance of the additive constants: MambaLRP treats them as inputs; 0 for other methods"""
    conservation_error: float | None
    """|sum of scores + bias_relevance - total| / |total|; None without a total, or where it is 0"""
    reason: str | None = None
    """why the scores are all 0 and rank nothing; None where they do"""

    @property
    def bias_share(self) -> float | None:
        """bias_relevance / total; None without a total, or where it is 0."""
        return self.bias_relevance / self.total if self.total else None

    def to_dict(self) -> dict:
        """The attribution for JSON."""
        return {
            "method": self.method,
            "f": self.f,
            "scores": self.scores.tolist(),
            "total": self.total,
            "bias_relevance": self.bias_relevance,
            "bias_share": self.bias_share,
            "conservation_error": self.conservation_error,
            "reason": self.reason,
        }


@torch.inference_mode(False)
@in_full_precision
def attribute(explained: Explained, method: str) -> InputAttribution:
    """Score every token by one of ``ATTRIBUTION_METHODS``.

    Tokens after the position that f reads score 0 by every method that asks the model, which is
    causal, and not by "recency" and "random". Raises ValueError for an unknown method, naming the
    known ones. Cost: see the methods.
    """
    validate_choice("method", method, ATTRIBUTION_METHODS)
    tokens, total, bias, reason = ATTRIBUTION_METHODS[method].function(explained)
    tokens = tokens.detach().double().cpu()
    error = None
    if total:
        error = abs(float(tokens.sum()) + bias - total) / abs(total)
    return InputAttribution(method, tokens, explained.f, total, bias, error, reason)


def _gradient_x_input(explained: Explained) -> Scores:
    """x_s . df/dx_s, x the token's embedding. One forward and backward pass.

    Its sum is not f: what it misses of f is reported, not promised.
    """
    x, gradients = _embedding_gradients(explained, explained.embeddings)
    return Scores((x * gradients).sum(-1)[0], explained.f)


def _integrated_gradients(explained: Explained) -> Scores:
    """(x - x0)_s . integral over a in [0, 1] of df/dx_s at x0 + a (x - x0), x0 all baseline [2].

    Gauss-Legendre quadrature with ``num_steps`` nodes. The sum is f(x) - f(x0) in the limit of
    many steps (completeness). ``num_steps`` forward and backward passes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(explained.num_steps)
    x, x0 = explained.embeddings, explained.baseline
    path, mean_gradient = torch.as_tensor(0.5 + nodes / 2).to(x), torch.zeros_like(x)
    shares = torch.as_tensor(weights / 2).to(x)
    size = explained.batch_size
    for a, share in zip(path.split(size), shares.split(size), strict=True):
        _, gradients = _embedding_gradients(explained, x0 + a[:, None, None] * (x - x0))
        mean_gradient += torch.einsum("k,kld->ld", share, gradients)
    nothing = torch.zeros_like(explained.input_ids, dtype=torch.bool)
    total = explained.f - float(explained.values(nothing))
    return Scores(((x - x0) * mean_gradient).sum(-1)[0], total)


def _mamba_lrp(explained: Explained) -> Scores:
    """Relevance x_s . df/dx_s under MambaLRP's rules [1], which leave every value what it is.

    SiLU is x times the constant sigma(x); delta, B and C of the scan are constants; each side of
    the gate's product receives half; norms divide by a constant. Convolution, D, residual and
    projections are linear. f is then linear in the embeddings and in the biases b outside of the
    step size: sum_s R_s + sum_b b . df/db = f exactly, up to rounding, for a target that is linear
    in the logits. What a token does through delta, B or C alone has no relevance: of a key, a value
    and a query it finds the value. One forward and backward pass.
    """
    x = explained.embeddings.clone().requires_grad_()
    biases = list(bias_parameters(explained.model).values())
    with (
        torch.enable_grad(),
        fast_scan(explained.model, rules=LRP),
        _requiring_grad(biases),
    ):
        logits = explained.logits(x)
        f = explained.f_of_logits(logits).sum()
        gradients = torch.autograd.grad(f, [x, logits, *biases], allow_unused=True)
    relevance = [
        float((value.detach() * gradient).sum())
        for value, gradient in zip([logits, *biases], gradients[1:], strict=True)
        if gradient is not None
    ]
    return Scores((x * gradients[0]).sum(-1)[0], relevance[0], sum(relevance[1:]))


def _rollout(explained: Explained) -> Scores:
    """Attention rollout [4]: product over the layers of w_t |alpha| / sum + (1 - w_t) I.

    |alpha| is averaged over heads and its rows normalised to 1; w_t = |o_t| / (|o_t| + |r_t|) is
    the mixer output's share of the residual stream's norm. Each factor is row-stochastic, so the
    scores are >= 0 and sum to 1. The row of the position that f reads. It knows neither the
    target's token nor signs, nor the last norm and the unembedding. Cost: a map in every layer.
    """
    captured = _captured(explained)
    row = _read_positions(explained)
    for layer in reversed(captured.layers):
        parts = captured.components[layer]
        share = mixer_share(parts, captured.block_inputs[layer])[0].double()
        alpha = attention_map(**kernel_of(parts), absolute=True)[0]
        row = (row * share) @ row_stochastic(alpha.double()) + row * (1 - share)
    return Scores(row)


def _hidden_attention(explained: Explained) -> Scores:
    """Mean over layers and heads of |alpha| [3] in the row of the position that f reads.

    Each layer's row is normalised to sum 1 first; a layer that attends to nothing there counts as
    zeros, and with no other layer there is a ``reason``. For the target "loss": the mean of all
    rows. It knows where values come from, and nothing of the values, signs or the target.
    """
    captured = _captured(explained)
    weights = _read_positions(explained)
    total = torch.zeros_like(weights)
    for parts in captured.components.values():
        operands = kernel_of(parts)
        for query in weights.nonzero().flatten().tolist():
            row = row_shares(attention_row(**operands, query=query, absolute=True)[0].double())
            total += weights[query] * row / len(captured.layers)
    nothing = "no layer attends to anything from the position explained"
    return Scores(total, reason=None if bool(total.any()) else nothing)


def _gradient_rollout(explained: Explained) -> Scores:
    """Rollout of I + mean over channels of the positive part of alpha * df/dalpha, after [5].

    Not the published Mamba-Attribution, which weighs mean maps by mean gradients: that is
    "mamba_attribution". df/dalpha[c, t, s] = df/dy_t[c] u_s[c], each channel having the alpha of
    its head, by the scan's own gradient, so that the map is the positive part of the first-order
    contribution of s through t to f. Scores are >= 0; the position's own identity is left in. Cost:
    one backward pass and two maps in every layer.
    """
    replays, gradients = _layer_gradients(explained, lambda replay: replay.y)
    row = _read_positions(explained)
    for replay, grad_y in reversed(list(zip(replays, gradients, strict=True))):
        signed, magnitude = (
            attention_map(
                **kernel_of(replay), query_weight=grad_y, key_weight=replay.u, absolute=absolute,
            )[0]
            for absolute in (False, True)
        )  # fmt: skip
        positive = (signed + magnitude).double().cpu() / (2 * replay.y.shape[2])
        row = row + row @ positive
    return Scores(row)


def _mamba_attribution(explained: Explained) -> Scores:
    """Mamba-Attribution [3, eq. 24 and 22]: rollout of I + (E(df/do_t) E(alpha[t, s]))^+.

    o is the mixer's output, its gradient averaged over the d_model channels, alpha with its sign
    over the heads; rows are not normalised. The paper multiplies a vector over tokens by a map and
    does not say along which axis: here the gradient at a token weighs that token's row, what it
    takes in. The authors' code for images instead scales columns, keeps positive maps and the
    largest positive gradient, and brings both to [0, 1]. Scores are >= 0; the position's own
    identity is left in. It can go wrong where maps and gradients are tied channel by channel.
    Cost: one backward pass and a map in every layer.
    """
    replays, gradients = _layer_gradients(explained, lambda replay: replay.output)
    row = _read_positions(explained)
    for replay, gradient in reversed(list(zip(replays, gradients, strict=True))):
        alpha = attention_map(**kernel_of(replay))[0].double().cpu()
        weight = gradient[0].double().mean(-1).cpu()
        row = row + row @ (weight[:, None] * alpha).clamp_min(0)
    return Scores(row)


def _layer_gradients(
    explained: Explained, of: Callable[[MixerReplay], Tensor]
) -> tuple[list[MixerReplay], Sequence[Tensor]]:
    """Every layer's replay, first to last, and df/d of one of its tensors."""
    replays: dict[int, MixerReplay] = {}
    x = explained.embeddings.clone().requires_grad_()
    with torch.enable_grad(), fast_scan(explained.model, observe=replays.__setitem__):
        f = explained.f_of_logits(explained.logits(x)).sum()
        gradients = torch.autograd.grad(f, [of(replay) for replay in replays.values()])
    return list(replays.values()), gradients


def _occlusion(explained: Explained) -> Scores:
    """f minus f with the token's embedding replaced by the baseline. l forward passes."""
    keep = ~torch.eye(explained.num_tokens, dtype=torch.bool)
    return Scores(explained.f - explained.values(keep))


@torch.no_grad()
def _knockout(explained: Explained) -> Scores:
    """f minus f when the token writes into no layer's state: B_s = 0 everywhere.

    That takes alpha[t, s] u_s out of every y_t exactly; what the token passes on through the
    convolutions, D and its own residual stream remains. l forward passes.
    """
    keep = ~torch.eye(explained.num_tokens, dtype=torch.bool, device=explained.embeddings.device)
    values = []
    for rows in keep.split(explained.batch_size):

        def silence(stage: str, x: Tensor, rows: Tensor = rows) -> Tensor:
            # B is (b, l, N), or with groups (b, l, G, N).
            return x * rows.view(*rows.shape, *[1] * (x.dim() - 2)) if stage == "B" else x

        edits = dict.fromkeys(find_mixers(explained.model), silence)
        with fast_scan(explained.model, edits=edits):
            logits = explained.logits(explained.embeddings.expand(len(rows), -1, -1))
            values.append(explained.f_of_logits(logits).double().cpu())
    return Scores(explained.f - torch.cat(values))


def _recency(explained: Explained) -> Scores:
    """The position in the text: the newest token first. What a method gains by knowing that."""
    return Scores(torch.arange(explained.num_tokens, dtype=torch.float64))


def _random(explained: Explained) -> Scores:
    """Independent standard normal scores: the order that any method has to beat."""
    generator = torch_rng(explained.seed)
    return Scores(torch.randn(explained.num_tokens, generator=generator, dtype=torch.float64))


class AttributionMethod(NamedTuple):
    """One way to score tokens."""

    function: Callable[[Explained], Scores]
    is_intervention: bool
    """whether each score is a measured effect: one forward pass a token"""


ATTRIBUTION_METHODS: dict[str, AttributionMethod] = {
    "gradient_x_input": AttributionMethod(_gradient_x_input, False),
    "integrated_gradients": AttributionMethod(_integrated_gradients, False),
    "mamba_lrp": AttributionMethod(_mamba_lrp, False),
    "rollout": AttributionMethod(_rollout, False),
    "hidden_attention": AttributionMethod(_hidden_attention, False),
    "gradient_rollout": AttributionMethod(_gradient_rollout, False),
    "mamba_attribution": AttributionMethod(_mamba_attribution, False),
    "occlusion": AttributionMethod(_occlusion, True),
    "knockout": AttributionMethod(_knockout, True),
    "recency": AttributionMethod(_recency, False),
    "random": AttributionMethod(_random, False),
}


def _embedding_gradients(explained: Explained, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (k, l, d_model) and df/d(embeddings) of each of the k variants."""
    x = embeddings.clone().requires_grad_()
    with torch.enable_grad(), fast_scan(explained.model):
        f = explained.f_of_logits(explained.logits(x)).sum()
        (gradients,) = torch.autograd.grad(f, x)
    return embeddings, gradients


@contextmanager
def _requiring_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach frozen parameters too."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _captured(explained: Explained) -> Capture:
    """All layers of the text; with the suite's scan in place of the model's token loop."""
    model = explained.model
    with fast_scan(model):
        return capture(model, explained.input_ids, None, list(find_mixers(model)))


def _read_positions(explained: Explained) -> Tensor:
    """(l,) float64 weights, sum 1, of the positions whose logits f reads."""
    if explained.target.reads_one_position:
        read = torch.zeros(explained.num_tokens, dtype=torch.float64)
        read[int(explained.target.position)] = 1.0
        return read
    read = (explained.target.labels[0] >= 0).double().cpu()
    return read / read.sum()


LISTED = 12
"""Tokens of a text that the command prints: those of the largest scores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Score the tokens of each text; print the highest, write JSON and a figure."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = input_attribution_options(argv)
    job = job_from_options(args, model_layers, command_line("input_attribution.py", argv))
    target = resolve_target(args.target, job.tokenizer, token=args.token, contrast=args.contrast)
    asked = {"method": args.method, "target": args.target, "contrast": args.contrast}
    results: dict[str, Any] = {"input_attribution": asked}
    lines: list[str] = []
    for index, text in enumerate(progress(job.encoded, desc="texts")):
        explained = explain(
            job.model, text.input_ids, target, seed=args.seed, tokenizer=job.tokenizer
        )
        found = attribute(explained, args.method)
        token = str(job.tokenizer.convert_ids_to_tokens(int(explained.target.token)))
        what = f"{args.target} of '{readable_token(token)}'"
        lines += _lines(index, what, text.tokens, found)
        results[f"text_{index}"] = {
            "tokens": text.tokens, "token": token, "target": args.target, **found.to_dict()
        }  # fmt: skip
    path = write_step_results(job, "input_attribution.json", results)
    write_figures(read_json(path), job.output_dir, formats=args.formats)
    print("\n".join([*lines, f"Wrote {path}, and its figure beside it."]))
    return 0


def _lines(index: int, what: str, tokens: Sequence[str], found: InputAttribution) -> list[str]:
    """What a text's prediction owes to its tokens: those of the largest scores, in its order."""
    scores = found.scores.tolist()
    largest = sorted(range(len(scores)), key=lambda i: -abs(scores[i]))[:LISTED]
    left_out = len(scores) - len(largest)
    of = f", the {LISTED} largest scores of {len(scores)} by {found.method}" if left_out else ""
    lines = [f"text {index}: {what} = {found.f:.4f}{of}"]
    lines += [f"  {i:5d}  {scores[i]:+10.4f}  {readable_token(tokens[i])}" for i in sorted(largest)]
    return [*lines, *([f"  {found.reason}"] if found.reason else [])]


if __name__ == "__main__":
    raise SystemExit(main())

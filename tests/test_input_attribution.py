"""Attributions against closed forms, brute force and a relevance propagation written by hand."""

import json
import math
from dataclasses import replace

import hand_weighted
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model
from torch import nn
from transformers import MambaForCausalLM

from causal_interventions.explained import explain
from causal_interventions.targets import TARGETS, resolve_target
from input_attribution import ATTRIBUTION_METHODS, attribute, main
from mamba_mixers.replay import LRP
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers
from selective_scan.attention import implicit_attention
from ssm_component_extractor import capture

IDS = torch.tensor([5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12])
LOGIT = resolve_target("logit")
ASKING = [name for name in ATTRIBUTION_METHODS if name not in ("random", "recency")]


def make_linear_model() -> MambaForCausalLM:
    """A Mamba whose logits are linear in its embeddings: silent mixers, no final norm.

    Logit v at position p is e_p . U_v, so that the last token's relevance is the whole f.
    """
    model = make_tiny_model()
    with torch.no_grad():
        for site in find_mixers(model).values():
            site.mixer.out_proj.weight.zero_()
    model.backbone.norm_f = nn.Identity()  # type: ignore[assignment]
    return model


def without_conv_bias(model):
    with torch.no_grad():
        for site in find_mixers(model).values():
            site.mixer.conv1d.bias.zero_()
    return model


def stock_logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids.reshape(1, -1), use_cache=False).logits[0]


def hand_propagated_relevance(model, ids, token: int) -> tuple[np.ndarray, float]:
    """Twin of mamba_lrp, float64: relevance (l,) of tokens and of the biases, layer by layer.

    No autograd: what each linear operation z_j = sum_i w_ji x_i + b_j receives is handed on in
    proportion to its terms, R_i = sum_j w_ji x_i / z_j R_j. Nonlinearities hand theirs on whole.
    """
    streams, inner = [model.get_input_embeddings()(ids).detach().double().numpy()], []
    for block in model.backbone.layers:
        step = _layer_in_numpy(block, streams[-1])
        inner.append(step)
        streams.append(streams[-1] + step["output"])
    head = model.lm_head.weight.detach().double().numpy()[token]
    normed = _rms(streams[-1], model.backbone.norm_f)
    relevance = np.zeros_like(normed)
    relevance[-1] = head * normed[-1]  # the terms of the logit; the norm hands them on unchanged
    bias = 0.0
    for block, stream, step in reversed(
        list(zip(model.backbone.layers, streams[:-1], inner, strict=True))
    ):
        after = stream + step["output"]
        through, lost = _relevance_of_mixer_input(block, step, relevance * step["output"] / after)
        relevance, bias = relevance * stream / after + through, bias + lost
    return relevance.sum(1), bias


def _rms(x: np.ndarray, norm) -> np.ndarray:
    scale = np.sqrt((x**2).mean(1, keepdims=True) + norm.variance_epsilon)
    return x / scale * norm.weight.detach().double().numpy()


def _layer_in_numpy(block, stream: np.ndarray) -> dict:
    """Everything that one layer computes, by plain loops over tokens."""
    mixer = block.mixer
    w = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    normed = _rms(stream, block.norm)
    x, z = np.split(normed @ w["in_proj.weight"].T, 2, axis=1)
    taps, length = w["conv1d.weight"].shape[-1], len(x)
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    # terms[i, t]: what token t - i adds to the convolution at t.
    terms = np.stack(
        [
            w["conv1d.weight"][:, 0, taps - 1 - i] * padded[taps - 1 - i :][:length]
            for i in range(taps)
        ]
    )
    before = terms.sum(0) + w["conv1d.bias"]
    u = before / (1 + np.exp(-before))
    rank, states = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    dt, B, C = np.split(u @ w["x_proj.weight"].T, [rank, rank + states], axis=1)
    delta = np.log1p(np.exp(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    operands = (delta[None], -np.exp(w["A_log"]), B[None], C[None])
    delta_, A_, B_, C_ = (torch.from_numpy(operand) for operand in operands)
    alpha = implicit_attention(delta_, A_, B_, C_)[0].numpy()
    # shares[h, t, s]: what u_s adds to y_t, D included.
    shares = (alpha + w["D"][:, None, None] * np.eye(length)) * u.T[:, None, :]
    gated = shares.sum(2).T * z / (1 + np.exp(-z))
    return {
        "normed": normed, "x": x, "z": z, "terms": terms, "before": before, "shares": shares,
        "gated": gated, "output": gated @ w["out_proj.weight"].T, "w": w,
    }  # fmt: skip


def _relevance_of_mixer_input(block, step: dict, relevance: np.ndarray) -> tuple[np.ndarray, float]:
    """Relevance (l, d_model) of the layer's input through its mixer, and the bias's part."""
    w = step["w"]
    gated = step["gated"] * ((relevance / step["output"]) @ w["out_proj.weight"])
    to_y = to_z = gated / 2
    to_u = np.einsum("hts,th->sh", step["shares"], to_y / step["shares"].sum(2).T)
    per_unit = to_u / step["before"]
    to_x = np.zeros_like(step["x"])
    for lag, term in enumerate(step["terms"]):
        moved = term * per_unit
        to_x[: len(moved) - lag] += moved[lag:]
    lost = float((w["conv1d.bias"] * per_unit).sum())
    both = np.concatenate([to_x / step["x"], to_z / step["z"]], axis=1)
    return step["normed"] * (both @ w["in_proj.weight"]), lost


def test_mamba_lrp_equals_a_propagation_by_hand():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT)
    result = attribute(explained, "mamba_lrp")
    tokens, bias = hand_propagated_relevance(model, IDS, int(explained.target.token))
    # The model runs in float32; the divisions by hand amplify nothing here, in float64.
    np.testing.assert_allclose(result.scores.numpy(), tokens, rtol=1e-3, atol=1e-5)
    assert result.bias_relevance == pytest.approx(bias, rel=1e-3, abs=1e-5)


def test_relevance_rules_change_no_value():
    model = make_tiny_model()
    with torch.no_grad(), fast_scan(model, rules=LRP):
        ruled = model(input_ids=IDS[None], use_cache=False).logits[0]
    # x * (f(x) / x) rounds once more than f(x), in float32 and through four layers.
    torch.testing.assert_close(ruled, stock_logits(model, IDS), rtol=1e-5, atol=1e-5)


def test_relevance_rules_are_gone_after_an_exception():
    model = make_tiny_model()

    def fail_inside() -> None:
        with fast_scan(model, rules=LRP):
            replaced = sum("forward" in vars(module) for module in model.modules())
            raise RuntimeError(f"{replaced} modules replaced")

    # Four mixers, four norms in front of them and the final norm.
    with pytest.raises(RuntimeError, match="9 modules replaced"):
        fail_inside()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["logit", "logit_difference"])
def test_without_convolution_biases_relevance_adds_up_to_f(name):
    model = without_conv_bias(make_tiny_model())
    result = attribute(explain(model, IDS, resolve_target(name)), "mamba_lrp")
    # Float32 rounding of four layers; the biases of the step size carry no relevance.
    assert float(result.scores.sum()) == pytest.approx(result.f, rel=1e-4)
    assert result.total == pytest.approx(result.f, rel=1e-4)
    assert result.conservation_error is not None
    assert result.conservation_error <= 1e-4
    assert result.bias_relevance == 0


def test_with_biases_tokens_and_biases_together_add_up_to_f():
    model = make_tiny_model()
    result = attribute(explain(model, IDS, LOGIT), "mamba_lrp")
    assert abs(result.bias_relevance) > 1e-3 * abs(result.f)
    both = float(result.scores.sum()) + result.bias_relevance
    assert both == pytest.approx(result.f, rel=1e-4)  # as above
    assert result.bias_share == pytest.approx(result.bias_relevance / result.f, rel=1e-4)


@pytest.mark.parametrize("name", ["log_probability", "loss"])
def test_of_a_target_that_bends_the_logits_its_linear_part_is_conserved(name):
    model = make_tiny_model()
    target = resolve_target(name)
    explained = explain(model, IDS, target)
    result = attribute(explained, "mamba_lrp")
    logits = stock_logits(model, IDS)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(explained.target(logits).sum(), logits)
    # Float32 rounding, and for the loss a sum over all logits with both signs.
    assert result.total == pytest.approx(float((logits * gradient).sum().detach()), rel=1e-3)
    assert result.conservation_error is not None
    assert result.conservation_error <= 1e-3


def test_frozen_parameters_are_explained_and_stay_frozen():
    model = make_tiny_model()
    expected = attribute(explain(model, IDS, LOGIT), "mamba_lrp")
    model.requires_grad_(False)
    frozen = attribute(explain(model, IDS, LOGIT), "mamba_lrp")
    assert torch.equal(frozen.scores, expected.scores)
    assert frozen.bias_relevance == expected.bias_relevance
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "method", ["gradient_x_input", "mamba_lrp", "integrated_gradients", "occlusion"]
)
def test_on_a_linear_model_the_last_token_is_all_of_it(method):
    model = make_linear_model()
    explained = explain(model, IDS, LOGIT, baseline="zero")
    result = attribute(explained, method)
    expected = torch.zeros(len(IDS), dtype=torch.float64)
    expected[-1] = explained.f
    # e . U in float32; the residual stream hands it on unchanged.
    torch.testing.assert_close(result.scores, expected, rtol=1e-5, atol=1e-6)
    if result.total is not None:
        assert result.total == pytest.approx(explained.f, rel=1e-5)


def test_on_a_linear_model_a_baseline_is_subtracted():
    model = make_linear_model()
    explained = explain(model, IDS, LOGIT, baseline=7)
    embeddings = model.get_input_embeddings().weight.detach().double()
    direction = embeddings[int(explained.target.token)]  # tied unembedding
    expected = float((embeddings[IDS[-1]] - embeddings[7]) @ direction)
    for method in ("integrated_gradients", "occlusion"):
        scores = attribute(explained, method).scores
        assert float(scores[-1]) == pytest.approx(expected, rel=1e-5)  # float32
        assert float(scores[:-1].abs().max()) < 1e-5


def test_gradient_x_input_is_the_stock_model_s_gradient():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT)
    x = explained.embeddings.clone().requires_grad_()
    f = explained.target(model(inputs_embeds=x, use_cache=False).logits).sum()
    (gradient,) = torch.autograd.grad(f, x)
    expected = (x * gradient).sum(-1)[0].detach().double()
    # Two float32 scans with different orders of summation.
    torch.testing.assert_close(
        attribute(explained, "gradient_x_input").scores, expected, rtol=1e-3, atol=1e-5
    )


def test_integrated_gradients_approach_completeness_with_steps():
    model = make_tiny_model()
    gaps = []
    for num_steps in (2, 96):
        explained = explain(model, IDS, LOGIT, baseline=0, num_steps=num_steps)
        result = attribute(explained, "integrated_gradients")
        assert result.conservation_error is not None
        gaps.append(result.conservation_error)
    all_baseline = stock_logits(model, torch.zeros_like(IDS))[-1, explained.target.token]
    assert result.total == pytest.approx(explained.f - float(all_baseline), rel=1e-4)  # float32
    assert gaps[1] <= 1e-3
    assert gaps[1] < gaps[0] / 10


def test_integrated_gradients_match_a_fine_midpoint_sum():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT, baseline=0, num_steps=32)
    x, x0, count = explained.embeddings, explained.baseline, 128
    scores = torch.zeros(len(IDS), dtype=torch.float64)
    for start in range(0, count, 64):
        a = (torch.arange(start, start + 64) + 0.5) / count
        path = (x0 + a[:, None, None] * (x - x0)).requires_grad_()
        with fast_scan(model):
            f = explained.f_of_logits(explained.logits(path)).sum()
        (gradient,) = torch.autograd.grad(f, path)
        scores += ((x - x0) * gradient.detach() / count).sum((0, 2)).double()
    result = attribute(explained, "integrated_gradients").scores
    # 128 midpoints are good to about 1e-3 of the largest score, 32 Gauss nodes to a few.
    torch.testing.assert_close(result, scores, rtol=0, atol=5e-3 * float(scores.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_occlusion_equals_brute_force(batch_size):
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT, baseline=7, batch_size=batch_size)
    expected = []
    for s in range(len(IDS)):
        ids = IDS.clone()
        ids[s] = 7
        expected.append(explained.f - float(stock_logits(model, ids)[-1, explained.target.token]))
    # Float32 through four layers, by another scan and in other batches.
    torch.testing.assert_close(
        attribute(explained, "occlusion").scores,
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-3,
        atol=1e-5,
    )


def test_knockout_takes_one_source_out_of_every_scan():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT)
    for s in (0, 6, len(IDS) - 1):
        edits = {layer: _without_source(site, s) for layer, site in find_mixers(model).items()}
        with torch.no_grad(), fast_scan(model, edits=edits):
            f = explained.f_of_logits(explained.logits(explained.embeddings))
        score = float(attribute(explained, "knockout").scores[s])
        # A difference of two float32 logits of order 1.
        assert score == pytest.approx(explained.f - float(f), abs=1e-5)


def _without_source(site, s: int):
    """Edit: y_t loses alpha[t, s] u_s, alpha built entry by entry instead of through B."""
    seen = {}

    def edit(stage: str, x: torch.Tensor) -> torch.Tensor:
        seen[stage] = x
        if stage != "y":
            return x
        A = -torch.exp(site.mixer.A_log.detach())
        alpha = implicit_attention(seen["delta"], A, seen["B"], seen["C"])[..., s]
        return x - alpha.mT * seen["u"][:, s : s + 1]

    return edit


def test_rollout_is_row_stochastic_and_of_one_layer_in_closed_form():
    model = make_tiny_model()
    scores = attribute(explain(model, IDS, LOGIT), "rollout").scores
    assert bool((scores >= 0).all())
    assert float(scores.sum()) == pytest.approx(1.0, rel=1e-6)  # float32 maps
    del model.backbone.layers[1:]
    scores = attribute(explain(model, IDS, LOGIT), "rollout").scores
    captured = capture(model, IDS[None], None, [0])
    parts = captured.components[0]
    row = implicit_attention(parts.delta, parts.A, parts.B, parts.C)[0].abs().mean(0)[-1].double()
    output, stream = (
        float(x[0, -1].norm()) for x in (parts.mixer_output, captured.block_inputs[0])
    )
    share = output / (output + stream)
    expected = share * row / row.sum()
    expected[-1] += 1 - share
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-7)  # float32


def test_hidden_attention_is_the_mean_of_the_normalised_rows():
    model = make_tiny_model()
    captured = capture(model, IDS[None], None, [0, 1, 2, 3])
    rows = []
    for p in captured.components.values():
        row = implicit_attention(p.delta, p.A, p.B, p.C)[0].abs().mean(0)[-1].double()
        rows.append(row / row.sum())
    scores = attribute(explain(model, IDS, LOGIT), "hidden_attention").scores
    torch.testing.assert_close(scores, torch.stack(rows).mean(0), rtol=1e-4, atol=1e-7)  # float32


def test_gradient_rollout_matches_the_maps_head_by_head():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT)
    replays = {}
    x = explained.embeddings.clone().requires_grad_()
    with fast_scan(model, observe=replays.__setitem__):
        f = explained.f_of_logits(explained.logits(x)).sum()
    expected = torch.eye(len(IDS), dtype=torch.float64)
    for replay in replays.values():
        (grad_y,) = torch.autograd.grad(f, replay.y, retain_graph=True)
        alpha = implicit_attention(replay.delta, replay.A, replay.B, replay.C)[0].detach()
        term = torch.einsum("th,hts,sh->hts", grad_y[0], alpha, replay.u[0].detach())
        layer = torch.eye(len(IDS)) + F.relu(term).mean(0)
        expected = layer.double() @ expected
    scores = attribute(explained, "gradient_rollout").scores
    torch.testing.assert_close(scores, expected[-1], rtol=1e-4, atol=1e-8)  # float32


def test_mamba_attribution_is_the_papers_formula_layer_by_layer():
    model = make_tiny_model()
    explained = explain(model, IDS, LOGIT)
    replays = {}
    x = explained.embeddings.clone().requires_grad_()
    with fast_scan(model, observe=replays.__setitem__):
        f = explained.f_of_logits(explained.logits(x)).sum()
    rollout = torch.eye(len(IDS), dtype=torch.float64)
    for replay in replays.values():
        (gradient,) = torch.autograd.grad(f, replay.output, retain_graph=True)
        alpha = implicit_attention(replay.delta, replay.A, replay.B, replay.C)[0].detach().mean(0)
        product = gradient[0].mean(1)[:, None] * alpha
        rollout = (torch.eye(len(IDS)) + F.relu(product)).double() @ rollout
    scores = attribute(explained, "mamba_attribution").scores
    torch.testing.assert_close(scores, rollout[-1], rtol=1e-4, atol=1e-8)  # float32
    other = attribute(explained, "gradient_rollout").scores
    assert not torch.allclose(scores, other, rtol=1e-2)


@pytest.fixture(scope="module")
def induction_circuit():
    """Key 3 at token 3 opens token 4, whose value 5 the query at the end, 3 again, predicts."""
    model = hand_weighted.induction(vocab_size=8)
    ids = torch.tensor([0, 0, 0, 3, 5, 0, 0, 0, 0, 3])
    return explain(model, ids, resolve_target("logit", token=5), baseline=0)


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_methods_that_replace_tokens_find_key_value_and_query(induction_circuit, method):
    scores = attribute(induction_circuit, method).scores
    assert set(scores.argsort(descending=True)[:3].tolist()) == {3, 4, 9}
    # The fillers stand for themselves: taking one away changes nothing but rounding.
    fillers = [i for i in range(10) if i not in (3, 4, 9)]
    assert float(scores[fillers].abs().max()) < 1e-5 < 1e-2 * float(scores[[3, 4, 9]].min())


@pytest.mark.parametrize(
    "method", ["mamba_lrp", "hidden_attention", "knockout", "rollout", "gradient_rollout"]
)
def test_methods_that_follow_values_miss_the_key(induction_circuit, method):
    scores = attribute(induction_circuit, method).scores
    assert float(scores[4]) > 1e-3
    # The key acts through B alone, which these hold constant; 0 up to float32 logits of order 1.
    assert abs(float(scores[3])) < 1e-6


def without_reading(model, layers):
    """C = 0 in these layers: they attend to nothing."""
    with torch.no_grad():
        for layer in layers:
            mixer = find_mixers(model)[layer].mixer
            mixer.x_proj.weight[-mixer.ssm_state_size :].zero_()
    return model


def test_a_layer_that_attends_to_nothing_leaves_hidden_attention_defined():
    partly = attribute(
        explain(without_reading(make_tiny_model(), [1]), IDS, LOGIT), "hidden_attention"
    )
    assert partly.reason is None
    # Three of four layers give 1 each.
    assert float(partly.scores.sum()) == pytest.approx(0.75, rel=1e-6)
    model = without_reading(make_tiny_model(), range(4))
    nowhere = attribute(explain(model, IDS, LOGIT), "hidden_attention")
    assert nowhere.scores.tolist() == [0.0] * len(IDS)
    assert nowhere.reason == "no layer attends to anything from the position explained"
    assert nowhere.to_dict()["reason"] == nowhere.reason


@pytest.mark.parametrize("method", ASKING)
def test_every_method_is_finite_on_a_model_that_attends_to_nothing(method):
    model = without_reading(make_tiny_model(), range(4))
    assert bool(attribute(explain(model, IDS, LOGIT), method).scores.isfinite().all())


@pytest.mark.parametrize("method", ASKING)
def test_tokens_after_the_position_score_nothing(method):
    explained = explain(make_tiny_model(), IDS, resolve_target("logit", position=4))
    scores = attribute(explained, method).scores
    # Not exactly 0 for differences of two float32 logits of order 1.
    assert float(scores[5:].abs().max()) < 1e-5
    assert float(scores[:5].abs().max()) > 1e-3 or method == "knockout"


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("method", ["rollout", "hidden_attention", "gradient_rollout", "occlusion"])
def test_every_target_can_be_explained(method, target):
    scores = attribute(explain(make_tiny_model(), IDS, resolve_target(target)), method).scores
    assert bool(torch.isfinite(scores).all())
    assert scores.dtype == torch.float64
    assert len(scores) == len(IDS)


def test_the_blind_methods_do_not_look_at_the_model():
    explained = explain(make_tiny_model(), IDS, LOGIT)
    other = explain(make_tiny_model(seed=1), IDS, LOGIT)
    for method in ("random", "recency"):
        assert torch.equal(attribute(explained, method).scores, attribute(other, method).scores)
    assert attribute(explained, "recency").scores.tolist() == list(range(len(IDS)))
    reseeded = attribute(replace(explained, seed=1), "random").scores
    assert not torch.equal(reseeded, attribute(explained, "random").scores)


@pytest.mark.parametrize("method", list(ATTRIBUTION_METHODS))
def test_attributing_leaves_the_model_as_it_was(method):
    model = make_tiny_model()
    before = stock_logits(model, IDS)
    attribute(explain(model, IDS, LOGIT), method)
    assert torch.equal(stock_logits(model, IDS), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_single_token_is_explained():
    for method in ATTRIBUTION_METHODS:
        scores = attribute(explain(make_tiny_model(), [3], LOGIT), method).scores
        assert scores.shape == (1,)
        assert math.isfinite(float(scores))


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="method is 'lime'; it must be one of gradient_x_input, "):
        attribute(explain(make_tiny_model(), IDS, LOGIT), "lime")


def test_dict_is_strict_json_with_none_where_a_sum_means_nothing():
    explained = explain(make_tiny_model(), IDS, LOGIT)
    for method, has_total in (("mamba_lrp", True), ("rollout", False)):
        result = json.loads(json.dumps(attribute(explained, method).to_dict(), allow_nan=False))
        assert (result["total"] is not None) == has_total
        assert (result["conservation_error"] is not None) == has_total
        assert len(result["scores"]) == len(IDS)


def test_command_prints_and_writes_the_scores(tiny_model_dir, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--model", str(tiny_model_dir), "--text", "the cat sat", "--output-dir"]
    assert main([*arguments, str(folder), "--quiet", "--method", "occlusion"]) == 0
    result = json.loads((folder / "input_attribution.json").read_text())["text_0"]
    assert result["method"] == "occlusion"
    assert len(result["tokens"]) == len(result["scores"])
    printed = capsys.readouterr().out
    assert f"{result['scores'][0]:+10.4f}  {result['tokens'][0]}" in printed
    assert (folder / "input_attribution.png").stat().st_size > 0
    assert main([*arguments, str(folder), "--quiet", "--token", "not one token"]) == 2
    assert "is not in the vocabulary" in capsys.readouterr().err


def test_command_prints_the_largest_scores_of_a_long_text(tiny_model_dir, tmp_path, capsys):
    words = " ".join(["the cat sat", "on a mat"] * 4)
    arguments = ["--model", str(tiny_model_dir), "--text", words, "--method", "recency", "--quiet",
                 "--formats", "svg", "--output-dir", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads((tmp_path / "out" / "input_attribution.json").read_text())["text_0"]
    count = len(result["scores"])
    head, *lines, _ = capsys.readouterr().out.splitlines()
    assert head.endswith(f"the 12 largest scores of {count} by recency")
    assert [int(line.split()[0]) for line in lines] == list(range(count - 12, count))
    assert (tmp_path / "out" / "input_attribution.svg").exists()

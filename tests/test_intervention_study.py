"""Causal memory curves: planted lags, decays and models without memory; baselines; the command."""

import csv
import json
import math

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model
from torch import Tensor
from transformers import MambaForCausalLM

import intervention_study
from causal_interventions.causal_curves import (
    CausalMemoryCurve,
    compare_curves,
    kernel_agreement,
    pooled_curve,
)
from causal_interventions.effects import intervention_effects
from causal_interventions.interventions import hide_source, reset_state
from intervention_study import (
    causal_memory_curve,
    layer_lag_map,
    layer_pairs,
    main,
    mean_kernel,
    random_positions,
    spread_positions,
)
from mamba_mixers.running import fast_scan
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.components import Capture
from suite_plumbing.result_files import read_json
from token_statistics.smallest_effects import KL_FLOOR

LAYER = 1


def tiny_capture(model, length: int = 40, seed: int = 3) -> Capture:
    generator = torch.Generator().manual_seed(seed)
    return capture(model, torch.randint(1, 64, (1, length), generator=generator), None, [0, LAYER])


def curve_of(kl: Tensor, kind: str = "knockout") -> CausalMemoryCurve:
    places = tuple((0, token) for token in range(len(kl)))
    return CausalMemoryCurve(kind, (0,), places, kl.double(), kl.double())


def writing(built: hand_weighted.HandWeighted, strength: float = 5.0) -> MambaForCausalLM:
    """What channel 0 holds raises one logit, so that memory reaches the predictions."""
    return built.writes(0, strength * torch.eye(6)[2]).model


@pytest.mark.parametrize(("kind", "build"), [("reset", reset_state), ("knockout", hide_source)])
def test_a_curve_lines_up_effects_by_their_lag(kind, build):
    model = make_tiny_model()
    captured = tiny_capture(model)
    curve = causal_memory_curve(model, captured, LAYER, [5, 38, 20], 6, kind=kind, text=2)
    assert curve.kl.shape == curve.loss_change.shape == (3, 7)
    assert curve.positions == ((2, 5), (2, 38), (2, 20))
    first = 0 if kind == "reset" else 1
    for row, token in enumerate((5, 38, 20)):
        alone = intervention_effects(model, captured, build(token, LAYER))
        for lag in range(7):
            found = float(curve.kl[row, lag])
            if lag < first or token + lag > 39:
                assert math.isnan(found)
            else:
                # A KL is quadratic in logits that agree to 1e-6.
                expected = float(alone.kl[0, token + lag])
                assert found == pytest.approx(expected, rel=1e-2, abs=1e-10)
    assert math.isnan(curve.loss_change[1, 1])  # after the last token there is nothing to lose
    torch.testing.assert_close(curve.mean_kl, curve.kl.nanmean(0), equal_nan=True)


def test_a_knockout_of_an_induction_head_peaks_at_the_gap_alone():
    """Token t looks for the token after its last occurrence: at lag 5 in a text of period 6."""
    model = hand_weighted.induction()
    captured = capture(model, torch.tensor([[3, 1, 0, 5, 2, 4] * 3]), None, [0])
    curve = causal_memory_curve(model, captured, 0, [1, 2, 3, 4, 5], 12, kind="knockout")
    assert int(curve.mean_kl[1:].argmax()) + 1 == 5
    others = [lag for lag in range(1, 13) if lag not in (5, 11)]
    # alpha is exactly 0 at every other lag.
    assert float(curve.mean_kl[others].max()) < 1e-15
    assert float(curve.mean_kl[5]) > 2 * float(curve.mean_kl[11]) > 1e-3
    # The head predicts the next token by that source: without it the loss rises there.
    assert float(curve.loss_change[:, 5].min()) > 0.1


def test_a_reset_between_two_readings_costs_the_benefit_of_the_second():
    model = hand_weighted.induction()
    passage = [3, 1, 0, 5, 2, 4]
    captured = capture(model, torch.tensor([passage * 2]), None, [0])
    found = intervention_effects(model, captured, reset_state(6, 0))
    losses = -model(captured.input_ids).logits[0].log_softmax(-1)
    after = losses[:-1].gather(1, captured.input_ids[0, 1:, None])[:, 0].detach()
    benefit = after[:5].mean() - after[6:].mean()
    assert float(benefit) > 0.1
    # Tokens 6 to 10 predict as 0 to 4 do; the convolution alone reaches over the reset, at token 6.
    lost = found.loss_change[0, 7:11].double()
    torch.testing.assert_close(lost, (after[1:5] - after[7:11]).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rates", [(0.1, 0.32), (0.2, 0.9)])
def test_a_knockout_peaks_where_the_attention_does(rates):
    built = hand_weighted.HandWeighted(6, 6, d_state=2).channel(0, range(6))
    built.reads(B={(0, 0): 1.0, (1, 0): 1.0}, C={(0, 0): 1.0, (1, 0): -1.0})
    # So weak that the logits do not saturate: a single source then matters by more than 1e-4 nats,
    # below which nothing is compared.
    model = writing(built.decay(list(rates), 1.0), strength=0.5)
    captured = capture(model, torch.ones(1, 120, dtype=torch.long), None, [0])
    curve = causal_memory_curve(model, captured, 0, range(60, 90), 20, kind="knockout")
    lags = torch.arange(21.0)
    alpha = torch.exp(-rates[0] * lags) - torch.exp(-rates[1] * lags)
    assert int(curve.mean_kl[1:].argmax()) == int(alpha[1:].argmax())
    agreement = kernel_agreement(curve, mean_kernel([captured], 0))
    # Both orders are those of alpha; near-ties of two lags may fall either way by rounding.
    assert agreement["spearman"] > 0.99
    assert agreement["num_lags"] == 20


@pytest.mark.parametrize("half_life", [4.0, 12.0])
def test_the_effect_of_a_reset_halves_twice_in_a_half_life(half_life):
    """What is missing after k more tokens is 2^(-k / half-life); a small KL is its square."""
    built = hand_weighted.HandWeighted(6, 6, d_state=1).channel(0, range(6))
    built.reads(B={(0, 0): 1.0}, C={(0, 0): 1.0})
    model = writing(built.decay([math.log(2) / (half_life * 0.1)], 0.1), strength=0.01)
    captured = capture(model, torch.ones(1, 80, dtype=torch.long), None, [0])
    kl = causal_memory_curve(model, captured, 0, [60], 15, kind="reset").mean_kl
    for lag in (4, 8, 12):
        # The logits move by 2 % or less; so far the KL may be off its quadratic form.
        assert float(kl[lag] / kl[0]) == pytest.approx(4 ** (-lag / half_life), rel=0.03)


def marked_once(model):
    ids = torch.zeros(1, 40, dtype=torch.long)
    ids[0, 16] = 1  # the first position of a curve
    return model, capture(model, ids, None, [0, 1])


def test_a_memory_that_is_kept_twice_is_missed_by_neither_layer_alone_and_by_both():
    model, captured = marked_once(hand_weighted.either_memory())
    (found,) = layer_pairs(model, [captured], [(0, 1)], 10, num_positions=1)
    # 3 e^-12 = 1.8e-5 without one; ln 4 less what a state forgets, 1e-4 a token, without both.
    assert max(found.kl_a, found.kl_b) == pytest.approx(3 * math.exp(-12), rel=0.05)
    assert found.kl_together == pytest.approx(math.log(4), rel=0.01)
    assert found.backed_up
    assert found.excess == pytest.approx(found.kl_together - found.kl_a - found.kl_b, rel=1e-9)


def test_a_memory_of_one_layer_alone_is_not_backed_up():
    model, captured = marked_once(hand_weighted.either_memory())
    with torch.no_grad():
        model.backbone.layers[1].mixer.out_proj.weight.zero_()
    (found,) = layer_pairs(model, [captured], [(0, 1)], 10, num_positions=1)
    assert found.kl_a == pytest.approx(found.kl_together, rel=1e-6)
    assert not found.backed_up


def test_a_direct_effect_is_seen_where_a_later_layer_makes_up_for_the_total_one():
    model, captured = marked_once(hand_weighted.backed_up_memory())
    total, direct = (
        causal_memory_curve(model, captured, 0, [16], 10, kind="knockout", direct=held).mean_kl
        for held in (False, True)
    )
    assert float(total[1:].max()) < KL_FLOOR < 0.5 < float(direct[1:].min())
    # The last layer has no later one: its effects are direct.
    last = [
        causal_memory_curve(model, captured, 1, [16], 10, kind="knockout", direct=held).kl
        for held in (False, True)
    ]
    assert torch.equal(last[0].nan_to_num(), last[1].nan_to_num())
    only = capture(model, captured.input_ids, None, [0])
    with pytest.raises(ValueError, match=r"layers \[1\] were not captured"):
        causal_memory_curve(model, only, 0, [16], 10, direct=True)


@torch.no_grad()
def test_direct_effects_are_those_of_the_stream_with_one_write_exchanged():
    model = make_tiny_model()
    captured = capture(model, tiny_capture(model).input_ids, None, [0, 1, 2, 3])
    found = causal_memory_curve(model, captured, LAYER, [10], 8, kind="reset", direct=True)
    seen = {}
    with fast_scan(model, edits=reset_state(10, LAYER), observe=lambda i, r: seen.update({i: r})):
        model(captured.input_ids, use_cache=False)
    change = seen[LAYER].output - captured.components[LAYER].mixer_output
    final = captured.block_outputs[3]
    log_p, log_q = (
        model.lm_head(model.backbone.norm_f(x))[0].double().log_softmax(-1)
        for x in (final, final + change)
    )
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[10:19]
    # A KL is quadratic in float32 logits that agree to 1e-6.
    torch.testing.assert_close(found.kl[0], expected, rtol=1e-2, atol=1e-10)


def test_pairs_refuse_what_is_no_pair():
    model = make_tiny_model()
    captured = tiny_capture(model)
    with pytest.raises(ValueError, match="pairs is empty"):
        layer_pairs(model, [captured], [], 5)
    with pytest.raises(ValueError, match=r"pairs holds \(1, 1\); a pair is of two layers"):
        layer_pairs(model, [captured], [(0, 1), (1, 1)], 5)


def test_no_agreement_with_a_curve_that_has_no_effect():
    kernel = torch.arange(20.0, 0.0, -1)
    found = kernel_agreement(curve_of(torch.rand(4, 12) * 1e-7), kernel)
    assert found["spearman"] is None
    assert found["reason"] == "no effect of 0.0001 nats at any lag"
    assert kernel_agreement(curve_of(torch.rand(4, 12)), kernel)["spearman"] is not None


def test_positions_leave_room_for_every_lag():
    places = spread_positions(256, 64, 64)
    assert len(places) == 64
    assert (places[0], places[-1]) == (16, 190)
    assert spread_positions(12, 5, 8) == [2]
    drawn = random_positions(256, 20, 64, exclude=places)
    assert not set(drawn) & set(places)
    assert 16 <= drawn[0] <= drawn[-1] <= 190
    assert drawn == random_positions(256, 20, 64, exclude=places)
    with pytest.raises(ValueError, match="max_lag is 8; a text of 10 tokens allows 1 to 7"):
        spread_positions(10, 5, 8)
    with pytest.raises(ValueError, match="a text of 3 tokens is too short"):
        spread_positions(3, 5, 1)
    with pytest.raises(ValueError, match="max_lag is 0 .*at least 1"):
        spread_positions(10, 5, 0)
    with pytest.raises(ValueError, match="count is 9; 7 other tokens have 3 after them"):
        random_positions(28, 9, 3, exclude=[20])


def test_positions_where_the_memory_is_beside_random_ones():
    """Only sources that the induction head comes back to matter."""
    model = hand_weighted.induction()
    ids = torch.tensor([[5, 4, 1, 5, 4, 1, *[2, 3] * 6, 5]])
    captured = capture(model, ids, None, [0])
    chosen = causal_memory_curve(model, captured, 0, [1, 2, 3], 4, kind="knockout")
    baseline = causal_memory_curve(model, captured, 0, [4, 5, 6], 4, kind="knockout")
    rows = compare_curves(chosen, baseline)
    assert [row["first_lag"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["difference"] == pytest.approx(row["kl"] - row["baseline_kl"])
        assert (row["num_texts"], row["p_value"]) == (1, None)
        assert row["reason"] == "1 independent text; a p needs 5"
    assert rows[1]["kl"] > 10 * rows[1]["baseline_kl"]
    single = compare_curves(curve_of(torch.rand(1, 3)), curve_of(torch.rand(5, 3)))
    assert single[0]["p_value"] is None
    assert single[0]["reason"] == "1 independent text; a p needs 5"
    with pytest.raises(ValueError, match="all of one kind"):
        compare_curves(chosen, curve_of(torch.rand(3, 5), "reset"))


def test_a_layer_lag_map_is_its_curves():
    model = make_tiny_model()
    captures = [tiny_capture(model), tiny_capture(model, 30, seed=4)]
    found = layer_lag_map(model, captures, [LAYER, 0], 8, kind="knockout", num_positions=3)
    assert sorted(found.by_layer) == [0, LAYER]
    curves = [
        causal_memory_curve(
            model, one, LAYER, spread_positions(one.input_ids.shape[1], 3, 8), 8, kind="knockout",
            text=text,
        )
        for text, one in enumerate(captures)
    ]  # fmt: skip
    expected = pooled_curve(curves)
    assert found.by_layer[LAYER].positions == expected.positions
    torch.testing.assert_close(found.by_layer[LAYER].kl, expected.kl, equal_nan=True)
    assert found.together.layers == (0, LAYER)
    assert found.values.shape == (2, 9)
    torch.testing.assert_close(found.values[1], expected.mean_kl, equal_nan=True)
    rows = found.rows()
    assert [row["layer"] for row in rows[:: len(rows) // 3]] == [0, LAYER, "together"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_bad_input_is_named():
    model = make_tiny_model()
    captured = tiny_capture(model)
    for arguments, message in (
        ((LAYER, [40], 5), "positions is 40 .*at most 39"),
        ((LAYER, [3], 40), "max_lag is 40 .*at most 39"),
        ((LAYER, [], 5), "positions is empty"),
        ((2, [3], 5), "layer_idx is 2; the layers extracted are .0, 1."),
        (([], [3], 5), "layers is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_memory_curve(model, captured, *arguments)
    with pytest.raises(ValueError, match="kind is 'ablate'; it must be one of reset, knockout"):
        causal_memory_curve(model, captured, LAYER, [3], 5, kind="ablate")
    with pytest.raises(ValueError, match="captures is empty"):
        layer_lag_map(model, [], [0], 5)
    with pytest.raises(ValueError, match="curves must be at least one"):
        pooled_curve([])
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_the_command_writes_pairs_of_direct_effects(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "study"
    options = ["--model", str(tiny_model_dir), "--text", "the lamp went out and the keeper lit it",
               "--layers", "0,2", "--max-lag", "6", "--num-positions", "4", "--quiet", "--pairs",
               "--direct", "--kind", "reset", "--output-dir", str(out)]  # fmt: skip
    assert main(options) == 0
    result = read_json(out / "intervention_study.json")
    assert result["effect"] == "direct"
    (pair,) = result["pairs"]
    assert (pair["layer_a"], pair["layer_b"], pair["num_positions"]) == (0, 2, 2)
    assert (out / "layer_pairs.csv").read_text().startswith("kind,layer_a,layer_b,kl_a,kl_b,")
    printed = capsys.readouterr().out
    assert "Two layers at once" in printed
    # This tiny model's effects are below 1e-4 nats: no size is given for what is worth no name.
    assert "<0.1" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert "causal_memory.csv and its figure" in printed


def test_the_command_names_the_text_that_is_too_short(tiny_model_dir, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("the lamp went out and the keeper lit it\n" * 2 + "to\n", encoding="utf-8")
    options = ["--model", str(tiny_model_dir), "--texts-file", str(path), "--quiet",
               "--output-dir", str(tmp_path / "study")]  # fmt: skip
    assert main(options) == 2
    said = capsys.readouterr().err
    assert "text 2 ('to') of 2 tokens is too short: curves over lags need 4 or more" in said
    model = make_tiny_model()
    captures = [tiny_capture(model), tiny_capture(model, 3)]
    with pytest.raises(ValueError, match="text 1 of 3 tokens is too short"):
        layer_lag_map(model, captures, [0], 1)


def test_near_copies_of_a_text_are_one_sample_of_a_curve():
    model = make_tiny_model()
    first, other = tiny_capture(model), tiny_capture(model, seed=9)
    copy = first.input_ids.clone()
    copy[0, 20] = 7
    captures = [first, capture(model, copy, None, [0, LAYER]), other]
    found = layer_lag_map(model, captures, [0, LAYER], 4, num_positions=3)
    assert found.together.texts == (0,) * 6 + (2,) * 3
    assert {row["num_texts"] for row in found.rows()} == {2}
    (pair,) = layer_pairs(model, captures, [(0, LAYER)], 4, num_positions=3)
    assert (pair.num_positions, pair.num_texts) == (9, 2)


def test_the_command_prints_how_many_lags_and_texts_an_agreement_is_of(
    tiny_model_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("causal_interventions.causal_curves.KL_FLOOR", 0.0)
    texts = [
        "the lamp went out and the keeper lit it",
        "a map of the far coast lay there",
        "no one spoke while rain fell",
        "his brother sold four boats",
        "wind rose; they sailed",
    ]
    options = ["--model", str(tiny_model_dir), "--layers", "0", "--kind", "knockout", "--quiet",
               "--max-lag", "5", "--num-positions", "3"]  # fmt: skip
    printed = []
    for count in (1, 5):
        given = [part for text in texts[:count] for part in ("--text", text)]
        assert main([*options, *given, "--output-dir", str(tmp_path / str(count))]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[:-1])) <= 80
        printed.append(" ".join(" ".join(lines).split()))
    assert all("over 5 lags with the memory kernel, mean over texts" in one for one in printed)
    assert "3 positions, 1 text layer" in printed[0]
    assert "no interval: 1 independent text; an interval needs 5." in printed[0]
    assert "positions, 5 texts layer" in printed[1]
    assert "95 % intervals over texts: layer 0 " in printed[1]


def test_the_command_writes_what_it_prints(tiny_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(intervention_study, "KL_FLOOR", 0.0)  # effects here are all below it
    out = tmp_path / "study"
    options = ["--model", str(tiny_model_dir), "--text", "the lamp went out and the keeper lit it",
               "--layers", "0,2", "--max-lag", "6", "--num-positions", "4", "--quiet",
               "--output-dir", str(out)]  # fmt: skip
    assert main(options) == 0
    printed = capsys.readouterr().out
    result = read_json(out / "intervention_study.json")
    assert sorted(result) == ["effect", "knockout", "provenance", "reset", "schema_version"]
    assert result["effect"] == "total"
    assert sorted(result["reset"]["layers"]) == ["layer_0", "layer_2"]
    with (out / "causal_memory.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {row["layer"] for row in rows} == {"0", "2", "together"}
    first = result["reset"]["layers"]["layer_2"]["bins"][0]["kl"]
    assert f"{1000 * first:.3g}" in printed
    row = next(row for row in rows if row["kind"] == "reset" and row["layer"] == "2")
    assert float(row["kl"]) == first
    assert (out / "causal_memory.png").stat().st_size > 0
    assert main([*options, "--max-lag", "500"]) == 2
    assert "max_lag is 500; text 0 ('the lamp went" in capsys.readouterr().err


def test_a_reset_token_cuts_survival_attention_and_causal_effect_together():
    """At token 5 delta is above 60, 0.01 elsewhere: what came before is gone by e^-60."""
    built = hand_weighted.HandWeighted(6, 6, d_state=1)
    built.channel(0, range(6)).channel(1, [5])
    built.reads(B={(0, 0): 1.0, (0, 1): -1.0}, C={(0, 0): 1.0}).decay([1.0], 0.01, boost={1: 70.0})
    model = writing(built, strength=50.0)
    place, source = 20, 8
    ids = torch.ones(1, 40, dtype=torch.long)
    ids[0, place] = 5
    captured = capture(model, ids, None, [0])
    parts = captured.components[0]
    steps = parts.delta[0].double().cumsum(0)[:, 0]
    survival = torch.exp((steps - steps[source]) * parts.A[0, 0].double())
    attention = mean_map(parts, absolute=True)[0][:, source]
    effect = causal_memory_curve(model, captured, 0, [source], 31, kind="knockout").kl[0]
    for name, curve, exact in (
        ("survival", survival, 0.0),
        ("attention", attention, 0.0),
        # By lag: index source + k is k tokens on. A KL of equal distributions rounds to 1e-16.
        ("effect", torch.cat([torch.full((source,), math.nan), effect]), 1e-15),
    ):
        before, after = curve[source + 1 : place], curve[place:]
        assert float(after.max()) <= max(exact, 1e-20), name
        # Up to the cut it is there: e^-0.11 of the state, and a KL far above rounding.
        assert float(before.min()) > 1e-6, name
    assert float(survival[place - 1]) == pytest.approx(math.exp(-0.01 * 11), rel=1e-3)
    reset = causal_memory_curve(model, captured, 0, [place + 1], 5, kind="reset").kl[0]
    inside = causal_memory_curve(model, captured, 0, [place], 5, kind="reset").kl[0]
    # Resetting the state where the token has done so already changes nothing.
    assert float(inside.max()) <= 1e-15
    assert float(reset[0]) <= 1e-15  # the token itself writes nothing


def test_a_text_given_again_is_no_further_evidence(tiny_model_dir, tmp_path):
    """Positions of the same text again would draw its intervals together."""
    text = "the lamp went out and the keeper lit it"
    results = []
    for name, texts in {"once": [text], "thrice": [text] * 3}.items():
        out = tmp_path / name
        options = ["--model", str(tiny_model_dir), "--layers", "0", "--kind", "reset",
                   "--max-lag", "4", "--num-positions", "4", "--output-dir", str(out)]  # fmt: skip
        assert main([*options, *(part for one in texts for part in ("--text", one))]) == 0
        results.append(read_json(out / "intervention_study.json"))
    assert results[0]["reset"] == results[1]["reset"]
    assert list(results[1]["provenance"]["texts"]) == ["text_0"]

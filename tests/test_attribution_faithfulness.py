"""Faithfulness table: planted effects in closed form, agreement, randomisation, command, errors."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalSubscript=false, reportOperatorIssue=false

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from torch import nn
from transformers import MambaForCausalLM

import attribution_faithfulness
from attribution_faithfulness import (
    FaithfulnessTable,
    faithfulness_table,
    format_table,
    main,
    randomisation_test,
)
from causal_interventions.explained import Scores, explain
from causal_interventions.targets import resolve_target
from input_attribution import ATTRIBUTION_METHODS, AttributionMethod, attribute
from mamba_mixers.sites import find_mixers
from suite_plumbing.texts import EncodedText
from token_statistics.association import spearman
from token_statistics.intervals import mean_interval

LOGIT = resolve_target("logit")


def encoded(*lengths: int, seed: int = 0) -> list[EncodedText]:
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for length in lengths:
        ids = torch.randint(1, 64, (length,), generator=generator).tolist()
        texts.append(EncodedText("", ids, [str(i) for i in ids], None, length, False))
    return texts


def make_last_token_model() -> MambaForCausalLM:
    """f = e_p . U_v of the last token p alone: mixers silent, no final norm."""
    model = make_tiny_model()
    with torch.no_grad():
        for site in find_mixers(model).values():
            site.mixer.out_proj.weight.zero_()
    model.backbone.norm_f = nn.Identity()  # type: ignore[assignment]
    return model


@pytest.fixture(scope="module")
def small_table() -> FaithfulnessTable:
    methods = ["mamba_lrp", "rollout", "occlusion", "knockout", "recency"]
    return faithfulness_table(
        make_tiny_model(),
        None,
        encoded(9, 14, 11, 8, 10),
        methods,
        num_random=2,
        num_randomised_texts=2,
    )


def test_where_the_last_token_is_all_the_measures_are_in_closed_form():
    model, texts = make_last_token_model(), encoded(10, 10)
    table = faithfulness_table(
        model, None, texts, ["mamba_lrp", "occlusion"], baseline="zero", num_randomised_texts=0
    )
    f = [explain(model, text.input_ids, LOGIT).f for text in texts]
    for name in ("mamba_lrp", "occlusion"):
        found = table.methods[name].per_text
        # The first of 10 steps takes the token that f is; its reverse takes it last. Trapezoids:
        # MoRF has half a step of f left, LeRF lacks half a step. Float32 logits.
        assert found["delta_af"] == pytest.approx([0.9 * value for value in f], rel=1e-5)
        assert found["comprehensiveness"] == pytest.approx(f, rel=1e-5)
        assert found["sufficiency"] == pytest.approx([0.0, 0.0], abs=1e-5)
        assert table.methods[name].most_first[1:] == pytest.approx([0.0] * 10, abs=1e-5)
        assert table.methods[name].least_first[:-1] == pytest.approx([sum(f) / 2] * 10, rel=1e-5)


def test_recency_is_perfect_where_only_the_last_token_counts():
    table = faithfulness_table(
        make_last_token_model(), None, encoded(10, 12, 9), ["mamba_lrp", "recency"],
        baseline="zero", num_randomised_texts=0,
    )  # fmt: skip
    gain = table.methods["mamba_lrp"].over["recency"]["delta_af"]
    assert gain.mean == pytest.approx(0.0, abs=1e-5)  # float32 logits of order 1
    assert "rollout" not in table.methods["mamba_lrp"].over


def test_another_text_s_tokens_as_the_baseline_are_in_closed_form():
    model, texts = make_last_token_model(), encoded(10, 10)
    table = faithfulness_table(
        model, None, texts, ["mamba_lrp"], baseline="zero", num_randomised_texts=0
    )
    weight = model.get_input_embeddings().weight.detach()
    expected = []
    for text, donor in ((0, 1), (1, 0)):
        token = int(explain(model, texts[text].input_ids, LOGIT).target.token)
        own, others = (weight[texts[i].input_ids[-1]] for i in (text, donor))
        expected.append(0.9 * float((own - others) @ weight[token]))
    # As with zeros: 0.9 of what the last token's embedding is worth over its stand-in's. Float32.
    found = table.methods["mamba_lrp"].per_text["delta_af_other_text"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert table.other_text_reason is None


def test_one_text_has_no_other_to_stand_in_for_it():
    table = faithfulness_table(make_tiny_model(), None, encoded(8), ["recency"])
    estimate = table.methods["recency"].measures["delta_af_other_text"]
    assert (estimate.mean, estimate.num_texts) == (None, 0)
    assert table.other_text_reason == "one text; no other stands in for it"
    json.dumps(table.to_dict(), allow_nan=False)


def test_a_gain_has_the_p_of_its_signs():
    table = faithfulness_table(
        make_last_token_model(), None, encoded(*[9] * 8), ["mamba_lrp", "recency"],
        baseline="zero", num_randomised_texts=0,
    )  # fmt: skip
    gain = table.methods["mamba_lrp"].over["random"]["delta_af"]
    values = [
        a - b
        for a, b in zip(
            table.methods["mamba_lrp"].per_text["delta_af"],
            table.methods["random"].per_text["delta_af"],
            strict=True,
        )
    ]
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    means = (signs * values).mean(1)
    tail = min((means >= np.mean(values) - 1e-12).mean(), (means <= np.mean(values) + 1e-12).mean())
    assert gain.p_value == pytest.approx(min(1.0, 2 * tail), abs=1e-12)  # all 256 sign patterns
    # Both see the last token alone: nothing is gained over recency but rounding.
    assert table.methods["mamba_lrp"].over["recency"]["delta_af"].p_value is not None


def test_copies_of_a_text_are_one_in_means_and_intervals():
    model, texts = make_tiny_model(), encoded(9, 9, 9)
    table = faithfulness_table(
        model, None, [*texts, texts[0], texts[0]], ["recency"], num_randomised_texts=0
    )
    assert (table.num_texts, table.num_groups) == (5, 3)
    values = table.methods["recency"].per_text["delta_af"]
    estimate = table.methods["recency"].measures["delta_af"]
    assert (estimate.num_texts, estimate.low) == (3, None)
    first, second, third, *copies = [value or 0.0 for value in values]
    expected = (sum([first, *copies]) / 3 + second + third) / 3
    assert estimate.mean == pytest.approx(expected)


def test_a_method_that_ranks_nothing_is_none_with_the_reason_and_leaves_the_rest():
    model = make_tiny_model()
    with torch.no_grad():
        for site in find_mixers(model).values():
            site.mixer.x_proj.weight[-site.mixer.ssm_state_size :].zero_()  # C = 0
    table = faithfulness_table(
        model, None, encoded(8, 9), ["hidden_attention", "occlusion"], num_randomised_texts=1
    )
    hidden = table.methods["hidden_attention"]
    assert hidden.measures["delta_af"].mean is None
    assert hidden.per_text["delta_af"] == [None, None]
    assert (hidden.most_first, hidden.least_first) == (None, None)
    assert hidden.reason == "no layer attends to anything from the position explained"
    assert table.methods["occlusion"].measures["delta_af"].num_texts == 2
    assert table.rows()[-1]["method"] == "hidden_attention"
    json.dumps(table.to_dict(), allow_nan=False)
    assert "hidden_attention" in format_table(table)
    table.figure()


def test_every_method_and_only_those_asked_for_have_a_row(small_table):
    assert list(small_table.methods) == [
        "mamba_lrp", "rollout", "occlusion", "knockout", "recency", "random"
    ]  # fmt: skip
    assert small_table.num_texts == 5
    assert small_table.num_tokens == 52
    assert small_table.baseline == "mean"
    assert [row["method"] for row in small_table.rows()] == sorted(
        small_table.methods, key=lambda n: -(small_table.methods[n].measures["delta_af"].mean or 0)
    )
    assert "random" not in small_table.methods["random"].over


def test_estimates_are_means_with_intervals_over_texts(small_table):
    for method in small_table.methods.values():
        for measure, values in method.per_text.items():
            estimate = method.measures[measure]
            assert estimate.mean == pytest.approx(sum(values) / 5, rel=1e-12)
            assert estimate.low is not None
            assert (estimate.low, estimate.high) == mean_interval(values, seed=0)[1:3]
    lrp, chance = small_table.methods["mamba_lrp"], small_table.methods["random"]
    gains = [
        a - b for a, b in zip(lrp.per_text["delta_af"], chance.per_text["delta_af"], strict=True)
    ]
    assert lrp.over["random"]["delta_af"].mean == pytest.approx(sum(gains) / 5, rel=1e-12)


def test_agreement_is_spearman_with_what_is_measured(small_table):
    model = make_tiny_model()
    expected = []
    for text in encoded(9, 14, 11, 8, 10):
        explained = explain(model, text.input_ids, LOGIT)
        scores = [attribute(explained, name).scores for name in ("mamba_lrp", "occlusion")]
        expected.append(spearman(*scores))
    found = small_table.methods["mamba_lrp"].agreement["occlusion"]
    assert found.mean == pytest.approx(sum(expected) / 5, rel=1e-12)
    assert set(small_table.methods["occlusion"].agreement) == {"knockout"}


def test_conservation_is_reported_where_it_is_promised(small_table):
    lrp = small_table.methods["mamba_lrp"]
    assert lrp.conservation_error["max"] <= 1e-3
    assert lrp.bias_share != 0
    assert small_table.methods["rollout"].conservation_error == {"median": None, "max": None}
    assert small_table.methods["rollout"].bias_share is None


def test_curves_begin_at_f_and_end_at_the_baseline_text(small_table):
    given = encoded(9, 14, 11, 8, 10)
    texts = [explain(make_tiny_model(), text.input_ids, LOGIT) for text in given]
    start = sum(text.f for text in texts) / 5
    nothing = [torch.zeros_like(text.input_ids, dtype=torch.bool) for text in texts]
    end = sum(float(t.values(keep)) for t, keep in zip(texts, nothing, strict=True)) / 5
    for method in small_table.methods.values():
        for curve in (method.most_first, method.least_first):
            assert len(curve) == len(small_table.fractions) == 11
            # The same float32 logits in other batches.
            assert curve[0] == pytest.approx(start, abs=1e-4)
            assert curve[-1] == pytest.approx(end, abs=1e-4)


def test_the_same_seed_gives_the_same_table():
    arguments = (make_tiny_model(), None, encoded(8, 9), ["gradient_x_input"])
    first, again, other = (
        faithfulness_table(*arguments, seed=seed, num_randomised_texts=1) for seed in (0, 0, 1)
    )
    assert first.to_dict() == again.to_dict()
    random = [table.methods["random"].per_text for table in (first, other)]
    assert random[0] != random[1]
    exact = [table.methods["gradient_x_input"].per_text for table in (first, other)]
    assert exact[0] == exact[1]


def test_of_one_text_there_is_no_interval():
    table = faithfulness_table(make_tiny_model(), None, encoded(8), ["recency"])
    estimate = table.methods["recency"].measures["delta_af"]
    assert estimate.mean is not None
    assert (estimate.low, estimate.high, estimate.num_texts) == (None, None, 1)


def test_randomisation_tells_an_explanation_of_the_model_from_one_of_the_text(monkeypatch):
    def by_embedding(explained):
        return Scores(explained.embeddings.norm(dim=-1)[0])

    monkeypatch.setitem(ATTRIBUTION_METHODS, "by_embedding", AttributionMethod(by_embedding, False))
    model = make_tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    texts = [explain(model, text.input_ids, LOGIT) for text in encoded(24, 24, 24)]
    names = ["by_embedding", "gradient_x_input", "mamba_lrp", "occlusion", "random"]
    result = randomisation_test(texts, names)
    assert set(result) == {"by_embedding", "gradient_x_input", "mamba_lrp"}
    assert [estimate.mean for estimate in result["by_embedding"]] == pytest.approx([1.0] * 4)
    for name in ("gradient_x_input", "mamba_lrp"):
        assert len(result[name]) == 4
        # By chance |Spearman| has a mean over 3 texts of 24 tokens above 0.5 once in 10^4.
        assert abs(result[name][-1].mean or 0) < 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_randomising_keeps_the_weights_distribution_and_goes_down_from_the_output(monkeypatch):
    model = make_tiny_model()
    changed = []

    def record(explained):
        same = [
            all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
            for old, new in zip(model.backbone.layers, explained.model.backbone.layers, strict=True)
        ]
        changed.append([not one for one in same])
        for old, new in zip(model.parameters(), explained.model.parameters(), strict=True):
            assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        return Scores(torch.arange(explained.num_tokens).double())

    monkeypatch.setitem(ATTRIBUTION_METHODS, "record", AttributionMethod(record, False))
    text = explain(model, encoded(6)[0].input_ids, LOGIT)
    randomisation_test([text], ["record"])
    assert changed == [[layer >= 4 - depth for layer in range(4)] for depth in range(5)]


def test_the_randomised_model_is_asked_about_the_same_token():
    model, other = make_tiny_model(), make_tiny_model(seed=3)
    text = explain(model, encoded(12)[0].input_ids, LOGIT)
    scores = attribution_faithfulness._attributed_by(other, text, ["occlusion"])["occlusion"]
    with torch.no_grad():
        logits = other(inputs_embeds=text.embeddings, use_cache=False).logits
    moved = replace(text, model=other, f=float(text.target(logits)))
    # Two batches of the same float32 computation.
    torch.testing.assert_close(scores, attribute(moved, "occlusion").scores, rtol=0, atol=1e-5)


def test_table_is_strict_json_and_prints_one_line_a_method(small_table):
    dumped = json.loads(json.dumps(small_table.to_dict(), allow_nan=False))
    assert set(dumped["methods"]["mamba_lrp"]["over"]) == {"random", "recency", "rollout"}
    assert len(dumped["methods"]["mamba_lrp"]["randomised"]) == 4
    assert dumped["target"]["name"] == "logit"
    lines = format_table(small_table).splitlines()
    assert len(lines) == 1 + len(small_table.methods)
    estimate = small_table.methods["mamba_lrp"].measures["delta_af"]
    line = next(line for line in lines if "mamba_lrp" in line)
    assert f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]" in line


def test_bad_input_is_refused_with_what_is_allowed():
    model = make_tiny_model()
    with pytest.raises(ValueError, match="method is 'lime'; it must be one of gradient_x_input"):
        faithfulness_table(model, None, encoded(8), ["lime"])
    with pytest.raises(ValueError, match="encoded is empty"):
        faithfulness_table(model, None, [])
    with pytest.raises(ValueError, match="target is 'accuracy'; it must be one of log_prob"):
        faithfulness_table(model, None, encoded(8), target="accuracy")
    with pytest.raises(ValueError, match="num_random is 0"):
        faithfulness_table(model, None, encoded(8), num_random=0)
    with pytest.raises(ValueError, match="num_steps is 1"):
        faithfulness_table(model, None, encoded(8), ["recency"], num_steps=1)


def test_command_writes_the_table_that_it_prints(tiny_model_dir, tmp_path, capsys):
    folder = tmp_path / "out"
    texts = tmp_path / "texts.txt"
    texts.write_text("the old river runs down to the sea\nhi\nthe sea is cold and the river old\n")
    arguments = ["--model", str(tiny_model_dir), "--texts-file", str(texts), "--quiet"]
    arguments += ["--output-dir", str(folder), "--methods", "mamba_lrp,recency"]
    assert main([*arguments, "--min-tokens", "6", "--num-randomised-texts", "1"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((folder / "attribution_faithfulness.json").read_text())
    assert stored["faithfulness"]["num_texts"] == 2
    assert list(stored["faithfulness"]["methods"]) == ["mamba_lrp", "recency", "random"]
    assert stored["provenance"]["seed"] == 0
    with open(folder / "attribution_faithfulness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        method = stored["faithfulness"]["methods"][row["method"]]
        assert float(row["delta_af"]) == method["measures"]["delta_af"]["mean"]
        assert f"{float(row['delta_af']):.2g}" in printed  # of 2 texts there is no interval
    assert main([*arguments, "--min-tokens", "500"]) == 2
    assert "none of the 3 texts has 500 tokens" in capsys.readouterr().err
    assert main([*arguments[:-1], "lime", "--min-tokens", "6"]) == 2
    assert "method is 'lime'; it must be one of" in capsys.readouterr().err


def test_the_command_counts_a_text_given_again_once(tiny_model_dir, tmp_path):
    """Else its intervals over texts would shrink to nothing."""
    texts = ["the old river runs down to the sea", "the sea is cold and the river old"]
    stored = []
    for name, given in {"once": texts, "again": [*texts, *texts]}.items():
        options = ["--model", str(tiny_model_dir), "--methods", "recency", "--min-tokens", "6",
                   "--num-randomised-texts", "1", "--output-dir", str(tmp_path / name)]  # fmt: skip
        assert main([*options, *(part for text in given for part in ("--text", text))]) == 0
        stored.append(json.loads((tmp_path / name / "attribution_faithfulness.json").read_text()))
    assert stored[1]["faithfulness"]["num_texts"] == 2
    assert stored[0]["faithfulness"] == stored[1]["faithfulness"]

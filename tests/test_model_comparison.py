"""Models compared from end to end: results, verdicts, tokenizers that differ, and the command."""

import json

import hand_weighted
import numpy as np
import pytest
from attention_cases import attending_evenly
from conftest import VOCAB_SIZE, make_tiny_model, make_tiny_neox, make_tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import model_comparison
from analysis_pipelines import comparison_results
from mamba_mixers.untrained_twins import ENOUGH_TWINS, untrained_twin
from model_comparison import compare_models, main, write_comparison
from suite_plumbing.result_files import read_json
from suite_plumbing.texts import EXAMPLE_TEXTS
from token_statistics.findings import NOT_SUPPORTED, SUPPORTED, TOO_LITTLE
from token_statistics.twin_bounds import TWIN_KINDS

TOKENIZER = make_tiny_tokenizer()
TEXTS = [EXAMPLE_TEXTS[0][:110], EXAMPLE_TEXTS[1][:140]]


def make_character_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte of EXAMPLE_TEXTS: other tokens than TOKENIZER's, fewer than VOCAB_SIZE."""
    alphabet = sorted({c for text in EXAMPLE_TEXTS for c in text.replace(" ", "Ġ")})
    vocab = {character: i for i, character in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def compared(*models_, tokenizers=None, texts=TEXTS, **options):
    tokenizers = tokenizers or [TOKENIZER] * len(models_)
    return compare_models(models_, texts, tokenizers=tokenizers, **options)


def test_results_are_strict_json_with_both_kinds_of_attention():
    results = compared(make_tiny_model(), make_tiny_neox())
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(results["models"]) == ["MambaForCausalLM", "GPTNeoXForCausalLM"]
    assert results["models"]["GPTNeoXForCausalLM"]["sites"] == [
        f"layer_{i}.softmax" for i in range(3)
    ]
    assert results["unit"] == "tokens"
    (pair,) = results["pairs"]
    assert np.array(pair["cka"]["value"]).shape == (4, 3)
    assert np.array(pair["agreement"]["windowed"]["null_high"]).shape == (4, 3)
    assert pair["agreement"]["causal"]["num_other_texts"] == 1
    tokens = [text["num_pieces"] for text in results["texts"]]
    assert pair["cka"]["n"] == sum(tokens)
    # Queries with three sources or more; and those behind a window of a quarter of the text.
    assert pair["agreement"]["causal"]["n"] == sum(tokens) - 4
    assert pair["agreement"]["windowed"]["n"] == sum(n - n // 4 for n in tokens)
    for text, given in zip(results["texts"], TEXTS, strict=True):
        assert text["text"] == given
        assert text["num_characters_read"] == len(given)
        assert len(set(text["num_tokens"].values())) == 1
    entropy = results["attention"]["GPTNeoXForCausalLM"]["layer_0.softmax"]["entropy_share"]
    assert 0 < entropy["value"] <= 1
    assert entropy["num_texts"] == 2
    assert entropy["untrained"].keys() == set(TWIN_KINDS)
    for beside in entropy["untrained"].values():
        assert beside["reason"] == "0 untrained twins; a null needs 19"
    assert results["uniform"]["entropy_share"] == pytest.approx(1.0)
    assert results["self_check"]["replay_agrees"]
    assert results["self_check"]["replay_error"]["GPTNeoXForCausalLM"] is None
    assert set(results["provenance"]["models"]) == set(results["models"])


def test_nothing_is_claimed_without_twins():
    results = compared(make_tiny_model(), make_tiny_neox())
    assert {row["verdict"] for row in results["findings"]} == {TOO_LITTLE}
    assert all("19 untrained twins" in row["reason"] for row in results["findings"])


def test_random_weights_beside_their_twins_claim_nothing():
    """The same texts, weights that nobody trained: alike beyond time shifts, and no finding."""
    models_ = [untrained_twin(make_tiny_model(), 1234), make_tiny_neox(5, num_layers=2)]
    texts = [TEXTS[0][:90]]
    results = compared(*models_, texts=texts, num_twins=ENOUGH_TWINS, layer_indices=[0, 1])
    (pair,) = results["pairs"]
    assert [text["text"] for text in results["texts"]] == texts
    # Reading the same tokens is enough to exceed a null that shifts them.
    assert np.max(pair["cka"]["value"]) > np.max(pair["cka"]["null_high"])
    assert {row["verdict"] for row in results["findings"]} == {NOT_SUPPORTED}
    for row in results["findings"]:
        assert [twin["kind"] for twin in row["twins"]] == list(TWIN_KINDS)
        assert any(twin["low"] <= row["value"] <= twin["high"] for twin in row["twins"])
        assert row["n"] == results["texts"][0]["num_pieces"]
    entropy = results["attention"]["GPTNeoXForCausalLM"]["layer_0.softmax"]["entropy_share"]
    for beside in entropy["untrained"].values():
        assert beside["num_draws"] == ENOUGH_TWINS


def test_planted_agreement_is_found():
    """Two induction heads that forget at different rates attend to the same tokens."""
    slow, fast = (hand_weighted.induction(VOCAB_SIZE, rate) for rate in (0.02, 0.2))
    results = compared(slow, fast, texts=[TEXTS[0][:80]], num_twins=ENOUGH_TWINS)
    attention, _ = results["findings"]
    assert attention["verdict"] == SUPPORTED
    assert attention["value"] > attention["null"][1]
    for twin in attention["twins"]:
        assert attention["value"] > twin["bound"]
        assert twin["n"] == ENOUGH_TWINS
    assert (attention["num_claims"], attention["reason"]) == (2, None)
    (pair,) = results["pairs"]
    windowed = pair["agreement"]["windowed"]
    assert windowed["value"][0][0] > windowed["null_high"][0][0]
    # The lag alone orders less of what they attend to.
    causal = pair["agreement"]["causal"]
    assert causal["lag_only"][0][0] < causal["value"][0][0]


def test_maps_without_an_order_have_no_agreement_and_a_reason_is_not_made_up():
    mamba = hand_weighted.constant_half_life(3.0, VOCAB_SIZE)
    results = compared(attending_evenly(), mamba)
    (pair,) = results["pairs"]
    assert pair["agreement"]["causal"]["value"] == [[None], [None]]
    assert pair["agreement"]["windowed"]["p_value"] == [[None], [None]]
    even = results["attention"]["GPTNeoXForCausalLM"]["layer_1.softmax"]
    for name in ("entropy_share", "first_share", "mean_distance", "kernel_lag_90"):
        # Float32 attention against the closed form.
        assert even[name]["value"] == pytest.approx(results["uniform"][name], rel=1e-5)
    assert even["kernel"] == pytest.approx(results["uniform"]["kernel"], rel=1e-5)
    assert "agrees_with" not in results["table"][0]


def test_tokenizers_that_differ_are_aligned_by_characters():
    names = ("MambaForCausalLM", "GPTNeoXForCausalLM")
    tokenizers = [TOKENIZER, make_character_tokenizer()]
    results = compared(make_tiny_model(), make_tiny_neox(), tokenizers=tokenizers)
    assert results["unit"] == "pieces"
    for text, given in zip(results["texts"], TEXTS, strict=True):
        # Every end of a BPE token is the end of a character, so that pieces are its tokens.
        assert text["num_pieces"] == text["num_tokens"][names[0]]
        assert text["num_tokens"][names[1]] == len(given)
        assert text["num_characters_read"] == len(given)
    same = compared(make_tiny_model(), make_tiny_neox())
    one, other = (found["attention"][names[0]] for found in (results, same))
    # One token a piece: pooling is a product with an identity matrix, in float32.
    assert one["layer_0.implicit"]["entropy_share"]["value"] == pytest.approx(
        other["layer_0.implicit"]["entropy_share"]["value"], rel=1e-5
    )


def test_models_read_the_same_characters_when_one_has_a_shorter_context():
    tokenizers = [make_character_tokenizer(), TOKENIZER]
    neox = make_tiny_neox()
    neox.config.max_position_embeddings = 50
    results = compared(neox, make_tiny_model(), tokenizers=tokenizers, texts=TEXTS[:1])
    (text,) = results["texts"]
    assert text["num_characters_read"] == text["num_tokens"]["GPTNeoXForCausalLM"] < 50
    assert text["num_tokens_before_truncation"]["GPTNeoXForCausalLM"] == len(TEXTS[0])
    assert text["num_tokens"]["MambaForCausalLM"] < len(TOKENIZER(TEXTS[0])["input_ids"])


def test_three_models_are_compared_in_pairs():
    results = compared(make_tiny_model(), make_tiny_neox(), make_tiny_model(1))
    assert [pair["models"] for pair in results["pairs"]] == [
        ["MambaForCausalLM", "GPTNeoXForCausalLM"],
        ["MambaForCausalLM", "MambaForCausalLM (2)"],
        ["GPTNeoXForCausalLM", "MambaForCausalLM (2)"],
    ]
    assert len(results["findings"]) == 6


def test_the_same_arguments_give_the_same_results():
    first, second = (compared(make_tiny_model(), make_tiny_neox(), seed=3) for _ in range(2))
    for results in (first, second):
        results["provenance"].pop("run")
    assert first == second


def test_bad_arguments_are_refused():
    two = [make_tiny_model(), make_tiny_neox()]
    with pytest.raises(ValueError, match="num_twins is -1"):
        compared(*two, num_twins=-1)
    with pytest.raises(ValueError, match="texts is empty"):
        compared(*two, texts=[])
    words = Tokenizer(models.WordLevel({"A": 0, "tide": 70}, unk_token="tide"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ValueError, match="token id 70 for GPTNeoXForCausalLM, which knows 0 to 63"):
        compared(*two, tokenizers=[TOKENIZER, foreign], texts=["A tide pool"])
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        compared(*two, layer_indices=[3])


@pytest.fixture
def neox_dir(tmp_path):
    folder = tmp_path / "tiny_neox"
    make_tiny_neox().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_the_command_writes_results_table_report_and_figure(
    tiny_model_dir, neox_dir, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["--model", str(tiny_model_dir), "--model", str(neox_dir), "--output-dir", str(out),
                 "--text", TEXTS[0], "--text", TEXTS[1], "--quiet"]  # fmt: skip
    assert main(arguments) == 0
    assert "too little data: Attention of tiny_model and tiny_neox" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        "findings.png", *(f"model_comparison.{kind}" for kind in ("csv", "json", "md", "png"))
    ]  # fmt: skip
    results = read_json(out / "model_comparison.json")
    assert list(results["models"]) == ["tiny_model", "tiny_neox"]
    assert results["provenance"]["command"][:2] == ["python", "model_comparison.py"]
    header, *rows = (out / "model_comparison.csv").read_text().splitlines()
    assert header.startswith("model,layer,attention,")
    assert len(rows) == 4 + 3


def test_one_model_is_compared_with_an_untrained_twin(tiny_model_dir, tmp_path, capsys):
    arguments = ["--model", str(tiny_model_dir), "--text", TEXTS[0], "--layers", "0,-1", "--quiet",
                 "--formats", "svg", "--output-dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    assert "compared with an untrained twin of itself" in capsys.readouterr().out
    results = read_json(tmp_path / "model_comparison.json")
    assert list(results["models"]) == ["tiny_model", "tiny_model, untrained"]
    assert results["models"]["tiny_model"]["layers"] == [0, 3]
    hashes = {
        one["model"]["weights_sha256"] for one in results["provenance"]["models"].values()
    }  # fmt: skip
    assert len(hashes) == 2


def test_a_replay_that_does_not_agree_is_an_exit_status(
    tiny_model_dir, neox_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(comparison_results, "replay_tolerance", lambda model: 0.0)
    arguments = ["--model", str(tiny_model_dir), "--model", str(neox_dir), "--text", TEXTS[0],
                 "--quiet", "--layers", "0", "--formats", "svg",
                 "--output-dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 1
    assert "**beyond** the tolerance" in (tmp_path / "model_comparison.md").read_text()


def test_files_may_be_written_again_elsewhere(tmp_path):
    results = compared(make_tiny_model(), make_tiny_neox(), layer_indices=[0, 1])
    paths = write_comparison(results, tmp_path, ["svg"])
    assert [path.suffix for path in paths] == [".json", ".csv", ".md", ".svg", ".svg"]
    assert read_json(paths[0]) == results


def test_a_text_given_twice_counts_once(caplog):
    models_ = [make_tiny_model(), make_tiny_model(1)]
    once = compared(*models_, texts=TEXTS, layer_indices=[0])
    twice = compared(*models_, texts=[TEXTS[0], TEXTS[0], TEXTS[1]], layer_indices=[0])
    assert "text 1 is text 0 again and does not count a second time" in caplog.text
    for key in ("texts", "pairs", "attention", "findings"):
        assert twice[key] == once[key]
    # What one model reads to its limit is the same text for it, however each goes on.
    cut = compared(*models_, texts=[TEXTS[0], TEXTS[0] + " end"], max_sequence_length=20)
    assert len(cut["texts"]) == 1


def test_a_text_of_too_few_tokens_is_refused_before_the_models_run(monkeypatch):
    def never(*_, **__):
        raise RuntimeError("the models ran")

    monkeypatch.setattr(model_comparison, "measure", never)
    short = TOKENIZER.decode(TOKENIZER(TEXTS[0])["input_ids"][:3])
    assert len(TOKENIZER(short)["input_ids"]) == 3
    with pytest.raises(ValueError, match="text 1 has 3 tokens.*needs 4 or more of each text"):
        compared(make_tiny_model(), make_tiny_model(1), texts=[TEXTS[0], short])

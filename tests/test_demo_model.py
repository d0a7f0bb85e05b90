"""The bundled model, its card, and the script that trained it."""

import json
import math
import re
import socket
import threading
from multiprocessing import Pipe
from pydoc_data.topics import topics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.mamba.modeling_mamba import MambaMixer

from demo_model import checkpoint, evaluate, train, training_data
from mamba_mixers.running import fast_scan
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.result_files import read_json

# torch's optimizers import a module of torch that warns about another one of torch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)

# Our own words: nothing of them was trained on.
PASSAGES = (
    "The lamplighter counted nineteen doors before the bridge, and at the last of them he left a "
    "blue bottle, a brass key and a letter for the captain's youngest daughter.",
    "My aunt kept seven grey geese behind the chapel; she called them by the names of the days, "
    "and Wednesday was the only one that ever bit the doctor.",
    "When the river froze we carried the piano across the ice, four of us to each corner, while "
    "old Mr. Penhallow walked ahead with a lantern and sang.",
)
GAP = (
    " It had rained since the morning, and nobody in the house cared to go out. The fire was low, "
    "the clock was slow, and we talked of little else but the price of coal. "
)


@pytest.fixture(scope="module")
def demo():
    """The shipped model and tokenizer, by the plain Auto classes and with no way to a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH)
        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    return model, tokenizer


def _no_network(*_):
    raise AssertionError("loading the demo model asked for a connection")


# The shipped files


def test_the_model_loads_offline_and_has_the_layers_the_suite_looks_at(demo):
    model, tokenizer = demo
    config = model.config
    assert config.model_type == "mamba"
    assert config.num_hidden_layers >= 13  # layers 0, 3, 6, 9, 12 exist
    assert config.state_size == 16
    assert model.dtype == torch.float32
    assert len(tokenizer) == config.vocab_size == 2048
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == config.pad_token_id == 0


def test_loading_leaves_the_weights_as_they_were_saved(demo):
    # transformers 5.23 would divide every out_proj if the config asked for scaled residuals.
    model, _ = demo
    saved = load_file(DEMO_MODEL_PATH / "model.safetensors")
    loaded = model.state_dict()
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_the_folder_is_small_and_names_no_path_of_a_machine():
    files = [path for path in DEMO_MODEL_PATH.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    for path in files:
        if path.suffix in (".json", ".md") and path.name != "tokenizer.json":
            assert not re.search(r"/(home|root|work|tmp|Users|mnt)/", path.read_text("utf-8")), path


@pytest.mark.parametrize(
    "text",
    [
        PASSAGES[0],
        "two  spaces, a tab\tand a line\nbreak\n\n  indented",
        "naïve café, Ελληνικά, 日本語",
        "\U0001f40d\U0001f469\U0001f3fd\u200d\U0001f52c and \x00 and \ufffd",
        " leading and trailing ",
        "",
    ],
)
def test_the_tokenizer_gives_back_every_text(demo, text):
    tokenizer = demo[1]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids  # no end-of-text token is added
    assert all(0 < token < 2048 for token in ids)


def test_the_tokenizer_pads_on_the_left(demo):
    tokenizer = demo[1]
    batch = tokenizer(["one", PASSAGES[0]], padding=True)
    assert tokenizer.is_fast
    assert tokenizer.padding_side == "left"
    missing = len(tokenizer(PASSAGES[0])["input_ids"]) - len(tokenizer("one")["input_ids"])
    assert batch["input_ids"][0][:missing] == [0] * missing
    assert batch["attention_mask"][0] == [0] * missing + [1] * (
        len(batch["input_ids"][0]) - missing
    )


def test_the_model_predicts_english_better_than_its_words_in_another_order(demo):
    model, tokenizer = demo
    words = GAP.split()
    shuffled = " " + " ".join(np.random.default_rng(0).permutation(words))
    losses = []
    for text in (GAP, shuffled):
        ids = torch.tensor(tokenizer([text])["input_ids"])
        losses.append(evaluate.token_losses(model, ids).mean().item())
    # A uniform guess costs ln 2048 = 7.6; prose cost less than 4.5 in training.
    assert losses[0] < 5.0
    assert losses[1] > losses[0] + 1.0


def test_the_model_recalls_passages_of_our_own_after_a_gap(demo):
    model, tokenizer = demo
    gap, *passages = (tokenizer(text)["input_ids"] for text in (GAP, *PASSAGES))
    first, second, unrelated = [], [], []
    with fast_scan(model):
        for other, ids in zip([passages[-1], *passages], passages, strict=False):
            counted = len(ids) - evaluate.SKIPPED
            repeated, control = (
                evaluate.token_losses(model, torch.tensor([before + gap + ids]))[0]
                for before in (ids, other)
            )
            first.append(repeated[evaluate.SKIPPED - 1 : len(ids) - 1].mean().item())
            second.append(repeated[-counted:].mean().item())
            unrelated.append(control[-counted:].mean().item())
    # What was read changes the loss a little whatever it was: an early checkpoint's sums of first
    # and unrelated differ by 0.7 %. Memory of the passage is what goes beyond that.
    assert sum(second) < 0.85 * sum(first)
    assert sum(second) < 0.85 * sum(unrelated)
    assert all(s < u for s, u in zip(second, unrelated, strict=True))


# The card


def test_the_card_states_the_figures_of_the_training_log():
    log = read_json(DEMO_MODEL_PATH / "training_log.json")
    card = (DEMO_MODEL_PATH / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", card, flags=re.MULTILINE))
    training, book, repeats = log["training"], log["book"], log["repeats"]
    expected = {
        "tokens read": f"{training['tokens'] / 1e6:.2f} million",
        "steps": f"{training['step']}",
        "wall time of training": f"{training['seconds'] / 60:.0f} minutes",
        "training loss at the end": f"{training['losses']['prose']:.3f} nats per token",
        "held-out loss": f"{book['loss']:.3f} nats per token",
        "held-out bits per character": f"{book['bits_per_character']:.3f}",
        "first reading": f"{repeats['first_reading']:.3f} nats per token",
        "second reading": f"{repeats['second_reading']:.3f} nats per token",
        "after an unrelated passage": f"{repeats['unrelated_reading']:.3f} nats per token",
        "second reading / first reading": f"{repeats['ratio']:.3f}",
    }
    assert {name: rows.get(name) for name in expected} == expected


def test_the_log_agrees_with_itself():
    log = read_json(DEMO_MODEL_PATH / "training_log.json")
    book, repeats = log["book"], log["repeats"]
    bits = book["loss"] * book["tokens"] / (math.log(2) * book["characters"])
    assert book["bits_per_character"] == pytest.approx(bits, rel=1e-12)  # float64 arithmetic
    assert repeats["ratio"] == repeats["second_reading"] / repeats["first_reading"]
    assert book["bits_per_character"] <= 2.2
    assert repeats["second_reading"] < 0.85 * repeats["unrelated_reading"]
    assert len(log["texts"]) == 12
    assert log["options"]["layers"] == 13


# evaluate.py


def _windowed_losses(model, ids, window, stride):
    """Twin of score_book: each token's loss by a forward pass of its own over its context."""
    total = 0.0
    for t in range(1, len(ids)):
        if t < window:
            start = 0
        else:
            block = (t - window) // stride + 1
            start = block * stride
            if start + window > len(ids):  # the last, shorter piece keeps `stride` of context
                start = window + (block - 1) * stride - stride
        with torch.no_grad():
            logits = model(ids[None, start:t], use_cache=False).logits[0, -1].double()
        total -= logits.log_softmax(-1)[ids[t]].item()
    return total


@pytest.mark.parametrize("length", [2, 9, 16, 17, 24, 31, 40])
def test_score_book_scores_every_token_once(monkeypatch, tiny_model, length):
    monkeypatch.setattr(evaluate, "WINDOW", 16)
    monkeypatch.setattr(evaluate, "STRIDE", 8)
    ids = torch.from_numpy(np.random.default_rng(length).integers(0, 64, length))
    score = evaluate.score_book(tiny_model, ids, characters=3 * length, batch_size=2)
    expected = _windowed_losses(tiny_model, ids, 16, 8)
    # Sums of at most 40 losses of about 4 in float32 logits.
    assert score.loss * score.tokens == pytest.approx(expected, rel=1e-5)
    assert score.bits_per_character == pytest.approx(
        expected / math.log(2) / (3 * length), rel=1e-5
    )


def _copying_model(input_ids, use_cache):
    """Puts 20 nats on what followed the latest earlier occurrence of the token; else is uniform."""
    logits = torch.zeros(*input_ids.shape, 1024)
    for row, ids in enumerate(input_ids.tolist()):
        follower = {}
        for t, token in enumerate(ids):
            if token in follower:
                logits[row, t, follower[token]] = 20.0
            if t + 1 < len(ids):
                follower[token] = ids[t + 1]
    return SimpleNamespace(logits=logits)


def test_score_repeats_of_a_model_that_copies_perfectly():
    ids = torch.randperm(1024, generator=torch.Generator().manual_seed(0))
    score = evaluate.score_repeats(_copying_model, ids, passages=4)
    assert score.passages == 4
    # Every token occurs once: the first reading and the control are uniform over 1024.
    assert score.first_reading == pytest.approx(math.log(1024), rel=1e-6)
    assert score.unrelated_reading == pytest.approx(math.log(1024), rel=1e-6)
    assert score.second_reading == pytest.approx(math.log1p(1023 * math.exp(-20)), abs=1e-6)
    assert score.ratio == score.second_reading / score.first_reading


def test_scores_refuse_texts_that_are_too_short(tiny_model):
    with pytest.raises(ValueError, match="1 tokens in 3 characters.*at least two"):
        evaluate.score_book(tiny_model, torch.tensor([5]), 3)
    with pytest.raises(ValueError, match="200 tokens; repeats need at least 256"):
        evaluate.score_repeats(tiny_model, torch.zeros(200, dtype=torch.long))


def test_evaluate_command(capsys, tiny_model_dir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the state forgets the past. " * 40, encoding="utf-8")
    assert evaluate.main([str(text), "--model", str(tiny_model_dir)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"book", "repeats"}
    assert evaluate.main([str(tmp_path / "none.txt"), "--model", str(tiny_model_dir)]) == 2
    assert "none.txt' cannot be read" in capsys.readouterr().err


# training_data.py


def _readings(out: np.ndarray, is_again: np.ndarray) -> tuple[int, list[int]]:
    """Length of the passage and the gaps of a row that was `arange`; checks that it is repeats."""
    again = np.flatnonzero(out != np.arange(len(out)))
    assert np.array_equal(np.flatnonzero(is_again), again)
    start = int(out[again[0]])
    length = next(n for n in range(1, len(out)) if again[0] + n == len(out) or
                  out[again[0] + n] != start + n)  # fmt: skip
    gaps, end, position = [], start + length, int(again[0])
    while position < len(out):
        reading = out[position : position + length]
        assert np.array_equal(reading, start + np.arange(len(reading)))
        assert np.array_equal(out[end:position], np.arange(end, position))  # the gap is untouched
        gaps.append(position - end)
        end = position + len(reading)
        later = again[again >= end]
        position = int(later[0]) if later.size else len(out)
    return length, gaps


@pytest.mark.parametrize(("ramp", "longest", "gap"), [(0.0, 32, 0), (0.5, 64, 80), (1.0, 96, 160)])
def test_a_repeated_passage_is_a_repeat(ramp, longest, gap):
    rng = np.random.default_rng(1)
    row = np.arange(513)
    lengths, gaps = [], []
    for _ in range(300):
        length, between = _readings(*training_data.repeat_passages(row, rng, ramp))
        lengths.append(length)
        gaps += between
    assert np.array_equal(row, np.arange(513))  # the argument is left alone
    assert 16 <= min(lengths) < 20
    assert longest - 4 < max(lengths) <= longest
    assert min(gaps) == int(ramp * 8)
    assert 0.95 * gap - 1 < max(gaps) <= gap


def test_an_epoch_reads_every_window_once_with_labels_shifted_by_one():
    counts = np.ones(6000)
    stream = np.arange(512 * 9 + 300)  # 9 whole windows and a rest: 8 a epoch with a free phase
    starts, lengths = [], set()
    for step in range(8):
        rows, kinds, weights = training_data.training_rows(
            stream, counts, step, 512, seed=3, repeat_share=0
        )
        assert (weights == 1).all()
        assert not kinds.any()  # all prose
        assert (np.diff(rows, axis=1) == 1).all()
        assert rows[:, 1:].size == 512
        starts.append(rows[0, 0])
        lengths.add(rows.shape[1])
    assert len({start % 512 for start in starts}) == 1
    assert np.array_equal(np.diff(sorted(starts)), np.full(7, 512))
    assert lengths == {257, 513}
    later = training_data.training_rows(stream, counts, 8, 512, seed=3, repeat_share=0).tokens[0, 0]
    assert later % 512 != starts[0] % 512  # the next epoch cuts elsewhere


def test_rows_follow_from_seed_and_step():
    stream = np.random.default_rng(0).integers(1, 300, 6000)
    a, b, other_step, other_seed = (
        training_data.training_rows(
            stream, np.ones(300), step, 1024, seed=seed, repeat_share=0.5
        ).tokens
        for step, seed in ((7, 1), (7, 1), (8, 1), (7, 2))
    )
    assert np.array_equal(a, b)
    assert a.shape != other_step.shape or not np.array_equal(a, other_step)
    assert a.shape != other_seed.shape or not np.array_equal(a, other_seed)


def test_rows_with_repeats_have_their_share():
    stream = np.random.default_rng(0).integers(1, 300, 6000)
    counts = np.bincount(stream, minlength=300)

    def shares(first_step):
        kinds = np.concatenate([
            training_data.training_rows(stream, counts, step, 512, seed=0, repeat_share=0.25).kinds
            for step in range(first_step, first_step + 600)
        ])  # fmt: skip
        return np.bincount(kinds, minlength=3) / len(kinds)

    # About 1050 rows: a share of a half has a standard deviation of 0.015; four of them. The
    # start's shares are those of its first 600 steps' middle, 0.154 of the way.
    assert shares(0) == pytest.approx([0.454, 0.206, 0.340], abs=0.06)
    assert shares(4000) == pytest.approx([0.75, 0.20, 0.05], abs=0.06)


def test_rows_are_of_the_kind_they_are_said_to_be():
    stream = np.arange(1, 6001)
    found = set()
    for step in range(60):
        rows, kinds, _ = training_data.training_rows(
            stream, np.ones(6001), step, 512, seed=1, repeat_share=0.5
        )
        for row, kind in zip(rows, kinds, strict=True):
            name = training_data.ROW_KINDS[kind]
            found.add(name)
            follows = np.diff(row) == 1  # as in the stream, where every token occurs once
            assert follows.all() == (name == "prose")
            if name == "repeats":
                changed = row != row[0] + np.arange(len(row))
                _readings(row - row[0], changed)
            if name == "made_up":
                assert follows.mean() < 0.1
    assert found == set(training_data.ROW_KINDS)


def test_what_is_read_again_weighs_more_once_prose_is_known():
    stream = np.arange(1, 6001)
    options = {"seed": 1, "repeat_share": 1.0}
    first = training_data.REREAD_TOKENS // 512
    for step in (first - 10, first + 10):
        rows, kinds, weights = training_data.training_rows(
            stream, np.ones(6001), step, 512, **options
        )
        again = rows[:, 1:] != rows[:, :1] + 1 + np.arange(rows.shape[1] - 1)
        again &= (kinds == training_data.ROW_KINDS.index("repeats"))[:, None]
        assert again.any()
        heavy = training_data.REREAD_WEIGHT if step > first else 1.0
        assert np.array_equal(weights, np.where(again, heavy, 1.0))


def test_a_made_up_row_is_one_passage_over_and_over():
    rng = np.random.default_rng(0)
    counts = np.array([10**6, *[10**5] * 10, *[0] * 989])
    frequent = []
    for _ in range(200):
        row = training_data.made_up_row(257, counts, rng)
        period = next(p for p in range(1, 257) if np.array_equal(row[p:], row[:-p]))
        assert period <= 48
        assert row.min() >= 1  # never the end of text
        assert row.max() < 1000
        frequent.append((row <= 10).mean())
    # From tokens drawn alike (1 in 100 is frequent) to tokens drawn as they occur.
    assert min(frequent) < 0.05
    assert max(frequent) > 0.95


def test_data_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="100 tokens; at least 1025"):
        training_data.training_rows(np.zeros(100, int), np.ones(2), 0, 512, seed=0, repeat_share=0)
    with pytest.raises(ValueError, match="vocab_size is 256; it must be at least 257"):
        training_data.train_tokenizer(["text"], 256)


def test_a_held_out_paragraph_in_a_training_text_is_refused():
    paragraph = " ".join(PASSAGES)
    training_data.check_held_out(["Some other text.\n" + GAP], f"A title\n{paragraph}\n")
    with pytest.raises(ValueError, match=r"shares 1 paragraphs.*The lamplighter"):
        training_data.check_held_out(["One.", f"Intro\n{paragraph}\nEnd"], f"A title\n{paragraph}")


# train.py

ONES = np.ones((1, 9), dtype=np.int64)
EVEN = np.ones((1, 8), dtype=np.float32)
TINY = [
    *("--hidden-size", "16", "--layers", "2", "--vocab-size", "300", "--batch-tokens", "512"),
    *("--workers", "1", "--no-compile"),  # both take longer to start than these runs last
]


@pytest.fixture
def texts(tmp_path):
    """Two training texts and a held-out one, cut from the standard library's documentation."""
    contents = [topics[name] for name in sorted(topics)]
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "held_out.txt", "other.txt")]
    for path, text in zip(paths, contents, strict=False):
        path.write_text((text + " ") * (4000 // len(text) + 1), encoding="utf-8")
    return paths


def _train(texts, folder, *options):
    a, b, held_out = texts
    arguments = [str(a), str(b), "--held-out", str(held_out), "--output-dir", str(folder)]
    return train.main([*arguments, *TINY, "--tokens", "3072", *options])


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(monkeypatch, texts, tmp_path):
    a, b, held_out, other = texts
    assert _train((a, b, held_out), tmp_path / "whole") == 0

    steps = []

    def interrupted(*args, **kwargs):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(train_step(*args, **kwargs))
        return steps[-1]

    train_step = train.train_step
    monkeypatch.setattr(train, "train_step", interrupted)
    often = ("--checkpoint-minutes", "0")
    assert _train((a, b, other), tmp_path / "resumed", *often) == 130
    monkeypatch.undo()
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    # The held-out text is another one too: no training may depend on it.
    assert _train((a, b, other), tmp_path / "resumed", *often) == 0

    logs = [read_json(tmp_path / name / "training_log.json") for name in ("whole", "resumed")]
    assert [log["training"]["step"] for log in logs] == [6, 6]
    assert logs[0]["training"]["losses"] == logs[1]["training"]["losses"]
    assert logs[0]["book"] != logs[1]["book"]
    assert logs[0]["texts"] == logs[1]["texts"]
    for name in ("model.safetensors", "tokenizer.json"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "resumed")]
        assert files[0] == files[1], name


def test_what_is_written_loads_as_what_was_trained(texts, tmp_path, capsys):
    assert _train(texts[:3], tmp_path / "model") == 0
    trained = load_file(tmp_path / "model" / "checkpoint.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[f"model.{name}"]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.padding_side == "left"
    capsys.readouterr()
    assert evaluate.main([str(texts[2]), "--model", str(tmp_path / "model")]) == 0
    log = read_json(tmp_path / "model" / "training_log.json")
    assert json.loads(capsys.readouterr().out) == {key: log[key] for key in ("book", "repeats")}


def test_training_lowers_the_loss():
    model = train.build_model(64, 16, 2, seed=0)
    optimizer = train.build_optimizer(model, 0.01, 0.1)
    rows, weights = np.resize(np.arange(1, 9), (2, 65)), np.ones((2, 64), dtype=np.float32)
    with fast_scan(model):
        losses = [train.train_step(model, optimizer, rows, weights).mean() for _ in range(30)]
    assert losses[0] == pytest.approx(math.log(64), rel=0.1)  # fresh weights know nothing
    assert losses[-1] < 0.5 * losses[0]


def test_workers_take_the_step_of_one_process():
    rng = np.random.default_rng(0)
    rows, weights = rng.integers(0, 64, (4, 33)), rng.uniform(1, 4, (4, 32)).astype(np.float32)
    models = [train.build_model(64, 16, 2, seed=0) for _ in range(3)]
    optimizers = [train.build_optimizer(model, 0.01, 0.1) for model in models[:2]]
    grads = [torch.zeros_like(parameter) for parameter in models[2].parameters()]
    ours, theirs = Pipe()
    worker = threading.Thread(target=train.serve_gradients, args=(models[2], grads, theirs))
    worker.start()
    try:
        with fast_scan(models[0]), fast_scan(models[1]):
            alone = train.train_step(models[0], optimizers[0], rows, weights)
            shared = train.train_step(models[1], optimizers[1], rows, weights, [(ours, grads)])
    finally:
        ours.send(None)
        worker.join()
    assert shared == pytest.approx(alone, rel=1e-5)  # float32 means of 32 losses
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # AdamW's first step is lr * sign of the gradient: rounding shows where it is nearly zero.
        assert (one - two).abs().mean() < 1e-4


def test_a_weight_multiplies_the_gradient_of_its_prediction():
    model = train.build_model(64, 16, 1, seed=0)
    rows = np.random.default_rng(0).integers(0, 64, (1, 5))
    gradients = []
    for weights in ([[0, 0, 0, 1]], [[1, 1, 1, 0]], [[1, 1, 1, 4]]):
        model.zero_grad()
        train.add_gradients(model, rows, np.array(weights, dtype=np.float32))
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    one, others, both = gradients
    # Float32 sums of four losses.
    torch.testing.assert_close(both, others + 4 * one, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_ends_training():
    model = train.build_model(64, 16, 1, seed=0)
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(math.inf)
    optimizer = train.build_optimizer(model, 0.01, 0.1)
    with pytest.raises(ValueError, match="no longer finite; start again with a smaller --lr"):
        train.train_step(model, optimizer, ONES, EVEN)


def test_weight_decay_is_for_matrices_only():
    model = train.build_model(64, 16, 1, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = train.build_optimizer(model, 0.01, 0.1).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    short = {names[id(p)].removeprefix("backbone.layers.0.mixer.") for p in decayed["params"]}
    matrices = {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}
    assert short == matrices | {"backbone.embeddings.weight"}
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    rate = [train.learning_rate(share, 10_000, 2.0, 0.25) for share in (0.0, 0.5, 0.75, 0.8125, 1)]
    assert rate == [2.0, 2.0, 2.0, 1.0, 0.0]  # 1 - sqrt(1/4) a quarter into the decay
    assert train.learning_rate(0.0, 0, 2.0, 0.25) == pytest.approx(0.04)  # 1 of 50 steps


def _mixers(model):
    return [module for module in model.modules() if isinstance(module, MambaMixer)]


def test_every_second_layer_starts_as_an_induction_head():
    model = train.build_model(64, 32, 6, seed=0)
    matches = []
    for mixer in _mixers(model):
        half = mixer.intermediate_size // 2
        B, C = mixer.x_proj.weight[mixer.time_step_rank :].chunk(2)
        matches.append(torch.equal(B[:, half:], C[:, :half]))
    assert matches == [False, True, False, True, False, False]
    assert not model.config.rescale_prenorm_residual


def test_an_induction_head_matches_the_place_after_the_token_it_reads():
    model = train.build_model(64, 64, 3, seed=0)
    ids = torch.tensor([[7, 11, 23, 40, 31, 50, 61, 11]])
    records = {}
    with torch.no_grad(), fast_scan(model, observe=records.__setitem__):
        model(input_ids=ids, use_cache=False)
    B, C = records[1].B[0], records[1].C[0]
    scores = B @ C[-1]  # for the last token, an 11, over all places
    assert scores.argmax() == 2  # the place after the earlier 11
    # By construction 1 on average over tokens; what else B and C share is chance.
    assert scores[2] == pytest.approx(1.0, abs=0.5)
    assert _mixers(model)[1].A_log.exp().max().item() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "--tokens is 0; it must be from 1 to"),
        (["--minutes", "nan"], "--minutes is nan; it must be from"),
        (["--decay-share", "2"], "--decay-share is 2; it must be from 0.01 to 1"),
        (["--vocab-size", "100"], "--vocab-size is 100; it must be from 257 to"),
        (["--batch-tokens", "700"], "--batch-tokens is 700; it must be a multiple of 512"),
        (["--workers", "3"], "multiple of 512 times --workers, 1536"),
    ],
)
def test_bad_options_are_named(texts, tmp_path, capsys, options, message):
    assert _train(texts[:3], tmp_path / "model", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_bad_inputs_are_named(texts, tmp_path, capsys):
    a, b, held_out, _ = texts
    assert _train((a, tmp_path / "none.txt", held_out), tmp_path / "model") == 2
    assert "none.txt' cannot be read" in capsys.readouterr().err
    a.write_text("short\n" + " ".join(PASSAGES), encoding="utf-8")
    assert _train((a, b, a), tmp_path / "model") == 2
    assert "--held-out shares 1 paragraphs" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    assert _train((a, b, held_out), tmp_path / "file") == 2
    assert "output folder" in capsys.readouterr().err


def test_a_foreign_or_broken_checkpoint_is_refused(texts, tmp_path, capsys):
    folder = tmp_path / "model"
    assert _train(texts[:3], folder) == 0
    capsys.readouterr()
    assert _train(texts[:3], folder, "--seed", "5") == 2
    assert "belongs to a run with other texts or options" in capsys.readouterr().err
    whole = (folder / "checkpoint.safetensors").read_bytes()
    (folder / "checkpoint.safetensors").write_bytes(whole[:1000])
    assert _train(texts[:3], folder) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_a_failed_checkpoint_leaves_the_earlier_one(monkeypatch, tmp_path):
    model = train.build_model(64, 16, 1, seed=0)
    optimizer = train.build_optimizer(model, 0.01, 0.1)
    with fast_scan(model):
        train.train_step(model, optimizer, ONES, EVEN)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save_checkpoint(path, model, optimizer, checkpoint.Progress(step=1), "run")
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(path, model, optimizer, checkpoint.Progress(step=2), "run")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_progress_keeps_a_running_mean_for_each_kind_of_row_and_a_curve():
    progress = checkpoint.Progress()
    progress.count(300_000, np.array([8.0, 6.0]), np.array([0, 0]))
    progress.count(300_000, np.array([2.0, 3.0]), np.array([1, 2]))
    progress.count(300_000, np.array([4.0]), np.array([0]))
    assert progress.losses["prose"] == pytest.approx(7.0 + 0.01 * (4.0 - 7.0))
    assert progress.losses["repeats"] == 2.0
    assert progress.losses["made_up"] == 3.0
    assert progress.history == [{"tokens": 600_000, "prose": 7.0, "repeats": 2.0, "made_up": 3.0}]
    assert "step 3  0.90 M tokens" in str(progress)

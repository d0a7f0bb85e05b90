"""A part has the same bits whoever computes it; other tasks give the same counts and sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model, make_tiny_tokenizer
from corpus_cases import (
    all_merged,
    finished,
    made_texts,
    opened,
    same_bits,
    tiny_settings,
)

from analysis_pipelines.corpus.parts import LARGEST, WINDOWS
from analysis_pipelines.corpus.step import analyse, reader_of
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import query_statistics
from ssm_measures.copying import copying_sums, earlier_tokens, query_shifts
from ssm_measures.corpus_maps import QUERY_SUMS
from ssm_measures.layer_overview import layer_text

LAYERS = (0, 2, 3)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    """(settings, plan, merged part) of 20 texts in three tasks."""
    settings = tiny_settings(model_folder, made_texts(20))
    plan = opened(tmp_path_factory.mktemp("three"), settings)
    return settings, plan, finished(plan)


@pytest.fixture(scope="module")
def captures(run):
    """One capture a window of the run, in float64, as the analyses at hand read it."""
    settings, _, _ = run
    reader = reader_of(settings)
    windows = []
    for text in settings.source.texts:
        ids = reader.tokenizer(text)["input_ids"]
        windows += [ids[i : i + 64] for i in range(0, len(ids), 64) if len(ids) - i >= 2]
    return [capture(reader.model, torch.tensor([ids]), None, list(LAYERS)) for ids in windows]


def test_another_number_of_tasks_gives_the_same_counts_and_sums(run, model_folder, tmp_path):
    settings, _, three = run
    for tasks in (4, 23):  # more tasks than texts: some are empty
        other = finished(opened(tmp_path / str(tasks), replace(settings, tasks=tasks)))
        batches = {"batches"}
        for name in three.counts.keys() - batches:
            assert other.counts[name] == three.counts[name]
        assert other.arrays.keys() == three.arrays.keys()
        for name, mine in three.arrays.items():
            theirs = other.arrays[name]
            if name.startswith(LARGEST):
                continue  # replay errors, which are rounding and nothing else
            if name.startswith(WINDOWS):
                # Which windows are kept is exact; their values come from other batches.
                np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-7)
                if name.endswith(("number", "ids", "position")):
                    assert (theirs == mine).all(), name
            elif mine.dtype == np.int64:
                assert (theirs == mine).all(), name
            else:
                # The model in float64 rounds by 1e-16 in batches of another shape; sums of some
                # thousand terms, relative to their largest.
                np.testing.assert_allclose(theirs, mine, rtol=1e-12, atol=1e-12 * _size(mine))


def _size(array):
    return float(np.abs(array).max(initial=0.0))


def test_a_part_has_the_same_bits_again_and_in_another_order(run, tmp_path):
    settings, _, merged = run
    plan = opened(tmp_path / "again", settings)
    for task in (2, 0, 1):
        analyse(None, task, 3, plan=plan)
    assert same_bits(all_merged(plan), merged)


def test_an_interrupted_task_leaves_nothing_and_gives_the_same_bits(run, tmp_path):
    settings, _, merged = run
    plan = opened(tmp_path / "stopped", settings)
    seen = []

    def stop_at_the_second():
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyse(None, 0, 3, plan=plan, watch=stop_at_the_second)
    assert plan.missing() == [0, 1, 2]
    assert not list(plan.part_path(0).parent.iterdir())
    assert same_bits(finished(plan), merged)


def test_a_part_that_is_there_is_not_computed_again(run):
    _, plan, _ = run
    path = plan.part_path(1)
    before = path.stat().st_mtime_ns
    assert analyse(None, 1, 3, plan=plan, watch=pytest.fail) == path
    assert path.stat().st_mtime_ns == before


def test_a_damaged_part_is_computed_again(run, tmp_path, caplog):
    settings, _, merged = run
    plan = opened(tmp_path / "damaged", settings)
    finished(plan)
    raw = bytearray(plan.part_path(1).read_bytes())
    raw[len(raw) // 2] ^= 1
    plan.part_path(1).write_bytes(raw)
    plan.part_path(2).write_bytes(plan.part_path(2).read_bytes()[:1000])
    assert same_bits(finished(plan), merged)
    assert "part 'part_00001.safetensors' is damaged (its numbers" in caplog.text
    assert "part 'part_00002.safetensors' is damaged (" in caplog.text


def test_another_number_of_ranks_is_refused(run):
    _, plan, _ = run
    with pytest.raises(ValueError, match=r"world_size is 4, the run .* has 3 tasks"):
        analyse(None, 0, 4, plan=plan)


# Beside the analysis at hand


def test_delta_neurons_and_tokens_are_those_of_the_texts_at_hand(run, captures):
    _, _, part = run
    for layer in LAYERS:
        of = [c.components[layer] for c in captures]
        delta = torch.cat([c.delta[0] for c in of])
        np.testing.assert_allclose(part.arrays[f"layer_{layer}/delta"], delta.sum(0), rtol=1e-12)
        neurons = torch.cat([c.gated[0] for c in of])
        for power in range(1, 5):
            expected = neurons.pow(power).sum(0)
            np.testing.assert_allclose(
                part.arrays[f"layer_{layer}/neuron_sums"][power - 1], expected, rtol=1e-10,
                atol=1e-12 * float(neurons.abs().pow(power).sum(0).max()),
            )  # fmt: skip
        bins = part.arrays[f"layer_{layer}/neuron_bins"]
        assert (bins.sum(1) == len(neurons)).all()
        # The first state of a window holds what its first token wrote: the closed form's norm.
        first = torch.stack([c.hidden_states[0, 0].norm() for c in of]).sum()
        written = part.arrays[f"layer_{layer}/position_written"][0]
        np.testing.assert_allclose(written, float(first), rtol=1e-10)
    ids = torch.cat([c.input_ids[0] for c in captures])
    counts = part.arrays["token_counts"]
    assert (counts == torch.bincount(ids, minlength=len(counts)).numpy()).all()
    assert part.counts["tokens"] == len(ids)


@torch.no_grad()
def test_losses_are_those_of_the_stock_forward(run, captures):
    settings, _, part = run
    model = reader_of(settings).model
    total = 0.0
    for captured in captures:
        logits = model(captured.input_ids, use_cache=False).logits[0, :-1]
        total += float(F.cross_entropy(logits.float(), captured.input_ids[0, 1:], reduction="sum"))
    # Losses are of float32 logits.
    np.testing.assert_allclose(part.arrays["token_loss"].sum(), total, rtol=1e-6)


def test_attention_states_and_copying_are_those_of_the_texts_at_hand(run, captures):
    """64 channels, of which every second is measured: the same maps, by another route."""
    _, _, part = run
    for layer in LAYERS:
        expected = dict.fromkeys(QUERY_SUMS, 0.0)
        copied = np.zeros((len(query_shifts()) + 1, 3))
        energies = np.zeros(2)
        for captured in captures:
            c = captured.components[layer]
            half = layer_text(c, 32)
            chosen = slice(0, None, 2)
            absolute = mean_map(_heads(c, chosen), absolute=True)
            stats = query_statistics(absolute, torch.ones(absolute.shape[:2]))
            for name in QUERY_SUMS:
                expected[name] += float(getattr(stats, name).nansum())
            pairs = earlier_tokens(captured.input_ids[0].tolist())
            copied += (
                copying_sums(half.shares, pairs, [0, *query_shifts()]) if len(pairs.query) else 0
            )
            length = captured.input_ids.shape[1]
            energies += half.write * length, half.retain * (length - 1)
        sums = part.arrays[f"layer_{layer}/map_queries"].sum(1)
        np.testing.assert_allclose(sums, list(expected.values()), rtol=1e-9)
        np.testing.assert_allclose(part.arrays[f"layer_{layer}/copying"], copied, rtol=1e-9)
        found = [
            part.arrays[f"layer_{layer}/{name}_norm"].sum() for name in ("written", "retained")
        ]
        np.testing.assert_allclose(found, energies, rtol=1e-6)


def _heads(components, chosen):
    return replace(
        components, A=components.A[chosen], delta=components.delta[:, :, chosen],
        u=components.u[:, :, chosen], D=components.D[chosen],
    )  # fmt: skip

"""Texts kept on disk come back as they were, and only where the configuration is the same."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis_pipelines.analysis_results import TextAnalysis
from analysis_pipelines.cross_text_steps import TextMeasures
from analysis_pipelines.text_parts import PARTS_NAME, TextParts, open_parts, without_tensors
from token_statistics.channel_correlations import PooledActivations

CONFIGURATION = {"model": {"id": "a", "weights": "1234"}, "seed": 0}


def measures() -> TextMeasures:
    """Measures of a text of 3 tokens and 2 layers, with names that hold what separates paths."""
    numbers = np.random.default_rng(0)
    return TextMeasures(
        ssm={layer: {"mean_delta": numbers.normal(size=3)} for layer in (0, 2)},
        attention={},
        importance={0: {"rollout": np.array([0.1, np.nan])}},
        halves={0: {"rollout": (numbers.normal(size=2), numbers.normal(size=2))}, 2: {}},
        activations={
            "residual": {
                0: PooledActivations(numbers.normal(size=(3, 4)), (3,)),
                2: PooledActivations(numbers.normal(size=(3, 4)), (1, 2), ((7,), (8, 9))),
            }
        },
        correlations=None,
    )  # fmt: skip


def analysis(**changed) -> TextAnalysis:
    """An analysis of a text as the steps leave it."""
    found = TextAnalysis(
        sections={
            "one": {"layer_0": {"x": 0.123456789, "y": None}},
            "layer_correlations": {"r": 1},
        },
        tensors={"layer_2.delta": torch.arange(6.0).view(2, 3), "layer_0.map": torch.ones(2, 2)},
        neuron_rows=[{"neuron": 3, "importance": 0.1}],
        measures=measures(),
        replay_errors={"layer_0": 1e-7},
        failures={},
    )  # fmt: skip
    return dataclasses.replace(found, **changed)


def parts_in(folder: Path, **changed) -> TextParts:
    return TextParts(folder / PARTS_NAME, {**CONFIGURATION, **changed})


def test_a_text_comes_back_as_it_was_with_six_digits_in_its_sections(tmp_path):
    parts_in(tmp_path).keep(5, analysis())
    found = parts_in(tmp_path).load(5)
    assert found is not None
    assert found.sections["one"] == {"layer_0": {"x": 0.123457, "y": None}}
    assert list(found.tensors) == ["layer_2.delta", "layer_0.map"]
    assert torch.equal(found.tensors["layer_2.delta"], torch.arange(6.0).view(2, 3))
    assert (found.neuron_rows, found.replay_errors) == (analysis().neuron_rows, {"layer_0": 1e-7})
    there, here = found.measures, measures()
    assert there is not None
    for kind in ("ssm", "importance"):
        for layer, arrays in getattr(here, kind).items():
            for name, array in arrays.items():
                np.testing.assert_array_equal(getattr(there, kind)[layer][name], array)
    assert there.attention == {}
    for mine, kept in zip(here.halves[0]["rollout"], there.halves[0]["rollout"], strict=True):
        np.testing.assert_array_equal(mine, kept)
    pooled = there.activations["residual"][2]
    np.testing.assert_array_equal(pooled.values, here.activations["residual"][2].values)
    assert pooled._replace(values=None) == here.activations["residual"][2]._replace(values=None)
    assert there.activations["residual"][0].token_ids is None
    assert PooledActivations._fields == ("values", "lengths", "token_ids"), "another is not kept"
    assert there.correlations == {"r": 1}


def test_a_text_that_has_little_comes_back_too(tmp_path):
    bare = analysis(tensors={}, measures=None, failures={"neurons": {"skipped": "why"}})
    parts_in(tmp_path).keep(0, bare)
    found = parts_in(tmp_path).load(0)
    assert found is not None
    assert (dict(found.tensors), found.measures) == ({}, None)
    assert found.failures == bare.failures
    assert dict(without_tensors(analysis()).tensors) == {}


def test_correlations_of_a_step_that_failed_are_none(tmp_path):
    failed = analysis(failures={"layer_correlations": {"error": {"type": "A", "message": "m"}}})
    found = parts_in(tmp_path).keep(0, failed)
    assert found.measures is not None
    assert found.measures.correlations is None


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_part_is_not_there(tmp_path, kind, damage, caplog):
    parts = parts_in(tmp_path)
    parts.keep(0, analysis())
    parts.keep(1, analysis())
    path = tmp_path / PARTS_NAME / f"text_0.{kind}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        assert set(parts_in(tmp_path).load_all(3)) == {1}
    never_done = (kind, damage) == ("json", "gone")  # the sign that a text is done
    assert ("text 0 is analysed again" in caplog.text) is not never_done


def test_a_text_that_is_kept_again_replaces_the_one_before(tmp_path):
    parts = parts_in(tmp_path)
    first = parts.keep(0, analysis())
    assert float(first.tensors["layer_0.map"].sum()) == 4
    second = parts.keep(0, analysis(tensors={"layer_0.map": torch.zeros(2, 2)}))
    assert float(second.tensors["layer_0.map"].sum()) == 0


def test_parts_of_another_analysis_of_the_run_are_apart(tmp_path):
    parts = parts_in(tmp_path)
    parts.within("twin_3").keep(0, analysis())
    assert parts.load(0) is None
    assert parts.within("twin_4").load(0) is None
    assert parts.within("twin_3").load(0) is not None


def test_resume_goes_on_and_a_plain_run_begins_anew(tmp_path, caplog):
    open_parts(tmp_path, CONFIGURATION, resume=True).keep(0, analysis())
    assert open_parts(tmp_path, CONFIGURATION, resume=True).load(0) is not None
    with caplog.at_level(logging.WARNING):
        parts = open_parts(tmp_path, CONFIGURATION, resume=False)
    assert "1 texts of a run that was stopped are discarded" in caplog.text
    assert parts.load(0) is None
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_parts_of_another_configuration_are_refused_by_name(tmp_path):
    open_parts(tmp_path, CONFIGURATION, resume=False).keep(0, analysis())
    other = {**CONFIGURATION, "model": {"id": "a", "weights": "5678"}}
    with pytest.raises(ValueError, match=r"model.weights was 1234, is 5678\).*leave out --resume"):
        open_parts(tmp_path, other, resume=True)
    assert open_parts(tmp_path, CONFIGURATION, resume=True).load(0) is not None


def test_a_part_of_another_configuration_among_them_is_not_taken(tmp_path):
    parts_in(tmp_path, seed=1).keep(0, analysis())
    assert parts_in(tmp_path).load(0) is None


def test_what_is_kept_is_said_when_a_run_stops(tmp_path, caplog):
    parts = parts_in(tmp_path)
    parts.keep(3, analysis())
    with pytest.raises(KeyboardInterrupt), parts.announced(10):
        raise KeyboardInterrupt
    assert "1 of 10 texts are kept: the same command with --resume" in caplog.text

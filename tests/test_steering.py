"""Steering by the class and by the command, from texts to files."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_tiny_model

from benchmarks.family_models import make_tiny_tokenizer
from causal_interventions.steering_vectors import SITES
from recursive_visualizer import figures_of
from steering import Steering, main
from suite_plumbing.result_reading import load_results

POSITIVE = ["the harbour lamp", "a warm tide pool"]
NEGATIVE = ["the copper kettle", "her father was wrong"]


@pytest.fixture(scope="module")
def steering() -> Steering:
    return Steering(make_tiny_model(), tokenizer=make_tiny_tokenizer())


@pytest.mark.parametrize("site", SITES)
def test_a_vector_leads_from_the_negative_texts_to_the_positive_ones(steering, site):
    vector = steering.vector(POSITIVE, NEGATIVE, 1, site)
    turned = steering.vector(NEGATIVE, POSITIVE, 1, site)
    torch.testing.assert_close(vector.values, -turned.values, rtol=0, atol=0)
    assert vector.layer == 1
    assert steering.vector(POSITIVE, NEGATIVE, -3, site, position=-1).source == "mean"
    assert steering.vector(POSITIVE, NEGATIVE, 1, site, method="pca").source == "pca"


def test_the_steered_model_says_something_else_and_the_model_itself_does_not(steering):
    vector = steering.given(torch.ones(32), 2)
    ids, mask = torch.tensor([[5, 9, 11]]), torch.ones(1, 3, dtype=torch.long)

    def logits() -> torch.Tensor:
        output = steering.model.generate(
            ids, attention_mask=mask, max_new_tokens=3, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(output.logits, 1)

    before = logits()
    with steering.apply(vector, 2.0):
        assert not torch.allclose(logits(), before)
    with steering.apply(vector, 0.0):
        torch.testing.assert_close(logits(), before, rtol=0, atol=1e-5)
    assert torch.equal(logits(), before)


def test_channels_are_ones(steering):
    vector = steering.channels([3, 40], 1)
    assert vector.values.nonzero().flatten().tolist() == [3, 40]
    assert steering.channels(3, 1, "state").values.sum() == 4
    with pytest.raises(ValueError, match="channels is 64"):
        steering.channels(64, 1)


def test_a_vector_of_another_model_is_refused(steering, tmp_path):
    other = Steering(make_tiny_model(seed=1), tokenizer=make_tiny_tokenizer())
    vector = other.given(torch.ones(32), 3)
    assert torch.equal(steering.load(vector.save(tmp_path / "v.safetensors")).values, vector.values)
    wide = torch.ones(33)
    for call, message in [
        (lambda: steering.given(wide, 1), r"vector has shape \(33,\)"),
        (lambda: steering.apply(wide).__enter__(), "vector is of type Tensor; make one by"),
        (lambda: steering.vector([], NEGATIVE, 1), "no texts|empty"),
        (lambda: steering.vector(POSITIVE, ["  "], 1), "empty or white space"),
        (lambda: steering.vector(POSITIVE, NEGATIVE, 1, "head"), "site is 'head'"),
        (lambda: steering.vector(POSITIVE, NEGATIVE, 9), "layer is 9"),
        (lambda: steering.vector(POSITIVE, POSITIVE, 1), "vector is all zeros"),
        (lambda: steering.vector(POSITIVE, NEGATIVE, 1, position=99), "position is 99, but text"),
        (lambda: steering.curve(vector, "the tide", token="kettles"), "not in the vocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_curve_is_kept_and_shown_as_a_table(steering):
    vector = steering.vector(POSITIVE, NEGATIVE, 1)
    curve = steering.curve(vector, ["the tide", "the map was"], token="a", coefficients=[1])
    assert steering.curve_ is curve
    assert list(curve.to_dataframe().coefficient) == [1.0]
    assert "<table" in curve._repr_html_()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("steering")
    make_tiny_model().save_pretrained(base / "model")
    make_tiny_tokenizer().save_pretrained(base / "model")
    return base


def run(folder, *options: str) -> int:
    return main([
        "--model", str(folder / "model"), "--output-dir", str(folder / "out"), "--text",
        "the harbour lamp was warm", "--coefficients=-1,1", "--generate", "4", "--quiet", *options,
    ])  # fmt: skip


def test_the_command_writes_what_it_found(folder, capsys):
    assert run(folder, "--positive", POSITIVE[0], "--negative", NEGATIVE[0], "--prompt",
               "a tide pool", "--token", "a", "--site", "delta", "--layer", "2",
               "--start", "1") == 0  # fmt: skip
    results, _ = load_results(folder / "out" / "steering_results.json")
    assert results["start"] == 1
    table = pd.read_csv(folder / "out" / "steering_curve.csv")
    assert [row["target_change"] for row in results["by_coefficient"]] == pytest.approx(
        table.target_change.tolist()
    )
    assert list(results["continuations"]) == ["clean", "-1", "1"]
    assert results["vector"] == {**results["vector"], "site": "delta", "layer": 2, "shape": [64]}
    assert (folder / "out" / "steering.png").is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["coefficient", "target"]
    assert f"{table.target_change[0]:+.3g}" in printed[1]
    assert max(map(len, printed[:-1])) <= 80
    figure = figures_of(results)["steering"](results)
    points = {ax.get_title(): ax for ax in figure.axes}["Change of the target"].lines[1]
    np.testing.assert_allclose(np.asarray(points.get_ydata()), table.target_change)


def test_a_saved_vector_is_taken_up_again(folder):
    file = folder / "vector.safetensors"
    steering = Steering(str(folder / "model"))
    steering.vector(POSITIVE, NEGATIVE, 3, "state").save(file)
    assert run(folder, "--vector", str(file), "--prompt", "a tide pool", "--token", "a") == 0
    results = json.loads((folder / "out" / "steering_results.json").read_text())
    assert results["vector"]["shape"] == [64, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vector", "none.safetensors"], "vector 'none.safetensors' cannot be read"),
        (["--positive", "a tide"], "contrastive texts are of one kind only"),
        (["--vector", "v", "--positive", "a", "--negative", "b"], "--vector and contrastive texts"),
        (["--positive", "a", "--positive-file", "f"], "--positive and --positive-file are both"),
        (["--coefficients", "1,x"], "coefficients is '1,x'; pass numbers"),
        (["--position", "last"], "position is 'last'; pass a whole number, or mean"),
        (["--num-random", "3"], "num-random is 3"),
        (["--start", "-2"], "start is -2"),
        (["--start", "90", "--token", "a"], "start is 90, but prompt 0 has"),
        (["--layer", "9"], "layer is 9; site 'residual' is there in layers"),
    ],
)
def test_a_wrong_option_is_one_line(folder, capsys, options, message):
    assert run(folder, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]

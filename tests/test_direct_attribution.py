"""The class and the command of direct attribution, and how they refuse bad input."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model
from transformers import MambaModel

from direct_attribution import DirectAttribution, attribute, main
from recursive_visualizer import figures_of
from suite_plumbing.texts import EXAMPLE_TEXTS

TEXT = EXAMPLE_TEXTS[0][:60]

IDS = torch.tensor([5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12])


@pytest.fixture(scope="module")
def suite(tiny_tokenizer) -> DirectAttribution:
    return DirectAttribution(make_tiny_model(), tokenizer=tiny_tokenizer)


def test_a_position_inside_the_text_is_that_of_the_text_up_to_it(suite):
    inside = suite.attribute(IDS, 7, position=4)
    cut = suite.attribute(IDS[:5], 7)
    negative = suite.attribute(IDS, 7, position=-8)
    assert (inside.position, cut.position, negative.position) == (4, 4, 4)
    assert inside.parts == cut.parts == negative.parts
    with torch.no_grad():
        logits = suite.model(input_ids=IDS[None], use_cache=False).logits[0, 4]
    assert inside.logit == pytest.approx(float(logits[7]), abs=1e-5)  # float32, two scans


def test_text_and_spelled_tokens(suite, tiny_tokenizer):
    token = tiny_tokenizer.convert_ids_to_tokens(9)
    found = suite.attribute(TEXT, token, 11, total_effects=True)
    assert (found.token, found.contrast) == (9, 11)
    assert found.tokens is not None
    assert "".join(found.tokens) == TEXT
    sources = found.source_totals()
    assert list(sources["token"])[:-1] == list(found.tokens)
    assert list(sources["source"])[-1] == "bias"
    assert set(found.total_effects or ()) == {0, 1, 2, 3}
    assert found.agreement.count == 4
    assert "logit of" in repr(found)
    assert "<table" in found._repr_html_()
    by_layer, by_source = found.figure().axes
    assert by_layer.get_title() == "By layer and path"
    assert len(by_source.containers[0]) == min(len(found.tokens), 24)


def test_an_id_needs_no_tokenizer():
    found = DirectAttribution(make_tiny_model()).attribute(IDS)
    assert found.tokens is None
    assert found.to_dict()["token"] == found.token


def test_the_lens_stands_beside_a_twin(suite):
    lens = suite.logit_lens(IDS)
    table = lens.to_dataframe()
    assert table["kl_twin"].notna().all()
    assert suite.logit_lens(IDS, twin=False).to_dataframe()["kl_twin"].isna().all()


def test_the_tuned_lens_of_texts(suite):
    lens = suite.tuned_lens([IDS, IDS.flip(0)], [IDS.roll(1)])
    assert lens.num_fitted == 24
    for texts, held_out in (([], [IDS]), ([IDS], [])):
        with pytest.raises(ValueError, match="pass a list of at least one text"):
            suite.tuned_lens(texts, held_out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "lamb"}, "not in the vocabulary: the tokenizer splits it into"),
        ({"token": "ther"}, r"The nearest spellings are .*the"),
        ({"token": 64}, "token is 64"),
        ({"token": 7, "contrast": 7}, "their difference is 0"),
        ({"token": 1.5}, "pass text or an id"),
        ({"position": 12}, "position is 12; the text has 12 tokens"),
        ({"position": -13}, "position is -13; the text has 12 tokens"),
        ({"position": "last"}, "pass a whole number"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_runs(suite, monkeypatch, options, message):
    if "token" not in options or options["token"] != 64:
        monkeypatch.setattr(suite.model, "forward", lambda **_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        suite.attribute(IDS, **options)


def test_models_without_logits_and_several_texts_are_refused(suite):
    bare = DirectAttribution(MambaModel(make_tiny_model().config))
    for call in (bare.attribute, bare.logit_lens):
        with pytest.raises(ValueError, match="has no logits"):
            call(IDS)
    with pytest.raises(ValueError, match="text holds 2 texts; pass one at a time"):
        suite.attribute(torch.stack([IDS, IDS]))
    with pytest.raises(ValueError, match="the model has no tokenizer|so it has no tokenizer"):
        DirectAttribution(make_tiny_model()).attribute(TEXT)


def test_the_function_reads_one_text_of_ids():
    found = attribute(make_tiny_model(), IDS[None], 7)
    assert abs(found.rounding) < 1e-5 * found.largest_logit


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    texts = [word for text in EXAMPLE_TEXTS[:2] for word in ("--text", text[:80])]
    options = ["--model", str(folder / "model"), "--output-dir", str(folder / "out"), *texts]
    assert main([*options, "--total-effects", "--tuned-lens", "--quiet"]) == 0
    written = (folder / "out" / "direct_attribution_results.json").read_text()
    return folder, json.loads(written)


def test_the_command_writes_what_sums_to_the_logit(run):
    folder, results = run
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"direct_attribution.csv", "direct_attribution.safetensors",
            "direct_attribution.png"} <= names  # fmt: skip
    for text in results["individual_texts"].values():
        found = text["direct_attribution"]
        for key in ("parts", "by_source"):
            total = sum(row["value"] for row in found[key])
            assert total == pytest.approx(found["logit"], abs=1e-5 * found["largest_logit"])
        assert set(found["total_effects"]) == {"0", "1", "2", "3"}
        assert len(text["logit_lens"]["settled"]) == len(text["tokens"])
    assert [row["layer"] for row in results["direct_attribution"]["tuned_lens"]] == [
        "embedding", 0, 1, 2, 3,
    ]  # fmt: skip


def test_the_figure_is_known_by_its_results(run):
    _, results = run
    assert set(figures_of(results)) == {"direct_attribution"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tuned-lens"], "--tuned-lens needs two texts or more"),
        (["--position", "999"], "position is 999; the text has"),
        (["--token", "unheard of"], "is not in the vocabulary"),
    ],
)
def test_bad_options_end_the_command_in_one_line(run, capsys, options, message):
    folder, _ = run
    model = ["--model", str(folder / "model"), "--output-dir", str(folder / "bad")]
    assert main([*model, "--text", TEXT, "--quiet", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

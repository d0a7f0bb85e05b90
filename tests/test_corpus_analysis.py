"""The command: results from any number of workers, gone on with, refused in one sentence."""

import json
import shutil

import pytest
from conftest import make_tiny_model, make_tiny_tokenizer
from corpus_cases import made_texts

from corpus_analysis import RESULTS_NAME, main
from suite_plumbing.result_files import read_json
from suite_plumbing.result_reading import load_results


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with the tiny model and a file of texts, one of which is no JSON."""
    folder = tmp_path_factory.mktemp("given")
    make_tiny_model().save_pretrained(folder / "model")
    make_tiny_tokenizer().save_pretrained(folder / "model")
    lines = [json.dumps({"text": text}) for text in made_texts(9)]
    (folder / "texts.jsonl").write_text("\n".join([*lines, "{broken"]))
    return folder


def arguments(given, out, *more):
    return ["--model", str(given / "model"), "--texts-file", str(given / "texts.jsonl"), "--layers",
            "0,2", "--tasks", "3", "--maps-every", "1", "--importance-every", "4", "--output-dir",
            str(out), "--quiet", *more]  # fmt: skip


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    assert main(arguments(given, out)) == 0
    return out


def without_provenance(path):
    results = read_json(path)
    results.pop("provenance")
    return json.dumps(results)


def test_it_writes_all_files_and_says_what_it_found(given, done, capsys):
    names = {path.name for path in done.iterdir()}
    assert {
        RESULTS_NAME, "corpus_results.safetensors", "layers.csv", "neurons.csv", "tokens.csv",
        "atlas.html", "corpus.png", "findings.png", "parts", "corpus_plan.json",
    } == names  # fmt: skip
    assert main(arguments(given, done)) == 0  # all parts are there: merged again
    said = capsys.readouterr().out
    assert "9 documents" not in said
    assert "10 documents" in said
    assert "1 texts could not be read (texts.jsonl, line 10: not JSON (" in said
    results, tensors = load_results(done / RESULTS_NAME)
    assert results["corpus"]["tasks"] == 3
    assert "layer_2/delta" in tensors


def test_a_run_that_lost_parts_goes_on_to_the_same_results(given, done, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(done, out)
    (out / RESULTS_NAME).unlink()
    (out / "parts" / "part_00001.safetensors").unlink()
    (out / "parts" / "part_00002.safetensors").write_bytes(b"damaged")
    unfinished = out / "parts" / ".part_00001.safetensors.0123456789ab.tmp"
    unfinished.write_bytes(b"killed in the middle of writing")
    # The number of tasks is that of the folder where none is named.
    argv = [word for word in arguments(given, out) if word not in ("--tasks", "3")]
    assert main(argv) == 0
    assert not unfinished.exists()
    assert without_provenance(out / RESULTS_NAME) == without_provenance(done / RESULTS_NAME)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "4"], "holds a run of another configuration (tasks was 3, is 4)"),
        (["--seed", "1"], "holds a run of another configuration (seed was 0, is 1)"),
        (["--workers", "0"], "workers is 0"),
        (["--tasks", "0"], "tasks is 0"),
        (["--slurm-time", ""], "slurm-time is ''"),
        (["--slurm-time", "soon"], "slurm-time is 'soon'"),
        (["--slurm-partition", " "], "slurm-partition is ' '"),
        (["--tokenizer", "a" * 300], "can be no path: File name too long"),
        (["--dataset", "x"], "--dataset and --texts-file are both given"),
        (["--text-field", "body"], None),
    ],
)
def test_bad_options_are_refused(given, done, capsys, more, message):
    status = main(arguments(given, done, *more))
    if message is None:  # another field is another corpus
        message = "text_field was text, is body"
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "the corpus holds no text"), ("\n \n", "the corpus holds no text"),
     ('{"body": "x"}\n', "the corpus has no text of 2 tokens or more (1 texts, 1 of them "
      "unreadable; the first failure: no field 'text', only ['body'])")],
)  # fmt: skip
def test_an_empty_corpus_is_refused(given, tmp_path, capsys, content, message):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    argv = arguments(given, tmp_path / "out")
    argv[argv.index("--texts-file") + 1] = str(path)
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_too_many_failures_stop_the_run_and_more_allowed_go_on(given, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(given, out, "--max-failures", "0")) == 1
    said = capsys.readouterr().err
    assert "1 texts of one task cannot be read, the last being texts.jsonl, line 10" in said
    assert main(arguments(given, out, "--max-failures", "1")) == 0


def test_streams_are_read_with_their_state_carried(given, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(" ".join(made_texts(12)))
    argv = arguments(given, tmp_path / "out", "--one-text", "--max-sequence-length", "50")
    argv[argv.index("--texts-file") + 1] = str(path)
    losses = []
    for name, more in (("apart", []), ("carried", ["--carry"])):
        argv[argv.index("--output-dir") + 1] = str(tmp_path / name)
        assert main([*argv, *more]) == 0
        losses.append(read_json(tmp_path / name / RESULTS_NAME)["corpus"])
    assert losses[0]["tokens"] == losses[1]["tokens"]
    assert losses[0]["loss"] != losses[1]["loss"]

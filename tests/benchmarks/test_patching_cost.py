"""The cost of patching is that of a row a place, of the layers from the patched one on."""

from benchmarks.patching_cost import cost_rows, main, model_of_shape, one_pair

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32}


def test_a_pair_differs_from_its_first_token_on():
    runs = one_pair(model_of_shape(TINY), 6)
    assert (runs.clean.input_ids != runs.corrupt.input_ids).tolist() == [[True] + [False] * 5]


def test_every_site_is_timed_beside_forwards():
    rows = cost_rows(model_of_shape(TINY), 6, ["residual", "state"])
    assert [row[0] for row in rows[2:]] == ["residual: 12 patches", "state: 12 patches"]
    assert all(float(row[1]) >= 0 for row in rows)


def test_the_command_prints_its_table(capsys):
    options = ["--layers", "1", "--width", "16", "--tokens", "4", "--sites", "u"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "1 layers, width 16, 4 tokens" in shown
    assert "| u: 4 patches |" in shown

"""The cost of patching is that of a row a place, of the layers from the patched one on."""

from benchmarks import patching_cost
from benchmarks.patching_cost import (
    Costs,
    beside_transformer_lens,
    main,
    model_of_shape,
    one_pair,
    site_costs,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32}


def test_a_pair_differs_from_its_first_token_on():
    runs = one_pair(model_of_shape(TINY), 6)
    assert (runs.clean.input_ids != runs.corrupt.input_ids).tolist() == [[True] + [False] * 5]


def test_every_site_is_timed_beside_forwards():
    model = model_of_shape(TINY)
    costs = site_costs(model, one_pair(model, 6), ["residual", "state"])
    assert [row[0] for row in costs.rows[2:]] == ["residual: 12 patches", "state: 12 patches"]
    assert all(float(row[1]) >= 0 for row in costs.rows)
    assert {site: tuple(x.shape) for site, x in costs.values.items()} == {
        "residual": (2, 6), "state": (2, 6)
    }  # fmt: skip


def test_without_transformer_lens_there_is_a_line_and_no_row(monkeypatch):
    model = model_of_shape(TINY)
    monkeypatch.setattr(patching_cost, "is_at_hand", lambda: False)
    rows, said = beside_transformer_lens(model, one_pair(model, 4), Costs([], 1.0, {}), 3)
    assert rows == []
    assert "TransformerLens is not installed" in said
    monkeypatch.setattr(patching_cost, "is_at_hand", lambda: True)
    rows, said = beside_transformer_lens(model, one_pair(model, 4), Costs([], 1.0, {}), 3)
    assert rows == []
    assert "not asked for" in said


def test_the_command_prints_its_table(capsys):
    options = ["--layers", "1", "--width", "16", "--tokens", "4", "--sites", "u"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "1 layers, width 16, 4 tokens" in shown
    assert "| u: 4 patches |" in shown
    assert "TransformerLens" in shown

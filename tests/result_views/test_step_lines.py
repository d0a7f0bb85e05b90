"""A step's table for a terminal: columns that fit, means over texts, what is undefined."""

from result_views.step_lines import over_texts, step_lines

ROWS = [
    {"layer": 0, "half-life (tokens)": 8.1234, "replay error": 1.2e-7},
    {"layer": 11, "half-life (tokens)": None, "replay error": 0.5},
]


def test_numbers_stand_under_their_heads():
    lines = step_lines(ROWS, 80)
    assert lines[0] == "layer  half-life (tokens)  replay error"
    assert lines[1].split()[:2] == ["0", "8.12"]
    assert [len(line) for line in lines] == [len(lines[0])] * 3
    assert step_lines([], 80) == []


def test_a_column_without_room_is_named():
    lines = step_lines(ROWS, 30)
    assert lines[0] == "layer  half-life (tokens)"
    assert lines[-1] == "Not shown: replay error."


def test_means_over_texts_of_what_is_there():
    texts = [
        {"layer_3": {"delta": {"mean": 1.0}, "lags": [4.0]}},
        {"layer_3": {"delta": {"mean": 2.0}, "lags": []}},
    ]
    rows = over_texts(texts, {"delta": ("delta", "mean"), "lag": ("lags",), "no": ("x", "y")})
    assert rows == [{"layer": 3, "delta": 1.5, "lag": 4.0, "no": None}]

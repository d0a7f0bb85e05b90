"""Lines of a terminal: tables that fit it, sentences that are wrapped."""

from result_views.terminal_lines import terminal_table, wrapped

HEADS = ["method", "value", "more"]
BODY = [["a", "1.5", "x"], ["longer", "-", "yy"]]


def test_cells_stand_on_the_right_of_their_column():
    assert terminal_table(HEADS, BODY, 40) == [
        "method  value  more",
        "     a    1.5     x",
        "longer      -    yy",
    ]


def test_columns_without_room_are_left_out_and_named():
    lines = terminal_table(HEADS, BODY, 18)
    assert lines == [
        "method  value", "     a    1.5", "longer      -", "Not shown: more."
    ]  # fmt: skip
    assert terminal_table(HEADS, [], 6)[0] == "method"  # the first stays, however narrow


def test_sentences_are_wrapped_each_on_its_own_lines():
    assert wrapped(["one two three", "four"], 9, "  ") == ["one two", "  three", "four"]


def test_the_terminal_says_how_wide_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, wrapped(["word " * 40]))) <= 60

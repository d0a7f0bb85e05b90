"""What can be no path is refused in one sentence that says of what it is the path."""

import os
from pathlib import Path

import pytest

from suite_plumbing.paths import user_path


def test_a_path_is_itself_whether_it_exists_or_not(tmp_path: Path) -> None:
    assert user_path(tmp_path / "a", "file") == tmp_path / "a"
    assert user_path(str(tmp_path), "file") == tmp_path
    assert user_path(tmp_path / "a" / "b", "file") == tmp_path / "a" / "b"


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a", "file") == tmp_path / "a"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("~nosuchuser/x", "file '~nosuchuser/x' is in the home of no user here"),
        ("a" * 256, "can be no path: File name too long"),
        ("a/" * 3000, "can be no path: File name too long"),
        ("a\0b", r"can be no path: embedded null byte"),
        ("\ud800", r"'\\ud800' can be no path: .*surrogates not allowed"),
        (5, "file is 5, of type int; pass a path"),
        (None, "file is None, of type NoneType; pass a path"),
        (b"bytes", "file is b'bytes', of type bytes; pass a path"),
    ],
)
def test_what_can_be_no_path_is_refused(path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        user_path(path, "file")
    assert len(str(caught.value)) < 300


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    os.symlink(tmp_path / "a", tmp_path / "b")
    os.symlink(tmp_path / "b", tmp_path / "a")
    with pytest.raises(ValueError, match="can be no path: Too many levels of symbolic links"):
        user_path(tmp_path / "a", "file")

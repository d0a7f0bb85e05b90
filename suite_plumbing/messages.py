"""Words of error messages: values as they were passed and other libraries' reasons, cut short.

Knows the standard library alone.
"""

from __future__ import annotations

VALUE_LENGTH = 80
"""Characters of a value that a message shows."""

REASON_LENGTH = 200
"""Characters of another library's message that one of ours repeats."""


def quoted(value: object, limit: int = VALUE_LENGTH) -> str:
    """``repr(value)`` on one line, cut in its middle to ``limit`` characters.

    A list of a million ids, or a text, would bury the sentence that says what is wrong with it. A
    value whose repr raises (an integer of 5,000 digits does) is named by its type.
    """
    # Of a long text, more than can be shown need not be escaped first.
    if isinstance(value, str) and len(value) > 2 * limit:
        value = value[:limit] + value[-limit:]
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
    return shortened(text, limit)


def shortened(text: str, limit: int) -> str:
    """``text`` on one line, its white space single spaces, cut in its middle to ``limit``."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    tail = (limit - 3) // 3
    return f"{line[: limit - 3 - tail]}...{line[len(line) - tail :]}"


def reason_of(error: BaseException) -> str:
    """What an exception of another library says, in one line: its first, or its type's name.

    With the type where the words alone say nothing: a KeyError's are a key.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A line that ends in a colon announces the one that follows.
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if not isinstance(error, (OSError, ValueError)):
        line = f"{type(error).__name__}: {line}"
    return shortened(line, REASON_LENGTH)

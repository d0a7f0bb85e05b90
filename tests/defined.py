"""What must not be undefined in a test."""

from typing import Any


def known(value: Any) -> Any:
    """The value of a statistic that must not be undefined here."""
    assert value is not None
    return value

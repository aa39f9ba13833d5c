"""Words for messages, and values of the description as words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def as_word(value: Any) -> str:
    """A value of the description as identifiers are read: true, 3 and 3.0 are "true", "3" and "3"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def hint(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' or the list of what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    listed = ", ".join(name if name.isprintable() else repr(name) for name in sorted(known)[:12]) + (
        ", …" if len(known) > 12 else ""
    )
    return f"; there is {listed}" if known else ""


def plain(message: str) -> str:
    """A validation message in our own tone."""
    message = message.removeprefix("Input ").replace("should be", "must be").replace("valid dictionary", "table")
    return message.replace("a valid ", "a ").replace("greater than or equal to", "at least")

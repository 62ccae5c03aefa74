"""Patterns of Go's `filepath.Match` as patterns of the kind `device-node`. Pure.

The differences: Go writes `[^a]` where a shell writes `[!a]`, takes a `!` after `[` as itself, and a backslash as the
sign that the next letter is itself.
"""

from __future__ import annotations

import re

_PIECE = re.compile(r"\\(.)|(\[[^\]]*\]?)|(.)", re.DOTALL)
_RANGES = re.compile(r"(?:[^\\\]\[-](?:-[^\\\]\[-])?)+")


def pattern(go: str) -> str:
    """The same set of paths, as `include` and `exclude` of a group write it.

    Raises:
        ValueError: Go would not take it, or it has no counterpart.
    """
    if go.endswith("\\") and not go.endswith("\\\\"):
        raise ValueError("a backslash at its end stands for nothing")
    return "".join(_piece(*found.groups()) for found in _PIECE.finditer(go))


def _piece(escaped: str | None, brackets: str | None, letter: str | None) -> str:
    if brackets is not None:
        return _brackets(brackets)
    if escaped is not None:
        return f"[{escaped}]" if escaped in "*?[" else escaped
    return letter or ""


def _brackets(text: str) -> str:
    negated = text.startswith("[^")
    inside = text[2 if negated else 1 : -1]
    if not text.endswith("]") or not inside:
        raise ValueError("'[' begins a set of letters, like [0-9], that has to end with ']'")
    if inside.startswith("!") or not _RANGES.fullmatch(inside):
        raise ValueError(f"{text} is not made of letters and ranges alone; write a pattern for each letter")
    return f"[{'!' if negated else ''}{inside}]"

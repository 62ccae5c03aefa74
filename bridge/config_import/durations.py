"""Durations as Go writes them: `90s`, `1h30m`, `1.5m`. Pure."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)


def seconds(text: str) -> float:
    """How long it is.

    Raises:
        ValueError: Go would not take it.
    """
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0.0
    pieces = list(_PIECE.finditer(unsigned))
    if not pieces or "".join(piece.group() for piece in pieces) != unsigned:
        raise ValueError(f"a duration is written like 30s, 10m or 1h30m, not {text!r}")
    total = sum(float(piece[1]) * _UNITS[piece[2]] for piece in pieces)
    return -total if text.startswith("-") else total

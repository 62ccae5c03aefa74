"""How many nodes at a time, and in which order. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from bridge.cli.problems import Problem

T = TypeVar("T")

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_WHOLE = 100


def size(batch: str, nodes: int) -> int:
    """Nodes of one batch: a count, or a share of them rounded down; never less than one.

    Raises:
        Problem: it is neither.
    """
    text, percent = batch.strip().removesuffix("%"), batch.strip().endswith("%")
    if not text.isdecimal() or int(text) == 0 or (percent and int(text) > _WHOLE):
        raise Problem(f"--batch is a count of nodes like 3, or a share like 10%, not {batch!r}", 2)
    return max(1, nodes * int(text) // _WHOLE) if percent else int(text)


def batches(nodes: Sequence[T], each: int) -> list[Sequence[T]]:
    """The nodes in their order, `each` at a time."""
    return [nodes[at : at + each] for at in range(0, len(nodes), each)]


def seconds(text: str, option: str) -> float:
    """Read a length of time: `90`, `90s`, `5m`, `1h30m`.

    Raises:
        Problem: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or not text.strip():
        raise Problem(f"{option} is a length of time like 90s, 5m or 1h, not {text!r}", 2)
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest

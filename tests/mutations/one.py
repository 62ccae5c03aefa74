"""What a deliberate break is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Break:
    """One wrong line.

    Attributes:
        name: what is wrong.
        keeps: the invariant or the net that it breaks.
        file: where.
        old, new: the text to replace, there just once, and what with.
        tests: of which one has to fail.
    """

    name: str
    keeps: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

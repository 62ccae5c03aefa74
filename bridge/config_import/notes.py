"""What an import has to say about a field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One field that has no counterpart, or that means something else here.

    Attributes:
        field: as the imported file writes it.
        text: what became of it, and why.
    """

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"

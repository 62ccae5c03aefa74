"""One thing that `bridge doctor` has looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what.
        ok: whether it is as it should be.
        found: what was seen.
        mend: what to do; empty where nothing has to be done. With `ok`: what may have to be done for some pods.
    """

    check: str
    ok: bool
    found: str
    mend: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.ok:
            return "WRONG"
        return "note" if self.mend else "ok"

    def lines(self, width: int) -> Iterator[str]:
        """As people read it: what was found, and below it what to do."""
        yield from _wrapped(f"{self.verdict:<6} ", f"{self.check}: {self.found}", width)
        if self.mend:
            yield from _wrapped(f"{'':<6}   ", f"mend: {self.mend}", width)


def _wrapped(before: str, text: str, width: int) -> list[str]:
    """Under itself, and no word broken: a path that is too long is copied more often than it is looked at."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=before,
        subsequent_indent=" " * len(before),
        break_long_words=False,
        break_on_hyphens=False,
    )

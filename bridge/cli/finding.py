"""One thing that `bridge doctor` has looked at."""

from __future__ import annotations

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

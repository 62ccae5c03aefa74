"""One thing that a plan has to say. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_MINOR = re.compile(r"v?1\.(\d+)")


class Weight(StrEnum):
    """Whether it matters."""

    BLOCKS = "blocks"
    WARNING = "warning"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what.
        nodes: that it is about; none: the cluster.
        mend: what to do; empty where nothing has to be done.
    """

    check: str
    weight: Weight
    found: str
    mend: str = ""
    nodes: tuple[str, ...] = ()

    def dump(self) -> dict[str, object]:
        """For programs and tables."""
        return {
            "verdict": self.weight.value,
            "check": self.check,
            "nodes": list(self.nodes),
            "found": self.found,
            "mend": self.mend,
        }


def minor(version: str) -> int | None:
    """The minor release of a version; None if it says none."""
    found = _MINOR.match(version)
    return int(found[1]) if found else None

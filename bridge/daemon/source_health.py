"""How each source of evidence is: whether it answers, since when, and what it costs that it does not.

What an operator reads of degraded proof (`bridge doctor`, metrics); nothing is decided by it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

log = logging.getLogger(__name__)

WITHOUT = {
    "kubelet": "no hold of the device plugin plane ends until its lists can be taken for whole",
    "podresources": "no hold of the device plugin plane ends, and none learns its pod",
    "checkpoint": (
        "no hold of the device plugin plane ends; where the file is gone, only once runtime and API server have said "
        "for 10 minutes that its pod is over, or after 70 minutes where its pod was never identified"
    ),
    "runtime": (
        "a hold ends only once the API server says that its pod has ended, and then 10 minutes or the pod's grace "
        "period later; an ID that the kubelet hands out again before is refused, or, where no runtime was ever "
        "found, not checked for containers that still run"
    ),
    "pods": (
        "a hold that only a stale entry of the kubelet's checkpoint names does not end; without the runtime no "
        "hold of a known pod does"
    ),
    "in-use probe": "a device that is used past its holds is not noticed, and no hold ends later for it",
}
"""Every source by name, and what its absence does to releases."""


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """One source of evidence.

    Attributes:
        name: one of `WITHOUT`.
        available: whether it answered when it was asked last; None before the first time.
        since: wall clock, seconds, for people: when it became so.
        error: why it did not answer last, kept after it is back; empty if it always did.
        without: what its absence does to releases.
    """

    name: str
    available: bool | None
    since: float
    error: str
    without: str


class SourceBook:
    """Keeps the health of every source; tells what changed, once.

    `answered` is told for each source whether it answers, at each change.
    """

    def __init__(self, answered: Callable[[str, bool], None]) -> None:
        self._answered = answered
        now = time.time()
        self._health = {name: SourceHealth(name, None, now, "", text) for name, text in WITHOUT.items()}

    def note(self, name: str, trouble: str, *, expected: bool = False) -> None:
        """Note that a source answered, or why not; what is `expected` now and then is no warning."""
        before = self._health[name]
        yes = not trouble
        if before.available is yes and trouble in ("", before.error):
            return
        since = before.since if before.available is yes else time.time()
        self._health[name] = replace(before, available=yes, since=since, error=trouble or before.error)
        if before.available is not yes:
            self._answered(name, yes)
        if trouble:
            extra = {"source": name, "error": trouble, "effect": before.without}
            level = logging.INFO if expected else logging.WARNING
            log.log(level, "evidence missing, releases wait", extra=extra)
        elif before.available is False:
            log.info("evidence is back", extra={"source": name})

    def all(self) -> tuple[SourceHealth, ...]:
        """The health of every source."""
        return tuple(self._health.values())

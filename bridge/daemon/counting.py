"""The devices of every group counted once, for all who show the counts; a burst of changes costs one count a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from bridge.daemon.metrics import Metrics
from bridge.ledger.ledger import Ledger
from bridge.planes.counts import Counts, count
from bridge.planes.rosters import Rosters

PACE_S = 1.0
"""Between two counts."""


class Counting:
    """Counts, and shows metrics. Single event loop.

    Args:
        rosters, ledger: what is counted.
        metrics: shown at each count. Not counted when they are scraped: that is another thread.
        tainted: says which devices of a group are.

    Attributes:
        latest: by group, in the order of the configuration.
    """

    def __init__(
        self,
        rosters: Rosters,
        ledger: Ledger,
        metrics: Metrics,
        tainted: Callable[[str], Collection[str]] = lambda group: (),
    ) -> None:
        self._rosters = rosters
        self._ledger = ledger
        self._metrics = metrics
        self._tainted = tainted
        self.latest: Mapping[str, Counts] = {}
        self._listeners: list[Callable[[], None]] = []
        self._count()

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Have something called when a count differs from the one before."""
        self._listeners.append(changed)

    async def run(self) -> None:
        """Count at each change, until cancelled."""
        with self._rosters.any.listen() as changes:
            while True:
                self._count()
                await changes.wait()
                await asyncio.sleep(PACE_S)

    def _count(self) -> None:
        account = self._ledger.account
        counts = {group: count(self._rosters.of(group), account) for group in self._rosters.pulses}
        for group, one in counts.items():
            self._metrics.show(group, one, len(self._tainted(group)))
        if counts != self.latest:
            self.latest = counts
            for changed in self._listeners:
                changed()

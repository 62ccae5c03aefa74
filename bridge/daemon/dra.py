"""The DRA plane of one group as it runs: the endpoint, and the task that publishes what the projection shows."""

from __future__ import annotations

import logging

from bridge.daemon.metrics import Metrics
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.planes.projection import SliceOffer, dra_view
from bridge.planes.rosters import Rosters
from bridge.planes.slices import pool_of
from dra_v1.plugin import DraPlugin

log = logging.getLogger(__name__)

_CONSUMABLE_FIELDS = frozenset({"allowMultipleAllocations", "capacity.requestPolicy"})


class SliceFeed:
    """Projects a group to its publisher, again at each change that shows."""

    def __init__(self, group: str, rosters: Rosters, ledger: Ledger, metrics: Metrics) -> None:
        self._group = group
        self._rosters = rosters
        self._ledger = ledger
        self._metrics = metrics
        self._consumable = True

    def dropped(self, fields: frozenset[str]) -> None:
        """The cluster does not keep some fields (H25): shares become devices of their own."""
        if self._consumable and fields & _CONSUMABLE_FIELDS:
            self._consumable = False
            log.info(
                "this cluster has no consumable capacity: each share is a device",
                extra={"group": self._group},
            )
            self._rosters.pulses[self._group].ring()

    async def run(self, plugin: DraPlugin) -> None:
        """Feed the plugin until cancelled."""
        last: tuple[SliceOffer, ...] | None = None
        with self._rosters.pulses[self._group].listen() as changes:
            while True:
                view = dra_view(
                    self._rosters.of(self._group), self._ledger.account, consumable=self._consumable
                )
                if view != last:
                    last = view
                    plugin.offer_pools([pool_of(plugin.node_name, view)])
                await changes.wait()

    def registered(self, yes: bool) -> None:
        """Note whether the kubelet has the driver."""
        self._metrics.registered.labels(Plane.DRA, self._group).set(yes)

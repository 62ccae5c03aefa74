"""What the own Node counts of a group's resource, beside what its device plugin lists as healthy: by that the
scheduler goes, so a switch of modes waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.config import Group
from bridge.daemon.own_node import OwnNode
from bridge.ledger.ledger import Ledger
from bridge.planes import modes
from bridge.planes.projection import device_plugin_view
from bridge.planes.rosters import Rosters


class Counted:
    """One group's. Single event loop."""

    def __init__(self, group: Group, node: OwnNode, rosters: Rosters, ledger: Ledger) -> None:
        self._group = group
        self._node = node
        self._rosters = rosters
        self._ledger = ledger

    @property
    def allocatable(self) -> int | None:
        """What the Node shows; None while it cannot be read."""
        if self._node.view is None or self._node.trouble:
            return None
        return self._node.view.allocatable.get(self._group.resource_name, 0)

    async def in_(self, looked: Callable[[], None]) -> None:
        """Return when the Node counts it; `looked` is called at each look that found otherwise."""
        asked = self._node.asked
        await self._until(lambda: modes.is_counted(self.allocatable, self._healthy(), asked=asked), looked)

    async def out(self, looked: Callable[[], None]) -> None:
        """Return when the Node counts it no more, as far as the scheduler depends on that."""
        same = self._group.keep_resource_name
        await self._until(
            lambda: modes.counts_as_none(self.allocatable, self._healthy(), same_name=same), looked
        )

    def _healthy(self) -> set[str]:
        view = device_plugin_view(self._rosters.of(self._group.name), self._ledger.account)
        return {offer.id for offer in view if offer.healthy}

    async def _until(self, met: Callable[[], bool], looked: Callable[[], None]) -> None:
        with (
            self._node.changed.listen() as node,
            self._rosters.pulses[self._group.name].listen() as list_,
        ):
            while not met():
                waits = [asyncio.create_task(one.wait()) for one in (node, list_)]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in waits:
                        one.cancel()
                looked()

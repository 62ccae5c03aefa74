"""The plugins of one scenario: made by it, and ended after its pods."""

from __future__ import annotations

from collections.abc import Sequence

from tests.protocol.suite.drivers import BOTH, DraDriver
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plugins import DevicePlugin


class Plugins:
    """Makes the scenario's plugins, and ends them after its pods."""

    def __init__(self, node: Node, journal: Journal) -> None:
        self._node, self._journal = node, journal
        self._devices: list[DevicePlugin] = []
        self._drivers: list[DraDriver] = []

    def device(
        self, *ids: str, who: str = "acc", resource: str = "", elsewhere: bool = False
    ) -> DevicePlugin:
        """Make a device plugin that does not serve yet; `elsewhere` puts its socket where none is wiped."""
        made = DevicePlugin(self._node, self._journal, who, resource or self._node.resource, ids)
        if elsewhere:
            made.move(self._node.kubelet / "plugins")
        self._devices.append(made)
        return made

    def dra(self, driver: str = "", versions: Sequence[str] = BOTH, *, instance: str = "") -> DraDriver:
        """Make a DRA driver that does not serve yet."""
        made = DraDriver(self._node, self._journal, driver or self._node.driver, versions, instance=instance)
        self._drivers.append(made)
        return made

    async def close(self) -> None:
        """Let every pod end, then stop."""
        made: list[DevicePlugin | DraDriver] = [*self._devices, *self._drivers]
        for plugin in made:
            plugin.relent()
        await self._node.clear()
        for plugin in made:
            await plugin.stop()

"""Devices that can tell whether anybody uses them, asked while the device plugin plane has them out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from bridge.config import Config
from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import Kind
from bridge.devices.model import Device
from bridge.ledger.evidence import DeviceName
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.planes.rosters import Rosters
from bridge.platform.roots import Roots


class Probes:
    """In-use probes of the kinds that have one. Single event loop."""

    def __init__(self, config: Config, rosters: Rosters, ledger: Ledger, roots: Roots) -> None:
        # Whoever does not override it cannot tell, and need not be asked.
        self._kinds = {
            g.name: KINDS[g.kind] for g in config.groups if type(KINDS[g.kind]).in_use is not Kind.in_use
        }
        self._rosters = rosters
        self._ledger = ledger
        self._roots = roots

    async def look(self) -> Mapping[DeviceName, bool]:
        """Ask each device that is out once. Raises OSError."""
        asked: dict[DeviceName, Device] = {}
        for group in self._kinds:
            roster = self._rosters.of(group)
            for hold in self._ledger.account.of_group(Plane.DEVICE_PLUGIN, group):
                if (device := roster.by_name.get(hold.share)) is not None:
                    asked[group, hold.device] = device
        if not asked:
            return {}

        def probe() -> dict[DeviceName, bool]:
            answers = {name: self._kinds[name[0]].in_use(d, self._roots) for name, d in asked.items()}
            return {name: answer for name, answer in answers.items() if answer is not None}

        return await asyncio.to_thread(probe)

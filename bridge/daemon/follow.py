"""Takes each new inventory: CDI files know a device before it is offered, and what is gone leaves at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container

from bridge.daemon.files import GroupFiles
from bridge.devices.model import Inventory
from bridge.planes.rosters import Rosters, without_new

RETRY_S = 5.0
"""Between two tries to write the files that new devices need."""


async def follow(changes: AsyncIterator[Inventory], rosters: Rosters, files: GroupFiles) -> None:
    """Take inventories until cancelled. One that cannot be taken whole never keeps the next one waiting."""
    upcoming = asyncio.ensure_future(anext(changes))
    wanted: Inventory | None = None
    try:
        while True:
            await asyncio.wait([upcoming], timeout=None if wanted is None else RETRY_S)
            if upcoming.done():
                wanted = upcoming.result()
                upcoming = asyncio.ensure_future(anext(changes))
            if wanted is not None and await _take(wanted, rosters, files):
                wanted = None
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)


async def _take(inventory: Inventory, rosters: Rosters, files: GroupFiles) -> bool:
    """Take as much as the files allow; whether that was all."""
    missing = await files.write(rosters.preview(inventory))
    taken = held_back(inventory, rosters.inventory, missing) if missing else inventory
    if taken != rosters.inventory:
        rosters.take(taken)
    return not missing


def held_back(inventory: Inventory, known: Inventory, groups: Container[str]) -> Inventory:
    """The inventory without what is new in some groups. Pure."""
    old = {(device.group, device.name) for device in without_new(inventory, known).devices}
    devices = tuple(
        device
        for device in inventory.devices
        if device.group not in groups or (device.group, device.name) in old
    )
    return Inventory(devices, inventory.parts, inventory.problems)

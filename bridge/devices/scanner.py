"""Watching and scanning: complete inventories, one after the other, only when they differ (design 5).

Events say only that something changed; what there is, a scan tells. A slow rescan catches what no event told
(mounts, sysfs values). Scans run in a thread. A scan that fails leaves the last inventory in force:
unreadable is not gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from bridge.devices.inventory import GroupSpec, merge, scan, watches
from bridge.devices.kinds.base import Watches
from bridge.devices.model import Inventory
from bridge.platform.directories import DirectoryWatch
from bridge.platform.roots import Roots
from bridge.platform.uevents import EventsLost, UeventSocket

__all__ = ["GroupSpec", "MachineEvents", "Scanner", "Sources", "merge", "scan"]

_STABLE_AFTER = 8
"""How often directories may appear between looking and watching before a scan is made anyway."""

_SYSFS_LAG = 0.5
"""Seconds after a uevent until sysfs surely shows what it told of: then one more scan."""

_IDLE_SHARE = 0.0025
"""The share of one processor that unprompted scans may take: with ten thousand devices they come less often."""

log = logging.getLogger(__name__)


class Sources(Protocol):
    """Where events come from."""

    def start(self, changed: Callable[[], None], sysfs_changed: Callable[[], None]) -> None:
        """Begin; both callbacks may be called from any thread. Called on the event loop."""

    def watch(self, wanted: Watches, roots: Roots) -> bool:
        """Watch these from now on; blocking. True when something is watched that was not before."""

    def stop(self) -> None:
        """End; no callback is called afterwards. Called on the event loop."""


class MachineEvents:
    """The machine's own events: inotify for `/dev`, uevents for `/sys`. Each does without the other."""

    def __init__(self, open_uevents: Callable[[], UeventSocket] = UeventSocket) -> None:
        self._open_uevents = open_uevents
        self._directories: DirectoryWatch | None = None
        self._uevents: UeventSocket | None = None
        self._subsystems: frozenset[str] = frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sysfs_changed: Callable[[], None] = lambda: None
        self._asked = False

    def start(self, changed: Callable[[], None], sysfs_changed: Callable[[], None]) -> None:
        """Begin with nothing watched."""
        self._loop = asyncio.get_running_loop()
        self._sysfs_changed = sysfs_changed
        try:
            self._directories = DirectoryWatch(changed)
            self._directories.start()
        except OSError as error:
            self._directories = None
            log.warning(
                "inotify is not available; devices are noticed by the slow rescan only "
                "(is fs.inotify.max_user_instances used up?)",
                extra={"error": str(error)},
            )

    def watch(self, wanted: Watches, roots: Roots) -> bool:
        """Watch the directories; open the uevent socket once a kind asks for subsystems."""
        new = False
        if self._directories is not None:
            new = self._directories.watch({roots.look(path) for path in wanted.directories})
        self._subsystems = wanted.subsystems
        if wanted.subsystems and not self._asked:
            self._asked = True
            new = self._listen() or new
        return new

    def stop(self) -> None:
        """Stop the threads and close the socket."""
        self._deafen()
        if self._directories is not None:
            self._directories.stop()
            self._directories = None

    def _listen(self) -> bool:
        try:
            self._uevents = self._open_uevents()
        except OSError as error:
            log.warning(
                "kernel uevents are not available; changes in sysfs are noticed by the slow rescan only",
                extra={"error": str(error)},
            )
            return False
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._add_reader)
        return True

    def _add_reader(self) -> None:
        if self._loop is not None and self._uevents is not None:
            self._loop.add_reader(self._uevents.fileno(), self._receive)

    def _receive(self) -> None:
        if self._uevents is None:
            return
        try:
            events = self._uevents.receive()
        except EventsLost:
            log.info("the kernel dropped uevents; everything is read again")
            self._sysfs_changed()
        except OSError as error:
            log.warning(
                "kernel uevents are no longer received; changes in sysfs are noticed by the slow rescan only",
                extra={"error": str(error)},
            )
            self._deafen()
        else:
            if any(event.subsystem in self._subsystems for event in events):
                self._sysfs_changed()

    def _deafen(self) -> None:
        if self._uevents is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._uevents.fileno())
            self._uevents.close()
            self._uevents = None


class Scanner:
    """Complete inventories of some groups, as they change.

    Args:
        groups: what to look for.
        roots: where.
        rescan: seconds between scans that nothing prompted.
        settle: seconds of quiet that end a burst of events.
        burst: seconds after which a burst is scanned although it goes on.
        sources: where events come from; the machine's own by default.
    """

    def __init__(
        self,
        groups: Sequence[GroupSpec],
        roots: Roots,
        *,
        rescan: float = 60.0,
        settle: float = 0.01,
        burst: float = 0.2,
        sources: Sources | None = None,
    ) -> None:
        self._groups = tuple(groups)
        self._roots = roots
        self._rescan = rescan
        self._settle = settle
        self._burst = burst
        self._sources = sources if sources is not None else MachineEvents()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._told = False
        self._again_at: float | None = None
        self._failures = 0
        self._job: asyncio.Future[Inventory] | None = None
        self.inventory: Inventory | None = None
        """The last one; None before the first."""

    async def changes(self) -> AsyncGenerator[Inventory, None]:
        """The first inventory at once, then each that differs from the one before. One consumer at a time."""
        self._loop = asyncio.get_running_loop()
        self._sources.start(self.poke, self._poke_twice)
        try:
            while True:
                started = time.monotonic()
                inventory = await self._scan()
                took = time.monotonic() - started
                if inventory is not None and inventory != self.inventory:
                    self._report(inventory)
                    self.inventory = inventory
                    yield inventory
                await self._next_reason(took)
        finally:
            if self._job is not None:
                await asyncio.wait({self._job})
            self._sources.stop()
            self._loop = None

    def poke(self) -> None:
        """Scan soon. From any thread."""
        loop = self._loop
        if not self._told and loop is not None:
            self._told = True
            loop.call_soon_threadsafe(self._changed.set)

    def _poke_twice(self) -> None:
        self._again_at = time.monotonic() + _SYSFS_LAG
        self.poke()

    async def _scan(self) -> Inventory | None:
        self._acknowledge()
        if self._again_at is not None and time.monotonic() >= self._again_at:
            self._again_at = None
        self._job = asyncio.ensure_future(asyncio.to_thread(self._watch_and_scan))
        try:
            # A thread cannot be cancelled: the end waits for it, so that it never watches what was stopped.
            inventory = await asyncio.shield(self._job)
        except OSError as error:
            self._failures += 1
            log.error(
                "devices could not be scanned; the last inventory stays in force and the scan is repeated",
                extra={"error": str(error), "failures": self._failures},
            )
            return None
        self._failures = 0
        return inventory

    def _watch_and_scan(self) -> Inventory:
        """Watch first, then look: what appears in between makes an event."""
        for _ in range(_STABLE_AFTER):
            if not self._sources.watch(watches(self._groups, self._roots), self._roots):
                break
        return scan(self._groups, self._roots)

    async def _next_reason(self, took: float) -> None:
        """Wait for an event, then for the end of its burst; or for the next scan that is due anyway.

        The burst lasts at least as long as the last scan took: however fast events come, half of the time
        is rest.
        """
        now = time.monotonic()
        if not await self._event_within(self._due(now, took) - now):
            return
        end = time.monotonic() + max(self._burst, took)
        while (left := end - time.monotonic()) > 0:
            self._acknowledge()
            if not await self._event_within(min(max(self._settle, took), left)):
                return

    def _due(self, now: float, took: float) -> float:
        """When to scan although nothing prompted it; sooner after a failure, later where scans are long."""
        rest = max(self._rescan, took / _IDLE_SHARE)
        due = now + (min(rest, 2.0**self._failures) if self._failures else rest)
        return due if self._again_at is None else min(due, self._again_at)

    async def _event_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _acknowledge(self) -> None:
        """Events up to here are seen. The order counts: an event in between is told again, never lost."""
        self._told = False
        self._changed.clear()

    def _report(self, inventory: Inventory) -> None:
        before = self.inventory or Inventory()
        for problem in set(inventory.problems) - set(before.problems):
            log.warning(
                "something could not be used as it is",
                extra={"group": problem.group, "subject": problem.subject, "problem": problem.message},
            )
        known = {(device.group, device.name) for device in before.devices}
        now = {(device.group, device.name) for device in inventory.devices}
        log.info(
            "devices scanned",
            extra={"devices": len(now), "appeared": len(now - known), "vanished": len(known - now)},
        )

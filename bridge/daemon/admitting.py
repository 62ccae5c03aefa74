"""Whether the kubelet is just taking its pods up again: then what they hold has to be healthy.

A kubelet that starts admits its pods anew, and fails one whose container is down and whose devices are unhealthy
(seen on 1.37.1). So held devices that are hidden for the sake of allocatable are shown as healthy from the moment that
nobody reads the list until their pods' containers run, and not for longer than two minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bridge.ledger.holds import Hold, PodHolder
from bridge.planes.regrants import Witnesses

LONGEST_S = 120.0
"""After so long a pod that does not run has other troubles."""

LOOK_S = 1.0
"""Between two looks at the runtime, which tells nobody by itself."""


class Admitting:
    """One group's. Single event loop.

    Args:
        held: the group's holds on the device plugin plane.
        witnesses: who tells which containers run.
        changed: called when `now` changes.

    Attributes:
        now: whether it may be so. From the start on, for the kubelet may have started with us.
    """

    def __init__(
        self, held: Callable[[], Sequence[Hold]], witnesses: Witnesses, changed: Callable[[], None]
    ) -> None:
        self.now = True
        self._held = held
        self._witnesses = witnesses
        self._changed = changed
        self._reading = False
        self._news = asyncio.Event()

    async def look(self) -> None:
        """Find out whether all that hold something run."""
        self._set(not await self._all_run())

    def list_read(self, yes: bool) -> None:
        """The kubelet began or ceased to read the device list; it ceases when it ends."""
        self._reading = yes
        if not yes:
            self._set(bool(self._held()))
        self._news.set()

    async def run(self) -> None:
        """Find out when it is over, each time that it begins, until cancelled."""
        while True:
            self._news.clear()
            if self.now and (self._reading or not self._held()):
                await self._until_over()
            else:
                await self._news.wait()

    async def _until_over(self) -> None:
        """Look until all run, or for as long as may be; or until the kubelet is gone again."""
        end = asyncio.get_running_loop().time() + LONGEST_S
        while not self._news.is_set():
            if await self._all_run() or asyncio.get_running_loop().time() > end:
                self._set(False)
                return
            await asyncio.sleep(LOOK_S)

    async def _all_run(self) -> bool:
        holders = {hold.holder for hold in self._held() if isinstance(hold.holder, PodHolder)}
        if not all(holder.uid for holder in holders):
            return False
        asked = [(one, self._witnesses.running_of(one.uid, LOOK_S)) for one in holders]
        running = await asyncio.gather(*(asking for _, asking in asked))
        return all(one.container in found.containers for (one, _), found in zip(asked, running, strict=True))

    def _set(self, now: bool) -> None:
        if now is not self.now:
            self.now = now
            self._changed()

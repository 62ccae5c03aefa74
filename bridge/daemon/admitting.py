"""Whether the kubelet is just taking its pods up again: then what they hold has to be healthy.

A kubelet that starts admits its pods anew, and fails one whose container is down and whose devices are unhealthy
(seen on 1.37.1). So held devices that are hidden for the sake of allocatable are shown as healthy from the moment that
nobody reads the list until their pods' containers run or will not run again, and not for longer than two minutes.
Meanwhile the scheduler counts them, and sends pods here that should go to DRA: so nobody is waited for in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

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
        going_on: gives the UIDs of this node's pods that are to run on; None where nobody can tell.
        changed: called when `now` changes.

    Attributes:
        now: whether it may be so. From the start on, for the kubelet may have started with us.
    """

    def __init__(
        self,
        held: Callable[[], Sequence[Hold]],
        witnesses: Witnesses,
        going_on: Callable[[], Awaitable[frozenset[str] | None]],
        changed: Callable[[], None],
    ) -> None:
        self.now = True
        self._held = held
        self._witnesses = witnesses
        self._going_on = going_on
        self._changed = changed
        self._reading = False
        self._news = asyncio.Event()

    async def look(self) -> None:
        """Find out whether all that hold something run, or never will again."""
        self._set(not await self._nobody_waits())

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
            if await self._nobody_waits() or asyncio.get_running_loop().time() > end:
                self._set(False)
                return
            await asyncio.sleep(LOOK_S)

    async def _nobody_waits(self) -> bool:
        """Whether none of the holders is still to be admitted.

        Of one whose pod is not known yet nothing can be asked. It was given its device a moment ago: it would have to
        meet a kubelet that restarts in just that moment, and to wait for it would keep the list open to new ones.
        """
        holders = {h for hold in self._held() if isinstance(h := hold.holder, PodHolder) and h.uid}
        asked = [(one, self._witnesses.running_of(one.uid, LOOK_S)) for one in holders]
        running = await asyncio.gather(*(asking for _, asking in asked))
        down = {
            one.uid
            for (one, _), found in zip(asked, running, strict=True)
            if one.container not in found.containers
        }
        if not down:
            return True
        try:
            async with asyncio.timeout(LOOK_S):
                going_on = await self._going_on()
        except TimeoutError:
            return False
        return going_on is not None and not down & going_on

    def _set(self, now: bool) -> None:
        if now is not self.now:
            self.now = now
            self._changed()

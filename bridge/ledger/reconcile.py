"""Keeps the device plugin holds true to what the kubelet and the runtime show.

Looks at the sources, names the pods of new holds, takes up what the ledger lacks, and ends what is proven gone;
the verdicts are `evidence`'s. Looks often while something is undecided, seldom while nothing is, and not at all
while this plane holds nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from bridge.ledger.evidence import Absence, Grace, InUse, Sighting, continued, look_at, may_release
from bridge.ledger.holds import Hold, Phase, Pick, Plane, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError

log = logging.getLogger(__name__)

SOON_S = 0.1
UNDECIDED_S = 1.0
SETTLED_S = 5.0
"""Pauses between looks: after a hand-out, while a hold is unmatched or absent, while all are seen in use.
podresources is limited to a look a second or so (kubelet-contract A.8)."""


_STRANGER = "stranger: "
"""Begins the reason of a quarantine that is lifted when the ID is no longer out."""


class Ended(Protocol):
    """Told of each hold that ended."""

    def ended(self, plane: Plane, group: str, devices: list[str], holder: str, why: str) -> None:
        """See `bridge.planes.report.Report`."""
        ...


class Reconciler:
    """One task over the whole plane.

    Args:
        ledger: the account.
        resources: resource name by group.
        pick_of: the pick for an ID of a group; raises Exception for one that the inventory does not know.
        look: looks at every source once.
        report: told of releases.
        grace: how long to wait.
    """

    def __init__(
        self,
        ledger: Ledger,
        resources: Mapping[str, str],
        pick_of: Callable[[str, str], Pick],
        look: Callable[[], Awaitable[Sighting]],
        report: Ended,
        grace: Grace,
    ) -> None:
        self._ledger = ledger
        self._resources = resources
        self._groups = {resource: group for group, resource in resources.items()}
        self._pick_of = pick_of
        self._look = look
        self._report = report
        self._grace = grace
        self._absences: dict[int, Absence] = {}
        self._first_seen: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._said: set[tuple[str, str]] = set()
        ledger.subscribe(lambda _: self._wake.set())

    async def take_up(self) -> None:
        """At start: take up what kubelet and checkpoint have of ours and the ledger lacks (E.7, H18)."""
        sighting = await self._look()
        await self._adopt(sighting)

    async def run(self) -> None:
        """Look, decide, wait, until cancelled."""
        while True:
            if not self._holds():
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(SOON_S)
            sighting = await self._look()
            await self._adopt(sighting)
            await self._decide(sighting)
            await self._pause()

    def _holds(self) -> tuple[Hold, ...]:
        return self._ledger.account.on_plane(Plane.DEVICE_PLUGIN)

    async def _pause(self) -> None:
        """Wait for the next look; a hand-out brings it forward."""
        holds = self._holds()
        undecided = any(h.phase is Phase.GRANTED or h.id in self._absences for h in holds)
        known = {h.id for h in holds}
        ends = time.monotonic() + (UNDECIDED_S if undecided else SETTLED_S)
        while (left := ends - time.monotonic()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return
            if any(h.id not in known for h in self._holds()):
                await asyncio.sleep(SOON_S)
                return

    async def _decide(self, sighting: Sighting) -> None:
        """Name pods, and end what is proven gone."""
        proven: list[Hold] = []
        for hold in self._holds():
            resource = self._resources.get(hold.group)
            if resource is None:
                continue  # its group is no longer configured: nobody can ask for it, nobody can prove its end
            first = self._first_seen.setdefault(hold.id, sighting.at)
            seen = look_at(hold, resource, sighting)
            if isinstance(seen, InUse):
                await self._attribute(hold, seen.pod)
            absence = continued(self._absences.get(hold.id), seen, sighting.at)
            if absence is None:
                self._absences.pop(hold.id, None)
                continue
            self._absences[hold.id] = absence
            if may_release(hold, absence, sighting.at - first, self._grace):
                proven.append(hold)
        await self._release(proven)
        alive = {hold.id for hold in self._holds()}
        self._absences = {i: a for i, a in self._absences.items() if i in alive}
        self._first_seen = {i: at for i, at in self._first_seen.items() if i in alive}

    async def _attribute(self, hold: Hold, pod: PodHolder) -> None:
        before = hold.holder
        assert isinstance(before, PodHolder)
        if (before.namespace, before.name) == (pod.namespace, pod.name):
            # Sources tell different things of one pod: keep what is known.
            pod = PodHolder(pod.namespace, pod.name, pod.container or before.container, pod.uid or before.uid)
        try:
            await self._ledger.attribute(hold.id, pod)
        except LedgerError as error:
            log.error("cannot record the pod of a hold", extra={"device": hold.share, "error": str(error)})

    async def _release(self, holds: list[Hold]) -> None:
        if not holds:
            return
        try:
            await self._ledger.release([hold.id for hold in holds])
        except LedgerError as error:
            log.error("cannot record a release", extra={"error": str(error)})
            return
        for hold in holds:
            why = "no source shows it in use any longer"
            self._report.ended(Plane.DEVICE_PLUGIN, hold.group, [hold.share], str(hold.holder), why)

    async def _adopt(self, sighting: Sighting) -> None:
        """Take up IDs that the kubelet has given out and the ledger does not know."""
        strangers: dict[str, str] = {}
        for (resource, device_id), pod in _claimed(sighting).items():
            group = self._groups.get(resource)
            if group is None or self._ledger.account.of_share(Plane.DEVICE_PLUGIN, group, device_id):
                continue
            try:
                await self._ledger.adopt(self._pick_of(group, device_id), pod)
                log.warning(
                    "took up a hold that the ledger lacked",
                    extra={"group": group, "device": device_id, "holder": str(pod)},
                )
            except Refused as refused:
                await self._doubt(group, device_id, pod, refused)
            except LookupError as error:
                self._say(group, device_id, str(error))
                strangers[group] = str(error)
            except LedgerError as error:
                self._say(group, device_id, str(error))
        if sighting.listed is not None:
            await self._fence(strangers)

    async def _fence(self, strangers: Mapping[str, str]) -> None:
        """A stranger's ID may be any device of the group: nobody gets one until it is gone (H18)."""
        for group in self._resources:
            fence = self._ledger.account.quarantine_of(group, "*")
            fenced = fence is not None and fence.reason.startswith(_STRANGER)
            try:
                if group in strangers and fence is None:
                    await self._ledger.quarantine(group, "*", _STRANGER + strangers[group])
                elif fenced and group not in strangers:
                    await self._ledger.lift(group, "*")
            except LedgerError as error:
                log.error("cannot record a quarantine", extra={"group": group, "error": str(error)})

    async def _doubt(self, group: str, device_id: str, pod: PodHolder, refused: Refused) -> None:
        """Both planes hold one device, or it is quarantined already: whom to believe is not ours to guess (S5)."""
        if not refused.blockers:
            return
        reason = f"the kubelet gave {device_id} to {pod}, and yet: {refused}; delete one of the two pods"
        self._say(group, device_id, reason)
        try:
            await self._ledger.quarantine(group, refused.pick.device, reason)
        except LedgerError as error:
            log.error("cannot record a quarantine", extra={"device": device_id, "error": str(error)})

    def _say(self, group: str, device_id: str, why: str) -> None:
        if (device_id, why) not in self._said:
            self._said.add((device_id, why))
            log.error("unexpected hold", extra={"group": group, "device": device_id, "why": why})


def _claimed(sighting: Sighting) -> dict[tuple[str, str], PodHolder]:
    """Who has which ID, as far as the sources say: podresources first, then live pods of the checkpoint."""
    claimed = dict(sighting.listed or {})
    live = {uid: name for name, uids in (sighting.live or {}).items() for uid in uids}
    for key, uids in (sighting.checkpointed or {}).items():
        for uid in uids:
            if uid in live and key not in claimed:
                claimed[key] = PodHolder(*live[uid], uid=uid)
    return claimed

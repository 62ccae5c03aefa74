"""Keeps the device plugin holds true to what the kubelet and the runtime show.

Looks at the sources, names the pods of new holds, takes up what the ledger lacks, and ends what is proven gone;
the verdicts are `evidence`'s. Looks often while something is undecided, seldom while nothing is, and not at all
while this plane holds nothing and the kubelet reads our lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.ledger.doubts import Claims, Doubts
from bridge.ledger.evidence import (
    Absence,
    Grace,
    InUse,
    Sighting,
    continued,
    in_words,
    look_at,
    may_release,
)
from bridge.ledger.holds import Hold, Phase, Pick, Plane, PodHolder
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError

log = logging.getLogger(__name__)

SOON_S = 0.1
UNDECIDED_S = 1.0
SETTLED_S = 5.0
"""Pauses between looks: after a hand-out, while a hold is unmatched or absent, while all are seen in use.
podresources is limited to a look a second or so (kubelet-contract A.8)."""

NEW_S = 60.0
"""Between looks while nothing is held and a new ledger has not been compared with whole evidence."""

OFTEN_S = 5.0
"""After the end of a pod: its sandbox goes a moment later than its containers."""


class Told(Protocol):
    """Told of each hold that ended, and of each that was found."""

    def ended(self, plane: Plane, group: str, devices: list[str], holder: str, why: str) -> None:
        """See `bridge.planes.report.Report`."""
        ...

    def taken_up(self, plane: Plane, group: str, devices: list[str], holder: str) -> None:
        """See there."""
        ...


@dataclass(frozen=True, slots=True)
class Names:
    """How kubelet and runtime call what is ours.

    Attributes:
        resources: resource name by group.
        drivers: DRA driver name by group.
        pick_of: the pick for a group and an ID or device name; raises LookupError for one that is none of ours.
    """

    resources: Mapping[str, str]
    drivers: Mapping[str, str]
    pick_of: Callable[[str, str], Pick]


class Reconciler:
    """One task over the whole plane.

    Args:
        ledger: the account.
        names: how our devices are called.
        look: looks at every source once.
        report: told of releases, and of what is taken up.
        grace: how long to wait.
        claims: what the API server says of claims while the ledger is new.
    """

    def __init__(
        self,
        ledger: Ledger,
        names: Names,
        look: Callable[[], Awaitable[Sighting]],
        report: Told,
        grace: Grace,
        claims: Claims | None = None,
    ) -> None:
        self._ledger = ledger
        self._resources = names.resources
        self._look = look
        self._report = report
        self._grace = grace
        self._doubts = Doubts(ledger, names, report.taken_up, claims)
        self._absences: dict[int, Absence] = {}
        self._first_seen: dict[int, float] = {}
        self._evidence: dict[int, str] = {}
        self._looked_whole = False
        self._again = False
        self._unread: set[str] = set()
        self._wake = asyncio.Event()
        self._often_until = 0.0
        ledger.subscribe(lambda _: self._wake.set())

    @property
    def evidence(self) -> Mapping[int, str]:
        """What the last look said of each hold of this plane, and what keeps it from ending, for people."""
        return self._evidence

    async def take_up(self) -> None:
        """At start, before anything is offered: take up what the kubelet has and the ledger lacks (E.7, H18)."""
        await self._doubts.settle(await self._look())

    def pod_ended(self) -> None:
        """Some pod of this node has ended or is about to be gone: look soon, and often until the runtime is done."""
        self._often_until = time.monotonic() + OFTEN_S
        self._wake.set()

    def wake(self) -> None:
        """Look soon: something has changed that no hold tells of, and that a look under way may not show."""
        self._looked_whole, self._again = False, True
        self._wake.set()

    def list_read(self, group: str, yes: bool) -> None:
        """The kubelet reads a group's device list, or reads it no longer: it ended, or it was given another plugin
        under our name, which may hand out what is ours (H19). Looks go on until it reads ours again."""
        (self._unread.discard if yes else self._unread.add)(group)
        self.wake()

    async def run(self) -> None:
        """Look, decide, wait, until cancelled."""
        while True:
            if not self._holds() and self._looked_whole and not self._doubts.stand and not self._unread:
                self._wake.clear()
                await self._woken(NEW_S if self._ledger.fresh else None)
                await asyncio.sleep(SOON_S)
            # What is handed out during the look may be under an ID that the look shows with its last pod.
            before, self._again = self._holds(), False
            await self.act_on(await self._look(), before)
            self._looked_whole = self._looked_whole and not self._again
            await self._pause()

    async def act_on(self, sighting: Sighting, holds: tuple[Hold, ...]) -> None:
        """Take one sighting; of the holds it can tell only of those that were there before it."""
        self._looked_whole |= sighting.listed is not None and sighting.kubelet_stable
        await self._doubts.settle(sighting)
        await self._decide(holds, sighting)

    async def _woken(self, at_most: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._wake.wait()

    def _holds(self) -> tuple[Hold, ...]:
        return self._ledger.account.on_plane(Plane.DEVICE_PLUGIN)

    async def _pause(self) -> None:
        """Wait for the next look; a hand-out brings it forward."""
        holds = self._holds()
        undecided = not self._looked_whole or any(
            h.phase is Phase.GRANTED or h.id in self._absences for h in holds
        )
        known, often_until = {h.id for h in holds}, self._often_until
        often = undecided or time.monotonic() < often_until
        ends = time.monotonic() + (UNDECIDED_S if often else SETTLED_S)
        while (left := ends - time.monotonic()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return
            ended = self._often_until > often_until and not often
            if ended or any(h.id not in known for h in self._holds()):
                await asyncio.sleep(SOON_S)
                return

    async def _decide(self, holds: tuple[Hold, ...], sighting: Sighting) -> None:
        """Name the pods of holds, and end those that are proven gone."""
        proven: list[Hold] = []
        for hold in holds:
            resource = self._resources.get(hold.group)
            if resource is None:
                continue  # its group is no longer configured: nobody can ask for it, nobody can prove its end
            first = self._first_seen.setdefault(hold.id, sighting.at)
            seen = look_at(hold, resource, sighting, alone=self._alone(hold))
            if isinstance(seen, InUse):
                await self._attribute(hold, seen.pod)
            absence = continued(self._absences.get(hold.id), seen, sighting.at)
            self._evidence[hold.id] = in_words(hold, seen, absence, sighting.at - first, self._grace)
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
        self._evidence = {i: text for i, text in self._evidence.items() if i in alive}

    def _alone(self, hold: Hold) -> bool:
        """Whether no other hold explains that its silicon is in use."""
        return all(len(self._ledger.account.on_part(use.part)) <= 1 for use in hold.uses)

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
            ended = await self._ledger.release([hold.id for hold in holds])
        except LedgerError as error:
            log.error("cannot record a release", extra={"error": str(error)})
            return
        for hold in ended:  # some may have ended otherwise meanwhile
            why = "no source shows it in use any longer"
            self._report.ended(Plane.DEVICE_PLUGIN, hold.group, [hold.share], str(hold.holder), why)

"""Healing: a claim that lost its device to the device plugin plane is moved elsewhere by a taint (contract E.6).

Such a claim can never be prepared. A `NoExecute` taint on its device makes the cluster delete the pod, whose
controller makes another that is sent elsewhere. But the taint evicts every pod whose claim names the device, so
`decide`, which is pure, allows it only where the loser is the device's only claim and a pod's spec names it; for the
others it says who holds the device and what to delete. No hold of DRA begins on a device from the moment at which the
taint is decided until the slices are known to be without it (`fence`): no pod is evicted that holds rightly (H43).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Pick, Plane, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.planes import report as told
from bridge.planes.claims import decode
from bridge.planes.report import Asker, Report
from bridge.planes.roster import Roster
from bridge.planes.rosters import Rosters
from dra_v1.claims import ClaimError, ClaimProblem, ClaimRef, check_claim
from dra_v1.kube_errors import ApiError, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

LIMIT_S = 60.0
"""How long a stored taint waits for the claim to let go: the cluster deletes the pod within a second (seen on 1.37.1),
unless the claim tolerates the taint."""

NAMING_S = 5.0
"""How long to wait for the name of a pod that has a device, before people are told of it."""

AGAIN_S = 600.0
"""A claim that a taint did not move is left alone for so long."""

LOSER_S = 180.0
"""A claim that lost a device counts as one that has it for so long: the kubelet asks again at least each 90 s."""

BURST, REFILL_S = 20, 1.0
"""So many taints at once, then one each so many seconds (H43)."""

_FIRST_S, _LONGEST_S = 0.25, 5.0
"""Pauses between two looks at the claim, in the time of which a taint stands."""

_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Loser:
    """A claim that cannot be prepared, because somebody else has a device of its allocation.

    Its pod is bound, else the kubelet would not ask: where the scheduler still waits for our conditions, the failing
    one sends the pod elsewhere (`bridge.planes.binding`), and nothing has to be tainted.

    Attributes:
        asker: which claim, and the pods that it is reserved for.
        pick: what it would have been booked.
        shown: the name that its allocation has for the device.
        extended_resource: the scheduler made it for an extended resource; no pod's spec names it.
    """

    asker: Asker
    pick: Pick
    shown: str
    extended_resource: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Group, claim and device: one conflict."""
        return (self.pick.group, self.asker.claim.uid, self.shown)


@dataclass(frozen=True, slots=True)
class Move:
    """Taint the device; the holders keep it."""

    holders: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """A taint would do harm, or nothing: leave it to people. `why` says so, for them."""

    why: str


@dataclass(frozen=True, slots=True)
class Over:
    """There is no conflict any longer."""

    why: str


Verdict = Move | Leave | Over


def decide(loser: Loser, roster: Roster, account: Account, others: Collection[str] = ()) -> Verdict:
    """What to do about a claim that lost a device. Pure.

    `others`: UIDs of claims that are allocated the device, as far as anybody knows; the loser's may be among them.
    """
    device = roster.by_name.get(loser.shown)
    if device is None or not device.present:
        return Over("the device is gone")
    try:
        account.check_quarantine(loser.pick)
    except Refused as refused:
        return Leave(str(refused))
    try:
        account.check_room(loser.pick)
    except Refused as refused:
        holders = refused.blockers
    else:
        return Over("its device is free")
    why_not = _why_not(loser, holders) or _beside(loser, device.name, roster, account, others)
    return Leave(why_not) if why_not else Move(holders)


def _why_not(loser: Loser, holders: tuple[Hold, ...]) -> str:
    """Why a taint would not move the loser, whoever else is on the device; empty if it would."""
    if not holders:
        return "it asks for more than the device has"
    if any(hold.plane is not Plane.DEVICE_PLUGIN for hold in holders):
        return "another claim has the device, and a taint would evict that claim's pods"
    if loser.extended_resource:
        return (
            "the scheduler made the claim for an extended resource, and the cluster does not evict such pods"
        )
    if not loser.asker.pods:
        return "no pod is known that names the claim"
    return ""


def _beside(loser: Loser, device: str, roster: Roster, account: Account, others: Collection[str]) -> str:
    """Which other claim is on the device, a sharer or one with admin access; empty if there is none."""
    group = loser.pick.group
    who = next((str(h.holder) for h in account.of_group(Plane.DRA, group) if h.device == device), "")
    for claim in account.prepared_claims():
        if not who and claim.group == group and claim.holder.uid != loser.asker.claim.uid:
            names = (answered.device for answered in decode(claim.answer).answer.devices)
            if any(known.name == device for name in names if (known := roster.by_name.get(name))):
                who = str(claim.holder)
    if not who and any(uid != loser.asker.claim.uid for uid in others):
        who = "another claim"
    return f"{who} has the device too, and a taint would evict its pods" if who else ""


class Known(Protocol):
    """What early word knows of claims on this node."""

    def claims_on(self, driver: str, device: str) -> Collection[str]:
        """UIDs of the claims that are allocated a device, by the name that slices have for it."""
        ...


class Nothing:
    """Where there is no early word."""

    def claims_on(self, driver: str, device: str) -> Collection[str]:
        """None are known."""
        return ()


@dataclass(slots=True)
class _Tokens:
    """A storm of taints is a storm of evictions: they have a budget."""

    left: float = BURST
    at: float = field(default_factory=time.monotonic)

    def wait_s(self) -> float:
        now = time.monotonic()
        self.left = min(BURST, self.left + (now - self.at) / REFILL_S) - 1
        self.at = now
        return max(0.0, -self.left * REFILL_S)


@dataclass(slots=True)
class _Taint:
    """A taint that is wanted, or was and may still be in a slice.

    Attributes:
        wanted: how many conflicts want it.
        unwanted_at: the group's mark when the last one let it go.
        wanted_at: the group's mark when the first one asked for it.
    """

    wanted: int = 0
    wanted_at: int = 0
    unwanted_at: int = 0


class Healing:
    """Acts on the verdicts. Single event loop.

    Args:
        ledger, rosters: what is held, and by what names.
        resources: to ask for the claims; None where there is no API server, then nothing is tainted.
        drivers: driver name by group.
        pool: this node's pool.
        report: told what is done and why not.
        clock: monotonic seconds.

    Attributes:
        known: what early word knows; replaced once there is any.
    """

    def __init__(
        self,
        ledger: Ledger,
        rosters: Rosters,
        resources: ResourceApi | None,
        drivers: Mapping[str, str],
        pool: str,
        report: Report,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.known: Known = Nothing()
        self._ledger = ledger
        self._rosters = rosters
        self._resources = resources
        self._drivers = drivers
        self._pool = pool
        self._report = report
        self._clock = clock
        self._tasks: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._losers: OrderedDict[tuple[str, str, str], tuple[Loser, float]] = OrderedDict()
        self._taints: dict[tuple[str, str], _Taint] = {}
        self._marks: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._dropped: set[str] = set()
        self._left: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()
        self._tokens = _Tokens()
        self._news = asyncio.Event()
        ledger.subscribe(lambda _: self._news.set())

    # What the projection and the planes ask

    def lost(self, loser: Loser) -> None:
        """A claim cannot have a device: see to it. Called again for the same, it does nothing more."""
        if loser.key in self._tasks:
            return
        self._losers[loser.key] = (loser, self._clock() + LOSER_S)
        if len(self._losers) > _REMEMBERED:
            self._losers.popitem(last=False)
        task = asyncio.create_task(self._see_to(loser), name=f"healing of {loser.asker.claim}")
        self._tasks[loser.key] = task
        task.add_done_callback(lambda done: self._forget(loser.key, done))

    def moving(self, group: str) -> frozenset[str]:
        """The names of devices that slices have to show with the taint."""
        return frozenset(
            name for (owner, name), taint in self._taints.items() if owner == group and taint.wanted
        )

    def fence(self, group: str, shown: str) -> str:
        """Why no claim may be given this device now; empty if one may."""
        if (group, shown) not in self._taints:
            return ""
        return (
            f"{shown} is tainted for a moment, so that a claim that lost it is moved elsewhere; it is given out "
            f"again when the taint is taken back, which needs the API server"
        )

    def mark(self, group: str) -> int:
        """A number for what `moving` says now; to be given back once the slices are stored like that."""
        return self._marks.get(group, 0)

    def stored(self, group: str, mark: int) -> None:
        """The slices of a group are as `moving` said at that mark, or later."""
        self._stored[group] = max(mark, self._stored.get(group, 0))
        for key, taint in list(self._taints.items()):
            if key[0] == group and not taint.wanted and taint.unwanted_at <= mark:
                del self._taints[key]
        self._news.set()

    def dropped(self, group: str) -> None:
        """The cluster does not keep taints (H25): nothing can be moved."""
        self._dropped.add(group)
        self._news.set()

    async def stop(self) -> None:
        """Leave every conflict as it is; the next start takes up what still stands."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One conflict

    def _forget(self, key: tuple[str, str, str], task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("healing failed", extra={"claim": key[1], "device": key[2], "error": repr(error)})

    def _decide(self, loser: Loser) -> Verdict:
        group = loser.pick.group
        rivals = [
            other.asker.claim.uid
            for other, until in self._losers.values()
            if (other.pick.group, other.shown) == (group, loser.shown) and until > self._clock()
        ]
        others = [*rivals, *self.known.claims_on(self._drivers[group], loser.shown)]
        verdict = decide(loser, self._rosters.of(group), self._ledger.account, others)
        if isinstance(verdict, Move):
            if group in self._dropped:
                return Leave("this cluster has no device taints (gate DRADeviceTaints)")
            if self._resources is None:
                return Leave("there is no API server to ask")
            given_up = self._left.get(loser.key)
            if given_up is not None and given_up[1] > self._clock():
                return Leave(given_up[0])
        return verdict

    async def _see_to(self, loser: Loser) -> None:
        verdict = self._decide(loser)
        if isinstance(verdict, Move) and (pause := self._tokens.wait_s()):
            await asyncio.sleep(pause)
            verdict = self._decide(loser)
        match verdict:
            case Move(holders):
                self._report.tell(told.Healing(loser.pick.group, loser.shown, loser.asker, holders))
                await self._move(loser, holders)
            case Leave(why):
                await self._leave(loser, why)
            case Over():
                self._losers.pop(loser.key, None)

    async def _leave(self, loser: Loser, why: str) -> None:
        """Say who has the device; evidence names the pod of a new hold a moment after it was made."""
        ends = self._clock() + NAMING_S
        while any(not _known(hold) for hold in self._holders(loser)) and (left := ends - self._clock()) > 0:
            self._news.clear()
            await self._wait(left)
        news = told.ConflictStands(loser.pick.group, loser.shown, loser.asker, self._holders(loser), why)
        self._report.tell(news)

    def _holders(self, loser: Loser) -> tuple[Hold, ...]:
        try:
            self._ledger.account.check_room(loser.pick)
        except Refused as refused:
            return refused.blockers
        return ()

    async def _move(self, loser: Loser, holders: tuple[Hold, ...]) -> None:
        """Taint, wait until it is over, take the taint back."""
        group = loser.pick.group
        wanted_at = self._want(group, loser.shown)
        try:
            why = await self._until_over(loser, wanted_at)
        finally:
            self._unwant(group, loser.shown)
        if why:
            self._losers.pop(loser.key, None)
            self._report.tell(told.Healed(group, loser.shown, loser.asker, why))
            return
        why = (
            "this cluster has no device taints (gate DRADeviceTaints)"
            if group in self._dropped
            else "the cluster did not move its pod for the taint: the claim tolerates it, or nobody evicts"
        )
        self._left[loser.key] = (why, self._clock() + AGAIN_S)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        await self._leave(loser, why)

    async def _until_over(self, loser: Loser, wanted_at: int) -> str:
        """Why it is over; empty if the taint did not help within its time."""
        pause, ends = _FIRST_S, float("inf")
        next_look = self._clock() + pause
        while True:
            self._news.clear()
            match self._decide(loser):
                case Over(why):
                    return why
                case Leave(why):
                    return "" if loser.pick.group in self._dropped else why
                case Move():
                    pass
            now = self._clock()
            if ends == float("inf") and self._stored.get(loser.pick.group, 0) >= wanted_at:
                ends = now + LIMIT_S
            if now >= next_look:
                if await self._has_let_go(loser):
                    return "the claim has let go of it"
                pause = min(pause * 2, _LONGEST_S)
                next_look = self._clock() + pause
            if now >= ends:
                return ""
            await self._wait(min(next_look, ends) - self._clock())

    async def _wait(self, seconds: float) -> None:
        """Wait, or until anything changed."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._news.wait()
        except TimeoutError:
            return

    async def _has_let_go(self, loser: Loser) -> bool:
        """Whether the claim is gone, or no longer allocated the device. Failure to ask means no."""
        assert self._resources is not None
        ref = ClaimRef(loser.asker.claim.namespace, loser.asker.claim.name, loser.asker.claim.uid)
        try:
            body = await self._resources.get_claim(ref.namespace, ref.name)
        except NotFound as error:
            return not error.unserved
        except (ApiError, NoResourceApi) as error:
            log.warning(
                "cannot tell whether a claim was moved", extra={"claim": str(ref), "error": str(error)}
            )
            return False
        found = check_claim(body, ref, self._drivers[loser.pick.group])
        if isinstance(found, ClaimError):
            return found.problem in (
                ClaimProblem.REPLACED,
                ClaimProblem.NOT_ALLOCATED,
                ClaimProblem.NOT_OURS,
            )
        return not any(r.pool == self._pool and r.device == loser.shown for r in found.results)

    # Taints

    def _want(self, group: str, shown: str) -> int:
        taint = self._taints.setdefault((group, shown), _Taint())
        taint.wanted += 1
        if taint.wanted == 1:
            taint.wanted_at = self._next_mark(group)
        return taint.wanted_at

    def _unwant(self, group: str, shown: str) -> None:
        taint = self._taints[group, shown]
        taint.wanted -= 1
        if not taint.wanted:
            taint.unwanted_at = self._next_mark(group)

    def _next_mark(self, group: str) -> int:
        self._marks[group] = self._marks.get(group, 0) + 1
        self._rosters.pulses[group].ring()
        return self._marks[group]


def _known(hold: Hold) -> bool:
    return not isinstance(hold.holder, PodHolder) or hold.holder.known
